"""What `improved` promises, for samples of every view."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests.encode.conftest import Made
from tests.encode.generated import (
    HARMLESS_TEXT,
    conversation_json,
    conversations,
    document_json,
    documents,
    encoded,
    labels_of,
    pairs,
)
from tests.encode.trained import assert_answers_alone_are_trained, bare, decode
from vila_data.encode.config import PackConfig
from vila_data.encode.sequence import IGNORED, IMAGE_ID, NO_TEXT, OK, TOO_LONG, TOO_MANY_IMAGES, TokenSequence

KINDS = ("llama_legacy", "llama_first", "byte_level")
relaxed = settings(
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
)
SAMPLES = st.one_of(documents(), documents(), pairs(), conversations())


def config_of(sequence_length: int = 100_000, tokens_per_image: int = 7, **others: Any) -> PackConfig:
    return PackConfig(
        tokenizer="made",
        sequence_length=sequence_length,
        tokens_per_image=tokens_per_image,
        semantics="improved",
        **others,
    )


def images_of(value: dict[str, Any]) -> int:
    if "caption" in value:
        return 1
    return sum(image is not None for image in value["images"])


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@relaxed
@given(
    value=SAMPLES,
    percent=st.integers(0, 120),
    tokens_per_image=st.sampled_from([1, 7, 40]),
    most=st.sampled_from([None, 1, 3]),
)
def test_limits_and_counts(
    made: Made, kind: str, value: dict[str, Any], percent: int, tokens_per_image: int, most: int | None
) -> None:
    tokenizer = made(kind)
    before = deepcopy(value)
    whole = encoded(value, config_of(tokens_per_image=tokens_per_image, max_images_per_pack=most), tokenizer)
    limit = max(tokens_per_image + 2, whole.tokens * percent // 100)
    config = config_of(limit, tokens_per_image, max_images_per_pack=most)
    sequence = encoded(value, config, tokenizer)
    assert value == before, "the source was changed"
    assert encoded(value, config, tokenizer) == sequence, "a second visit gave something else"
    assert len(sequence.images) + sequence.left_out == images_of(value)
    if sequence.fate != OK:
        assert (sequence.ids, sequence.trained, sequence.images, sequence.tokens) == ([], [], (), 0)
        return
    shown = sequence.ids.count(IMAGE_ID)
    assert sequence.tokens == len(sequence.ids) + shown * (tokens_per_image - 1) <= limit, "length, or an image cut"
    assert shown == len(sequence.images) <= (most or 99) and sequence.ids[-1] != IMAGE_ID
    assert list(sequence.images) == sorted(sequence.images), "reading order"
    labels = labels_of(sequence)
    assert labels[0] == IGNORED, "the end of one sample would predict the beginning of the next"
    assert any(label != IGNORED for label in labels), "wholly masked"
    assert all(label == IGNORED for token, label in zip(sequence.ids, labels, strict=True) if token == IMAGE_ID)
    if whole.fate == OK and limit >= whole.tokens:
        assert sequence == whole
    if "conversations" not in value:
        assert sequence.ids[-1] == tokenizer.eos_id == labels[-1], "a document keeps its end token"
        assert all(
            label == token for token, label in zip(sequence.ids[1:], labels[1:], strict=True) if token != IMAGE_ID
        )


@relaxed
@given(value=SAMPLES, percent=st.integers(10, 100))
def test_what_is_cut_is_counted(made: Made, kind: str, value: dict[str, Any], percent: int) -> None:
    tokenizer = made(kind)
    whole = encoded(value, config_of(), tokenizer)
    assume(whole.fate == OK)
    sequence = encoded(value, config_of(max(9, whole.tokens * percent // 100)), tokenizer)
    assert sequence.tokens + sequence.cut == whole.tokens


@relaxed
@given(value=documents(), percent=st.integers(10, 99))
def test_a_document_ends_after_a_whole_sentence(made: Made, kind: str, value: dict[str, Any], percent: int) -> None:
    """What is left is the document of its first sentences, and one sentence more would not fit."""
    tokenizer = made(kind)
    whole = encoded(value, config_of(), tokenizer)
    assume(whole.fate == OK)
    config = config_of(max(9, whole.tokens * percent // 100))
    sequence = encoded(value, config, tokenizer)
    sentences = [text for text in value["texts"] if text is not None]
    heads = [encoded(head(value, sentences, count), config_of(), tokenizer) for count in range(1, len(sentences) + 1)]
    fitting = [part for part in heads if part.fate == OK and part.tokens <= config.sequence_length]
    if fitting:
        assert sequence.tokens == max(part.tokens for part in fitting)
        assert sequence.ids in [part.ids for part in fitting]


def head(value: dict[str, Any], sentences: list[str], count: int) -> dict[str, Any]:
    infos = [info for info in value["image_info"] if info["matched_text_index"] < count]
    return document_json(sentences[:count], infos)


@relaxed
@given(value=conversations(), percent=st.integers(10, 99))
def test_a_conversation_ends_after_a_whole_answer(made: Made, kind: str, value: dict[str, Any], percent: int) -> None:
    tokenizer = made(kind)
    whole = encoded(value, config_of(), tokenizer)
    config = config_of(max(9, whole.tokens * percent // 100))
    sequence = encoded(value, config, tokenizer)
    turns = value["conversations"]
    heads = [
        encoded(conversation_json(turns[:count], value["system"]), config_of(), tokenizer)
        for count in range(2, len(turns) + 1, 2)
    ]
    fitting = [part for part in heads if part.tokens <= config.sequence_length]
    if fitting:
        assert (sequence.ids, sequence.trained) == (fitting[-1].ids, fitting[-1].trained)
    elif sequence.fate == OK:
        assert heads[0].ids[: len(sequence.ids)] == sequence.ids


@relaxed
@given(value=documents(), most=st.integers(1, 5))
def test_images_are_the_most_similar_in_reading_order(made: Made, value: dict[str, Any], most: int) -> None:
    tokenizer = made("llama_legacy")
    everything = encoded(value, config_of(), tokenizer)
    assume(everything.fate == OK)
    chosen = encoded(value, config_of(max_images_per_document=most), tokenizer)
    worth = {
        n: -1.0 if info["similarity"] is None else info["similarity"] for n, info in enumerate(value["image_info"])
    }
    best = sorted(everything.images, key=lambda number: (-worth[number], number))[:most]
    assert chosen.images == tuple(sorted(best))
    assert chosen.left_out == images_of(value) - len(best)


@relaxed
@given(value=st.one_of(documents(), pairs()))
def test_a_text_is_all_there(made: Made, kind: str, value: dict[str, Any]) -> None:
    tokenizer = made(kind)
    sequence = encoded(value, config_of(), tokenizer)
    assume(sequence.fate == OK)
    texts = [value["caption"]] if "caption" in value else [text for text in value["texts"] if text is not None]
    assume(bare("".join(texts)) == "".join(map(bare, texts)))  # "<imag", "e>" spell a mark only when joined here
    said = decode([token for token in sequence.ids[1:-1] if token != IMAGE_ID], tokenizer)
    assert bare(said) == bare("".join(texts).replace("<image>", "<IMAGE>"))


@relaxed
@given(value=SAMPLES)
def test_spelled_special_tokens_stay_text(made: Made, kind: str, value: dict[str, Any]) -> None:
    """None but those that the encoder or the template puts there: one at the front, one an answer or document."""
    tokenizer = made(kind)
    sequence = encoded(value, config_of(), tokenizer)
    assume(sequence.fate == OK)
    ends = sum(bool(turn["value"]) for turn in value["conversations"][1::2]) if "conversations" in value else 1
    if tokenizer.bos_id == tokenizer.eos_id:
        assert sequence.ids.count(tokenizer.eos_id) == ends + 1
    else:
        assert (sequence.ids.count(1), sequence.ids.count(2), sequence.ids.count(0)) == (1, ends, 0)


@relaxed
@given(value=conversations())
def test_answers_alone_are_trained(made: Made, kind: str, value: dict[str, Any]) -> None:
    tokenizer = made(kind)
    assert_answers_alone_are_trained(value, encoded(value, config_of(), tokenizer), tokenizer)


@relaxed
@given(value=st.one_of(pairs(HARMLESS_TEXT), conversations(HARMLESS_TEXT)))
def test_harmless_text_is_encoded_as_published(made: Made, kind: str, value: dict[str, Any]) -> None:
    """Where no text spells a special token, nothing is too long and no space stands beside an image."""
    tokenizer = made(kind)
    assume(not value.get("caption", "").startswith(" "))
    assume(not value.get("images") and all(turn["value"] for turn in value.get("conversations", ())))
    paper = encoded(value, config_of().model_copy(update={"semantics": "paper"}), tokenizer)
    improved = encoded(value, config_of(), tokenizer)
    if improved.fate == NO_TEXT:
        return
    assert improved.ids == paper.ids
    assert labels_of(improved)[1:] == labels_of(paper)[1:]


@pytest.mark.parametrize("spelled", ["</s>", "<s>", "<unk>", "x</s>y"])
def test_a_spelled_token_changes_nothing_around_it(made: Made, kind: str, spelled: str) -> None:
    """The turns after it are tokenised as they are without it."""
    tokenizer = made(kind)

    def after(question: str) -> list[int]:
        said = [question, "the red boat", "what is this", "a house"]
        turns = [{"from": ("human", "gpt")[n % 2], "value": text} for n, text in enumerate(said)]
        ids = encoded(conversation_json(turns), config_of(), tokenizer).ids
        return ids[ids.index(tokenizer.eos_id, 1) :]

    assert after(spelled) == after("hello")


def test_images_first(made: Made) -> None:
    tokenizer = made("llama_legacy")
    infos = [{"matched_text_index": k, "image_index": k, "similarity": 0.1} for k in (1, 2)]
    value = document_json(["the red", " boat", "on"], infos)
    sequence = encoded(value, config_of(images_first=True), tokenizer)
    assert sequence.ids == [1, -200, -200, *tokenizer.encode(["the red  boat on"])[0].ids, 2]
    assert sequence.images == (0, 1)


@pytest.mark.parametrize("value", [document_json([""], []), document_json([], []), document_json([" ", ""], [])])
def test_a_sample_without_text_has_its_fate(made: Made, value: dict[str, Any]) -> None:
    sequence = encoded(value, config_of(), made("llama_legacy"))
    assert isinstance(sequence, TokenSequence) and sequence.tokens == 0 and sequence.fate == NO_TEXT


def test_a_conversation_with_more_images_than_a_pack_takes(made: Made) -> None:
    """It ends after the last answer whose images all have room; what is left out is counted."""
    tokenizer = made("llama_first")
    said = ["<image>\nwhat is this", "the red boat", "<image>\nand this", "a house", "<image>", "a tree"]
    turns = [{"from": ("human", "gpt")[n % 2], "value": text} for n, text in enumerate(said)]
    sequence = encoded(conversation_json(turns), config_of(max_images_per_pack=2), tokenizer)
    head = encoded(conversation_json(turns[:4]), config_of(), tokenizer)
    assert sequence == head._replace(left_out=1, cut=sequence.cut)
    whole = encoded(conversation_json(turns), config_of(), tokenizer)
    assert (sequence.images, sequence.cut) == ((0, 1), whole.tokens - sequence.tokens)
    crowded = conversation_json([{"from": "human", "value": "<image>" * 3}, {"from": "gpt", "value": "a boat"}])
    refused = encoded(crowded, config_of(max_images_per_pack=2), tokenizer)
    assert (refused.fate, refused.tokens, refused.left_out) == (TOO_MANY_IMAGES, 0, 3)


def test_a_question_longer_than_a_sequence(made: Made) -> None:
    tokenizer = made("llama_first")
    turns = [{"from": "human", "value": "what is this " * 50}, {"from": "gpt", "value": "a boat"}]
    value = conversation_json(turns)
    refused = encoded(value, config_of(60), tokenizer)
    whole = encoded(value, config_of(), tokenizer)
    assert (refused.fate, refused.tokens, refused.cut, refused.ids) == (TOO_LONG, 0, whole.tokens, [])


def test_a_first_sentence_longer_than_a_sequence(made: Made) -> None:
    tokenizer = made("llama_first")
    value = document_json(["the red boat " * 50, "a house"], [])
    sequence = encoded(value, config_of(60), tokenizer)
    whole = encoded(value, config_of(), tokenizer)
    assert (sequence.tokens, sequence.ids[:-1], sequence.ids[-1]) == (60, whole.ids[:59], tokenizer.eos_id)
    assert sequence.trained == [(1, 60)] and sequence.cut == whole.tokens - 60


def test_a_document_whose_characters_cost_unevenly(made: Made) -> None:
    """Where the guess by characters is far off, the last sentence that fits is found all the same."""
    tokenizer = made("llama_first")
    sentences = ["the red boat on the open sea"] * 200 + ["漢字かな交じり文"] * 200
    for length in (50, 1500, 3000):
        sequence = encoded(document_json(sentences, []), config_of(length), tokenizer)
        kept = tokenizer.decode(sequence.ids).count("boat") + tokenizer.decode(sequence.ids).count("漢字")
        heads = [encoded(document_json(sentences[:count], []), config_of(), tokenizer) for count in (kept, kept + 1)]
        assert sequence.ids == heads[0].ids and heads[1].tokens > length


def test_without_a_limit_the_fidelity_modes_take_vilas_six_images() -> None:
    for semantics, images in (("paper", 6), ("improved", None)):
        config = PackConfig(tokenizer="x", sequence_length=4096, tokens_per_image=8, semantics=semantics)
        assert config.document_images() == images
        assert config.model_copy(update={"max_images_per_document": 9}).document_images() == 9
