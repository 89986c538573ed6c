"""Random transformers models of a few thousand weights, of several families, and their samples alone."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from tests.loader.made_arrays import VOCABULARY, made_batch
from vila_data.core.tables import IGNORED, IMAGE_ID
from vila_data.loader.batch import PackedBatch, segment_bounds

IMAGE_TOKEN = VOCABULARY  # texts do not have it
FAMILIES = ("llava_llama", "llava_qwen2_siglip", "llava_mistral_window", "qwen2_text", "gemma3_text")
"""LLaVA over three language models and two towers, one with a sliding window; text models, Gemma 3's layers in turn
with a window and without."""


def has_images(family: str) -> bool:
    """Whether the family takes images."""
    return family.startswith("llava")


@lru_cache(maxsize=16)
def tiny_model(family: str = "llava_llama", attention: str = "sdpa") -> Any:
    """A model of the family, with weights that do not depend on `attention`; 4 tokens per image of 8 x 8."""
    import transformers as tf

    torch.manual_seed(1)
    sizes: dict[str, Any] = {
        "vocab_size": VOCABULARY + 1,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,  # so that a leak is seen in the logits
    }
    text = {
        "llava_llama": lambda: tf.LlamaConfig(**sizes),
        "llava_qwen2_siglip": lambda: tf.Qwen2Config(**sizes),
        "llava_mistral_window": lambda: tf.MistralConfig(**sizes, sliding_window=6),
        "qwen2_text": lambda: tf.Qwen2Config(**sizes),
        "gemma3_text": lambda: tf.Gemma3TextConfig(
            **sizes,
            head_dim=8,
            sliding_window=6,
            query_pre_attn_scalar=8,
            layer_types=["sliding_attention", "full_attention"],
        ),
    }[family]()
    if not has_images(family):
        kind = tf.Qwen2ForCausalLM if family == "qwen2_text" else tf.Gemma3ForCausalLM
        model = kind(text)
    else:
        seen = {
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 8,
            "patch_size": 4,
        }
        siglip = "siglip" in family
        vision = tf.SiglipVisionConfig(**seen) if siglip else tf.CLIPVisionConfig(**seen)
        config = tf.LlavaConfig(
            vision_config=vision,
            text_config=text,
            image_token_index=IMAGE_TOKEN,
            vision_feature_layer=-2,
            vision_feature_select_strategy="full" if siglip else "default",
        )
        model = tf.LlavaForConditionalGeneration(config)
    model.eval()
    _register()
    model.set_attn_implementation({"text_config": attention} if has_images(family) else attention)
    return model


def packed_batch(family: str) -> PackedBatch:
    """Several rows with padding at the end, a row of one sample, a row of padding, samples of one token, cut images."""
    batch = edges()
    if has_images(family):
        return batch
    ids = torch.where(batch.ids == IMAGE_ID, 7, batch.ids)
    return replace(batch, ids=ids, pixels=batch.pixels[:0], image_spans=batch.image_spans[:0])


@lru_cache(maxsize=1)
def edges() -> PackedBatch:
    """Three made rows; one whose samples have 1, 1, 5 and 1 tokens; one that a sample fills; one of padding alone."""
    batch = made_batch(11, rows=6, length=48, cut=True, empty_rows=3)
    fields = ("ids", "labels", "positions", "segments")
    ids, labels, positions, segments = (getattr(batch, name).clone() for name in fields)
    places = batch.sample_spans.tolist()
    for row, lengths in ((3, (1, 1, 5, 1)), (4, (48,))):
        at = 0
        for number, length in enumerate(lengths, 1):
            ids[row, at : at + length] = torch.arange(3, 3 + length)
            labels[row, at + 1 : at + length] = ids[row, at + 1 : at + length]
            positions[row, at : at + length] = torch.arange(length)
            segments[row, at : at + length] = number
            places.append([row, at, length])
            at += length
        positions[row, at:] = torch.arange(48 - at)
    bounds = segment_bounds(np.array(places), 6, 48)
    changed = {"ids": ids, "labels": labels, "positions": positions, "segments": segments}
    return replace(
        batch,
        **changed,
        sample_spans=torch.tensor(places),
        cu_seqlens=torch.from_numpy(bounds),
        max_seqlen=int(np.diff(bounds).max()),
        tokens=int((segments > 0).sum()),
        packs=5,
    )


@torch.no_grad()
def alone(model: Any, batch: PackedBatch, sample: int) -> torch.Tensor:
    """The logits, [columns, V], of one sample without any other, by itself and without a mask."""
    row, first, columns = batch.sample_spans[sample].tolist()
    ids = batch.ids[row : row + 1, first : first + columns].clone()
    mine = [n for n, (*_, taken, owner) in enumerate(batch.image_spans.tolist()) if owner == sample and taken == 4]
    for _, begin, taken, owner in batch.image_spans.tolist():
        if owner == sample and taken < 4:
            ids[0, begin - first : begin - first + taken] = 0  # what is cut is text that nothing attends to
    ids[ids == IMAGE_ID] = IMAGE_TOKEN
    pixels = {"pixel_values": batch.normalized()[mine]} if mine else {}
    logits: torch.Tensor = model(input_ids=ids, use_cache=False, **pixels).logits[0]
    return logits


@torch.no_grad()
def worst(model: Any, batch: PackedBatch, logits: torch.Tensor, reference: Any = None) -> tuple[float, float, int]:
    """Of logits [B, L, V]: the largest difference from the samples alone, their mean loss, and its number of labels."""
    largest, total, count = 0.0, 0.0, 0
    for sample, (row, first, columns) in enumerate(batch.sample_spans.tolist()):
        wanted = alone(reference or model, batch, sample)
        largest = max(largest, float((logits[row, first : first + columns] - wanted).abs().max()))
        labels = batch.labels[row, first + 1 : first + columns]
        total += float(torch.nn.functional.cross_entropy(wanted[:-1], labels, ignore_index=IGNORED, reduction="sum"))
        count += int((labels != IGNORED).sum())
    return largest, total / max(1, count), count


@lru_cache(maxsize=1)
def _register() -> None:
    """Make `varlen_reference` an attention implementation of transformers."""
    from transformers import AttentionInterface

    AttentionInterface.register("varlen_reference", varlen_reference)


def varlen_reference(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float,
    cu_seq_lens_q: torch.Tensor,
    cu_seq_lens_k: torch.Tensor,
    max_length_q: int,
    max_length_k: int,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """What FlashAttention does with these arguments, segment by segment: no mask, no position ids.

    query: [B, heads, L, D]; the bounds are over the B * L columns, as transformers passes them on.
    """
    assert attention_mask is None
    assert cu_seq_lens_q.dtype == torch.int32 and torch.equal(cu_seq_lens_q, cu_seq_lens_k)
    lengths = cu_seq_lens_q.diff()
    assert int(lengths.min()) > 0 and int(lengths.max()) == max_length_q == max_length_k
    rows, heads, length, size = query.shape
    query, key, value = (
        one.transpose(1, 2).reshape(rows * length, -1, size).repeat_interleave(heads // one.shape[1], dim=1)
        for one in (query, key, value)
    )
    assert int(cu_seq_lens_q[0]) == 0 and int(cu_seq_lens_q[-1]) == rows * length
    out = torch.empty_like(query)
    for start, stop in itertools.pairwise(cu_seq_lens_q.tolist()):
        scores = torch.einsum("qhd,khd->hqk", query[start:stop], key[start:stop]).float() * scaling
        behind = torch.arange(stop - start)[:, None] - torch.arange(stop - start)[None]
        hidden = (behind < 0) | (behind >= (sliding_window or len(behind)))
        weights = scores.masked_fill(hidden, -torch.inf).softmax(-1).to(value.dtype)
        out[start:stop] = torch.einsum("hqk,khd->qhd", weights, value[start:stop])
    return out.reshape(rows, length, heads, size), None
