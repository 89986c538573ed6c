"""PackedBatch: what a training loop gets at each step.

Shapes: B rows of L columns, N images of H x W pixels, S samples, C segments.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vila_data.core.errors import UsageError
from vila_data.loader import formats
from vila_data.loader.arrays import BatchArrays, Fault, Origin
from vila_data.loader.pixels import NORMALIZATION_ARGUMENTS, Normalization

_T = TypeVar("_T")


@dataclass(frozen=True, eq=False, repr=False)
class PackedBatch:
    """Packs as rows of token ids, with the images' pixels and the origin of every sample.

    ids, labels, positions: int64 [B, L]; segments: int32 [B, L]; cu_seqlens: int32 [C + 1]; max_seqlen: int, columns of the
    max_seqlen segment; pixels: uint8 [N, 3, H, W] RGB (channels_last in memory); image_spans: int64 [N, 4];
    sample_spans: int64 [S, 3], on the CPU. loader.arrays.BatchArrays describes them.
    origins: one per sample; faults: what is broken in this batch; packs: the rows that are real packs (fewer than B in an
    epoch's last step, perhaps 0); epoch: its number; step: that of the global step in it, counted in steps of this world size
    and batch size.
    tokens_per_image: columns of a whole image; None if images differ or it is unknown.
    cuts_images: whether the last image of a sample may have fewer columns than it has tokens: only under the semantics
    `paper` and `released_code`, where all whole images have `tokens_per_image`.
    trains_first_label: whether the first token of a sample may have a label, so that the end of the previous sample in
    the row predicts it. True only under semantics `released_code`, because VILA v1.0 does it.
    normalization: how the model normalizes pixels, as it was passed to the stream; None: it was not.
    """

    ids: Tensor
    labels: Tensor
    positions: Tensor
    segments: Tensor
    cu_seqlens: Tensor
    max_seqlen: int
    pixels: Tensor
    image_spans: Tensor
    sample_spans: Tensor
    origins: tuple[Origin, ...]
    faults: tuple[Fault, ...]
    packs: int
    tokens: int
    epoch: int
    step: int
    tokens_per_image: int | None = None
    trains_first_label: bool = False
    cuts_images: bool = True
    normalization: Normalization | None = None

    @classmethod
    def of(
        cls,
        arrays: BatchArrays,
        *,
        origins: Sequence[Origin],
        faults: Sequence[Fault],
        packs: int,
        epoch: int,
        step: int,
        tokens_per_image: int | None = None,
        trains_first_label: bool = False,
        cuts_images: bool = True,
        normalization: Normalization | None = None,
        keep: object = None,
    ) -> PackedBatch:
        """The batch over these arrays, without a copy.

        Args:
            keep: what owns the arrays' memory; it lives as long as any tensor made here, slices of them included.
        """
        bounds = arrays.cu_seqlens

        def tensor(array: NDArray[Any]) -> Tensor:
            return torch.from_numpy(array if keep is None else _kept(array, keep))

        return cls(
            ids=tensor(arrays.ids_BL),
            labels=tensor(arrays.labels_BL),
            positions=tensor(arrays.positions_BL),
            segments=tensor(arrays.segments_BL),
            cu_seqlens=tensor(bounds),
            max_seqlen=int(np.diff(bounds).max(initial=0)),
            pixels=tensor(arrays.pixels_NHWC).permute(0, 3, 1, 2),
            image_spans=tensor(arrays.image_spans),
            sample_spans=tensor(arrays.sample_spans),
            origins=tuple(origins),
            faults=tuple(faults),
            packs=packs,
            tokens=int(arrays.sample_spans[:, 2].sum()),
            epoch=epoch,
            step=step,
            tokens_per_image=tokens_per_image,
            trains_first_label=trains_first_label,
            cuts_images=cuts_images,
            normalization=normalization,
        )

    @property
    def rows(self) -> int:
        """B."""
        return int(self.ids.shape[0])

    @property
    def length(self) -> int:
        """L, in columns."""
        return int(self.ids.shape[1])

    @property
    def fill(self) -> float:
        """Share of the B * L columns that are not padding."""
        return self.tokens / max(1, self.rows * self.length)

    def __repr__(self) -> str:
        size = "x".join(map(str, self.pixels.shape[2:]))
        return (
            f"PackedBatch(epoch {self.epoch} step {self.step}: {self.packs} packs in {self.rows} x {self.length}, "
            f"{self.tokens} tokens, fill {self.fill:.1%}, {len(self.pixels)} images of {size})"
        )

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> PackedBatch:
        """The batch with its tensors on `device`; `sample_spans` stays on the CPU."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin(self) -> PackedBatch:
        """The batch with its tensors in page-locked memory, from which copies to a GPU run in the background.

        Without CUDA, the batch as it is.
        """
        if not torch.cuda.is_available():
            return self
        return self._each(lambda tensor: tensor if tensor.is_cuda or tensor.is_pinned() else tensor.pin_memory())

    def trim(self, multiple_of: int = 64) -> PackedBatch:
        """The batch without the columns that are padding in all rows; L stays a multiple of `multiple_of`, or as it is.

        Its tensors view this batch's; at least one column stays.

        Raises:
            UsageError: `multiple_of` is below 1.
        """
        if multiple_of < 1:
            raise UsageError(f"trim: multiple_of must be at least 1, found {multiple_of}")
        used = self.sample_spans[:, 1] + self.sample_spans[:, 2]
        max_seqlen = max(1, int(used.max())) if len(used) else 1
        length = min(self.length, -(-max_seqlen // multiple_of) * multiple_of)
        if length == self.length:
            return self
        bounds = segment_bounds(self.sample_spans.numpy(), self.rows, length)
        return replace(
            self,
            ids=self.ids[:, :length],
            labels=self.labels[:, :length],
            positions=self.positions[:, :length],
            segments=self.segments[:, :length],
            cu_seqlens=torch.from_numpy(bounds).to(self.cu_seqlens.device),
            max_seqlen=int(np.diff(bounds).max(initial=0)),
        )

    def normalized(
        self,
        dtype: torch.dtype = torch.float32,
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
    ) -> Tensor:
        """Pixels as the vision tower takes them, [N, 3, H, W] of `dtype`, computed in float32 where the pixels are.

        Args:
            mean, std: of RGB from 0 to 1, one number per channel or one for all; by default, `normalization`.

        Raises:
            UsageError: the normalization is neither known to the stream nor passed; mean or std is invalid; dtype is
                not a float type.
        """
        if not dtype.is_floating_point:
            raise UsageError(f"normalized: dtype must be a float type, found {dtype}; `pixels` has the uint8 values")
        if (mean is None) != (std is None):
            raise UsageError("normalized: pass both mean and std, or neither")
        wanted = self.normalization if mean is None or std is None else Normalization.of(mean, std)
        if wanted is None:
            raise UsageError(
                f"the model's normalization is not known: pass {NORMALIZATION_ARGUMENTS} to vila_data.stream, mean and std to "
                "normalized(), or dtype=torch.uint8 if the model normalizes by itself"
            )
        scale, shift = _scale_and_shift(wanted, self.pixels.device)
        return torch.addcmul(shift, self.pixels.float(), scale).to(dtype)

    @property
    def longest(self) -> int:
        """The old name of `max_seqlen`, kept for one release."""
        return _renamed("longest", "max_seqlen", self.max_seqlen)

    @property
    def image_places(self) -> Tensor:
        """The old name of `image_spans`, kept for one release."""
        return _renamed("image_places", "image_spans", self.image_spans)

    @property
    def sample_places(self) -> Tensor:
        """The old name of `sample_spans`, kept for one release."""
        return _renamed("sample_places", "sample_spans", self.sample_spans)

    def normalised(
        self,
        dtype: torch.dtype = torch.float32,
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
    ) -> Tensor:
        """The old name of `normalized`, kept for one release."""
        warnings.warn("normalised() is now normalized()", DeprecationWarning, stacklevel=2)
        return self.normalized(dtype, mean, std)

    def vila(
        self,
        *,
        rows: Literal["packs", "samples"] = "packs",
        tokens_per_image: int | Sequence[int] | None = None,
        pad_id: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> formats.VilaInputs:
        """Inputs of a VILA or LLaVA model: one placeholder per image. `formats.vila` explains the arguments."""
        return formats.vila(self, rows=rows, tokens_per_image=tokens_per_image, pad_id=pad_id, dtype=dtype)

    def hugging_face(
        self,
        image_token_id: int,
        *,
        mask: Literal["none", "bool4d", "additive"] = "none",
        attn_implementation: str | None = None,
        tokens_per_image: int | Sequence[int] | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> formats.HuggingFaceInputs:
        """Inputs of a transformers LLaVA-style model. `formats.hugging_face` explains the arguments."""
        return formats.hugging_face(
            self,
            image_token_id,
            mask=mask,
            attn_implementation=attn_implementation,
            tokens_per_image=tokens_per_image,
            dtype=dtype,
        )

    def varlen(self, *, image_token_id: int | None = None, dtype: torch.dtype = torch.float32) -> formats.VarlenInputs:
        """All samples one after another without padding, as FlashAttention takes them; see `formats.varlen`."""
        return formats.varlen(self, image_token_id=image_token_id, dtype=dtype)

    def _each(self, change: Callable[[Tensor], Tensor]) -> PackedBatch:
        changed: dict[str, Any] = {
            field.name: change(value)
            for field in fields(self)
            if field.name != "sample_spans" and isinstance(value := getattr(self, field.name), Tensor)
        }
        return replace(self, **changed)


def segment_bounds(sample_spans: NDArray[np.int64], rows: int, length: int) -> NDArray[np.int32]:
    """cu_seqlens int32[C + 1] of `rows` x `length` columns with these samples; each padding is a segment."""
    row, first, columns = sample_spans.T
    ends = np.concatenate((row * length + first + columns, (np.arange(rows) + 1) * length))
    return np.unique(np.concatenate((np.zeros(1, np.int64), ends))).astype(np.int32)


def _renamed(old: str, new: str, value: _T) -> _T:
    warnings.warn(f"PackedBatch.{old} is now {new}", DeprecationWarning, stacklevel=3)
    return value


class _Memory:
    """An array's memory, with what owns it: numpy keeps this object as the base of the array made of it."""

    def __init__(self, array: NDArray[Any], keep: object) -> None:
        self.__array_interface__ = array.__array_interface__
        self.owners = (array, keep)


def _kept(array: NDArray[Any], keep: object) -> NDArray[Any]:
    return np.asarray(_Memory(array, keep))


@lru_cache(maxsize=32)
def _scale_and_shift(wanted: Normalization, device: torch.device) -> tuple[Tensor, Tensor]:
    """Factor and summand of the levels 0 to 255, [1, 3, 1, 1] float32; made once, since making them waits for the GPU."""
    scale = torch.tensor([wanted.rescale / s for s in wanted.std], dtype=torch.float32, device=device)
    shifts = [-m / s for m, s in zip(wanted.mean, wanted.std, strict=True)]
    shift = torch.tensor(shifts, dtype=torch.float32, device=device)
    return scale.view(1, -1, 1, 1), shift.view(1, -1, 1, 1)
