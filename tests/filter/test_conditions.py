"""`filter.rules`: conditions on columns of download and scorers, in the order in which they are known; what is null keeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vila_data.core.expression import parse
from vila_data.core.layout import Part
from vila_data.core.scores import PartTables, Scores, ScoreTable, values_of
from vila_data.core.store import Store
from vila_data.core.tables import DOWNLOAD_IMAGES, DOWNLOAD_RECORDS, SCORE_IMAGES, score_schema
from vila_data.filter import duplicates
from vila_data.filter.config import DocumentRules, FilterConfig, ImageRules, Rules
from vila_data.filter.part import filter_part, part_digests, rows_worth_scoring
from vila_data.filter.rules import (
    UNKNOWN,
    image_names,
    outcomes,
    parse_rules,
    read_columns,
    record_names,
    scorers_read,
    settle,
)
from vila_data.filter.whatif import Scope, tally

from .test_whatif import write

SCORES = Scores(
    (
        ScoreTable("words", "record", (("count", "number"), ("language", "text"))),
        ScoreTable("nsfw", "image", (("score", "number"), ("bad", "flag"))),
        ScoreTable(
            "clip",
            "image",
            (("similarity", "number"), ("assigned_similarity", "number")),
            joint=frozenset({"assigned_similarity"}),
            on_demand=True,
        ),
    ),
    "clip",
)
"""Cheap ones first."""
NSFW = score_schema("image", [pa.field("score", pa.float32()), pa.field("bad", pa.bool_())])
WORDS = score_schema("record", [pa.field("count", pa.int32()), pa.field("language", pa.string())])

Image = dict[str, Any]
"""ok, width, text (published for it), score (of nsfw), similarity, fresh, number, and by scorer whether it is scored."""


def image(**values: Any) -> Image:
    made = {"ok": True, "width": 100, "text": 0, "score": 0.1, "similarity": 0.5, "fresh": 0.5, "number": 0}
    return made | {"nsfw": True, "clip": True} | values


def tables(documents: Sequence[dict[str, Any]]) -> dict[str, pa.Table]:
    """The tables of a part; a document has images, words, language, and whether `words` has scored it."""
    rows = [(row, index, one) for row, made in enumerate(documents) for index, one in enumerate(made["images"])]
    heads = [{"row": row, "record_id": f"r{row}", "image_index": index} for row, index, _ in rows]
    images, nsfw, clip = [], [], []
    for head, (_, _, one) in zip(heads, rows, strict=True):
        there = {"sha256": f"{one['number']:032x}" * 2, "original_width": one["width"], "original_height": 100}
        images.append(head | {"url": "u", "status": "ok" if one["ok"] else "failed", "matched_text_index": one["text"]})
        images[-1] |= there | {"width": one["width"], "height": 100} if one["ok"] else {"error": "dns"}
        scored = one["ok"] and one["nsfw"]
        nsfw.append(head | {"scored": scored, "score": one["score"] if scored else None})
        nsfw[-1]["bad"] = None if nsfw[-1]["score"] is None else one["score"] > 0.5
        scored = one["ok"] and one["clip"]
        similarity = None if one["text"] is None else one["similarity"]
        known = {"similarity": similarity, "assigned_text_index": 0, "assigned_similarity": one["fresh"]}
        clip.append(head | {"scored": scored, "matched_text_index": one["text"]} | (known if scored else {}))
    records, words = [], []
    for row, made in enumerate(documents):
        head = {"row": row, "record_id": f"r{row}"}
        sizes = {"n_images": len(made["images"]), "n_texts": 1, "text_chars": 10 * made["words"], "json_bytes": 9}
        records.append(head | {"status": "ok"} | sizes)
        scored = made.get("scored", True)
        found = {"count": made["words"], "language": made.get("language")} if scored else {}
        words.append(head | {"scored": scored} | found)
    return {
        "images": pa.Table.from_pylist(images, DOWNLOAD_IMAGES),
        "records": pa.Table.from_pylist(records, DOWNLOAD_RECORDS),
        "nsfw": pa.Table.from_pylist(nsfw, NSFW),
        "clip": pa.Table.from_pylist(clip, SCORE_IMAGES),
        "words": pa.Table.from_pylist(words, WORDS),
    }


def judged(
    documents: Sequence[dict[str, Any]], rules: Rules, scores: Scores = SCORES
) -> tuple[list[str], list[str], dict[str, int]]:
    made = tables(documents)
    read = {name: made[name] for name in scorers_read(rules, scores)}
    columns = read_columns(PartTables(made["images"], made["records"], read), rules, scores)
    nulls: dict[str, int] = {}
    images, records = outcomes(columns, rules, scores, nulls=nulls)
    settle(columns, images, records, rules, last=True)
    return [image_names(rules)[code] for code in images], [record_names(rules)[code] for code in records], nulls


def of(*images: Image, words: int = 5, **more: Any) -> dict[str, Any]:
    return {"images": list(images), "words": words, **more}


def test_the_text_is_the_reason_and_the_order_is_that_of_cost() -> None:
    rules = Rules(rules=("clip.similarity > 0.3", "nsfw.score < 0.2", "width >= 50"))
    bad, dark, small = image(similarity=0.1), image(score=0.9, similarity=0.1), image(width=10, score=0.9)
    found, records, nulls = judged([of(image(), bad, dark, small), of(image(ok=False))], rules)
    assert found[1:4] == ["clip.similarity > 0.3", "nsfw.score < 0.2", "width >= 50"]
    assert (found[4], records, nulls) == ("failed", ["kept", "missing_image"], {})
    rules = rules.model_copy(update={"images": ImageRules(min_similarity=0.3, min_side_px=5)})
    assert judged([of(bad, dark)], rules)[0] == ["min_similarity", "nsfw.score < 0.2"]


def test_a_rule_on_records_drops_the_record() -> None:
    rules = Rules(rules=("words.count > 3 and text_chars < 100", 'words.language == "en" or n_images > 1'))
    made = [of(image(), language="en"), of(image(), words=2), of(image(), image(), language="de"), of(image())]
    found, records, nulls = judged(made, rules)
    assert records == ["kept", rules.rules[0], "kept", "kept"]
    assert found == ["kept", "record_dropped", "kept", "kept", "kept"]
    assert nulls == {rules.rules[1]: 1}  # the last has no language
    assert judged([of(image(), words=2, language="en")], Rules(rules=("width > n_images or words.count > 3",)))[0] == [
        "kept"
    ]


def test_what_is_null_keeps_and_is_counted() -> None:
    rules = Rules(rules=("nsfw.score < 0.2 or width > 500", "nsfw.bad == false"))
    made = [of(image(score=None), image(score=None, width=600), image(score=0.7, width=600))]
    found, _, nulls = judged(made, rules)
    assert found == ["kept", "kept", "nsfw.bad == false"]
    assert nulls == {rules.rules[0]: 1, rules.rules[1]: 2}


def test_a_rule_that_is_there_twice_counts_its_nulls_once() -> None:
    assert judged([of(image(score=None))], Rules(rules=("nsfw.score < 0.2",) * 2))[2] == {"nsfw.score < 0.2": 1}


def test_texts_take_the_memory_of_their_letters_and_keep_them_all() -> None:
    found = values_of(pa.chunked_array([["a", "a\0", None, "x" * 10_000_000] + ["b"] * 100_000]))
    condition = parse("url == 'a' or url in ['b'] or url > 'w'", {"url": "text"})
    assert found.null is not None  # as np.str_ they would take 4 TB
    assert condition.holds({"url": found.values}, {"url": found.null})[:5].tolist() == [True, False, True, True, True]


def test_float32_columns_are_compared_as_such() -> None:
    equal = ("nsfw.score <= 0.1", "nsfw.score == 0.1", "nsfw.score in [0.5, 0.1]")
    for text, kept in (
        *((text, True) for text in equal),
        ("nsfw.score < 0.1", False),
        ("nsfw.score not in [0.1]", False),
    ):
        assert (judged([of(image(score=0.1))], Rules(rules=(text,)))[0] == ["kept"]) == kept


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("nsfw.scor < 0.2", "no column 'nsfw.scor'; nearest: nsfw.score"),
        ("widht > 3", "no column 'widht'; nearest: width"),
        ("nsfw.score < 'a'", "is a text; expected a number"),
        ("nsfw.bad > false", "compared by == or !="),
        ("nsfw.bad", "is not a condition"),
        ("url > ", "is not an expression"),
        ("1 < 2", "uses no column"),
        ("width < 1" + "0" * 400, "a number is too large"),
        ("width < 1e999", "a number is too large"),
        ("width < " + "-" * 480 + "1", "nested more than 100 levels"),
    ],
)
def test_what_is_no_rule(text: str, problem: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_rules(("width > 1", text), SCORES)
    assert caught.value.args[0] == 1 and problem in caught.value.args[1]


def test_a_corpus_has_its_own_rules_or_the_common_ones() -> None:
    config = FilterConfig(rules=(" nsfw.bad == false ",), per_corpus={"a": Rules(rules=()), "b": Rules()})
    assert config.rules_for("a").rules == ()
    assert config.rules_for("b").rules == config.rules_for("c", conversations=True).rules == ("nsfw.bad == false",)


numbers = st.integers(0, 10).map(lambda n: n / 10)
images = st.builds(
    image,
    ok=st.integers(0, 5).map(bool),
    width=st.sampled_from([40, 100, 300]),
    text=st.sampled_from([0, 0, 0, None]),
    score=st.none() | numbers,
    similarity=numbers,
    fresh=numbers,
    number=st.integers(0, 6),
    nsfw=st.integers(0, 2).map(bool),
    clip=st.integers(0, 2).map(bool),
)
documents = st.builds(
    lambda made, words, language, scored: of(*made, words=words, language=language, scored=scored),
    st.lists(images, max_size=4),
    st.integers(0, 4),
    st.sampled_from(["en", "de", None]),
    st.integers(0, 2).map(bool),
)
corpora = st.lists(st.lists(documents, min_size=1, max_size=5), min_size=1, max_size=3)
texts = st.sampled_from(
    [
        "width > 50",
        "nsfw.score < 0.5",
        "nsfw.bad == false and width < 200",
        "clip.similarity >= 0.4 or nsfw.score < 0.2",
        "clip.assigned_similarity > 0.3",
        "words.count > 1",
        "words.language == 'en' or n_images > 2",
        "words.count > 2 or nsfw.score <= 0.5",
        "text_chars < 35",
    ]
)
orders = st.permutations(SCORES.tables).map(lambda made: Scores(tuple(made), "clip"))
rule_sets = st.builds(
    Rules,
    rules=st.lists(texts, max_size=3, unique=True).map(tuple),
    images=st.builds(
        ImageRules,
        min_similarity=st.none() | numbers,
        min_side_px=st.none() | st.just(60),
        exact_duplicates=st.sampled_from(["keep", "drop"]),
    ),
    documents=st.builds(
        DocumentRules,
        min_images=st.integers(0, 2),
        max_images=st.none() | st.integers(1, 3),
        on_missing_image=st.sampled_from(["drop_document", "drop_image"]),
        on_dropped_image=st.sampled_from(["drop_document", "drop_image"]),
        reassign=st.booleans(),
    ),
)


def write_all(store: Store, made: Sequence[Sequence[dict[str, Any]]]) -> list[Part]:
    parts = []
    for index, of_part in enumerate(made):
        part = Part("docs", index, "m", "m", 0, len(of_part), len(of_part), "in")
        found = tables(of_part)
        write(store, part.images_table(), found.pop("images"))
        write(store, part.records_table(), found.pop("records"))
        for name, table in found.items():
            write(store, part.scores_table(name), table)
        parts.append(part)
    return parts


def filtered(
    store: Store, parts: Sequence[Part], rules: Rules, scores: Scores = SCORES
) -> tuple[dict[str, dict[str, int]], list[bytes]]:
    """The counts of the filter stage's receipts, together, and the bytes of its tables."""
    copies: list[Any] = [None] * len(parts)
    if rules.images.exact_duplicates == "drop":
        copies = list(duplicates.later_copies([part_digests(store, part, rules, scores) for part in parts]))
    total: dict[str, dict[str, int]] = {"images": {}, "records": {}, "null_values": {}}
    for part, of_part in zip(parts, copies, strict=True):
        receipt = filter_part(store, part, rules, scores, of_part, "test")
        for unit, counts in receipt.counts.items():
            for fate, count in counts.items():
                total[unit][fate] = total[unit].get(fate, 0) + count
    return total, [store.read(part.fates_table()) for part in parts]


