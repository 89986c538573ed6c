"""The recipe: one YAML file that says all of a run. Keys: docs/recipe.md."""

from __future__ import annotations

import glob
import os
from pathlib import Path
from typing import Annotated, Literal

import fsspec
from pydantic import Field

from vila_data.core.config import StrictModel
from vila_data.core.errors import RecipeError
from vila_data.corpora.config import CorpusConfig
from vila_data.download.config import DownloadConfig
from vila_data.filter.config import FilterConfig
from vila_data.score.config import ScoreConfig
from vila_data.shard.config import ShardSet
from vila_data.workflow.marked_yaml import MarkedValue, nearest, read_marked, validate

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,48}$")]


class StageResources(StrictModel):
    """What one task of a stage needs on Ray.

    num_cpus, num_gpus: may be fractions; memory_gb: reserved for placement (10^9 bytes).
    max_tasks: how many run at once over the cluster; None: as many as fit.
    """

    num_cpus: Annotated[float, Field(gt=0)] = 1.0
    num_gpus: Annotated[float, Field(ge=0)] = 0.0
    memory_gb: Annotated[float, Field(gt=0)] | None = None
    max_tasks: Annotated[int, Field(gt=0)] | None = None


class Resources(StrictModel):
    """Ray resources a stage."""

    scan: StageResources = StageResources()
    download: StageResources = StageResources()
    score: StageResources = StageResources()
    filter: StageResources = StageResources()
    shard: StageResources = StageResources()


class Pack(StrictModel):
    """How samples become training sequences; checked here, used when shards are encoded and streamed."""

    tokenizer: str
    sequence_length: Annotated[int, Field(gt=0)]
    tokens_per_image: Annotated[int, Field(gt=0)]
    max_images_per_document: Annotated[int, Field(gt=0)] | None = None


class BlendSource(StrictModel):
    """One shard set of a blend."""

    shards: str
    weight: Annotated[float, Field(gt=0)]


class Blend(StrictModel):
    """A weighted mixture of shard sets; checked here, used when shards are streamed."""

    weight_counts: Literal["samples", "images", "tokens"]
    sources: Annotated[tuple[BlendSource, ...], Field(min_length=1)]


class Recipe(StrictModel):
    """A resolved recipe: what is done, from metadata to shards.

    Files in `corpora` are absolute paths or URLs, in order, each of them there.
    """

    version: Literal[1]
    name: Name
    seed: Annotated[int, Field(ge=0)] = 0
    corpora: Annotated[dict[Name, CorpusConfig], Field(min_length=1)]
    download: DownloadConfig = DownloadConfig()
    score: ScoreConfig = ScoreConfig()
    filter: FilterConfig = FilterConfig()
    shards: dict[Name, ShardSet] = Field(default_factory=dict)
    pack: Pack | None = None
    blend: Blend | None = None
    resources: Resources = Resources()


def load_recipe(path: str | os.PathLike[str]) -> Recipe:
    """Read, check and resolve a recipe.

    Raises:
        RecipeError: one message with file, line and key: an unknown key, a wrong type,
            a name that is not defined, files that match nothing.
    """
    file = Path(path)
    marked = read_marked(file)
    recipe = validate(marked, Recipe)
    _check_names(recipe, marked)
    return _resolve(recipe, marked, file.resolve().parent)


def _check_names(recipe: Recipe, marked: MarkedValue) -> None:
    def known(name: str, names: list[str], location: tuple[str | int, ...], what: str) -> None:
        if name not in names:
            raise RecipeError(marked.where(location), f"no {what} {name!r}{nearest(name, names)}")

    corpora = list(recipe.corpora)
    for name, shard_set in recipe.shards.items():
        known(shard_set.corpus, corpora, ("shards", name, "corpus"), "corpus")
        if shard_set.view == "interleaved" and recipe.corpora[shard_set.corpus].kind != "mmc4":
            raise RecipeError(
                marked.where(("shards", name, "view")), "interleaved is a view of documents; this corpus has pairs"
            )
    for corpus in recipe.filter.per_corpus:
        known(corpus, corpora, ("filter", "per_corpus", corpus), "corpus")
    for index, source in enumerate(recipe.blend.sources if recipe.blend else ()):
        known(source.shards, list(recipe.shards), ("blend", "sources", index, "shards"), "shard set")
    if recipe.score.clip is None:
        _check_unscored(recipe, marked)
    if recipe.download.engine == "img2dataset":
        for name, corpus_config in recipe.corpora.items():
            if corpus_config.kind == "mmc4":
                raise RecipeError(
                    marked.where(("download", "engine")), f"img2dataset serves pairs; corpus {name!r} has documents"
                )


def _check_unscored(recipe: Recipe, marked: MarkedValue) -> None:
    sections = [(("filter",), recipe.filter)]
    sections += [(("filter", "per_corpus", name), rules) for name, rules in recipe.filter.per_corpus.items()]  # type: ignore[misc]
    for location, rules in sections:
        if rules.images.min_similarity is not None:
            raise RecipeError(
                marked.where((*location, "images", "min_similarity")), "needs score.clip, which is not set"
            )
        if rules.documents.reassign:
            raise RecipeError(marked.where((*location, "documents", "reassign")), "needs score.clip, which is not set")


def _resolve(recipe: Recipe, marked: MarkedValue, folder: Path) -> Recipe:
    corpora = {}
    for name, config in recipe.corpora.items():
        files: list[str] = []
        for index, pattern in enumerate(config.files):
            found = _matches(pattern, folder)
            if not found:
                where = marked.where(("corpora", name, "files", index))
                raise RecipeError(where, f"{pattern!r} matches no file (looked in {folder})")
            files += [file for file in found if file not in files]
        corpora[name] = config.model_copy(update={"files": tuple(files)})
    clip = recipe.score.clip
    score = recipe.score
    if clip is not None and (folder / clip.model).is_dir():
        score = score.model_copy(
            update={"clip": clip.model_copy(update={"model": str((folder / clip.model).resolve())})}
        )
    elif clip is not None and (clip.backend == "onnx" or clip.model.startswith((".", "/"))):
        raise RecipeError(marked.where(("score", "clip", "model")), f"{clip.model!r} is no folder (looked in {folder})")
    return recipe.model_copy(update={"corpora": corpora, "score": score})


def _matches(pattern: str, folder: Path) -> list[str]:
    if "://" not in pattern:
        return sorted(file for file in glob.glob(str(folder / pattern), recursive=True) if os.path.isfile(file))
    try:
        return sorted(opened.full_name for opened in fsspec.open_files(pattern) if opened.fs.exists(opened.path))
    except (OSError, ValueError, ImportError):
        return []
