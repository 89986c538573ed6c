"""Tokenizers of every make: each works, or there is one clear error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.encode import made_tokenizers
from tests.encode.conftest import Made
from tests.encode.generated import conversation_json, conversations, documents, encoded, labels_of, pair_json, pairs
from vila_data.core.errors import UsageError
from vila_data.encode.chat import ChatTemplate
from vila_data.encode.config import PackConfig
from vila_data.encode.sequence import IGNORED, IMAGE_ID, OK
from vila_data.encode.templates import check_tokenizer
from vila_data.encode.tokenizer import load_tokenizer

KINDS = tuple(made_tokenizers.KINDS)
TALK = conversation_json(
    [{"from": "human", "value": "<image>\nwhat is this"}, {"from": "gpt", "value": "the red boat"}], "Be brief."
)


def config_of(template: str = "vicuna_v1", semantics: str = "improved", length: int = 200) -> PackConfig:
    values = {"tokenizer": "made", "sequence_length": length, "tokens_per_image": 7, "template": template}
    return PackConfig.model_validate({**values, "semantics": semantics})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("semantics", ["improved", "paper"])
@settings(
    deadline=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
)
@given(value=st.one_of(documents(), pairs(), conversations()), length=st.integers(9, 300))
def test_every_tokenizer_encodes_everything(
    made: Made, kind: str, semantics: str, value: dict[str, Any], length: int
) -> None:
    tokenizer = made(kind)
    sequence = encoded(value, config_of(semantics=semantics, length=length), tokenizer)
    if sequence.fate == OK:
        assert 0 < sequence.tokens <= length
        assert all(token == IMAGE_ID or 0 <= token < tokenizer.vocabulary_size for token in sequence.ids)
        labels = labels_of(sequence)
        assert semantics == "paper" or (labels[0] == IGNORED and any(label >= 0 for label in labels))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("template", ["plain", "vicuna_v1"])
def test_answers_are_found_by_every_tokenizer(made: Made, kind: str, template: str) -> None:
    tokenizer = made(kind)
    sequence = encoded(TALK, config_of(template), tokenizer)
    ((first, last),) = sequence.trained
    end = "\n" if template == "plain" else tokenizer.eos
    text = tokenizer.decode(sequence.ids[first:last])
    assert text.removesuffix(end).strip() == "the red boat"
    assert (sequence.ids[-1] == tokenizer.eos_id) == (template != "plain") and (
        text.endswith(end) or kind == "word_piece"
    )
    assert (sequence.ids[0] == tokenizer.bos_id) == (tokenizer.bos_id is not None)


@pytest.mark.parametrize("answer", ["\n\nthe boat", "  the boat", "\tboat", " ", "\n"])
def test_spaces_at_the_front_of_an_answer_are_trained(made: Made, answer: str) -> None:
    """Byte-level tokenizers of transformers report offsets without them."""
    tokenizer = made("byte_level")
    value = conversation_json([{"from": "human", "value": "what"}, {"from": "gpt", "value": answer}])
    sequence = encoded(value, config_of(), tokenizer)
    ((first, last),) = sequence.trained
    assert tokenizer.decode(sequence.ids[first:last]) in (answer + tokenizer.eos, " " + answer + tokenizer.eos)


def test_only_special_added_tokens_are_kept_from_texts(made: Made, tmp_path: Path) -> None:
    """An added token that is not special is a piece like any other, as in training."""
    from transformers import AutoTokenizer

    auto = AutoTokenizer.from_pretrained(made("llama_first").name)
    auto.add_tokens(["<tool>"])
    auto.add_special_tokens({"additional_special_tokens": ["<|secret|>"]})
    auto.save_pretrained(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path))
    tool, secret = (auto.convert_tokens_to_ids(token) for token in ("<tool>", "<|secret|>"))
    value = pair_json("a <tool> and <|secret|>")
    ids = encoded(value, config_of(), tokenizer).ids
    assert tool in ids and secret not in ids
    assert secret in encoded(value, config_of(semantics="paper"), tokenizer).ids


def test_without_an_end_token(tmp_path: Path) -> None:
    folder = made_tokenizers.write(tmp_path, "llama_first", without="eos_token")
    with pytest.raises(UsageError, match="has no end-of-sequence token; set eos_token"):
        load_tokenizer(folder)


def test_without_a_first_token(made: Made) -> None:
    tokenizer = made("llama_first", without="bos_token")
    assert tokenizer.bos_id is None
    for template in ("plain", "vicuna_v1"):
        check_tokenizer(config_of(template), tokenizer)
        assert encoded(TALK, config_of(template), tokenizer).fate == OK
    with pytest.raises(UsageError, match="no beginning-of-sequence token, which template llama_2"):
        check_tokenizer(config_of("llama_2"), tokenizer)
    with pytest.raises(UsageError, match="no beginning-of-sequence token, which VILA puts at the start"):
        check_tokenizer(config_of(semantics="paper"), tokenizer)


def test_without_a_padding_token(made: Made) -> None:
    assert made("llama_first").pad_id == made("llama_first").eos_id
    assert made("word_piece").pad_id == 0


def test_chat_without_a_chat_template(made: Made) -> None:
    with pytest.raises(UsageError, match=r"has no chat template: choose pack\.template"):
        ChatTemplate(made("llama_first"))


def test_a_chat_template_that_fails(made: Made) -> None:
    template = "{{ raise_exception('only one turn') }}"
    with pytest.raises(UsageError, match="cannot write a question and an answer: only one turn"):
        ChatTemplate(made("llama_first", template))


def test_a_chat_template_that_is_broken(made: Made) -> None:
    with pytest.raises(UsageError, match="its chat template is broken: "):
        ChatTemplate(made("llama_first", "{% for m in messages %}"))


BROKEN: dict[str, tuple[dict[str, str], str]] = {
    "empty": ({}, r"a directory with nothing in it\): has neither tokenizer\.json nor tokenizer\.model"),
    "config alone": ({"tokenizer_config.json": "{}"}, r"a directory with tokenizer_config\.json\): has neither"),
    "not JSON": ({"tokenizer.json": "{"}, "tokenizer.json cannot be read"),
    "JSON of another kind": ({"tokenizer.json": "[]"}, "must contain an object, found a list"),
    "merges of nothing": (
        {"tokenizer.json": '{"added_tokens": [], "model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}}'},
        "cannot be loaded",
    ),
    "no vocabulary": (
        {
            "tokenizer.json": '{"added_tokens": [], "model": {"type": "BPE", "vocab": {}, "merges": []}}',
            "tokenizer_config.json": '{"eos_token": "</s>"}',
        },
        "has no vocabulary",
    ),
    "a model that is none": ({"tokenizer.model": "no protocol buffer"}, "tokenizer.model: not a SentencePiece model"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_folders_without_a_tokenizer(name: str, tmp_path: Path) -> None:
    files, message = BROKEN[name]
    for file, text in files.items():
        (tmp_path / file).write_text(text)
    with pytest.raises(UsageError, match=message):
        load_tokenizer(str(tmp_path))


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be loaded: it is neither a directory nor a repository"):
        load_tokenizer(str(tmp_path / "missing"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"template": "vicuna_v2"}, "template"),
        ({"semantics": "best"}, "semantics"),
        ({"tokens_per_image": 199}, "do not fit"),
        ({"micro_batch": 8}, "micro_batch"),
        ({"max_images_per_pack": 0}, "max_images_per_pack"),
        ({"sequence_length": 1}, "sequence_length"),
    ],
)
def test_recipe_values_that_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PackConfig.model_validate({"tokenizer": "made", "sequence_length": 200, "tokens_per_image": 7, **values})


def test_fingerprints_tell_tokenizers_apart(made: Made, tmp_path: Path) -> None:
    prints = {made(kind).fingerprint for kind in KINDS} | {made("llama_first", without="bos_token").fingerprint}
    assert len(prints) == len(KINDS) + 1
    again = load_tokenizer(made_tokenizers.write(tmp_path, "llama_first"))
    assert again.fingerprint == made("llama_first").fingerprint
