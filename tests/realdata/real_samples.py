"""Real rows as samples' JSON, made without the package's own readers."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from tests.encode.generated import conversation_json, document_json, pair_json


def document(published: dict[str, Any]) -> dict[str, Any]:
    """An MMC4 document, its images in reading order."""
    infos = [
        {"matched_text_index": info["matched_text_index"], "image_index": index, "similarity": info["matched_sim"]}
        for index, info in enumerate(published["image_info"])
    ]
    infos.sort(key=lambda info: info["matched_text_index"])
    return document_json(published["text_list"], infos)


def mmc4(shared: Path) -> list[dict[str, Any]]:
    lines = (shared / "realdata" / "mmc4_doc.jsonl").read_text().splitlines()
    return [document(json.loads(line)) for line in lines if line]


def gimp_help() -> list[dict[str, Any]]:
    from tests.realdata import gimp_help as pages

    return [document(published) for published in pages.documents("https://pages.test")]


def captions(shared: Path) -> list[dict[str, Any]]:
    """Flickr8k's, as pairs."""
    with (shared / "realdata" / "flickr8k" / "captions_en.csv").open(newline="") as stream:
        return [pair_json(row["caption"]) for row in csv.DictReader(stream)]


def alt_texts(shared: Path) -> list[dict[str, Any]]:
    """The web's, as pairs: each text once."""
    texts = pq.read_table(shared / "realdata" / "web_rows.parquet").column("TEXT").to_pylist()
    return [pair_json(text) for text in dict.fromkeys(texts)]


def talk(*said: str, system: str | None = None) -> dict[str, Any]:
    turns = [{"from": ("human", "gpt")[number % 2], "value": text} for number, text in enumerate(said)]
    return conversation_json(turns, system)


def llava(shared: Path) -> list[dict[str, Any]]:
    lines = (shared / "realdata" / "llava" / "coco2014_val_gpt4_qa_30x3.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [talk("<image>\n" + row["instruction"], row["output"]) for row in rows]


def chats(shared: Path) -> list[dict[str, Any]]:
    """The chats with several images."""
    rows = json.loads((shared / "realdata" / "llava" / "multi_image_chats.json").read_text())
    return [talk(*(message["content"] for message in row["messages"])) for row in rows]


def sharegpt(shared: Path) -> list[dict[str, Any]]:
    rows = json.loads((shared / "realdata" / "text" / "sharegpt.json").read_text())
    return [conversation_json(row["conversations"]) for row in rows]


def alpaca(shared: Path, language: str) -> list[dict[str, Any]]:
    rows = json.loads((shared / "realdata" / "text" / f"alpaca_{language}.json").read_text())
    return [talk("\n".join(filter(None, [row["instruction"], row["input"]])), row["output"]) for row in rows]


def t0(shared: Path) -> Iterator[dict[str, Any]]:
    with (shared / "realdata" / "text" / "t0.jsonl").open() as stream:
        for line in stream:
            row = json.loads(line)
            yield talk(row["prompt"], row["completion"])


def all_conversations(shared: Path) -> Sequence[tuple[str, list[dict[str, Any]]]]:
    """(name, samples) of each set."""
    return (
        ("llava", llava(shared)),
        ("chats", chats(shared)),
        ("sharegpt", sharegpt(shared)),
        ("alpaca_zh", alpaca(shared, "zh")),
        ("alpaca_en", alpaca(shared, "en")),
        ("t0", list(t0(shared))),
    )
