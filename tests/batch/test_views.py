"""What trainers take says what the batch says; and no sample sees another in a packed model."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch

from tests.batch.made_arrays import VOCABULARY, made_batch
from vila_data.batch.packed import PackedBatch
from vila_data.core.errors import UsageError
from vila_data.core.schemas import IGNORED, IMAGE_ID

IMAGE_TOKEN = VOCABULARY  # texts do not have it
SEEDS = range(8)


def samples_of(batch: PackedBatch) -> list[tuple[list[int], list[int]]]:
    """Ids and labels of each sample, expanded; the first label is never one."""
    found = []
    for row, first, columns in batch.sample_places.tolist():
        ids = batch.ids[row, first : first + columns].tolist()
        found.append((ids, [IGNORED, *batch.labels[row, first + 1 : first + columns].tolist()]))
    return found


def collapsed(batch: PackedBatch, sample: int) -> tuple[list[int], list[int]]:
    """A sample with one placeholder an image."""
    ids, labels = samples_of(batch)[sample]
    begin = int(batch.sample_places[sample, 1])
    places = [(first - begin, size) for _, first, size, owner in batch.image_places.tolist() if owner == sample]
    for at, size in reversed(places):
        ids[at : at + size] = [IMAGE_ID]
        labels[at : at + size] = [IGNORED]
    return ids, labels


def kept(values: torch.Tensor, mask: torch.Tensor) -> list[int]:
    length = int(mask.sum())
    assert mask[:length].all(), "padding is on the right"
    return values[:length].tolist()


@pytest.mark.parametrize("seed", SEEDS)
def test_vila_by_sample(seed: int) -> None:
    batch = made_batch(seed, empty_rows=seed % 2)
    view = batch.vila(rows="samples", pad_id=2)
    assert len(view.input_ids) == len(batch.sample_places)
    assert view.attention_mask.any(0).all()
    for sample, mask in enumerate(view.attention_mask):
        ids, labels = collapsed(batch, sample)
        assert kept(view.input_ids[sample], mask) == ids
        assert kept(view.labels[sample], mask) == labels
        assert (view.input_ids[sample][~mask] == 2).all()
        assert (view.labels[sample][~mask] == IGNORED).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_vila_by_pack(seed: int) -> None:
    batch = made_batch(seed, empty_rows=seed % 2)
    view = batch.vila()
    assert len(view.input_ids) == batch.rows
    for row, mask in enumerate(view.attention_mask):
        owned = [n for n, place in enumerate(batch.sample_places.tolist()) if place[0] == row]
        assert kept(view.input_ids[row], mask) == [i for n in owned for i in collapsed(batch, n)[0]]
        assert kept(view.labels[row], mask) == [i for n in owned for i in collapsed(batch, n)[1]]
    assert int((view.input_ids == IMAGE_ID).sum()) == len(view.images) == len(batch.pixels)
    assert view.seqlens.tolist() == batch.sample_places[:, 2].tolist()
    assert view.seqlens.dtype == torch.int32
    assert set(view.as_dict()) == {"input_ids", "attention_mask", "labels", "images"}


def cut_batch() -> PackedBatch:
    found = (made_batch(seed, cut=True, tokens_per_image=6) for seed in range(50))
    return next(batch for batch in found if len(set(batch.image_places[:, 2].tolist())) > 1)


def test_a_cut_image_is_refused_where_it_cannot_be_said() -> None:
    batch = cut_batch()
    row, first, columns, _ = next(place for place in batch.image_places.tolist() if place[2] < 6)
    for view in (lambda: batch.vila(), lambda: batch.hugging_face(IMAGE_TOKEN)):
        with pytest.raises(UsageError, match=f"row {row} column {first}: an image takes {columns} columns of 6"):
            view()
    whole = made_batch(0)
    with pytest.raises(UsageError, match="takes 4 columns of 5"):
        whole.vila(tokens_per_image=5)
    assert batch.varlen().ids.shape == (batch.tokens,)


def test_text_with_the_image_token_is_refused() -> None:
    batch = made_batch(0)
    for view in (lambda: batch.hugging_face(1), lambda: batch.varlen(image_token_id=1)):
        with pytest.raises(UsageError, match="token 1"):
            view()
    batch.hugging_face(0)  # the pad id is no text
    with pytest.raises(UsageError, match="bool4d, additive, none"):
        batch.hugging_face(IMAGE_TOKEN, mask="dense")  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", SEEDS)
def test_varlen(seed: int) -> None:
    batch = made_batch(seed, cut=True, empty_rows=seed % 2)
    view = batch.varlen()
    assert view.cu_seqlens.dtype == torch.int32
    samples = samples_of(batch)
    bounds = view.cu_seqlens.tolist()
    assert bounds[-1] == len(view.ids) == batch.tokens
    assert view.max_seqlen == max(np.diff(bounds))
    for sample, (begin, end) in enumerate(itertools.pairwise(bounds)):
        assert (view.ids[begin:end].tolist(), view.labels[begin:end].tolist()) == samples[sample]
        assert view.positions[begin:end].tolist() == list(range(end - begin))
    image = torch.zeros(len(view.ids), dtype=torch.bool)
    for (first, tokens, sample), place in zip(view.image_places.tolist(), batch.image_places.tolist(), strict=True):
        image[first : first + tokens] = True
        assert (tokens, sample) == (place[2], place[3])
        assert bounds[sample] <= first < first + tokens <= bounds[sample + 1]
    assert torch.equal(image, view.ids == IMAGE_ID)


def test_views_after_trim_are_the_same() -> None:
    batch = made_batch(6, length=300, rows=2)
    short = batch.trim(8)
    assert short.length < 300
    for name in ("vila", "varlen"):
        for one, other in zip(*(vars(getattr(b, name)()).values() for b in (batch, short)), strict=True):
            assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def test_a_batch_of_padding_alone() -> None:
    batch = made_batch(0, rows=2, empty_rows=2)
    assert batch.vila().input_ids.shape == (2, 0)
    assert batch.vila(rows="samples").input_ids.shape[0] == 0
    assert batch.varlen().cu_seqlens.tolist() == [0]
    assert batch.varlen().pixels is None
    view = batch.hugging_face(IMAGE_TOKEN)
    assert "pixel_values" not in view.as_dict()
    assert (view.labels == IGNORED).all()


@lru_cache(maxsize=1)
def tiny_llava() -> Any:
    """A LlavaForConditionalGeneration of a few thousand weights: 4 tokens an image of 8 x 8."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    torch.manual_seed(1)
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4
    )
    text = LlamaConfig(
        vocab_size=VOCABULARY + 1,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE_TOKEN,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    return LlavaForConditionalGeneration(config).eval()


def logits_alone(batch: PackedBatch, sample: int) -> torch.Tensor:
    row, first, columns = batch.sample_places[sample].tolist()
    ids = batch.ids[row : row + 1, first : first + columns].clone()
    ids[ids == IMAGE_ID] = IMAGE_TOKEN
    own = batch.image_places[:, 3] == sample
    pictures = {"pixel_values": batch.normalised()[own]} if own.any() else {}
    logits: torch.Tensor = tiny_llava()(input_ids=ids, **pictures).logits[0]
    return logits


@pytest.mark.parametrize("mask", ["bool4d", "additive"])
def test_logits_in_a_pack_are_those_of_the_sample_alone(mask: Any) -> None:
    batch = made_batch(11, rows=2, length=48)
    assert len(batch.sample_places) > 3
    assert len(batch.pixels) > 2
    view = batch.hugging_face(IMAGE_TOKEN, mask=mask)
    with torch.no_grad():
        output = tiny_llava()(**view.as_dict())
        leaking = tiny_llava()(**(view.as_dict() | {"attention_mask": None})).logits
        compared = 0
        for sample, (row, first, columns) in enumerate(batch.sample_places.tolist()):
            alone = logits_alone(batch, sample)
            place = (row, slice(first, first + columns))
            assert torch.allclose(output.logits[place], alone, atol=1e-5)
            compared += int(first > 0 and not torch.allclose(leaking[place], alone, atol=1e-3))
    assert compared, "without the mask nothing differs: this test proves nothing"
    assert output.loss.isfinite()


def test_the_loss_of_a_pack_is_that_of_its_samples() -> None:
    """Labels are shifted inside the model: the first token of a sample must not be predicted from the last one's end."""
    batch = made_batch(11, rows=2, length=48)
    view = batch.hugging_face(IMAGE_TOKEN)
    with torch.no_grad():
        loss = tiny_llava()(**view.as_dict()).loss
        total, count = 0.0, 0
        for sample, (row, first, columns) in enumerate(batch.sample_places.tolist()):
            labels = batch.labels[row, first + 1 : first + columns]
            total += float(torch.nn.functional.cross_entropy(logits_alone(batch, sample)[:-1], labels, reduction="sum"))
            count += int((labels != IGNORED).sum())
    assert float(loss) == pytest.approx(total / count, abs=1e-5)


def test_varlen_is_what_varlen_attention_takes() -> None:
    """Attention segment by segment, as FlashAttention does with these bounds, against the dense mask over the rows."""
    torch.manual_seed(0)
    batch = made_batch(11, rows=2, length=48)
    view = batch.varlen(image_token_id=IMAGE_TOKEN)
    named = view.as_dict()
    assert named["input_ids"].shape == named["position_ids"].shape == named["labels"].shape == (1, batch.tokens)
    assert not (named["input_ids"] == IMAGE_ID).any()
    table = torch.randn(VOCABULARY + 1, 16)
    mask = batch.hugging_face(IMAGE_TOKEN)
    rows = table[mask.input_ids][:, None]
    dense = torch.nn.functional.scaled_dot_product_attention(rows, rows, rows, attn_mask=mask.attention_mask)[:, 0]
    bounds = named["cu_seq_lens_q"].tolist()
    for (row, first, columns), begin, end in zip(batch.sample_places.tolist(), bounds, bounds[1:], strict=False):
        own = table[named["input_ids"][0, begin:end]][None, None]
        alone = torch.nn.functional.scaled_dot_product_attention(own, own, own, is_causal=True)[0, 0]
        assert torch.allclose(alone, dense[row, first : first + columns], atol=1e-5)
        assert end - begin <= named["max_length_q"] == named["max_length_k"]


def test_pixels_of_a_type() -> None:
    batch = made_batch(0)
    assert batch.vila(dtype=torch.bfloat16).images.dtype == torch.bfloat16
    view = batch.hugging_face(IMAGE_TOKEN, mask="additive", dtype=torch.bfloat16)
    assert view.pixel_values is not None and view.pixel_values.dtype == torch.bfloat16
    assert view.attention_mask is not None and view.attention_mask.dtype == torch.bfloat16
    assert batch.hugging_face(IMAGE_TOKEN, mask="none").attention_mask is None
    nothing = replace(batch, pixels=batch.pixels[:0], image_places=batch.image_places[:0])
    assert nothing.varlen().pixels is None
