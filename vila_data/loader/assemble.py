"""A batch's plan to its arrays: tokens expanded, images decoded, what is broken told."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from vila_data.core.checksums import crc32c
from vila_data.core.errors import DataError, StorageError
from vila_data.core.images import ImageError
from vila_data.core.layout import shard_stem
from vila_data.core.ranges.reader import RangeReader, Span
from vila_data.core.schemas import IGNORED
from vila_data.core.store import Store
from vila_data.encode.image_tokens import ImageTokens
from vila_data.encode.token_set import TokenSample, TokenSet
from vila_data.loader.arrays import BatchArrays, Fault, Origin
from vila_data.loader.descriptors import is_out_of_descriptors
from vila_data.loader.expand import Expansion
from vila_data.loader.layout import BatchSize
from vila_data.loader.normalization import Normalization
from vila_data.loader.pixels import ImageOptions, decode_into, fill_background
from vila_data.mix.rank_share import BatchPlan

Allocate = Callable[[BatchSize], BatchArrays]
STAGES: Final = ("plan", "tokens", "read", "decode", "pack", "blocked")
"""Where a worker's time goes: planning, token files, waiting for images' bytes, decoding them, filling rows, waiting for
a buffer that the trainer has done with."""


class Clock(Protocol):
    """Adds up seconds by stage, and knows what is being done."""

    def spent(self, stage: str, seconds: float) -> None:
        """Add some."""

    def doing(self, what: str) -> None:
        """Say what comes now, for a message if it takes long."""


@dataclass(frozen=True)
class SampleSource:
    """A source of the blend, as the planner counts them: its shard set and the set's token files."""

    set: str
    corpus: str
    tokens: TokenSet


class Rows(NamedTuple):
    """What a batch's rows look like.

    images: how many columns an image takes; pad_id: ids of padding; tokens_per_image, trains_first_label, cuts_images,
    normalization: for the batch to remember (batch.packed.PackedBatch).
    """

    rows: int
    length: int
    images: ImageTokens
    pad_id: int
    tokens_per_image: int | None
    trains_first_label: bool = False
    cuts_images: bool = False
    as_packed: bool = False  # a row for each pack of the batch; `rows` is the most
    normalization: Normalization | None = None


@dataclass
class Prepared:
    """A batch whose tokens are read and whose images' bytes are asked for; None: a sample whose tokens are broken."""

    plan: BatchPlan
    samples: list[Expansion | None]
    origins: list[Origin]
    spans: list[list[Span]] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)

    @property
    def images(self) -> int:
        """Images of all its samples."""
        return sum(len(one.sample.placeholders) for one in self.samples if one is not None)


