"""Samples of a packed batch in models of transformers: each is as it is alone, in every view, attention and family.

Attention by FlashAttention is acted: the arguments that it gets are followed by plain attention, segment by segment.
"""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.loader.made_arrays import made_batch
from tests.loader.tiny_models import FAMILIES, IMAGE_TOKEN, alone, has_images, packed_batch, tiny_model, worst
from vila_data.core.errors import UsageError
from vila_data.core.tables import IGNORED, IMAGE_ID
from vila_data.loader.batch import PackedBatch
from vila_data.loader.formats import ATTENTION_OF_MASK, MASKS

ATTENTIONS = ("eager", "sdpa", "flex_attention", "varlen_reference")
WINDOWS = ("llava_mistral_window", "gemma3_text")
NEAR = 1e-5


@pytest.fixture(autouse=True)
def not_compiled() -> Iterator[None]:
    """Flex attention as it is written: compiling it takes half a minute, and is a test of its own."""
    with torch.compiler.set_stance("force_eager"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def agrees(family: str, attention: str, batch: PackedBatch, inputs: dict[str, Any]) -> bool:
    """Whether the logits and the loss are those of the samples alone, under eager attention; never only one of them."""
    model = tiny_model(family, attention)
    with torch.no_grad():
        found = model(**inputs)
    difference, loss, labels = worst(model, batch, found.logits, tiny_model(family, "eager"))
    assert labels > 20
    near = difference < NEAR
    assert (abs(float(found.loss) - loss) < NEAR) == near, (difference, float(found.loss), loss)
    return near


def test_the_batch_has_the_edges() -> None:
    batch = packed_batch(FAMILIES[0])
    lengths = batch.sample_spans[:, 2].tolist()
    assert batch.rows == 6 and lengths[-5:] == [1, 1, 5, 1, 48]
    assert batch.segments.amax(1).tolist()[3:] == [4, 1, 0]
    assert (batch.segments[:, -1] > 0).tolist()[4:] == [True, False]
    assert {columns for _, _, columns, _ in batch.image_spans.tolist()} > {1, 4}
    assert packed_batch("qwen2_text").image_spans.shape == (0, 4)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_default_view_in_any_attention(family: str, attention: str) -> None:
    batch = packed_batch(family)
    inputs = batch.hugging_face(IMAGE_TOKEN).as_dict()
    assert "attention_mask" not in inputs and inputs["use_cache"] is False
    assert ("pixel_values" in inputs) == has_images(family)
    assert agrees(family, attention, batch, inputs)


@pytest.mark.parametrize("attention", ["eager", "sdpa", "flex_attention"])
@pytest.mark.parametrize("family", FAMILIES)
def test_with_a_cache_samples_leak(family: str, attention: str) -> None:
    """What `use_cache=False` is for; without it this page of tests would prove nothing."""
    batch = packed_batch(family)
    assert not agrees(family, attention, batch, batch.hugging_face(IMAGE_TOKEN).as_dict() | {"use_cache": True})


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("attention", ["eager", "sdpa", "flex_attention"])
@pytest.mark.parametrize("mask", ["bool4d", "additive"])
def test_a_dense_mask_holds_where_it_says(mask: Any, attention: str, family: str) -> None:
    batch = packed_batch(family)
    inputs = batch.hugging_face(IMAGE_TOKEN, mask=mask).as_dict()
    assert inputs["attention_mask"].shape == (6, 1, 48, 48) and "cu_seq_lens_q" not in inputs
    known = attention in ATTENTION_OF_MASK[mask]
    if known or mask == "bool4d":  # an additive mask under flex attention holds here, but a compiled one may crash
        assert agrees(family, attention, batch, inputs) == (known and family not in WINDOWS)


def test_a_mask_that_does_not_hold_is_refused() -> None:
    batch = made_batch(0)
    for mask in MASKS:
        for attention in ("eager", "sdpa", "flex_attention", "flash_attention_2"):
            if mask == "none" or attention in ATTENTION_OF_MASK[mask]:
                batch.hugging_face(IMAGE_TOKEN, mask=mask, attn_implementation=attention)  # type: ignore[arg-type]
                continue
            with pytest.raises(UsageError, match=f"mask '{mask}' keeps samples apart .* only, found '{attention}'"):
                batch.hugging_face(IMAGE_TOKEN, mask=mask, attn_implementation=attention)  # type: ignore[arg-type]


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_varlen_in_any_attention(family: str, attention: str) -> None:
    batch = packed_batch(family)
    view = batch.varlen(image_token_id=IMAGE_TOKEN)
    assert view.as_dict()["use_cache"] is False
    model = tiny_model(family, attention)
    with torch.no_grad():
        found = model(**view.as_dict())
    logits = found.logits.new_zeros(batch.rows, batch.length, found.logits.shape[-1])
    for (row, first, columns), start in zip(batch.sample_spans.tolist(), view.cu_seqlens.tolist(), strict=False):
        logits[row, first : first + columns] = found.logits[0, start : start + columns]
    difference, loss, _ = worst(model, batch, logits, tiny_model(family, "eager"))
    assert difference < NEAR and abs(float(found.loss) - loss) < NEAR


@pytest.mark.parametrize("attention", ["eager", "sdpa", "flex_attention"])
@pytest.mark.parametrize("family", FAMILIES)
def test_vila_by_sample_in_any_attention(family: str, attention: str) -> None:
    """Rows as VILA's model takes them, expanded here as it does."""
    batch = packed_batch(family)
    view = batch.vila(rows="samples")
    images = iter(view.images)
    loss, wanted_loss = torch.zeros(()), torch.zeros(())
    for sample, (row, first, columns) in enumerate(batch.sample_spans.tolist()):
        length = int(view.attention_mask[sample].sum())
        told = zip(view.input_ids[sample, :length].tolist(), view.labels[sample, :length].tolist(), strict=True)
        expanded = [pair for pair in told for _ in range(4 if pair[0] == IMAGE_ID else 1)]
        ids = torch.tensor([[IMAGE_TOKEN if token == IMAGE_ID else token for token, _ in expanded]])
        pixels = [next(images) for _ in range(int((ids == IMAGE_TOKEN).sum()) // 4)]
        shown = {"pixel_values": torch.stack(pixels)} if pixels else {}
        with torch.no_grad():
            logits = tiny_model(family, attention)(input_ids=ids, use_cache=False, **shown).logits[0, :columns]
        wanted = alone(tiny_model(family, "eager"), batch, sample)
        cut = [taken for *_, taken, owner in batch.image_spans.tolist() if owner == sample and taken < 4]
        assert torch.allclose(logits[: columns - sum(cut)], wanted[: columns - sum(cut)], atol=NEAR)
        labels = torch.tensor([label for _, label in expanded])[1:columns]
        loss += cross_entropy(logits, labels)
        wanted_loss += cross_entropy(wanted, batch.labels[row, first + 1 : first + columns])
    assert next(images, None) is None
    assert float(loss) == pytest.approx(float(wanted_loss), rel=NEAR) and float(loss) > 1


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(logits[:-1], labels, ignore_index=IGNORED, reduction="sum")


@pytest.mark.parametrize("attention", ["sdpa", "varlen_reference"])
def test_gradients_of_a_pack_are_those_of_its_samples(attention: str) -> None:
    """In training, in a trimmed and copied batch."""
    model, other = tiny_model("llava_qwen2_siglip", attention), tiny_model("llava_qwen2_siglip", "eager")
    batch = pickle.loads(pickle.dumps(packed_batch("llava_qwen2_siglip").to("cpu").trim(8)))
    model.zero_grad()
    model(**batch.hugging_face(IMAGE_TOKEN).as_dict()).loss.backward()
    labels = int((batch.hugging_face(IMAGE_TOKEN).labels[:, 1:] != IGNORED).sum())
    with torch.enable_grad():
        for sample, (row, first, columns) in enumerate(batch.sample_spans.tolist()):
            told = batch.labels[row, first + 1 : first + columns]
            if (told != IGNORED).any():
                (cross_entropy(alone.__wrapped__(other, batch, sample), told) / labels).backward()
    for one, wanted in zip(model.parameters(), other.parameters(), strict=True):
        assert (one.grad is None) == (wanted.grad is None)
        assert one.grad is None or torch.allclose(one.grad, wanted.grad, atol=NEAR)
    for used in (model, other):
        used.zero_grad()


@pytest.mark.parametrize("attention", ["eager", "sdpa", "flex_attention", "varlen_reference"])
def test_in_bfloat16(attention: str) -> None:
    """The same code on a GPU's type: near what rounding leaves, far from a leak."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    batch = packed_batch("llava_llama").to(device)
    model, other = (
        copy.deepcopy(tiny_model("llava_llama", kind)).to(device, torch.bfloat16) for kind in (attention, "eager")
    )
    inputs = batch.hugging_face(IMAGE_TOKEN, dtype=torch.bfloat16).as_dict()
    assert inputs["pixel_values"].dtype == torch.bfloat16
    with torch.no_grad():
        found = model(**inputs)
    difference, loss, _ = worst(model, batch, found.logits, other)
    assert difference < 0.5 and abs(float(found.loss) - loss) < 0.02
    if attention != "varlen_reference":
        with torch.no_grad():
            leaking = model(**(inputs | {"use_cache": True})).logits
        assert worst(model, batch, leaking, other)[0] > 2


@pytest.mark.slow
def test_compiled_flex_attention() -> None:
    with torch.compiler.set_stance("default"):
        batch = packed_batch("llava_llama")
        assert agrees("llava_llama", "flex_attention", batch, batch.hugging_face(IMAGE_TOKEN).as_dict())