def scored_by_a_run(
    store: Store,
    parts: Sequence[Part],
    made: Sequence[Sequence[dict[str, Any]]],
    rules: Rules,
    scores: Scores,
    random: np.random.Generator | None = None,
) -> int:
    """What the score stage would do first, scorer by scorer; how many images and records it scores of which the rules read the
    scores. random: gives new assignments where they may move."""
    newly = set()
    for part, of_part in zip(parts, made, strict=True):
        images = [one for document in of_part for one in document["images"]]
        for name in (table.name for table in scores.tables):
            items = list(of_part) if name == "words" else images
            needed = rows_worth_scoring(store, part, rules, scores, name)
            key = "scored" if name == "words" else name
            fresh = [
                number for number, (item, want) in enumerate(zip(items, needed, strict=True)) if want and not item[key]
            ]
            for number in fresh:
                items[number][key] = True
            if name in scorers_read(rules, scores):
                newly |= {id(items[number]) for number in fresh}
            if name == "clip" and random is not None:
                touched = {id(items[number]) for number in fresh}
                for document in of_part:
                    if any(id(one) in touched for one in document["images"]):
                        for one in document["images"]:
                            one["fresh"] = int(random.integers(0, 11)) / 10
            write(store, part.scores_table(name), tables(of_part)[name])
    return len(newly)


