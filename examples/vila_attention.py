"""Attention that stays within a sample of a packed row, three ways.

sdpa:  a mask of B x L x L; any machine. flex: a block mask, compiled on GPU. flash: PyTorch's own varlen kernel on
GPU (bf16), which reads `cu_seqlens` and never makes a mask.
Shapes: B rows, L columns, H heads, D dimensions of a head.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from transformers import AttentionInterface

from vila_data.loader.batch import PackedBatch
from vila_data.loader.formats import block_mask, flex_block_mask

Attention = Literal["sdpa", "flex", "flash"]
ATTENTION: dict[str, str] = {"sdpa": "sdpa", "flex": "packed_flex", "flash": "packed_varlen"}
"""What transformers is told for each."""


def packed_attention(batch: PackedBatch, attention: Attention) -> dict[str, Any]:
    """What a transformers model takes so that samples of a pack do not see each other: keyword arguments."""
    if attention == "sdpa":
        return {"position_ids": batch.positions, "attention_mask": block_mask(batch.segments)}
    if attention == "flex":
        return {"position_ids": batch.positions, "attention_mask": None, "packed_mask": flex_block_mask(batch.segments)}
    return {
        "position_ids": batch.positions,
        "attention_mask": None,
        "packed_ends": batch.cu_seqlens.to(batch.ids.device, torch.int32),
        "max_seqlen": batch.max_seqlen,
    }


@cache
def _compiled_flex() -> Any:
    return torch.compile(flex_attention)


def _flex(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: None, *, packed_mask: BlockMask,
    scaling: float, **_: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """query_BHLD and its like to out_BLHD."""
    attend = _compiled_flex() if query.is_cuda else flex_attention
    query, key = query.to(value.dtype), key.to(value.dtype)  # under autocast the rotation gives float32
    out = attend(query, key, value, block_mask=packed_mask, scale=scaling, enable_gqa=key.shape[1] != query.shape[1])
    return out.transpose(1, 2), None


def _flash(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: None, *, packed_ends: Tensor,
    max_seqlen: int, scaling: float, **_: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """query_BHLD and its like to out_BLHD, over all rows as one."""
    from torch.nn.attention import varlen  # torch 2.10 and later

    rows, heads, length, width = query.shape
    flat = [one.to(value.dtype).transpose(1, 2).flatten(0, 1) for one in (query, key, value)]
    out = varlen.varlen_attn(
        *flat, packed_ends, packed_ends, max_seqlen, max_seqlen,
        scale=scaling, window_size=(-1, 0), enable_gqa=key.shape[1] != heads,
    )  # fmt: skip
    return out.view(rows, length, heads, width), None


AttentionInterface.register("packed_flex", _flex)
AttentionInterface.register("packed_varlen", _flash)
