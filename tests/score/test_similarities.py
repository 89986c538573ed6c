"""MMC4's assignment of sentences, and the optional embeddings, read as embedding-reader reads them."""

from __future__ import annotations

import itertools
import json
import re
import tarfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vila_data.core.store import Store
from vila_data.score.clip import ClipConfig
from vila_data.score.embeddings import METADATA
from vila_data.score.similarities import assign

from .fake_clip import FakeClip, score_part
from .parts import Item, document, jpeg, pair, read_table, write_part

MATRICES = st.tuples(st.integers(1, 4), st.integers(1, 5)).flatmap(
    lambda shape: arrays(np.float32, shape, elements=st.integers(-100, 100).map(lambda value: value / 100))
)


def test_optimum_differs_from_the_row_maxima() -> None:
    # the matrix of MMC4's published example: both images like sentence 1 best
    matrix = np.array([[0.2436, 0.3176, 0.2769], [0.2233, 0.3235, 0.2612]], np.float32)
    assert assign(matrix).tolist() == [2, 1]
    assert matrix.argmax(axis=1).tolist() == [1, 1]


def test_left_over_images_take_their_best_sentence() -> None:
    matrix = np.array([[0.1, 0.9], [0.2, 0.8], [0.3, 0.7]], np.float32)
    assert assign(matrix).tolist() == [1, 1, 0]
    assert assign(np.array([[0.5], [0.6]], np.float32)).tolist() == [0, 0]


def test_no_image_no_sentence() -> None:
    assert assign(np.empty((0, 3), np.float32)).tolist() == []
    with pytest.raises(ValueError, match="no sentence"):
        assign(np.empty((2, 0), np.float32))


@settings(max_examples=200, deadline=None)
@given(MATRICES)
def test_best_of_all_assignments(matrix: np.ndarray) -> None:
    images, texts = matrix.shape
    chosen = assign(matrix)
    assert ((chosen >= 0) & (chosen < texts)).all()
    if images <= texts:
        assert len(set(chosen.tolist())) == images
        best = max(
            sum(float(matrix[i, t]) for i, t in enumerate(p)) for p in itertools.permutations(range(texts), images)
        )
        assert sum(float(matrix[i, t]) for i, t in enumerate(chosen)) == pytest.approx(best, abs=1e-6)
        return
    # some `texts` of the images form the best one-to-one assignment, the others are at their maximum
    best = max(sum(float(matrix[i, t]) for t, i in enumerate(p)) for p in itertools.permutations(range(images), texts))
    maxima = [i for i in range(images) if matrix[i, chosen[i]] == matrix[i].max()]
    found = max(
        (
            sum(float(matrix[i, chosen[i]]) for i in some)
            for some in itertools.combinations(range(images), texts)
            if len({int(chosen[i]) for i in some}) == texts and set(range(images)) - set(some) <= set(maxima)
        ),
        default=-1e9,
    )
    assert found == pytest.approx(best, abs=1e-6)


@pytest.mark.realdata
def test_published_document(shared: Path) -> None:
    lines = (shared / "realdata/mmc4_doc.jsonl").read_text(encoding="utf-8").splitlines()
    assert lines
    for line in lines:
        value = json.loads(line)
        matrix = np.array(value["similarity_matrix"], np.float32)
        assert assign(matrix).tolist() == [image["matched_text_index"] for image in value["image_info"]]


CONFIG = ClipConfig(model="fake", embeddings=True)


def read_npy(path: Path) -> np.ndarray:
    """As embedding-reader does: shape and type from the first line, the rows after it."""
    data = path.read_bytes()
    line = data[:300].split(b"\n")[0]
    shape = re.search(r"'shape': \(([0-9]+), ([0-9]+)\)", str(line))
    dtype = re.search(r"'descr': '([<f0-9]+)'", str(line))
    assert shape is not None
    assert dtype is not None
    found = np.frombuffer(data[len(line) + 1 :], dtype[1]).reshape(int(shape[1]), int(shape[2]))
    np.testing.assert_array_equal(found, np.load(path))
    return found


def test_layout_is_aligned(store: Store, mixed: list[Item | None]) -> None:
    clip = FakeClip()
    parts = [
        write_part(store, mixed, index=0),
        write_part(store, [pair("gone", "no picture", None)], index=2),
        write_part(store, [pair("late", "a late text", jpeg(50))], index=10),
    ]
    for part in parts:
        score_part(store, part, None, clip, CONFIG, "in")
    base = Path(store.url, "score/docs/clip/embeddings")
    names = [sorted(path.name for path in (base / kind).iterdir()) for kind in ("img_emb", "text_emb", "metadata")]
    assert names[0] == ["img_emb_00000.npy", "img_emb_00010.npy"]  # no file of a part without a scored image
    assert [name[-9:-4] for name in names[1]] == ["00000", "00010"]
    assert names[2] == ["metadata_00000.parquet", "metadata_00010.parquet"]
    seen = 0
    for image_name, text_name, table_name in zip(*names, strict=True):
        images, texts = read_npy(base / "img_emb" / image_name), read_npy(base / "text_emb" / text_name)
        table = pq.read_table(base / "metadata" / table_name)
        assert table.schema.equals(METADATA)
        assert len(images) == len(texts) == len(table)
        assert images.dtype == texts.dtype == np.float16
        for image, text, row in zip(images, texts, table.to_pylist(), strict=True):
            expected = clip.embed_texts([row["caption"]])[0].astype(np.float16)
            np.testing.assert_array_equal(text, expected)
            assert abs(float(image.astype(float) @ text.astype(float)) - row["similarity"]) < 5e-3
            assert row["url"].startswith("http://a.test/")
            seen += 1
    assert seen == 10


def test_rows_name_their_members_and_captions(store: Store, mixed: list[Item | None]) -> None:
    part = write_part(store, mixed)
    score_part(store, part, None, FakeClip(), CONFIG, "in")
    rows = read_table(store, "score/docs/clip/embeddings/metadata/metadata_00000.parquet")
    scored = [row for row in read_table(store, part.scores_table("clip")) if row["scored"]]
    with tarfile.open(fileobj=BytesIO(store.read(part.images_tar()))) as tar:
        members = set(tar.getnames())
    assert [row["record_id"] for row in rows] == [row["record_id"] for row in scored]
    for row, score in zip(rows, scored, strict=True):
        assert row["image_path"] in members
        assert row["image_path"] == f"{row['key']}.{row['image_index']}.jpg"
        assert score["similarity"] in (None, row["similarity"])
    captions = [row["caption"] for row in rows]
    assert captions[:2] == ["a blue cat", "a red dog"]  # as published, not as assigned afresh
    unmatched = next(score for score in scored if score["similarity"] is None)
    similarities = unmatched["similarities"]
    assert isinstance(similarities, list)
    row = rows[scored.index(unmatched)]
    assert row["similarity"] == max(similarities)
    assert row["caption"] == ["one", "two", "the end", "a red dog"][int(np.argmax(similarities))]


def test_files_of_an_earlier_run_go_when_nothing_is_scored(store: Store) -> None:
    part = write_part(store, [document("d", ["a"], [jpeg(1)], [0])])
    score_part(store, part, None, FakeClip(), CONFIG, "in")
    assert store.files("score/docs/clip/embeddings")
    score_part(store, part, np.zeros(1, bool), FakeClip(), CONFIG, "in")
    assert not store.files("score/docs/clip/embeddings")
