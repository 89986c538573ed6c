"""Each template by hand, and a tokenizer's own: which tokens are trained, and what ends an answer."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from tests.encode.conftest import Made
from tests.encode.generated import HARMLESS_TEXT, conversation_json, conversations, encoded
from tests.encode.made_tokenizers import CHATML, SPACED, TRIMMING
from tests.encode.trained import assert_answers_alone_are_trained, bare, parts
from vila_data.encode.config import PackConfig
from vila_data.encode.tokenizer import TextTokenizer

relaxed = settings(
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
)
SAID = ("<image>\nwhat is this", "the red boat", "the sea", "a house")
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
)


def config_of(template: str, **others: Any) -> PackConfig:
    values = {"tokenizer": "made", "sequence_length": 100_000, "tokens_per_image": 7, "template": template}
    return PackConfig.model_validate(values | others)


def talk(system: str | None = None, said: tuple[str, ...] = SAID) -> dict[str, Any]:
    turns = [{"from": ("human", "gpt")[n % 2], "value": text} for n, text in enumerate(said)]
    return conversation_json(turns, system)


def ids_of(tokenizer: TextTokenizer, *texts: str) -> list[int]:
    """Each text as it is tokenised alone, special tokens in it included, with an image between each two."""
    ids: list[int] = []
    for number, encoding in enumerate(tokenizer.encode(texts)):
        ids += [-200] * (number > 0) + encoding.ids
    return ids


PROMPTS = [
    ("vicuna_v1", None, (SYSTEM + "USER: ", "\nwhat is this ASSISTANT: the red boat</s>USER: the sea ASSISTANT: a house</s>")),
    ("vicuna_v1", "Be brief.", ("Be brief. USER: ", "\nwhat is this ASSISTANT: the red boat</s>USER: the sea ASSISTANT: a house</s>")),
    ("vicuna_v1", "", (" USER: ", "\nwhat is this ASSISTANT: the red boat</s>USER: the sea ASSISTANT: a house</s>")),
    ("llama_2", None, ("[INST] ", "\nwhat is this [/INST] the red boat </s><s>[INST] the sea [/INST] a house </s>")),
    (
        "llama_2",
        "Be brief.",
        (
            "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n",
            "\nwhat is this [/INST] the red boat </s><s>[INST] the sea [/INST] a house </s>",
        ),
    ),
    ("plain", "Be brief.", ("", "the red boat\na house\n")),
]  # fmt: skip


@pytest.mark.parametrize("kind", ["llama_legacy", "llama_first"])
@pytest.mark.parametrize(("template", "system", "prompt"), PROMPTS)
def test_prompts(made: Made, kind: str, template: str, system: str | None, prompt: tuple[str, ...]) -> None:
    tokenizer = made(kind)
    sequence = encoded(talk(system), config_of(template), tokenizer)
    assert sequence.ids == [tokenizer.bos_id, *ids_of(tokenizer, *prompt)]
    found, _ = parts(sequence, tokenizer)
    joined = "".join(map(bare, found))
    assert joined == ("theredboat\nahouse\n" if template == "plain" else "theredboat</s>ahouse</s>")


@pytest.mark.parametrize("answer", ["5 boats", "漢字", "🛶", "the boat", " two", "\nline"])
@pytest.mark.parametrize("template", ["vicuna_v1", "llama_2"])
def test_the_space_before_an_answer_is_trained(made: Made, template: str, answer: str) -> None:
    """A model must emit it, whether it is a token of its own or part of the first word."""
    tokenizer = made("llama_first")
    sequence = encoded(talk("", ("what", answer)), config_of(template), tokenizer)
    ((first, last),) = sequence.trained
    assert tokenizer.decode(sequence.ids[:first]).endswith((":", "]")), "what is before it"
    end = " </s>" if template == "llama_2" else "</s>"
    assert tokenizer.decode([*sequence.ids[:1], *sequence.ids[first:last]]).removeprefix("<s>") == f" {answer}{end}"


@pytest.mark.parametrize("template", ["vicuna_v1", "llama_2"])
@relaxed
@given(value=conversations())
def test_answers_alone_are_trained(made: Made, template: str, value: dict[str, Any]) -> None:
    for kind in ("llama_legacy", "llama_first"):
        sequence = encoded(value, config_of(template), made(kind))
        assert_answers_alone_are_trained(value, sequence, made(kind))


CHATS = [(CHATML, "<|im_end|>\n"), (TRIMMING, "<|eot|>"), (SPACED, "</s>")]


@pytest.mark.parametrize(("template", "end"), CHATS, ids=["chatml", "trimming", "spaced"])
@relaxed
@given(value=conversations(HARMLESS_TEXT))
def test_chat_trains_answers_and_what_ends_them(made: Made, template: str, end: str, value: dict[str, Any]) -> None:
    tokenizer = made("llama_first", template)
    if template == SPACED:
        value = {**value, "system": ""}
    if template == TRIMMING:
        turns = [{**turn, "value": turn["value"].strip()} for turn in value["conversations"]]
        value = {**value, "conversations": turns}
    assert_answers_alone_are_trained(value, encoded(value, config_of("chat"), tokenizer), tokenizer, end)


def test_a_question_at_the_end_is_not_trained(made: Made) -> None:
    tokenizer = made("llama_first")
    whole = encoded(talk(said=SAID[:3]), config_of("vicuna_v1"), tokenizer)
    answered = encoded(talk(said=SAID[:2]), config_of("vicuna_v1"), tokenizer)
    assert whole.trained == answered.trained and whole.ids[: len(answered.ids)] == answered.ids
