"""Chat messages as published: what each form gives, as messages and as turns, and the sentence that refuses a row."""

from __future__ import annotations

import base64
import datetime
import io
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.made_run import drawn
from vila_data.core.fates import RECORD_REASONS
from vila_data.core.layout import Part
from vila_data.core.records import BadRecord, ImageRef, Record, record_from_json, record_to_json
from vila_data.corpora.config import CorpusConfig, LlavaConfig, TextConfig
from vila_data.corpora.conversation import ROLES
from vila_data.corpora.kinds import open_corpus
from vila_data.corpora.llava import llava_rows
from vila_data.corpora.source import RowProblem
from vila_data.corpora.text import text_rows

LLAVA = LlavaConfig(kind="llava", files=("x",))
TEXT = TextConfig(kind="text", files=("x",))


def llava(**row: Any) -> Record:
    return llava_rows(LLAVA)("r", row)


def text(**row: Any) -> Record:
    return text_rows(TEXT)("r", row)


def user(*content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content[0] if len(content) == 1 and isinstance(content[0], str) else [*content]}


def said(content: str | None, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def words(value: str) -> dict[str, str]:
    return {"type": "text", "text": value}


IMAGE = {"type": "image"}


def png() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (1, 1)).save(stream, "PNG")
    return stream.getvalue()


def urls(record: Record) -> list[tuple[str, int | None]]:
    return [(image.url, image.matched_text_index) for image in record.images]


# Images


@pytest.mark.parametrize(
    "entry",
    [
        {"type": "image", "image": "a.jpg"},
        {"type": "image", "url": "a.jpg"},
        {"type": "image", "path": "a.jpg", "text": None},
        {"type": "image", "image": {"bytes": None, "path": "a.jpg"}},
        {"type": "image", "image": "file://a.jpg"},
        {"type": "image_url", "image_url": {"url": "a.jpg", "detail": "low"}},
        {"type": "image_url", "image_url": "a.jpg"},
        {"type": "input_image", "image_url": "a.jpg"},
        {"type": "image", "source": {"type": "url", "url": "a.jpg"}},
        {"image": "a.jpg"},
    ],
)
def test_an_entry_with_its_own_image(entry: dict[str, Any]) -> None:
    record = llava(messages=[user(entry, {"type": "input_text", "text": "What?"}), said("A bus.")])
    assert record.texts == ("<image>What?", "A bus.") and record.roles == ("human", "gpt")
    assert urls(record) == [("a.jpg", 0)]
    assert record.messages == (user(IMAGE, words("What?")), said("A bus."))


PICTURE = base64.b64encode(png()).decode()


@pytest.mark.parametrize(
    "entry",
    [
        {"type": "image", "image": f"data:image/png;base64,{PICTURE}"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PICTURE}"}},
        {"type": "image", "base64": PICTURE},
        {"type": "image", "image": PICTURE},
        {"type": "image", "image": "\n".join((PICTURE[:76], PICTURE[76:]))},
        {"type": "image", "bytes": png()},
        {"type": "image", "image": {"bytes": png(), "path": None}},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PICTURE}},
    ],
)
def test_an_entry_with_the_bytes_of_its_image(entry: dict[str, Any]) -> None:
    record = llava(messages=[user(entry, "What?"), said("A dot.")])
    assert record.images == (ImageRef("", 0, data=png()),)
    assert record.messages == (user(IMAGE, words("What?")), said("A dot."))


@pytest.mark.parametrize("form", ["jpeg", "png", "gif", "webp", "bmp", "tiff", "avif"])
def test_base64_of_each_format_is_an_image_in_every_row(form: str) -> None:
    stream = io.BytesIO()
    try:
        Image.new("RGB", (40, 30), "red").save(stream, form)
    except (KeyError, OSError):
        pytest.skip(f"this Pillow writes no {form}")
    for value in (base64.b64encode(stream.getvalue()).decode(), f"b'{base64.b64encode(stream.getvalue()).decode()}'"):
        record = llava(
            image=value, conversations=[{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "Red."}]
        )
        assert [(image.url, image.data) for image in record.images] == [("", stream.getvalue())]


