"""The masks say the same, and what the words say: causal, one's own sample alone, no query without a key."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention.flex_attention import create_mask, flex_attention

from tests.loader.made_arrays import made_batch
from vila_data.loader.formats import additive_mask, block_mask, flex_block_mask


@pytest.mark.parametrize("seed", range(6))
def test_block_mask_by_hand(seed: int) -> None:
    segments = made_batch(seed, length=40, empty_rows=seed % 2).segments
    mask = block_mask(segments)
    assert mask.shape == (3, 1, 40, 40)
    assert mask.dtype == torch.bool
    for row in range(3):
        for query in range(40):
            own = int(segments[row, query])
            seen = [k for k in range(query + 1) if (own > 0 and segments[row, k] == own) or k == query]
            assert mask[row, 0, query].nonzero()[:, 0].tolist() == seen


def test_additive_mask_is_finite() -> None:
    segments = made_batch(1).segments
    mask = block_mask(segments)
    for dtype in (torch.float32, torch.bfloat16):
        scores = additive_mask(segments, dtype)
        assert scores.dtype == dtype
        assert scores.isfinite().all()
        assert torch.equal(scores == 0, mask)


@pytest.mark.parametrize("length", [64, 200])
def test_flex_mask_is_the_dense_one(length: int) -> None:
    segments = made_batch(2, length=length, rows=3, empty_rows=1).segments
    flex = flex_block_mask(segments, block_size=32)
    dense = block_mask(segments)
    assert torch.equal(create_mask(flex.mask_mod, 3, 1, length, length, device="cpu"), dense)
    blocks = flex.to_dense()[:, 0].bool()
    for row, first, second in (~blocks).nonzero().tolist():  # what is skipped has nothing to see
        assert not dense[row, 0, first * 32 : first * 32 + 32, second * 32 : second * 32 + 32].any()
    assert not blocks.all()


def test_flex_attention_with_it_is_attention_with_the_dense_mask() -> None:
    torch.manual_seed(0)
    segments = made_batch(3, length=128, rows=2).segments
    query, key, value = torch.randn(3, 2, 2, 128, 16)
    dense = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=block_mask(segments))
    flex = flex_attention(query, key, value, block_mask=flex_block_mask(segments))
    assert torch.allclose(flex, dense, atol=1e-5)
