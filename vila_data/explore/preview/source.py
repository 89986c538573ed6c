"""Where a preview's records come from, as far as choosing them goes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vila_data.explore.preview.faults import TokenFaults
from vila_data.explore.preview.values import ShownRecord, ShownTokens

TEXT_CHARS = 20_000
"""Of a text, held until it is drawn."""


class Place(NamedTuple):
    """A record: number of its corpus, of its part (or shard), its row there."""

    corpus: int
    part: int
    row: int


@dataclass(frozen=True)
class Columns:
    """What records are chosen by, of one part or shard (m records).

    allowed bool[m]: has the fate and the reason that are asked for. low, high float64[m]: the lowest and the highest
    similarity of its images, NaN where none is scored.
    """

    allowed: NDArray[np.bool_]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Asked:
    """What a record is shown for: the note to it, and the image that is meant."""

    note: str = ""
    image_index: int | None = None


class Source(Protocol):
    """A run, a shard set or a shard, read part by part (shard by shard)."""

    @property
    def corpora(self) -> Sequence[str]:
        """Names, in the recipe's order."""

    @property
    def title(self) -> str:
        """What the page is called."""

    @property
    def thresholds(self) -> dict[str, float]:
        """The lowest similarity allowed, by corpus, where there is such a rule."""

    @property
    def notes(self) -> Sequence[str]:
        """What the reader should know."""

    @property
    def faults(self) -> TokenFaults:
        """Token files that could not be read so far."""

    def parts(self, corpus: int) -> Sequence[int]:
        """Its parts or shards."""

    def columns(self, corpus: int, part: int, fate: str | None, reason: str | None) -> Columns:
        """What records are chosen by."""

    def record_ids(self, corpus: int, part: int) -> pa.ChunkedArray:
        """One a record."""

    def words(self, corpus: int, part: int, rows: Sequence[int]) -> Iterator[Sequence[str]]:
        """What `--text` searches of some records, in the order given."""

    def record(self, place: Place, asked: Asked, tokens: ShownTokens | None) -> ShownRecord:
        """A record with its pictures to be read."""

    def tokens(self, places: Sequence[Place]) -> dict[Place, ShownTokens]:
        """Training sequences of those records that have one."""


def finite(similarity: object) -> float | None:
    """A similarity as a number; None where there is none, or what is there is no number to draw or compare.

    Raises:
        ValueError, TypeError: it is something else.
    """
    if similarity is None:
        return None
    value = float(similarity)  # type: ignore[arg-type]
    return value if math.isfinite(value) else None


def clipped(texts: Sequence[str]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Texts no longer than TEXT_CHARS, and the lengths that they had; no lengths where none was cut."""
    if all(len(text) <= TEXT_CHARS for text in texts):
        return tuple(texts), ()
    return tuple(text[:TEXT_CHARS] for text in texts), tuple(map(len, texts))


def bounds_of(owner: NDArray[np.int64], values: NDArray[np.float64], count: int) -> tuple[NDArray[np.float64], ...]:
    """float64[count] each: lowest and highest of the values (NaN: none) of each owner."""
    low, high = np.full(count, np.inf), np.full(count, -np.inf)
    known = ~np.isnan(values)
    np.minimum.at(low, owner[known], values[known])
    np.maximum.at(high, owner[known], values[known])
    return np.where(np.isinf(low), np.nan, low), np.where(np.isinf(high), np.nan, high)
