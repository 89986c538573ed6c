"""Pixels are normalized as the model wants it, or not at all: never by a guess."""

from __future__ import annotations

import copy
import json
import pickle
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.loader.made_arrays import MADE_UP, made_batch
from tests.loader.tiny_models import IMAGE_TOKEN
from vila_data.core.errors import UsageError
from vila_data.loader.batch import PackedBatch, _scale_and_shift
from vila_data.loader.pixels import ImageOptions, Normalization, normalization_of, read_processor

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
CLIP = {"image_mean": list(CLIP_MEAN), "image_std": list(CLIP_STD), "do_normalize": True, "rescale_factor": 1 / 255}


def untold(batch: PackedBatch) -> PackedBatch:
    return replace(batch, normalization=None)


def test_normalized_is_the_formula() -> None:
    batch = made_batch(4)
    levels = batch.pixels.double() / 255
    mean, std = (torch.tensor(values).double().view(3, 1, 1) for values in (MADE_UP.mean, MADE_UP.std))
    assert torch.allclose(batch.normalized().double(), (levels - mean) / std, atol=1e-5)
    assert batch.normalized(torch.bfloat16).dtype == torch.bfloat16
    for own in (batch.normalized(mean=(0, 0, 0), std=(1, 1, 1)), untold(batch).normalized(mean=0, std=1)):
        assert torch.allclose(own.double(), levels, atol=1e-6)
    with pytest.warns(DeprecationWarning, match=r"normalized\(\)"):
        assert torch.equal(batch.normalised(torch.float32, MADE_UP.mean, MADE_UP.std), batch.normalized())


def test_normalized_does_not_depend_on_the_default_type() -> None:
    wanted = made_batch(4).normalized()
    _scale_and_shift.cache_clear()
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert torch.equal(made_batch(4).normalized(torch.float32), wanted)
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_view_never_guesses() -> None:
    """One sentence that says what to pass; a batch without images needs nothing."""
    batch = untold(made_batch(4))
    for view in (batch.normalized, batch.vila, batch.varlen, lambda: batch.hugging_face(IMAGE_TOKEN)):
        with pytest.raises(UsageError, match=r'image=\{"mean": …, "std": …\} or image=\{"processor": …\}') as found:
            view()
        assert "\n" not in str(found.value) and ". " not in str(found.value)
    text = replace(batch, pixels=batch.pixels[:0], image_spans=batch.image_spans[:0])
    assert text.vila().images.shape == (0, 3, 8, 8) and text.vila().images.dtype == torch.float32
    assert text.varlen().pixels is None


@pytest.mark.parametrize("told", [False, True])
def test_levels_as_they_are(told: bool) -> None:
    batch = made_batch(4) if told else untold(made_batch(4))
    for pixels in (
        batch.vila(dtype=torch.uint8).images,
        batch.hugging_face(IMAGE_TOKEN, dtype=torch.uint8).pixel_values,
        batch.varlen(dtype=torch.uint8).pixels,
    ):
        assert pixels is not None and pixels.dtype == torch.uint8 and torch.equal(pixels, batch.pixels)
    mask = batch.hugging_face(IMAGE_TOKEN, mask="additive", dtype=torch.uint8).attention_mask
    assert mask is not None and mask.dtype == torch.float32


def test_a_batch_remembers_it() -> None:
    batch = made_batch(4)
    same = [batch.to("cpu"), batch.to("meta"), batch.pin(), batch.trim(8), copy.deepcopy(batch)]
    for other in (*same, pickle.loads(pickle.dumps(batch))):
        assert other.normalization == MADE_UP and hash(other.normalization) == hash(MADE_UP)


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        (CLIP, Normalization(CLIP_MEAN, CLIP_STD)),
        ({"image_mean": 0.5, "image_std": 0.25}, Normalization((0.5,) * 3, (0.25,) * 3)),
        (CLIP | {"do_normalize": False}, Normalization((0.0,) * 3, (1.0,) * 3)),
        ({"do_normalize": False, "do_rescale": False}, Normalization((0.0,) * 3, (1.0,) * 3, 1.0)),
        (CLIP | {"rescale_factor": 1 / 127.5}, Normalization(CLIP_MEAN, CLIP_STD, 1 / 127.5)),
        (CLIP | {"do_rescale": False}, Normalization(CLIP_MEAN, CLIP_STD, 1.0)),
        (CLIP | {"do_rescale": None, "rescale_factor": None}, Normalization(CLIP_MEAN, CLIP_STD)),
        ({"processor_class": "LlavaProcessor", "image_processor": CLIP}, Normalization(CLIP_MEAN, CLIP_STD)),
    ],
)
def test_fields_of_a_processor(fields: dict[str, Any], wanted: Normalization, tmp_path: Path) -> None:
    found = normalization_of(fields, "here")
    assert found == wanted
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(fields))
    assert read_processor(str(tmp_path)) == read_processor(str(tmp_path / "preprocessor_config.json")) == wanted
    (tmp_path / "preprocessor_config.json").rename(tmp_path / "processor_config.json")
    assert ImageOptions(processor=str(tmp_path)).normalization() == wanted


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"do_normalize": True}, "here has no image_mean; pass mean and std instead of processor"),
        ({"image_mean": 0.5}, "here has no image_std"),
        ({}, "here has no image_mean"),
        ([], "here must contain an object, found list"),
        (CLIP | {"image_std": [0.5, 0.5]}, "here: mean must be one number or three, and std one positive number"),
        (CLIP | {"image_std": [0.5, 0.5, 0]}, "here: mean must be"),
        (CLIP | {"image_mean": "half"}, "here: mean must be"),
        (CLIP | {"image_mean": [0.5, True, float("nan")]}, "here: mean must be"),
        (CLIP | {"rescale_factor": 0}, "here: rescale must be a positive number, found 0"),
        (CLIP | {"rescale_offset": True}, "here: a rescale with an offset is not supported"),
    ],
)
def test_a_processor_that_does_not_say_it(fields: Any, said: str) -> None:
    with pytest.raises(UsageError, match=f"^{re.escape(said)}"):
        normalization_of(fields, "here")


