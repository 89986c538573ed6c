"""Kinds of scorers by name: the one line to add for a new one; and the section `score` of a recipe."""

from __future__ import annotations

import keyword
import re
from collections.abc import Mapping
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, PlainValidator, SerializeAsAny

from vila_data.core.plugins import ModelRegistry
from vila_data.core.scores import Scores
from vila_data.score.clip import ClipConfig
from vila_data.score.scorer import Scorer

KINDS: Final[dict[str, type[Scorer]]] = {
    "clip": ClipConfig,
}
SCORERS: Final = ModelRegistry("scorers", KINDS, Scorer, "kind")
"""KINDS, and those that installed packages add."""
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,47}")


def _entries(value: Any) -> Any:
    """The section with each kind written out; an entry that is null is not there."""
    if not isinstance(value, dict):
        return value
    for name in value:
        if not isinstance(name, str) or not _NAME.fullmatch(name) or keyword.iskeyword(name):
            raise ValueError(
                f"{name!r}: the name of a scorer is 1 to 48 letters (A-Z, a-z), digits and _, not beginning with a digit: "
                "rules call its columns NAME.column"
            )
    return {name: _with_kind(name, entry) for name, entry in value.items() if entry is not None}


def _with_kind(name: str, entry: Any) -> Any:
    named = isinstance(entry, dict) and "kind" not in entry and SCORERS.find(name) is not None
    return {"kind": name, **entry} if named else entry


def _entry(value: Any) -> Scorer:
    scorer = SCORERS.validate(value)
    scorer.check()
    return scorer


ScoreSection = Annotated[
    dict[str, Annotated[SerializeAsAny[Scorer], PlainValidator(_entry)]], BeforeValidator(_entries)
]
"""{name: scorer}; an entry named like a kind may leave its `kind` out."""


def scores_of(section: Mapping[str, Scorer]) -> Scores:
    """The scorers as other rooms know them, in the order in which they run: by cost, equal ones as they are written."""
    ordered = sorted(section, key=lambda name: section[name].cost)
    clips = [name for name in section if section[name].kind == "clip"]
    clips = clips or [name for name in section if section[name].needs == "pixels and texts"]
    similarity = "clip" if "clip" in clips else clips[0] if len(clips) == 1 else None
    return Scores(tuple(section[name].table(name) for name in ordered), similarity)
