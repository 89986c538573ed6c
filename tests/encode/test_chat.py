"""template: chat is what transformers makes of the same messages: ids, refusals, and the mask of training variants."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from tests.encode import chat_templates
from vila_data.encode.chat import ChatTemplate
from vila_data.encode.chat_answers import ANSWER_NOT_FOUND, IMAGE_NOT_PLACED, TEMPLATE_REFUSED
from vila_data.encode.config import PackConfig
from vila_data.encode.samples import encode_samples
from vila_data.encode.sequence import IMAGE_ID, OK, TokenSequence
from vila_data.encode.templates import Conversation
from vila_data.encode.tokenizer import TextTokenizer, load_tokenizer

CONFIG = PackConfig(tokenizer="made", sequence_length=100_000, tokens_per_image=7, template="chat")
SHAPES: dict[str, list[tuple[str, str]]] = {
    "one turn": [("user", "Hi"), ("assistant", "Hello there.")],
    "several turns": [("user", "Q1"), ("assistant", "A1"), ("user", "Q2"), ("assistant", "A2")],
    "system": [("system", "Be brief."), ("user", "Q1"), ("assistant", "A1"), ("user", "Q2"), ("assistant", "A2")],
    "empty system": [("system", ""), ("user", "Q1"), ("assistant", "A1")],
    "a thought": [("user", "Q1"), ("assistant", "<think>\nbecause\n</think>\n\nSo.")],
    "thoughts": [
        ("user", "Q1"),
        ("assistant", "<think>\nT1\n</think>\n\nA1"),
        ("user", "Q2"),
        ("assistant", "<think>\nT2\n</think>\n\nA2"),
    ],
    "white space": [("user", " Q1 "), ("assistant", "  A1 \n"), ("user", "\nQ2"), ("assistant", "A2  ")],
    "ends with the user": [("user", "Q1"), ("assistant", "A1"), ("user", "Q2")],
}


@dataclass(frozen=True)
class Known:
    """A template's tokenizer, as transformers and as we load it."""

    fast: PreTrainedTokenizerFast
    ours: TextTokenizer
    template: ChatTemplate

    def messages(self, turns: list[tuple[str, str]]) -> list[dict[str, Any]]:
        return [{"role": role, "content": self.content(text)} for role, text in turns]

    def content(self, text: str) -> Any:
        return text if self.template.takes_text else [{"type": "text", "text": text}]

    def encoded(self, conversation: Conversation) -> TokenSequence:
        (sequence,) = encode_samples([conversation], CONFIG, self.ours)
        return sequence


@pytest.fixture(scope="session")
def known(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Known]:
    @cache
    def make(source: str) -> Known:
        folder = tmp_path_factory.mktemp("chat")
        fast = chat_templates.tokenizer_with(source, folder)
        ours = load_tokenizer(str(folder))
        return Known(fast, ours, ChatTemplate(ours))

    return make


def conversation_of(turns: list[tuple[str, str]]) -> Conversation:
    system = turns[0][1] if turns[0][0] == "system" else None
    said = tuple(("gpt" if role == "assistant" else "human", text) for role, text in turns if role != "system")
    return Conversation(said, system)  # type: ignore[arg-type]


