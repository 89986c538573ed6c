"""Turn a planned batch into arrays: expand tokens, decode images, report broken samples."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vila_data.core.checksums import crc32c
from vila_data.core.errors import DataError, StorageError
from vila_data.core.images import ImageError
from vila_data.core.layout import shard_stem
from vila_data.core.ranges.reader import RangeReader, Span
from vila_data.core.store import Store
from vila_data.core.tables import IGNORED, IMAGE_ID
from vila_data.encode.image_tokens import ImageTokens
from vila_data.encode.token_set import TokenSample, TokenSet
from vila_data.loader.arrays import BatchArrays, BatchSize, Fault, Origin
from vila_data.loader.faults import is_too_many_files
from vila_data.loader.pixels import ImageOptions, Normalization, decode_into, fill_background
from vila_data.mix.rank_share import BatchPlan

Allocate = Callable[[BatchSize], BatchArrays]
STAGES: Final = ("plan", "tokens", "read", "decode", "pack", "blocked")
"""Where a worker's time goes: planning, token files, waiting for images' bytes, decoding them, filling rows, waiting for
a buffer that the trainer releases."""
STATUS_BYTES: Final = 1024


class StageClock:
    """Seconds by stage, and what is being done now.

    status: STATUS_BYTES of memory in which another process can read what this one does, even if it hangs.
    """

    def __init__(self, status: Any = None) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self._status = status

    def spent(self, stage: str, seconds: float) -> None:
        """Add some."""
        self.seconds[stage] += seconds

    def doing(self, what: str) -> None:
        """Set what is being done, for a message if it takes long."""
        if self._status is not None:
            self._status[:STATUS_BYTES] = what.encode()[: STATUS_BYTES - 1].ljust(STATUS_BYTES, b"\0")

    @contextmanager
    def blocked(self) -> Iterator[None]:
        """Count the time inside as waiting for the trainer."""
        self.doing("waiting for the trainer")
        began = time.perf_counter()
        yield
        self.spent("blocked", time.perf_counter() - began)


class SampleSource(NamedTuple):
    """A source of the blend, in the planner's order: its shard set and the set's token files."""

    set: str
    corpus: str
    tokens: TokenSet


class RowLayout(NamedTuple):
    """What a batch's rows look like.

    rows: how many there are, or with `row_per_pack` at most, where each pack of the batch has a row and no others exist.
    policy: how many columns an image takes; pad_id: ids of padding. tokens_per_image, trains_first_label, cuts_images
    and normalization are passed on to PackedBatch.
    """

    rows: int
    length: int
    policy: ImageTokens
    pad_id: int
    tokens_per_image: int | None
    trains_first_label: bool = False
    cuts_images: bool = False
    row_per_pack: bool = False
    normalization: Normalization | None = None


@dataclass(frozen=True, slots=True)
class Expansion:
    """A token file's row with its images expanded, verified to be as its pack was planned.

    wide: columns of each image; moved: by how many columns the images before each of them, and before the end, move it.
    """

    sample: TokenSample
    wide: Sequence[int]
    moved: Sequence[int]

    @staticmethod
    def of(sample: TokenSample, policy: ImageTokens, *, tokens: int, images: int) -> Expansion:
        """The sample with as many columns per image as the policy says, the last one fewer if its length ends inside it.

        Raises:
            DataError: it does not have the `tokens` and `images` that its pack was planned with.
        """
        if sample.tokens != tokens or len(sample.images) != images:
            raise DataError(
                f"found {sample.tokens} tokens and {len(sample.images)} images, but lengths.parquet says {tokens} and {images}"
            )
        wide = policy.counts(sample.widths, sample.heights) if images else []
        moved = [0, *accumulate([columns - 1 for columns in wide])]
        whole = len(sample.ids) + moved[-1]
        least = whole - wide[-1] + 1 if wide else whole
        if len(sample.placeholders) != images or not least <= tokens <= whole:
            raise DataError(
                f"found {whole} columns and {len(sample.placeholders)} image placeholders, but {tokens} and {images} were planned"
            )
        return Expansion(sample, wide, moved)

    def write(self, ids: NDArray[np.int64], labels: NDArray[np.int64]) -> list[tuple[int, int]]:
        """Fill `ids` and `labels` int64[tokens]; returns each image's first column and columns."""
        own, columns = self.sample.ids, len(ids)
        labels[:] = IGNORED
        for first, last in self.sample.trained.tolist():
            self._write_labels(first, last, labels)
        spans, column, read = [], 0, 0
        for placeholder, wide in zip(self.sample.placeholders, self.wide, strict=True):
            stop = column + placeholder - read
            ids[column:stop] = own[read:placeholder]
            column = min(stop + wide, columns)
            ids[stop:column] = IMAGE_ID
            spans.append((stop, column - stop))
            read = placeholder + 1
        ids[column:] = own[read : read + columns - column]
        return spans

    def _write_labels(self, first: int, last: int, labels: NDArray[np.int64]) -> None:
        """Write the labels of `ids[first:last]`; images among them have none."""
        own, placeholders = self.sample.ids, self.sample.placeholders
        while first < last:
            before = bisect_left(placeholders, first)
            stop = min(last, placeholders[before]) if before < len(placeholders) else last
            column = first + self.moved[before]
            labels[column : column + stop - first] = own[first:stop][: max(0, len(labels) - column)]
            first = stop + 1


