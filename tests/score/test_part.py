"""score_part over a model that costs nothing: rows, counts, batches, reuse, errors."""

from __future__ import annotations

import numpy as np
import pytest

from vila_data.core.errors import DataError
from vila_data.core.layout import Part
from vila_data.core.receipts import read_receipt, valid_receipt
from vila_data.core.store import Store
from vila_data.core.tables import SCORE_IMAGES
from vila_data.score.clip import ClipConfig
from vila_data.score.embeddings import embedding_paths
from vila_data.score.reading import FeedStats
from vila_data.score.similarities import assign

from .fake_clip import FakeClip, covers, score_part
from .parts import Item, document, jpeg, pair, read_table, write_part

CONFIG = ClipConfig(model="fake")
WITH_VECTORS = ClipConfig(model="fake", embeddings=True)
Items = list[Item | None]


def outputs(store: Store, part: Part) -> dict[str, bytes]:
    receipt = read_receipt(store, part.receipt("score clip"))
    assert receipt is not None
    return {path: store.read(path) for path in [*receipt.outputs, part.receipt("score clip")]}


def test_rows_and_counts(store: Store, mixed: Items) -> None:
    part, clip = write_part(store, mixed), FakeClip()
    done: list[int] = []
    stats = FeedStats()
    receipt = score_part(store, part, None, clip, CONFIG, "in", done.append, stats=stats)
    assert receipt == valid_receipt(store, part.receipt("score clip"), "in")
    assert receipt.counts == {"images_scored": 9, "images_skipped": 3, "distinct_images": 5, "distinct_texts": 7}
    rows = read_table(store, part.scores_table("clip"))
    images = read_table(store, part.images_table())
    assert sum(done) == len(rows) == len(images) == 12
    assert stats.total > 0
    for row, image in zip(rows, images, strict=True):
        for name in ("row", "record_id", "image_index", "matched_text_index"):
            assert row[name] == image[name]
        assert row["scored"] == (image["status"] == "ok")
        if not row["scored"]:
            assert [row[name] for name in [*SCORE_IMAGES.names[6:], "similarity"]] == [None] * 4
    first = [row for row in rows if row["record_id"] == "d0"]
    matrix = np.array([row["similarities"] for row in first], np.float32)
    assert matrix.shape == (2, 3)
    assert [row["assigned_text_index"] for row in first] == assign(matrix).tolist()
    assert [row["similarity"] for row in first] == [matrix[0, 1], matrix[1, 0]]
    assert [row["assigned_similarity"] for row in first] == [matrix[i, t] for i, t in enumerate(assign(matrix))]
    (single,) = [row for row in rows if row["record_id"] == "p3"]
    assert single["similarities"] is None
    assert single["assigned_text_index"] == 0
    assert single["similarity"] == single["assigned_similarity"] == matrix[1, 1]  # the same picture and sentence
    unmatched = next(row for row in rows if row["record_id"] == "d4")
    assert unmatched["similarity"] is None
    assert unmatched["assigned_similarity"] is not None


def test_similarity_is_the_cosine(store: Store) -> None:
    part, clip = write_part(store, [pair(f"p{i}", f"text {i}", jpeg(i)) for i in range(10)]), FakeClip(dim=300)
    score_part(store, part, None, clip, WITH_VECTORS, "in")
    images, texts = (
        np.load(f"{store.url}/score/docs/clip/embeddings/{n}/{n}_00000.npy") for n in ("img_emb", "text_emb")
    )
    cosines = (images.astype(np.float64) * texts).sum(axis=1)
    rows = read_table(store, part.scores_table("clip"))
    np.testing.assert_allclose([row["similarity"] for row in rows], cosines, atol=2e-3)


def test_an_image_behind_the_last_text_is_judged_by_that_one(store: Store) -> None:
    part = write_part(store, [document("d", ["one", "two"], [jpeg(1), jpeg(2)], [0, 2])])
    score_part(store, part, None, FakeClip(), WITH_VECTORS, "in")
    first, last = read_table(store, part.scores_table("clip"))
    assert last["matched_text_index"] == 2
    assert [first["similarity"], last["similarity"]] == [first["similarities"][0], last["similarities"][1]]  # type: ignore[index]
    metadata = read_table(store, embedding_paths(part, "clip")[2])
    assert [row["caption"] for row in metadata] == ["one", "two"]


