"""LLaVA, text and VFLAN rows: what each form gives, and what each bad row fails with."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vila_data.core.layout import Part
from vila_data.core.records import BadRecord, ImageRef, Record, record_from_json, record_to_json
from vila_data.corpora.config import CorpusConfig, LlavaConfig, TextConfig, VflanConfig
from vila_data.corpora.conversation import conversation
from vila_data.corpora.kinds import open_corpus
from vila_data.corpora.source import RowProblem

JPEG = b"\xff\xd8 not decoded here"


def records(config: CorpusConfig, rows: list[Any], folder: Path) -> list[Record | BadRecord]:
    path = folder / "rows.json"
    path.write_text(json.dumps(rows))
    return list(open_corpus(config).read(Part("c", 0, str(path), "rows", 0, len(rows), len(rows), "in")))


def llava(folder: Path, *rows: Any, image_root: str | None = "/data/images") -> list[Any]:
    return records(LlavaConfig(kind="llava", files=("x",), image_root=image_root), list(rows), folder)


def text(folder: Path, *rows: Any, system: str | None = None) -> list[Any]:
    return records(TextConfig(kind="text", files=("x",), system=system), list(rows), folder)


def vflan(folder: Path, *rows: Any, image_root: str | None = None) -> list[Any]:
    return records(VflanConfig(kind="vflan", files=("x",), image_root=image_root), list(rows), folder)


def chat(*values: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[n % 2], "value": value} for n, value in enumerate(values)]


def test_llava_with_one_several_and_no_images(tmp_path: Path) -> None:
    one, several, none = llava(
        tmp_path,
        {"id": "1", "image": "coco/1.jpg", "conversations": chat("<image>\nWhat?", "A bus.", "Where?", "Here.")},
        {"id": "1", "image": ["a.jpg", "b.jpg"], "conversations": chat("<image> and", "One.", "<image>?", "Two.")},
        {"id": "3", "conversations": chat("Hello", "Hi.")},
    )
    assert (one.record_id, one.kind) == ("rows-000000000", "conversation")
    assert one.texts == ("<image>\nWhat?", "A bus.", "Where?", "Here.")
    assert one.roles == ("human", "gpt", "human", "gpt")
    assert one.images == (ImageRef("coco/1.jpg", 0, file="/data/images/coco/1.jpg"),)
    assert [(image.url, image.matched_text_index) for image in several.images] == [("a.jpg", 0), ("b.jpg", 2)]
    assert (none.images, none.system) == ((), None)
    assert len({record.record_id for record in (one, several, none)}) == 3


def test_llava_addresses_are_downloaded_and_paths_stay_below_the_root(tmp_path: Path) -> None:
    row = {"image": "https://a.example/x.jpg", "conversations": chat("<image>", "Yes.")}
    for image_root in (None, "/data/images"):
        (record,) = llava(tmp_path, row, image_root=image_root)
        assert record.images == (ImageRef("https://a.example/x.jpg", 0),)
    outside = ["../secret.jpg", "/etc/passwd", "a/../../b.jpg", "", ".", "a\0b.jpg", "/data/images2/x.jpg"]
    rows = [{"image": path, "conversations": chat("<image>", "Yes.")} for path in outside]
    for record in llava(tmp_path, *rows):
        assert [(image.error, image.file) for image in record.images] == [("bad_url", None)]


def test_llava_questions_and_answers_and_messages(tmp_path: Path) -> None:
    asked, marked, chats = llava(
        tmp_path,
        {"id": "5", "image": "x.jpg", "instruction": "What is it?", "output": "A dog.", "type": "conv"},
        {"image": "x.jpg", "instruction": "What is <image>?", "output": "A dog."},
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "<image>Who?"},
                {"role": "assistant", "content": "Two men."},
                {"role": "user", "content": "And here?<image>"},
                {"role": "assistant", "content": "One."},
            ],
            "images": ["1.jpg", "2.jpg"],
        },
    )
    assert asked.texts == ("<image>\nWhat is it?", "A dog.")
    assert marked.texts == ("What is <image>?", "A dog.")
    assert [image.matched_text_index for image in chats.images] == [0, 2]
    assert chats.system == "Be brief." and len(chats.texts) == 4


BAD: list[tuple[Any, str]] = [
    ({"image": "x.jpg", "conversations": chat("no mark", "a")}, "image_count"),
    ({"image": "x.jpg", "conversations": chat("<image><image>", "a")}, "image_count"),
    ({"image": ["x.jpg", "y.jpg"], "conversations": chat("<image>", "a")}, "image_count"),
    ({"conversations": [*chat("q", "a"), {"from": "gpt", "value": "b"}]}, "turn_order"),
    ({"conversations": [{"from": "human", "value": "q"}, *chat("q", "a")]}, "turn_order"),
    ({"conversations": []}, "empty_conversation"),
    ({"conversations": chat("q")}, "empty_conversation"),
    ({"conversations": chat("q", " \n")}, "empty_conversation"),
    ({"conversations": "q"}, "wrong_type"),
    ({"conversations": [["human", "q"]]}, "wrong_type"),
    ({"conversations": [{"from": "human", "value": None}]}, "wrong_type"),
    ({"conversations": [{"from": "narrator", "value": "q"}, *chat("q", "a")]}, "wrong_type"),
    ({"image": 7, "conversations": chat("<image>", "a")}, "wrong_type"),
    ({"id": "1", "image": "x.jpg"}, "missing_field"),
    ([1], "wrong_type"),
    ({"instruction": "q", "image": "x.jpg"}, "missing_field"),
]


def test_each_bad_row_fails_with_its_reason_and_nothing_else_is_lost(tmp_path: Path) -> None:
    good = {"conversations": chat("q", "a")}
    rows = [value for row, _ in BAD for value in (good, row)] + [good]
    found = llava(tmp_path, *rows)
    assert len(found) == len(rows)
    assert all(isinstance(record, Record) for record in found[::2])
    assert [record.reason for record in found[1::2]] == [reason for _, reason in BAD]
    assert [record.detail.split(": ")[:2] for record in found[1::2]] == [
        [f"{tmp_path}/rows.json", f"row {at}"] for at in range(1, len(rows), 2)
    ]


@given(st.lists(st.sampled_from(["", "<image>", "x", " <image> y"]), min_size=2, max_size=6), st.integers(0, 6))
def test_a_conversation_has_as_many_images_as_marks_or_is_none(texts: list[str], images: int) -> None:
    turns = [(("human", "gpt")[n % 2], value) for n, value in enumerate(texts)]
    refs = [ImageRef(f"{n}.jpg") for n in range(images)]
    try:
        record = conversation("r", turns, refs)  # type: ignore[arg-type]
    except RowProblem as problem:
        answers = any(value.strip() for value in texts[1::2])
        assert problem.reason == ("empty_conversation" if not answers else "image_count")
        assert not answers or (images and "".join(texts).count("<image>") != images)
        return
    if not images:
        assert record.images == () and record.texts == tuple(texts)
        return
    assert [image.url for image in record.images] == [ref.url for ref in refs]
    assert [image.matched_text_index for image in record.images] == [
        n for n, value in enumerate(texts) for _ in range(value.count("<image>"))
    ]
    assert record_from_json(record_to_json(record), "here") == record


def test_every_form_of_text(tmp_path: Path) -> None:
    found = text(
        tmp_path,
        {"task": "t", "prompt": "p", "completion": "c"},
        {"inputs": "p", "targets": "c"},
        {"input": "p", "output": "c"},
        {"instruction": "p", "input": "", "output": "c"},
        {"instruction": "p", "input": "more", "output": "c"},
        {"instruction": "p", "output": "c", "history": [["a", "b"]]},
        {"conversations": [{"from": "user", "value": "p"}, {"from": "chatgpt", "value": "c"}]},
        {"messages": [{"role": "user", "content": "p"}, {"role": "assistant", "content": "c"}]},
    )
    assert [record.texts for record in found] == [
        *[("p", "c")] * 4,
        ("p\nmore", "c"),
        ("a", "b", "p", "c"),
        *[("p", "c")] * 2,
    ]
    assert {record.system for record in found} == {None}


def test_system_prompts_and_tools(tmp_path: Path) -> None:
    plain = {"prompt": "p", "completion": "c"}
    own = {"conversations": [{"from": "system", "value": "Own."}, *chat("p", "c")]}
    tools = {"conversations": chat("p", "c"), "tools": '[{"name": "search"}]'}
    both = {"conversations": chat("p", "c"), "system": "Own.", "tools": [{"name": "search"}]}
    assert [record.system for record in text(tmp_path, plain, own, tools, both)] == [
        None,
        "Own.",
        '[{"name": "search"}]',
        'Own.\n\n[{"name": "search"}]',
    ]
    assert [record.system for record in text(tmp_path, plain, own, tools, system="")] == [
        "",
        "Own.",
        '[{"name": "search"}]',
    ]
    assert [record.system for record in text(tmp_path, plain, tools, system="S.")] == [
        "S.",
        'S.\n\n[{"name": "search"}]',
    ]


def test_calls_are_said_and_observations_are_told(tmp_path: Path) -> None:
    speakers = ["human", "function_call", "observation", "gpt"]
    (record,) = text(tmp_path, {"conversations": [{"from": one, "value": one} for one in speakers]})
    assert record.roles == ("human", "gpt", "human", "gpt")
    assert record.texts == tuple(speakers)


def test_an_unknown_form_names_its_keys(tmp_path: Path) -> None:
    unknown, empty = text(tmp_path, {"frage": "p", "antwort": "c"}, {})
    assert unknown.reason == "missing_field" and unknown.detail.endswith("the row has the keys frage, antwort")
    assert empty.reason == "missing_field" and empty.detail.endswith("the row has no keys")


@pytest.mark.parametrize("history", [5, True, "said", {"a": "b"}, ["ab"], [["a"]], [["a", 1]]])
def test_a_history_that_is_none(tmp_path: Path, history: object) -> None:
    (bad,) = text(tmp_path, {"instruction": "p", "output": "c", "history": history})
    assert bad.reason == "wrong_type" and "history must be" in bad.detail


def test_text_from_parquet(tmp_path: Path) -> None:
    """Forms side by side in one table: what a row does not have is null there."""
    path = tmp_path / "rows.parquet"
    rows = [
        {"prompt": "p", "completion": "c", "conversations": None},
        {"prompt": None, "completion": None, "conversations": chat("p", "c")},
        {"prompt": "p", "completion": None, "conversations": None},
    ]
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)
    source = open_corpus(TextConfig(kind="text", files=("x",)))
    first, second, third = source.read(Part("c", 0, str(path), "rows", 0, 3, 3, "in"))
    assert isinstance(first, Record) and isinstance(second, Record) and isinstance(third, BadRecord)
    assert first.texts == second.texts == ("p", "c")
    assert third.reason == "missing_field"


def encoded(data: bytes = JPEG) -> str:
    return base64.b64encode(data).decode()


def test_vflan_rows(tmp_path: Path) -> None:
    none, one, two, wrapped = vflan(
        tmp_path,
        {"question": "q", "answer": "a", "image": []},
        {"question": "Is <image> <ima<image>ge>red?", "answer": "a", "image": encoded()},
        {"question": "q", "answer": "a", "image": [encoded(), f"b'{encoded(JPEG * 2)}'"]},
        {"question": "q", "answer": "a", "image": f"data:image/jpeg;base64,{encoded()}"},
    )
    assert (none.texts, none.images, none.system) == (("q", "a"), (), "")
    assert one.texts == ("<image>\nIs  red?", "a")
    assert two.texts == ("<image>\n<image>\nq", "a")
    assert [image.data for image in two.images] == [JPEG, JPEG * 2]
    assert wrapped.images[0].data == JPEG


def test_vflan_bad_rows(tmp_path: Path) -> None:
    many, broken, number, empty = vflan(
        tmp_path,
        {"question": "q", "answer": "a", "image": [encoded()] * 9},
        {"question": "q", "answer": "a", "image": ["!!!", encoded()]},
        {"question": "q", "answer": "a", "image": [3]},
        {"question": "q", "answer": "", "image": []},
    )
    assert many.reason == "image_count" and "9 images; at most 8" in many.detail
    assert [(image.error, image.data) for image in broken.images] == [("not_an_image", None), (None, JPEG)]
    assert number.reason == "wrong_type"
    assert empty.reason == "empty_conversation"


def test_vflan_marks_and_spaces_as_released(tmp_path: Path) -> None:
    """Question and answer lose their spaces at the end, marks go with their line break."""
    questions = ["<image>\nWhat? \n", "What?\n<image>", "a<image>b <image>\nc", "q \n<image>", "q <image>"]
    for images in ([], [encoded()]):
        rows = [{"question": question, "answer": " a \n\t", "image": images} for question in questions]
        found = vflan(tmp_path, *rows)
        assert [record.texts[0] for record in found] == [
            "<image>\n" * len(images) + text for text in ("What?", "What?", "ab c", "q ", "q ")
        ]
        assert {record.texts[1] for record in found} == {" a"}
    spoken, shown = vflan(
        tmp_path,
        {"question": "q", "answer": "An <image> token.", "image": []},
        {"question": "q", "answer": "An <image> token.", "image": encoded()},
    )
    assert (spoken.texts[1], shown.texts[1]) == ("An <image> token.", "An <IMAGE> token.")


def test_vflan_keys_paths_and_addresses(tmp_path: Path) -> None:
    colons, empty, roots, web = vflan(
        tmp_path,
        {"question": "q", "answer:": "a", "image:": [encoded()]},
        {"question": "q", "answer:": "a", "image": None},
        {"question": "q", "answer": "a", "image": ["a/1.jpg", "../2.JPG", encoded()]},
        {"question": "q", "answer": "a", "image": "https://a.example/1.jpg"},
        image_root="/data",
    )
    assert colons.texts == ("<image>\nq", "a") and colons.images[0].data == JPEG
    assert (empty.texts, empty.images) == (("q", "a"), ())
    assert [(image.url, image.file, image.error, image.data) for image in roots.images] == [
        ("a/1.jpg", "/data/a/1.jpg", None, None),
        ("../2.JPG", None, "bad_url", None),
        ("", None, None, JPEG),
    ]
    assert [(image.url, image.file) for image in web.images] == [("https://a.example/1.jpg", None)]


DIALOG = (
    "Image Descriptions: a dog. <image>\nQuestion: is it <image>\nbig?\nAnswer: no, \nit is small\n"
    "\nQuestion: what\ncolor?\nAnswer: brown\nQuestion: is it\nold? \n"
)


def test_vflan_visual_dialogs_are_several_turns(tmp_path: Path) -> None:
    """The mark is once in front, also without an image; the description is left out, and the line breaks of the last
    question, the mark's too."""
    one, none, single, other, two, unanswered, twice = vflan(
        tmp_path,
        {"question": DIALOG, "answer": "yes ", "image": encoded()},
        {"question": DIALOG, "answer": "yes", "image": []},
        {"question": "Image Descriptions: a dog\nQuestion: is it\nold?", "answer": "yes", "image": encoded()},
        {"question": "What are Image Descriptions?", "answer": "Texts.", "image": []},
        {"question": DIALOG, "answer": "yes", "image": [encoded()] * 2},
        {"question": DIALOG.replace("\nAnswer: brown", ""), "answer": "yes", "image": encoded()},
        {"question": f"{DIALOG}\nAnswer: yes", "answer": "yes", "image": encoded()},
    )
    turns = ("is it big?", "no, \nit is small\n", "what\ncolor?", "brown", "is itold?", "yes")
    assert one.texts == ("<image>\n" + turns[0], *turns[1:])
    assert one.roles == ("human", "gpt") * 3 and [image.matched_text_index for image in one.images] == [0]
    assert (none.texts, none.images) == (one.texts, ())
    assert single.texts == ("<image>is itold?", "yes") and len(single.images) == 1
    assert other.texts == ("What are Image Descriptions?", "Texts.")
    assert (
        two.reason == "image_count"
        and "a visual dialog ('Image Descriptions') must have one image, found" in two.detail
    )
    for bad in (unanswered, twice):
        assert bad.reason == "turn_order" and "must alternate" in bad.detail