@pytest.mark.parametrize(
    "path",
    [
        "9j/4AAQSkZJRg.jpg",
        "/9j/4AAQ",
        "a" * 64,
        "iVBORw0K" * 8 + "/x.png",
        "/9j/" + "folder/" * 12 + "x.jpg",
        PICTURE[:-3],
    ],
)
def test_a_path_stays_a_path(path: str) -> None:
    record = llava(image=path, instruction="What?", output="A bus.")
    assert [(image.url, image.data) for image in record.images] == [(path, None)]


def test_a_broken_data_url_is_an_image_that_fails() -> None:
    record = llava(image="data:image/png;base64,???", instruction="What?", output="A bus.")
    assert [(image.url, image.data, image.error) for image in record.images] == [("", None, "not_an_image")]


def test_images_of_the_row_in_order_and_by_index() -> None:
    """Entries without an image take the row's, as HuggingFaceH4/llava-instruct-mix-vsft numbers them."""
    record = llava(
        images=["a.jpg", "b.jpg"],
        messages=[user(IMAGE, words("One?")), said("1"), user(words("Two?"), IMAGE), said("2")],
    )
    assert record.texts == ("<image>One?", "1", "Two?<image>", "2")
    assert urls(record) == [("a.jpg", 0), ("b.jpg", 2)]
    numbered = [{"index": None, **words("Both?")}, {"index": 1, "text": None, **IMAGE}, {"index": 0, **IMAGE}]
    record = llava(images=["a.jpg", "b.jpg"], messages=[user(*numbered), said("Yes.")])
    assert urls(record) == [("b.jpg", 0), ("a.jpg", 0)]
    assert record.messages == (user(words("Both?"), IMAGE, IMAGE), said("Yes."))
    mixed = [user({"type": "image", "image": "own.jpg"}, IMAGE, words("Same?")), said("No.")]
    assert urls(llava(images=["row.jpg"], messages=mixed)) == [("own.jpg", 0), ("row.jpg", 0)]


def test_a_mark_in_the_words_of_a_row_with_images_is_no_place_for_one() -> None:
    messages = [
        user(IMAGE, words("What does <ima"), words("ge> mean?")),
        said("<image> is a token.", reasoning_content="<image>?"),
        user("And <image>?"),
        said(None, tool_calls=[{"name": "look", "arguments": {"at": "<image>"}}]),
    ]
    record = llava(image="a.jpg", messages=messages)
    assert record.texts == (
        "<image>What does <IMAGE> mean?",
        "<think>\n<IMAGE>?\n</think>\n\n<IMAGE> is a token.",
        "And <IMAGE>?",
        '{"name": "look", "arguments": {"at": "<IMAGE>"}}',
    )
    assert urls(record) == [("a.jpg", 0)]
    assert record.messages is not None
    assert record.messages[:3] == tuple(messages[:3])
    assert record.messages[3] == {"role": "assistant", "tool_calls": messages[3]["tool_calls"]}


def test_marks_in_texts_are_places_where_no_entry_is_one() -> None:
    record = llava(
        images=["a.jpg", "b.jpg"],
        messages=[
            {"role": "system", "content": "Images are written <image>."},
            user(words("<image>\nOne?")),
            said("Let me see."),
            {"role": "tool", "content": "found <image>"},
            said("Here."),
        ],
    )
    assert record.texts == ("<image>\nOne?", "Let me see.", "found <image>", "Here.")
    assert record.system == "Images are written <image>." and urls(record) == [("a.jpg", 0), ("b.jpg", 2)]
    assert record.messages is not None
    assert record.messages[1] == user(IMAGE, words("\nOne?"))
    assert record.messages[3] == {"role": "tool", "content": [words("found "), IMAGE]}


