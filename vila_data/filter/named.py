"""Rules that installed packages add: a function of columns under a name, which `filter.rules` may hold like a condition."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vila_data.core.errors import RunError
from vila_data.core.expression import Kind
from vila_data.core.plugins import Registry
from vila_data.core.scores import DOWNLOADED
from vila_data.filter.config import OUTCOMES, RECORD_OUTCOMES

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class ColumnRule:
    """What an entry point of `vila_data.rules` names.

    reads:    the columns that it needs, named as in a condition: "width", "clip.similarity". It decides about images;
              about records where all of them are a record's.
    keeps:    ({column: array [n]}) -> bool [n], who is kept. Numbers are float64, or float32 where a scorer has that.
              Where a column is null its value means nothing: there the image or record is kept, and counted.
    revision: to be raised when `keeps` decides otherwise: fates are then made again.
    """

    reads: tuple[str, ...]
    keeps: Callable[[Mapping[str, NDArray[Any]]], NDArray[np.bool_]]
    revision: int = 1


RULES: Final = Registry[ColumnRule](
    "rules",
    {},
    "a vila_data.filter.named.ColumnRule",
    lambda found: isinstance(found, ColumnRule),
    (*DOWNLOADED, *OUTCOMES, *RECORD_OUTCOMES),
)
"""Those that installed packages add; ours are keys of `filter.images` and `filter.documents`."""


@dataclass(frozen=True)
class NamedCondition:
    """A rule by its name, in the place of a core.expression.Condition."""

    text: str
    rule: ColumnRule

    @property
    def names(self) -> frozenset[str]:
        """The columns that it reads."""
        return frozenset(self.rule.reads)

    def holds(
        self,
        columns: Mapping[str, NDArray[Any]],
        nulls: Mapping[str, NDArray[np.bool_]] | None = None,
        *,
        unknown: bool = True,
    ) -> NDArray[np.bool_]:
        """See core.expression.Condition.

        Raises:
            RunError: the rule gives something else than a flag per row.
        """
        found = np.asarray(self.rule.keeps(columns))
        shape = next(iter(columns.values())).shape
        if found.dtype != np.bool_ or found.shape != shape:
            raise RunError(f"rule {self.text}: must give bool {list(shape)}, found {found.dtype} {list(found.shape)}")
        for null in (nulls or {}).values():
            found = np.where(null, unknown, found)
        return found


def named_condition(text: str, columns: Mapping[str, Kind]) -> NamedCondition | None:
    """The rule whose name a text is; None where it is none.

    Raises:
        ValueError: it reads a column that is not there.
        UsageError: the package that adds it cannot be loaded.
    """
    if not _NAME.fullmatch(text) or (rule := RULES.find(text)) is None:
        return None
    for name in rule.reads:
        if name not in columns:
            raise ValueError(f"rule {text} reads {name!r}, which is not there; there are {', '.join(columns)}")
    if not rule.reads:
        raise ValueError(f"rule {text} reads no column")
    return NamedCondition(text, rule)


def revisions(texts: Iterable[str]) -> dict[str, int]:
    """Of those of `filter.rules` that packages add, what their fates depend on beside their names."""
    rules = {text: RULES.find(text) for text in texts if _NAME.fullmatch(text)}
    return {name: rule.revision for name, rule in sorted(rules.items()) if rule is not None}
