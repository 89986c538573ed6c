"""Batch formats: a packed batch as the inputs of VILA, of transformers models, and of varlen attention; attention masks.

The first token of a sample has no label: a model that shifts labels by one would predict it from the previous sample.
Under semantics `released_code` it keeps its label (`PackedBatch.trains_first_label`), because VILA v1.0 trains it so.

Under the semantics `paper` and `released_code`, which truncate after image expansion, an image may be cut. Nothing of its
sample comes after a cut image, and images have no labels, so it has no effect on any loss. A model that makes all tokens
of an image cannot make a part of them, so the formats for such models omit it, or leave the truncation to the model; each
format says what it does.

Shapes: B rows of L columns, N images, S samples, T tokens that are not padding.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from vila_data.core.errors import UsageError
from vila_data.core.tables import IGNORED, IMAGE_ID

MASKS: Final = ("none", "bool4d", "additive")
ATTENTION_OF_MASK: Final = {"bool4d": ("sdpa",), "additive": ("eager", "sdpa")}
"""The attention implementations of transformers that keep samples apart with a 4-D mask. "none" holds for all of them."""
ROWS: Final = ("packs", "samples")


class Packed(Protocol):
    """What a format reads of a loader.batch.PackedBatch, which imports this module."""

    @property
    def ids(self) -> Tensor: ...  # noqa: D102
    @property
    def labels(self) -> Tensor: ...  # noqa: D102
    @property
    def positions(self) -> Tensor: ...  # noqa: D102
    @property
    def segments(self) -> Tensor: ...  # noqa: D102
    @property
    def cu_seqlens(self) -> Tensor: ...  # noqa: D102
    @property
    def max_seqlen(self) -> int: ...  # noqa: D102
    @property
    def pixels(self) -> Tensor: ...  # noqa: D102
    @property
    def image_spans(self) -> Tensor: ...  # noqa: D102
    @property
    def sample_spans(self) -> Tensor: ...  # noqa: D102
    @property
    def tokens_per_image(self) -> int | None: ...  # noqa: D102
    @property
    def trains_first_label(self) -> bool: ...  # noqa: D102
    @property
    def cuts_images(self) -> bool: ...  # noqa: D102
    def normalized(self, dtype: torch.dtype = ...) -> Tensor: ...  # noqa: D102


@dataclass(frozen=True, eq=False)
class VilaInputs:
    """Inputs of a VILA or LLaVA model, which puts the images' tokens in itself.

    input_ids: int64 [R, M], right padded, one IMAGE_ID (-200) per image; attention_mask: bool [R, M]; labels: int64
    [R, M]; images: [N, 3, H, W] normalized, in order of rows and columns.
    seqlens: int32 [S], the samples' lengths once images are expanded, in order: `seqlens_in_batch` of VILA's packing.
    With a row per pack, a cut image is in none of them: its sample ends before it. With a row per sample it is there as
    a whole image, because VILA's model truncates by itself: give it `pack.sequence_length` as its maximum length. So
    seqlens, in which a cut image has the columns that it has in the batch, are the lengths by which that model packs.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    images: Tensor
    seqlens: Tensor

    def as_dict(self) -> dict[str, Tensor]:
        """For `model(**inputs.as_dict())`."""
        return {
            "input_ids": self.input_ids,
            "attention_mask": self.attention_mask,
            "labels": self.labels,
            "images": self.images,
        }


