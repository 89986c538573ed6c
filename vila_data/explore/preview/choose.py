"""Choosing what a preview shows: over the whole run, part by part, holding no more than what is chosen.

An order is a rank, one number a record: its similarity, or a number drawn from (seed, corpus, part, row). Of each part
the best ranks join those held, and the best of both are held on. The parts' order therefore changes nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vila_data.core.errors import DataError, UsageError
from vila_data.explore.preview.choice import Choice, ListedRecord
from vila_data.explore.preview.source import Asked, Columns, Place, Source
from vila_data.recipe.marked_yaml import nearest

Advance = Callable[[int], None]
"""Told, after each part, how many records it has."""


@dataclass(frozen=True)
class Chosen:
    """The records of a page, in order. records, matching: of each corpus, by its number."""

    places: tuple[tuple[Place, Asked], ...]
    records: tuple[int, ...]
    matching: tuple[int, ...]


def choose(source: Source, choice: Choice, advance: Advance) -> Chosen:
    """The records that a choice means.

    Raises:
        UsageError: nothing is scored, and an order by similarity is asked for; a corpus that is not there.
        DataError: a listed record is not there.
    """
    corpora = _corpora(source, choice)
    if choice.order == "listed":
        return _listed(source, choice.listed, advance)
    counts = np.zeros((2, len(source.corpora)), np.int64)
    held: list[_Best] = []
    scored = False
    for corpus in corpora:
        if choice.order == "random" or not held:
            held.append(_Best(choice.count))
        for part in source.parts(corpus):
            columns = source.columns(corpus, part, choice.fate, choice.reason)
            allowed = _allowed(source, columns, (corpus, part), choice.text)
            scored = scored or not np.isnan(columns.low).all()
            counts[:, corpus] += len(allowed), allowed.sum()
            ranks = _ranks(columns, choice, f"{choice.seed}:{source.corpora[corpus]}:{part}")
            rows = np.flatnonzero(allowed & ~np.isnan(ranks))
            held[-1].offer(ranks[rows], rows, corpus, part)
            advance(len(allowed))
    if choice.order != "random" and not scored:
        raise UsageError(f"--order {choice.order}: nothing here has a similarity (score.clip); choose --order random")
    places = _shared_out(held, choice.count) if choice.order == "random" else held[0].places() if held else []
    return Chosen(tuple((place, Asked()) for place in places), tuple(counts[0].tolist()), tuple(counts[1].tolist()))


class _Best:
    """The `count` lowest ranks so far; ties go to the lower place."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._ranks = np.zeros(0, np.float64)
        self._rows = np.zeros((0, 3), np.int64)

    def __len__(self) -> int:
        return len(self._ranks)

    def offer(self, ranks: NDArray[np.float64], rows: NDArray[np.int64], corpus: int, part: int) -> None:
        """Records of one part."""
        if len(ranks) > self._count:
            limit = np.partition(ranks, self._count - 1)[self._count - 1]
            keep = ranks <= limit
            ranks, rows = ranks[keep], rows[keep]
        places = np.column_stack([np.full(len(rows), corpus), np.full(len(rows), part), rows])
        self._ranks, self._rows = np.concatenate([self._ranks, ranks]), np.concatenate([self._rows, places])
        order = np.lexsort((self._rows[:, 2], self._rows[:, 1], self._rows[:, 0], self._ranks))[: self._count]
        self._ranks, self._rows = self._ranks[order], self._rows[order]

    def places(self) -> list[Place]:
        """The best first."""
        return [Place(*row) for row in self._rows.tolist()]


def _shared_out(held: Sequence[_Best], count: int) -> list[Place]:
    """As many of each corpus, as far as it has them; what one lacks goes to the others."""
    taken = [0] * len(held)
    left = count
    while left and (open_ := [n for n in range(len(held)) if taken[n] < len(held[n])]):
        share = max(1, left // len(open_))
        for number in open_:
            more = min(share, len(held[number]) - taken[number], left)
            taken[number] += more
            left -= more
    return [place for number, best in enumerate(held) for place in best.places()[: taken[number]]]


def _corpora(source: Source, choice: Choice) -> list[int]:
    if choice.corpus is None:
        return list(range(len(source.corpora)))
    if choice.corpus not in source.corpora:
        raise UsageError(f"--corpus {choice.corpus}: there is no such corpus{nearest(choice.corpus, source.corpora)}")
    return [list(source.corpora).index(choice.corpus)]


def _allowed(source: Source, columns: Columns, where: tuple[int, int], text: str | None) -> NDArray[np.bool_]:
    """bool[m]: has fate and reason, and the text that is asked for."""
    if not text:
        return columns.allowed
    wanted = text.casefold()
    allowed = columns.allowed.copy()
    rows = np.flatnonzero(allowed).tolist()
    for row, words in zip(rows, source.words(*where, rows), strict=True):
        allowed[row] = any(wanted in text.casefold() for text in words)
    return allowed


def _ranks(columns: Columns, choice: Choice, key: str) -> NDArray[np.float64]:
    """float64[m]: the lowest come first; NaN: none."""
    if choice.order == "worst":
        return columns.low
    if choice.order == "best":
        return -columns.high
    first = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
    return _drawn(first, len(columns.low))


def _drawn(first: int, count: int) -> NDArray[np.float64]:
    """float64[count] in [0, 1): splitmix64 (Steele, Lea and Flood 2014) from a start, 53 bits of each number."""
    with np.errstate(over="ignore"):
        value = np.uint64(first) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        value = value ^ (value >> np.uint64(31))
    return (value >> np.uint64(11)).astype(np.float64) / float(1 << 53)


def _listed(source: Source, listed: Sequence[ListedRecord], advance: Advance) -> Chosen:
    names = list(source.corpora)
    found: dict[tuple[str, str], Place] = {}
    counts = [0] * len(names)
    for name in dict.fromkeys(entry.corpus for entry in listed):
        if name not in names:
            raise DataError(f"no corpus {name!r} in {source.title}: there are {', '.join(names) or 'none'}")
        corpus = names.index(name)
        wanted = {entry.record_id for entry in listed if entry.corpus == name}
        for part in source.parts(corpus):
            ids = source.record_ids(corpus, part)
            mask = pc.is_in(ids, value_set=pa.array(sorted(wanted), pa.string())).to_numpy()
            for row in np.flatnonzero(mask).tolist():
                found.setdefault((name, ids[row].as_py()), Place(corpus, part, row))
            counts[corpus] += len(ids)
            advance(len(ids))
            if all((name, record_id) in found for record_id in wanted):
                break
    missing = [entry for entry in listed if (entry.corpus, entry.record_id) not in found]
    if missing:
        raise DataError(f"{source.title}: no record {missing[0].record_id!r} in corpus {missing[0].corpus!r}")
    places = tuple((found[entry.corpus, entry.record_id], Asked(entry.note, entry.image_index)) for entry in listed)
    of = [place.corpus for place in dict.fromkeys(place for place, _ in places)]
    return Chosen(places, tuple(counts), tuple(of.count(number) for number in range(len(names))))
