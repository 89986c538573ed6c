"""The recipe: the YAML file that defines a run. Load it, check its names, and resolve its files. Keys: docs/recipe.md."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

import fsspec
from braceexpand import braceexpand
from pydantic import Field

from vila_data.core.config import StrictModel
from vila_data.core.errors import UsageError
from vila_data.core.scores import Scores
from vila_data.corpora.config import AnyCorpus, CorpusFiles, TextConfig
from vila_data.corpora.rows import unreadable
from vila_data.corpora.source import PIPE
from vila_data.corpora.text import NoDataFiles, data_files
from vila_data.download.config import DownloadConfig
from vila_data.encode.config import PackConfig
from vila_data.filter.config import FilterConfig, Rules
from vila_data.filter.rules import parse_rules
from vila_data.mix.config import BlendConfig, InnerBlend
from vila_data.mix.released import check_released
from vila_data.recipe.substitute import override, substitute
from vila_data.recipe.yaml_lines import NAME, Location, ValueWithLines, read_yaml, suggestion, validate
from vila_data.score.kinds import ScoreSection, StageSection, scores_of
from vila_data.score.scorer import MissingPath
from vila_data.shard.config import VIEWS, ShardSet

AnyBlend = TypeVar("AnyBlend", bound=InnerBlend)
Name = Annotated[str, Field(pattern=NAME)]
_BY_URL: Final = ("coyo", "img2dataset")
_TARS: Final = ("mmc4", "img2dataset")


class StageResources(StrictModel):
    """Ray resources of one task of a stage.

    num_cpus:  CPUs that Ray reserves per task; may be a fraction.
    num_gpus:  GPUs that Ray reserves per task; may be a fraction. Above 0, the stage runs on actors that keep the model loaded.
    memory_gb: memory that Ray reserves for placement, in GB (10^9 bytes); it does not limit the task.
    max_tasks: maximum number of tasks at once in the cluster; None: as many as fit.
    """

    num_cpus: Annotated[float, Field(gt=0)] = 1.0
    num_gpus: Annotated[float, Field(ge=0)] = 0.0
    memory_gb: Annotated[float, Field(gt=0)] | None = None
    max_tasks: Annotated[int, Field(gt=0)] | None = None


class Resources(StrictModel):
    """Ray resources per task, by stage; ignored by `--runner local`.

    scan:     count the rows of a metadata file, and preselect.
    download: fetch the images of one part.
    score:    compute the table of one scorer for one part.
    stages:   compute the table of one entry of `stages` for one part.
    filter:   decide the fates of one part, from columns.
    shard:    write one shard.
    encode:   tokenize one shard.
    """

    scan: StageResources = StageResources()
    download: StageResources = StageResources()
    score: StageResources = StageResources()
    stages: StageResources = StageResources()
    filter: StageResources = StageResources()
    shard: StageResources = StageResources()
    encode: StageResources = StageResources()


class Recipe(StrictModel):
    """A resolved recipe: everything that a run does, from metadata to shards.

    Files in `corpora` are absolute paths or URLs of existing files, in order.

    version:   version of the recipe format.
    name:      name of the recipe.
    seed:      random seed of the shuffle of each shard set, and of the blend's order.
    corpora:   where records come from, each corpus under a name of your choice.
    download:  how images are fetched and stored.
    score:     scorers, each under a name of your choice: what is computed for images and records.
    stages:    columns computed from those of `download` and `score`, each table under a name of your choice.
    filter:    which images and records are kept.
    shards:    the shard sets to write, each under a name of your choice.
    pack:      how samples become token sequences; without it the run ends with the shards.
    blend:     the share of sequences that each shard set gets; needs `pack`.
    resources: Ray resources per task, by stage.
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
        """Names of the shard sets in the blend, in its order; none without a blend."""
        leaves = self.blend.leaves() if self.blend else ()
        return list(dict.fromkeys(leaf.source.name for leaf in leaves))

    def rules_for(self, corpus: str) -> Rules:
        """The filter rules of a corpus; those for conversations if it contains them."""
        return self.filter.rules_for(corpus, conversations=self.corpora[corpus].makes == "conversation")

    def scores(self) -> Scores:
        """The scorers and stages in the order in which they run, and the scorer that `min_similarity` uses."""
        return scores_of(self.score, self.stages)


def load_recipe(
    path: str | os.PathLike[str],
    corpora: str | os.PathLike[str] | None = None,
    settings: Sequence[str] = (),
    *,
    find_corpora: bool = True,
    on: str | os.PathLike[str] | None = None,
) -> Recipe:
    """Read, check and resolve a recipe.

    Args:
        path: the YAML file.
        corpora: a YAML file with substitute corpora, to try the recipe on a small dataset (recipe.substitute).
        settings: ``dotted.key=value`` overrides of the file's values.
        find_corpora: resolve the corpora's files; streaming a finished run needs none of them.
        on: former name of `corpora`.

    Raises:
        RecipeError: one message with file, line and key: an unknown key, a wrong type,
            an undefined name, a pattern that matches no file.
    """
    file = Path(path)
    lines = read_yaml(file)
    substitutes = on if corpora is None else corpora
    if substitutes is not None:
        substitute(lines, Path(substitutes))
    return _resolve(checked(lines, settings), lines, file.resolve().parent, find_corpora)