@dataclass(frozen=True, eq=False)
class HuggingFaceInputs:
    """Inputs of a transformers LLaVA-style model, 4.57 or later.

    input_ids: int64 [B, L] with the model's image token at every column of an image, so that there are as many image
    tokens as features; position_ids, labels: int64 [B, L], positions from 0 in each sample; pixel_values: [N, 3, H, W]
    normalized, None if there is no image.
    attention_mask: None by default. Eager, SDPA and flex attention then keep samples apart because transformers makes
    its mask from positions that restart, but only without a key-value cache: so `use_cache` is False, and must be
    passed to the model. FlashAttention takes `cu_seq_lens_q` (and `_k`), int32 [C + 1], the bounds of samples and
    padding over the B * L columns, and `max_length_q` (and `_k`), int, because it reads positions in a batch of one row only.
    With a 4-D attention_mask, [B, 1, L, L], these four are None.
    A cut image has no pixels here. Its columns stay, with a text token that nothing attends to and no label.
    """

    input_ids: Tensor
    attention_mask: Tensor | None
    position_ids: Tensor
    labels: Tensor
    pixel_values: Tensor | None
    cu_seq_lens_q: Tensor | None
    cu_seq_lens_k: Tensor | None
    max_length_q: int | None
    max_length_k: int | None
    use_cache: bool = False

    def as_dict(self) -> dict[str, Any]:
        """For `model(**inputs.as_dict())`: without what is None."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True, eq=False)
class VarlenInputs:
    """All samples one after another, without padding, for attention that takes their bounds.

    ids, labels, positions: int64 [T]; cu_seqlens: int32 [S + 1]; max_seqlen: int; image_spans: int64 [N, 3], first
    place in T, tokens, sample; pixels: [N, 3, H, W] normalized, None if there is no image.
    A cut image is among them with the tokens that it has, for a model that takes the first tokens of an image. With an
    `image_token_id` it is omitted as in HuggingFaceInputs: its columns stay, with a text token and no label.
    """

    ids: Tensor
    labels: Tensor
    positions: Tensor
    cu_seqlens: Tensor
    max_seqlen: int
    image_spans: Tensor
    pixels: Tensor | None

    def as_dict(self) -> dict[str, Any]:
        """For `model(**inputs.as_dict())` of a transformers model, 4.57 or later: one row of T tokens.

        FlashAttention takes the bounds. Eager, SDPA and flex attention make a mask of T x T from the positions, but
        only without a key-value cache: so `use_cache` is False, and must be passed to the model.
        """
        named: dict[str, Any] = {
            "input_ids": self.ids[None],
            "labels": self.labels[None],
            "position_ids": self.positions[None],
            "cu_seq_lens_q": self.cu_seqlens,
            "cu_seq_lens_k": self.cu_seqlens,
            "max_length_q": self.max_seqlen,
            "max_length_k": self.max_seqlen,
            "use_cache": False,
        }
        return named if self.pixels is None else named | {"pixel_values": self.pixels}

    @property
    def image_places(self) -> Tensor:
        """The old name of `image_spans`, kept for one release."""
        warnings.warn("image_places is now image_spans", DeprecationWarning, stacklevel=2)
        return self.image_spans


def vila(
    batch: Packed,
    *,
    rows: Literal["packs", "samples"] = "packs",
    tokens_per_image: int | Sequence[int] | None = None,
    pad_id: int = 0,
    dtype: torch.dtype = torch.float32,
) -> VilaInputs:
    """The batch with one placeholder per image. `VilaInputs` says what becomes of a cut image.

    Args:
        rows: "packs" has a row for each pack (R = B); "samples" one for each sample (R = S), for a trainer that packs
            by itself, as VILA does.
        tokens_per_image: the number of tokens that the model makes of an image, or of each image of the batch, to check
            it; None: no check.
        dtype: of the pixels; torch.uint8: not normalized, for a model that normalizes by itself.

    Raises:
        UsageError: the pack was planned with another number of tokens per image; rows is not one of these; the batch
            has images and their normalization is not known.
    """
    if rows not in ROWS:
        raise UsageError(f"rows must be one of {', '.join(ROWS)}, found {rows!r}")
    cut = _cut_images(batch, tokens_per_image)
    if rows == "samples":
        cut = None
    first = torch.zeros_like(batch.segments, dtype=torch.bool)
    first[batch.image_spans[:, 0], batch.image_spans[:, 1]] = True
    kept = (batch.segments > 0) & ((batch.ids != IMAGE_ID) | first)
    seqlens = batch.sample_spans[:, 2].to(device=kept.device, dtype=torch.int32)
    if cut is not None:
        kept &= ~cut.columns_BL
        seqlens = seqlens.index_add(0, batch.image_spans[cut.images, 3], -batch.image_spans[cut.images, 2].int())
    row, _ = kept.nonzero(as_tuple=True)
    if rows == "packs":
        group, groups = row, len(batch.ids)
    else:
        samples = torch.bincount(batch.sample_spans[:, 0], minlength=len(batch.ids))
        before = (samples.cumsum(0) - samples).to(row.device)
        group, groups = before[row] + batch.segments[kept] - 1, len(batch.sample_spans)
    lengths = torch.bincount(group, minlength=groups)
    column = torch.arange(len(group), device=group.device) - (lengths.cumsum(0) - lengths)[group]
    shape = (groups, int(lengths.max()) if groups else 0)
    input_ids = batch.ids.new_full(shape, pad_id)
    input_ids[group, column] = batch.ids[kept]
    labels = batch.labels.new_full(shape, IGNORED)
    labels[group, column] = _labels(batch, cut)[kept]
    mask = torch.zeros(shape, dtype=torch.bool, device=group.device)
    mask[group, column] = True
    return VilaInputs(input_ids, mask, labels, _pixels(batch, cut, dtype), seqlens)


def hugging_face(
    batch: Packed,
    image_token_id: int,
    *,
    mask: Literal["none", "bool4d", "additive"] = "none",
    attn_implementation: str | None = None,
    tokens_per_image: int | Sequence[int] | None = None,
    dtype: torch.dtype = torch.float32,
) -> HuggingFaceInputs:
    """The batch with `image_token_id` at every column of an image. A cut image becomes text tokens without labels.

    Args:
        mask: what keeps samples apart.
            "none": restarting positions, bounds and no cache, see HuggingFaceInputs. For eager, SDPA, flex and
            FlashAttention, and for sliding windows.
            "bool4d": a boolean mask. For SDPA only: eager and flex attention add it to the scores, so samples leak into each other.
            "additive": a mask of scores. For eager and SDPA.
            A 4-D mask takes B * L * L values, is used as it is in layers with a sliding window, which then see
            their whole sample, and is not for FlashAttention.
        attn_implementation: the model's (`model.config._attn_implementation`), to refuse a mask that does not work with
            it; None: no check.
        tokens_per_image: the number of tokens that the model makes of an image, or of each image of the batch, to check
            it; None: no check.
        dtype: of the pixels and of an additive mask; torch.uint8: pixels not normalized, for a model that normalizes by
            itself, and a mask of float32.

    Raises:
        UsageError: the pack was planned with another number of tokens per image; the text has `image_token_id`; mask is
            not one of these or does not work with `attn_implementation`; the batch has images and their
            normalization is not known.
    """
    if mask not in MASKS:
        raise UsageError(f"unknown mask {mask!r}; choose one of {', '.join(MASKS)}")
    allowed = ATTENTION_OF_MASK.get(mask)
    if attn_implementation is not None and allowed is not None and attn_implementation not in allowed:
        raise UsageError(
            f"mask {mask!r} keeps samples apart with {' and '.join(allowed)} attention only, found "
            f"{attn_implementation!r}; use mask='none'"
        )
    cut = _cut_images(batch, tokens_per_image)
    attention = None
    if mask == "bool4d":
        attention = block_mask(batch.segments)
    elif mask == "additive":
        attention = additive_mask(batch.segments, dtype if dtype.is_floating_point else torch.float32)
    bounds, max_seqlen = (batch.cu_seqlens, batch.max_seqlen) if mask == "none" else (None, None)
    return HuggingFaceInputs(
        input_ids=_with_image_token(batch, image_token_id, cut),
        attention_mask=attention,
        position_ids=batch.positions,
        labels=_labels(batch, cut),
        pixel_values=_pixels_or_none(batch, cut, dtype),
        cu_seq_lens_q=bounds,
        cu_seq_lens_k=bounds,
        max_length_q=max_seqlen,
        max_length_k=max_seqlen,
    )


def varlen(batch: Packed, *, image_token_id: int | None = None, dtype: torch.dtype = torch.float32) -> VarlenInputs:
    """The batch's samples as one row without padding.

    Args:
        image_token_id: the model's token at every place of an image, for a model that takes whole images only; None:
            IMAGE_ID stays.
        dtype: of the pixels; torch.uint8: not normalized, for a model that normalizes by itself.

    Raises:
        UsageError: the text has `image_token_id`; the batch has images and their normalization is not known.
    """
    cut = None if image_token_id is None else _cut_images(batch, None)
    row, first, length = batch.sample_spans.T
    ends = length.cumsum(0)
    whole = int(ends[-1]) if len(ends) else 0
    starts = ends - length
    # a token's place in the B * L columns: its place in T, moved by what its sample is moved
    moved = (row * batch.ids.shape[1] + first - starts).repeat_interleave(length)
    taken = (torch.arange(whole) + moved).to(batch.ids.device)
    ids = batch.ids if image_token_id is None else _with_image_token(batch, image_token_id, cut)
    ids, labels = ids.reshape(-1)[taken], _labels(batch, cut).reshape(-1)[taken]
    # a row's first sample follows nothing in its row; here it comes after the row before
    labels[starts[(first == 0) & (starts > 0)].to(labels.device)] = IGNORED
    cu_seqlens = torch.cat([ends.new_zeros(1), ends]).to(torch.int32)
    image_spans = batch.image_spans if cut is None else batch.image_spans[~cut.images]
    _, image_first, columns, sample = image_spans.T
    place = image_first + (starts - first).to(sample.device)[sample]
    return VarlenInputs(
        ids=ids,
        labels=labels,
        positions=batch.positions.reshape(-1)[taken],
        cu_seqlens=cu_seqlens.to(ids.device),
        max_seqlen=int(length.max()) if len(length) else 0,
        image_spans=torch.stack([place, columns, sample], dim=1),
        pixels=_pixels_or_none(batch, cut, dtype),
    )


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


@dataclass(frozen=True, eq=False)
class _Cut:
    """Images that are cut. images: bool [N], which they are; columns_BL: bool, their columns."""

    images: Tensor
    columns_BL: Tensor


def _cut_images(batch: Packed, tokens_per_image: int | Sequence[int] | None) -> _Cut | None:
    """The batch's cut images; None if it has none.

    Raises:
        UsageError: an image has another number of columns than the model makes tokens of it, and is not cut.
    """
    places, columns, planned = batch.image_spans, batch.image_spans[:, 2], batch.tokens_per_image
    if not len(columns):
        return None
    given: Any = planned if tokens_per_image is None else tokens_per_image
    if planned is not None and not hasattr(given, "__len__") and given != planned:
        raise UsageError(_wrong_tokens("the batch", planned, given))
    if tokens_per_image is None and not batch.cuts_images:
        return None
    whole = torch.as_tensor(int(columns.max()) if given is None else given, device=columns.device)
    if whole.dim() and len(whole) != len(columns):
        raise UsageError(f"tokens_per_image has {len(whole)} numbers, but the batch has {len(columns)} images")
    whole = whole.expand(len(columns))
    images = columns != whole
    if not bool(images.any()):
        return None
    columns_BL = torch.zeros_like(batch.segments, dtype=torch.bool)
    for (row, first, taken, sample), made in zip(places[images].tolist(), whole[images].tolist(), strict=True):
        ends = first + taken == int(batch.sample_spans[sample, 1:].sum())
        if taken > made or not ends or not batch.cuts_images:
            raise UsageError(_wrong_tokens(f"row {row} column {first}", taken, made))
        columns_BL[row, first : first + taken] = True
    return _Cut(images, columns_BL)


def _wrong_tokens(where: str, found: int, expected: int) -> str:
    return (
        f"{where}: an image takes {found} columns, but the model makes {expected} tokens of it; set pack.tokens_per_image to "
        f"{expected}, or pack.image_tokens to the model's policy, in the recipe and run it again, or use a model that "
        f"makes {found}"
    )


def _labels(batch: Packed, cut: _Cut | None) -> Tensor:
    """Labels, [B, L]. A sample's first token has none unless the batch trains it, nor has one after a cut image."""
    labels = batch.labels if batch.trains_first_label else batch.labels.masked_fill(batch.positions == 0, IGNORED)
    if cut is None:
        return labels
    return labels.masked_fill(functional.pad(cut.columns_BL[:, :-1], (1, 0)), IGNORED)


