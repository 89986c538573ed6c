"""Writes docs/recipe_reference.md from the recipe's types: keys, types, defaults, bounds, and the docstrings' words.

    python docs/make_reference.py            # writes the page
    python docs/make_reference.py --check    # exit 1 where the page is not what the types give

A key is described by a line ``key: words`` in the docstring of its class, or of the class above it.
"""

from __future__ import annotations

import inspect
import re
import sys
import types
import typing
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from vila_data.corpora import config as corpora
from vila_data.download.config import DownloadConfig, ResizeConfig
from vila_data.encode.config import PackConfig
from vila_data.encode.image_tokens import POLICIES, ImageTokens
from vila_data.filter.config import DocumentRules, FilterConfig, ImageRules, Rules
from vila_data.mix.config import BlendConfig, BlendSource, InnerBlend, Subset
from vila_data.recipe.recipe import Recipe, Resources, StageResources
from vila_data.score.kinds import KINDS as SCORERS
from vila_data.score.kinds import STAGES
from vila_data.score.scorer import Scorer
from vila_data.score.stage import ColumnStage
from vila_data.shard.config import ShardSet

PAGE = Path(__file__).with_name("recipe_reference.md")

KINDS = tuple(corpora.CORPORA.own.values())

SECTIONS: tuple[tuple[str, type[BaseModel]], ...] = (
    ("The recipe", Recipe),
    *((f"`corpora.NAME`, kind: {kind.model_fields['kind'].annotation.__args__[0]}", kind) for kind in KINDS),  # type: ignore[union-attr]
    ("`corpora.NAME.preselect`", corpora.Preselect),
    ("`download`", DownloadConfig),
    ("`download.resize`", ResizeConfig),
    *((f"`score.NAME`, kind: {name}", scorer) for name, scorer in SCORERS.items()),
    *((f"`stages.NAME`, kind: {name}", stage) for name, stage in STAGES.items()),
    ("`filter`", FilterConfig),
    ("`filter.images`", ImageRules),
    ("`filter.documents`", DocumentRules),
    ("`filter.per_corpus.NAME`", Rules),
    ("`shards.NAME`", ShardSet),
    ("`pack`", PackConfig),
    *((f"`pack.image_tokens`, policy: {name}", policy) for name, policy in POLICIES.own.items()),
    ("`blend`", BlendConfig),
    ("`blend.sources`, one of", BlendSource),
    ("`blend.sources.subset`", Subset),
    ("`blend.sources.blend`", InnerBlend),
    ("`resources`", Resources),
    ("`resources.STAGE`", StageResources),
)
BASES = {
    corpora.CorpusFiles: "a corpus of one of the kinds below",
    Scorer: "a scorer of one of the kinds below",
    ColumnStage: "a stage of one of the kinds below",
    ImageTokens: "one of the policies below",
}
TITLES = {model: title for title, model in SECTIONS}

UNITS = (
    (r"_s$", "seconds"),
    (r"_px$", "pixels"),
    (r"_mb$", "MB (10^6 bytes)"),
    (r"_gb$", "GB (10^9 bytes)"),
    (r"_bytes$", "bytes"),
    (r"_pixels$", "pixels"),
    (r"^tokens(_per_image)?$|^sequence_length$", "tokens"),
    (r"^(min|max)_images", "images"),
    (r"^total_packs$", "packs"),
    (r"^part_records$", "records"),
    (r"^micro_batch$", "samples"),
    (r"^batch_size$", "items"),
    (r"^aspect_ratio$", "width / height"),
    (r"similarity$", "cosine"),
    (r"^num_cpus$", "CPUs"),
    (r"^num_gpus$", "GPUs"),
    (r"^max_tasks$", "tasks"),
    (r"^(concurrency|per_host)$", "requests"),
    (r"^retries$", "attempts"),
    (r"^repeat$", "passes"),
    (r"^count$", "rows"),
)

PLAIN = {str: "text", int: "whole number", float: "number", bool: "`true` or `false`", dict: "mapping", date: "date"}


def main() -> None:
    """Write the page, or compare it."""
    text = page()
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(text, encoding="utf-8")
    elif not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text:
        sys.exit(f"{PAGE}: not what the types give: run python docs/make_reference.py")


def page() -> str:
    """The whole page."""
    lines = [
        "# Recipe reference",
        "",
        "Every key of a recipe, made from the types by `docs/make_reference.py`; a test holds the two equal. Examples and",
        "what belongs together: [recipe.md](recipe.md). A key without a default is required. NAME is a name of your own: 1",
        "to 48 letters, digits, `-` and `_`. `null` switches off what it stands for.",
        "",
    ]
    for title, model in SECTIONS:
        lines += [f"## {title}", "", *prose(model), *table(model), ""]
    return "\n".join(lines).rstrip() + "\n"