def checked(lines: ValueWithLines, settings: Sequence[str] = ()) -> Recipe:
    """Validate a recipe after applying `settings` to it in place; does not look for its files and models.

    Raises:
        RecipeError: as `load_recipe`.
    """
    override(lines, settings)
    recipe = validate(lines, Recipe)
    _check_names(recipe, lines)
    _check_conversations_and_obelics(recipe, lines)
    _check_blend(recipe, lines)
    _check_rules(recipe, lines)
    if recipe.download.engine == "img2dataset":
        for name, config in recipe.corpora.items():
            if config.kind not in _BY_URL:
                raise lines.error(
                    ("download", "engine"),
                    f"the img2dataset engine only downloads image-caption pairs by URL; corpus {name!r} "
                    f"({config.kind}) has none. Use engine: builtin",
                )
    return recipe


def _check_names(recipe: Recipe, lines: ValueWithLines) -> None:
    """Refuse names of corpora and shard sets that are not defined, and views that a corpus cannot have."""

    def check(name: str, names: Iterable[str], location: Location, what: str) -> None:
        if name not in names:
            raise lines.error(location, f"no {what} {name!r}{suggestion(name, names)}")

    for name, shard_set in recipe.shards.items():
        check(shard_set.corpus, recipe.corpora, ("shards", name, "corpus"), "corpus")
        config = recipe.corpora[shard_set.corpus]
        views = VIEWS[config.makes]
        if shard_set.view not in views:
            of = {"interleaved": "documents", "pairs": "documents and pairs", "conversations": "conversations"}
            raise lines.error(
                ("shards", name, "view"),
                f"{shard_set.view} is a view of {of[shard_set.view]}; corpus {shard_set.corpus!r} ({config.kind}) "
                f"contains {config.makes}s; its views: {', '.join(views)}",
            )
    for corpus in recipe.filter.per_corpus:
        check(corpus, recipe.corpora, ("filter", "per_corpus", corpus), "corpus")
    for leaf in recipe.blend.leaves(("blend",)) if recipe.blend else ():
        check(leaf.source.name, recipe.shards, (*leaf.location, "shards"), "shard set")


def _check_conversations_and_obelics(recipe: Recipe, lines: ValueWithLines) -> None:
    """Refuse rules that would reassign the images of OBELICS, or drop single images of conversations."""
    for name, config in recipe.corpora.items():
        own = recipe.filter.per_corpus.get(name)
        if config.makes == "conversation" and own is not None and (key := own.against_conversations()):
            raise lines.error(
                ("filter", "per_corpus", name, "documents", key),
                f"corpus {name!r} contains conversations, which are kept with all their images in place or dropped as "
                "a whole; remove this key",
            )
        if config.kind == "obelics" and recipe.filter.rules_for(name).documents.reassign:
            set_here = own is not None and "reassign" in own.documents.model_fields_set
            section: Location = ("filter", "per_corpus", name) if set_here else ("filter",)
            raise lines.error(
                (*section, "documents", "reassign"),
                f"corpus {name!r} is of kind obelics, whose image order is kept; set "
                f"filter.per_corpus.{name}.documents.reassign: false",
            )


def _check_blend(recipe: Recipe, lines: ValueWithLines) -> None:
    if recipe.blend is None:
        return
    if recipe.pack is None:
        raise lines.error(("blend",), "`blend` needs a `pack` section, which is not set")
    if recipe.pack.semantics == "released_code":
        try:
            check_released(recipe.blend)
        except UsageError as error:
            raise lines.error(("blend",), str(error).removeprefix("blend: ")) from error


def _check_rules(recipe: Recipe, lines: ValueWithLines) -> None:
    """Refuse rules on columns that the recipe does not compute, and reserved names of stages."""
    for name in recipe.stages:
        if name in (*Resources.model_fields, "blend", "measure"):
            raise lines.error(("stages", name), f"{name!r} is reserved: every run has a stage of that name")
    try:
        scores = recipe.scores()
    except ValueError as error:
        name, problem = error.args
        raise lines.error(("stages", name), problem) from error
    sections: list[tuple[Location, Rules]] = [(("filter",), recipe.filter)]
    sections += [(("filter", "per_corpus", name), rules) for name, rules in recipe.filter.per_corpus.items()]
    for location, rules in sections:
        need_similarity = [("images", "min_similarity")] * (rules.images.min_similarity is not None)
        need_similarity += [("documents", "reassign")] * rules.documents.reassign
        if need_similarity and scores.similarity is None:
            raise lines.error((*location, *need_similarity[0]), _no_similarity(recipe))
        try:
            parse_rules(rules.rules, scores)
        except ValueError as error:
            number, problem = error.args
            raise lines.error((*location, "rules", number), problem) from error


