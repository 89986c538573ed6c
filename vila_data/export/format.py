"""What a format is: the seam between the frame, which does parts and receipts, and one file a format."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

from vila_data.core.errors import UsageError
from vila_data.core.receipts import Outputs
from vila_data.core.store import Store
from vila_data.core.tarcodec import TarWriter
from vila_data.export.content import Content
from vila_data.shard.config import View


@dataclass(frozen=True, slots=True)
class Part:
    """Samples `start` to `stop` of a set: the unit of work and of resume, part `index` of `of`."""

    set_name: str
    index: int
    of: int
    start: int
    stop: int

    def file(self, name: str) -> str:
        """Path of a file of the exported set, relative to the export's folder."""
        return f"{self.set_name}/{name}"

    @property
    def receipt(self) -> str:
        """The part's receipt."""
        return f"{RECEIPTS}/{self.set_name}/part-{self.index:05d}.json"

    @property
    def rows(self) -> str:
        """Lines that the part leaves for the set's own files; removed when those are written."""
        return f"{RECEIPTS}/{self.set_name}/part-{self.index:05d}.rows"


RECEIPTS = ".receipts"
"""Folder of receipts beside the exported sets: a set's name has no dot."""


@dataclass
class Tally:
    """What became of the samples of a part.

    left_out: samples that the format cannot hold, by reason; adapted: samples, or pictures, that were
              written in another way than they lie in the set, by what was done (docs/export.md).
    """

    exported: int = 0
    images: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    adapted: Counter[str] = field(default_factory=Counter)

    def add(self, content: Content) -> None:
        """Count a sample as exported."""
        self.exported += 1
        self.images += len(content.pictures)

    def counts(self) -> dict[str, Any]:
        """JSON values, in a fixed order."""
        return {
            "exported": self.exported,
            "images": self.images,
            "left_out": dict(sorted(self.left_out.items())),
            "adapted": dict(sorted(self.adapted.items())),
        }


@dataclass(frozen=True)
class DonePart:
    """A part that is written, without what grows with its samples.

    counts: a Tally's. files, bytes: all that it put out, the lines for the set's own files aside.
    sizes:  {file: bytes} of those that lie in the set's folder itself, not in one below it.
    """

    part: Part
    counts: dict[str, Any]
    files: int
    bytes: int
    sizes: dict[str, int]


@dataclass(frozen=True)
class Whole:
    """A set whose parts are all written. fingerprint: of the set's manifest."""

    set_name: str
    view: View
    fingerprint: str
    parts: Sequence[DonePart]
    store: Store

    def rows(self) -> Iterator[tuple[Part, bytes]]:
        """Each line that the parts have left, without its end, in the set's order."""
        for done in self.parts:
            with self.store.open_read(done.part.rows) as stream:
                for line in stream:
                    yield done.part, line.rstrip(b"\n")


class Format(Protocol):
    """A format: which views it takes, how a set is cut into parts, how one is written.

    revision: raised when the same samples give other bytes, so that an export of an earlier version is not gone on with.
    """

    name: ClassVar[str]
    views: ClassVar[tuple[View, ...]]
    revision: ClassVar[int]

    def cut(self, set_name: str, samples: Sequence[int], shards: int | None) -> list[Part]:
        """The set's parts, in order and without gaps.

        samples: of each of the set's shards; shards: how many parts are asked for, None: the format's own choice.

        Raises:
            UsageError: there are too few samples for that many.
        """
        ...

    def write_part(self, part: Part, contents: Iterator[Content], files: Outputs) -> Tally:
        """Write a part's files; every sample is counted, as exported or as left out."""
        ...

    def finish(self, whole: Whole, files: Outputs) -> None:
        """Write what the set has once, when all parts are there."""
        ...


def parts_of(set_name: str, bounds: Sequence[int]) -> list[Part]:
    """The parts between consecutive bounds."""
    spans = list(itertools.pairwise(bounds))
    return [Part(set_name, index, len(spans), start, stop) for index, (start, stop) in enumerate(spans)]


def cut_as_shards(set_name: str, samples: Sequence[int], shards: int | None) -> list[Part]:
    """A part for each of the set's shards, or as many as are asked for, as even as can be.

    Raises:
        UsageError: fewer samples than parts.
    """
    if shards is None:
        return parts_of(set_name, [0, *itertools.accumulate(samples)])
    return parts_of(set_name, even_bounds(set_name, sum(samples), shards))


def even_bounds(set_name: str, count: int, shards: int, step: int = 1) -> list[int]:
    """Bounds of `shards` runs of samples, each but the last a multiple of `step`, as even as can be.

    Raises:
        UsageError: a run would be empty.
    """
    steps = count // step
    if steps < shards and count:
        each = "" if step == 1 else f" in groups of {step}"
        raise UsageError(
            f"--shards {shards}: set {set_name} has {count} samples{each}, enough for at most {steps} files"
        )
    return [steps * index // shards * step for index in range(shards)] + [count] if count else [0]


@contextmanager
def tar_file(path: Path) -> Iterator[TarWriter]:
    """A tar being written; its end mark is set when the block ends."""
    with open(path, "wb", buffering=1 << 20) as stream:
        tar = TarWriter(stream)
        yield tar
        tar.finish()