def copied(made: Any, **scored: bool) -> Any:
    """The documents, to be changed; scored: for all of them, what is scored."""
    flags = {"scored": scored["words"]} if scored else {}
    of_images = {name: value for name, value in scored.items() if name != "words"}
    return [[{**one, **flags, "images": [i | of_images for i in one["images"]]} for one in part] for part in made]


@settings(max_examples=60, deadline=None)
@given(corpora, rule_sets, orders, st.integers(0, 2**32 - 1))
def test_what_is_unknown_covers_whatever_the_scores_turn_out_to_be(
    made: Any, rules: Rules, scores: Scores, seed: int
) -> None:
    store = Store("memory://conditions")
    made = copied(made)
    parts = write_all(store, made)
    counted = tally(store, Scope(parts, scores), [rules])[0]
    newly = scored_by_a_run(store, parts, made, rules, scores, np.random.default_rng(seed))
    assert counted.unscored >= newly
    found, _ = filtered(store, parts, rules, scores)
    for counts, real in ((counted.images, found["images"]), (counted.records, found["records"])):
        unknown = counts.get(UNKNOWN, 0)
        assert sum(counts.values()) == sum(real.values())
        for fate in {*counts, *real} - {UNKNOWN}:
            assert counts.get(fate, 0) <= real.get(fate, 0) <= counts.get(fate, 0) + unknown, fate
    again = tally(store, Scope(parts, scores), [rules])[0]
    assert (again.images, again.records, again.unscored) == (found["images"], found["records"], 0)


