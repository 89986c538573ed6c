from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from vila_data.score.preprocess import Preprocess, level_table, preprocess_of

OPENAI = {
    "size": {"shortest_edge": 32},
    "crop_size": {"height": 32, "width": 32},
    "do_center_crop": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
}
SIGLIP = {
    "size": {"height": 24, "width": 32},
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "rescale_factor": 1 / 255,
    "resample": 3,
}


def picture(width: int, height: int) -> np.ndarray:
    return np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize(("width", "height"), [(32, 32), (40, 30), (31, 57), (200, 33), (33, 200), (5, 9), (32, 33)])
def test_equal_to_transformers_clip(width: int, height: int) -> None:
    module = pytest.importorskip("transformers.models.clip.image_processing_pil_clip")
    processor = module.CLIPImageProcessorPil(**OPENAI)
    rgb = picture(width, height)
    expected = processor(Image.fromarray(rgb), return_tensors="np")["pixel_values"][0]
    np.testing.assert_array_equal(preprocess_of(OPENAI)(rgb), expected)


def test_equal_to_transformers_siglip() -> None:
    module = pytest.importorskip("transformers.models.siglip.image_processing_pil_siglip")
    rgb = picture(50, 41)
    expected = module.SiglipImageProcessorPil(**SIGLIP)(Image.fromarray(rgb), return_tensors="np")["pixel_values"][0]
    np.testing.assert_array_equal(preprocess_of(SIGLIP)(rgb), expected)


def test_old_configs_with_plain_numbers() -> None:
    old = {**OPENAI, "size": 32, "crop_size": 32}
    rgb = picture(40, 30)
    np.testing.assert_array_equal(preprocess_of(old)(rgb), preprocess_of(OPENAI)(rgb))


@pytest.mark.parametrize(
    "change", [{"do_resize": False}, {"size": {"longest_edge": 4}}, {"do_center_crop": False}, {"do_pad": True}]
)
def test_unknown_steps_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="not supported"):
        preprocess_of({**OPENAI, **change})


def test_squash_and_pad() -> None:
    table = level_table([127.0] * 3, [128.0] * 3)
    assert table[0, 0] == np.float32(-127 / 128)
    assert table[2, 255] == 1.0
    white_on_top = Preprocess("pad_square", 8, 8, Image.Resampling.NEAREST, table)(np.zeros((4, 8, 3), np.uint8))
    assert (white_on_top[:, :2] == 1.0).all()
    assert (white_on_top[:, 2:6] == table[0, 0]).all()
    squashed = Preprocess("squash", 8, 8, Image.Resampling.NEAREST, table)(np.zeros((4, 8, 3), np.uint8))
    assert squashed.shape == (3, 8, 8)
    assert squashed.dtype == np.float32
    assert (squashed == table[0, 0]).all()
