"""Samples of every view, generated (hypothesis) and as the encoder takes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

from vila_data.encode.config import PackConfig
from vila_data.encode.conversation import Conversation
from vila_data.encode.draft import document_of
from vila_data.encode.fit import Sample, encode_samples
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
    """A sample's JSON; infos in reading order."""
    entries: list[str | None] = []
    names: list[str | None] = []
    for k, sentence in enumerate(sentences):
        for number, info in enumerate(infos):
            if info["matched_text_index"] == k:
                entries.append(None)
                names.append(f"key.{number}.jpg")
        entries.append(sentence)
        names.append(None)
    return {"sample_id": "key", "texts": entries, "images": names, "image_info": list(infos), "schema": 1}


def pairs(caption: st.SearchStrategy[str] = MARKED_TEXT) -> st.SearchStrategy[dict[str, Any]]:
    """View `pairs`."""
    return caption.map(lambda text: {"sample_id": "key", "caption": text, "similarity": None, "image_index": 0})


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
    marks = sum(turn["value"].count("<image>") for turn in turns)
    images = [f"key.{number}.jpg" for number in range(marks)]
    return {"sample_id": "key", "conversations": list(turns), "system": system, "images": images, "schema": 1}


def sample_of(value: dict[str, Any]) -> Sample:
    """What the encoder makes sequences of."""
    return Conversation.of(value) if "conversations" in value else document_of(value)


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
