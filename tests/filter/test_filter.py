from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vila_data.core.scores import PartTables
from vila_data.core.tables import DOWNLOAD_IMAGES, DOWNLOAD_RECORDS, SCORE_IMAGES
from vila_data.filter.config import DocumentRules, FilterConfig, ImageRules, Rules
from vila_data.filter.duplicates import DIGEST, digests, later_copies
from vila_data.filter.rules import (
    OUTCOMES,
    RECORD_OUTCOMES,
    outcomes,
    read_columns,
    settle,
    worth_scoring,
)
from vila_data.score.clip import ClipConfig
from vila_data.score.kinds import scores_of

CLIP = scores_of({"clip": ClipConfig(model="none")})
Image = tuple[bool, int, int, int | None, float]
"""ok, width, height, matched sentence, similarity"""


def tables(documents: list[list[Image]]) -> tuple[pa.Table, pa.Table, pa.Table]:
    rows = [(row, index, *image) for row, images in enumerate(documents) for index, image in enumerate(images)]
    images = [
        {
            "row": row,
            "record_id": str(row),
            "image_index": index,
            "url": "u",
            "status": "ok" if ok else "failed",
            "error": None if ok else "dns",
            "original_width": width if ok else None,
            "original_height": height if ok else None,
            "matched_text_index": matched,
        }
        for row, index, ok, width, height, matched, _ in rows
    ]
    records = [
        {
            "row": row,
            "record_id": str(row),
            "status": "ok",
            "n_images": len(images),
            "n_texts": 3,
            "text_chars": 9,
            "json_bytes": 9,
        }
        for row, images in enumerate(documents)
    ]
    scores = [
        {
            "row": row,
            "record_id": str(row),
            "image_index": index,
            "scored": ok,
            "similarity": similarity if ok and matched is not None else None,
            "matched_text_index": matched,
            "assigned_text_index": 2 if ok else None,
            "assigned_similarity": 0.9 if ok else None,
        }
        for row, index, ok, _, _, matched, similarity in rows
    ]
    return (
        pa.Table.from_pylist(images, DOWNLOAD_IMAGES),
        pa.Table.from_pylist(records, DOWNLOAD_RECORDS),
        pa.Table.from_pylist(scores, SCORE_IMAGES),
    )


def part_tables(images: pa.Table, records: pa.Table, scores: pa.Table) -> PartTables:
    return PartTables(images, records, {"clip": scores})


def fates(documents: list[list[Image]], rules: Rules) -> tuple[list[str], list[str]]:
    columns = read_columns(part_tables(*tables(documents)), rules, CLIP)
    images, records = outcomes(columns, rules, CLIP)
    settle(columns, images, records, rules, last=True)
    return [OUTCOMES[code] for code in images], [RECORD_OUTCOMES[code] for code in records]


GOOD: Image = (True, 400, 300, 0, 0.5)
FAILED: Image = (False, 0, 0, 0, 0.0)


def test_each_rule_gives_its_reason_in_order() -> None:
    rules = Rules(
        images=ImageRules(min_side_px=100, aspect_ratio=(0.5, 2.0), min_similarity=0.25),
        documents=DocumentRules(on_missing_image="drop_image"),
    )
    images: list[Image] = [
        GOOD,
        (True, 99, 5000, None, 0.0),
        (True, 400, 100, 0, 0.5),
        (True, 100, 200, 0, 0.25),
        (True, 200, 200, None, 0.9),
        (True, 200, 200, 0, 0.2499),
        FAILED,
    ]
    found, records = fates([images], rules)
    assert found == ["kept", "min_side_px", "aspect_ratio", "kept", "no_matched_text", "min_similarity", "failed"]
    assert records == ["kept"]


@pytest.mark.parametrize(("rule", "fate"), [("drop_document", "missing_image"), ("drop_image", "kept")])
def test_missing_image(rule: str, fate: str) -> None:
    rules = Rules(documents=DocumentRules(on_missing_image=rule))  # type: ignore[arg-type]
    assert fates([[GOOD, FAILED], [GOOD]], rules)[1] == [fate, "kept"]


@pytest.mark.parametrize(("rule", "fate"), [("drop_document", "dropped_image"), ("drop_image", "kept")])
def test_dropped_image(rule: str, fate: str) -> None:
    rules = Rules(images=ImageRules(min_side_px=50), documents=DocumentRules(on_dropped_image=rule))  # type: ignore[arg-type]
    small: Image = (True, 10, 10, 0, 0.5)
    assert fates([[GOOD, small], [GOOD], [FAILED, small]], rules)[1] == [fate, "kept", "missing_image"]


def test_image_counts() -> None:
    rules = Rules(images=ImageRules(min_side_px=50), documents=DocumentRules(min_images=2, max_images=3))
    small: Image = (True, 10, 10, 0, 0.5)
    assert fates([[GOOD, small], [GOOD] * 2, [GOOD] * 4, [GOOD] * 3 + [small], []], rules)[1] == [
        "min_images",
        "kept",
        "max_images",
        "kept",
        "min_images",
    ]


