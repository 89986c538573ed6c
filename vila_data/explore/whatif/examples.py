"""Examples at the cuts of a sweep: their records and pictures, as download left them, ready to be shown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

from vila_data.core.errors import DataError
from vila_data.core.records import Record
from vila_data.explore.sweep import CutExamples, Example
from vila_data.explore.thumbnail import Thumbnail, data_uri
from vila_data.filter.whatif_cuts import AtCut, NearestToCuts
from vila_data.runs.progress import Watch
from vila_data.runs.run import Run
from vila_data.shard.downloaded_records import DownloadedRecords

_EXAMPLES: Final = 320
"""Of a page, about."""
_A_SIDE: Final = 4
_CUTS: Final = 60
"""Cuts with examples."""
_SIDE_PX: Final = 160
_PICTURES_OF_A_RECORD: Final = 3
_TEXT: Final = 220
_BYTES: Final = 3_600_000
"""Of pictures on a page; what comes after them is shown by its words alone."""


def cuts_to_show(values: Sequence[Any], in_force: Any, corpora: int) -> list[int]:
    """Places of the values at which examples are shown: all that are numbers, or some spread evenly, among them that in force."""
    places = [place for place, value in enumerate(values) if _is_number(value)]
    most = max(2, min(_CUTS, _EXAMPLES // (2 * max(1, corpora))))
    if len(places) <= most:
        return places
    chosen = {places[round(number * (len(places) - 1) / (most - 1))] for number in range(most)}
    return sorted(chosen | {place for place in places if values[place] == in_force})


def examples_a_side(cuts: int, corpora: int) -> int:
    """How many examples a side of a cut, so that a page stays small."""
    return max(1, min(_A_SIDE, _EXAMPLES // max(1, 2 * cuts * corpora)))


def examples_of(
    run: Run, key: str, nearest: Mapping[str, NearestToCuts], shown: Sequence[int], watch: Watch
) -> list[CutExamples]:
    """The examples of each corpus at each shown cut, their pictures made small."""
    if not nearest:
        return []
    readers = {corpus: _Reader(run.evidence(corpus), key) for corpus in nearest}
    budget = _Budget(_BYTES)
    watch.stage("examples", len(shown), 0)
    result = []
    for number, place in enumerate(shown):
        for corpus, found in nearest.items():
            dropped, kept = (
                tuple(readers[corpus].example(item, budget) for item in side[number])
                for side in (found.dropped, found.kept)
            )
            result.append(CutExamples(place, corpus, dropped, kept))
        watch.advance("examples", sum(len(one.dropped) + len(one.kept) for one in result[-len(nearest) :]))
    return result


class _Budget:
    """Bytes that may still be spent on pictures."""

    def __init__(self, size: int) -> None:
        self._left = size

    def spend(self, pictures: Iterator[Thumbnail]) -> tuple[Thumbnail, ...]:
        """The pictures that fit."""
        taken = []
        for picture in pictures:
            if len(picture.uri) > self._left:
                break
            self._left -= len(picture.uri)
            taken.append(picture)
        return tuple(taken)


class _Reader:
    """Examples of one corpus, read by range."""

    def __init__(self, evidence: DownloadedRecords, key: str) -> None:
        self._evidence = evidence
        self._thumbnail = lru_cache(maxsize=256)(self._read_thumbnail)
        self._unit = {"min_similarity": "similarity", "min_side_px": "px"}.get(key.rsplit(".", 1)[1], "images kept")

    def example(self, item: AtCut, budget: _Budget) -> Example:
        """An item with its words and pictures."""
        record = self._evidence.record(item.part, item.row)
        if record is None:
            raise DataError(f"part {item.part}, row {item.row}: is no record, and has an image: run check on the run")
        of_record = item.image_index < 0
        images = range(min(len(record.images), _PICTURES_OF_A_RECORD)) if of_record else (item.image_index,)
        pictures = (self._thumbnail(item.part, item.row, index) for index in images)
        value = f"{item.value:.4f}" if self._unit == "similarity" else f"{item.value:,.0f} {self._unit}"
        return Example(
            record.record_id,
            None if of_record else item.image_index,
            value,
            _words(record, item.text_index),
            budget.spend(picture for picture in pictures if picture is not None),
        )

    def _read_thumbnail(self, part: int, row: int, image_index: int) -> Thumbnail | None:
        jpeg = self._evidence.jpeg(part, row, image_index)
        return None if jpeg is None else data_uri(jpeg, _SIDE_PX, 60)


def _words(record: Record, text_index: int) -> str:
    """The sentence that an image stands before, or what a record begins with."""
    texts = record.texts
    if text_index >= 0 and texts:
        text = texts[min(text_index, len(texts) - 1)]
    else:
        text = " ".join(text for text in texts[:4] if text)
    return text if len(text) <= _TEXT else text[: _TEXT - 1] + "…"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
