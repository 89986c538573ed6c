"""Both CLIP backends: the same vectors, whatever the batch; clear errors where files are wrong; score_part over real models."""

from __future__ import annotations

import csv
import random
import shutil
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vila_data.core.cpus import cpu_count
from vila_data.core.errors import DataError, RunError, UsageError
from vila_data.core.receipts import read_receipt
from vila_data.core.store import Store
from vila_data.score.clip import Clip, ClipConfig, clip_fingerprint, load_clip
from vila_data.score.model import unit_length

from .fake_clip import score_part
from .parts import Item, document, jpeg, pair, read_table, write_part

TEXTS = ["a dog", "", "a text that is surely longer than the two dozen bytes that are read", "é 你好", "a dog"]


def config_for(backend: str, clip_folder: Path, onnx_folder: Path, **values: object) -> ClipConfig:
    folder = clip_folder if backend == "transformers" else onnx_folder
    return ClipConfig.model_validate({"backend": backend, "model": str(folder), **values})


def pictures() -> list[np.ndarray]:
    """[32, 32, 3], which both folders' preprocessing leaves at its size."""
    return [np.asarray(Image.open(BytesIO(jpeg(seed, (32, 32))))) for seed in range(7)]


def embed(clip: Clip, batch: int) -> tuple[np.ndarray, np.ndarray]:
    pixels = [clip.prepare(rgb) for rgb in pictures()]
    images = [clip.embed_images(pixels[at : at + batch]) for at in range(0, len(pixels), batch)]
    texts = [clip.embed_texts(TEXTS[at : at + batch]) for at in range(0, len(TEXTS), batch)]
    return np.concatenate(images), np.concatenate(texts)


@pytest.mark.parametrize("backend", ["transformers", "onnx"])
def test_bits_do_not_depend_on_batch_or_threads(backend: str, clip_folder: Path, onnx_folder: Path) -> None:
    found = []
    for threads in (1, 2, 5):
        clip = load_clip(config_for(backend, clip_folder, onnx_folder), threads)
        found += [embed(clip, batch) for batch in (1, 3, 64)]
    for images, texts in found:
        assert images.dtype == texts.dtype == np.float32
        assert images.shape == (7, clip.dim)
        assert images.tobytes() == found[0][0].tobytes()
        assert texts.tobytes() == found[0][1].tobytes()
        np.testing.assert_allclose(np.linalg.norm(texts, axis=1), 1, atol=1e-6)
    assert (found[0][1][0] == found[0][1][4]).all()
    assert np.ptp(found[0][0] @ found[0][1].T) > 0.05  # the random model tells items apart, or this test proves nothing


def test_backends_agree(clip_folder: Path, onnx_folder: Path) -> None:
    one, two = (embed(load_clip(config_for(b, clip_folder, onnx_folder), 2), 64) for b in ("transformers", "onnx"))
    np.testing.assert_allclose(one[0], two[0], atol=1e-5)
    np.testing.assert_allclose(one[1], two[1], atol=1e-5)


def test_transformers_equals_its_own_reference(clip_folder: Path) -> None:
    torch = pytest.importorskip("torch")
    from transformers import AutoTokenizer, CLIPModel

    processing = pytest.importorskip("transformers.models.clip.image_processing_pil_clip")
    model = CLIPModel.from_pretrained(clip_folder).eval()
    tokens = AutoTokenizer.from_pretrained(clip_folder)(
        TEXTS, padding=True, truncation=True, max_length=24, return_tensors="pt"
    )
    images = [np.asarray(Image.open(BytesIO(jpeg(seed, (50 + seed, 37))))) for seed in range(4)]
    processor = processing.CLIPImageProcessorPil.from_pretrained(clip_folder)
    pixels = processor([Image.fromarray(rgb) for rgb in images], return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        output = model(pixel_values=pixels, **tokens)
    clip = load_clip(ClipConfig(model=str(clip_folder)), 2)
    ours = clip.embed_images([clip.prepare(rgb) for rgb in images])
    np.testing.assert_allclose(ours, output.image_embeds.numpy(), atol=1e-5)
    np.testing.assert_allclose(clip.embed_texts(TEXTS), output.text_embeds.numpy(), atol=1e-5)


def test_batched_path_agrees(clip_folder: Path) -> None:
    """The path that a GPU takes, run on the CPU: the same within the rounding of batches and padding."""
    clip = load_clip(ClipConfig(model=str(clip_folder)), 2)
    alone = embed(clip, 64)
    clip._pool = None  # type: ignore[attr-defined]
    clip.batch_size = 2
    batched = embed(clip, 64)
    np.testing.assert_allclose(alone[0], batched[0], atol=1e-5)
    np.testing.assert_allclose(alone[1], batched[1], atol=1e-5)


@pytest.mark.parametrize("backend", ["transformers", "onnx"])
def test_fingerprint_is_of_the_bytes(backend: str, clip_folder: Path, onnx_folder: Path, tmp_path: Path) -> None:
    config = config_for(backend, clip_folder, onnx_folder)
    fingerprint = clip_fingerprint(config)
    assert load_clip(config, 1).fingerprint == fingerprint
    copy = tmp_path / "copy"
    shutil.copytree(config.model, copy)
    moved = config.model_copy(update={"model": str(copy), "batch_size": 3})
    assert clip_fingerprint(moved) == fingerprint
    (copy / "README.md").write_text("no part of the model")
    assert clip_fingerprint(moved) == fingerprint
    weights = copy / ("model.safetensors" if backend == "transformers" else "text.onnx")
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert clip_fingerprint(moved) != fingerprint


@pytest.mark.parametrize("backend", ["transformers", "onnx"])
def test_missing_models(backend: str, clip_folder: Path, onnx_folder: Path, tmp_path: Path) -> None:
    config = config_for(backend, clip_folder, onnx_folder)
    absent = config.model_copy(update={"model": str(tmp_path / "absent")})
    for call in (load_clip, clip_fingerprint):
        with pytest.raises(UsageError, match=r"absent: no such directory"):
            call(absent)
    for path in Path(config.model).iterdir():
        copy = tmp_path / f"without-{path.name}"
        shutil.copytree(config.model, copy)
        (copy / path.name).unlink()
        broken = config.model_copy(update={"model": str(copy)})
        if path.name == "tokenizer_config.json":  # transformers can do without
            continue
        for call in (load_clip, clip_fingerprint):
            with pytest.raises(UsageError, match=f"without-{path.name}: has no .*{path.name}"):
                call(broken)


@pytest.mark.parametrize(
    ("backend", "name"),
    [
        ("transformers", "model.safetensors"),
        ("transformers", "config.json"),
        ("transformers", "preprocessor_config.json"),
        ("onnx", "image.onnx"),
        ("onnx", "text.onnx"),
        ("onnx", "tokenizer.json"),
        ("onnx", "config.json"),
    ],
)
def test_damaged_models(backend: str, name: str, clip_folder: Path, onnx_folder: Path, tmp_path: Path) -> None:
    config = config_for(backend, clip_folder, onnx_folder)
    copy = tmp_path / "copy"
    shutil.copytree(config.model, copy)
    (copy / name).write_bytes((copy / name).read_bytes()[:50])
    with pytest.raises(RunError, match="copy") as caught:
        load_clip(config.model_copy(update={"model": str(copy)}), 1)
    assert str(copy) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_hub_id_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UsageError, match="someone/no-such-clip: is neither a directory nor a model"):
        clip_fingerprint(ClipConfig(model="someone/no-such-clip"))


