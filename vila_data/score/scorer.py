"""A scorer is an entry of `score:`: it declares its input and its columns, and computes them.

A kind is one class below `Scorer`, in a file of its own, and one line in kinds.py. For most, `open` returns a function of
one image, one record or some columns that gives a row of values; reading, decoding, resume and the table follow.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vila_data.core.config import StrictModel
from vila_data.core.expression import Kind
from vila_data.core.layout import Part
from vila_data.core.scores import DOWNLOADED, ScoreTable, Unit
from vila_data.core.store import Store

Needs = Literal["pixels", "text", "columns", "pixels and texts"]
"""The input of a scorer, and the type that its `open` returns:

pixels:           (rgb_HWC uint8) -> a row of values. Several threads call it at once; equal images are passed once.
text:             (core.records.Record) -> a row of values.
columns:          ({name: core.scores.Values of a whole part}) -> an array [n] for each of its columns; `reads` names them.
pixels and texts: a `Clip` (clip.py), whose columns are similarities.

A row has a value for each of `columns`, in their order: a number, a text, true or false, or None (null). It must depend on
the item alone, not on what was scored before: a run that was resumed must equal one that was not.
"""

Self = TypeVar("Self", bound="Scorer")


class MissingPath(Exception):
    """A file or directory named by a key does not exist."""

    def __init__(self, key: str, value: str, what: str) -> None:
        self.key, self.value, self.what = key, value, what
        super().__init__(key, value, what)


@dataclass(frozen=True)
class Column:
    """A column of a score table.

    unit: of its values, "" for none; range: [lowest, highest], None: unbounded; what: one line for people.
    joint: whether the value may change when more images of its record are scored.
    """

    name: str
    type: pa.DataType
    unit: str
    range: tuple[float, float] | None
    what: str
    joint: bool = False

    def field(self) -> pa.Field:
        """The column as a field of the table."""
        return pa.field(self.name, self.type)

    def kind(self) -> Kind | None:
        """Its kind in rules; None: rules cannot name it."""
        types = pa.types
        if types.is_boolean(self.type):
            return "flag"
        if types.is_integer(self.type) or types.is_floating(self.type):
            return "number"
        return "text" if types.is_string(self.type) else None


class Scorer(StrictModel):
    """An entry of `score:`, its keys being those of its kind.

    cost:      rough seconds per row on one core; cheap scorers run first.
    needs:     what it is given; rows: what a row of its table is.
    reads:     the download columns that a scorer of columns is given (core.scores.DOWNLOADED).
    side:      pixels; an image may be decoded smaller as long as its shorter side has that many, None: as stored.
    harmless:  keys that change how work is done, not its result; they may change in a run. Files whose
               bytes `fingerprint` covers are such.
    switches:  keys that may be set in a run later, from false to true: they add files and change no value.
    paths:     keys that name files or directories, relative to the recipe.
    on_demand: whether images of conversations are given to it only where a rule asks for its columns.
    """

    cost: ClassVar[float]
    needs: ClassVar[Needs]
    rows: ClassVar[Unit] = "image"
    reads: ClassVar[tuple[str, ...]] = ()
    side: ClassVar[int | None] = None
    harmless: ClassVar[frozenset[str]] = frozenset()
    switches: ClassVar[frozenset[str]] = frozenset()
    paths: ClassVar[tuple[str, ...]] = ()
    on_demand: ClassVar[bool] = False

    kind: str

    def columns(self) -> tuple[Column, ...]:
        """The columns that it measures; they may depend on its settings."""
        raise NotImplementedError

    def fingerprint(self) -> str:
        """16 hex digits of all that decides a value: the bytes of its model, its settings, a version of its code.

        Raises:
            UsageError: its model does not exist or lacks a file.
        """
        raise NotImplementedError

    def open(self) -> Any:
        """Load the scorer's function or model (see `Needs`); called once per process.

        Raises:
            UsageError: its model does not exist, or a package is not installed.
            RunError: one of its files cannot be read.
        """
        raise NotImplementedError

    def located(self: Self, folder: Path) -> Self:
        """With its `paths` made absolute, relative to `folder`.

        Raises:
            MissingPath: one is not there.
        """
        found = {}
        for key in self.paths:
            value = getattr(self, key)
            if value is not None and not (folder / value).exists():
                raise MissingPath(key, value, "file or directory")
            if value is not None:
                found[key] = str((folder / value).resolve())
        return self.model_copy(update=found)

    def switched(self) -> dict[str, Any]:
        """Its `switches` and their values."""
        return {key: getattr(self, key) for key in sorted(self.switches)}

    def table(self, name: str) -> ScoreTable:
        """What other packages see of it."""
        columns = [(column.name, kind) for column in self.columns() if (kind := column.kind()) is not None]
        joint = frozenset(column.name for column in self.columns() if column.joint)
        return ScoreTable(name, self.rows, tuple(columns), joint, self.on_demand)

    def check(self) -> None:
        """Check that a kind is declared correctly.

        Raises:
            ValueError: its input does not match its rows, or it reads columns that do not exist.
        """
        if (self.needs in ("pixels", "pixels and texts") and self.rows != "image") or (
            self.needs == "text" and self.rows != "record"
        ):
            raise ValueError(f"kind {self.kind}: needs {self.needs}, which {self.rows}s do not have")
        for column in self.reads:
            if column not in DOWNLOADED or DOWNLOADED[column][0] not in ("record", self.rows):
                raise ValueError(f"kind {self.kind}: reads {column!r}, which {self.rows}s do not have")


@dataclass(frozen=True)
class Task:
    """One part to score by one scorer.

    name:        of the scorer in the recipe; fingerprint: `scorer.fingerprint()`.
    needed:      bool[rows of its table] which rows to score, None: all; what has no bytes, or is no record, never is.
    inputs:      fingerprint for the receipt.
    reuse:       take over what a committed table of this scorer and this download holds, and score only what it lacks;
                 the result equals scoring both together from scratch.
    threads:     that decode; None takes the CPUs of this process.
    """

    store: Store
    part: Part
    name: str
    scorer: Scorer
    fingerprint: str
    needed: NDArray[np.bool_] | None
    inputs: str
    reuse: bool = False
    threads: int | None = None

    @property
    def path(self) -> str:
        """Path of the score table."""
        return self.part.scores_table(self.name)
