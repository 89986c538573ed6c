"""A sample as chunks of text with images between them: what is left to do is to tokenise each chunk.

VILA's rules for a document (docs/sources.md): the first images as published, each before its
sentence, texts joined by a space, spaces beside an image removed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from vila_data.encode.config import PackConfig
from vila_data.encode.templates import IMAGE, Piece, Talk, pieces_of
from vila_data.encode.tokenizer import TextTokenizer


class Chunk(NamedTuple):
    """Text between two images, tokenised alone.

    spans:  (start, stop) characters whose tokens are trained, in order; None: all of them.
    pieces: what it was joined from, of which only those that say so become special tokens; (): nothing does;
            None: any spelling of a special token does, as published.
    """

    text: str
    spans: tuple[tuple[int, int], ...] | None
    pieces: tuple[Piece, ...] | None


class Draft(NamedTuple):
    """A sample before tokenisation: chunk 0, image 0, chunk 1, … chunk n, for n images.

    images:   numbers of the sample's images, in reading order.
    bos, eos: whether the first token and the last are put around it, and trained.
    left_out: images of the sample that have no place in it; has_text: whether there is something to train.
    """

    chunks: tuple[Chunk, ...]
    images: tuple[int, ...]
    bos: bool
    bos_trained: bool
    eos: bool
    left_out: int
    has_text: bool


@dataclass(frozen=True, slots=True)
class Document:
    """A document or pair in reading order.

    entries: a sentence (str), or the number of an image (int).
    order:   of each image number its place in the published metadata; similarity: None if not scored.
    is_pair: one image and its caption, which VILA keeps as it is, spaces at its front too.
    """

    entries: tuple[str | int, ...]
    order: tuple[int, ...]
    similarity: tuple[float | None, ...]
    is_pair: bool = False

    def first(self, count: int) -> Document:
        """The document that ends after `count` entries."""
        return replace(self, entries=self.entries[:count])


def document_of(sample: dict[str, Any]) -> Document:
    """A sample's JSON, of view `interleaved` or `pairs`, as a document."""
    if "caption" in sample:
        return Document((0, sample["caption"]), (0,), (sample["similarity"],), is_pair=True)
    entries: list[str | int] = []
    images = 0
    for text in sample["texts"]:
        if text is None:
            entries.append(images)
            images += 1
        else:
            entries.append(text)
    infos = sample["image_info"]
    order = tuple(info["image_index"] for info in infos)
    return Document(tuple(entries), order, tuple(info["similarity"] for info in infos))


def draft_document(document: Document, config: PackConfig, tokenizer: TextTokenizer) -> Draft:
    """A document as VILA writes it, under the recipe's semantics."""
    spoken = [at for at, entry in enumerate(document.entries) if isinstance(entry, str) and entry.strip()]
    faithful = config.faithful
    if document.is_pair and (faithful or spoken):
        texts = _pair_texts(document, faithful)
        kept: tuple[int, ...] = (0,)
    else:
        chosen = _chosen_images(document, len(document.entries) if faithful else max(spoken, default=0), config)
        images = [entry for entry in document.entries if isinstance(entry, int) and entry in chosen]
        texts = _document_text(document, chosen, config.images_first).split(IMAGE)
        while not faithful and len(texts) > 1 and not texts[-1]:  # an image with nothing after it teaches nothing
            texts.pop()
        kept = tuple(images[: len(texts) - 1])
    pieces = None if faithful else ()
    chunks = tuple([Chunk(text, None, pieces) for text in texts])
    left_out = len(document.order) - len(kept)
    return Draft(chunks, kept, tokenizer.bos_id is not None, faithful, True, left_out, bool(spoken))


def _pair_texts(document: Document, faithful: bool) -> list[str]:
    caption = document.entries[1]
    assert isinstance(caption, str)
    if IMAGE in caption:
        caption = caption.replace(IMAGE, "<IMAGE>")
    return ["", caption if faithful else caption.removeprefix(" ")]


def _chosen_images(document: Document, end: int, config: PackConfig) -> set[int]:
    """Images of a document's first `end` entries that have a place in its sequence."""
    numbers = [entry for entry in document.entries[:end] if isinstance(entry, int)]
    limit = config.document_images()
    if limit is None or len(numbers) <= limit:
        return set(numbers)
    if config.faithful:
        return set(sorted(numbers, key=lambda number: document.order[number])[:limit])

    def worth(number: int) -> float:
        similarity = document.similarity[number]
        return -2.0 if similarity is None else similarity

    return set(sorted(numbers, key=lambda number: (-worth(number), number))[:limit])


def _document_text(document: Document, chosen: set[int], images_first: bool) -> str:
    sentences: list[str] = []
    before = ""
    for entry in document.entries:
        if isinstance(entry, int):
            before += IMAGE if entry in chosen else ""
        else:
            sentences.append(before + entry.replace(IMAGE, "<IMAGE>"))
            before = ""
    if images_first:
        sentences = [sentence.replace(IMAGE, "") for sentence in sentences]
        before, sentences[:1] = "", [IMAGE * len(chosen) + "".join(sentences[:1])]
    text = " ".join(sentences) + before
    return text.replace(f"{IMAGE} ", IMAGE).replace(f" {IMAGE}", IMAGE)


def draft_conversation(talk: Talk, config: PackConfig, tokenizer: TextTokenizer) -> Draft:
    """A conversation as its template writes it; images stand where their marks stand."""
    pieces = pieces_of(config.template, talk, tokenizer)
    groups = list(_split_at_images(pieces))
    chunks = tuple(_joined(group, config) for group in groups)
    bos = config.template != "chat" and tokenizer.bos_id is not None
    has_text = any(chunk.spans is None or chunk.spans for chunk in chunks)
    return Draft(chunks, tuple(range(len(groups) - 1)), bos, False, False, 0, has_text)


def _split_at_images(pieces: Sequence[Piece]) -> Iterator[list[Piece]]:
    group: list[Piece] = []
    for piece in pieces:
        first, *rest = piece.text.split(IMAGE)
        group.append(Piece(first, piece.trained, piece.special))
        for text in rest:
            yield group
            group = [Piece(text, piece.trained, piece.special)]
    yield group


def _joined(pieces: list[Piece], config: PackConfig) -> Chunk:
    text = "".join([piece.text for piece in pieces])
    spans = trained_spans(pieces)
    return Chunk(text, None if spans == ((0, len(text)),) else spans, None if config.faithful else tuple(pieces))


def trained_spans(pieces: Sequence[Piece]) -> tuple[tuple[int, int], ...]:
    """(start, stop) characters of the trained pieces in the text that they are joined to; neighbours are one."""
    spans: list[tuple[int, int]] = []
    at = 0
    for piece in pieces:
        stop = at + len(piece.text)
        if piece.trained and piece.text:
            if spans and spans[-1][1] == at:
                spans[-1] = (spans[-1][0], stop)
            else:
                spans.append((at, stop))
        at = stop
    return tuple(spans)