def compare(known: Known, turns: list[tuple[str, str]], variant: str | None = None) -> str:
    """What was equal; assertion errors where something was not."""
    sequence = known.encoded(conversation_of(turns))
    messages = known.messages(turns)
    try:
        expected = list(known.fast.apply_chat_template(messages, tokenize=True, return_dict=False))
    except jinja2.TemplateError as error:
        assert sequence.fate == TEMPLATE_REFUSED and sequence.detail == " ".join(str(error).split())
        return "refused"
    assert (sequence.fate, sequence.detail) == (OK, ""), sequence
    assert sequence.ids == expected
    if variant is None:
        return "ids"
    marked = known.fast.apply_chat_template(
        messages, chat_template=variant, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    if list(marked["input_ids"]) != expected:
        return "another text"
    mask = [0] * len(expected)
    for first, last in sequence.trained:
        mask[first:last] = [1] * (last - first)
    assert mask == list(marked["assistant_masks"])
    return "mask"


@pytest.mark.parametrize("name", sorted(chat_templates.published()))
def test_published_templates(known: Callable[[str], Known], name: str) -> None:
    """Every template of the trl wheel over eight shapes of conversation."""
    made = known(chat_templates.published()[name])
    variant = chat_templates.training_variant(name)
    found = Counter(compare(made, turns, variant) for turns in SHAPES.values())
    refusing = name.startswith("gemma") and "3" not in name and "4" not in name
    assert found["refused"] == (2 if refusing else 0), "only what the template itself refuses"
    if variant == made.fast.chat_template:
        assert found["another text"] == 0


SAID = st.text(st.sampled_from("aAbQ \n\t.5漢🛶é<>/|'\"{}"), min_size=1, max_size=20).filter(str.strip)
THOUGHT = st.tuples(SAID, SAID).map(lambda pair: f"<think>\n{pair[0]}\n</think>\n\n{pair[1]}")


@st.composite
def talks(draw: st.DrawFn) -> list[tuple[str, str]]:
    turns = [("system", draw(SAID))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        turns += [("user", draw(SAID)), ("assistant", draw(st.one_of(SAID, SAID, THOUGHT)))]
    return turns[: len(turns) - draw(st.integers(0, 1)) * (len(turns) > 3)]


SOURCES = [*chat_templates.OWN.values(), *chat_templates.published().values()]


@settings(deadline=None, max_examples=200, suppress_health_check=list(HealthCheck))
@given(turns=talks(), at=st.integers(0, len(SOURCES) - 1))
def test_200_conversations_over_all_templates(
    known: Callable[[str], Known], turns: list[tuple[str, str]], at: int
) -> None:
    """Each over a template of its own and one of the wheel's; all of them where `slow` is asked for."""
    for source in (SOURCES[at], SOURCES[at % len(chat_templates.OWN)]):
        compare(known(source), turns)


@pytest.mark.slow
@settings(deadline=None, max_examples=20, suppress_health_check=list(HealthCheck))
@given(turns=talks())
def test_200_conversations_over_each_template(known: Callable[[str], Known], turns: list[tuple[str, str]]) -> None:
    for source in SOURCES:
        compare(known(source), turns)


ANSWERS = {
    "upper case": ["A1<|im_end|>\n", "A2, AND MORE THAN TWENTY LETTERS\nLINE<|im_end|>\n"],
    "first line": ["A1<|im_end|>\n", "A2, and more than twenty letters<|im_end|>\n"],
    "cut short": ["A1</s>", "A2, and more than tw...</s>"],
    "by number": ["A1<|im_end|>\n", "A2, and more than twenty letters\nline<|im_end|>\n"],
    "buffered": ["A1<|im_end|>\n", "A2, and more than twenty letters\nline<|im_end|>\n"],
    "joined": ["B1<|im_end|>", "B2, and more than twenty letters\nline<|im_end|>"],
    "formatted": ["A1<|im_end|>\n", "A2, and more than twenty letters\nline<|im_end|>\n"],
    "next header": ["A1<|im_end|>\n", "A2, and more than twenty letters\nline<|im_end|>\n"],
    "earlier thoughts dropped": ["A1<|im_end|>\n", "A2, and more than twenty letters\nline<|im_end|>\n"],
    "stripped": ["A1<|im_end|>\n", "A2, and more than twenty letters\nline<|im_end|>\n"],
}


@pytest.mark.parametrize("name", sorted(ANSWERS))
def test_answers_as_they_are_written(known: Callable[[str], Known], name: str) -> None:
    made = known(chat_templates.OWN[name])
    turns = [
        ("user", "Q1"),
        ("assistant", "A1"),
        ("user", "Q2"),
        ("assistant", "A2, and more than twenty letters\nline"),
    ]
    sequence = made.encoded(conversation_of(turns))
    assert [made.ours.decode(sequence.ids[first:last]) for first, last in sequence.trained] == ANSWERS[name]


def test_a_template_that_strips_an_answer(known: Callable[[str], Known]) -> None:
    """The Nemotron templates: no tab before an answer, and the words of a thought once."""
    for name in ("nemotron_3_nano", "nemotron_3_super", "nemotron_3_ultra", "nemotron_3_5_lightning"):
        made = known(chat_templates.published()[name])
        sequence = made.encoded(conversation_of([("user", "Hi"), ("assistant", "Hello there.  ")]))
        trained = "".join(made.ours.decode(sequence.ids[first:last]) for first, last in sequence.trained)
        assert trained == "<think></think>Hello there.<|im_end|>\n"


def test_what_only_spells_a_special_token_stays_text(known: Callable[[str], Known]) -> None:
    made = known(chat_templates.published()["qwen2_5"])
    sequence = made.encoded(conversation_of([("user", "a<|im_end|>b"), ("assistant", "<image> c<|im_start|></s>d")]))
    end, start = (made.ours.added[text] for text in ("<|im_end|>", "<|im_start|>"))
    assert sequence.ids.count(end) == sequence.ids.count(start) == 3, (
        "the system prompt's, the question's, the answer's"
    )
    assert made.ours.eos_id not in sequence.ids and IMAGE_ID not in sequence.ids
    assert "<image> c<|im_start|></s>d<|im_end|>" in made.ours.decode(sequence.ids)
    first, last = sequence.trained[0]
    assert made.ours.decode(sequence.ids[first:last]) == "\n<image> c<|im_start|></s>d<|im_end|>\n"


VISION = ["qwen2_5_vl", "qwen3_vl", "smolvlm", "idefics3", "llava_next", "gemma3", "lfm2_2_5_vl", "gemma4"]


@pytest.mark.parametrize("name", VISION)
def test_images_are_where_the_template_puts_them(known: Callable[[str], Known], name: str) -> None:
    made = known(chat_templates.published()[name])
    parts = [
        {"type": "image"},
        {"type": "text", "text": "What is this?"},
        {"type": "image"},
        {"type": "text", "text": "And?"},
    ]
    messages = (
        {"role": "user", "content": parts},
        {"role": "assistant", "content": [{"type": "text", "text": "A boat."}]},
    )
    turns = (("human", "<image>What is this?<image>And?"), ("gpt", "A boat."))
    given = Conversation(turns, None, 2, messages)  # type: ignore[arg-type]
    expected = list(made.fast.apply_chat_template(list(messages), tokenize=True, return_dict=False))
    image = made.ours.added[made.template.placeholder]
    sequence = made.encoded(given)
    assert sequence.fate == OK and sequence.images == (0, 1) and expected.count(image) == 2
    assert sequence.ids == [IMAGE_ID if token == image else token for token in expected]
    assert made.encoded(given._replace(messages=None)).ids == sequence.ids, "a row of LLaVA's form is the same"
    in_rows = tuple((role, text.replace("<image>", "<image>\n", 1)) for role, text in turns)
    assert made.encoded(Conversation(in_rows, None, 2)).ids == sequence.ids, "its line break belongs to the placeholder"  # type: ignore[arg-type]


def test_literal_placeholders_are_text(known: Callable[[str], Known]) -> None:
    """Text that spells the placeholder, in a row with images and in one without."""
    made = known(chat_templates.published()["qwen2_5_vl"])
    pad = "<|image_pad|>"
    parts = [{"type": "image"}, {"type": "text", "text": f"What does {pad} mean?"}]
    with_image = Conversation(
        (("human", f"<image>What does {pad} mean?"), ("gpt", "An image.")),
        None,
        1,
        ({"role": "user", "content": parts}, {"role": "assistant", "content": "An image."}),
    )
    found = made.encoded(with_image)
    assert found.fate == OK and found.ids.count(IMAGE_ID) == 1 and made.ours.added[pad] not in found.ids
    assert pad in made.ours.decode([token for token in found.ids if token != IMAGE_ID])
    without = made.encoded(conversation_of([("user", f"{pad} and <image>?"), ("assistant", "Tokens.")]))
    assert without.fate == OK and IMAGE_ID not in without.ids and made.ours.added[pad] not in without.ids


def test_images_without_a_place_are_a_fate(known: Callable[[str], Known]) -> None:
    """A template of text alone keeps `<image>` where it stands; one that drops the turn loses the record, counted."""
    made = known(chat_templates.published()["qwen3"])
    marked = Conversation((("human", "<image>\nWhat?"), ("gpt", "A boat.")), None, 1)
    sequence = made.encoded(marked)
    assert sequence.ids.count(IMAGE_ID) == 1 and made.ours.decode(
        sequence.ids[: sequence.ids.index(IMAGE_ID)]
    ).endswith("user\n")
    short = known(chat_templates.OWN["first line"])
    lost = short.encoded(Conversation((("human", "What?\n<image>"), ("gpt", "A boat.")), None, 1))
    assert (lost.fate, lost.ids) == (IMAGE_NOT_PLACED, []) and "0 placeholders for 1 images" in lost.detail


CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
TOOLS = (
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string", "description": "Where."}}},
        },
    },
)


