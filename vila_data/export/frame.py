"""Export one shard set: parts with receipts, then what the set has once, then the set's receipt.

A part commits as every unit of work does (core.receipts), so whoever is killed and relaunched passes over the parts that
are there and ends with the same bytes. Memory: one sample, and the index of one shard.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from vila_data.core.errors import DataError
from vila_data.core.receipts import Receipt, committing, fingerprint, read_receipt, valid_receipt
from vila_data.core.store import Store
from vila_data.export.content import Content, read_content
from vila_data.export.format import RECEIPTS, DonePart, Format, Part, Whole
from vila_data.shard.config import View
from vila_data.shard.manifest import Manifest
from vila_data.shard.read import ShardSetReader


@dataclass(frozen=True)
class SetExport:
    """A set on its way out. source: the set's folder; fingerprint: of its manifest; out: the export's folder."""

    source: Store
    manifest: Manifest
    fingerprint: str
    out: Store
    format: Format
    shards: int | None = None

    @property
    def view(self) -> View:
        """The set's view."""
        view: View = self.manifest.view  # type: ignore[assignment]
        return view

    @cached_property
    def parts(self) -> list[Part]:
        """The parts, in the order of the set's samples."""
        samples = [shard.samples for shard in self.manifest.shards]
        parts = self.format.cut(self.manifest.name, samples, self.shards)
        edges = [0, *(part.stop for part in parts)]
        assert [part.start for part in parts] == edges[:-1] and edges[-1] == sum(samples)
        return parts

    @property
    def receipt_path(self) -> str:
        """The set's receipt, written last."""
        return f"{RECEIPTS}/{self.manifest.name}/set.json"

    def finished(self) -> Receipt | None:
        """The set's receipt, where all of its files are there with their sizes."""
        receipt = valid_receipt(self.out, self.receipt_path, self._inputs())
        if receipt is None:
            return None
        for part in self.parts:
            found = read_receipt(self.out, part.receipt)
            if found is None or found.inputs != self._part_inputs(part):
                return None
            for path, facts in found.outputs.items():
                if path != part.rows and self.out.size(path) != facts["bytes"]:
                    return None
        return receipt

    def written(self, part: Part) -> DonePart | None:
        """A part that an earlier launch has written."""
        receipt = valid_receipt(self.out, part.receipt, self._part_inputs(part))
        return _done(part, receipt) if receipt is not None else None

    def write(self, part: Part) -> DonePart:
        """Write one part.

        Raises:
            DataError: a sample cannot be read.
        """
        with committing(self.out, part.receipt, self._part_inputs(part)) as files:
            tally = self.format.write_part(part, self._contents(part), files)
            counted = tally.exported + sum(tally.left_out.values())
            if counted != part.stop - part.start:
                raise DataError(
                    f"{self.source.url}: samples {part.start} to {part.stop}: {counted} of {part.stop - part.start} "
                    "exported or left out: the shards do not match the manifest; run check on the set"
                )
            files.counts = tally.counts()
        assert files.receipt is not None
        return _done(part, files.receipt)

    def finish(self, done: Sequence[DonePart]) -> Receipt:
        """Write the set's own files and its receipt, and remove what was needed only for them; done: every part.

        Raises:
            DataError: a run has laid the set out anew meanwhile, so parts may be of two orders.
        """
        assert [one.part for one in done] == self.parts
        there = self.source.size("manifest.json") is not None
        if not there or hashlib.sha256(self.source.read("manifest.json")).hexdigest() != self.fingerprint:
            raise DataError(
                f"{self.source.url}: the set has changed while it was exported: delete {self.out.url} and export again"
            )
        with committing(self.out, self.receipt_path, self._inputs()) as files:
            self.format.finish(Whole(self.manifest.name, self.view, self.fingerprint, done, self.out), files)
            files.counts = self._totals(done)
        self.remove_rows()
        assert files.receipt is not None
        return files.receipt

    def remove_rows(self) -> None:
        """Remove what was needed only for the set's own files, or what a kill left of it when they were written."""
        for path in self.out.files(f"{RECEIPTS}/{self.manifest.name}"):
            if path.endswith(".rows"):
                self.out.remove(path)

    def _totals(self, done: Sequence[DonePart]) -> dict[str, Any]:
        left_out, adapted = Counter[str](), Counter[str]()
        for one in done:
            left_out.update(one.counts["left_out"])
            adapted.update(one.counts["adapted"])
        return {
            "samples": self.manifest.samples,
            "exported": sum(one.counts["exported"] for one in done),
            "images": sum(one.counts["images"] for one in done),
            "left_out": dict(sorted(left_out.items())),
            "adapted": dict(sorted(adapted.items())),
            "parts": len(done),
            "files": sum(one.files for one in done),
            "bytes": sum(one.bytes for one in done),
        }

    def _contents(self, part: Part) -> Iterator[Content]:
        reader = ShardSetReader(self.source, self.manifest)
        for sample in reader.between(part.start, part.stop):
            yield read_content(sample, self.view)

    def _inputs(self) -> str:
        spans = [(part.start, part.stop) for part in self.parts]
        return fingerprint([self.format.name, self.format.revision, self.fingerprint, spans])

    def _part_inputs(self, part: Part) -> str:
        where = [part.index, part.of, part.start, part.stop]
        return fingerprint([self.format.name, self.format.revision, self.fingerprint, *where])


def _done(part: Part, receipt: Receipt) -> DonePart:
    """What is kept of a part's receipt, which has an entry a picture where pictures are files."""
    sizes = {path: facts["bytes"] for path, facts in receipt.outputs.items() if path != part.rows}
    flat = {path: size for path, size in sizes.items() if path.count("/") == 1}
    return DonePart(part, receipt.counts, len(sizes), sum(sizes.values()), flat)