def test_each_distinct_item_once_in_full_batches(store: Store, mixed: Items) -> None:
    part, clip = write_part(store, mixed * 3), FakeClip(batch_size=2)
    receipt = score_part(store, part, None, clip, CONFIG, "in")
    assert set(clip.images.values()) == set(clip.texts.values()) == {1}
    assert len(clip.images) == receipt.counts["distinct_images"] == 5
    assert len(clip.texts) == receipt.counts["distinct_texts"] == 7
    assert "nobody" not in clip.texts  # its only image has no bytes
    for kind in ("images", "texts"):
        sizes = [size for called, size in clip.calls if called == kind]
        assert sizes[:-1] == [2] * (len(sizes) - 1)


@pytest.mark.parametrize("config", [CONFIG, WITH_VECTORS])
def test_bytes_do_not_depend_on_batch_or_threads(tmp_path_factory: pytest.TempPathFactory, config: ClipConfig) -> None:
    items = [document(f"d{i}", [f"s{j % 9}" for j in range(i)], [jpeg(i % 7)] * 2, [0, i - 1]) for i in range(1, 30)]
    found = []
    for batch, threads in ((1, 1), (3, 2), (64, 2), (1000, 4)):
        store = Store(str(tmp_path_factory.mktemp("run")))
        part = write_part(store, items)
        score_part(store, part, None, FakeClip(batch), config, "in", threads=threads)
        found.append(outputs(store, part))
    assert len(found[0]) == (2 if config is CONFIG else 5)
    assert all(other == found[0] for other in found)


def test_only_needed_images_are_read(store: Store, mixed: Items) -> None:
    part, clip = write_part(store, mixed), FakeClip()
    images = read_table(store, part.images_table())
    needed = np.array([image["record_id"] == "d6" for image in images])
    receipt = score_part(store, part, needed, clip, CONFIG, "in")
    assert receipt.counts == {"images_scored": 1, "images_skipped": 11, "distinct_images": 1, "distinct_texts": 2}
    assert sum(clip.images.values()) == 1
    assert [row["record_id"] for row in read_table(store, part.scores_table("clip")) if row["scored"]] == ["d6"]
    with pytest.raises(DataError, match="has 12 images, but the filter decided 5"):
        score_part(store, part, needed[:5], clip, CONFIG, "in")


def test_failed_images_are_not_scored_even_if_needed(store: Store, mixed: Items) -> None:
    part = write_part(store, mixed)
    receipt = score_part(store, part, np.ones(12, bool), FakeClip(), CONFIG, "in")
    assert receipt.counts["images_scored"] == 9


@pytest.mark.parametrize("config", [CONFIG, WITH_VECTORS])
@pytest.mark.parametrize("seed", range(6))
def test_what_is_missing_scored_later_equals_scratch(
    tmp_path_factory: pytest.TempPathFactory, mixed: Items, config: ClipConfig, seed: int
) -> None:
    scratch, steps = (Store(str(tmp_path_factory.mktemp("run"))) for _ in range(2))
    rng = np.random.default_rng(seed)
    first, second = rng.random(24) < 0.3, rng.random(24) < 0.5
    part = write_part(scratch, mixed * 2)
    assert part == write_part(steps, mixed * 2)
    score_part(scratch, part, first | second, FakeClip(), config, "in")
    before, after = FakeClip(), FakeClip()
    score_part(steps, part, first, before, config, "early")
    assert covers(steps, part, first, before.fingerprint, config is WITH_VECTORS)
    score_part(steps, part, second, after, config, "in", reuse=True)
    assert outputs(steps, part) == outputs(scratch, part)
    again = FakeClip()
    score_part(steps, part, second, again, config, "in", reuse=True)
    assert not again.calls
    assert outputs(steps, part) == outputs(scratch, part)


def test_only_the_missing_images_are_embedded(store: Store) -> None:
    items = [document(f"d{i}", [f"a{i}", f"b{i}"], [jpeg(2 * i), jpeg(2 * i + 1)], [0, 1]) for i in range(4)]
    part = write_part(store, items)
    score_part(store, part, np.array([1, 1, 1, 0, 0, 0, 1, 1], bool), FakeClip(), CONFIG, "in")
    later = FakeClip()
    score_part(store, part, None, later, CONFIG, "in", reuse=True)
    assert sum(later.images.values()) == 3
    assert set(later.texts) == {"a1", "b1", "a2", "b2"}


