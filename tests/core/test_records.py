"""The spelling of records: equal values, equal bytes, in whichever way they are encoded."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from vila_data.core.errors import DataError
from vila_data.core.records import (
    CHAT_KEYS,
    ImageRef,
    Record,
    canonical_json,
    record_from_json,
    record_to_json,
    without_surrogates,
)

PLAIN = {"b": [1, 2.5, None], "a": {"z": "漢\u2028", "y": True}, "Z": "a lone \ud800 surrogate", "é": {}}


def test_a_value_without_chat_keys_has_one_spelling() -> None:
    key_by_key = canonical_json({**PLAIN, "tools": []}, CHAT_KEYS).replace(b',"tools":[]', b"")
    assert key_by_key == canonical_json(PLAIN, CHAT_KEYS) == canonical_json(PLAIN)
    assert list(json.loads(key_by_key)) == sorted(PLAIN)


def test_objects_below_chat_keys_alone_keep_the_order_of_their_keys() -> None:
    value = {**PLAIN, "messages": [{"role": "user", "content": "b"}]}
    text = canonical_json(value, CHAT_KEYS).decode()
    assert '"messages":[{"role":"user","content":"b"}]' in text
    assert '"a":{"y":true,"z":"漢\u2028"}' in text


@pytest.mark.parametrize("texts", [(), ("a", "é"), ("\ud83d", "\udef6"), ("x\udc80", "", "\ud800")])
def test_texts_have_as_many_characters_together_as_one_by_one(texts: tuple[str, ...]) -> None:
    assert len(without_surrogates("".join(texts))) == sum(len(without_surrogates(text)) for text in texts)


RECORDS = [
    Record(
        "a", "document", ("one", "two"), (ImageRef("https://x/1.jpg", 1, 0.25, "n"), ImageRef("", None)), "https://x"
    ),
    Record("b", "pair", ("caption \ud800",), (ImageRef("u", 0),)),
    Record("c", "conversation", ("q", "a"), (), roles=("human", "gpt"), system=""),
    Record(
        "d",
        "conversation",
        ("q", "a"),
        (),
        roles=("human", "gpt"),
        messages=({"role": "user", "content": "q"}, {"role": "assistant", "tool_calls": [{"z": 1, "a": 2}]}),
        tools=({"name": "f", "a": 1},),
        verbatim=True,
    ),
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.record_id)
def test_a_record_comes_back_from_its_json(record: Record) -> None:
    spelled = record_to_json(record)
    found = record_from_json(spelled, "x.tar: byte 512")
    assert record_to_json(found) == spelled
    assert replace(found, texts=record.texts) == record
    assert [list(call) for call in found.messages[-1]["tool_calls"]] == [["z", "a"]] if found.messages else True


def test_bytes_of_an_image_are_not_in_a_record_s_json() -> None:
    (image,) = RECORDS[1].images
    held = replace(RECORDS[1], images=(replace(image, data=b"bytes"),))
    assert record_to_json(held) == record_to_json(RECORDS[1])


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"{}", b'{"record_id": "a", "kind": "pair"}'])
def test_what_is_not_a_record_is_an_error_that_names_the_place(data: bytes) -> None:
    with pytest.raises(DataError, match=r"^x\.tar: byte 512: not a record: .*; run check on the run"):
        record_from_json(data, "x.tar: byte 512")


def test_an_image_after_the_last_text_belongs_to_it() -> None:
    assert [RECORDS[0].text_of(index) for index in (0, 1, 2)] == ["one", "two", "two"]
