"""Recipe values under `corpora:`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from vila_data.core.config import StrictModel


class Preselect(StrictModel):
    """Which rows of a pair corpus are worth a download, by the sum of published scores.

    c = sum of the columns `by`. Rows with c > `min_sum` take part; the `count`
    largest, or floor(`fraction` x all rows), are kept, over the whole corpus or in
    each file. Ties: c descending, then id ascending. (docs/sources.md)
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
            raise ValueError(f"keep: {self.keep} takes {wanted}, and not {other}")
        return self


class CorpusFiles(StrictModel):
    """What every corpus has: its metadata files and how they are cut into parts.

    files:        paths or globs, relative to the recipe's file, or fsspec URLs.
    part_records: records of one part, the unit of work and of resume.
    """

    files: Annotated[tuple[str, ...], Field(min_length=1)]
    part_records: Annotated[int, Field(gt=0, le=999_999)] = 10_000


class Mmc4Config(CorpusFiles):
    """MMC4 documents: .jsonl, .jsonl.gz or .jsonl.zip."""

    kind: Literal["mmc4"]


class CoyoConfig(CorpusFiles):
    """COYO pairs: parquet files with `url`, `text`, and `id` if they have one."""

    kind: Literal["coyo"]
    preselect: Preselect | None = None


class Img2datasetConfig(CorpusFiles):
    """Pairs that img2dataset has downloaded: its .tar files, beside .parquet and _stats.json."""

    kind: Literal["img2dataset"]


CorpusConfig = Annotated[Mmc4Config | CoyoConfig | Img2datasetConfig, Field(discriminator="kind")]