def _pixels(batch: Packed, cut: _Cut | None, dtype: torch.dtype) -> Tensor:
    """The pixels of images that are not cut. A batch without images needs no normalization."""
    needed = dtype != torch.uint8 and len(batch.pixels) > 0
    pixels = batch.normalized(dtype) if needed else batch.pixels.to(dtype)
    return pixels if cut is None else pixels[~cut.images]


def _pixels_or_none(batch: Packed, cut: _Cut | None, dtype: torch.dtype) -> Tensor | None:
    pixels = _pixels(batch, cut, dtype) if len(batch.image_spans) else None
    return pixels if pixels is not None and len(pixels) else None


def _with_image_token(batch: Packed, image_token_id: int, cut: _Cut | None) -> Tensor:
    """Ids, [B, L], with `image_token_id` at the columns of whole images and nowhere else.

    Raises:
        UsageError: the text has it.
    """
    named = batch.ids == image_token_id
    if bool((named & (batch.segments > 0)).any()):
        raise UsageError(
            f"token {image_token_id} already occurs in the text, so it cannot mark images; choose an image_token_id that "
            "never occurs in text"
        )
    text = int(image_token_id == 0)  # any other token: nothing attends to these columns
    ids = batch.ids.masked_fill(named, text).masked_fill(batch.ids == IMAGE_ID, image_token_id)
    return ids if cut is None else ids.masked_fill(cut.columns_BL, text)