@pytest.mark.parametrize(
    "name", ["qwen2_5", "qwen3", "qwen3_vl", "llama3_2", "nemotron_3_nano", "lfm2_v2", "gemma4", "gptoss"]
)
def test_tools(known: Callable[[str], Known], name: str) -> None:
    """An answer without content that calls a tool, and the tool's results."""
    made = known(chat_templates.published()[name])
    messages = (
        {"role": "user", "content": "How is the weather?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "Rain.", "name": "weather"},
        {"role": "assistant", "content": "It rains."},
    )
    turns = (("human", "How is the weather?"), ("gpt", "{}"), ("human", "Rain."), ("gpt", "It rains."))
    sequence = made.encoded(Conversation(turns, None, 0, messages, TOOLS))  # type: ignore[arg-type]
    without_null = [{key: value for key, value in message.items() if value is not None} for message in messages]
    expected = made.fast.apply_chat_template(without_null, tools=list(TOOLS), tokenize=True, return_dict=False)
    assert sequence.fate == OK and sequence.ids == list(expected)
    trained = "".join(made.ours.decode(sequence.ids[first:last]) for first, last in sequence.trained)
    assert "Oslo" in trained and "It rains." in trained and "Rain." not in trained and "How is" not in trained


def test_a_refusal_costs_its_own_record(known: Callable[[str], Known]) -> None:
    made = known(chat_templates.published()["gemma"])
    good = conversation_of([("user", "Q"), ("assistant", "A")])
    sequences = list(encode_samples([good, good._replace(system="Be brief."), good], CONFIG, made.ours))
    assert [one.fate for one in sequences] == [OK, TEMPLATE_REFUSED, OK] and sequences[0] == sequences[2]
    assert sequences[1].detail == "System role not supported"


def test_an_answer_that_is_not_written_is_a_fate(known: Callable[[str], Known]) -> None:
    source = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if 'secret' not in m.content %}{{ m.content }}{% endif %}"
        "<|im_end|>\n{% endfor %}"
    )
    found = known(source).encoded(conversation_of([("user", "Q"), ("assistant", "a secret")]))
    assert found.fate == ANSWER_NOT_FOUND and "message 1" in found.detail and found.ids == []


