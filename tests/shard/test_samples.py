from __future__ import annotations

import hashlib
import io
import json

import pytest
from PIL import Image

from tests.made_run import Item, MadeRun, drawn
from vila_data.core.errors import DataError
from vila_data.core.records import ImageRef, Record
from vila_data.core.samples import KeptImage, Members, encode_sample
from vila_data.shard.read import open_shards

RECORD = Record(
    "meta-000007",
    "document",
    ("First.", "Second.", "Third."),
    tuple(ImageRef(f"https://pictures.test/{i}.jpg", 1) for i in range(4)),
    "https://pages.test/7",
)


def kept(image_index: int, text_index: int, similarity: float | None = 0.25) -> KeptImage:
    jpeg = drawn(image_index)
    size = Image.open(io.BytesIO(jpeg)).size
    return KeptImage(image_index, text_index, similarity, hashlib.sha256(jpeg).hexdigest(), *size, jpeg)


def parsed(members: Members) -> dict[str, object]:
    name, content = members[0]
    assert name.endswith(".json")
    value: dict[str, object] = json.loads(content)
    return value


def test_a_document_in_reading_order() -> None:
    """Two images on one sentence in their own order, before it; image 2 was dropped."""
    images = [kept(3, 0), kept(0, 2), kept(1, 2, None)]
    members = encode_sample("interleaved", "docs-00000-000007", "web", RECORD, images)
    sample = parsed(members)
    key = "docs-00000-000007"
    assert sample["texts"] == [None, "First.", "Second.", None, None, "Third."]
    assert sample["images"] == [f"{key}.0.jpg", None, None, f"{key}.1.jpg", f"{key}.2.jpg", None]
    assert members[1:] == [(f"{key}.{at}.jpg", image.jpeg) for at, image in enumerate(images)]
    assert sample["sample_id"] == key
    assert sample["source"] == {"corpus": "web", "record_id": "meta-000007", "url": "https://pages.test/7"}
    assert sample["schema"] == 1
    info = sample["image_info"]
    assert isinstance(info, list)
    assert [(one["url"], one["image_index"], one["matched_text_index"], one["similarity"]) for one in info] == [
        ("https://pictures.test/3.jpg", 3, 0, 0.25),
        ("https://pictures.test/0.jpg", 0, 2, 0.25),
        ("https://pictures.test/1.jpg", 1, 2, None),
    ]
    assert [one["sha256"] for one in info] == [image.sha256 for image in images]


def test_a_document_without_images() -> None:
    members = encode_sample("interleaved", "k", "web", RECORD, [])
    sample = parsed(members)
    assert len(members) == 1
    assert (sample["texts"], sample["images"]) == (["First.", "Second.", "Third."], [None] * 3)


def test_images_behind_the_last_text_stand_last() -> None:
    members = encode_sample("interleaved", "k", "web", RECORD, [kept(0, 2), kept(1, 3), kept(2, 3)])
    sample = parsed(members)
    assert sample["texts"] == ["First.", "Second.", None, "Third.", None, None]
    assert sample["images"] == [None, None, "k.0.jpg", None, "k.1.jpg", "k.2.jpg"]
    assert [name for name, _ in members] == ["k.json", "k.0.jpg", "k.1.jpg", "k.2.jpg"]
    assert encode_sample("pairs", "k-001", "web", RECORD, [kept(1, 3)])[2][1] == b"Third."


CHAT = Record(
    "chat-000000003",
    "conversation",
    ("<image>\nWhat?", "A boat.", "And <image>?", "A house.", "Thanks.", "\ud800"),
    tuple(ImageRef(f"{n}.jpg", turn) for n, turn in enumerate((0, 2))),
    roles=("human", "gpt") * 3,
    system="Be kind.",
)


def test_a_conversation() -> None:
    members = encode_sample("conversations", "k", "talk", CHAT, [kept(0, 0, None), kept(1, 2, None)])
    sample = parsed(members)
    turns = sample["conversations"]
    assert isinstance(turns, list)
    assert [turn["from"] for turn in turns] == ["human", "gpt"] * 3
    assert [turn["value"] for turn in turns] == [*CHAT.texts[:5], "\ufffd" * 3]
    assert (sample["system"], sample["images"]) == ("Be kind.", ["k.0.jpg", "k.1.jpg"])
    assert [name for name, _ in members] == ["k.json", "k.0.jpg", "k.1.jpg"]
    assert sample["source"] == {"corpus": "talk", "record_id": "chat-000000003", "url": None}
    assert (sample["sample_id"], sample["schema"]) == ("k", 1)


@pytest.mark.parametrize("images", [[], [kept(0, 0)], [kept(0, 0), kept(1, 0)], [kept(0, 0), kept(1, 2), kept(2, 2)]])
def test_a_conversation_that_lost_an_image_is_never_written(images: list[KeptImage]) -> None:
    with pytest.raises(DataError, match=f"record chat-000000003 has 2 <image> placeholders, but {len(images)} images"):
        encode_sample("conversations", "k", "talk", CHAT, images)


def test_marks_of_a_conversation_without_images_are_words() -> None:
    record = Record("r", "conversation", ("What is <image>?", "A <image>."), (), roles=("human", "gpt"))
    sample = parsed(encode_sample("conversations", "k", "talk", record, []))
    assert sample["images"] == [] and sample["conversations"] == [
        {"from": "human", "value": "What is <image>?"},
        {"from": "gpt", "value": "A <image>."},
    ]
    with pytest.raises(DataError, match="record r has 2 <image> placeholders, but 1 images"):
        encode_sample("conversations", "k", "talk", record, [kept(0, 0)])


