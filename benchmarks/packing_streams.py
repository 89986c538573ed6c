"""Streams of real sample lengths for the packing benchmark: documents, pairs, conversations, and a blend of them.

Lengths are counted by a real tokenizer on real text, then replicated: each replica's text is longer or shorter
by a seeded factor within JITTER. Images add `tokens_per_image` each.
"""

from __future__ import annotations

import csv
import importlib.resources
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

REPO = Path(__file__).resolve().parents[1]
CAPACITY = 4096
MAX_IMAGES_PER_DOCUMENT = 6
JITTER = 0.05
SEED = 17
VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
VISUAL_SHARE = 0.5  # of conversations: LLaVA rows; the rest T0 and ShareGPT by their rows
CONVERSATION_SHARE = 0.25  # of the blended samples; documents and pairs share the rest 1:1 by images


@dataclass(frozen=True)
class Lengths:
    """What a sample costs: `tokens` int32[n] with images expanded, `images` int32[n]."""

    tokens: NDArray[np.int32]
    images: NDArray[np.int32]


@dataclass(frozen=True)
class Corpora:
    """Token counts of the real texts.

    `documents`: sentences' running sums of tokens, and images, of each document; `pairs` int64[p]: caption tokens;
    `visual`, `text`: (tokens, images) int64[c, 2] of conversations with and without images.
    """

    documents: list[tuple[NDArray[np.int64], int]]
    pairs: NDArray[np.int64]
    visual: NDArray[np.int64]
    text: NDArray[np.int64]


def read_corpora(shared: Path) -> Corpora:
    """Tokenise everything under `shared`/realdata and gimp-help-en; exits with one sentence where something is absent."""
    count = tokenizer()
    sys.path[:0] = [str(REPO)]
    from tests.realdata import gimp_help

    if not gimp_help.HELP.is_dir():
        sys.exit(f"benchmarks/packing.py: {gimp_help.HELP} is absent: install Debian's package gimp-help-en")
    if not (shared / "realdata").is_dir():
        sys.exit(f"benchmarks/packing.py: no folder realdata in {shared}: name it by --shared or VILA_DATA_SHARED")
    documents = []
    for found in gimp_help.documents(""):
        images = min(len(found["image_info"]), MAX_IMAGES_PER_DOCUMENT)
        documents.append((np.cumsum(count(found["text_list"])), images))
    real = shared / "realdata"
    with (real / "flickr8k" / "captions_en.csv").open(newline="") as file:
        pairs = count([row["caption"].strip() for row in csv.DictReader(file)])
    visual = llava_rows(real / "llava")
    text = text_rows(real / "text")
    return Corpora(
        documents,
        pairs,
        np.stack([count([prompt for prompt, _ in visual]), [images for _, images in visual]], axis=1),
        np.stack([count(text), np.zeros(len(text), np.int64)], axis=1),
    )


def tokenizer():
    """Counts of tokens of a list of texts, without BOS and EOS, by Mistral's 32,000 SentencePiece pieces."""
    try:
        import sentencepiece

        data = importlib.resources.files("mistral_common") / "data" / "tokenizer.model.v1"
    except ModuleNotFoundError as error:
        sys.exit(f"benchmarks/packing.py: {error.name} is absent: pip install --no-deps mistral-common sentencepiece")
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(data))
    return lambda texts: np.array([len(ids) for ids in pieces.encode(texts)], dtype=np.int64)


def vicuna(turns: list[str]) -> str:
    """Human and gpt turns in the vicuna v1 form; end tokens stand as `</s>`."""
    text = VICUNA_SYSTEM
    for position, turn in enumerate(turns):
        text += f" USER: {turn}" if position % 2 == 0 else f" ASSISTANT: {turn}</s>"
    return text


