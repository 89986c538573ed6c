"""docs/recipe_reference.md is what the types give, and no key is without a word."""

from __future__ import annotations

import typing
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from pydantic import BaseModel

from tests.docs.generated import program
from vila_data.core.config import StrictModel
from vila_data.corpora.config import CORPORA
from vila_data.encode.image_tokens import POLICIES
from vila_data.recipe.recipe import Recipe
from vila_data.score.kinds import COLUMN_STAGES, SCORERS

REFERENCE = program("make_reference")
KINDS: dict[type[BaseModel], Mapping[str, Any]] = {
    kinds.base: kinds.own for kinds in (CORPORA, SCORERS, COLUMN_STAGES, POLICIES)
}
"""What stands for its kinds in the recipe's types."""


def models(hint: object) -> Iterator[type[BaseModel]]:
    """The recipe's types, wherever they stand inside a type."""
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        yield hint
    for argument in typing.get_args(hint):
        yield from models(argument)


def reachable() -> set[type[BaseModel]]:
    found: set[type[BaseModel]] = set()
    front: list[type[BaseModel]] = [Recipe]
    while front:
        model = front.pop()
        if model in KINDS:
            front += KINDS[model].values()
        elif model not in found:
            found.add(model)
            hints = typing.get_type_hints(model, include_extras=True)
            front += [inner for name in model.model_fields for inner in models(hints[name])]
    return found


def test_the_page_is_what_the_types_give() -> None:
    assert REFERENCE.PAGE.read_text(encoding="utf-8") == REFERENCE.page(), "run python docs/make_reference.py"


def test_every_section_of_a_recipe_is_there() -> None:
    listed = {model for _, model in REFERENCE.SECTIONS}
    assert listed == reachable() and len(listed) > 20
    assert all(issubclass(model, StrictModel) for model in listed)


@pytest.mark.parametrize("model", [model for _, model in REFERENCE.SECTIONS], ids=lambda model: model.__name__)
def test_every_key_is_described(model: type[BaseModel]) -> None:
    words = REFERENCE.descriptions(model)
    assert [name for name in model.model_fields if not words.get(name)] == []


def test_no_word_is_on_a_key_that_is_not_there() -> None:
    """A line `key: words` whose key was renamed would fall into the prose: no prose line looks like one."""
    for _, model in REFERENCE.SECTIONS:
        for line in REFERENCE.prose(model):
            head = line.partition(": ")[0]
            assert " " in head or ":" not in line, (model.__name__, line)