def test_chat_messages_and_tools_are_there_where_the_record_has_them() -> None:
    messages = (
        {"role": "user", "content": [{"type": "image"}]},
        {"role": "assistant", "tool_calls": [{"b": 1, "a": 2}]},
    )
    record = Record(
        "r",
        "conversation",
        ("<image>", "call"),
        (ImageRef("0.jpg", 0),),
        roles=("human", "gpt"),
        messages=messages,
        tools=({"name": "f", "a": 1},),
    )
    members = encode_sample("conversations", "k", "talk", record, [kept(0, 0)])
    sample = parsed(members)
    assert (sample["messages"], sample["tools"]) == (list(messages), [{"name": "f", "a": 1}])
    assert b'"tool_calls":[{"b":1,"a":2}]' in members[0][1] and b'"tools":[{"name":"f","a":1}]' in members[0][1]
    assert list(sample) == sorted(sample)
    assert {"messages", "tools"}.isdisjoint(
        parsed(encode_sample("conversations", "k", "talk", CHAT, [kept(0, 0), kept(1, 2)]))
    )


def test_conversations_of_a_written_set(made: MadeRun) -> None:
    items = by_record(made.chats)
    found = set()
    for sample in open_shards(made.store.location("shards/chat")):
        one = items[sample.json["source"]["record_id"]]
        marks = "".join(turn["value"] for turn in sample.json["conversations"]).count("<image>")
        assert marks == len(one.jpegs) == len(sample.json["images"]) == len(sample.members) - 1
        assert [sample.members[name.removeprefix(f"{sample.key}.")] for name in sample.json["images"]] == list(
            one.jpegs
        )
        assert sample.json["system"] == one.record.system
        found.add(one.record.record_id)
    assert found == {one.record.record_id for one in made.chats if None not in one.jpegs}
    assert 35 < len(found) < 50


def test_a_pair() -> None:
    image = kept(2, 1)
    members = encode_sample("pairs", "k-002", "web", RECORD, [image])
    assert [name for name, _ in members] == ["k-002.json", "k-002.jpg", "k-002.txt"]
    assert members[1][1] == image.jpeg
    assert members[2][1] == b"Second."
    sample = parsed(members)
    assert (sample["caption"], sample["url"]) == ("Second.", "https://pictures.test/2.jpg")
    assert (sample["sample_id"], sample["sha256"], sample["schema"]) == ("k-002", image.sha256, 1)
    assert sample["source"] == {"corpus": "web", "record_id": "meta-000007", "url": "https://pages.test/7"}


@pytest.mark.parametrize("text", ["\ud800 lone", "plain \U0001f6f6", "\x00\x1f\u2028"])
def test_texts_that_utf8_cannot_hold_are_the_same_in_json_and_txt(text: str) -> None:
    record = Record("r", "pair", (text,), (ImageRef("https://pictures.test/0.jpg", 0),))
    members = encode_sample("pairs", "k", "alt", record, [kept(0, 0)])
    caption = parsed(members)["caption"]
    assert isinstance(caption, str)
    assert members[2][1].decode() == caption
    assert caption.replace("\ufffd", "") == text.replace("\ud800", "")
    assert ("\ufffd" in caption) == ("\ud800" in text)


def by_record(items: list[Item]) -> dict[str, Item]:
    return {one.record.record_id: one for one in items}


def test_documents_of_a_written_set(made: MadeRun) -> None:
    items = by_record(made.documents)
    for sample in open_shards(made.store.location("shards/docs")):
        value, one = sample.json, items[sample.json["source"]["record_id"]]
        assert len(value["texts"]) == len(value["images"])
        assert all(
            (text is None) != (image is None) for text, image in zip(value["texts"], value["images"], strict=True)
        )
        assert tuple(text for text in value["texts"] if text is not None) == one.record.texts
        names = [image for image in value["images"] if image is not None]
        assert names == [f"{sample.key}.{at}.jpg" for at in range(len(one.jpegs))]
        assert list(sample.members) == ["json", *(f"{at}.jpg" for at in range(len(names)))]
        for at, info in enumerate(value["image_info"]):
            assert sample.members[f"{at}.jpg"] == one.jpegs[info["image_index"]]
            text_index = one.record.images[info["image_index"]].matched_text_index
            assert info["matched_text_index"] == text_index
            after = [text for text in value["texts"][value["images"].index(names[at]) :] if text is not None]
            assert after[0] == one.record.texts[text_index or 0]
            assert info["similarity"] == pytest.approx(one.similarities[info["image_index"]])


def test_pairs_of_a_written_set(made: MadeRun) -> None:
    items = by_record(made.pairs)
    found = set()
    for sample in open_shards(made.store.location("shards/pairs")):
        one = items[sample.json["source"]["record_id"]]
        assert list(sample.members) == ["json", "jpg", "txt"]
        assert sample.members["jpg"] == one.jpegs[0]
        assert sample.members["txt"].decode() == sample.json["caption"] == one.record.texts[0]
        assert sample.json["similarity"] is None
        found.add(one.record.record_id)
    assert found == {one.record.record_id for one in made.pairs if one.whole}


def test_pairs_of_documents_have_the_sentence_that_the_image_stands_before(made: MadeRun) -> None:
    items = by_record(made.documents)
    for sample in open_shards(made.store.location("shards/docs_pairs")):
        one = items[sample.json["source"]["record_id"]]
        ref = one.record.images[sample.json["image_index"]]
        assert sample.members["jpg"] == one.jpegs[sample.json["image_index"]]
        assert sample.json["caption"] == one.record.texts[ref.matched_text_index or 0]
        assert sample.key.endswith(f"-{sample.json['image_index']:03d}")
