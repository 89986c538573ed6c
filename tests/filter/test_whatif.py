"""What `whatif` counts is what filtering gives: every rule, duplicates over parts, scores that are not there yet."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vila_data.core.errors import DataError
from vila_data.core.layout import Part
from vila_data.core.scores import NONE, Scores
from vila_data.core.store import Store
from vila_data.core.tables import DOWNLOAD_IMAGES, DOWNLOAD_RECORDS, SCORE_IMAGES
from vila_data.filter import duplicates
from vila_data.filter.config import DocumentRules, ImageRules, Rules
from vila_data.filter.part import filter_part, part_digests, rows_worth_scoring
from vila_data.filter.rules import UNKNOWN
from vila_data.filter.whatif import Scope, read_copies, tally
from vila_data.filter.whatif_cuts import NearestToCuts, measure_of
from vila_data.score.clip import ClipConfig
from vila_data.score.kinds import scores_of

CLIP = scores_of({"clip": ClipConfig(model="none")})


@dataclass(frozen=True)
class Picture:
    """One image; `number` tells equal pictures, `fresh` is the similarity of its new assignment."""

    ok: bool
    width: int
    height: int
    matched: int | None
    similarity: float
    fresh: float
    number: int
    scored: bool = True


Document = Sequence[Picture] | None
"""None: a metadata row that is no record."""


def write_parts(store: Store, corpus: str, parts: Sequence[Sequence[Document]]) -> list[Part]:
    """The tables that download and score leave."""
    made = []
    for index, documents in enumerate(parts):
        part = Part(corpus, index, "meta.jsonl", "meta", 0, len(documents), len(documents), "inputs")
        write_download(store, part, documents)
        write_scores(store, part, documents)
        made.append(part)
    return made


def write_download(store: Store, part: Part, documents: Sequence[Document]) -> None:
    images: list[dict[str, Any]] = []
    for row, index, one in pictures(documents):
        seen = {"width": one.width, "height": one.height, "original_width": one.width, "original_height": one.height}
        known = seen | {"sha256": hashlib.sha256(bytes([one.number])).hexdigest()} if one.ok else {"error": "dns"}
        head = {"row": row, "record_id": f"r{row}", "image_index": index, "url": "u"}
        images.append(head | {"status": "ok" if one.ok else "failed", "matched_text_index": one.matched} | known)
    zeros = {"n_images": 0, "n_texts": 3, "text_chars": 9, "json_bytes": 9}
    records = [
        {"row": row, "record_id": f"r{row}", "status": "failed" if one is None else "ok", **zeros}
        | ({"error": "malformed_json"} if one is None else {})
        for row, one in enumerate(documents)
    ]
    write(store, part.images_table(), pa.Table.from_pylist(images, DOWNLOAD_IMAGES))
    write(store, part.records_table(), pa.Table.from_pylist(records, DOWNLOAD_RECORDS))


def write_scores(store: Store, part: Part, documents: Sequence[Document]) -> None:
    rows = []
    for row, index, one in pictures(documents):
        scored = one.ok and one.scored
        known = {"assigned_text_index": 1, "assigned_similarity": one.fresh} if scored else {}
        if scored and one.matched is not None:
            known["similarity"] = one.similarity
        head = {"row": row, "record_id": f"r{row}", "image_index": index, "matched_text_index": one.matched}
        rows.append(head | {"scored": scored} | known)
    write(store, part.scores_table("clip"), pa.Table.from_pylist(rows, SCORE_IMAGES))


def pictures(documents: Sequence[Document]) -> Iterator[tuple[int, int, Picture]]:
    for row, images in enumerate(documents):
        for index, one in enumerate(images or ()):
            yield row, index, one


def write(store: Store, path: str, table: pa.Table) -> None:
    with store.scratch() as folder:
        pq.write_table(table, folder / "table")
        store.commit_file(folder / "table", path)


def filtered(
    store: Store, parts: Sequence[Part], rules: Rules, scores: Scores = CLIP
) -> tuple[Counter[str], Counter[str]]:
    """Counts of images and records as the filter stage gives them."""
    copies: list[NDArray[np.bool_] | None] = [None] * len(parts)
    if rules.images.exact_duplicates == "drop":
        copies = list(duplicates.later_copies([part_digests(store, part, rules, scores) for part in parts]))
    counts = (Counter[str](), Counter[str]())
    for part, of_part in zip(parts, copies, strict=True):
        receipt = filter_part(store, part, rules, scores, of_part, "test")
        counts[0].update(receipt.counts["images"])
        counts[1].update(receipt.counts["records"])
    return counts


similarities = st.integers(0, 20).map(lambda n: n / 20)
picture = st.builds(
    Picture,
    ok=st.integers(0, 5).map(bool),
    width=st.sampled_from([40, 100, 300]),
    height=st.sampled_from([40, 100, 300]),
    matched=st.sampled_from([0, 1, 2, None]),
    similarity=similarities,
    fresh=similarities,
    number=st.integers(0, 9),
)
document = st.none() | st.lists(picture, max_size=5)
corpora = st.lists(st.lists(document, min_size=1, max_size=6), min_size=1, max_size=3)
rule_sets = st.builds(
    Rules,
    images=st.builds(
        ImageRules,
        min_side_px=st.none() | st.sampled_from([50, 200]),
        aspect_ratio=st.none() | st.just((0.5, 2.0)),
        min_similarity=st.none() | similarities,
        exact_duplicates=st.sampled_from(["keep", "drop"]),
    ),
    documents=st.builds(
        DocumentRules,
        min_images=st.integers(0, 3),
        max_images=st.none() | st.integers(1, 4),
        on_missing_image=st.sampled_from(["drop_document", "drop_image"]),
        on_dropped_image=st.sampled_from(["drop_document", "drop_image"]),
        reassign=st.booleans(),
    ),
)


@settings(max_examples=50, deadline=None)
@given(corpora, st.lists(rule_sets, min_size=1, max_size=4))
def test_counts_are_those_of_filtering(made: list[list[Document]], asked: list[Rules]) -> None:
    store = Store("memory://whatif")
    parts = write_parts(store, "docs", made)
    found = tally(store, Scope(parts, CLIP), asked)
    for rules, counted in zip(asked, found, strict=True):
        assert (counted.images, counted.records) == filtered(store, parts, rules)
        assert counted.unscored == 0


@settings(max_examples=15, deadline=None)
@given(corpora, rule_sets)
def test_counts_of_a_run_that_scores_nothing(made: list[list[Document]], rules: Rules) -> None:
    store = Store("memory://whatif")
    parts = write_parts(store, "docs", made)
    images = rules.images.model_copy(update={"min_similarity": None})
    rules = Rules(images=images, documents=rules.documents.model_copy(update={"reassign": False}))
    counted = tally(store, Scope(parts, NONE), [rules])[0]
    assert (counted.images, counted.records) == filtered(store, parts, rules, NONE)


def scored_by_a_run(
    store: Store, parts: Sequence[Part], made: list[list[Document]], rules: Rules, seed: int
) -> list[list[Document]]:
    """What the score stage would do first: score what the rules need; assignments of those records may move."""
    random, result = np.random.default_rng(seed), []
    for part, documents in zip(parts, made, strict=True):
        needed = rows_worth_scoring(store, part, rules, CLIP, "clip")
        place, redone = 0, []
        for document in documents:
            images = list(document or ())
            wanted = [bool(needed[place + index]) for index in range(len(images))]
            place += len(images)
            if any(want and not one.scored for want, one in zip(wanted, images, strict=True)):
                fresh = random.integers(0, 21, len(images)) / 20
                images = [
                    replace(one, scored=one.scored or want, fresh=float(value))
                    for one, want, value in zip(images, wanted, fresh, strict=True)
                ]
            redone.append(None if document is None else images)
        result.append(redone)
    return result


unscored_corpora = st.lists(
    st.lists(
        st.none() | st.lists(st.builds(replace, picture, scored=st.integers(0, 2).map(bool)), max_size=5),
        min_size=1,
        max_size=6,
    ),
    min_size=1,
    max_size=3,
)


@settings(max_examples=40, deadline=None)
@given(unscored_corpora, rule_sets, st.integers(0, 2**32 - 1))
def test_what_is_unknown_covers_whatever_the_scores_turn_out_to_be(
    made: list[list[Document]], rules: Rules, seed: int
) -> None:
    store = Store("memory://whatif")
    parts = write_parts(store, "docs", made)
    counted = tally(store, Scope(parts, CLIP), [rules])[0]
    later = scored_by_a_run(store, parts, made, rules, seed)
    newly = sum(
        (after.scored, before.scored) == (True, False)
        for documents, redone in zip(made, later, strict=True)
        for (_, _, before), (_, _, after) in zip(pictures(documents), pictures(redone), strict=True)
    )
    assert counted.unscored == newly
    for part, documents in zip(parts, later, strict=True):
        write_scores(store, part, documents)
    for counts, real in zip((counted.images, counted.records), filtered(store, parts, rules), strict=True):
        unknown = counts.get(UNKNOWN, 0)
        assert sum(counts.values()) == sum(real.values())
        for fate in {*counts, *real} - {UNKNOWN}:
            assert counts.get(fate, 0) <= real[fate] <= counts.get(fate, 0) + unknown, fate


def test_an_image_that_was_never_scored_is_unknown_and_so_is_what_hangs_on_it(tmp_path: Path) -> None:
    good = Picture(True, 300, 300, 0, 0.9, 0.9, 1)
    unscored = replace(good, number=2, scored=False)
    later_copy = replace(good, number=2)
    store = Store(str(tmp_path))
    parts = write_parts(
        store, "docs", [[[good], [unscored]], [[later_copy], [replace(good, similarity=0.1, number=3)]]]
    )
    rules = Rules(images=ImageRules(min_similarity=0.5, exact_duplicates="drop"))
    counted = tally(store, Scope(parts, CLIP), [rules])[0]
    assert counted.unscored == 1
    assert counted.images == {"kept": 1, "dropped:min_similarity": 1, UNKNOWN: 2}
    assert counted.records == {"kept": 1, "dropped:min_images": 1, UNKNOWN: 2}


def test_conversations_without_a_similarity_rule_are_never_scored(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    parts = write_parts(store, "chat", [[[Picture(True, 300, 300, 0, 0.9, 0.9, 1, scored=False)]]])
    scope = Scope(parts, CLIP, conversations=True)
    plain, judged = tally(store, scope, [Rules(), Rules(images=ImageRules(min_similarity=0.5))])
    assert (plain.unscored, plain.images) == (0, {"kept": 1})
    assert (judged.unscored, judged.images) == (1, {"kept": 0, UNKNOWN: 1})


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.integers(0, 6), max_size=8), min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_first_only_tells_the_copies_that_the_run_tells(numbers: list[list[int]], random: Any) -> None:
    digests = [np.array([(n % 3, n) for n in part], dtype=duplicates.DIGEST) for part in numbers]
    found = duplicates.find_copies(digests, [np.arange(len(part)) for part in numbers])
    passing = [np.array([random.random() < 0.6 for _ in part], dtype=bool) for part in numbers]
    expected = duplicates.later_copies([part[mask] for part, mask in zip(digests, passing, strict=True)])
    first = duplicates.FirstOnly(found)
    for index, (mask, copies) in enumerate(zip(passing, expected, strict=True)):
        assert first.later(index, mask).tolist() == np.flatnonzero(mask)[copies].tolist()


def test_only_pictures_that_are_there_twice_are_held(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    one = Picture(True, 300, 300, 0, 0.9, 0.9, 1)
    parts = write_parts(
        store, "docs", [[[replace(one, number=n) for n in range(9)], [replace(one, ok=False)]], [[one]]]
    )
    copies = read_copies(store, Scope(parts, CLIP))
    assert (copies.groups, [place.tolist() for place in copies.place]) == (1, [[1], [0]])


def test_a_digest_that_is_none_is_an_error() -> None:
    for wrong in ("zz" * 32, "ab", None):
        with pytest.raises(DataError, match="sha256"):
            duplicates.digests(pa.chunked_array([["ab" * 32, wrong]], pa.string()), np.array([True, True]))


@settings(max_examples=30, deadline=None)
@given(corpora, rule_sets, st.sampled_from(["images.min_similarity", "images.min_side_px", "documents.max_images"]))
def test_examples_at_a_cut_are_the_nearest_that_no_other_rule_drops(
    made: list[list[Document]], rules: Rules, name: str
) -> None:
    store = Store("memory://whatif")
    parts = write_parts(store, "docs", made)
    measure = measure_of(f"filter.{name}")
    assert measure is not None
    off = measure.without(rules)
    cuts = {"min_similarity": [0.25, 0.5], "min_side_px": [100, 101], "max_images": [1, 2]}[measure.key]
    nearest = NearestToCuts(measure, off, 0, cuts, 2)
    tally(store, Scope(parts, CLIP), [off], watchers=[nearest])
    values = measured(store, parts, off, measure.key)
    for cut, dropped, kept in zip(cuts, nearest.dropped, nearest.kept, strict=True):
        inside = [value for value in values if (value >= cut if measure.keeps_above else value <= cut)]
        outside = [value for value in values if (value < cut if measure.keeps_above else value > cut)]
        for found, expected in ((kept, inside), (dropped, outside)):
            assert [item.distance for item in found] == sorted(abs(value - cut) for value in expected)[:2]


def measured(store: Store, parts: Sequence[Part], rules: Rules, key: str) -> list[float]:
    """The measured values of what filtering with the rule off keeps, from the fates it writes."""
    filtered(store, parts, rules)
    values: list[float] = []
    for part in parts:
        with store.open_read(part.fates_table()) as stream:
            fates = pq.read_table(stream).to_pylist()
        with store.open_read(part.images_table()) as stream:
            images = {(one["row"], one["image_index"]): one for one in pq.read_table(stream).to_pylist()}
        kept = [one for one in fates if one["fate"] == "kept"]
        pictures = [one for one in kept if one["image_index"] is not None]
        if key == "max_images":
            counts = Counter(one["row"] for one in pictures)
            values += [counts[one["row"]] for one in kept if one["image_index"] is None]
        elif key == "min_side_px":
            found = [images[one["row"], one["image_index"]] for one in pictures]
            values += [min(one["original_width"], one["original_height"]) for one in found]
        else:
            values += [one["similarity"] for one in pictures]
    return values


def test_keys_that_measure_nothing_have_no_cuts() -> None:
    for key in ("filter.images.exact_duplicates", "filter.documents.reassign", "filter.images", "filter"):
        assert measure_of(key) is None
    assert measure_of("filter.per_corpus.docs.images.min_similarity") is not None
