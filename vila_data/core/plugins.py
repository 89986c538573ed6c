"""Names of a recipe or a call and what they mean: ours, and those that installed packages add by entry points.

Packages' metadata is read when a name is looked up that is not ours, once per process and group (20 ms with the 300
packages of a development environment); `import vila_data` reads none. docs/plugins.md is for authors of such packages.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from vila_data.core.errors import UsageError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

Group = Literal["corpora", "scorers", "stages", "rules", "exporters", "image_tokens"]
Thing = TypeVar("Thing")
Model = TypeVar("Model", bound=BaseModel)


class Registry(Generic[Thing]):
    """What the names of one group mean.

    group:    packages add to it by the entry points `vila_data.GROUP`.
    own:      ours; it may grow until a name is looked up.
    what:     what an entry point must name, in words; fits: whether something is that.
    reserved: further names that no package may take.
    """

    def __init__(
        self,
        group: Group,
        own: Mapping[str, Thing],
        what: str,
        fits: Callable[[Any], bool],
        reserved: Collection[str] = (),
    ) -> None:
        self.group, self.own = group, own
        self._what, self._fits, self._reserved = what, fits, reserved

    def find(self, name: str) -> Thing | None:
        """What a name means; None if no package has it.

        Raises:
            UsageError: what a package adds to this group cannot be loaded, is something else, or has a taken name.
        """
        if name in self.own:
            return self.own[name]
        entry = self._added().get(name)
        if entry is None:
            return None
        try:
            found = entry.load()
        except Exception as error:
            raise UsageError(f"{_says(entry)}: cannot be loaded: {type(error).__name__}: {error}") from error
        if not self._fits(found):
            raise UsageError(f"{_says(entry)}: must name {self._what}, found {found!r}")
        thing: Thing = found
        return thing

    def names(self) -> list[str]:
        """All names, ours first.

        Raises:
            UsageError: a package has a taken name.
        """
        return [*self.own, *sorted(self._added())]

    def _added(self) -> dict[str, EntryPoint]:
        return _entries(self.group, frozenset({*self.own, *self._reserved}))


@lru_cache(maxsize=16)
def _entries(group: Group, taken: frozenset[str]) -> dict[str, EntryPoint]:
    """What packages add to a group, by name."""
    from importlib.metadata import entry_points

    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=f"vila_data.{group}"):
        if entry.name in taken:
            raise UsageError(f"{_says(entry)}: the name is vila_data's own: rename it there, or uninstall that package")
        if entry.name in found:
            raise UsageError(f"{_says(entry)}: {_package(found[entry.name])} has the same name: uninstall one of them")
        found[entry.name] = entry
    return found


def _package(entry: EntryPoint) -> str:
    return f"package {entry.dist.name} {entry.dist.version}" if entry.dist is not None else "a package"


def _says(entry: EntryPoint) -> str:
    return f"{_package(entry)}: entry point {entry.name!r} of {entry.group} ({entry.value})"


class ModelRegistry(Registry[type[Model]]):
    """Kinds of an entry of the recipe, each a class below `base`; the entry's key `tag` says which."""

    def __init__(self, group: Group, own: Mapping[str, type[Model]], base: type[Model], tag: str) -> None:
        what = f"a class below {base.__module__}.{base.__qualname__}"
        super().__init__(group, own, what, lambda found: isinstance(found, type) and issubclass(found, base))
        self.base, self.tag = base, tag

    def validate(self, value: Any) -> Model:
        """An entry as its kind, for pydantic's PlainValidator. Like those of its tagged unions, places of errors begin with
        the kind.

        Raises:
            ValidationError: its kind is missing or unknown, or its kind has no such key or value.
        """
        if isinstance(value, self.base):
            return value
        if not isinstance(value, dict):
            raise _wrong("dict_type", (), value)
        name = value.get(self.tag)
        if name is None:
            missing = PydanticCustomError("missing", "Field required", {"expected": ", ".join(self.names())})
            raise _wrong(missing, (self.tag,), value)
        kind = self.find(name) if isinstance(name, str) else None
        if kind is None:
            raise _wrong("literal_error", (self.tag,), name, expected=", ".join(map(repr, self.names())))
        try:
            return kind.model_validate_json(json.dumps(value, default=str))
        except ValidationError as error:
            details: list[InitErrorDetails] = [
                {"type": one["type"], "loc": (name, *one["loc"]), "input": one["input"], "ctx": one.get("ctx", {})}
                for one in error.errors(include_url=False)
            ]
            raise ValidationError.from_exception_data(self.group, details) from None


def _wrong(type_: str | PydanticCustomError, place: tuple[str, ...], found: Any, **context: Any) -> ValidationError:
    return ValidationError.from_exception_data("kind", [{"type": type_, "loc": place, "input": found, "ctx": context}])