@dataclass
class PendingBatch:
    """A batch whose tokens are read and whose images' bytes are requested. samples: None where the tokens are broken."""

    plan: BatchPlan
    samples: list[Expansion | None] = field(default_factory=list)
    origins: list[Origin] = field(default_factory=list)
    spans: list[list[Span]] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)


class Assembler:
    """Makes batches from plans: `prepare` a few in advance, then `build` each."""

    def __init__(
        self,
        store: Store,
        sources: Sequence[SampleSource],
        layout: RowLayout,
        image: ImageOptions,
        ranges: RangeReader,
        clock: StageClock,
    ) -> None:
        self._store, self._sources, self._layout = store, sources, layout
        self._image, self._ranges, self._clock = image, ranges, clock

    def prepare(self, plan: BatchPlan) -> PendingBatch:
        """Read the samples' tokens and request their images' bytes."""
        began = time.perf_counter()
        pending = PendingBatch(plan)
        columns = (column.tolist() for column in plan.samples.columns())
        for number, shard, row, pass_, tokens, images in zip(*columns, strict=True):
            source = self._sources[number]
            tar = f"{shard_stem(source.set, shard)}.tar"
            self._clock.doing(f"reading tokens of {source.set}, shard {shard}, row {row}")
            record_id = key = ""
            sample: Expansion | None = None
            spans: list[Span] = []
            try:
                found = source.tokens.sample(shard, row)
                sample = Expansion.of(found, self._layout.policy, tokens=tokens, images=images)
            except (DataError, StorageError) as error:
                if is_too_many_files(error):
                    raise  # the sample is whole
                where = f"{self._store.location(tar)}: row {row}"
                pending.faults.append(Fault(where, "", "tokens", str(error), len(pending.samples)))
            else:
                record_id, key = found.record_id, found.key
                if images:
                    bounds = zip(found.offsets.tolist(), found.sizes.tolist(), strict=True)
                    spans = [Span(tar, offset, size) for offset, size in bounds]
            pending.samples.append(sample)
            pending.spans.append(spans)
            pending.origins.append(Origin(source.set, source.corpus, record_id, key, tar, row, pass_))
        self._ranges.want([span for spans in pending.spans for span in spans])
        self._clock.spent("tokens", time.perf_counter() - began)
        return pending

    def build(self, pending: PendingBatch, allocate: Allocate) -> BatchArrays:
        """Fill the arrays that `allocate` gives; adds what is broken to `pending.faults`."""
        layout, plan = self._layout, pending.plan
        sums = np.diff(np.concatenate([np.zeros(1, np.int64), np.cumsum(plan.samples.tokens)])[plan.ends], prepend=0)
        rows = max(1, len(plan.ends)) if layout.row_per_pack else layout.rows
        padded = rows - int(np.count_nonzero(sums == layout.length))
        images = sum(len(one.sample.placeholders) for one in pending.samples if one is not None)
        samples = len(pending.samples)
        arrays = allocate(BatchSize(rows, layout.length, images, samples, samples + padded, self._image.size_px))
        began = time.perf_counter()
        self._lay_out(plan, sums, arrays)
        self._write_tokens(pending, arrays)
        self._clock.spent("pack", time.perf_counter() - began)
        self._decode_images(pending, arrays)
        return arrays

    def _lay_out(self, plan: BatchPlan, sums: NDArray[np.int64], arrays: BatchArrays) -> None:
        """Write what follows from the lengths alone: spans, segments and their bounds, positions, padding."""
        rows, length, pad_id = len(arrays.ids_BL), self._layout.length, self._layout.pad_id
        tokens = plan.samples.tokens.astype(np.int64)
        sizes = np.diff(plan.ends, prepend=0)
        row_of = np.repeat(np.arange(len(sizes)), sizes)
        firsts = np.cumsum(tokens) - tokens
        firsts -= np.repeat(np.cumsum(sums) - sums, sizes)
        arrays.sample_spans[:] = np.stack([row_of, firsts, tokens], axis=1)
        used = np.zeros(rows, np.int64)
        used[: len(sums)] = sums
        padded = np.flatnonzero(used < length)
        bounds = np.concatenate([row_of * length + firsts, padded * length + used[padded], [rows * length]])
        bounds.sort()
        arrays.cu_seqlens[:] = bounds
        arrays.positions_BL.reshape(-1)[:] = np.arange(rows * length) - np.repeat(bounds[:-1], np.diff(bounds))
        number = np.arange(1, len(tokens) + 1, dtype=np.int32)
        number -= np.repeat(plan.ends - sizes, sizes).astype(np.int32)
        for row, total in enumerate(used.tolist()):
            own = slice(int(plan.ends[row] - sizes[row]), int(plan.ends[row])) if row < len(sizes) else slice(0, 0)
            arrays.segments_BL[row, :total] = np.repeat(number[own], tokens[own])
            arrays.segments_BL[row, total:] = 0
            arrays.ids_BL[row, total:] = pad_id
            arrays.labels_BL[row, total:] = IGNORED

    def _write_tokens(self, pending: PendingBatch, arrays: BatchArrays) -> None:
        """Write the samples' ids and labels, and their images' spans."""
        images = []
        for member, (row, first, columns) in enumerate(arrays.sample_spans.tolist()):
            one = pending.samples[member]
            ids, labels = arrays.ids_BL[row, first : first + columns], arrays.labels_BL[row, first : first + columns]
            if one is None:
                ids[:], labels[:] = self._layout.pad_id, IGNORED
            else:
                images += [(row, first + begin, taken, member) for begin, taken in one.write(ids, labels)]
                if not self._layout.trains_first_label:
                    labels[:1] = IGNORED
        if images:
            arrays.image_spans[:] = images

    def _decode_images(self, pending: PendingBatch, arrays: BatchArrays) -> None:
        """Decode all images; a broken one becomes background, and its sample loses its labels."""
        image, began, read_before = 0, time.perf_counter(), self._clock.seconds["read"]
        for member, one in enumerate(pending.samples):
            if one is None or not one.sample.placeholders:
                continue
            sample, tar = one.sample, pending.origins[member].shard
            of_images = zip(pending.spans[member], sample.images.tolist(), sample.crc32c.tolist(), strict=True)
            for span, name, checksum in of_images:
                out = arrays.pixels_NHWC[image]
                broken = self._decode_image(span, checksum, out)
                if broken is not None:
                    fill_background(self._image, out)
                    where = f"{self._store.location(tar)}: image {name} of {sample.key}, byte {span.offset}"
                    pending.faults.append(Fault(where, sample.record_id, *broken, member))
                    row, first, columns = arrays.sample_spans[member].tolist()
                    arrays.labels_BL[row, first : first + columns] = IGNORED
                image += 1
        reading = self._clock.seconds["read"] - read_before
        self._clock.spent("decode", time.perf_counter() - began - reading)

    def _decode_image(
        self, span: Span, checksum: int, out: NDArray[np.uint8]
    ) -> tuple[Literal["read", "decode"], str] | None:
        """Read and decode one image; returns the stage that failed and why."""
        began = time.perf_counter()
        self._clock.doing(f"reading {span.path} at byte {span.offset}")
        try:
            jpeg = self._ranges.read(span)
        except StorageError as error:
            if is_too_many_files(error):
                raise
            return "read", str(error)
        finally:
            self._clock.spent("read", time.perf_counter() - began)
        if crc32c(jpeg) != checksum:
            return "read", "checksum mismatch: its bytes have changed since encoding"
        try:
            decode_into(jpeg, self._image, out)
        except ImageError as error:
            return "decode", str(error)
        return None