def _no_similarity(recipe: Recipe) -> str:
    names = [name for name, scorer in recipe.score.items() if scorer.needs == "pixels and texts"]
    if not names:
        return "needs score.clip, which is not set"
    return (
        "uses the scorer named clip, or the only one of kind clip; the recipe has "
        f"{', '.join(names)}: rename one of them to clip"
    )


def _resolve(recipe: Recipe, lines: ValueWithLines, base: Path, find_corpora: bool) -> Recipe:
    """Replace paths relative to the recipe's directory `base` with absolute ones; check that they exist."""
    corpora, score = recipe.corpora, {}
    if find_corpora:
        corpora = {name: _resolve_corpus(name, config, lines, base) for name, config in corpora.items()}
    for name, scorer in recipe.score.items():
        try:
            score[name] = scorer.located(base)
        except MissingPath as error:
            if find_corpora:
                problem = f"{error.value!r} does not exist; expected a {error.what} (looked in {base})"
                raise lines.error(("score", name, error.key), problem) from error
            score[name] = scorer
    pack = recipe.pack
    if pack is not None and (base / pack.tokenizer).is_dir():
        pack = pack.model_copy(update={"tokenizer": str((base / pack.tokenizer).resolve())})
    elif pack is not None and pack.tokenizer.startswith((".", "/")):
        raise lines.error(("pack", "tokenizer"), f"directory {pack.tokenizer!r} does not exist (looked in {base})")
    blend = _resolve_subsets(recipe.blend, lines, base, ("blend",)) if recipe.blend else None
    return recipe.model_copy(update={"corpora": corpora, "score": score, "pack": pack, "blend": blend})


def _resolve_subsets(blend: AnyBlend, lines: ValueWithLines, base: Path, location: Location) -> AnyBlend:
    """The blend with its lists of ids as absolute paths of existing files."""
    sources = []
    for index, source in enumerate(blend.sources):
        here = (*location, "sources", index)
        update: dict[str, object] = {}
        if source.blend is not None:
            update["blend"] = _resolve_subsets(source.blend, lines, base, (*here, "blend"))
        for key in ("include_ids", "exclude_ids"):
            name = getattr(source.subset, key, None)
            if name is not None and not (base / name).is_file():
                raise lines.error((*here, "subset", key), f"file {name!r} does not exist (looked in {base})")
            if name is not None and source.subset is not None:
                update["subset"] = source.subset.model_copy(update={key: str((base / name).resolve())})
        sources.append(source.model_copy(update=update))
    return blend.model_copy(update={"sources": tuple(sources)})


def _resolve_corpus(name: str, config: CorpusFiles, lines: ValueWithLines, base: Path) -> CorpusFiles:
    """The corpus with its matching files, and its image_root, as absolute paths or URLs."""
    here: Location = ("corpora", name)
    update: dict[str, Any] = {"files": _resolve_files(config, lines, (*here, "files"), base)}
    image_root = getattr(config, "image_root", None)
    if image_root is not None and "://" not in image_root:
        update["image_root"] = str((base / image_root).resolve())
        if not os.path.isdir(update["image_root"]):
            raise lines.error((*here, "image_root"), f"directory {image_root!r} does not exist (looked in {base})")
    if isinstance(config, TextConfig) and config.dataset is not None:
        if config.files:
            raise lines.error((*here, "dataset"), "`dataset` and `files` are alternatives; remove one of them")
        local = base / config.dataset
        dataset = config.model_copy(update={"dataset": str(local.resolve())}) if local.is_dir() else config
        try:
            update |= {"dataset": dataset.dataset, "files": data_files(dataset)}
        except NoDataFiles as error:
            raise lines.error((*here, "dataset"), str(error)) from error
    return config.model_copy(update=update)


def _resolve_files(config: CorpusFiles, lines: ValueWithLines, location: Location, base: Path) -> tuple[str, ...]:
    files: list[str] = []
    for index, pattern in enumerate(config.files):
        here = (*location, index)
        if pattern.startswith(PIPE) and config.kind not in _TARS:
            kinds = " and ".join(_TARS)
            raise lines.error(here, f"only kinds {kinds} can read from a pipe (as a tar); use a file")
        try:
            names = list(braceexpand(pattern)) if "{" in pattern else [pattern]  # as in webdataset
        except ValueError as error:
            raise lines.error(here, f"{pattern!r}: {error}") from error
        for name in names:
            matching = [name] if name.startswith(PIPE) else _matching(name, base)
            if not matching:
                raise lines.error(here, f"no file matches {name!r} (looked in {base})")
            for file in matching:
                problem = unreadable(file) if config.has_rows else None
                if problem is not None:
                    raise lines.error(here, f"{os.path.basename(file)}: {problem}")
            files += [file for file in matching if file not in files]
    return tuple(files)


def _matching(pattern: str, base: Path) -> list[str]:
    if "://" not in pattern:
        return sorted(file for file in glob.glob(str(base / pattern), recursive=True) if os.path.isfile(file))
    try:
        return sorted(opened.full_name for opened in fsspec.open_files(pattern) if opened.fs.exists(opened.path))
    except (OSError, ValueError, ImportError):
        return []
