"""A sample as chunks of text with images between them: what is left to do is to tokenise each chunk.

VILA's rules for a document (docs/sources.md): the first images as published, each before its
sentence, texts joined by a space, spaces beside an image removed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vila_data.encode.config import PackConfig
from vila_data.encode.templates import IMAGE, Piece, Talk, pieces_of
from vila_data.encode.tokenizer import TextTokenizer


@dataclass(frozen=True, slots=True)
class Chunk:
    """Text between two images, tokenised alone.

    spans:  (start, stop) characters whose tokens are trained, in order.
    pieces: what it was joined from, where only pieces that say so may become special tokens; else empty.
    """

    text: str
    spans: tuple[tuple[int, int], ...]
    pieces: tuple[Piece, ...] = ()

    @property
    def is_uniform(self) -> bool:
        """Whether all of it is trained, or nothing."""
        return self.spans in ((), ((0, len(self.text)),))


@dataclass(frozen=True, slots=True)
class Draft:
    """A sample before tokenisation: chunk 0, image 0, chunk 1, … chunk n, for n images.

    images:   numbers of the sample's images, in reading order.
    bos, eos: whether the first token and the last are put around it, and trained.
    left_out: images of the sample that have no place in it.
    """

    chunks: tuple[Chunk, ...]
    images: tuple[int, ...]
    bos: bool
    bos_trained: bool
    eos: bool
    left_out: int


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

    def has_text(self) -> bool:
        """Whether any sentence says something."""
        return any(isinstance(entry, str) and entry.strip() for entry in self.entries)

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
    chosen = _chosen_images(document, config)
    images = [entry for entry in document.entries if isinstance(entry, int) and entry in chosen]
    text = _document_text(document, chosen, config.images_first)
    if not (document.is_pair and config.faithful):
        text = text.replace(f"{IMAGE} ", IMAGE).replace(f" {IMAGE}", IMAGE)
    texts = text.split(IMAGE)
    while not config.faithful and len(texts) > 1 and not texts[-1]:  # an image with nothing after it teaches nothing
        texts.pop()
    chunks = tuple(_document_chunk(chunk, config) for chunk in texts)
    kept = tuple(images[: len(chunks) - 1])
    left_out = sum(isinstance(entry, int) for entry in document.entries) - len(kept)
    return Draft(chunks, kept, tokenizer.bos_id is not None, config.faithful, True, left_out)


def _chosen_images(document: Document, config: PackConfig) -> set[int]:
    spoken = [at for at, entry in enumerate(document.entries) if isinstance(entry, str) and entry.strip()]
    end = len(document.entries) if config.faithful else max(spoken, default=0)
    numbers = [entry for entry in document.entries[:end] if isinstance(entry, int)]
    limit = config.max_images_per_document if config.faithful else config.document_images()
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
    return " ".join(sentences) + before


def _document_chunk(text: str, config: PackConfig) -> Chunk:
    spans = ((0, len(text)),) if text else ()
    return Chunk(text, spans, () if config.faithful else (Piece(text, trained=True),))


def draft_conversation(talk: Talk, config: PackConfig, tokenizer: TextTokenizer) -> Draft:
    """A conversation as its template writes it; images stand where their marks stand."""
    pieces = pieces_of(config.template, talk, tokenizer)
    groups = list(_split_at_images(pieces))
    chunks = tuple(_joined(group, config) for group in groups)
    bos = config.template != "chat" and tokenizer.bos_id is not None
    return Draft(chunks, tuple(range(len(groups) - 1)), bos, False, False, 0)


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
    text = "".join(piece.text for piece in pieces)
    return Chunk(text, trained_spans(pieces), () if config.faithful else tuple(pieces))


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