def test_covers(store: Store, mixed: Items) -> None:
    part, clip = write_part(store, mixed), FakeClip()
    assert not covers(store, part, None, clip.fingerprint)
    half = np.arange(12) < 6
    score_part(store, part, half, clip, CONFIG, "in")
    assert covers(store, part, half, clip.fingerprint)
    assert covers(store, part, np.zeros(12, bool), clip.fingerprint)
    assert not covers(store, part, None, clip.fingerprint)
    assert not covers(store, part, half, "another model")
    assert not covers(store, part, half, clip.fingerprint, embeddings=True)
    assert not covers(store, part, half[:5], clip.fingerprint)
    write_part(store, [*mixed[1:], mixed[0]])
    assert not covers(store, part, half, clip.fingerprint)  # of another download
    write_part(store, mixed)
    assert covers(store, part, half, clip.fingerprint)
    store.remove(part.scores_table("clip"))
    assert not covers(store, part, half, clip.fingerprint)


def test_another_model_takes_nothing_over(store: Store, mixed: Items) -> None:
    part = write_part(store, mixed)
    score_part(store, part, None, FakeClip(), CONFIG, "in")
    other = FakeClip(fingerprint="other")
    score_part(store, part, np.arange(12) < 2, other, CONFIG, "in", reuse=True)
    assert sum(row["scored"] for row in read_table(store, part.scores_table("clip"))) == 2
    assert sum(other.images.values()) == 2


def test_a_part_without_images(store: Store) -> None:
    part = write_part(store, [None, document("d", ["text"], [], [])])
    receipt = score_part(store, part, None, FakeClip(), WITH_VECTORS, "in")
    assert receipt.counts == {"images_scored": 0, "images_skipped": 0, "distinct_images": 0, "distinct_texts": 0}
    assert list(receipt.outputs) == [part.scores_table("clip")]
    assert read_table(store, part.scores_table("clip")) == []


def test_more_images_in_a_record_than_are_decoded_ahead(store: Store) -> None:
    count = 40
    part = write_part(store, [document("d", ["a", "b"], [jpeg(i) for i in range(count)], [0] * count)])
    assert score_part(store, part, None, FakeClip(batch_size=2), CONFIG, "in").counts["images_scored"] == count


@pytest.mark.parametrize(
    ("where", "message"),
    [("image", "an image's bytes differ"), ("json", "not a record"), ("end", "ends before byte")],
)
def test_damaged_tar(store: Store, mixed: Items, where: str, message: str) -> None:
    part = write_part(store, mixed)
    data = bytearray(store.read(part.images_tar()))
    offset = read_table(store, part.images_table())[4]["offset"]
    assert isinstance(offset, int)
    if where == "image":
        data[offset + 100] ^= 255
    elif where == "json":
        data[512] = 0
    else:
        del data[offset:]
    store.commit_bytes(bytes(data), part.images_tar())
    with pytest.raises(DataError, match=message):
        score_part(store, part, None, FakeClip(), CONFIG, "in")
    assert read_receipt(store, part.receipt("score clip")) is None
    assert not store.exists(part.scores_table("clip"))


def test_damaged_table(store: Store, mixed: Items) -> None:
    part = write_part(store, mixed)
    store.commit_bytes(store.read(part.records_table())[:-20], part.records_table())
    with pytest.raises(DataError, match="not a whole Parquet table"):
        score_part(store, part, None, FakeClip(), CONFIG, "in")


def test_a_model_that_fails_leaves_no_receipt(store: Store, mixed: Items) -> None:
    class Broken(FakeClip):
        def embed_texts(self, texts: list[str]) -> np.ndarray:
            raise DataError("weights are broken")

    part = write_part(store, mixed)
    with pytest.raises(DataError, match="weights are broken"):
        score_part(store, part, None, Broken(), CONFIG, "in")
    assert read_receipt(store, part.receipt("score clip")) is None


def test_memory_store(mixed: Items, store: Store) -> None:
    remote = Store("memory://score-test")
    part = write_part(remote, mixed)
    try:
        score_part(remote, part, np.arange(12) < 5, FakeClip(), WITH_VECTORS, "in")
        score_part(remote, part, None, FakeClip(), WITH_VECTORS, "in", reuse=True)
        assert part == write_part(store, mixed)
        score_part(store, part, None, FakeClip(), WITH_VECTORS, "in")
        assert outputs(remote, part) == outputs(store, part)
    finally:
        remote.remove("")