@pytest.mark.parametrize("mark", ["<image>", "<image>\nWhat is <image>?"])
def test_a_row_without_images_may_speak_of_marks(mark: str) -> None:
    chat = [{"from": "human", "value": mark}, {"from": "gpt", "value": f"No {mark}"}]
    for record in (
        llava(conversations=chat),
        llava(messages=[user(mark), said(f"No {mark}")]),
        llava(instruction=mark, output=f"No {mark}"),
        text(conversations=chat),
        text(messages=[user(mark), said(f"No {mark}")]),
        text(prompt=mark, completion=f"No {mark}"),
        text(inputs=mark, targets=f"No {mark}"),
    ):
        assert record.texts == (mark, f"No {mark}")
        assert (record.images, record.messages) == ((), None)
    listed = text(messages=[user(words(mark)), said(f"No {mark}")])
    assert listed.texts == (mark, f"No {mark}") and listed.messages == (user(words(mark)), said(f"No {mark}"))


# the_cauldron


def test_the_cauldron() -> None:
    texts = [{"user": "Who?", "assistant": "A man.", "source": "vqa"}, {"user": "Where?", "assistant": "<image>"}]
    record = llava(images=["a.jpg", "b.jpg"], texts=texts)
    assert record.texts == ("<image>\n<image>\nWho?", "A man.", "Where?", "<IMAGE>")
    assert urls(record) == [("a.jpg", 0), ("b.jpg", 0)] and record.messages is None
    marked = [{"user": "Is <image>", "assistant": "Yes."}, {"user": "like <image>?", "assistant": "No."}]
    record = llava(images=["a.jpg", "b.jpg"], texts=marked)
    assert record.texts == ("Is <image>", "Yes.", "like <image>?", "No.")
    assert urls(record) == [("a.jpg", 0), ("b.jpg", 2)]
    assert llava(texts=marked).texts == record.texts


def test_parquet_of_the_cauldron_and_of_messages(tmp_path: Path) -> None:
    """A table's structs have all their fields in all rows: those that are null are not there."""
    picture = {"bytes": drawn(1), "path": None}
    cauldron = [{"images": [picture], "texts": [{"user": "Who?", "assistant": "A man.", "source": "s"}]}]
    record = only(rows(LLAVA, cauldron, tmp_path))
    assert record.texts == ("<image>\nWho?", "A man.") and record.images == (ImageRef("", 0, data=drawn(1)),)

    call = {"type": "function", "function": {"name": "f", "arguments": '{"city": null}'}}
    table = [
        {
            "images": [picture],
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "Who?"}, {"type": "image", "index": 0}]},
                {"role": "assistant", "content": [{"type": "text", "text": "A man."}]},
            ],
        },
        {"messages": [{"role": "user", "content": None}, {"role": "assistant", "content": None, "tool_calls": [call]}]},
    ]
    first, second = rows(LLAVA, table, tmp_path)
    assert isinstance(first, Record) and isinstance(second, Record)
    assert first.messages == (user(words("Who?"), IMAGE), {"role": "assistant", "content": [words("A man.")]})
    assert second.texts == ("", '{"name": "f", "arguments": {"city": null}}')
    assert second.messages == (
        {"role": "user"},
        {
            "role": "assistant",
            "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"city": None}}}],
        },
    )


# Tools, reasoning, roles

TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}]
CALLS = [
    {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"unit": "C", "city": "Örebro"}'}},
    {"name": "time", "arguments": {"zone": "CET"}},
]
TALK = [
    {"role": "developer", "content": "Be brief."},
    {"role": "system", "content": [words("Be "), words("kind.")]},
    user("How warm is it?"),
    {"role": "assistant", "content": None, "tool_calls": CALLS, "name": None},
    {"role": "tool", "content": '{"temp": 3}', "tool_call_id": "1"},
    {"role": "tool", "content": "12:00"},
    {"role": "assistant", "content": "3 degrees,", "reasoning_content": "It is noon."},
    {"role": "assistant", "content": "at noon."},
    {"role": "system", "content": "Now in French."},
    user("Thanks."),
]


