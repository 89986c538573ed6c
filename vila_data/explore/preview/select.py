"""Select the records of a preview from the whole run, part by part, holding no more than the selection.

An order is a rank, one number per record: its similarity, or a number drawn from (seed, corpus, part, row). The best
ranks of each part are merged with those held, and the best of both are kept. So the order of the parts changes nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vila_data.core.errors import DataError, UsageError
from vila_data.core.readable import many
from vila_data.explore.preview.records import FATES, Columns, Highlight, RecordLocation, Source
from vila_data.recipe.yaml_lines import suggestion

Order = Literal["random", "worst", "best", "listed"]
Advance = Callable[[int], None]
"""Called after each part with its number of records."""


@dataclass(frozen=True, slots=True)
class ListedRecord:
    """One record to show, the image that was found (None: the whole record), and a note to print with it."""

    corpus: str
    record_id: str
    image_index: int | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Choice:
    """Which records a preview shows.

    count:  at most so many.
    order:  random: the same number from each corpus, sampled with `seed`; worst, best: the lowest, or highest,
            similarity of one of their images, over everything that matches; listed: those of `listed`, in its order.
    corpus: only this one. fate, reason: only records that have them, or an image that has them.
    text:   only records with this text, ignoring case.
    packs:  this many packs from the start of the epoch, if the run has a blend.
    heading: the page's title; by default, the run's name.

    Raises:
        UsageError: a value is not allowed.
    """

    count: int = 200
    order: Order = "random"
    seed: int = 0
    corpus: str | None = None
    fate: str | None = None
    reason: str | None = None
    text: str | None = None
    packs: int = 0
    listed: tuple[ListedRecord, ...] = ()
    heading: str = ""

    def __post_init__(self) -> None:
        if self.order not in get_args(Order):
            raise UsageError(f"--order must be random, worst or best, found {self.order}")
        if self.fate is not None and self.fate not in FATES:
            raise UsageError(f"--fate must be kept, dropped or failed, found {self.fate}")
        if self.fate == "kept" and self.reason is not None:
            raise UsageError(f"--fate kept --reason {self.reason}: kept records have no reason; omit one of the two")
        if self.count < 1 and self.order != "listed":
            raise UsageError(f"--count must be at least 1, found {self.count}")
        if self.packs < 0:
            raise UsageError(f"--packs must be 0 or more, found {self.packs}")

    def sentence(self, shown: int, matching: int, records: int) -> str:
        """The choice in words, with its results."""
        if self.order == "listed":
            return f"{many(shown, 'records')} of {records:,}."
        how = {
            "random": f"sampled at random (seed {self.seed}), in equal numbers from each corpus where possible",
            "worst": "those with the lowest similarity, worst first",
            "best": "those with the highest similarity, best first",
        }[self.order]
        conditions = [
            f"{name} {value}"
            for name, value in (("corpus", self.corpus), ("fate", self.fate), ("reason", self.reason))
            if value is not None
        ]
        if self.text:
            conditions.append(f"with the text “{self.text}”")
        which = f"{matching:,} matching records ({', '.join(conditions)}) out of {records:,}"
        of = which if conditions else f"{records:,} records"
        return f"{shown:,} of {of}" + (f": {how}." if shown < matching or self.order != "random" else ".")


@dataclass(frozen=True)
class Selection:
    """The records of a page, in order. records, matching: counts by corpus number."""

    locations: tuple[tuple[RecordLocation, Highlight], ...]
    records: tuple[int, ...]
    matching: tuple[int, ...]


def select(source: Source, choice: Choice, advance: Advance) -> Selection:
    """The records that a choice means.

    Raises:
        UsageError: an order by similarity where nothing is scored; an unknown corpus.
        DataError: a listed record does not exist.
    """
    names = list(source.corpora)
    if choice.corpus is not None and choice.corpus not in names:
        raise UsageError(f"--corpus {choice.corpus}: no such corpus{suggestion(choice.corpus, names)}")
    if choice.order == "listed":
        return _listed(source, choice.listed, advance)
    counts = np.zeros((2, len(names)), np.int64)
    best: list[_BestRanks] = []
    scored = False
    for corpus, name in enumerate(names):
        if choice.corpus not in (None, name):
            continue
        if choice.order == "random" or not best:
            best.append(_BestRanks(choice.count))
        for part in source.parts(corpus):
            columns = source.columns(corpus, part, choice.fate, choice.reason)
            allowed = columns.allowed
            if choice.text:
                allowed = allowed.copy()
                rows = np.flatnonzero(allowed).tolist()
                for row, texts in zip(rows, source.texts(corpus, part, rows), strict=True):
                    allowed[row] = any(choice.text.casefold() in text.casefold() for text in texts)
            scored = scored or not np.isnan(columns.low).all()
            counts[:, corpus] += len(allowed), allowed.sum()
            ranks = _ranks(columns, choice, f"{choice.seed}:{name}:{part}")
            ranked = np.flatnonzero(allowed & ~np.isnan(ranks))
            best[-1].offer(ranks[ranked], ranked, corpus, part)
            advance(len(allowed))
    if choice.order != "random" and not scored:
        raise UsageError(
            f"--order {choice.order} needs similarity scores (score.clip), but {source.title} has none; "
            "use --order random"
        )
    locations = [
        location for one, count in zip(best, _shares(best, choice.count), strict=True) for location in one[:count]
    ]
    return Selection(
        tuple((location, Highlight()) for location in locations), tuple(counts[0].tolist()), tuple(counts[1].tolist())
    )


class _BestRanks:
    """The records of the `count` lowest ranks so far, best first; ties go to the lower location."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._ranks = np.zeros(0, np.float64)
        self._locations = np.zeros((0, 3), np.int64)

    def __len__(self) -> int:
        return len(self._ranks)

    def __getitem__(self, rows: slice) -> list[RecordLocation]:
        return [RecordLocation(*location) for location in self._locations[rows].tolist()]

    def offer(self, ranks: NDArray[np.float64], rows: NDArray[np.int64], corpus: int, part: int) -> None:
        """Records of one part."""
        if len(ranks) > self._count:
            keep = ranks <= np.partition(ranks, self._count - 1)[self._count - 1]
            ranks, rows = ranks[keep], rows[keep]
        offered = np.column_stack([np.full(len(rows), corpus), np.full(len(rows), part), rows])
        ranks, locations = np.concatenate([self._ranks, ranks]), np.concatenate([self._locations, offered])
        order = np.lexsort((locations[:, 2], locations[:, 1], locations[:, 0], ranks))[: self._count]
        self._ranks, self._locations = ranks[order], locations[order]


