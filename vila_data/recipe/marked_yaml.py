"""YAML with line numbers, and validation messages that use them.

An error names file, line and key, what was found, and the nearest right name.
"""

from __future__ import annotations

import copy
import difflib
import json
import types
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from vila_data.core.errors import RecipeError
from vila_data.core.plugins import ModelRegistry
from vila_data.corpora.config import CORPORA
from vila_data.encode.image_tokens import POLICIES
from vila_data.score.kinds import COLUMN_STAGES, SCORERS

Location = tuple[str | int, ...]
Model = TypeVar("Model", bound=BaseModel)
NAME: typing.Final = r"^[A-Za-z0-9_-]{1,48}$"
"""Of a recipe, a corpus or a shard set."""
_KINDS: typing.Final[dict[Any, ModelRegistry[Any]]] = {
    kinds.base: kinds for kinds in (CORPORA, SCORERS, COLUMN_STAGES, POLICIES)
}


_DEPTH: typing.Final = 60


class MarkedValue:
    """A YAML file's value, and the line on which each key or list entry stands."""

    def __init__(self, file: str, text: str) -> None:
        self.file = file
        self._lines: dict[Location, int] = {(): 1}
        try:
            node = yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            line = mark.line + 1 if mark else 1
            raise RecipeError(f"{file}:{line}", f"not YAML: {getattr(error, 'problem', error)}") from error
        self.value: Any = self._build(node, ()) if node is not None else None

    def where(self, location: Location) -> str:
        """``file:line dotted.key`` of a location, or of the nearest one above it that is there."""
        known = location
        while known not in self._lines:
            known = known[:-1]
        key = ".".join(str(step) for step in location)
        return f"{self.file}:{self._lines[known]} {key}".rstrip()

    def below(self, key: str) -> MarkedValue:
        """The value of one key as a file's value of its own; a value of its own too, to be changed at will."""
        inner = copy.copy(self)
        inner.value = copy.deepcopy(self.value[key])
        inner._lines = {(): self._lines[(key,)]}
        inner._lines |= {where[1:]: line for where, line in self._lines.items() if where[:1] == (key,)}
        return inner

    def again(self) -> MarkedValue:
        """The same, to be changed without this one."""
        other = copy.copy(self)
        other.value = copy.deepcopy(self.value)
        return other

    def _build(self, node: yaml.Node, location: Location) -> Any:
        if len(location) > _DEPTH:
            raise RecipeError(
                self.where(location), f"nested more than {_DEPTH} levels deep (an alias that contains itself?)"
            )
        if isinstance(node, yaml.MappingNode):
            result: dict[str, Any] = {}
            for key_node, value_node in node.value:
                key = str(key_node.value)
                here = (*location, key)
                self._lines[here] = key_node.start_mark.line + 1
                if key in result:
                    raise RecipeError(self.where(here), "this key stands here a second time")
                result[key] = self._build(value_node, here)
            return result
        if isinstance(node, yaml.SequenceNode):
            items = []
            for index, item in enumerate(node.value):
                here = (*location, index)
                self._lines[here] = item.start_mark.line + 1
                items.append(self._build(item, here))
            return items
        loader = yaml.SafeLoader("")
        try:
            return loader.construct_object(node)
        except ValueError as error:
            raise RecipeError(self.where(location), f"{node.value!r} cannot be read: {error}") from error


def validate(marked: MarkedValue, model: type[Model]) -> Model:
    """The value as `model`.

    Raises:
        RecipeError: the first problem in the file's order, and how many more there are.
    """
    if not isinstance(marked.value, dict):
        found = "nothing" if marked.value is None else f"a {type(marked.value).__name__}"
        raise RecipeError(f"{marked.file}:1", f"a recipe is a mapping of keys; found {found}")
    try:
        # JSON mode is strict on types and still takes lists for tuples.
        return model.model_validate_json(json.dumps(marked.value, default=str))
    except ValidationError as error:
        details = _causes([dict(detail) for detail in error.errors(include_url=False)])
        problems = sorted(
            ((detail["type"] != "extra_forbidden", *_describe(marked, model, detail)) for detail in details),
            key=lambda problem: (problem[0], _line(problem[1])),  # a misspelt key explains a missing one
        )
        _, where, text = problems[0]
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise RecipeError(where, text + more) from error