def test_tool_calls_reasoning_and_roles() -> None:
    record = text(messages=TALK, tools=TOOLS)
    shown = json.dumps(TOOLS)
    assert record.system == f"Be brief.\n\nBe kind.\n\n{shown}"
    assert list(zip(record.roles, record.texts, strict=True)) == [
        ("human", "How warm is it?"),
        (
            "gpt",
            '{"name": "weather", "arguments": {"unit": "C", "city": "Örebro"}}\n'
            '{"name": "time", "arguments": {"zone": "CET"}}',
        ),
        ("human", '{"temp": 3}\n12:00'),
        ("gpt", "<think>\nIt is noon.\n</think>\n\n3 degrees,\nat noon."),
        ("human", "Now in French.\nThanks."),
    ]
    parsed = CALLS[0] | {"function": {"name": "weather", "arguments": {"unit": "C", "city": "Örebro"}}}
    call = {"role": "assistant", "tool_calls": [parsed, CALLS[1]]}
    assert record.messages == (*TALK[:3], call, *TALK[4:])
    assert record.tools == tuple(TOOLS)


def test_the_order_of_keys_is_kept_below_messages_and_tools() -> None:
    """Templates print arguments and tools as they come; the rest of the JSON is sorted as ever."""
    data = record_to_json(text(messages=TALK, tools=TOOLS))
    back = record_from_json(data, "here")
    assert back == text(messages=TALK, tools=TOOLS)
    assert b'"arguments":{"unit":"C","city":' in data and b'"function":{"name":"weather","parameters":' in data
    assert list(json.loads(data)) == sorted(json.loads(data))
    assert record_to_json(back) == data


@pytest.mark.parametrize("tools", [json.dumps(TOOLS), [json.dumps(TOOLS[0])], TOOLS])
def test_tools_as_text(tools: Any) -> None:
    record = text(messages=[user("q"), said("a")], tools=tools)
    assert record.tools == tuple(TOOLS) and record.messages == (user("q"), said("a"))
    assert record.system == (tools if isinstance(tools, str) else json.dumps(tools))


@pytest.mark.parametrize("tools", [None, [], "", "[]"])
def test_no_tools(tools: Any) -> None:
    record = text(messages=[user("q"), said("a", tool_calls=[])], tools=tools)
    assert (record.tools, record.messages, record.system) == (None, None, None)
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    for read in (text, llava):
        assert read(conversations=turns, tools=tools).system is None


def test_a_call_of_old_and_one_without_arguments() -> None:
    call = {"name": "f", "arguments": "no JSON"}
    record = text(
        messages=[user("q"), said(None, function_call=call), {"role": "function", "name": "f", "content": "r"}]
    )
    assert record.messages == (
        user("q"),
        {"role": "assistant", "tool_calls": [{"type": "function", "function": call}]},
        {"role": "tool", "name": "f", "content": "r"},
    )
    assert record.texts == ("q", '{"name": "f", "arguments": "no JSON"}', "r")
    assert text(messages=[user("q"), said("", tool_calls=[{"name": "f"}])]).texts[1] == '{"name": "f", "arguments": {}}'


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning(key: str) -> None:
    record = text(messages=[user("q"), said("a", **{key: "why"})])
    assert record.texts == ("q", "<think>\nwhy\n</think>\n\na")
    assert record.messages == (user("q"), said("a", **{key: "why"}))


