"""A policy by which images differ in tokens: lengths, packs, batches and resume are exactly those of a plain reading."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, Literal

import pyarrow.compute as pc
import pytest
import torch
from PIL import Image

import vila_data as vd
from tests.loader.made_stream import PACK, encode, opened, write_recipe
from tests.loader.test_loader import rows_of, same
from tests.made_run import make_run, write_lock_of
from vila_data.core.errors import DataError, RecipeError, UsageError
from vila_data.core.store import Store
from vila_data.core.tables import IMAGE_ID
from vila_data.encode.config import PackConfig
from vila_data.encode.image_tokens import OWN, Fixed, ImageTokens
from vila_data.encode.tokenizer import load_tokenizer
from vila_data.encode.tokens import encoding_fingerprint, open_tokens
from vila_data.loader.batch import PackedBatch
from vila_data.recipe.recipe import load_recipe

SETS = ("docs", "pairs", "chat")
SIDE_PX = 28


class Tiles(ImageTokens):
    policy: Literal["tiles"] = "tiles"
    side_px: int

    def count(self, width: int, height: int) -> int:
        return -(-width // self.side_px) * -(-height // self.side_px)


@pytest.fixture(autouse=True)
def policies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OWN, "tiles", Tiles)


def pack_of(**changes: Any) -> dict[str, Any]:
    return {"tokens_per_image": None, "image_tokens": {"policy": "tiles", "side_px": SIDE_PX}} | changes


@pytest.fixture(scope="module", params=[512, 60])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A made run, encoded by the policy; with short sequences most samples are cut, and some images are too large."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(OWN, "tiles", Tiles)
        folder: Path = tmp_path_factory.mktemp("tiles")
        run = make_run(str(folder / "run"))
        pack = pack_of(sequence_length=request.param)
        encode(run.store, run, pack)
        recipe = load_recipe(write_recipe(folder / "recipe.yaml", pack=pack), find_corpora=False)
        write_lock_of(run.store, recipe)
    return folder


@pytest.fixture(scope="module")
def epoch(folder: Path) -> list[PackedBatch]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(OWN, "tiles", Tiles)
        return list(opened(folder))


def tiles_of(jpeg: bytes) -> int:
    width, height = Image.open(io.BytesIO(jpeg)).size
    return -(-width // SIDE_PX) * -(-height // SIDE_PX)


def pictures(folder: Path) -> dict[tuple[str, str], list[bytes]]:
    """The JPEGs of each sample of each set, in order."""
    found = {}
    for name in SETS:
        for sample in vd.open_shards(folder / "run" / "shards" / name):
            names = sorted(
                (member for member in sample.members if member.endswith("jpg")),
                key=lambda member: int(member.split(".")[0]) if "." in member else 0,
            )
            found[name, sample.key] = [sample.members[member] for member in names]
    return found


def test_lengths_are_those_of_a_plain_reading(folder: Path) -> None:
    recipe = load_recipe(folder / "recipe.yaml", find_corpora=False)
    assert recipe.pack is not None
    tokenizer, jpegs = load_tokenizer(recipe.pack.tokenizer), pictures(folder)
    widths = set()
    for name in SETS:
        tokens = open_tokens(Store(str(folder / "run")), name, recipe.pack, tokenizer)
        lengths = tokens.lengths()
        assert pc.max(lengths.column("tokens")).as_py() <= recipe.pack.sequence_length
        for shard, row, length in zip(
            *(lengths.column(key).to_pylist() for key in ("shard", "row", "tokens")), strict=True
        ):
            sample = tokens.sample(shard, row)
            columns = [tiles_of(jpegs[name, sample.key][image]) for image in sample.images.tolist()]
            widths |= set(columns)
            assert length == sample.tokens == int((sample.ids != IMAGE_ID).sum()) + sum(columns)
    assert len(widths) > 5


def test_batches_have_the_columns_of_each_image(folder: Path, epoch: list[PackedBatch]) -> None:
    jpegs, seen = pictures(folder), set()
    recipe = load_recipe(folder / "recipe.yaml", find_corpora=False)
    assert recipe.pack is not None
    store, tokenizer = Store(str(folder / "run")), load_tokenizer(recipe.pack.tokenizer)
    tokens = {name: open_tokens(store, name, recipe.pack, tokenizer) for name in SETS}
    for batch in epoch:
        expected = [
            tiles_of(jpegs[origin.set, origin.key][image])
            for origin in batch.origins
            for image in tokens[origin.set].sample(int(origin.shard[-10:-4]), origin.row).images.tolist()
        ]
        assert batch.image_spans[:, 2].tolist() == expected
        assert batch.tokens_per_image is None and not batch.cuts_images and not batch.faults
        marks = torch.zeros_like(batch.ids, dtype=torch.bool)
        for row, first, columns, _ in batch.image_spans.tolist():
            marks[row, first : first + columns] = True
            seen.add(columns)
        assert torch.equal(batch.ids == IMAGE_ID, marks)
        assert int(batch.sample_spans[:, 1:].sum(dim=1).max()) <= batch.length
        for row in range(batch.packs):
            assert int((batch.image_spans[:, 0] == row).sum()) <= 12
    assert len(seen) > 5 and len(epoch) > 10


def test_the_order_is_the_same_for_workers_and_after_a_resume(folder: Path, epoch: list[PackedBatch]) -> None:
    with opened(folder, num_workers=2) as loader:
        found = list(loader)
    assert len(found) == len(epoch) and all(same(one, other) for one, other in zip(found, epoch, strict=True))
    packs = [row for batch in epoch for row in rows_of(batch)]
    loader = opened(folder)
    iterator = iter(loader)
    for _ in range(5):
        next(iterator)
    state = loader.state_dict()
    rest = []
    ranks = [opened(folder, rank=rank, world_size=2, batch_size=2) for rank in range(2)]
    for one in ranks:
        one.load_state_dict(state)
    for batches in zip(*ranks, strict=True):
        rest += [row for batch in batches for row in rows_of(batch)]
    assert sorted(rest) == sorted(packs[5:])


def test_views_take_each_image_with_its_own_tokens(epoch: list[PackedBatch]) -> None:
    batch = next(batch for batch in epoch if len(set(batch.image_spans[:, 2].tolist())) > 1)
    columns = batch.image_spans[:, 2].tolist()
    own = batch.hugging_face(32_000, tokens_per_image=columns)
    assert int((own.input_ids == 32_000).sum()) == sum(columns)
    assert own.pixel_values is not None and len(own.pixel_values) == len(columns)
    assert torch.equal(own.input_ids, batch.hugging_face(32_000).input_ids)
    vila = batch.vila(tokens_per_image=columns)
    assert int((vila.input_ids == IMAGE_ID).sum()) == len(columns) == len(vila.images)
    assert vila.seqlens.tolist() == batch.sample_spans[:, 2].tolist()
    assert batch.varlen().image_spans[:, 1].tolist() == columns
    wrong = [*columns[:-1], columns[-1] + 1]
    for given in (wrong, columns[0], max(columns)):
        with pytest.raises(UsageError, match=r"an image takes .* pack\.image_tokens to the model's policy"):
            batch.hugging_face(32_000, tokens_per_image=given)
    with pytest.raises(UsageError, match=f"tokens_per_image has 1 numbers, but the batch has {len(columns)} images"):
        batch.vila(tokens_per_image=[5])


def test_another_policy_is_another_encoding_and_fixed_is_tokens_per_image() -> None:
    tokenizer = load_tokenizer(str(PACK["tokenizer"]))
    short = PackConfig(**PACK)
    long = PackConfig(**(PACK | pack_of(image_tokens={"policy": "fixed", "tokens": 16})))
    assert long == short and long.model_dump() == short.model_dump() and "image_tokens" not in short.model_dump()
    assert long.images == Fixed(tokens=16)
    tiles = [PackConfig(**(PACK | pack_of(image_tokens={"policy": "tiles", "side_px": side}))) for side in (28, 56)]
    prints = {encoding_fingerprint(config, tokenizer) for config in (short, long, *tiles)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tiles, "revision", 2)
        prints.add(encoding_fingerprint(tiles[0], tokenizer))
    assert len(prints) == 4
    assert PackConfig.model_validate_json(tiles[0].model_dump_json()) == tiles[0]


def test_the_encoding_of_before_is_found(tmp_path: Path) -> None:
    """What `tokens_per_image` named before policies came, it names now."""
    config = PackConfig(tokenizer="x", sequence_length=512, tokens_per_image=16)
    dumped = config.model_dump(mode="json", exclude={"tokenizer", "micro_batch"})
    assert list(dumped) == [
        "sequence_length",
        "tokens_per_image",
        "max_images_per_document",
        "max_images_per_pack",
        "template",
        "semantics",
        "images_first",
        "date",
    ]


@pytest.mark.parametrize(
    ("pack", "said"),
    [
        (
            {"policy": "tilse", "side_px": 28},
            r"recipe\.yaml:\d+ pack\.image_tokens\.policy: found 'tilse'; did you mean tiles",
        ),
        ({"side_px": 28}, r"recipe\.yaml:\d+ pack\.image_tokens\.policy: missing required key 'policy'"),
        (
            {"policy": "tiles", "side": 28},
            r"recipe\.yaml:\d+ pack\.image_tokens\.side: unknown key 'side'; did you mean side_px",
        ),
        (
            {"policy": "fixed", "tokens": 0},
            r"recipe\.yaml:\d+ pack\.image_tokens\.tokens: input should be greater than 0",
        ),
        ({"policy": "fixed", "tokens": 511}, r"recipe\.yaml:\d+ pack: .* do not fit into a sequence of 512 tokens"),
        (None, r"recipe\.yaml:\d+ pack: set tokens_per_image or image_tokens, and not both"),
    ],
)
def test_what_a_recipe_cannot_say(pack: Any, said: str, tmp_path: Path) -> None:
    path = write_recipe(tmp_path / "recipe.yaml", pack=pack_of(image_tokens=pack))
    with pytest.raises(RecipeError, match=said):
        load_recipe(path, find_corpora=False)


def test_not_both_keys_and_not_in_a_fidelity_mode(tmp_path: Path) -> None:
    for changes, said in (
        ({"tokens_per_image": 16}, "set tokens_per_image or image_tokens, and not both"),
        ({"semantics": "paper"}, "semantics paper is VILA's, where every image takes as many tokens"),
    ):
        path = write_recipe(tmp_path / "recipe.yaml", pack=pack_of(**changes))
        with pytest.raises(RecipeError, match=said):
            load_recipe(path, find_corpora=False)


@pytest.mark.parametrize(("found", "said"), [(0, "must return an integer of at least 1, found 0"), (2.5, "found 2.5")])
def test_a_policy_that_gives_nonsense(found: Any, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tiles, "count", lambda *_: found)
    with pytest.raises(DataError, match=said):
        Tiles(side_px=28).counts([30], [30])
    with pytest.raises(DataError, match="image of 0 x 0 pixels: policy tiles needs the size of each image"):
        Tiles(side_px=28).counts([0], [0])
    assert Fixed(tokens=3).counts([0], [0]) == [3]


def test_a_policy_that_has_changed_unsaid_is_a_fault(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tiles, "count", lambda self, width, height: 3)
    batches = list(opened(folder, fault_budget={"fraction": 1.0}))
    faults = [fault for batch in batches for fault in batch.faults]
    assert faults and all(fault.stage == "tokens" and "were planned" in fault.reason for fault in faults)
