"""Chat messages from rows to shards, in one run: each row and image with its fate, every sample as documented."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import vila_data as vd
from tests.made_run import drawn
from vila_data.explore.inspection import check
from vila_data.explore.preview import Choice, preview
from vila_data.shard.read import Sample

RECIPE = """version: 1
name: messages
corpora:
  chat: {kind: llava, files: [chat.json], image_root: images}
  talk: {kind: text, files: [talk.json]}
filter:
  images: {min_side_px: 40}
  documents: {on_missing_image: drop_image}
shards:
  chat: {corpus: chat, view: conversations}
  talk: {corpus: talk, view: conversations}
"""
A = {"role": "assistant", "content": "A <image>."}


def user(*entries: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(entries)}


def picture(name: str) -> dict[str, str]:
    return {"type": "image", "image": name}


TEXT = {"type": "text", "text": "What is <image>?"}
CHAT: list[Any] = [
    {"messages": [user(picture("0.jpg"), TEXT), A]},
    {"messages": [user({"type": "image"}, TEXT), A, user(picture("1.jpg")), A], "images": ["0.jpg"]},
    {"messages": [user(picture("none.jpg"), TEXT), A]},
    {"messages": [user(picture("0.jpg"), picture("none.jpg"), TEXT), A]},
    {"messages": [user(picture("data:image/jpeg;base64,AAAA"), TEXT), A]},
    {"messages": [user({"type": "video", "video": "a.mp4"}, TEXT), A]},
    {"messages": [user(TEXT), A]},
]
CALL = {"name": "f", "arguments": {"z": 1, "a": 2}}
TALK = [
    {
        "messages": [user(TEXT), {"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "content": "r"}],
        "tools": [CALL],
    },
    {"messages": [user(picture("0.jpg"), TEXT), A]},
    {"messages": [{"role": "user", "content": "What is <image>?"}, A]},
]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, vd.RunReport]:
    folder = tmp_path_factory.mktemp("messages")
    (folder / "images").mkdir()
    for n in range(2):
        (folder / "images" / f"{n}.jpg").write_bytes(drawn(n))
    (folder / "chat.json").write_text(json.dumps(CHAT))
    (folder / "talk.json").write_text(json.dumps(TALK))
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder / "run", vd.run(folder / "recipe.yaml", folder / "run", runner="local")


def samples(out: Path, name: str) -> dict[int, Sample]:
    return {int(one.json["source"]["record_id"][-9:]): one for one in vd.open_shards(out / "shards" / name)}


def test_fates(done: tuple[Path, vd.RunReport]) -> None:
    """A conversation that loses an image is dropped, never one with marks and no image."""
    out, report = done
    assert report.funnel["chat"]["download"] == {
        "records": {"kept": 6, "failed:wrong_type": 1},
        "images": {"kept": 4, "failed:no_file": 2, "failed:not_an_image": 1},
    }
    assert report.funnel["chat"]["filter"]["records"] == {"kept": 3, "dropped:missing_image": 3}
    assert report.funnel["talk"]["download"]["records"] == {"kept": 2, "failed:image_count": 1}
    assert list(check(out)) == []


def test_samples(done: tuple[Path, vd.RunReport]) -> None:
    chat, talk = samples(done[0], "chat"), samples(done[0], "talk")
    assert (sorted(chat), sorted(talk)) == ([0, 1, 6], [0, 2])
    image = {"type": "image"}
    assert chat[1].json["messages"] == [user(image, TEXT), A, user(image), A]
    assert [turn["value"] for turn in chat[1].json["conversations"]] == [
        "<image>What is <IMAGE>?",
        "A <IMAGE>.",
        "<image>",
        "A <IMAGE>.",
    ]
    assert [chat[1].members[f"{n}.jpg"] for n in range(2)] == [drawn(0), drawn(1)]
    assert [(one["url"], one["matched_text_index"]) for one in chat[1].json["image_info"]] == [
        ("0.jpg", 0),
        ("1.jpg", 2),
    ]
    assert chat[6].json["conversations"][0]["value"] == "What is <image>?" and list(chat[6].members) == ["json"]
    assert "tools" not in chat[1].json and talk[0].json["tools"] == [CALL]
    assert list(talk[0].json["messages"][1]["tool_calls"][0]["arguments"]) == ["z", "a"]
    assert {"messages", "tools"}.isdisjoint(talk[2].json)
    assert talk[2].json["conversations"][1] == {"from": "gpt", "value": "A <image>."}


def test_the_page_shows_marks_that_are_words(done: tuple[Path, vd.RunReport], tmp_path: Path) -> None:
    preview(str(done[0]), str(tmp_path / "page.html"), Choice(count=20))
    page = (tmp_path / "page.html").read_text()
    assert "What is &lt;image&gt;?" in page and "What is &lt;IMAGE&gt;?" in page
