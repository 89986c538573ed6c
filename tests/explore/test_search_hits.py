"""Found rows lead back to their records, with their fates."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from vila_data.core.errors import DataError, UsageError
from vila_data.core.store import Store
from vila_data.explore.search.exact import Ranking, find_parts, search_exact
from vila_data.explore.search.hits import hits_of, kept_rows

from .made_embeddings import made, unit, whole, write_part

VECTORS = unit(np.random.default_rng(1).normal(size=(40, 16))).astype(np.float16)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(str(tmp_path))
    write_part(store, "docs", 0, VECTORS[:25], every_kept=3)
    write_part(store, "docs", 123456, VECTORS[25:], every_kept=2)
    return store


def ranked(store: Store, count: int, *, kept: bool = False) -> tuple[list, Ranking]:
    parts = find_parts(store, [made.part(index, "docs") for index in (0, 123456)], "clip", "images")
    ranking = Ranking(unit(VECTORS[30:31])[0], count)
    search_exact(store, whole(parts), ranking, partial(kept_rows, store) if kept else None)
    return parts, ranking


def test_fields(store: Store) -> None:
    parts, ranking = ranked(store, 40)
    hits = hits_of(store, parts, ranking)
    assert hits[0].record_id == "id-5" and hits[0].key == "docs-123456-000010" and hits[0].score > 0.999
    assert len(hits) == len({hit.key for hit in hits}) == 40
    for hit, group, row in zip(hits, ranking.groups.tolist(), ranking.rows.tolist(), strict=True):
        assert (hit.record_id, hit.caption, hit.image_index, hit.corpus) == (f"id-{row}", f"caption {row}", 1, "docs")
        assert hit.key == f"docs-{parts[group].part.index:05d}-{2 * row:06d}"
        kept = row % (3, 2)[group] == 0
        assert (hit.fate, hit.reason) == (("kept", None) if kept else ("dropped", "min_similarity"))


def test_kept_only(store: Store) -> None:
    parts, ranking = ranked(store, 40, kept=True)
    hits = hits_of(store, parts, ranking)
    assert len(hits) == 9 + 8 and {hit.fate for hit in hits} == {"kept"}
    everything = hits_of(*(store, *ranked(store, 40)))
    assert hits == [hit for hit in everything if hit.fate == "kept"]


def test_a_run_that_was_not_filtered(store: Store) -> None:
    store.remove("filter/docs/part-00000.parquet")
    hits = hits_of(*(store, *ranked(store, 40)))
    assert {hit.fate for hit in hits if hit.key.startswith("docs-00000")} == {None}
    with pytest.raises(UsageError, match=r"filter/docs/part-00000.parquet: no such file.*without --fate kept"):
        ranked(store, 3, kept=True)


def test_metadata_of_other_vectors(store: Store) -> None:
    path = "score/docs/clip/embeddings/metadata/metadata_00000.parquet"
    store.commit_bytes(store.read(path.replace("00000", "123456")), path)
    with pytest.raises(
        DataError, match=r"metadata_00000.parquet: found 15 rows for 25 vectors; delete .*part-00000.json"
    ):
        hits_of(*(store, *ranked(store, 40)))
    store.commit_bytes(b"PAR1", path)
    with pytest.raises(DataError, match=r"metadata_00000.parquet: not a whole Parquet table"):
        hits_of(*(store, *ranked(store, 40)))


def test_fates_of_other_images(store: Store) -> None:
    store.commit_bytes(store.read("filter/docs/part-123456.parquet"), "filter/docs/part-00000.parquet")
    with pytest.raises(DataError, match=r"part-00000.parquet: images of .*metadata_00000.parquet are missing"):
        hits_of(*(store, *ranked(store, 40)))
