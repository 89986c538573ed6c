"""Kinds of scorers and of stages by name: the one line to add for a new one; and the sections `score` and `stages`."""

from __future__ import annotations

import keyword
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, PlainValidator, SerializeAsAny

from vila_data.core.plugins import ModelRegistry
from vila_data.core.scores import Scores
from vila_data.score.clip import ClipConfig
from vila_data.score.percentile import Percentile
from vila_data.score.scorer import Scorer
from vila_data.score.stage import ColumnStage

KINDS: Final[dict[str, type[Scorer]]] = {
    "clip": ClipConfig,
}
SCORERS: Final = ModelRegistry("scorers", KINDS, Scorer, "kind")
"""KINDS, and those that installed packages add."""
STAGES: Final[dict[str, type[ColumnStage]]] = {
    "percentile": Percentile,
}
COLUMN_STAGES: Final = ModelRegistry("stages", STAGES, ColumnStage, "kind")
"""STAGES, and those that installed packages add."""

_HEADS: Final = ("row", "record_id", "image_index", "scored")
"""Columns that every table of a scorer or stage has."""
_WHAT: Final[dict[str, str]] = {"scorers": "scorer", "stages": "stage"}
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,47}")


def _entries(kinds: ModelRegistry[Any], value: Any) -> Any:
    """The section with each kind written out; an entry that is null is not there."""
    if not isinstance(value, dict):
        return value
    for name in value:
        if not isinstance(name, str) or not _NAME.fullmatch(name) or keyword.iskeyword(name):
            raise ValueError(
                f"{name!r}: the name of a {_WHAT[kinds.group]} must be 1 to 48 letters (A-Z, a-z), digits and _, not starting "
                "with a digit: "
                "rules call its columns NAME.column"
            )
    return {name: _with_kind(kinds, name, entry) for name, entry in value.items() if entry is not None}


def _with_kind(kinds: ModelRegistry[Any], name: str, entry: Any) -> Any:
    named = isinstance(entry, dict) and "kind" not in entry and kinds.find(name) is not None
    return {"kind": name, **entry} if named else entry


def _entry(kinds: ModelRegistry[Any], value: Any) -> Any:
    entry = kinds.validate(value)
    entry.check()
    for column in entry.columns():
        if not column.name.isidentifier() or column.name in _HEADS:
            raise ValueError(
                f"kind {entry.kind}: a column must have a name of letters, digits and _ that is not one of "
                f"{', '.join(_HEADS)}; found {column.name!r}"
            )
    return entry


ScoreSection = Annotated[
    dict[str, Annotated[SerializeAsAny[Scorer], PlainValidator(partial(_entry, SCORERS))]],
    BeforeValidator(partial(_entries, SCORERS)),
]
"""{name: scorer}; an entry named like a kind may leave its `kind` out."""
StageSection = Annotated[
    dict[str, Annotated[SerializeAsAny[ColumnStage], PlainValidator(partial(_entry, COLUMN_STAGES))]],
    BeforeValidator(partial(_entries, COLUMN_STAGES)),
]
"""{name: stage}; as `ScoreSection`."""


def scores_of(section: Mapping[str, Scorer], stages: Mapping[str, ColumnStage] | None = None) -> Scores:
    """The scorers as other rooms know them, in the order in which they run: by cost, equal ones as they are written;
    then the stages, as they are written.

    Raises:
        ValueError: (name, problem) of a stage that is named like a scorer, or reads a column that is not there before it.
    """
    ordered = sorted(section, key=lambda name: section[name].cost)
    clips = [name for name in section if section[name].kind == "clip"]
    clips = clips or [name for name in section if section[name].needs == "pixels and texts"]
    similarity = "clip" if "clip" in clips else clips[0] if len(clips) == 1 else None
    scores = Scores(tuple(section[name].table(name) for name in ordered), similarity)
    for name, stage in (stages or {}).items():
        if name in section:
            raise ValueError(
                name,
                f"{name!r} is also the name of a scorer; rename one of them, because rules refer to columns by this name",
            )
        try:
            scores = replace(scores, tables=(*scores.tables, stage.table(name, scores)))
        except ValueError as error:
            raise ValueError(name, str(error)) from None
    return scores
