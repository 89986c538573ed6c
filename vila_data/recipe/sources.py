"""A recipe's corpora: what kinds may be asked for, and where their files and images lie."""

from __future__ import annotations

import glob
import os
from pathlib import Path
from typing import Any

import fsspec
from braceexpand import braceexpand

from vila_data.core.errors import RecipeError
from vila_data.corpora.config import CorpusFiles, TextConfig
from vila_data.corpora.rows import unreadable
from vila_data.corpora.source import PIPE
from vila_data.corpora.text import NoDataFiles, data_files
from vila_data.filter.config import FilterConfig
from vila_data.recipe.marked_yaml import Location, MarkedValue
from vila_data.shard.config import VIEWS, ShardSet

_BY_ADDRESS = ("coyo", "img2dataset")
_TARS = ("mmc4", "img2dataset")


def check_view(name: str, shard_set: ShardSet, config: CorpusFiles, marked: MarkedValue) -> None:
    """Refuse a view that the corpus cannot have.

    Raises:
        RecipeError: names the views that it may have.
    """
    views = VIEWS[config.makes]
    if shard_set.view not in views:
        of = {"interleaved": "documents", "pairs": "documents and pairs", "conversations": "conversations"}
        raise RecipeError(
            marked.where(("shards", name, "view")),
            f"{shard_set.view} is a view of {of[shard_set.view]}; corpus {shard_set.corpus!r} ({config.kind}) "
            f"has {config.makes}s; its views: {', '.join(views)}",
        )


def check_engine(corpora: dict[str, CorpusFiles], marked: MarkedValue) -> None:
    """Refuse img2dataset as the engine of what is no pair with an address.

    Raises:
        RecipeError: names the corpus.
    """
    for name, config in corpora.items():
        if config.kind not in _BY_ADDRESS:
            raise RecipeError(
                marked.where(("download", "engine")),
                f"img2dataset serves pairs by address; corpus {name!r} ({config.kind}) has none: use engine: builtin",
            )


def check_rules(corpora: dict[str, CorpusFiles], rules: FilterConfig, marked: MarkedValue) -> None:
    """Refuse rules that a corpus's records cannot have.

    Raises:
        RecipeError: OBELICS would be re-assigned, or conversations would lose images.
    """
    for name, config in corpora.items():
        own = rules.per_corpus.get(name)
        if config.makes == "conversation" and own is not None and (key := own.against_conversations()):
            raise RecipeError(
                marked.where(("filter", "per_corpus", name, "documents", key)),
                f"corpus {name!r} has conversations: they are kept with all their images, in their places, or not "
                "at all; leave this key out",
            )
        if config.kind == "obelics" and rules.rules_for(name).documents.reassign:
            set_here = own is not None and "reassign" in own.documents.model_fields_set
            where: Location = ("filter", "per_corpus", name) if set_here else ("filter",)
            raise RecipeError(
                marked.where((*where, "documents", "reassign")),
                f"corpus {name!r} is obelics, whose order is kept: set "
                f"filter.per_corpus.{name}.documents.reassign: false",
            )


def resolve_corpus(name: str, config: CorpusFiles, marked: MarkedValue, folder: Path) -> CorpusFiles:
    """The corpus with the files that are there, and its image_root, as absolute paths or URLs.

    Raises:
        RecipeError: a pattern that matches nothing, files of another kind, no such folder or data set.
    """
    here: Location = ("corpora", name)
    update: dict[str, Any] = {"files": _files(config, marked, (*here, "files"), folder)}
    image_root = getattr(config, "image_root", None)
    if image_root is not None and "://" not in image_root:
        update["image_root"] = str((folder / image_root).resolve())
        if not os.path.isdir(update["image_root"]):
            raise RecipeError(marked.where((*here, "image_root")), f"{image_root!r} is no folder (looked in {folder})")
    if isinstance(config, TextConfig) and config.dataset is not None:
        if config.files:
            raise RecipeError(marked.where((*here, "dataset")), "takes the place of files: leave one of them out")
        local = folder / config.dataset
        dataset = config.model_copy(update={"dataset": str(local.resolve())}) if local.is_dir() else config
        try:
            update |= {"dataset": dataset.dataset, "files": data_files(dataset)}
        except NoDataFiles as error:
            raise RecipeError(marked.where((*here, "dataset")), str(error)) from error
    return config.model_copy(update=update)


def _files(config: CorpusFiles, marked: MarkedValue, location: Location, folder: Path) -> tuple[str, ...]:
    files: list[str] = []
    for index, pattern in enumerate(config.files):
        where = marked.where((*location, index))
        if pattern.startswith(PIPE) and config.kind not in _TARS:
            raise RecipeError(where, f"a pipe is read as a tar, which kinds {' and '.join(_TARS)} take: write a file")
        found = []
        for name in _expanded(pattern, where):
            matching = [name] if name.startswith(PIPE) else _matches(name, folder)
            if not matching:
                raise RecipeError(where, f"{name!r} matches no file (looked in {folder})")
            found += matching
        for file in found:
            problem = unreadable(file) if config.has_rows else None
            if problem is not None:
                raise RecipeError(where, f"{os.path.basename(file)}: {problem}")
        files += [file for file in found if file not in files]
    return tuple(files)


def _expanded(pattern: str, where: str) -> list[str]:
    """The patterns that braces stand for, as in webdataset.

    Raises:
        RecipeError: a brace is not closed.
    """
    try:
        return list(braceexpand(pattern)) if "{" in pattern else [pattern]
    except ValueError as error:
        raise RecipeError(where, f"{pattern!r}: {error}") from error


def _matches(pattern: str, folder: Path) -> list[str]:
    if "://" not in pattern:
        return sorted(file for file in glob.glob(str(folder / pattern), recursive=True) if os.path.isfile(file))
    try:
        return sorted(opened.full_name for opened in fsspec.open_files(pattern) if opened.fs.exists(opened.path))
    except (OSError, ValueError, ImportError):
        return []