def llava_rows(folder: Path) -> list[tuple[str, int]]:
    with (folder / "coco2014_val_gpt4_qa_30x3.jsonl").open() as file:
        rows = [json.loads(line) for line in file]
    found = [(vicuna([row["instruction"], row["output"]]), 1) for row in rows]
    for chat in json.loads((folder / "multi_image_chats.json").read_text()):
        turns = [message["content"].replace("<image>", "\n") for message in chat["messages"]]
        found.append((vicuna(turns), len(chat["images"])))
    return found


def text_rows(folder: Path) -> list[str]:
    with (folder / "t0.jsonl").open() as file:
        rows = [json.loads(line) for line in file]
    chats = json.loads((folder / "sharegpt.json").read_text())
    found = [vicuna([row["prompt"], row["completion"]]) for row in rows]
    return found + [vicuna([turn["value"] for turn in chat["conversations"]]) for chat in chats]


def make_streams(corpora: Corpora, samples: int, tokens_per_image: int, seed: int) -> dict[str, Lengths]:
    """Each stream at `samples` samples; one seed for both, so that 576 and 144 tokens an image see the same texts."""
    rng = np.random.default_rng(seed)
    documents = document_lengths(corpora, samples, tokens_per_image, rng)
    pairs = short_lengths(
        np.stack([corpora.pairs, np.ones_like(corpora.pairs)], axis=1), samples, tokens_per_image, rng
    )
    n_visual = round(samples * VISUAL_SHARE)
    visual = short_lengths(corpora.visual, n_visual, tokens_per_image, rng)
    text = short_lengths(corpora.text, samples - n_visual, tokens_per_image, rng)
    conversations = mixed([visual, text], rng)
    n_chat = round(samples * CONVERSATION_SHARE)
    images = float(documents.images.mean())
    n_documents = round((samples - n_chat) / (1 + images))
    parts = [(documents, n_documents), (pairs, samples - n_chat - n_documents), (conversations, n_chat)]
    blended = mixed([Lengths(part.tokens[:n], part.images[:n]) for part, n in parts], rng)
    return {"documents": documents, "pairs": pairs, "conversations": conversations, "blended": blended}


def document_lengths(corpora: Corpora, n: int, tokens_per_image: int, rng: np.random.Generator) -> Lengths:
    """Documents cut to CAPACITY by keeping whole sentences from the front; BOS and EOS count, all images stay."""
    which = rng.integers(len(corpora.documents), size=n)
    factor = rng.uniform(1 - JITTER, 1 + JITTER, size=n)
    tokens, images = np.zeros(n, np.int64), np.zeros(n, np.int64)
    for index, (sums, count) in enumerate(corpora.documents):
        here = np.flatnonzero(which == index)
        room = CAPACITY - 2 - count * tokens_per_image
        scaled = np.floor(sums[None, :] * factor[here, None]).astype(np.int64)
        kept = np.where(scaled <= room, scaled, 0).max(axis=1, initial=0)
        tokens[here], images[here] = 2 + count * tokens_per_image + kept, count
    return Lengths(tokens.astype(np.int32), images.astype(np.int32))


def short_lengths(rows: NDArray[np.int64], n: int, tokens_per_image: int, rng: np.random.Generator) -> Lengths:
    """(text tokens, images) rows, with BOS and EOS, cut at CAPACITY."""
    chosen = rows[rng.integers(len(rows), size=n)]
    text = np.maximum(np.rint(chosen[:, 0] * rng.uniform(1 - JITTER, 1 + JITTER, size=n)), 1).astype(np.int64)
    tokens = np.minimum(text + 2 + chosen[:, 1] * tokens_per_image, CAPACITY)
    return Lengths(tokens.astype(np.int32), chosen[:, 1].astype(np.int32))


def mixed(parts: list[Lengths], rng: np.random.Generator) -> Lengths:
    tokens, images = np.concatenate([part.tokens for part in parts]), np.concatenate([part.images for part in parts])
    order = rng.permutation(len(tokens))
    return Lengths(tokens[order], images[order])