def test_a_processor_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"has neither preprocessor_config.json nor processor_config.json"):
        read_processor(str(tmp_path))
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(UsageError, match=r"preprocessor_config.json cannot be read"):
        read_processor(str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in ("nobody/has-this-model", "no/such/dir", "?"):
        with pytest.raises(UsageError, match=f"^processor {re.escape(name)}: it is neither a directory nor a") as found:
            read_processor(name)
        assert "\n" not in str(found.value)


def test_a_processor_of_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub.errors import EntryNotFoundError

    asked: list[tuple[str, str]] = []
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": CLIP}))

    def download(name: str, file: str) -> str:
        asked.append((name, file))
        if name != "some/model" or file != "processor_config.json":
            raise EntryNotFoundError("404")
        return str(tmp_path / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert read_processor("some/model") == Normalization(CLIP_MEAN, CLIP_STD)
    assert asked == [("some/model", "preprocessor_config.json"), ("some/model", "processor_config.json")]
    with pytest.raises(UsageError, match="the repository has neither"):
        read_processor("other/model")


def test_the_background_goes_with_the_normalization() -> None:
    """Padding normalizes to 0, as LLaVA's does; a background that is given stays."""
    for mean, level in ((CLIP_MEAN, (122, 116, 104)), (0.5, (127, 127, 127)), (0, (0, 0, 0))):
        options = ImageOptions(mean=mean, std=CLIP_STD)
        assert options.padded_for(options.normalization()).background == level
    own = ImageOptions(mean=0.5, std=0.5, background=(1, 2, 3))
    assert own.padded_for(own.normalization()).background == (1, 2, 3)
    assert ImageOptions().padded_for(None).background == (122, 116, 104)
    assert ImageOptions().padded_for(Normalization.of(7, 1)).background == (122, 116, 104)


def preprocessed(kind: str, folder: Path, images: list[Image.Image], **changes: Any) -> torch.Tensor:
    """What the image processor of transformers makes of images of the right size; its file is in `folder`."""
    import transformers

    fields = {"size": {"height": 32, "width": 32}} | changes
    if kind == "CLIPImageProcessor":
        fields |= {"do_center_crop": False}
    try:
        processor = getattr(transformers, kind + "Pil")(**fields)  # transformers 5
    except AttributeError:
        processor = getattr(transformers, kind)(**fields)
    processor.save_pretrained(folder)
    found: torch.Tensor = processor(images=images, return_tensors="pt")["pixel_values"]
    return found


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("SiglipImageProcessor", {}),
        ("CLIPImageProcessor", {}),
        ("SiglipImageProcessor", {"do_normalize": False}),
        ("SiglipImageProcessor", {"rescale_factor": 1 / 127.5, "image_mean": [1, 1, 1], "image_std": [1, 1, 1]}),
    ],
)
def test_pixels_are_those_of_the_models_own_processor(kind: str, changes: dict[str, Any], tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    images_NHWC = random.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    images_NHWC[0, :16] = np.arange(256, dtype=np.uint8)[: 16 * 32 * 3 // 6].repeat(6).reshape(16, 32, 3)
    wanted = preprocessed(kind, tmp_path, [Image.fromarray(one) for one in images_NHWC], **changes)
    told = ImageOptions(size_px=32, processor=str(tmp_path)).normalization()
    batch = replace(made_batch(4), pixels=torch.from_numpy(images_NHWC).permute(0, 3, 1, 2), normalization=told)
    assert float((batch.normalized() - wanted).abs().max()) < 1e-6
    if kind.startswith("Siglip") and not changes:
        clip = batch.normalized(mean=CLIP_MEAN, std=CLIP_STD)
        assert float((clip - wanted).abs().max()) > 0.5, "CLIP's would be wrong"
