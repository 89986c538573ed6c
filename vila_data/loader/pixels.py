"""Images as a batch holds them: how JPEGs become squares of pixels, and how a model normalizes those.

JPEG is decoded at the power of two just above the wanted size and resized from there straight into place. The scaled
image of an odd side ends between two pixels, so the resize is told the exact ratio, not that of the whole pixels:
that alone is worth 2 to 4 dB. What the fast decoder does not take goes through Pillow, whose word is final.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple, cast

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from vila_data.core.config import StrictModel
from vila_data.core.errors import UsageError
from vila_data.core.image_formats import ImageError, open_pixels
from vila_data.core.images import covering_scale, decode_scaled, plain_size

Pixels = NDArray[np.uint8]
Level = Annotated[int, Field(ge=0, le=255)]
Channels = tuple[float, float, float]

_MAX_PIXELS: Final = 1 << 28  # not a stored image but a damaged header
_CROP_SEARCH: Final = 512  # how many source pixels earlier than needed a crop may begin
_CROP_SHIFT: Final = 0.05  # pixels by which it may be off

_METHODS: Final = {"cubic": cv2.INTER_CUBIC, "linear": cv2.INTER_LINEAR, "area": cv2.INTER_AREA}

_thread = threading.local()

_PROCESSOR_FILES: Final = ("preprocessor_config.json", "processor_config.json")
_RESCALE: Final = 1 / 255  # of an image processor whose file does not name a factor
NORMALIZATION_ARGUMENTS: Final = 'image={"mean": …, "std": …} or image={"processor": …}'


@dataclass(frozen=True, slots=True)
class Normalization:
    """Pixels of levels 0 to 255 as a model takes them: (level * rescale - mean) / std, for red, green and blue.

    rescale is 1/255 for a mean and std of levels from 0 to 1, which is what nearly all models use.
    """

    mean: Channels
    std: Channels
    rescale: float = _RESCALE

    @classmethod
    def of(
        cls, mean: float | Sequence[float], std: float | Sequence[float], rescale: float = _RESCALE
    ) -> Normalization:
        """From three numbers, or one number for all channels.

        Raises:
            UsageError: mean or std is neither one finite number nor three, std is not positive, rescale is not either.
        """
        means, stds = channels(mean), channels(std)
        if means is None or stds is None or not all(value > 0 for value in stds):
            raise UsageError(
                f"mean must be one number or three, and std one positive number or three, found mean {mean}, std {std}"
            )
        factor = channels(rescale)
        if factor is None or factor[0] <= 0:
            raise UsageError(f"rescale must be a positive number, found {rescale}")
        return cls(means, stds, factor[0])

    @property
    def level_of_mean(self) -> tuple[int, int, int] | None:
        """The levels that become 0, rounded down as LLaVA does for its padding; None if one is not from 0 to 255."""
        red, green, blue = (int(value / self.rescale + 1e-6) for value in self.mean)
        return (red, green, blue) if all(0 <= level <= 255 for level in (red, green, blue)) else None


def channels(value: Any) -> Channels | None:
    """One number for all channels or one number for each, as three; None: neither."""
    found = value.tolist() if hasattr(value, "tolist") else value  # of numpy or torch
    numbers = list(found) if isinstance(found, Sequence) and not isinstance(found, str) else [found] * 3
    if len(numbers) != 3:
        return None
    if not all(isinstance(one, int | float) and not isinstance(one, bool) and math.isfinite(one) for one in numbers):
        return None
    red, green, blue = map(float, numbers)
    return red, green, blue


def _for_each_channel(value: Any) -> Any:
    found = None if value is None else channels(value)
    if value is not None and found is None:
        raise PydanticCustomError("channels", "Input should be one number or three")
    return found


ForChannels = Annotated[Channels | None, BeforeValidator(_for_each_channel)]


class ImageOptions(StrictModel):
    """How an image becomes a square of `size_px` pixels, and how the model normalizes its pixels.

    fit: "pad" (the longer side to size_px, centered on `background`), "resize" (both sides to size_px, the aspect ratio
    is not kept) or "crop" (the shorter side to size_px, the center is taken).
    background: RGB of padding, and of images that cannot be decoded. By default, the levels that normalize to 0, or
    CLIP's mean if the normalization is not given.
    mean, std: the model's normalization of RGB from 0 to 1, one number per channel or one for all.
    processor: a directory or hub id of the model, whose preprocessor_config.json gives the normalization instead.
    """

    size_px: Annotated[int, Field(ge=1, le=16_384)] = 336
    fit: Literal["pad", "resize", "crop"] = "pad"
    background: tuple[Level, Level, Level] = (122, 116, 104)
    mean: ForChannels = None
    std: ForChannels = None
    processor: str | None = None

    def normalization(self) -> Normalization | None:
        """The normalization of `mean` and `std`, or of `processor`'s file; None if neither is given.

        Raises:
            UsageError: mean and std are not given together, or along with a processor; the processor cannot be read.
        """
        if self.processor is not None:
            if self.mean is not None or self.std is not None:
                raise UsageError("found processor along with mean or std; pass either a processor, or mean and std")
            return read_processor(self.processor)
        if (self.mean is None) != (self.std is None):
            found, missing = ("mean", "std") if self.std is None else ("std", "mean")
            raise UsageError(f"found {found} without {missing}; pass both")
        return None if self.mean is None or self.std is None else Normalization.of(self.mean, self.std)

    def padded_for(self, normalization: Normalization | None) -> ImageOptions:
        """These options with the background of `normalization`, unless one is given."""
        level = None if normalization is None else normalization.level_of_mean
        if level is None or "background" in self.model_fields_set:
            return self
        return self.model_copy(update={"background": level})


def decode_into(jpeg: bytes | memoryview, options: ImageOptions, out: Pixels) -> None:
    """Decode an image into `out`.

    Args:
        out: uint8 [size_px, size_px, 3] RGB, contiguous.

    Raises:
        ImageError: truncated_image, undecodable_image, not_an_image or too_many_pixels; `out` is then undefined.
    """
    size = plain_size(jpeg)
    if size is not None:
        if size[0] * size[1] > _MAX_PIXELS:
            raise ImageError("too_many_pixels", f"{size[1]} x {size[0]}")
        plan = _plan(*size, options.size_px, options.fit)
        into = out[plan.top : plan.top + plan.height] if plan.direct else None
        decoded = decode_scaled(jpeg, *size, plan.scale, into)
        if decoded is not None:
            if into is None:
                _resize_into(decoded, plan, out)
            _pad(plan, options, out)
            return
    rgb, _ = open_pixels(bytes(jpeg), max_pixels=_MAX_PIXELS, min_side=None)
    plan = _plan(*rgb.shape[:2], options.size_px, options.fit, whole=True)
    _resize_into(rgb, plan, out)
    _pad(plan, options, out)


def fill_background(options: ImageOptions, out: Pixels) -> None:
    """Fill `out` [size_px, size_px, 3] with the background."""
    np.copyto(out, _background(options.size_px, options.background))


class _Plan(NamedTuple):
    """How a decoded image is placed in the square.

    scale: log2 of the decoder's; direct: decoded straight into place.
    rows, columns: what is used of the decoded image; factors (x, y): its resizing, by `method`.
    skip (rows, columns): what of the resized image is cut off before its top and left.
    top, left, height, width: its place in the square.
    """

    scale: int
    direct: bool
    rows: slice
    columns: slice
    factors: tuple[float, float]
    method: Literal["as it is", "cubic", "linear", "halved", "area"]
    skip: tuple[int, int]
    top: int
    left: int
    height: int
    width: int


class _Axis(NamedTuple):
    """One side of a plan: the span of decoded pixels, their resizing, and the resized pixels cut off in front."""

    start: int
    stop: int
    factor: float
    skip: int


@lru_cache(maxsize=8192)
def _plan(height: int, width: int, side: int, fit: str, whole: bool = False) -> _Plan:
    """The plan for an image of height x width; `whole`: it is already decoded, at its full size."""
    target_height = target_width = tall = wide = side  # the resized image; what of it is shown
    if fit == "pad":
        long = max(height, width)
        tall = target_height = max(1, round(height * side / long))
        wide = target_width = max(1, round(width * side / long))
    elif fit == "crop":
        short = min(height, width)
        target_height, target_width = side * height // short, side * width // short
    scale = 0 if whole else covering_scale(height, width, target_height, target_width)
    while scale and (_taken(height, scale, target_height) is None or _taken(width, scale, target_width) is None):
        scale -= 1
    rows, columns = _axis(height, scale, target_height, tall), _axis(width, scale, target_width, wide)
    as_it_is = rows.factor == columns.factor == 1
    return _Plan(
        scale=scale,
        direct=as_it_is and (target_height, target_width) == (tall, side) and not whole,
        rows=slice(rows.start, rows.stop),
        columns=slice(columns.start, columns.stop),
        factors=(columns.factor, rows.factor),
        method="as it is" if as_it_is else _method(max(1 / rows.factor, 1 / columns.factor)),
        skip=(rows.skip, columns.skip),
        top=(side - tall) // 2,
        left=(side - wide) // 2,
        height=tall,
        width=wide,
    )


def _method(ratio: float) -> Literal["cubic", "linear", "halved", "area"]:
    """The method for `ratio` source pixels per pixel. Bilinear (2-tap) resizing skips pixels above 2; resizing to twice
    the size and halving does not, and takes a third of the time of averaging areas."""
    return "cubic" if ratio <= 1.15 else "linear" if ratio <= 2 else "halved" if ratio <= 4 else "area"


def _axis(length: int, scale: int, target: int, shown: int) -> _Axis:
    """`length` pixels, decoded at 1/2**scale and resized to `target`, of which the `shown` in the middle are needed."""
    decoded = -(-length >> scale)
    first = (target - shown) // 2
    exact = target * 2**scale / length
    if exact == 1:
        return _Axis(first, first + shown, 1.0, 0)
    if target == shown:
        return _Axis(0, _taken(length, scale, target) or decoded, exact, 0)
    start, skip = _crop_start(first, exact)
    return _Axis(start, min(decoded, start + int((skip + shown) / exact) + 3), exact, skip)


def _taken(length: int, scale: int, target: int) -> int | None:
    """How many of the decoded pixels become `target` by their exact ratio; None: only another scale has that many."""
    decoded, exact = -(-length >> scale), target * 2**scale / length
    for taken in (decoded, decoded - 1):  # the part of a pixel at the end may make one too many
        if taken and round(taken * exact) == target:
            return taken
    return None


def _crop_start(first: int, factor: float) -> tuple[int, int]:
    """Where to cut the source so that resized pixels fall as if all of it were resized, and how many come before `first`.

    A cut at source pixel s shifts them by the part of s * factor after the point: the last s whose shift is small.
    """
    last = max(0, int(first / factor) - 2)
    starts = range(last, max(-1, last - _CROP_SEARCH), -1)
    shifts = ((start, abs(round(start * factor) - start * factor)) for start in starts)
    start = next((start for start, shift in shifts if shift < _CROP_SHIFT), starts[-1])
    return start, first - round(start * factor)


def _resize_into(decoded: Pixels, plan: _Plan, out: Pixels) -> None:
    """Resize the planned part of `decoded` into its place."""
    source = decoded[plan.rows, plan.columns]
    place = out[plan.top : plan.top + plan.height, plan.left : plan.left + plan.width]
    fx, fy = plan.factors
    top, left = plan.skip
    if plan.method == "as it is":
        np.copyto(place, source)
    elif plan.method == "halved":
        twice = _resize(source, 2 * fx, 2 * fy, cv2.INTER_LINEAR)
        shown = twice[2 * top : 2 * (top + plan.height), 2 * left : 2 * (left + plan.width)]
        cv2.resize(shown, (plan.width, plan.height), dst=place, interpolation=cv2.INTER_AREA)
    else:
        if plan.method == "area" and max(fx, fy) > 1:  # one side shrinks, the other grows: each has its own method
            source = _resize(source, min(fx, 1), min(fy, 1), cv2.INTER_AREA).copy()
            fx, fy = max(fx, 1), max(fy, 1)
            resized = _resize(source, fx, fy, cv2.INTER_CUBIC, place)
        else:
            resized = _resize(source, fx, fy, _METHODS[plan.method], place)
        if resized is not place:
            np.copyto(place, resized[top : top + plan.height, left : left + plan.width])


def _resize(source: Pixels, fx: float, fy: float, method: int, place: Pixels | None = None) -> Pixels:
    """Resized by these factors: into `place` where it has that shape, else into this thread's buffer."""
    height, width = round(source.shape[0] * fy), round(source.shape[1] * fx)
    into = place if place is not None and place.shape[:2] == (height, width) else _buffer(height, width)
    return cast(Pixels, cv2.resize(source, None, dst=into, fx=fx, fy=fy, interpolation=method))