def test_a_template_named_training_says_what_is_trained(known: Callable[[str], Known]) -> None:
    plain = chat_templates.published()["llama3"]
    made = known(plain)
    marked = plain.replace("{{ ", "{% generation %}{{ ").replace(" }}", " }}{% endgeneration %}")
    made.ours.templates["training"] = marked
    try:
        turns = [("user", "Q"), ("assistant", "A")]
        written = ChatTemplate(made.ours).write(conversation_of(turns))
    finally:
        del made.ours.templates["training"]
    assert written.trained and written.trained[0][0] == 0, "this one marks everything"


def test_too_long_a_conversation_ends_after_an_answer(known: Callable[[str], Known]) -> None:
    """Thoughts that a template drops once more is said come back where the conversation is cut behind them."""
    made = known(chat_templates.published()["qwen3"])
    turns = SHAPES["thoughts"]
    whole = made.encoded(conversation_of(turns))
    short = CONFIG.model_copy(update={"sequence_length": whole.tokens - 1})
    (cut,) = encode_samples([conversation_of(turns)], short, made.ours)
    assert cut.ids == list(made.fast.apply_chat_template(made.messages(turns[:2]), tokenize=True, return_dict=False))
    assert cut.cut == whole.tokens - cut.tokens


def trained_texts(made: Known, conversation: Conversation) -> list[str]:
    sequence = made.encoded(conversation)
    assert sequence.fate == OK, sequence
    return [made.ours.decode(sequence.ids[first:last]) for first, last in sequence.trained]


ROWS_OF_TOOLS: dict[str, list[dict[str, Any]]] = {
    "a call": [
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "RESULT", "name": "weather"},
        {"role": "assistant", "content": "It is 20."},
    ],
    "two results": [
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "content": "", "tool_calls": [CALL, CALL]},
        {"role": "tool", "content": "RESULT 1", "name": "weather"},
        {"role": "tool", "content": "RESULT 2", "name": "weather"},
        {"role": "assistant", "content": "It is 20."},
    ],
    "a text and a call": [
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "content": "Let me see.", "tool_calls": [CALL]},
        {"role": "tool", "content": "RESULT", "name": "weather"},
        {"role": "assistant", "content": "It is 20."},
    ],
}


