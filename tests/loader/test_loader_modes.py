"""The loader under the fidelity modes, other image modes and a blend inside a blend."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.loader.made_stream import BLEND, TOKENIZER, encode, opened, recipe_of
from tests.made_run import MadeRun, make_run, write_lock_of
from vila_data.encode.sequence import IGNORED, IMAGE_ID
from vila_data.encode.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> MadeRun:
    return make_run(str(tmp_path_factory.mktemp("modes") / "run"))


def folder_of(run: MadeRun, path: Path, **changes: Any) -> Path:
    """A folder with the run, encoded for a recipe with these changes."""
    shutil.copytree(run.store.url, path / "run")
    copied = MadeRun(type(run.store)(str(path / "run")), run.documents, run.pairs, run.chats, run.parts, run.sets)
    encode(copied.store, copied, changes.get("pack"))
    write_lock_of(copied.store, recipe_of(path / "recipe.yaml", **changes))
    return path


def check_batch(batch: Any, tokens_per_image: int) -> int:
    """What holds of every batch; images that are cut."""
    cut = 0
    for row, first, columns, sample in batch.image_spans.tolist():
        assert (batch.ids[row, first : first + columns] == IMAGE_ID).all()
        assert (batch.labels[row, first : first + columns] == IGNORED).all()
        cut += columns < tokens_per_image
        at_row, begin, width = batch.sample_spans[sample].tolist()
        assert at_row == row and begin <= first and first + columns <= begin + width
    taken = batch.image_spans[:, 2].sum() if len(batch.image_spans) else 0
    assert int((batch.ids == IMAGE_ID).sum()) == int(taken)
    assert len(batch.image_spans) == len(batch.pixels) and len(batch.sample_spans) == len(batch.origins)
    assert int(batch.cu_seqlens[-1]) == batch.ids.numel() and (batch.cu_seqlens.diff() > 0).all()
    assert batch.tokens_per_image == tokens_per_image
    for rows, images in (("packs", len(batch.pixels) - cut), ("samples", len(batch.pixels))):
        view = batch.vila(rows=rows, tokens_per_image=tokens_per_image)
        assert int((view.input_ids == IMAGE_ID).sum()) == len(view.images) == images
    named = batch.hugging_face(50_000, tokens_per_image=tokens_per_image)
    assert int((named.input_ids == 50_000).sum()) == tokens_per_image * (len(batch.pixels) - cut)
    return cut


def first_labels(batches: list[Any]) -> list[int]:
    """Labels of samples' first tokens, which are the same in the batch and in its views."""
    found = []
    for batch in batches:
        row, first, _ = batch.sample_spans.T
        labels = batch.labels[row, first]
        assert torch.equal(batch.hugging_face(50_000).labels[row, first], labels)
        assert torch.equal(batch.vila(rows="samples").labels[:, :1].flatten(), labels)
        starts, later_row = batch.varlen().cu_seqlens[:-1].long(), (first == 0) & (row > 0)
        assert torch.equal(batch.varlen().labels[starts], labels.masked_fill(later_row, IGNORED))
        found += labels.tolist()
    return found


@pytest.mark.parametrize("semantics", ["paper", "released_code"])
def test_fidelity_modes_stream(run: MadeRun, tmp_path: Path, semantics: str) -> None:
    """A short sequence, so that the last image of some is cut, as the published code cuts it."""
    pack = {"semantics": semantics, "sequence_length": 100, "tokens_per_image": 40, "max_images_per_pack": None}
    blend = BLEND
    if semantics == "released_code":
        pack["micro_batch"] = 4
        sources = [{"shards": name, "weight": 1, "repeat": 1} for name in ("docs", "pairs", "chat")]
        blend = {"weight_unit": "samples", "on_exhaustion": "renormalize", "sources": sources}
    folder = folder_of(run, tmp_path, pack=pack, blend=blend)
    batch_size = 1 if semantics == "released_code" else 4
    whole = list(opened(folder, batch_size=batch_size))
    split = [list(opened(folder, batch_size=batch_size, num_workers=1, rank=rank, world_size=2)) for rank in range(2)]
    assert len(whole) > 10 and sum(check_batch(batch, 40) for batch in whole) > 5
    in_turn = [batch for pair in zip(*split, strict=True) for batch in pair]
    if semantics == "released_code":  # its order depends on the ranks: they meet the same sets at the same steps
        for pair in zip(*split, strict=True):
            one, other = (sorted(origin.set for origin in batch.origins) for batch in pair)
            assert one == other and sum(1 if name != "pairs" else 1 / 4 for name in one) == 4
        in_turn = list(opened(folder, batch_size=batch_size, num_workers=2))
    for one, other in zip(whole, in_turn, strict=False):
        assert torch.equal(one.ids, other.ids) and torch.equal(one.pixels, other.pixels)
        assert torch.equal(one.labels, other.labels)
        assert other.trains_first_label is one.trains_first_label is (semantics == "released_code")
    firsts = set(first_labels(whole))
    tokenizer = load_tokenizer(TOKENIZER)
    assert firsts == ({IGNORED, tokenizer.bos_id} if semantics == "released_code" else {IGNORED})
    if semantics == "paper":
        assert all(len(batch.origins) == batch.packs for batch in whole)


@pytest.mark.parametrize("fit", ["pad", "resize", "crop"])
def test_image_modes_change_pixels_alone(made_folder: Path, fit: str) -> None:
    plain, other = opened(made_folder), opened(made_folder, image={"size_px": 48, "fit": fit, "background": [1, 2, 3]})
    for one, two in zip(plain, other, strict=True):
        assert torch.equal(one.ids, two.ids) and torch.equal(one.labels, two.labels)
        assert two.pixels.shape == (len(one.pixels), 3, 48, 48) and two.pixels.dtype == torch.uint8


def test_a_nested_blend_with_a_subset_and_total_packs_streams(made_folder: Path, tmp_path: Path) -> None:
    inner = {
        "weight_unit": "images",
        "on_exhaustion": "repeat",
        "sources": [
            {"shards": "docs", "weight": 1, "subset": {"where": "n_images >= 2"}},
            {"shards": "pairs", "weight": 1},
        ],
    }
    sources = [{"blend": inner, "weight": 1}, {"shards": "chat", "weight": 1}]
    blend = {"weight_unit": "tokens", "total_packs": 90, "on_exhaustion": "repeat", "sources": sources}
    recipe = recipe_of(tmp_path / "recipe.yaml", blend=blend)
    batches = list(opened(made_folder, recipe, batch_size=7, num_workers=2))
    assert sum(batch.packs for batch in batches) == 90 and len(batches) == 13 and batches[-1].packs == 6
    assert (batches[-1].segments[6] == 0).all() and (batches[-1].labels[6] == IGNORED).all()
    assert all(not check_batch(batch, 16) for batch in batches)
    assert set(first_labels(batches)) == {IGNORED}
    assert {origin.pass_ for batch in batches for origin in batch.origins} > {0}