def _pad(plan: _Plan, options: ImageOptions, out: Pixels) -> None:
    if plan.height == plan.width == options.size_px:
        return
    background = _background(options.size_px, options.background)
    bottom, right = plan.top + plan.height, plan.left + plan.width
    np.copyto(out[: plan.top], background[: plan.top])
    np.copyto(out[bottom:], background[bottom:])
    if plan.width < options.size_px:
        np.copyto(out[:, : plan.left], background[:, : plan.left])
        np.copyto(out[:, right:], background[:, right:])


@lru_cache(maxsize=8)
def _background(side: int, color: tuple[int, int, int]) -> Pixels:
    """The empty square: copying it is many times faster than broadcasting three values."""
    square = np.empty((side, side, 3), np.uint8)
    square[:] = color
    square.setflags(write=False)
    return square


def _buffer(height: int, width: int) -> Pixels:
    """This thread's [height, width, 3] for images that are not resized straight into place."""
    size = height * width * 3
    buffer: Pixels | None = getattr(_thread, "buffer", None)
    if buffer is None or buffer.size < size:
        buffer = np.empty(size, np.uint8)
        _thread.buffer = buffer
    return buffer[:size].reshape(height, width, 3)


def read_processor(name: str) -> Normalization:
    """The normalization of an image processor: a model's directory, its preprocessor_config.json, or a hub id.

    Raises:
        UsageError: there is no such file, or it does not say how pixels are normalized.
    """
    path = _processor_file(name)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"processor {name}: {path.name} cannot be read: {error}") from error
    return normalization_of(value, f"processor {name}: {path.name}")


