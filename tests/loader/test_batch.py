"""PackedBatch: views over a worker's memory, which live as long as they must and no longer."""

from __future__ import annotations

import copy
import dataclasses
import gc
import itertools
import mmap
import pickle
import re
import weakref
from collections.abc import Callable

import numpy as np
import pytest
import torch

from tests.loader.made_arrays import made_arrays, made_batch
from vila_data.core.errors import UsageError
from vila_data.core.tables import IGNORED, IMAGE_ID
from vila_data.loader.arrays import BatchArrays
from vila_data.loader.batch import PackedBatch, segment_bounds

TENSORS = ("ids", "labels", "positions", "segments", "cu_seqlens", "pixels", "image_spans", "sample_spans")


class Slot:
    """Memory that can be given back."""


def of(arrays: BatchArrays, keep: object = None) -> PackedBatch:
    return PackedBatch.of(arrays, origins=(), faults=(), packs=1, epoch=0, step=0, keep=keep)


def same(one: PackedBatch, other: PackedBatch) -> bool:
    fields = [field.name for field in dataclasses.fields(PackedBatch)]
    pairs = [(getattr(one, name), getattr(other, name)) for name in fields]
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


@pytest.mark.parametrize("seed", range(20))
def test_the_makers_arrays_are_consistent(seed: int) -> None:
    """What other tests build on: each field says the same as the others."""
    arrays = made_arrays(seed, cut=seed % 2 == 0, empty_rows=seed % 3)
    rows, length = arrays.ids_BL.shape
    assert np.array_equal(arrays.cu_seqlens, segment_bounds(arrays.sample_spans, rows, length))
    image = np.zeros((rows, length), bool)
    for row, first, columns, sample in arrays.image_spans:
        assert not image[row, first : first + columns].any()
        image[row, first : first + columns] = True
        in_row, begin, size = arrays.sample_spans[sample]
        assert in_row == row
        assert begin <= first < first + columns <= begin + size
    assert np.array_equal(image, arrays.ids_BL == IMAGE_ID)
    assert (arrays.labels_BL[image | (arrays.segments_BL == 0)] == IGNORED).all()
    assert len(arrays.pixels_NHWC) == len(arrays.image_spans)
    for row, first, columns in arrays.sample_spans:
        assert len(set(arrays.segments_BL[row, first : first + columns])) == 1
        assert np.array_equal(arrays.positions_BL[row, first : first + columns], np.arange(columns))


def test_tensors_are_views_of_the_arrays() -> None:
    arrays = made_arrays(1)
    batch = of(arrays)
    arrays.ids_BL[0, 0] = 4321
    arrays.pixels_NHWC[0, 1, 2] = (5, 6, 7)
    assert batch.ids[0, 0] == 4321
    assert batch.pixels[0, :, 1, 2].tolist() == [5, 6, 7]
    assert batch.pixels.is_contiguous(memory_format=torch.channels_last)
    assert [getattr(batch, name).dtype for name in TENSORS] == [torch.int64] * 3 + [torch.int32] * 2 + [
        torch.uint8,
        torch.int64,
        torch.int64,
    ]
    assert batch.max_seqlen == int(np.diff(arrays.cu_seqlens).max())
    assert batch.tokens == int((arrays.segments_BL > 0).sum())
    assert batch.fill == pytest.approx(batch.tokens / (batch.rows * batch.length))


@pytest.mark.parametrize("name", TENSORS)
def test_one_tensor_or_a_slice_of_it_keeps_the_memory(name: str) -> None:
    slot = Slot()
    dead = weakref.ref(slot)
    batch = of(made_arrays(1), keep=slot)
    part = getattr(batch, name)[1:]
    del slot, batch
    gc.collect()
    assert dead() is not None
    del part
    gc.collect()
    assert dead() is None


def test_memory_given_back_can_be_unmapped() -> None:
    """As slots are: one map, arrays over it, gone with the last tensor."""
    made = made_arrays(2)
    memory = mmap.mmap(-1, made.ids_BL.nbytes)
    mapped = np.frombuffer(memory, np.int64).reshape(made.ids_BL.shape)
    mapped[:] = made.ids_BL
    batch = of(dataclasses.replace(made, ids_BL=mapped), keep=Slot())
    row = batch.ids[0]
    del batch, mapped
    with pytest.raises(BufferError):
        memory.close()
    assert torch.equal(row, torch.from_numpy(made.ids_BL[0]))
    del row
    memory.close()


