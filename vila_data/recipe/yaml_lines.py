"""Parse YAML with line numbers, and validate it with errors that name file, line and key.

An error also says what was found, and suggests the nearest valid name.
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
"""Pattern of the names of recipes, corpora and shard sets."""
_KINDS: typing.Final[dict[Any, ModelRegistry[Any]]] = {
    kinds.base: kinds for kinds in (CORPORA, SCORERS, COLUMN_STAGES, POLICIES)
}
_MAX_DEPTH: typing.Final = 60


class ValueWithLines:
    """The value of a YAML file, and the line number of each key and list entry."""

    def __init__(self, file: str, text: str) -> None:
        self.file = file
        self._lines: dict[Location, int] = {(): 1}
        try:
            node = yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            line = mark.line + 1 if mark else 1
            raise RecipeError(f"{file}:{line}", f"not valid YAML: {getattr(error, 'problem', error)}") from error
        self.value: Any = self._build(node, ()) if node is not None else None

    def where(self, location: Location) -> str:
        """``file:line dotted.key`` of a location; the line is that of the nearest enclosing key in the file."""
        known = location
        while known not in self._lines:
            known = known[:-1]
        key = ".".join(str(step) for step in location)
        return f"{self.file}:{self._lines[known]} {key}".rstrip()

    def error(self, location: Location, problem: str) -> RecipeError:
        """A RecipeError at a location."""
        return RecipeError(self.where(location), problem)

    def below(self, key: str) -> ValueWithLines:
        """A copy of the value of one key; locations are relative to it."""
        inner = copy.copy(self)
        inner.value = copy.deepcopy(self.value[key])
        inner._lines = {(): self._lines[(key,)]}
        inner._lines |= {where[1:]: line for where, line in self._lines.items() if where[:1] == (key,)}
        return inner

    def copy(self) -> ValueWithLines:
        """A copy whose value can be changed independently."""
        other = copy.copy(self)
        other.value = copy.deepcopy(self.value)
        return other

    def _build(self, node: yaml.Node, location: Location) -> Any:
        if len(location) > _MAX_DEPTH:
            raise self.error(location, f"nested more than {_MAX_DEPTH} levels deep (an alias that contains itself?)")
        if isinstance(node, yaml.MappingNode):
            result: dict[str, Any] = {}
            for key_node, value_node in node.value:
                key = str(key_node.value)
                here = (*location, key)
                self._lines[here] = key_node.start_mark.line + 1
                if key in result:
                    raise self.error(here, "duplicate key")
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
            raise self.error(location, f"cannot read {node.value!r}: {error}") from error


def validate(lines: ValueWithLines, model: type[Model]) -> Model:
    """Parse the value as `model`.

    Raises:
        RecipeError: the first problem in the file's order, and how many more there are.
    """
    if not isinstance(lines.value, dict):
        found = "nothing" if lines.value is None else f"a {type(lines.value).__name__}"
        raise RecipeError(f"{lines.file}:1", f"a recipe must be a mapping; found {found}")
    try:
        # JSON mode is strict on types and still takes lists for tuples.
        return model.model_validate_json(json.dumps(lines.value, default=str))
    except ValidationError as error:
        details = _causes([dict(detail) for detail in error.errors(include_url=False)])
        problems = sorted(
            ((detail["type"] != "extra_forbidden", *_describe(lines, model, detail)) for detail in details),
            key=lambda problem: (problem[0], _line(problem[1])),  # a misspelled key explains a missing one
        )
        _, where, text = problems[0]
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise RecipeError(where, text + more) from error


def _causes(details: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Drop "too short" errors of lists that also have an invalid entry."""

    def inside(outer: dict[str, Any]) -> bool:
        size = len(outer["loc"])
        return any(len(detail["loc"]) > size and detail["loc"][:size] == outer["loc"] for detail in details)

    return [detail for detail in details if detail["type"] != "too_short" or not inside(detail)]


def suggestion(name: str, names: Iterable[str]) -> str:
    """``; did you mean x?`` for the most similar of `names`, or a list of all of them if none is similar."""
    names = list(names)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; one of: {', '.join(names)}" if names else ""


def _describe(lines: ValueWithLines, model: type[BaseModel], detail: dict[str, Any]) -> tuple[str, str]:
    location, names = walk(model, detail["loc"])
    where = lines.where(location)
    kind, found = detail["type"], detail.get("input")
    if kind == "extra_forbidden":
        return where, f"unknown key {location[-1]!r}{suggestion(str(location[-1]), names)}"
    if kind == "missing":
        kinds = detail.get("ctx", {}).get("expected")
        among = "" if kinds is None else f"; one of: {kinds}"
        return where, f"missing required key {location[-1]!r}{among}"
    if kind == "literal_error":
        expected = [name.strip().strip("'") for name in detail["ctx"]["expected"].replace(" or ", ", ").split(",")]
        return where, f"found {found!r}{suggestion(str(found), expected)}"
    if kind == "string_pattern_mismatch" and detail["ctx"]["pattern"] == NAME:
        if location[-1] == "[key]":  # pydantic's last step for an invalid key
            where = lines.where(location[:-1])
        return where, f"names must have 1 to 48 characters from A-Z, a-z, 0-9, - and _; found {found!r}"
    message = detail["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    return where, f"{message[0].lower()}{message[1:]}; found {found!r}" if kind != "value_error" else message


def walk(annotation: Any, location: Iterable[str | int]) -> tuple[Location, list[str]]:
    """Remove union tags from a pydantic location; also return the keys that are valid at its last step."""
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


def read_yaml(path: Path) -> ValueWithLines:
    """Parse a YAML file.

    Raises:
        RecipeError: it does not exist, or is not UTF-8 or not YAML.
    """
    try:
        return ValueWithLines(str(path), path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RecipeError(str(path), "no such file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(str(path), f"cannot be read: {error}") from error