@pytest.mark.parametrize(
    ("own", "given", "expected"),
    [(None, None, None), ("", None, ""), (None, "", ""), ("Own.", "Row.", "Own."), (None, "Row.", "Row.")],
)
def test_system_prompts(own: str | None, given: str | None, expected: str | None) -> None:
    """None: the template's own, "": an empty one; in turns as in messages."""
    head = [] if own is None else [{"role": "system", "content": own}]
    for read in (text, llava):
        plain = read(messages=[*head, user("q"), said("a")], system=given)
        assert (plain.system, plain.messages) == (expected, None)
        rich = read(messages=[*head, user(words("q")), said("a")], system=given)
        assert rich.system == expected and rich.messages is not None
        assert [one["content"] for one in rich.messages if one["role"] == "system"] == [expected] * (
            expected is not None
        )


def test_the_recipes_system_prompt_is_in_the_messages() -> None:
    read = text_rows(TextConfig(kind="text", files=("x",), system="S."))
    record = read("r", {"messages": [user(words("q")), said("a")]})
    assert record.system == "S." and record.messages is not None
    assert record.messages[0] == {"role": "system", "content": "S."}


def test_messages_are_there_only_where_turns_do_not_say_it_all() -> None:
    system = {"role": "system", "content": "S."}
    for plain in ([user("q"), said("a")], [system, user("q"), said("a"), user("r")], [said("a"), user("q"), said("b")]):
        record = text(messages=plain)
        assert record.messages is None and "messages" not in json.loads(record_to_json(record))
        assert record.texts == tuple(one["content"] for one in plain if one["role"] != "system")
    for rich in (
        [{"role": "developer", "content": "S."}, user("q"), said("a")],
        [system, system, user("q"), said("a")],
        [user("q"), user("r"), said("a")],
        [user("q"), said("a"), said("b")],
        [user("q"), said("a"), {"role": "tool", "content": "r"}],
        [user("q"), said("a", reasoning="")],
        [{**user("q"), "weight": 0}, said("a")],
    ):
        assert text(messages=rich).messages == tuple(rich)


def test_messages_under_other_keys() -> None:
    expected = text(messages=TALK)
    assert text(conversations=TALK) == expected
    assert text(prompt=TALK[:3], completion=TALK[3:]) == expected
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    assert text(messages=turns).texts == ("q", "a")


def test_turns_of_from_and_value() -> None:
    speakers = ["gpt", "human", "function_call", "observation", "tool", "observation", "gpt", "human"]
    record = text(conversations=[{"from": one, "value": f"{one} {n}"} for n, one in enumerate(speakers)])
    assert record.roles == ("gpt", "human", "gpt", "human", "gpt", "human") and record.messages is None
    assert record.texts == (
        "gpt 0",
        "human 1",
        "function_call 2",
        "observation 3\ntool 4\nobservation 5",
        "gpt 6",
        "human 7",
    )
    for pair in (["human", "human"], ["human", "observation"], ["gpt", "function_call"]):
        with pytest.raises(RowProblem, match="turns 0 and 1 are both from") as problem:
            text(conversations=[{"from": one, "value": one} for one in (*pair, "gpt", "human", "gpt")])
        assert problem.value.reason == "turn_order"


# Refused, each by one sentence

A = said("a")
DEEP: Any = []
for _ in range(200):
    DEEP = [DEEP]
REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"messages": "q"}, "wrong_type", "messages must be a list, found a str"),
    ({"messages": [3, A]}, "wrong_type", "messages: message 0 must be {role: string, content: …}"),
    (
        {"messages": [{"role": "judge", "content": "q"}, A]},
        "wrong_type",
        "messages: message 0 is from 'judge'; must be one of",
    ),
    (
        {"messages": [user("q"), {"role": "assistant", "content": 3}]},
        "wrong_type",
        "messages: the content of message 1 must be a string, a list or null, found a int",
    ),
    (
        {"messages": [user(3), A]},
        "wrong_type",
        "messages: entry 0 of message 0 must be an object with a type, found a int",
    ),
    (
        {"messages": [user({"type": "text", "text": None}), A]},
        "wrong_type",
        "entry 0 of message 0 has type text but no",
    ),
    (
        {"messages": [user({"type": "refusal"}), A]},
        "wrong_type",
        "entry 0 of message 0 has type 'refusal'; must be one of text",
    ),
    ({"messages": [user({}), A]}, "wrong_type", "messages: entry 0 of message 0 has type None; must be one of"),
    (
        {"messages": [user({"type": ["image"]}), A]},
        "wrong_type",
        "entry 0 of message 0 has type ['image']; must be one of",
    ),
    ({"messages": []}, "empty_conversation", "it has no turns"),
    ({"messages": [user("q")]}, "empty_conversation", "every answer is empty"),
    (
        {"messages": [user(words("q")), said(None, reasoning="r")]},
        "empty_conversation",
        "messages: every answer is empty",
    ),
    (
        {"messages": [user("q"), said("a", tool_calls="f()")]},
        "wrong_type",
        "messages: tool_calls of message 1 must be a list of",
    ),
    (
        {"messages": [user("q"), said("a", tool_calls=[{"arguments": {}}])]},
        "wrong_type",
        "messages: tool_calls of message 1",
    ),
    (
        {"messages": [user("q"), said("a", logits=DEEP)]},
        "wrong_type",
        "messages: message 1 is not JSON, or nested deeper",
    ),
    (
        {"messages": [user("q"), said("a", loss=float("nan"))]},
        "wrong_type",
        "messages: message 1 is not JSON, or nested",
    ),
    (
        {"messages": [user("q"), said("a", at=datetime.date(2026, 1, 1))]},
        "wrong_type",
        "messages: message 1 is not JSON",
    ),
    (
        {"messages": [user("q"), A], "tools": "search"},
        "wrong_type",
        "tools must be a list of objects, or the JSON of one",
    ),
    (
        {"messages": [user("q"), A], "tools": [DEEP]},
        "wrong_type",
        "tools must be a list of objects, or the JSON of one",
    ),
    (
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "tools": [b""]},
        "wrong_type",
        "tools cannot be written as JSON",
    ),
]
REFUSED_LLAVA: list[tuple[dict[str, Any], str, str]] = [
    *[
        (
            {"messages": [user({"type": kind, kind: "x"}), A]},
            "wrong_type",
            f"messages: entry 0 of message 0 has type '{kind}'; must be one of",
        )
        for kind in ("video", "audio", "video_url", "input_audio", "thinking")
    ],
    (
        {"messages": [user("<video>"), A], "videos": ["v.mp4"]},
        "wrong_type",
        "the row has videos; kind llava reads texts and",
    ),
    ({"messages": [user(IMAGE), A]}, "image_count", "messages: 1 image entries, but the row has 0 images"),
    (
        {"messages": [user(IMAGE, IMAGE), A], "images": ["a"]},
        "image_count",
        "messages: 2 image entries, but the row has 1",
    ),
    (
        {"messages": [user(IMAGE), A], "images": ["a", "b"]},
        "image_count",
        "messages: 1 image entries, but the row has 2 images",
    ),
    (
        {"messages": [user({**IMAGE, "image": "a"}), A], "images": ["b"]},
        "image_count",
        "1 image entries, but the row has 1 images",
    ),
    (
        {"messages": [user({**IMAGE, "index": 7}), A], "images": ["b"]},
        "image_count",
        "1 image entries (index 7), but the row",
    ),
    (
        {"messages": [user(words("q")), A], "images": ["b"]},
        "image_count",
        "messages: 0 image entries, but the row has 1 images",
    ),
    ({"messages": [user("<image><image>"), A], "images": ["b"]}, "image_count", "2 <image> placeholders, but 1 images"),
    ({"messages": [user("q"), A], "images": ["b"]}, "image_count", "0 <image> placeholders, but 1 images"),
    (
        {"messages": [{**user(IMAGE), "role": "system"}, user("q"), A], "image": "b"},
        "wrong_type",
        "message 0 is from system and has",
    ),
    ({"messages": [user({**IMAGE, "image": 3}), A]}, "wrong_type", "an image must be a path, found a int"),
    ({"texts": "q"}, "wrong_type", "texts must be a list of {user, assistant}, found a str"),
    (
        {"texts": [{"user": "q"}], "images": ["a"]},
        "wrong_type",
        "texts: entry 0 must be {user: string, assistant: string}",
    ),
    ({"texts": ["q", None], "images": [None, "a"]}, "wrong_type", "an image must be a path, found a NoneType"),
    ({"texts": []}, "empty_conversation", "it has no turns"),
    (
        {"texts": [{"user": "<image>", "assistant": "a"}], "images": ["a", "b"]},
        "image_count",
        "1 <image> placeholders, but 2 images",
    ),
]
NO_IMAGES = "kind text has no images; use kind llava"
REFUSED_TEXT: list[tuple[dict[str, Any], str, str]] = [
    ({"messages": [user(IMAGE), A]}, "image_count", f"messages: 1 image entries; {NO_IMAGES}"),
    ({"messages": [user({**IMAGE, "image": "a"}), A]}, "image_count", f"messages: 1 image entries; {NO_IMAGES}"),
    ({"messages": [user("<image>"), A], "images": ["a"]}, "image_count", f"the row has images; {NO_IMAGES}"),
    ({"prompt": "<image>", "completion": "a", "image": "a"}, "image_count", f"the row has image; {NO_IMAGES}"),
]


