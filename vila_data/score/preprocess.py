"""From a decoded image to a model's input, in exact numbers, with Pillow and numpy.

Values pass through a table of 256 entries per channel: the rescaling and normalizing
of each of the 256 levels is computed once, in the order of the model's own recipe.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vila_data.core.errors import RunError
from vila_data.score.model import PROCESSORS, Source

RESAMPLING: Final = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}


@dataclass(frozen=True, eq=False)
class Preprocess:
    """How an image becomes `pixels_CHW`.

    mode:  "squash" resizes straight to height x width; "pad_square" first puts the image in
           the middle of a square of `pad_color`; "crop" resizes the shorter side to
           `shorter_side` and cuts height x width out of the middle (black where it is smaller).
    table: [3, 256] float32, the model's value of each level of each channel.
    """

    mode: Literal["squash", "pad_square", "crop"]
    height: int
    width: int
    resampling: Image.Resampling
    table: NDArray[np.float32]
    shorter_side: int = 0
    pad_color: tuple[int, int, int] = (255, 255, 255)

    @property
    def side(self) -> int:
        """The shorter side, in pixels, to which an image is resized."""
        return self.shorter_side if self.mode == "crop" else min(self.height, self.width)

    def __call__(self, rgb_HWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """[3, height, width] float32 of an image [H, W, 3] uint8."""
        image = Image.fromarray(rgb_HWC)
        if self.mode == "crop":
            levels_HWC = self._crop(image)
        else:
            if self.mode == "pad_square":
                image = self._square(image)
            levels_HWC = np.asarray(self._resize(image, self.width, self.height))
        pixels_CHW = np.empty((3, self.height, self.width), np.float32)
        for channel in range(3):
            np.take(self.table[channel], levels_HWC[:, :, channel], out=pixels_CHW[channel], mode="clip")
        return pixels_CHW

    def _resize(self, image: Image.Image, width: int, height: int) -> Image.Image:
        return image if image.size == (width, height) else image.resize((width, height), self.resampling)

    def _square(self, image: Image.Image) -> Image.Image:
        side = max(image.size)
        canvas = Image.new("RGB", (side, side), self.pad_color)
        canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        return canvas

    def _crop(self, image: Image.Image) -> NDArray[np.uint8]:
        short, long = sorted(image.size)
        other = int(self.shorter_side * long / short)
        wide = image.width > image.height
        image = self._resize(image, *((other, self.shorter_side) if wide else (self.shorter_side, other)))
        left, top = (image.width - self.width) // 2, (image.height - self.height) // 2
        return np.asarray(image.crop((left, top, left + self.width, top + self.height)))


def level_table(mean: Sequence[float], std: Sequence[float], scale: float | None = None) -> NDArray[np.float32]:
    """[3, 256] (level * scale - mean) / std, in float32 after the scaling, as transformers computes it.

    Args:
        mean, std: three values each; on the scale of the levels after `scale`.
        scale: factor on the levels 0 to 255; None leaves them.
    """
    levels = np.arange(256, dtype=np.float64)
    values = (levels if scale is None else levels * scale).astype(np.float32)
    table = (values[None, :] - np.asarray(mean, np.float32)[:, None]) / np.asarray(std, np.float32)[:, None]
    return table.astype(np.float32)


def read_preprocess(source: Source) -> Preprocess:
    """Preprocessing of a model, from its preprocessor_config.json (or processor_config.json).

    Raises:
        RunError: the file is missing, broken, or asks for steps that are not known here.
    """
    path = source.file(*PROCESSORS)
    if path is None:
        raise RunError(f"score.clip.model: {source.name}: has no preprocessor_config.json; choose a complete model")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        return preprocess_of(value.get("image_processor", value))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise RunError(f"{path}: unsupported preprocessing: {error!r}; choose another model") from error


def preprocess_of(value: Mapping[str, Any]) -> Preprocess:
    """Preprocessing from the fields of an image processor of transformers.

    Raises:
        ValueError, KeyError, TypeError: fields that are missing or not known.
    """
    size, crop = _size(value["size"]), _size(value.get("crop_size", value["size"]))
    crops = bool(value.get("do_center_crop", "crop_size" in value))
    if not value.get("do_resize", True) or value.get("do_pad"):
        raise ValueError("do_resize: false and do_pad: true are not supported")
    normalize = bool(value.get("do_normalize", True))
    table = level_table(
        value["image_mean"] if normalize else (0.0,) * 3,
        value["image_std"] if normalize else (1.0,) * 3,
        float(value.get("rescale_factor", 1 / 255)) if value.get("do_rescale", True) else None,
    )
    resampling = Image.Resampling(value.get("resample", Image.Resampling.BICUBIC))
    if set(size) == {"shortest_edge"} and crops:
        side = size["shortest_edge"]
        height, width = (crop["height"], crop["width"]) if "height" in crop else (side, side)
        return Preprocess("crop", height, width, resampling, table, shorter_side=side)
    if set(size) == {"height", "width"} and (not crops or crop == size):
        return Preprocess("squash", size["height"], size["width"], resampling, table)
    raise ValueError(f"size {size} with do_center_crop {crops} and crop_size {crop} is not supported")


def _size(value: Any) -> dict[str, int]:
    if isinstance(value, int):
        return {"shortest_edge": value}
    return {name: int(number) for name, number in value.items() if number is not None}