def prose(model: type[BaseModel]) -> list[str]:
    """The docstring without its lines on keys, paragraph by paragraph."""
    own = {line for _, found in entries(model) for line in found}
    text = "\n".join(line for line in inspect.cleandoc(model.__doc__ or "").splitlines() if line not in own)
    return [*re.sub(r"\n{3,}", "\n\n", text).strip().replace("None", "null").splitlines(), ""]


def table(model: type[BaseModel]) -> Iterator[str]:
    """The keys in the type's order."""
    yield "| key | value | default | unit | what |"
    yield "| --- | --- | --- | --- | --- |"
    hints = typing.get_type_hints(model, include_extras=True)
    words = descriptions(model)
    for name, field in model.model_fields.items():
        unit = next((unit for pattern, unit in UNITS if re.search(pattern, name)), "")
        cells = [f"`{name}`", shown_type(hints[name], field), shown_default(field), unit, words.get(name, "")]
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def descriptions(model: type[BaseModel]) -> dict[str, str]:
    """Words on each key, those of the class before those of the classes above it."""
    found: dict[str, str] = {}
    for one in model.__mro__:
        if issubclass(one, BaseModel) and one is not BaseModel:
            for name, lines in entries(one):
                text = " ".join(line.strip() for line in lines).split(":", 1)[1].strip()
                found.setdefault(name, text.replace("None", "null"))
    return found


def entries(model: type[BaseModel]) -> Iterator[tuple[str, list[str]]]:
    """(key, lines of the docstring) of each key that a class's own docstring describes."""
    held: tuple[str, list[str]] | None = None
    for line in inspect.cleandoc(model.__dict__.get("__doc__") or "").splitlines():
        begun = re.match(r"(\w+): +\S", line)
        if held is not None and line.startswith("   "):
            held[1].append(line)
            continue
        if held is not None:
            yield held
        held = (begun.group(1), [line]) if begun and begun.group(1) in model.model_fields else None
    if held is not None:
        yield held


def shown_type(hint: Any, field: FieldInfo | None = None) -> str:
    """A type in words, with its bounds."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return shown_type(arguments[0]) + bounds(arguments[1:], of_text=arguments[0] is str)
    if field is not None and field.metadata:
        return shown_type(hint) + bounds(tuple(field.metadata), of_text=hint is str)
    if origin in (typing.Union, types.UnionType):
        words = [shown_type(one) for one in arguments]
        return ("; or " if any(", " in word for word in words) else " or ").join(words)
    if origin is typing.Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if hint is type(None):
        return "`null`"
    if origin is dict:
        key = "{fraction of steps: " if arguments[0] is float else "{NAME: "
        return key + shown_type(arguments[1]) + "}"
    if origin is list or (origin is tuple and Ellipsis in arguments):
        return f"list of {shown_type(arguments[0])}"
    if origin is tuple:
        return "[" + ", ".join(shown_type(one) for one in arguments) + "]"
    if hint in BASES:
        return BASES[hint]
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        return "a shard set" if hint is ShardSet else TITLES[hint].removesuffix(", one of")
    return PLAIN[hint]


def bounds(metadata: tuple[Any, ...], *, of_text: bool = False) -> str:
    """What pydantic checks of a number or a list, in words; the form of a text is said by its description."""
    facts: dict[str, Any] = {}
    for one in metadata:
        for found in [*one.metadata, *one._attributes_set.items()] if isinstance(one, FieldInfo) else [one]:
            for name in ("gt", "ge", "lt", "le", "min_length"):
                if hasattr(found, name):
                    facts[name] = getattr(found, name)
    if "min_length" in facts:
        return "" if of_text else ", not empty"
    if "ge" in facts and "le" in facts:
        return f", {number(facts['ge'])} to {number(facts['le'])}"
    words = {"gt": "above", "ge": "from", "lt": "below", "le": "to"}
    return "".join(f", {words[name]} {number(facts[name])}" for name in words if name in facts)


def number(value: float) -> str:
    """A bound as people write it."""
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def shown_default(field: FieldInfo) -> str:
    """A default as it would stand in YAML; empty where the key is required."""
    if field.is_required():
        return "required"
    value = field.default if field.default is not PydanticUndefined else field.default_factory()  # type: ignore[misc,call-arg]
    if isinstance(value, BaseModel):
        return "the defaults below"
    if value is None:
        return "`null`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, list | tuple):
        return f"`[{', '.join(map(str, value))}]`"
    return "`{}`" if value == {} else f'`"{value}"`' if value == "" else f"`{value}`"


if __name__ == "__main__":
    main()
