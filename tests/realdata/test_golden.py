"""The sequences of VILA v1.0, from published rows through the package's own readers, to the token."""

from __future__ import annotations

import base64
import gzip
import io
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vila_data.core.records import ImageRef, Record
from vila_data.core.samples import KeptImage, View, decode_sample, encode_sample
from vila_data.corpora.config import LlavaConfig, VflanConfig
from vila_data.corpora.llava import llava_rows
from vila_data.corpora.mmc4 import _document
from vila_data.corpora.vflan import vflan_rows
from vila_data.encode.config import PackConfig
from vila_data.encode.samples import Sample, as_encoded, encode_samples
from vila_data.encode.sequence import IMAGE_ID, TokenSequence
from vila_data.encode.tokenizer import TextTokenizer, load_tokenizer

pytestmark = pytest.mark.realdata
TOKENS_PER_IMAGE = 576


@cache
def jpeg() -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (16, 16)).save(data, "JPEG")
    return data.getvalue()


def rows(shared: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(shared / "golden" / "vila_v1.jsonl.gz", "rt") as stream:
        yield from map(json.loads, stream)


def record_of(row: dict[str, Any]) -> Record:
    given = row["input"]
    if row["kind"] == "mmc4":
        infos = [
            {"raw_url": "http://a.test/x.jpg", "image_name": "x.jpg", "matched_text_index": index, "matched_sim": 0.3}
            for index in given["matched_text_index"]
        ]
        return _document("row", {"text_list": given["texts"], "image_info": infos, "url": "http://a.test/"})
    if row["kind"] == "vflan":
        images = [base64.b64encode(jpeg()).decode()] * given["n"]
        read = vflan_rows(VflanConfig(kind="vflan", files=("x",)))
        return read("row", {"question": given["question"], "answer": given["answer"], "image": images})
    images = ["x.jpg"] * given["n"]
    published: dict[str, Any] = {"conversations": given["conversations"]}
    if not any(turn["value"] for turn in given["conversations"] if turn["from"] == "gpt"):
        return unanswered(given)
    return llava_rows(LlavaConfig(kind="llava", files=("x",)))("row", published | ({"image": images} if images else {}))


def unanswered(given: dict[str, Any]) -> Record:
    """A row without any answer, which the reader refuses, as the reader would give it."""
    turns = [(turn["from"], turn["value"]) for turn in given["conversations"]]
    images = tuple(ImageRef("x.jpg", at) for at, (_, text) in enumerate(turns) for _ in range(text.count("<image>")))
    return Record(
        "row", "conversation", tuple(text for _, text in turns), images, roles=tuple(role for role, _ in turns)
    )


def sample_of(record: Record) -> Sample:
    order = sorted(range(len(record.images)), key=lambda index: (record.images[index].matched_text_index, index))
    kept = [KeptImage(index, record.images[index].matched_text_index or 0, None, "0", 8, 8, b"") for index in order]
    view: View = "interleaved" if record.kind == "document" else "conversations"
    return as_encoded(decode_sample(encode_sample(view, "key", "corpus", record, kept)[0][1], "golden"))


def config_of(kind: str, semantics: str) -> PackConfig:
    return PackConfig.model_validate(
        {
            "tokenizer": "golden",
            "sequence_length": 4096,
            "tokens_per_image": TOKENS_PER_IMAGE,
            "template": "plain" if kind == "plain" else "vicuna_v1",
            "semantics": semantics,
        }
    )


def expanded(sequence: TokenSequence) -> tuple[list[int], list[int]]:
    """ids and labels with every token of an image, cut where the sequence ends."""
    labels = [-100] * len(sequence.ids)
    for first, last in sequence.trained:
        labels[first:last] = sequence.ids[first:last]
    times = [TOKENS_PER_IMAGE if token == IMAGE_ID else 1 for token in sequence.ids]
    ids = [token for token, count in zip(sequence.ids, times, strict=True) for _ in range(count)]
    wide = [label for label, count in zip(labels, times, strict=True) for _ in range(count)]
    return ids[: sequence.tokens], [-100 if label == IMAGE_ID else label for label in wide[: sequence.tokens]]


@pytest.fixture(scope="module")
def tokenizer(shared: Path) -> TextTokenizer:
    return load_tokenizer(str(shared / "golden" / "tokenizer"))


def differing(shared: Path, semantics: str, tokenizer: TextTokenizer) -> tuple[Counter[str], Counter[str]]:
    """Rows by kind, and by name those whose ids, labels or images are not v1.0's; the first label counts in `released_code`."""
    seen: Counter[str] = Counter()
    others: Counter[str] = Counter()
    for row in rows(shared):
        record = record_of(row)
        (sequence,) = encode_samples([sample_of(record)], config_of(row["kind"], semantics), tokenizer)
        order = sorted(range(len(record.images)), key=lambda index: (record.images[index].matched_text_index, index))
        images = [order[image] + 1 for image in sequence.images]
        seen[row["kind"]] += 1
        labels = row["labels"] if semantics != "improved" else [-100, *row["labels"][1:]]
        if (*expanded(sequence), images) != (row["ids"], labels, row["image_order"]):
            others[row["input"].get("name") or row["input"]["set"] if row["kind"] == "vicuna_v1" else row["kind"]] += 1
    return seen, others


def test_released_code_is_v1_to_the_token(shared: Path, tokenizer: TextTokenizer) -> None:
    seen, others = differing(shared, "released_code", tokenizer)
    assert seen == {"mmc4": 113, "vicuna_v1": 197, "plain": 30, "vflan": 75}
    assert not others


def test_paper_trains_answers_that_v1_masks(shared: Path, tokenizer: TextTokenizer) -> None:
    """v1.0 masks a conversation whose counts of tokens do not add up; the paper does not. All ids are equal."""
    _, others = differing(shared, "paper", tokenizer)
    assert others == dict.fromkeys(
        ["question has role", "eos in answer", "eos in question", "unk in answer", "empty question", "unanswered last"],
        1,
    )


def test_improved_differs_where_the_page_says(shared: Path, tokenizer: TextTokenizer) -> None:
    """docs/conversations.md, the table of what differs on purpose."""
    _, others = differing(shared, "improved", tokenizer)
    masked = {
        "question has role": 1,
        "eos in answer": 1,
        "eos in question": 1,
        "empty question": 1,
        "unanswered last": 1,
    }
    moved = {"llava_end": 24, "mllm": 6, "mid mark": 1, "two marks one turn": 1, "mark in answer": 1, "spaces kept?": 1}
    assert sum(moved.values()) == 34
    spelled = {"unk in answer": 1, "bos in text": 1, "plain": 1}
    longer = {"long q image": 1}
    documents = {"mmc4": others["mmc4"]}
    assert others == masked | moved | spelled | longer | documents | {"empty answer": 1}


def test_tokenizer_model_alone(shared: Path, tokenizer: TextTokenizer, tmp_path: Path) -> None:
    """The same ids from tokenizer.model alone, and SentencePiece's own."""
    spm = pytest.importorskip("sentencepiece")
    from tests.realdata import mistral

    file = mistral.model_file()
    assert file is not None, mistral.NEEDS
    shutil.copyfile(file, tmp_path / "tokenizer.model")
    alone = load_tokenizer(str(tmp_path))
    assert (alone.bos, alone.eos, alone.unk_id) == ("<s>", "</s>", 0)
    texts = [turn["value"] for row in rows(shared) for turn in row["input"].get("conversations", ())]
    texts += [text for row in rows(shared) for text in row["input"].get("texts", ())]
    texts += ["  two", "two  ", "   ", " USER", "\n\n x", "漢字 🛶", "=" * 13, "▁▁ a"]
    texts = [text for text in dict.fromkeys(texts) if text and not tokenizer.special_spans(text)]
    assert len(texts) > 400
    reference = spm.SentencePieceProcessor(str(file))
    assert alone.encode_ids(texts) == tokenizer.encode_ids(texts) == [reference.encode(text) for text in texts]
