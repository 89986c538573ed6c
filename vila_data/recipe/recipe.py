"""The recipe: one YAML file that says all of a run. Keys: docs/recipe.md."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import Field

from vila_data.core.config import StrictModel
from vila_data.core.errors import RecipeError, UsageError
from vila_data.core.scores import Scores
from vila_data.corpora.config import AnyCorpus
from vila_data.download.config import DownloadConfig
from vila_data.encode.config import PackConfig
from vila_data.filter.config import FilterConfig, Rules
from vila_data.filter.rules import parse_rules
from vila_data.mix.config import BlendConfig, InnerBlend
from vila_data.mix.released import check_released
from vila_data.recipe.marked_yaml import NAME, Location, MarkedValue, nearest, read_marked, validate
from vila_data.recipe.sources import check_engine, check_rules, check_view, resolve_corpus
from vila_data.recipe.substitute import override, substitute
from vila_data.score.kinds import ScoreSection, StageSection, scores_of
from vila_data.score.scorer import NotThere
from vila_data.shard.config import ShardSet

AnyBlend = TypeVar("AnyBlend", bound=InnerBlend)
Name = Annotated[str, Field(pattern=NAME)]


class StageResources(StrictModel):
    """What one task of a stage needs on Ray.

    num_cpus:  CPUs that Ray reserves for a task; may be a fraction.
    num_gpus:  GPUs that Ray reserves; above 0 the stage runs on actors that keep their model; may be a fraction.
    memory_gb: memory that Ray reserves for placement (10^9 bytes); it does not limit the task.
    max_tasks: how many run at once over the cluster; None: as many as fit.
    """

    num_cpus: Annotated[float, Field(gt=0)] = 1.0
    num_gpus: Annotated[float, Field(ge=0)] = 0.0
    memory_gb: Annotated[float, Field(gt=0)] | None = None
    max_tasks: Annotated[int, Field(gt=0)] | None = None


class Resources(StrictModel):
    """What a task of each stage needs on Ray; `--runner local` passes over it.

    scan:     counting the rows of a metadata file, and preselection.
    download: fetching one part's images.
    score:    one part's table of one scorer.
    stages:   one part's table of one entry of `stages`.
    filter:   one part's fates, from columns.
    shard:    writing one shard.
    encode:   turning one shard into token ids.
    """

    scan: StageResources = StageResources()
    download: StageResources = StageResources()
    score: StageResources = StageResources()
    stages: StageResources = StageResources()
    filter: StageResources = StageResources()
    shard: StageResources = StageResources()
    encode: StageResources = StageResources()


class Recipe(StrictModel):
    """A resolved recipe: what is done, from metadata to shards.

    Files in `corpora` are absolute paths or URLs, in order, each of them there.

    version:   of the recipe's form.
    name:      of the recipe.
    seed:      of the shuffle over each shard set, and of the blend's order.
    corpora:   where records come from, each under a name of your own.
    download:  how images are fetched and stored.
    score:     scorers, each under a name of your own: what is measured of images and records.
    stages:    columns made from those of `download` and `score`, each table under a name of your own.
    filter:    which of them are kept.
    shards:    the shard sets that are written, each under a name of your own.
    pack:      how samples become token sequences; without it the run ends with the shards.
    blend:     which share of the sequences each shard set gets; needs `pack`.
    resources: what a task of each stage needs on Ray.
    """

    version: Literal[1]
    name: Name
    seed: Annotated[int, Field(ge=0)] = 0
    corpora: Annotated[dict[Name, AnyCorpus], Field(min_length=1)]
    download: DownloadConfig = DownloadConfig()
    score: ScoreSection = Field(default_factory=dict)
    stages: StageSection = Field(default_factory=dict)
    filter: FilterConfig = FilterConfig()
    shards: dict[Name, ShardSet] = Field(default_factory=dict)
    pack: PackConfig | None = None
    blend: BlendConfig | None = None
    resources: Resources = Resources()

    def blended_sets(self) -> list[str]:
        """Names of the shard sets that the blend takes, in its order; none without a blend."""
        leaves = self.blend.leaves() if self.blend else ()
        return list(dict.fromkeys(leaf.source.name for leaf in leaves))

    def rules_for(self, corpus: str) -> Rules:
        """The rules for a corpus, those for conversations where it has them."""
        return self.filter.rules_for(corpus, conversations=self.corpora[corpus].makes == "conversation")

    def scores(self) -> Scores:
        """The scorers and stages in the order in which they run, and which scorer `min_similarity` means."""
        return scores_of(self.score, self.stages)


def load_recipe(
    path: str | os.PathLike[str],
    on: str | os.PathLike[str] | None = None,
    settings: Sequence[str] = (),
    *,
    find_corpora: bool = True,
) -> Recipe:
    """Read, check and resolve a recipe.

    Args:
        path: the YAML file.
        on: a file of stand-ins for its corpora, to try it on a small one (workflow.substitute).
        settings: ``dotted.key=value``, put over the file's values.
        find_corpora: look for the corpora's files; streaming a finished run needs none of them.

    Raises:
        RecipeError: one message with file, line and key: an unknown key, a wrong type,
            a name that is not defined, files that match nothing.
    """
    file = Path(path)
    marked = read_marked(file)
    if on is not None:
        substitute(marked, Path(on))
    return _resolve(checked(marked, settings), marked, file.resolve().parent, find_corpora)


def checked(marked: MarkedValue, settings: Sequence[str] = ()) -> Recipe:
    """A recipe's value with `settings` put over it, in place; its files and models are not looked for.

    Raises:
        RecipeError: as `load_recipe`.
    """
    override(marked, settings)
    recipe = validate(marked, Recipe)
    _check_names(recipe, marked)
    return recipe


def _check_names(recipe: Recipe, marked: MarkedValue) -> None:
    def known(name: str, names: list[str], location: tuple[str | int, ...], what: str) -> None:
        if name not in names:
            raise RecipeError(marked.where(location), f"no {what} {name!r}{nearest(name, names)}")

    corpora = list(recipe.corpora)
    for name, shard_set in recipe.shards.items():
        known(shard_set.corpus, corpora, ("shards", name, "corpus"), "corpus")
        check_view(name, shard_set, recipe.corpora[shard_set.corpus], marked)
    for corpus in recipe.filter.per_corpus:
        known(corpus, corpora, ("filter", "per_corpus", corpus), "corpus")
    check_rules(recipe.corpora, recipe.filter, marked)
    for leaf in recipe.blend.leaves(("blend",)) if recipe.blend else ():
        known(leaf.source.name, list(recipe.shards), (*leaf.location, "shards"), "shard set")
    if recipe.blend is not None and recipe.pack is not None and recipe.pack.semantics == "released_code":
        try:
            check_released(recipe.blend)
        except UsageError as error:
            raise RecipeError(marked.where(("blend",)), str(error).removeprefix("blend: ")) from error
    if recipe.blend is not None and recipe.pack is None:
        raise RecipeError(marked.where(("blend",)), "a blend is of packed sequences: needs `pack`, which is not set")
    _check_scored(recipe, marked)
    if recipe.download.engine == "img2dataset":
        check_engine(recipe.corpora, marked)


def _check_scored(recipe: Recipe, marked: MarkedValue) -> None:
    """Refuse stages and rules on what is not measured, and names that `--only` has for something else."""
    for name in recipe.stages:
        if name in (*Resources.model_fields, "blend", "measure"):
            raise RecipeError(marked.where(("stages", name)), f"{name!r} is the name of a stage of every run")
    try:
        scores = recipe.scores()
    except ValueError as error:
        name, problem = error.args
        raise RecipeError(marked.where(("stages", name)), problem) from error
    sections: list[tuple[Location, Rules]] = [(("filter",), recipe.filter)]
    sections += [(("filter", "per_corpus", name), rules) for name, rules in recipe.filter.per_corpus.items()]
    for location, rules in sections:
        asked = [("images", "min_similarity")] * (rules.images.min_similarity is not None)
        asked += [("documents", "reassign")] * rules.documents.reassign
        if asked and scores.similarity is None:
            raise RecipeError(marked.where((*location, *asked[0])), _without_similarity(recipe))
        try:
            parse_rules(rules.rules, scores)
        except ValueError as error:
            number, problem = error.args
            raise RecipeError(marked.where((*location, "rules", number)), problem) from error


def _without_similarity(recipe: Recipe) -> str:
    names = [name for name, scorer in recipe.score.items() if scorer.needs == "pixels and texts"]
    if not names:
        return "needs score.clip, which is not set"
    return f"means the scorer named clip, or the only one of kind clip; there are {', '.join(names)}: name one of them clip"


def _resolve(recipe: Recipe, marked: MarkedValue, folder: Path, find_corpora: bool) -> Recipe:
    corpora, score = recipe.corpora, {}
    if find_corpora:
        corpora = {name: resolve_corpus(name, config, marked, folder) for name, config in corpora.items()}
    for name, scorer in recipe.score.items():
        try:
            score[name] = scorer.located(folder)
        except NotThere as error:
            if find_corpora:
                where = marked.where(("score", name, error.key))
                raise RecipeError(where, f"{error.value!r} is no {error.what} (looked in {folder})") from error
            score[name] = scorer
    pack = recipe.pack
    if pack is not None and (folder / pack.tokenizer).is_dir():
        pack = pack.model_copy(update={"tokenizer": str((folder / pack.tokenizer).resolve())})
    elif pack is not None and pack.tokenizer.startswith((".", "/")):
        raise RecipeError(marked.where(("pack", "tokenizer")), f"{pack.tokenizer!r} is no folder (looked in {folder})")
    blend = _resolve_subsets(recipe.blend, marked, folder, ("blend",)) if recipe.blend else None
    return recipe.model_copy(update={"corpora": corpora, "score": score, "pack": pack, "blend": blend})


def _resolve_subsets(blend: AnyBlend, marked: MarkedValue, folder: Path, location: Location) -> AnyBlend:
    """The blend with its lists of ids as absolute paths of files that are there."""
    sources = []
    for index, source in enumerate(blend.sources):
        here = (*location, "sources", index)
        update: dict[str, object] = {}
        if source.blend is not None:
            update["blend"] = _resolve_subsets(source.blend, marked, folder, (*here, "blend"))
        for key in ("include_ids", "exclude_ids"):
            name = getattr(source.subset, key, None)
            if name is not None and not (folder / name).is_file():
                raise RecipeError(marked.where((*here, "subset", key)), f"{name!r} is no file (looked in {folder})")
            if name is not None and source.subset is not None:
                update["subset"] = source.subset.model_copy(update={key: str((folder / name).resolve())})
        sources.append(source.model_copy(update=update))
    return blend.model_copy(update={"sources": tuple(sources)})
