"""clip-retrieval over the embeddings of a run, unchanged: its reader, `index`, `filter` and search service."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.conformance.conftest import Client, folder_of, program, python_of
from tests.conformance.shard_sets import MARKS
from tests.conformance.table import Table

pytestmark = pytest.mark.slow

VERSION = "2.45.0"
COLUMNS = ["key", "record_id", "image_index", "caption", "url", "image_path"]
CORPORA = [
    pytest.param((source, corpus), id=f"{source}-{corpus}", marks=MARKS[source])
    for source, corpora in {"sample": ("docs", "pairs"), "real": ("gimp", "flickr")}.items()
    for corpus in corpora
]


def vectors(folder: Path, kind: str) -> Any:
    files = sorted((folder / kind).glob("*.npy"))
    return np.concatenate([np.load(file) for file in files]).astype(np.float32)


def scored(run: Path, corpus: str) -> list[tuple[str, int]]:
    """(record, image) of every image with a similarity, by the tables of the score stage."""
    return [
        (row["record_id"], row["image_index"])
        for path in sorted((run / "score" / corpus / "clip").glob("part-*.parquet"))
        for row in pq.read_table(path).to_pylist()
        if row["scored"]
    ]


@pytest.mark.parametrize("corpus", CORPORA)
def test_clip_retrieval_reads_indexes_and_finds_every_image(
    corpus: tuple[str, str], request: pytest.FixtureRequest, client: Client, table: Table, tmp_path: Path
) -> None:
    source, name = corpus
    run = folder_of(source, request)
    folder = run / "score" / name / "clip" / "embeddings"
    indexes, query = tmp_path / "indexes", tmp_path / "query.npy"
    images, texts = vectors(folder, "img_emb"), vectors(folder, "text_emb")
    expected = scored(run, name)
    rows = [row for path in sorted((folder / "metadata").glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    np.save(query, texts[len(texts) // 2])
    command = ("clip-retrieval", python_of("clip-retrieval").with_name("clip-retrieval"))
    stand_in = {"VILA_DATA_QUERY": str(query)}
    about = ("clip-retrieval", VERSION)

    with table.reading(*about, "embedding-reader, index", source, name, len(expected), len(expected)) as row:
        program(
            *command, "index", "--embeddings_folder", folder, "--index_folder", indexes, "--nb_cores", 2, **stand_in
        )
        found = client("clip-retrieval", "read_embeddings.py", folder, indexes, query, **stand_in)
        assert found["version"] == VERSION
        for kind, ours in (("image", images), ("text", texts)):
            read, sums = found[kind], ours.astype(np.float64).sum(axis=1)
            assert (read["count"], read["dimension"]) == ours.shape
            assert [tuple(one[1:3]) for one in read["rows"]] == expected
            assert read["rows"] == [[one[column] for column in COLUMNS] for one in rows]
            np.testing.assert_allclose(read["sums"], sums, rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(found["held"][kind], sums, rtol=1e-3, atol=1e-3)
        row.samples_read, row.images_read = len(found["image"]["rows"]), len(found["held"]["image"])

    some = min(100, len(rows))
    with table.reading(*about, "search service, filter: the 100 nearest", source, name, some, some) as row:
        vector = np.load(query)
        for kind, ours in (("image", images), ("text", texts)):
            check_answers(found["answers"][kind], rows, ours @ vector)
        row.samples_read = len(found["answers"]["image"])
        printed = program(
            *command, "filter", "any words", tmp_path / "hits", indexes, "--num_results", some, **stand_in
        )
        urls = printed.split("Copying the images", 1)[1].splitlines()[1:]
        assert urls == [one["url"] for one in found["answers"]["image"]]
        row.images_read = len(urls)


def check_answers(answers: list[dict[str, Any]], rows: list[dict[str, Any]], similarities: Any) -> None:
    """Each answer is a row of ours with its similarity, and they are the nearest, but for what an approximate index misses."""
    for one in answers:
        assert [one[column] for column in COLUMNS] == [rows[one["id"]][column] for column in COLUMNS]
        assert abs(one["similarity"] - similarities[one["id"]]) < 2e-3
    order = [one["similarity"] for one in answers]
    assert order == sorted(order, reverse=True)
    bar = np.sort(similarities)[-len(answers)] - 2e-3
    assert len({one["id"] for one in answers}) == len(answers)
    assert sum(similarities[one["id"]] >= bar for one in answers) >= 0.95 * len(answers)