class Assembler:
    """Makes batches of plans: `prepare` some ahead, then `build` each."""

    def __init__(
        self,
        store: Store,
        sources: Sequence[SampleSource],
        rows: Rows,
        image: ImageOptions,
        ranges: RangeReader,
        clock: Clock,
    ) -> None:
        self._store, self._sources, self._rows = store, sources, rows
        self._image, self._ranges, self._clock = image, ranges, clock

    def prepare(self, plan: BatchPlan) -> Prepared:
        """Read the samples' tokens and ask for their images' bytes."""
        began = time.perf_counter()
        prepared = Prepared(plan, [], [])
        columns = (column.tolist() for column in plan.samples.columns())
        for source, shard, row, pass_, tokens, images in zip(*columns, strict=True):
            held = self._sources[source]
            tar = f"{shard_stem(held.set, shard)}.tar"
            self._clock.doing(f"reading tokens of {held.set}, shard {shard}, row {row}")
            try:
                sample = held.tokens.sample(shard, row)
                one = Expansion.of(sample, self._rows.images, tokens=tokens, images=images)
            except (DataError, StorageError) as error:
                if is_out_of_descriptors(error):
                    raise  # the sample is whole: the process is what lacks something
                where = f"{self._store.location(tar)}: row {row}"
                prepared.faults.append(Fault(where, "", "tokens", str(error), len(prepared.samples)))
                prepared.samples.append(None)
                prepared.spans.append([])
                prepared.origins.append(Origin(held.set, held.corpus, "", "", tar, row, pass_))
                continue
            prepared.samples.append(one)
            prepared.origins.append(Origin(held.set, held.corpus, sample.record_id, sample.key, tar, row, pass_))
            prepared.spans.append(_spans(tar, sample) if images else [])
        self._ranges.want([span for spans in prepared.spans for span in spans])
        self._clock.spent("tokens", time.perf_counter() - began)
        return prepared

    def build(self, prepared: Prepared, allocate: Allocate) -> BatchArrays:
        """Fill the arrays that `allocate` gives; what breaks is added to `prepared.faults`."""
        rows, plan = self._rows, prepared.plan
        sums = np.diff(np.concatenate([np.zeros(1, np.int64), np.cumsum(plan.samples.tokens)])[plan.ends], prepend=0)
        count = max(1, len(plan.ends)) if rows.as_packed else rows.rows
        tails = count - int(np.count_nonzero(sums == rows.length))
        samples = len(prepared.samples)
        arrays = allocate(BatchSize(count, rows.length, prepared.images, samples, samples + tails, self._image.size_px))
        began = time.perf_counter()
        self._lay_out(plan, sums, arrays)
        self._fill(prepared, arrays)
        self._clock.spent("pack", time.perf_counter() - began)
        self._pictures(prepared, arrays)
        return arrays

    def _lay_out(self, plan: BatchPlan, sums: NDArray[np.int64], arrays: BatchArrays) -> None:
        """Write what follows from the lengths alone: positions, segments, their bounds, where samples stand."""
        rows, length, pad_id = len(arrays.ids_BL), self._rows.length, self._rows.pad_id
        tokens = plan.samples.tokens.astype(np.int64)
        sizes = np.diff(plan.ends, prepend=0)
        row_of = np.repeat(np.arange(len(sizes)), sizes)
        firsts = np.cumsum(tokens) - tokens
        firsts -= np.repeat(np.cumsum(sums) - sums, sizes)
        arrays.sample_places[:] = np.stack([row_of, firsts, tokens], axis=1)
        full = np.zeros(rows, np.int64)
        full[: len(sums)] = sums
        tails = np.flatnonzero(full < length)
        bounds = np.concatenate([row_of * length + firsts, tails * length + full[tails], [rows * length]])
        bounds.sort()
        arrays.cu_seqlens[:] = bounds
        places = np.arange(rows * length)
        arrays.positions_BL.reshape(-1)[:] = places - np.repeat(bounds[:-1], np.diff(bounds))
        number = np.arange(1, len(tokens) + 1, dtype=np.int32)
        number -= np.repeat(plan.ends - sizes, sizes).astype(np.int32)
        for row, total in enumerate(full.tolist()):
            own = slice(int(plan.ends[row] - sizes[row]), int(plan.ends[row])) if row < len(sizes) else slice(0, 0)
            arrays.segments_BL[row, :total] = np.repeat(number[own], tokens[own])
            arrays.segments_BL[row, total:] = 0
            arrays.ids_BL[row, total:] = pad_id
            arrays.labels_BL[row, total:] = IGNORED

    def _fill(self, prepared: Prepared, arrays: BatchArrays) -> None:
        """Write the samples' ids and labels, and where their images stand."""
        images = []
        for member, (row, first, columns) in enumerate(arrays.sample_places.tolist()):
            one = prepared.samples[member]
            ids, labels = arrays.ids_BL[row, first : first + columns], arrays.labels_BL[row, first : first + columns]
            if one is None:
                ids[:], labels[:] = self._rows.pad_id, IGNORED
            else:
                images += [(row, first + begin, taken, member) for begin, taken in one.write(ids, labels)]
                if not self._rows.trains_first_label:
                    labels[:1] = IGNORED
        if images:
            arrays.image_places[:] = images

    def _pictures(self, prepared: Prepared, arrays: BatchArrays) -> None:
        """Decode every image into its place."""
        image, began = 0, time.perf_counter()
        reading = 0.0
        for member, one in enumerate(prepared.samples):
            if one is None or not one.sample.placeholders:
                continue
            sample, tar = one.sample, prepared.origins[member].shard
            of_images = zip(prepared.spans[member], sample.images.tolist(), sample.crc32c.tolist(), strict=True)
            for span, name, checksum in of_images:
                fault, waited = self._picture(span, checksum, arrays.pixels_NHWC[image])
                reading += waited
                if fault is not None:
                    where = f"{self._store.location(tar)}: image {name} of {sample.key}, byte {span.offset}"
                    prepared.faults.append(Fault(where, sample.record_id, *fault, member))
                    row, first, columns = arrays.sample_places[member].tolist()
                    arrays.labels_BL[row, first : first + columns] = IGNORED
                image += 1
        self._clock.spent("read", reading)
        self._clock.spent("decode", time.perf_counter() - began - reading)

    def _picture(
        self, span: Span, checksum: int, out: NDArray[np.uint8]
    ) -> tuple[tuple[Literal["read", "decode"], str] | None, float]:
        """Decode one image; the stage that failed and why, the picture then being the background; seconds of reading."""
        began = time.perf_counter()
        self._clock.doing(f"reading {span.path} at byte {span.offset}")
        try:
            jpeg = self._ranges.read(span)
        except StorageError as error:
            if is_out_of_descriptors(error):
                raise
            fill_background(self._image, out)
            return ("read", str(error)), time.perf_counter() - began
        reading = time.perf_counter() - began
        if crc32c(jpeg) != checksum:
            fill_background(self._image, out)
            return ("read", "its bytes have changed: they have another checksum"), reading
        try:
            decode_into(jpeg, self._image, out)
        except ImageError as error:
            fill_background(self._image, out)
            return ("decode", str(error)), reading
        return None, reading


def _spans(tar: str, sample: TokenSample) -> list[Span]:
    places = zip(sample.offsets.tolist(), sample.sizes.tolist(), strict=True)
    return [Span(tar, offset, size) for offset, size in places]