def test_reassignment_judges_by_the_fresh_match() -> None:
    rules = Rules(images=ImageRules(min_similarity=0.6), documents=DocumentRules(reassign=True))
    assert fates([[GOOD]], rules) == (["kept"], ["kept"])
    assert fates([[GOOD]], Rules(images=ImageRules(min_similarity=0.6)))[0] == ["min_similarity"]


documents = st.lists(
    st.lists(
        st.tuples(st.booleans(), st.integers(1, 400), st.integers(1, 400), st.integers(0, 2), st.floats(-1, 1)),
        max_size=5,
    ),
    min_size=1,
    max_size=8,
)
rule_sets = st.builds(
    Rules,
    images=st.builds(
        ImageRules, min_side_px=st.none() | st.integers(1, 300), min_similarity=st.none() | st.floats(-1, 1)
    ),
    documents=st.builds(
        DocumentRules,
        min_images=st.integers(0, 3),
        on_missing_image=st.sampled_from(["drop_document", "drop_image"]),
        on_dropped_image=st.sampled_from(["drop_document", "drop_image"]),
    ),
)


@settings(max_examples=150, deadline=None)
@given(documents, rule_sets)
def test_what_is_not_worth_scoring_would_never_be_kept(made: list[list[Image]], rules: Rules) -> None:
    images, records, scores = tables(made)
    worth = worth_scoring(read_columns(PartTables(images, records, {}), rules, CLIP), rules, CLIP, "clip")
    columns = read_columns(part_tables(images, records, scores), rules, CLIP)
    found, of_records = outcomes(columns, rules, CLIP)
    settle(columns, found, of_records, rules, last=True)
    kept = (found == 0) & (of_records[columns.row] == 0)
    assert not (kept & ~worth).any()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.integers(0, 5), max_size=6), min_size=1, max_size=5))
def test_only_the_first_of_equal_pictures_stays(parts: list[list[int]]) -> None:
    made = [np.array([(0, value) for value in part], dtype=DIGEST) for part in parts]
    found = later_copies(made)
    seen: set[int] = set()
    for part, copies in zip(parts, found, strict=True):
        assert len(part) == len(copies)
        for value, copy in zip(part, copies.tolist(), strict=True):
            assert copy == (value in seen)
            seen.add(value)


def test_digests_are_the_first_128_bits() -> None:
    hexes = pa.chunked_array([["ab" * 32, None, "cd" * 32]])
    assert digests(hexes, np.array([True, False, True])).tobytes() == b"\xab" * 16 + b"\xcd" * 16


def test_one_corpus_overrides_only_what_it_sets() -> None:
    config = FilterConfig.model_validate_json(
        '{"images": {"min_side_px": 64, "min_similarity": 0.2}, "per_corpus": {"pairs": {"images": {"min_similarity": 0.25}}}}'
    )
    assert config.rules_for("pairs").images == ImageRules(min_side_px=64, min_similarity=0.25)
    assert config.rules_for("docs").images == ImageRules(min_side_px=64, min_similarity=0.2)


def test_conversations_are_kept_whole_or_not_at_all() -> None:
    config = FilterConfig(
        images=ImageRules(min_side_px=100, min_similarity=0.9, exact_duplicates="drop"),
        documents=DocumentRules(min_images=2, on_missing_image="drop_image", reassign=True),
    )
    rules = config.rules_for("chat", conversations=True)
    small: Image = (True, 10, 10, 0, 0.5)
    assert fates([[GOOD], [], [GOOD, small], [GOOD, FAILED], [GOOD] * 3], rules)[1] == [
        "kept",
        "kept",
        "dropped_image",
        "missing_image",
        "kept",
    ]
    assert rules.images.exact_duplicates == "keep"


def test_what_a_corpus_of_conversations_sets_itself_holds_for_it() -> None:
    own = Rules(images=ImageRules(min_similarity=0.6), documents=DocumentRules(min_images=1))
    config = FilterConfig(images=ImageRules(min_similarity=0.2), per_corpus={"chat": own})
    rules = config.rules_for("chat", conversations=True)
    assert fates([[GOOD], [], [(True, 400, 300, 0, 0.7)]], rules)[1] == ["dropped_image", "min_images", "kept"]
    assert config.rules_for("other", conversations=True).images.min_similarity is None


@pytest.mark.parametrize(
    ("documents", "key"),
    [
        ({"on_missing_image": "drop_image"}, "on_missing_image"),
        ({"on_dropped_image": "drop_image"}, "on_dropped_image"),
        ({"reassign": True}, "reassign"),
        ({"on_missing_image": "drop_document", "min_images": 3}, None),
        ({}, None),
    ],
)
def test_what_conversations_cannot_have(documents: dict[str, object], key: str | None) -> None:
    assert Rules(documents=DocumentRules(**documents)).against_conversations() == key  # type: ignore[arg-type]