@pytest.mark.parametrize(("row", "reason", "sentence"), REFUSED + REFUSED_LLAVA)
def test_refused_by_kind_llava(row: dict[str, Any], reason: str, sentence: str) -> None:
    refused(llava_rows(LLAVA), row, reason, sentence)


@pytest.mark.parametrize(("row", "reason", "sentence"), REFUSED + REFUSED_TEXT)
def test_refused_by_kind_text(row: dict[str, Any], reason: str, sentence: str) -> None:
    refused(text_rows(TEXT), row, reason, sentence)


def refused(read: Any, row: dict[str, Any], reason: str, sentence: str) -> None:
    with pytest.raises(RowProblem) as problem:
        read("r", row)
    assert problem.value.reason == reason and reason in RECORD_REASONS
    assert sentence in str(problem.value) and "\n" not in str(problem.value)


@pytest.mark.parametrize(("config", "bad"), [(LLAVA, REFUSED + REFUSED_LLAVA), (TEXT, REFUSED + REFUSED_TEXT)])
def test_what_is_refused_takes_no_other_record_with_it(config: CorpusConfig, bad: Any, tmp_path: Path) -> None:
    good = {"messages": [user(words("q")), A]}
    lines = [json.dumps(row, default=str) for row, _, _ in bad if "loss" not in str(row) and "b''" not in str(row)]
    path = tmp_path / "rows.jsonl"
    path.write_text(
        "\n".join(line for bad_line in lines for line in (json.dumps(good), bad_line)) + f"\n{json.dumps(good)}\n"
    )
    count = 2 * len(lines) + 1
    found = list(open_corpus(config).read(Part("c", 0, str(path), "rows", 0, count, count, "in")))
    assert all(isinstance(record, Record) for record in found[::2]) and len(found) == count
    for at, record in list(enumerate(found))[1::2]:
        if isinstance(record, Record):  # a date is a text in JSON
            assert record.messages is not None and record.messages[1]["at"] == "2026-01-01"
        else:
            assert record.detail.startswith(f"{path}: row {at}: ")


# Any messages at all

