"""The interface of an exporter (`Format`), and its samples, parts and counts. exporting.py handles parts and receipts."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

from vila_data.core.errors import DataError, UsageError
from vila_data.core.receipts import Outputs
from vila_data.core.records import Role
from vila_data.core.samples import SampleImage
from vila_data.core.store import Store
from vila_data.core.tarcodec import TarWriter
from vila_data.shard.config import View
from vila_data.shard.read import Sample


@dataclass(frozen=True, slots=True)
class JpegImage(SampleImage):
    """An image of a sample, with its JPEG bytes."""

    jpeg: bytes


@dataclass(frozen=True, slots=True)
class Content:
    """A sample: a pair has one text and one image; a conversation has a role for each text.

    entries:  texts, and numbers of images, in reading order (core.samples.SampleContent).
    members:  {name in the tar: bytes}, in the tar's order.
    """

    key: str
    corpus: str
    record_id: str
    source_url: str | None
    entries: tuple[str | int, ...]
    texts: tuple[str, ...]
    images: tuple[JpegImage, ...]
    roles: tuple[Role, ...]
    system: str | None
    members: dict[str, bytes]

    def reading(self) -> Iterator[str | JpegImage]:
        """Texts and images in reading order."""
        return (self.images[entry] if isinstance(entry, int) else entry for entry in self.entries)


def read_content(sample: Sample, view: View) -> Content:
    """The texts and images of a sample.

    Raises:
        DataError: its JSON does not have the view's layout, or an image does not match it.
    """
    found = sample.content
    if found.view != view:
        raise DataError(
            f"{sample.shard}: {sample.key}.json: is a sample of view {found.view}, but the set has view {view}"
        )
    return Content(
        key=sample.key,
        corpus=found.corpus,
        record_id=found.record_id,
        source_url=found.source_url,
        entries=found.entries,
        texts=found.texts,
        images=tuple([_image(sample, image) for image in found.images]),
        roles=found.roles,
        system=found.system,
        members={f"{sample.key}.{suffix}": data for suffix, data in sample.members.items()},
    )


def _image(sample: Sample, image: SampleImage) -> JpegImage:
    jpeg = sample.members.get(image.member.removeprefix(f"{sample.key}."), b"")
    if hashlib.sha256(jpeg).hexdigest() != image.sha256:
        raise DataError(
            f"{sample.shard}: {image.member}: is missing or does not match its sha256; run check on the set"
        )
    return JpegImage(**{name: getattr(image, name) for name in SampleImage.__slots__}, jpeg=jpeg)


@dataclass(frozen=True, slots=True)
class Part:
    """Samples `start` to `stop` of a set: the unit of work and of resume, part `index` of `of`."""

    set_name: str
    index: int
    of: int
    start: int
    stop: int

    def file(self, name: str) -> str:
        """Path of a file of the exported set, relative to the export's directory."""
        return f"{self.set_name}/{name}"

    @property
    def receipt(self) -> str:
        """The part's receipt."""
        return f"{RECEIPTS}/{self.set_name}/part-{self.index:05d}.json"

    @property
    def rows(self) -> str:
        """Lines that the part leaves for the set's own files; removed once those are written."""
        return f"{RECEIPTS}/{self.set_name}/part-{self.index:05d}.rows"


RECEIPTS = ".receipts"
"""Directory of receipts, next to the exported sets: a set's name has no dot."""


@dataclass
class ExportCounts:
    """Counts of a part's samples.

    left_out: samples that the format cannot hold, by reason; adapted: samples, or images, that were
              written differently from the set, by the change (docs/export.md).
    """

    exported: int = 0
    images: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    adapted: Counter[str] = field(default_factory=Counter)

    def add(self, content: Content) -> None:
        """Count a sample as exported."""
        self.exported += 1
        self.images += len(content.images)

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
    """A finished part, without what grows with its samples.

    counts: a ExportCounts's. files, bytes: of all its files, without the lines for the set's own files.
    sizes:  {file: bytes} of the files directly in the set's directory.
    """

    part: Part
    counts: dict[str, Any]
    files: int
    bytes: int
    sizes: dict[str, int]


@dataclass(frozen=True)
class ExportedSet:
    """A set whose parts are all written; fingerprint: of its manifest."""

    set_name: str
    view: View
    fingerprint: str
    parts: Sequence[DonePart]
    store: Store

    def rows(self) -> Iterator[tuple[Part, bytes]]:
        """The lines that the parts left, without line ends, in the set's order."""
        for done in self.parts:
            with self.store.open_read(done.part.rows) as stream:
                for line in stream:
                    yield done.part, line.rstrip(b"\n")


class Format(Protocol):
    """A format: the views that it supports, how a set is cut into parts, and how a part is written.

    revision: raised when the same samples give other bytes, so that an export of an earlier version is not resumed.
    """

    name: ClassVar[str]
    views: ClassVar[tuple[View, ...]]
    revision: ClassVar[int]

    def cut(self, set_name: str, samples: Sequence[int], shards: int | None) -> list[Part]:
        """The set's parts, in order and without gaps.

        samples: of each of the set's shards; shards: how many parts are requested; None: the format's own choice.

        Raises:
            UsageError: there are too few samples for that many parts.
        """
        ...

    def write_part(self, part: Part, contents: Iterator[Content], files: Outputs) -> ExportCounts:
        """Write a part's files; every sample is counted, as exported or as omitted (left_out)."""
        ...

    def finish(self, exported: ExportedSet, files: Outputs) -> None:
        """Write the files that the set has once, after all parts are finished."""
        ...


def parts_of(set_name: str, bounds: Sequence[int]) -> list[Part]:
    """The parts between consecutive bounds."""
    spans = list(itertools.pairwise(bounds))
    return [Part(set_name, index, len(spans), start, stop) for index, (start, stop) in enumerate(spans)]


def cut_as_shards(set_name: str, samples: Sequence[int], shards: int | None) -> list[Part]:
    """One part per shard of the set, or as many as requested, as even as possible.

    Raises:
        UsageError: fewer samples than parts.
    """
    if shards is None:
        return parts_of(set_name, [0, *itertools.accumulate(samples)])
    return parts_of(set_name, even_bounds(set_name, sum(samples), shards))


def even_bounds(set_name: str, count: int, shards: int, step: int = 1) -> list[int]:
    """Bounds of `shards` runs of samples, each but the last a multiple of `step`, as even as possible.

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
    """A tar open for writing; the end of the block writes its end-of-archive marker."""
    with open(path, "wb", buffering=1 << 20) as stream:
        tar = TarWriter(stream)
        yield tar
        tar.finish()
