"""Samples of every view, generated (hypothesis) and as the encoder takes them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from vila_data.core.records import ImageRef, Record
from vila_data.core.samples import KeptImage, View, decode_sample, encode_sample
from vila_data.encode.config import PackConfig
from vila_data.encode.samples import Sample, as_encoded, encode_samples
from vila_data.encode.sequence import IGNORED, TokenSequence
from vila_data.encode.tokenizer import TextTokenizer

FRAGMENTS = (
    *("the", "red", "boat", "on", "open", "sea", "picture", "shows", "what", "is", "this", "answer", "question"),
    " ",
    "  ",
    "   the",
    "\n",
    "\t",
    "\n\n",
    "\u00a0",
    "\u200d",
    "🛶🏔️",
    "👨‍👩‍👧",
    "漢字",
    "한국어",
    "Zażółć",
    "e\u0301",
    "\x00",
    "▁",
    "</s>",
    "<s>",
    "<unk>",
    "<|endoftext|>",
    "[SEP]",
    "<IMAGE>",
    "<0x41>",
    "USER:",
    "ASSISTANT: ",
    "[INST]",
)
SPECIAL = ("</s>", "<s>", "<unk>", "<|endoftext|>", "[SEP]", "[PAD]", "<|im_end|>", "<|eot|>")
HARMLESS = tuple(fragment for fragment in FRAGMENTS if fragment not in SPECIAL)
MARKED = (*FRAGMENTS, "<image>", " <image> ", "<image>\n", "<imag", "e>")


def texts(fragments: Sequence[str], most: int = 8) -> st.SearchStrategy[str]:
    """Fragments put together with and without spaces, and arbitrary characters."""
    made = st.lists(st.sampled_from(fragments), max_size=most)
    joined = st.tuples(st.sampled_from(["", " "]), made).map(lambda pair: pair[0].join(pair[1]))
    letters = st.characters(exclude_categories=["Cs"])
    return st.one_of(joined, joined, st.text(letters, max_size=12).filter(lambda text: "<image>" not in text))


ANY_TEXT = texts(FRAGMENTS)
MARKED_TEXT = texts(MARKED)
HARMLESS_TEXT = texts(HARMLESS)


@st.composite
def documents(draw: st.DrawFn, sentence: st.SearchStrategy[str] = MARKED_TEXT) -> dict[str, Any]:
    """View `interleaved`: up to 9 images, published in another order than they are read."""
    sentences = draw(st.lists(sentence, min_size=1, max_size=7))
    places = sorted(draw(st.lists(st.integers(0, len(sentences) - 1), max_size=9)))
    published = draw(st.permutations(range(12)))[: len(places)]
    similarity = st.one_of(st.none(), st.sampled_from([0.1, 0.2, 0.3]))
    infos = [
        {"matched_text_index": place, "image_index": index, "similarity": draw(similarity)}
        for place, index in zip(places, published, strict=True)
    ]
    infos.sort(key=lambda info: (info["matched_text_index"], info["image_index"]))
    return document_json(sentences, infos)


def document_json(sentences: Sequence[str], infos: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A sample's JSON; infos (matched_text_index, image_index, similarity) in reading order."""
    return sample_json("interleaved", Record("row", "document", tuple(sentences), ()), infos)


def pair_json(caption: str) -> dict[str, Any]:
    """A sample's JSON."""
    info = {"matched_text_index": 0, "image_index": 0, "similarity": None}
    return sample_json("pairs", Record("row", "pair", (caption,), ()), [info])


def sample_json(view: View, record: Record, infos: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The JSON of a record's sample; the record gets as many images as infos name."""
    refs = tuple(ImageRef("") for _ in range(1 + max((info["image_index"] for info in infos), default=-1)))
    images = [
        KeptImage(info["image_index"], info["matched_text_index"], info["similarity"], "", 8, 8, b"") for info in infos
    ]
    members = encode_sample(view, "key", "corpus", replace(record, images=refs), images)
    value: dict[str, Any] = json.loads(members[0][1])
    return value


def pairs(caption: st.SearchStrategy[str] = MARKED_TEXT) -> st.SearchStrategy[dict[str, Any]]:
    """View `pairs`."""
    return caption.map(pair_json)


@st.composite
def conversations(draw: st.DrawFn, said: st.SearchStrategy[str] = ANY_TEXT, *, empty: bool = False) -> dict[str, Any]:
    """View `conversations`: marks before, in and behind the words of any turn. empty: turns may say nothing."""
    turns = []
    for _ in range(draw(st.integers(1, 4))):
        for speaker in ("human", "gpt"):
            parts = draw(st.lists(said, min_size=1, max_size=draw(st.sampled_from([1, 1, 2, 3]))))
            value = draw(st.sampled_from(["<image>", "<image>\n"])).join(parts)
            turns.append({"from": speaker, "value": value or ("" if empty else "the")})
    return conversation_json(turns, draw(st.sampled_from([None, "", "Be brief."])))


def conversation_json(turns: Sequence[dict[str, str]], system: str | None = None) -> dict[str, Any]:
    """A sample's JSON, one image a mark."""
    texts, roles = tuple(turn["value"] for turn in turns), tuple(turn["from"] for turn in turns)
    places = [place for place, text in enumerate(texts) for _ in range(text.count("<image>"))]
    infos = [{"matched_text_index": at, "image_index": i, "similarity": None} for i, at in enumerate(places)]
    record = Record("row", "conversation", texts, (), roles=roles, system=system)  # type: ignore[arg-type]
    return sample_json("conversations", record, infos)


def sample_of(value: dict[str, Any]) -> Sample:
    """What the encoder makes sequences of."""
    return as_encoded(decode_sample(json.dumps(value).encode(), "generated"))


def encoded(value: dict[str, Any], config: PackConfig, tokenizer: TextTokenizer) -> TokenSequence:
    """One sample's sequence."""
    (sequence,) = encode_samples([sample_of(value)], config, tokenizer)
    return sequence


def labels_of(sequence: TokenSequence) -> list[int]:
    """A label for each id."""
    labels = [IGNORED] * len(sequence.ids)
    for first, last in sequence.trained:
        labels[first:last] = sequence.ids[first:last]
    return labels