def normalization_of(value: Any, where: str) -> Normalization:
    """The normalization in the fields of an image processor of transformers; `where` begins the messages.

    Raises:
        UsageError: it does not say how pixels are normalized, or in a way that is not supported.
    """
    if isinstance(value, Mapping) and isinstance(value.get("image_processor"), Mapping):
        value = value["image_processor"]
    if not isinstance(value, Mapping):
        raise UsageError(f"{where} must contain an object, found {type(value).__name__}")
    rescales = value.get("do_rescale") is not False
    if rescales and (value.get("rescale_offset") or value.get("offset")):
        raise UsageError(f"{where}: a rescale with an offset is not supported; pass mean and std instead of processor")
    factor = value.get("rescale_factor")
    rescale = (_RESCALE if factor is None else factor) if rescales else 1.0
    mean: Any = 0.0
    std: Any = 1.0
    if value.get("do_normalize") is not False:
        mean, std = value.get("image_mean"), value.get("image_std")
        if mean is None or std is None:
            missing = "image_mean" if mean is None else "image_std"
            raise UsageError(f"{where} has no {missing}; pass mean and std instead of processor")
    try:
        return Normalization.of(mean, std, rescale)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error


def _processor_file(name: str) -> Path:
    """The file that has the processor's fields."""
    path = Path(name).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        found = next((path / file for file in _PROCESSOR_FILES if (path / file).is_file()), None)
        if found is None:
            raise UsageError(f"processor {name}: the directory has neither {' nor '.join(_PROCESSOR_FILES)}")
        return found
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError, LocalEntryNotFoundError

    reasons: list[Exception] = []
    for file in _PROCESSOR_FILES:
        try:
            return Path(hf_hub_download(name, file))
        except LocalEntryNotFoundError as error:  # no network: only a file that is in the cache can be read
            reasons.append(error)
        except EntryNotFoundError:
            continue
        except (OSError, ValueError, RuntimeError, HFValidationError) as error:
            reasons.append(error)
            break
    if not reasons:
        raise UsageError(f"processor {name}: the repository has neither {' nor '.join(_PROCESSOR_FILES)}")
    reason = str(reasons[0]).strip().split("\n", 1)[0].rstrip(" :.")
    raise UsageError(
        f"processor {name}: it is neither a directory nor a repository that can be read: {reason}"
    ) from reasons[0]
