"""What trainers take, made of a packed batch: VILA's placeholders, Hugging Face's inputs, rows without padding.

In every view the first token of a sample is not a label: a model that shifts labels by one would predict it from the
sample before. Shapes: B rows of L columns, N images, S samples, T tokens that are not padding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

import torch
from torch import Tensor

from vila_data.batch.masks import additive_mask, block_mask
from vila_data.core.errors import UsageError
from vila_data.core.schemas import IGNORED, IMAGE_ID

MASKS: Final = ("bool4d", "additive", "none")
ROWS: Final = ("packs", "samples")


class Packed(Protocol):
    """What a view reads of a stream.PackedBatch."""

    @property
    def ids(self) -> Tensor: ...  # noqa: D102
    @property
    def labels(self) -> Tensor: ...  # noqa: D102
    @property
    def positions(self) -> Tensor: ...  # noqa: D102
    @property
    def segments(self) -> Tensor: ...  # noqa: D102
    @property
    def image_places(self) -> Tensor: ...  # noqa: D102
    @property
    def sample_places(self) -> Tensor: ...  # noqa: D102
    def normalised(self, dtype: torch.dtype = ...) -> Tensor: ...  # noqa: D102


@dataclass(frozen=True, eq=False)
class VilaView:
    """Inputs of a VILA or LLaVA model, which puts the images' tokens in itself.

    input_ids: int64 [R, M], right padded, one IMAGE_ID (-200) an image; attention_mask: bool [R, M]; labels: int64
    [R, M]; images: [N, 3, H, W] normalised, in order of rows and columns.
    seqlens: int32 [S], the samples' lengths once images are expanded, in order: `seqlens_in_batch` of VILA's packing.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    images: Tensor
    seqlens: Tensor

    def as_dict(self) -> dict[str, Tensor]:
        """For `model(**view.as_dict())`."""
        return {
            "input_ids": self.input_ids,
            "attention_mask": self.attention_mask,
            "labels": self.labels,
            "images": self.images,
        }