@pytest.mark.parametrize("name", ["gptoss", "diffusion_gemma", "qwen2_5", "nemotron_3_nano", "lfm2_v2", "muse_glimmer"])
@pytest.mark.parametrize("row", sorted(ROWS_OF_TOOLS))
def test_results_of_tools_are_not_trained(known: Callable[[str], Known], name: str, row: str) -> None:
    """Wherever the template writes them, in a turn of their own or in the answer's."""
    made = known(chat_templates.published()[name])
    messages = ROWS_OF_TOOLS[row]
    turns = (("human", "weather?"), ("gpt", "{}"), ("human", "RESULT"), ("gpt", "It is 20."))
    given = Conversation(turns, None, 0, tuple(messages))  # type: ignore[arg-type]
    sequence = made.encoded(given)
    expected = made.fast.apply_chat_template(
        messages,
        chat_template=chat_templates.training_variant(name),
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    if sequence.fate == TEMPLATE_REFUSED:
        pytest.fail(sequence.detail)
    assert not any("RESULT" in text for text in trained_texts(made, given))
    if sequence.ids == list(expected["input_ids"]):
        mask = [0] * len(sequence.ids)
        for first, last in sequence.trained:
            mask[first:last] = [1] * (last - first)
        assert mask == list(expected["assistant_masks"])


HIDING = {
    "format filter": "{% for m in messages %}{{ '<|im_start|>%s\n%s<|im_end|>\n' | format(m.role, m.content) }}{% endfor %}",
    "replace filter": "{% for m in messages %}{{ '<|im_start|>ROLE\nTEXT<|im_end|>\n' | replace('ROLE', m.role) | replace('TEXT', m.content) }}"
    "{% endfor %}",
    "join": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ ''.join(['', m.content]) }}<|im_end|>\n{% endfor %}",
    "percent": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ '%s' % m.content }}<|im_end|>\n{% endfor %}",
    "safe": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | safe }}<|im_end|>\n{% endfor %}",
    "tojson": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | tojson }}<|im_end|>\n{% endfor %}",
}


@pytest.mark.parametrize("name", sorted(HIDING))
def test_templates_that_hide_where_a_text_came_from(known: Callable[[str], Known], name: str) -> None:
    made = known(HIDING[name])
    assert compare(made, SHAPES["several turns"]) == "ids"
    sequence = made.encoded(conversation_of([("user", "a<|im_end|>"), ("assistant", "b<|im_start|>c")]))
    end, start = (made.ours.added[text] for text in ("<|im_end|>", "<|im_start|>"))
    assert (sequence.ids.count(end), sequence.ids.count(start)) == (2, 2), "the template's own"


ELSEWHERE = {
    "header of the next turn": "{% for m in messages %}{% if m.role == 'user' %}{% if loop.first %}<|im_start|>user\n{% endif %}{{ m.content }}"
    "<|im_end|>\n<|im_start|>assistant\n{% else %}{{ m.content }}<|im_end|>\n<|im_start|>user\n{% endif %}{% endfor %}",
    "prompt at the end": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n",
    "copy in front": "<|im_start|>system\nlast: {{ messages[-1].content }}<|im_end|>\n"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}",
    "copies behind": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "<|im_start|>summary\n{% for m in messages %}{{ m.content }};{% endfor %}<|im_end|>",
    "look ahead": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% if loop.nextitem %} ({{ loop.nextitem.content[:1] }}){% endif %}<|im_end|>\n{% endfor %}",
    "reversed": "{% for m in messages[::-1] %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}",
}


@pytest.mark.parametrize("name", sorted(ELSEWHERE))
def test_nothing_but_the_answer_is_trained(known: Callable[[str], Known], name: str) -> None:
    made = known(ELSEWHERE[name])
    turns = [("user", "Q1"), ("assistant", "A1"), ("user", "Q2"), ("assistant", "A2")]
    assert compare(made, turns) == "ids"
    found = [text.split("<|im_end|>")[0].split(" (")[0] for text in trained_texts(made, conversation_of(turns))]
    assert sorted(found) == ["A1", "A2"]
    if name != "look ahead":
        assert all(
            text.strip() in ("A1<|im_end|>", "A2<|im_end|>") for text in trained_texts(made, conversation_of(turns))
        )


def test_white_space_that_a_special_token_takes(tmp_path: Path) -> None:
    """Phi-3's tokens take what follows them, also where some text spells a special token."""
    fast = chat_templates.tokenizer_with(chat_templates.published()["phi3"], tmp_path)
    tokens = [AddedToken(text, rstrip=True, special=True) for text in ("<|user|>", "<|assistant|>", "<|end|>")]
    fast.add_special_tokens({"additional_special_tokens": tokens}, replace_extra_special_tokens=False)
    fast.save_pretrained(tmp_path)
    made = Known(fast, load_tokenizer(str(tmp_path)), ChatTemplate(load_tokenizer(str(tmp_path))))
    plain, spelled = (
        [("user", "Q1"), ("assistant", "A1"), ("user", text), ("assistant", "A2")] for text in ("x", "x</s>")
    )
    assert compare(made, plain) == "ids"
    ids, more = (made.encoded(conversation_of(turns)).ids for turns in (plain, spelled))
    at = ids.index(made.ours.encode_ids(["x"])[0][0])
    assert more[: at + 1] == ids[: at + 1] and more[-(len(ids) - at - 1) :] == ids[at + 1 :]