def test_flan_is_stripped_at_the_end_and_other_text_is_not(tmp_path: Path) -> None:
    flan, other, empty = text(
        tmp_path,
        {"inputs": " q \n", "targets": " a \n"},
        {"prompt": " q \n", "completion": " a \n"},
        {"inputs": "q", "targets": " \n"},
    )
    assert flan.texts == (" q", " a") and other.texts == (" q \n", " a \n")
    assert empty.reason == "empty_conversation"


def test_vflan_parquet_with_bytes(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    table = pa.table({"question": ["q"], "answer": ["a"], "image": pa.array([[JPEG, JPEG]], pa.list_(pa.binary()))})
    pq.write_table(table, path)
    (record,) = open_corpus(VflanConfig(kind="vflan", files=("x",))).read(
        Part("c", 0, str(path), "rows", 0, 1, 1, "in")
    )
    assert isinstance(record, Record)
    assert [image.data for image in record.images] == [JPEG, JPEG]


def test_records_of_other_kinds_keep_their_json() -> None:
    record = Record("r", "pair", ("t",), (ImageRef("u", 0),))
    assert record_to_json(record) == (
        b'{"images":[{"matched_sim":null,"matched_text_index":0,"name":null,"url":"u"}],"kind":"pair",'
        b'"record_id":"r","source_url":null,"texts":["t"]}'
    )