def test_broken_vectors_are_errors() -> None:
    for bad in (np.zeros((1, 3)), np.full((1, 3), np.nan)):
        with pytest.raises(DataError, match="zero or not finite"):
            unit_length(bad.astype(np.float32), "model")


def test_cpu_count() -> None:
    assert cpu_count() >= 1


@pytest.mark.parametrize("backend", ["transformers", "onnx"])
def test_table_bytes_do_not_depend_on_batch_or_threads(
    backend: str, clip_folder: Path, onnx_folder: Path, tmp_path: Path
) -> None:
    folder = clip_folder if backend == "transformers" else onnx_folder
    items = [
        document(
            f"d{i}", [f"sentence {i} {j}" for j in range(4)], [jpeg(3 * i + j, (60, 40)) for j in range(3)], [0, 1, 3]
        )
        for i in range(6)
    ]
    found = set()
    for batch in (1, 3, 64):
        for threads in (1, 2):
            config = ClipConfig.model_validate(
                {"backend": backend, "model": str(folder), "batch_size": batch, "embeddings": True}
            )
            store = Store(str(tmp_path / f"{batch}-{threads}"))
            part = write_part(store, items)
            receipt = score_part(store, part, None, load_clip(config, threads), config, "in", threads=threads)
            found.add((receipt.fingerprint(), store.read(part.receipt("score clip"))))
            assert len(receipt.outputs) == 4
    assert len(found) == 1


def photos(shared: Path) -> list[tuple[str, bytes, str]]:
    """(name, JPEG, a caption) of the 500 photos."""
    folder = shared / "realdata/flickr8k"
    with open(folder / "captions_en.csv", encoding="utf-8", newline="") as stream:
        captions = {row["image"]: row["caption"] for row in csv.DictReader(stream)}
    return [(name, (folder / "images" / name).read_bytes(), text) for name, text in sorted(captions.items())]


@pytest.mark.realdata
def test_right_captions_score_above_wrong_ones(shared: Path, store: Store) -> None:
    found = photos(shared)[::2]
    wrong = [text for _, _, text in found]
    random.Random(3).shuffle(wrong)
    items: list[Item | None] = [
        document(name.split(".")[0], [text, other], [data], [0])
        for (name, data, text), other in zip(found, wrong, strict=True)
    ]
    config = ClipConfig(backend="onnx", model=str(shared / "liteclip"))
    part = write_part(store, items)
    score_part(store, part, None, load_clip(config), config, "in")
    right_wrong = np.array([row["similarities"] for row in read_table(store, part.scores_table("clip"))])
    auc = (right_wrong[:, 0][:, None] > right_wrong[:, 1][None, :]).mean()
    assert len(right_wrong) == 250
    assert auc >= 0.95


@pytest.mark.realdata
def test_equal_to_the_models_own_example(shared: Path, store: Store) -> None:
    """score_pairs.py, which ships with the model, decodes with Pillow at full size; so do we at this size."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("score_pairs", shared / "liteclip/score_pairs.py")
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    found = photos(shared)[:20]
    config = ClipConfig(backend="onnx", model=str(shared / "liteclip"))
    part = write_part(store, [pair(name.split(".")[0], text, data) for name, data, text in found])
    score_part(store, part, None, load_clip(config), config, "in")
    ours = np.array([row["similarity"] for row in read_table(store, part.scores_table("clip"))])
    images = example.embed_images([shared / "realdata/flickr8k/images" / name for name, _, _ in found])
    theirs = (images * example.embed_texts([text for _, _, text in found])).sum(axis=1)
    np.testing.assert_allclose(ours, theirs, atol=2e-3)
    receipt = read_receipt(store, part.receipt("score clip"))
    assert receipt is not None
    assert receipt.counts["distinct_images"] == 20
