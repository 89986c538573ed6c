"""Recipe values under `corpora:`."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Final, Literal, get_args

from pydantic import Field, PlainValidator, SerializeAsAny, model_validator

from vila_data.core.config import StrictModel
from vila_data.core.plugins import ModelRegistry
from vila_data.core.records import RecordKind


class Preselect(StrictModel):
    """Which rows of a pair corpus are worth a download, by the sum of published scores.

    c = sum of the columns `by`. Rows with c > `min_sum` are candidates; the `count`
    largest, or floor(`fraction` x all rows), are kept, over the whole corpus or in
    each file. Ties: c descending, then id ascending. (docs/sources.md)

    by:       columns of the metadata that are summed.
    keep:     whether `count` or `fraction` sets how many rows are kept.
    count:    rows kept, with `keep: top_count`.
    fraction: share of all rows kept, with `keep: top_fraction`.
    min_sum:  c must be above this; None: no bound.
    scope:    whether the selection is over the whole corpus or within each file.
    """

    by: Annotated[tuple[str, ...], Field(min_length=1)]
    keep: Literal["top_count", "top_fraction"]
    count: Annotated[int, Field(gt=0)] | None = None
    fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    min_sum: float | None = None
    scope: Literal["corpus", "file"] = "corpus"

    @model_validator(mode="after")
    def _one_amount(self) -> Preselect:
        wanted, other = ("count", "fraction") if self.keep == "top_count" else ("fraction", "count")
        if getattr(self, wanted) is None or getattr(self, other) is not None:
            raise ValueError(f"keep: {self.keep} needs {wanted}, and no {other}")
        return self


class CorpusFiles(StrictModel):
    """Keys of every corpus: its metadata files and how they are split into parts.

    files:        paths or globs, relative to the recipe's file, or fsspec URLs; `{00..31}` and `{a,b}` are expanded.
    part_records: records per part, the unit of work and of resuming.
    kind:         what the files hold.
    makes:        the kind of its records.
    has_rows:     whether files are .json, .jsonl (also .gz) or .parquet with one record per row; others are not inspected.
    """

    makes: ClassVar[RecordKind]
    has_rows: ClassVar[bool] = True

    files: Annotated[tuple[str, ...], Field(min_length=1)]
    part_records: Annotated[int, Field(gt=0, le=999_999)] = 10_000
    kind: str

    def open(self) -> Any:
        """The reader (corpora.source.Source) of a kind that another package adds; ours are in kinds.py."""
        raise NotImplementedError


class Mmc4Config(CorpusFiles):
    """MMC4 documents: .jsonl, .jsonl.gz or .jsonl.zip; or OpenFlamingo's .tar, also `pipe:COMMAND`. Images may be in the
    line (`image_base64`).

    kind: what the files hold.
    """

    makes = "document"
    has_rows = False
    kind: Literal["mmc4"]


class CoyoConfig(CorpusFiles):
    """COYO pairs: parquet files with `url`, `text`, and `id` if they have one.

    kind:      what the files hold.
    preselect: which rows are downloaded, by published scores; None: all.
    """

    makes = "pair"
    has_rows = False
    kind: Literal["coyo"]
    preselect: Preselect | None = None


class Img2datasetConfig(CorpusFiles):
    """Pairs that img2dataset has downloaded: its .tar files, next to .parquet and _stats.json; or `pipe:COMMAND`, a command
    that writes such a tar.

    kind: what the files hold.
    """

    makes = "pair"
    has_rows = False
    kind: Literal["img2dataset"]


class LlavaConfig(CorpusFiles):
    """LLaVA conversations and chat messages with images: .json, .jsonl (also .gz) or .parquet.

    kind:       what the files hold.
    image_root: directory or URL below which image paths are; without it images are URLs, or in the rows.
    """

    makes = "conversation"
    kind: Literal["llava"]
    image_root: str | None = None


class TextConfig(CorpusFiles):
    """Text-only instructions, from files (.json, .jsonl, also .gz; .parquet) or a Hugging Face dataset.

    kind:     what the files hold.
    files:    paths or globs, relative to the recipe's file, or fsspec URLs; not together with `dataset`.
    dataset:  name on the hub, or a directory; its data files become `files` when the recipe is resolved, and are read
              by range.
    config:   configuration of the dataset, as `datasets` takes it.
    split:    split of the dataset.
    revision: commit, tag or branch of the dataset; None: the newest, looked up at each run.
    system:   system prompt of rows without one; None: the template's own, "": none.
    """

    makes = "conversation"
    kind: Literal["text"]
    files: tuple[str, ...] = ()
    dataset: Annotated[str, Field(min_length=1)] | None = None
    config: str | None = None
    split: str = "train"
    revision: str | None = None
    system: str | None = None

    @model_validator(mode="after")
    def _some_rows(self) -> TextConfig:
        if not self.files and self.dataset is None:
            raise ValueError("needs files or dataset")
        if self.dataset is None and (self.config, self.split, self.revision) != (None, "train", None):
            raise ValueError("config, split and revision need `dataset`")
        return self


class VflanConfig(CorpusFiles):
    """VFLAN questions with their images in the row: .json, .jsonl (also .gz) or .parquet.

    kind:       what the files hold.
    system:     system prompt; "": none, as in VILA; None: the template's own.
    image_root: directory or URL below which image paths are; without it images are in the rows, or URLs.
    """

    makes = "conversation"
    kind: Literal["vflan"]
    system: str | None = ""
    image_root: str | None = None


class ObelicsConfig(CorpusFiles):
    """OBELICS documents, in their own order: .parquet, .json or .jsonl (also .gz).

    kind: what the files hold.
    """

    makes = "document"
    kind: Literal["obelics"]


class Flickr8kConfig(CorpusFiles):
    """Flickr8k pairs: a captions file, `image,caption` or `image.jpg#0<tab>caption`, and the directory of its images.

    kind:       what the files hold.
    image_root: directory or URL below which the images are.
    """

    makes = "pair"
    has_rows = False
    kind: Literal["flickr8k"]
    image_root: str


CorpusConfig = Annotated[
    Mmc4Config
    | CoyoConfig
    | Img2datasetConfig
    | LlavaConfig
    | TextConfig
    | VflanConfig
    | ObelicsConfig
    | Flickr8kConfig,
    Field(discriminator="kind"),
]
"""The kinds that are ours."""

CORPORA: Final = ModelRegistry(
    "corpora",
    {get_args(config.model_fields["kind"].annotation)[0]: config for config in get_args(get_args(CorpusConfig)[0])},
    CorpusFiles,
    "kind",
)
"""They, and those that installed packages add."""

AnyCorpus = Annotated[SerializeAsAny[CorpusFiles], PlainValidator(CORPORA.validate)]
"""An entry of the recipe's `corpora:`."""
