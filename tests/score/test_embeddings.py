"""The optional embeddings, read as embedding-reader reads them: by sorted names, by the .npy header's first line."""

from __future__ import annotations

import re
import tarfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from vila_data.core.store import Store
from vila_data.score.clip import ClipConfig
from vila_data.score.embeddings import METADATA

from .fake_clip import FakeClip, score_part
from .parts import Item, document, jpeg, pair, read_table, write_part

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