def _shares(best: Sequence[_BestRanks], count: int) -> list[int]:
    """How many records to take of each: equally many where possible; what one lacks goes to the others."""
    taken = [0] * len(best)
    left = count
    while left and (open_ := [n for n in range(len(best)) if taken[n] < len(best[n])]):
        share = max(1, left // len(open_))
        for number in open_:
            more = min(share, len(best[number]) - taken[number], left)
            taken[number] += more
            left -= more
    return taken


def _ranks(columns: Columns, choice: Choice, key: str) -> NDArray[np.float64]:
    """float64[m]: the lowest come first; NaN: none."""
    if choice.order == "worst":
        return columns.low
    if choice.order == "best":
        return -columns.high
    first = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
    # splitmix64 (Steele, Lea and Flood 2014), 53 bits of each number
    with np.errstate(over="ignore"):
        value = np.uint64(first) + np.arange(1, len(columns.low) + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        value = value ^ (value >> np.uint64(31))
    return (value >> np.uint64(11)).astype(np.float64) / float(1 << 53)


def _listed(source: Source, listed: Sequence[ListedRecord], advance: Advance) -> Selection:
    names = list(source.corpora)
    found: dict[tuple[str, str], RecordLocation] = {}
    counts = [0] * len(names)
    for name in dict.fromkeys(entry.corpus for entry in listed):
        if name not in names:
            raise DataError(f"{source.title}: no corpus {name!r}; it has {', '.join(names) or 'none'}")
        corpus = names.index(name)
        wanted = {entry.record_id for entry in listed if entry.corpus == name}
        for part in source.parts(corpus):
            ids = source.record_ids(corpus, part)
            mask = pc.is_in(ids, value_set=pa.array(sorted(wanted), pa.string())).to_numpy()
            for row in np.flatnonzero(mask).tolist():
                found.setdefault((name, ids[row].as_py()), RecordLocation(corpus, part, row))
            counts[corpus] += len(ids)
            advance(len(ids))
            if all((name, record_id) in found for record_id in wanted):
                break
    for entry in listed:
        if (entry.corpus, entry.record_id) not in found:
            raise DataError(f"{source.title}: no record {entry.record_id!r} in corpus {entry.corpus!r}")
    locations = [found[entry.corpus, entry.record_id] for entry in listed]
    highlights = [Highlight(entry.note, entry.image_index) for entry in listed]
    matching = [location.corpus for location in dict.fromkeys(locations)]
    return Selection(
        tuple(zip(locations, highlights, strict=True)),
        tuple(counts),
        tuple(matching.count(number) for number in range(len(names))),
    )