def test_pickle_and_deepcopy_leave_the_slot_behind() -> None:
    slot = Slot()
    dead = weakref.ref(slot)
    batch = made_batch(3, keep=slot)
    copies = [pickle.loads(pickle.dumps(batch)), copy.deepcopy(batch)]
    assert all(same(batch, copied) for copied in copies)
    del slot, batch
    gc.collect()
    assert dead() is None
    assert copies[0].pixels.shape[1] == 3


@pytest.mark.parametrize("seed", range(12))
def test_trim_cuts_padding_alone(seed: int) -> None:
    batch = made_batch(seed, length=200, rows=2, empty_rows=seed % 2)
    used = int((batch.segments > 0).any(0).nonzero().max()) + 1
    short = batch.trim(16)
    assert short.length == min(200, -(-used // 16) * 16)
    assert torch.equal(short.ids, batch.ids[:, : short.length])
    assert (batch.segments[:, short.length :] == 0).all()
    assert short.tokens == batch.tokens == int((short.segments > 0).sum())
    fresh = segment_bounds(batch.sample_spans.numpy(), 2, short.length)
    assert short.cu_seqlens.tolist() == fresh.tolist()
    assert short.max_seqlen == int(np.diff(fresh).max())
    flat = short.segments.reshape(-1)
    for start, stop in itertools.pairwise(fresh):
        assert len(flat[start:stop].unique()) == 1
    assert same(short.trim(16), short)


def test_a_batch_of_padding_alone() -> None:
    batch = made_batch(0, rows=2, empty_rows=2, length=64)
    assert batch.tokens == batch.fill == len(batch.origins) == len(batch.pixels) == 0
    assert batch.cu_seqlens.tolist() == [0, 64, 128]
    assert batch.trim(8).length == 8
    assert batch.normalized().shape == (0, 3, 8, 8)
    assert "0 packs in 2 x 64" in repr(batch)


def test_to_a_device_keeps_lineage_and_places() -> None:
    batch = made_batch(5)
    there = batch.to("meta")
    assert there.ids.is_meta
    assert there.pixels.is_contiguous(memory_format=torch.channels_last)
    assert there.sample_spans is batch.sample_spans
    assert there.origins == batch.origins
    assert same(batch.to("cpu"), batch)
    if not torch.cuda.is_available():
        assert batch.pin() is batch
    assert repr(batch).startswith("PackedBatch(epoch 1 step 7: 3 packs in 3 x 64, ")
    assert "images of 8x8" in repr(batch)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda batch: batch.trim(0), "multiple_of must be at least 1, found 0"),
        (lambda batch: batch.trim(-5), "multiple_of must be at least 1, found -5"),
        (lambda batch: batch.normalized(mean=(0.5,), std=1), "mean must be one number or three"),
        (lambda batch: batch.normalized(mean=0, std=(1, 0, 1)), "std one positive number or three"),
        (lambda batch: batch.normalized(std=(1, 1, 1)), "pass both mean and std, or neither"),
        (lambda batch: batch.normalized(torch.uint8), "dtype must be a float type, found torch.uint8"),
        (lambda batch: batch.vila(rows="pack"), "rows must be one of packs, samples, found 'pack'"),
    ],
)
def test_wrong_arguments_are_refused(call: Callable[[PackedBatch], object], said: str) -> None:
    with pytest.raises(UsageError, match=re.escape(said)):
        call(made_batch(0))


@pytest.mark.parametrize(
    ("old", "new"), [("longest", "max_seqlen"), ("image_places", "image_spans"), ("sample_places", "sample_spans")]
)
def test_old_names_of_fields_are_accepted(old: str, new: str) -> None:
    batch = made_batch(1)
    with pytest.warns(DeprecationWarning, match=f"{old} is now {new}"):
        assert getattr(batch, old) is getattr(batch, new)
    with pytest.warns(DeprecationWarning, match="image_places is now image_spans"):
        assert len(batch.varlen(dtype=torch.uint8).image_places) == len(batch.image_spans)