WORDS = st.sampled_from(["", " ", "a", "b\nc", "<image>", "x <image> y", "<ima", "ge>", "<", "\u00f6"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | WORDS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(WORDS, inner, max_size=2),
    max_leaves=4,
)
ENTRIES = st.one_of(
    WORDS.map(words),
    st.just({"type": "image", "image": "own.jpg"}),
    st.just(dict(IMAGE)),
)
CALL = st.fixed_dictionaries(
    {"name": st.sampled_from(["f", "<image>"]), "arguments": st.dictionaries(WORDS, VALUES, max_size=2)}
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(sorted(ROLES)), "content": st.none() | WORDS | st.lists(ENTRIES, max_size=4)},
    optional={
        "tool_calls": st.lists(CALL | CALL.map(lambda call: {"type": "function", "function": call}), max_size=2),
        "reasoning_content": WORDS,
        "name": st.none() | WORDS,
        "other": VALUES,
    },
)


@given(st.lists(MESSAGE, max_size=6), st.none() | st.integers(0, 3), st.booleans(), st.none() | WORDS)
def test_any_messages(messages: list[dict[str, Any]], images: int | None, tools: bool, system: str | None) -> None:
    """images: of the row; None: as many as there are places for them."""
    count = places(messages) if images is None else images
    row = {"messages": messages, "images": [f"{n}.jpg" for n in range(count)], "system": system}
    try:
        record = llava(**row, **({"tools": TOOLS} if tools else {}))
    except RowProblem as problem:
        assert problem.reason in (("image_count",) if images is not None else ()) + ("empty_conversation", "wrong_type")
        return
    assert all(before != after for before, after in pairwise(record.roles))
    holders = [n for n, value in enumerate(record.texts) for _ in range(value.count("<image>"))]
    if record.images:
        assert holders == [image.matched_text_index for image in record.images]
    assert record_from_json(record_to_json(record), "here") == record
    spelled = str.lower if record.images else str
    whole = spelled("\n".join([record.system or "", *record.texts]))
    assert all(spelled(value) in whole for value in all_texts(messages))
    if record.messages is None:
        assert record.tools is None and not own_images(messages)
        return
    entries = [entry for one in record.messages if isinstance(one.get("content"), list) for entry in one["content"]]
    assert [entry["type"] for entry in entries].count("image") == len(record.images) == count + own_images(messages)
    assert all(entry in (IMAGE, words(entry.get("text", ""))) for entry in entries)
    assert (record.tools is not None) == tools
    assert tools or (record.messages[0]["role"] in ("system", "developer")) == (record.system is not None)
    assert [one["role"] for one in record.messages][-len(messages) :] == [ROLES[one["role"]] for one in messages]


def contents(messages: list[dict[str, Any]]) -> list[tuple[bool, Any]]:
    """(whether it is a system prompt, entry) of each content; a text is an entry too."""
    return [
        (message["role"] in ("system", "developer"), entry)
        for message in messages
        for entry in ([words(message["content"])] if isinstance(message["content"], str) else message["content"] or ())
    ]


def places(messages: list[dict[str, Any]]) -> int:
    """Images of the row that these messages have places for."""
    entries = contents(messages)
    if any(entry["type"] == "image" for _, entry in entries):
        return sum(entry == IMAGE for _, entry in entries)
    return sum(entry["text"].count("<image>") for is_system, entry in entries if not is_system)


def own_images(messages: list[dict[str, Any]]) -> int:
    return sum("image" in entry for _, entry in contents(messages))


def all_texts(messages: list[dict[str, Any]]) -> list[str]:
    return [entry["text"] for _, entry in contents(messages) if "text" in entry] + [
        message.get("reasoning_content", "") for message in messages
    ]


def rows(config: CorpusConfig, table: list[dict[str, Any]], folder: Path) -> list[Record | BadRecord]:
    path = folder / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(table), path)
    return list(open_corpus(config).read(Part("c", 0, str(path), "rows", 0, len(table), len(table), "in")))


def only(found: list[Record | BadRecord]) -> Record:
    (record,) = found
    assert isinstance(record, Record)
    return record