def _causes(details: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without lists that are too short for the reason that an entry of theirs is wrong."""

    def inside(outer: dict[str, Any]) -> bool:
        size = len(outer["loc"])
        return any(len(detail["loc"]) > size and detail["loc"][:size] == outer["loc"] for detail in details)

    return [detail for detail in details if detail["type"] != "too_short" or not inside(detail)]


def nearest(name: str, names: Iterable[str]) -> str:
    """``; nearest: x`` for the most similar of `names`, or all of them if none is near."""
    names = list(names)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if close:
        return f"; nearest: {close[0]}"
    return f"; one of: {', '.join(names)}" if names else ""


def _describe(marked: MarkedValue, model: type[BaseModel], detail: dict[str, Any]) -> tuple[str, str]:
    location, names = walk(model, detail["loc"])
    where = marked.where(location)
    kind, found = detail["type"], detail.get("input")
    if kind == "extra_forbidden":
        return where, f"unknown key {location[-1]!r}{nearest(str(location[-1]), names)}"
    if kind == "missing":
        kinds = detail.get("ctx", {}).get("expected")
        among = "" if kinds is None else f"; one of: {kinds}"
        return where, f"missing: {location[-1]!r} is required here{among}"
    if kind == "literal_error":
        expected = [name.strip().strip("'") for name in detail["ctx"]["expected"].replace(" or ", ", ").split(",")]
        return where, f"found {found!r}{nearest(str(found), expected)}"
    if kind == "string_pattern_mismatch" and detail["ctx"]["pattern"] == NAME:
        if location[-1] == "[key]":  # pydantic's name of a key among the steps to it
            where = marked.where(location[:-1])
        return where, f"a name is 1 to 48 characters long, of letters (A-Z, a-z), digits, - and _; found {found!r}"
    message = detail["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    return where, f"{message[0].lower()}{message[1:]}; found {found!r}" if kind != "value_error" else message


def walk(annotation: Any, location: Iterable[str | int]) -> tuple[Location, list[str]]:
    """A pydantic location without union tags, and the keys that are right at its last step."""
    clean: list[str | int] = []
    names: list[str] = []
    for step in location:
        members = _members(annotation)
        kinds = next((_KINDS[member] for member in members if member in _KINDS), None)
        kind = kinds.find(step) if kinds is not None and isinstance(step, str) and step != kinds.tag else None
        if kind is not None:
            annotation = kind
            continue
        clean.append(step)
        names = [name for member in members if _is_model(member) for name in member.model_fields]
        annotation = next((found for member in members if (found := _child(member, step)) is not None), Any)
    return tuple(clean), names


def _members(annotation: Any) -> list[Any]:
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _members(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return [member for entry in typing.get_args(annotation) for member in _members(entry)]
    return [annotation]


def _child(annotation: Any, step: str | int) -> Any:
    if _is_model(annotation):
        field = annotation.model_fields.get(step)
        return field.annotation if field else None
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) is dict:
        return arguments[1]
    return arguments[0] if arguments else None


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _line(where: str) -> int:
    number = where.split(" ", 1)[0].rsplit(":", 1)[-1]
    return int(number) if number.isdigit() else 0


def read_marked(path: Path) -> MarkedValue:
    """Parse a file.

    Raises:
        RecipeError: it is not there, not UTF-8, or not YAML.
    """
    try:
        return MarkedValue(str(path), path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RecipeError(str(path), "no such file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(str(path), f"cannot be read: {error}") from error
