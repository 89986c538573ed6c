"""Kinds of scorers by name: the one line to add for a new one; and the section `score` of a recipe."""

from __future__ import annotations

import json
import keyword
import re
from collections.abc import Mapping
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, PlainValidator, SerializeAsAny, ValidationError
from pydantic_core import InitErrorDetails

from vila_data.core.scores import Scores
from vila_data.score.clip import ClipConfig
from vila_data.score.scorer import Scorer

KINDS: Final[dict[str, type[Scorer]]] = {
    "clip": ClipConfig,
}
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
    named = isinstance(entry, dict) and "kind" not in entry and name in KINDS
    return {"kind": name, **entry} if named else entry


def _entry(value: Any) -> Scorer:
    """One entry as a scorer of its kind; the places of errors begin with the kind, as pydantic's of tagged unions do."""
    if isinstance(value, Scorer):
        return value
    if not isinstance(value, dict):
        raise _wrong("dict_type", (), value)
    kind = value.get("kind")
    if kind is None:
        raise _wrong("missing", ("kind",), value)
    if kind not in KINDS:
        raise _wrong("literal_error", ("kind",), kind, expected=", ".join(map(repr, KINDS)))
    try:
        scorer = KINDS[kind].model_validate_json(json.dumps(value, default=str))
    except ValidationError as error:
        details: list[InitErrorDetails] = [
            {"type": one["type"], "loc": (kind, *one["loc"]), "input": one["input"], "ctx": one.get("ctx", {})}
            for one in error.errors(include_url=False)
        ]
        raise ValidationError.from_exception_data("score", details) from None
    scorer.check()
    return scorer


def _wrong(type_: str, place: tuple[str, ...], found: Any, **context: Any) -> ValidationError:
    return ValidationError.from_exception_data("score", [{"type": type_, "loc": place, "input": found, "ctx": context}])


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
