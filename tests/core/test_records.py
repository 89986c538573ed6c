"""The spelling of records: equal values, equal bytes, in whichever way they are encoded."""

from __future__ import annotations

import json

import pytest

from vila_data.core.records import CHAT_KEYS, canonical_json, without_surrogates

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