@dataclass(frozen=True, eq=False)
class HuggingFaceView:
    """Inputs of a transformers LLaVA-style model.

    input_ids: int64 [B, L] with the model's image token at every column of an image; attention_mask: [B, 1, L, L],
    bool or additive, None where none was asked for; position_ids, labels: int64 [B, L]; pixel_values: [N, 3, H, W]
    normalised, None where the batch has no image.
    """

    input_ids: Tensor
    attention_mask: Tensor | None
    position_ids: Tensor
    labels: Tensor
    pixel_values: Tensor | None

    def as_dict(self) -> dict[str, Tensor]:
        """For `model(**view.as_dict())`: without what is None."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True, eq=False)
class VarlenView:
    """All samples behind one another, without padding, for attention that takes their bounds.

    ids, labels, positions: int64 [T]; cu_seqlens: int32 [S + 1]; max_seqlen: int; image_places: int64 [N, 3], first
    place in T, tokens, sample; pixels: [N, 3, H, W] normalised, None where the batch has no image.
    """

    ids: Tensor
    labels: Tensor
    positions: Tensor
    cu_seqlens: Tensor
    max_seqlen: int
    image_places: Tensor
    pixels: Tensor | None

    def as_dict(self) -> dict[str, Any]:
        """For `model(**view.as_dict())` of a transformers model with FlashAttention: one row of T tokens."""
        named: dict[str, Any] = {
            "input_ids": self.ids[None],
            "labels": self.labels[None],
            "position_ids": self.positions[None],
            "cu_seq_lens_q": self.cu_seqlens,
            "cu_seq_lens_k": self.cu_seqlens,
            "max_length_q": self.max_seqlen,
            "max_length_k": self.max_seqlen,
        }
        return named if self.pixels is None else named | {"pixel_values": self.pixels}


def vila(
    batch: Packed,
    *,
    rows: Literal["packs", "samples"] = "packs",
    tokens_per_image: int | None = None,
    pad_id: int = 0,
    dtype: torch.dtype = torch.float32,
) -> VilaView:
    """The batch with one placeholder an image.

    Args:
        rows: "packs" has a row for each pack (R = B); "samples" one for each sample (R = S), for a trainer that packs
            by itself, as VILA does.
        tokens_per_image: what the model makes of an image; None: the most that an image takes in this batch.

    Raises:
        UsageError: an image is cut, which a placeholder cannot say; no such rows.
    """
    if rows not in ROWS:
        raise UsageError(f"rows: {rows!r}: it is one of {', '.join(ROWS)}")
    _refuse_cut(batch, tokens_per_image)
    first = torch.zeros_like(batch.segments, dtype=torch.bool)
    first[batch.image_places[:, 0], batch.image_places[:, 1]] = True
    kept = (batch.segments > 0) & ((batch.ids != IMAGE_ID) | first)
    row, _ = kept.nonzero(as_tuple=True)
    if rows == "packs":
        group, groups = row, len(batch.ids)
    else:
        samples = torch.bincount(batch.sample_places[:, 0], minlength=len(batch.ids))
        before = (samples.cumsum(0) - samples).to(row.device)
        group, groups = before[row] + batch.segments[kept] - 1, len(batch.sample_places)
    lengths = torch.bincount(group, minlength=groups)
    column = torch.arange(len(group), device=group.device) - (lengths.cumsum(0) - lengths)[group]
    shape = (groups, int(lengths.max()) if groups else 0)
    input_ids = batch.ids.new_full(shape, pad_id)
    input_ids[group, column] = batch.ids[kept]
    labels = batch.labels.new_full(shape, IGNORED)
    labels[group, column] = _labels(batch)[kept]
    mask = torch.zeros(shape, dtype=torch.bool, device=group.device)
    mask[group, column] = True
    seqlens = batch.sample_places[:, 2].to(device=group.device, dtype=torch.int32)
    return VilaView(input_ids, mask, labels, batch.normalised(dtype), seqlens)


def hugging_face(
    batch: Packed,
    image_token_id: int,
    *,
    mask: Literal["bool4d", "additive", "none"] = "bool4d",
    tokens_per_image: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> HuggingFaceView:
    """The batch with `image_token_id` at every column of an image.

    Args:
        mask: "bool4d" and "additive" (of `dtype`) keep samples apart in any attention; "none" leaves it to
            `position_ids`, which transformers' FlashAttention reads.
        tokens_per_image: what the model makes of an image; None: the most that an image takes in this batch.
        dtype: of the pixels and of an additive mask.

    Raises:
        UsageError: an image is cut, which such a model refuses; the text has `image_token_id`; no such mask.
    """
    if mask not in MASKS:
        raise UsageError(f"no mask is called {mask!r}: it is one of {', '.join(MASKS)}")
    _refuse_cut(batch, tokens_per_image)
    attention = None
    if mask != "none":
        attention = block_mask(batch.segments) if mask == "bool4d" else additive_mask(batch.segments, dtype)
    return HuggingFaceView(
        input_ids=_with_image_token(batch.ids, batch.segments, image_token_id),
        attention_mask=attention,
        position_ids=batch.positions,
        labels=_labels(batch),
        pixel_values=batch.normalised(dtype) if len(batch.image_places) else None,
    )


def varlen(batch: Packed, *, image_token_id: int | None = None, dtype: torch.dtype = torch.float32) -> VarlenView:
    """The batch's samples as one row without padding.

    Args:
        image_token_id: the model's token at every place of an image; None: IMAGE_ID stays.

    Raises:
        UsageError: the text has `image_token_id`.
    """
    row, first, length = batch.sample_places.T
    ends = length.cumsum(0)
    whole = int(ends[-1]) if len(ends) else 0
    starts = ends - length
    # a token's place in the B * L columns: its place in T, moved by what its sample is moved
    moved = (row * batch.ids.shape[1] + first - starts).repeat_interleave(length)
    taken = (torch.arange(whole) + moved).to(batch.ids.device)
    ids, segments = batch.ids.reshape(-1)[taken], batch.segments.reshape(-1)[taken]
    if image_token_id is not None:
        ids = _with_image_token(ids, segments, image_token_id)
    cu_seqlens = torch.cat([ends.new_zeros(1), ends]).to(torch.int32)
    image_row, image_first, columns, sample = batch.image_places.T
    place = image_first + (starts - first).to(sample.device)[sample]
    return VarlenView(
        ids=ids,
        labels=_labels(batch).reshape(-1)[taken],
        positions=batch.positions.reshape(-1)[taken],
        cu_seqlens=cu_seqlens.to(ids.device),
        max_seqlen=int(length.max()) if len(length) else 0,
        image_places=torch.stack([place, columns, sample], dim=1),
        pixels=batch.normalised(dtype) if len(image_row) else None,
    )


def _labels(batch: Packed) -> Tensor:
    """Labels, [B, L], without those of samples' first tokens."""
    return batch.labels.masked_fill(batch.positions == 0, IGNORED)


def _with_image_token(ids: Tensor, segments: Tensor, image_token_id: int) -> Tensor:
    if bool(((ids == image_token_id) & (segments > 0)).any()):
        raise UsageError(
            f"the text holds token {image_token_id}, which is to stand for images: the model would want a picture "
            "there; give the id of a token that texts do not have"
        )
    return ids.masked_fill(ids == IMAGE_ID, image_token_id)


def _refuse_cut(batch: Packed, tokens_per_image: int | None) -> None:
    columns = batch.image_places[:, 2]
    if not len(columns):
        return
    whole = int(columns.max()) if tokens_per_image is None else tokens_per_image
    if bool((columns != whole).any()):
        row, first, taken, _ = batch.image_places[int((columns != whole).nonzero()[0])].tolist()
        raise UsageError(
            f"row {row} column {first}: an image takes {taken} columns of {whole}: this model wants whole images; "
            "take batch.varlen(), or pack with semantics: improved, which never cuts one"
        )
