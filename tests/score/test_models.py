"""score_part over real models: tiny random ones, and LiteCLIP on photos where the shared data is there."""

from __future__ import annotations

import csv
import random
from pathlib import Path

import numpy as np
import pytest

from vila_data.core.receipts import read_receipt
from vila_data.core.store import Store
from vila_data.score.clip import ClipConfig, load_clip

from .fake_clip import score_part
from .parts import Item, document, jpeg, pair, read_table, write_part


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
