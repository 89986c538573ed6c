"""Attention masks of packed rows: a token sees its own sample, up to itself.

With a transformers model, prefer the default of `views.hugging_face`, which needs none of them.

Shapes: B rows of L columns.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask


def block_mask(segments_BL: Tensor) -> Tensor:
    """Dense mask, bool [B, 1, L, L]: True where the query (third axis) sees the key (fourth).

    Causal and within a segment; a padding column (segment 0) sees itself alone, so that no query is without a key.
    Takes B * L * L bytes. For `scaled_dot_product_attention` (`sdpa` in transformers) only: eager and flex attention of
    transformers add a mask to the scores, and True is 1 there, so samples leak into each other.
    """
    length = segments_BL.shape[1]
    same = segments_BL[:, :, None] == segments_BL[:, None, :]
    mask = same & (segments_BL > 0)[:, :, None]
    mask &= torch.ones(length, length, dtype=torch.bool, device=segments_BL.device).tril()
    mask |= torch.eye(length, dtype=torch.bool, device=segments_BL.device)
    return mask[:, None]


def additive_mask(segments_BL: Tensor, dtype: torch.dtype) -> Tensor:
    """`block_mask` as scores to add, [B, 1, L, L] of `dtype`: 0 where seen, the lowest finite value where not.

    For attention that adds a mask to its scores: `eager` and `sdpa` in transformers.
    """
    mask = block_mask(segments_BL)
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)


def flex_block_mask(segments_BL: Tensor, block_size: int = 128) -> BlockMask:
    """`block_mask` for torch's flex_attention, which skips blocks of `block_size` columns that are not seen at all.

    For `flex_attention` only. A transformers model takes it as its `attention_mask`, or makes it by itself from restarting positions.
    """
    rows, length = segments_BL.shape

    def seen(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        segment = segments_BL[row, query]
        return (query == key) | ((query >= key) & (segment == segments_BL[row, key]) & (segment > 0))

    return create_block_mask(seen, rows, None, length, length, device=segments_BL.device, BLOCK_SIZE=block_size)