@settings(max_examples=150, deadline=None)
@given(corpora, rule_sets, orders)
def test_fates_do_not_depend_on_what_else_was_scored(made: Any, rules: Rules, scores: Scores) -> None:
    """From nothing, after what other rules had scored, and with all scored: the same tables, counts and answers of whatif."""
    store, found = Store("memory://history"), []
    for before in (copied(made, words=False, nsfw=False, clip=False), copied(made)):
        parts = write_all(store, before)
        scored_by_a_run(store, parts, before, rules, scores)
        found.append((filtered(store, parts, rules, scores), tally(store, Scope(parts, scores), [rules])[0]))
    parts = write_all(store, copied(made, words=True, nsfw=True, clip=True))
    found.append((filtered(store, parts, rules, scores), tally(store, Scope(parts, scores), [rules])[0]))
    assert found[1:] == found[:1] * 2
    (counts, _), counted = found[0]
    assert (counted.images, counted.records, counted.unscored) == (counts["images"], counts["records"], 0)


@settings(max_examples=40, deadline=None)
@given(corpora, rule_sets)
def test_a_scorer_that_no_rule_names_changes_no_fate(made: Any, rules: Rules) -> None:
    named = tuple(text for text in rules.rules if "clip." not in text and "words." not in text)
    images = rules.images.model_copy(update={"min_similarity": None})
    rules = rules.model_copy(update={"rules": named, "images": images})
    store = Store("memory://named")
    parts = write_all(store, copied(made, words=True, nsfw=True, clip=True))
    words, nsfw, _ = SCORES.tables
    assert filtered(store, parts, rules, Scores((words, nsfw))) == filtered(store, parts, rules, Scores((nsfw,)))


def test_an_image_of_a_record_that_is_lost_is_judged_no_further_and_is_no_first_copy() -> None:
    rules = Rules(
        rules=("words.count > 3", "nsfw.score < 0.5"),
        images=ImageRules(min_side_px=60, min_similarity=0.3, exact_duplicates="drop"),
        documents=DocumentRules(min_images=2),
    )
    lost = [of(image(number=1), image(width=40)), of(image(number=2), image(score=0.9))]
    lost += [of(image(number=3), image(number=8), words=2)]
    lost += [of(image(number=4, score=None), image(ok=False)), of(image(similarity=0.1), image(score=None, number=5))]
    kept = of(*(image(number=number) for number in range(1, 6)))
    for scored in (True, False):
        store = Store("memory://lost")
        made = copied([lost, [kept]], words=scored, nsfw=scored, clip=scored)
        parts = write_all(store, made)
        scored_by_a_run(store, parts, made, rules, SCORES)
        found, _ = filtered(store, parts, rules)
        assert found["images"] == {
            "kept": 4,
            "dropped:min_side_px": 1,
            "dropped:nsfw.score < 0.5": 1,
            "dropped:min_similarity": 1,
            "dropped:exact_duplicate": 1,  # of number 5, whose record is lost by the last rule alone
            "dropped:record_dropped": 6,
        }
        reasons = {"min_images": 3, "words.count > 3": 1, "missing_image": 1}
        assert found["records"] == {"kept": 1} | {f"dropped:{reason}": count for reason, count in reasons.items()}
        assert found["null_values"] == {"nsfw.score < 0.5": 1}
