"""A sample to chunks of text with images between them, and those to ids and labels.

Each chunk is tokenized alone, and answers are found by their characters. VILA's rules for a document (docs/sources.md):
the first images as published, each before its sentence, texts joined by a space, spaces next to an image removed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Final, NamedTuple

from vila_data.core.samples import SampleContent
from vila_data.core.tables import IGNORED as IGNORED
from vila_data.core.tables import IMAGE_ID as IMAGE_ID
from vila_data.encode.chat import RenderedChat, chat_template
from vila_data.encode.chat_answers import ANSWER_NOT_FOUND, IMAGE_NOT_PLACED, TEMPLATE_REFUSED
from vila_data.encode.config import PackConfig
from vila_data.encode.templates import IMAGE, Conversation, Piece, Sides, pieces_of
from vila_data.encode.tokenizer import EncodedText, TextTokenizer


class Chunk(NamedTuple):
    """Text between two images, tokenized alone; or, with placeholders that are tokens, the text around images too.

    spans:  (start, stop) characters whose tokens are trained, in order; None: all of them.
    pieces: what it was joined from, of which only those that say so become special tokens; (): nothing does;
            None: any spelling of a special token does.
    images: (start, stop) characters whose one token stands for an image.
    """

    text: str
    spans: tuple[tuple[int, int], ...] | None
    pieces: tuple[Piece, ...] | None
    images: tuple[tuple[int, int], ...] = ()


class ChunkedSample(NamedTuple):
    """A sample before tokenization: chunk 0, image 0, chunk 1, … chunk n, for n images; or one chunk with its images.

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


class Document(NamedTuple):
    """A document or pair in reading order.

    entries: a sentence (str), or the number of an image (int).
    order:   of each image number its place in the published metadata; similarity: None if not scored.
    is_pair: one image and its caption, which VILA keeps as it is, spaces at its front too.
    sides:   (width, height) of each image number, pixels.
    """

    entries: tuple[str | int, ...]
    order: tuple[int, ...]
    similarity: tuple[float | None, ...]
    is_pair: bool = False
    sides: Sides = ()

    @staticmethod
    def of(sample: SampleContent, sides: Sides) -> Document:
        """The document or pair of a sample."""
        order = tuple([image.image_index for image in sample.images])
        similarity = tuple([image.similarity for image in sample.images])
        return Document(sample.entries, order, similarity, sample.view == "pairs", sides)

    def first(self, count: int) -> Document:
        """The document that ends after `count` entries."""
        return self._replace(entries=self.entries[:count])


def chunk_document(document: Document, config: PackConfig, tokenizer: TextTokenizer) -> ChunkedSample:
    """A document as VILA writes it, under the recipe's semantics."""
    faithful = config.faithful
    if document.is_pair:
        return _chunk_pair(document, faithful, tokenizer)
    spoken = [at for at, entry in enumerate(document.entries) if isinstance(entry, str) and entry.strip()]
    chosen = _chosen_images(document, len(document.entries) if faithful else max(spoken, default=0), config)
    images = [entry for entry in document.entries if isinstance(entry, int) and entry in chosen]
    texts = _document_text(document, chosen, config.images_first).split(IMAGE)
    while not faithful and len(texts) > 1 and not texts[-1]:  # an image with nothing after it teaches nothing
        texts.pop()
    kept = tuple(images[: len(texts) - 1])
    pieces = None if faithful else ()
    chunks = tuple([Chunk(text, None, pieces) for text in texts])
    left_out = len(document.order) - len(kept)
    return ChunkedSample(chunks, kept, tokenizer.bos_id is not None, faithful, True, left_out, bool(spoken))


_BEFORE_CAPTION: Final = {faithful: Chunk("", None, None if faithful else ()) for faithful in (False, True)}


def _chunk_pair(document: Document, faithful: bool, tokenizer: TextTokenizer) -> ChunkedSample:
    """An image and its caption; a caption of nothing but spaces is kept by the fidelity modes alone."""
    caption = document.entries[1]
    assert isinstance(caption, str)
    has_text = not caption.isspace() and caption != ""
    bos = tokenizer.bos_id is not None
    if not (faithful or has_text):
        return ChunkedSample((Chunk("", None, ()),), (), bos, False, True, len(document.order), False)
    if IMAGE in caption:
        caption = caption.replace(IMAGE, "<IMAGE>")
    chunk = Chunk(caption, None, None) if faithful else Chunk(caption.removeprefix(" "), None, ())
    return ChunkedSample(
        (_BEFORE_CAPTION[faithful], chunk), (0,), bos, faithful, True, len(document.order) - 1, has_text
    )


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


def chunk_conversation(conversation: Conversation, config: PackConfig, tokenizer: TextTokenizer) -> ChunkedSample:
    """A conversation as its template writes it; images are where their placeholders are.

    Raises:
        Unwritable: the tokenizer's own template cannot write it.
    """
    if config.template == "chat":
        template = chat_template(tokenizer, config.date, bool(conversation.tools))
        return _chunk_chat(template.write(conversation), template.placeholder in tokenizer.added)
    pieces = pieces_of(config.template, conversation, tokenizer)
    groups = list(_split_at_images(pieces)) if conversation.images else [pieces]
    chunks = tuple(_joined(group, config) for group in groups)
    return _conversation(chunks, tuple(range(len(groups) - 1)), tokenizer.bos_id is not None, conversation.images)


def _chunk_chat(written: RenderedChat, is_token: bool) -> ChunkedSample:
    """Where the placeholder is a token, the text is tokenized whole; else each chunk between images alone."""
    images = tuple(range(len(written.images)))
    if is_token or not images:
        spans = tuple(part for span in written.trained for part in _around(span, written.images))
        return _conversation((Chunk(written.text, spans, written.pieces, written.images),), images, False, len(images))
    edges = [0, *(at for place in written.images for at in place), len(written.text)]
    pieces = written.pieces
    chunks = tuple(
        Chunk(
            written.text[first:last],
            _cut(written.trained, first, last),
            None if pieces is None else _sliced(pieces, first, last),
        )
        for first, last in zip(edges[::2], edges[1::2], strict=True)
    )
    return _conversation(chunks, images, False, len(images))


def _conversation(chunks: tuple[Chunk, ...], images: tuple[int, ...], bos: bool, count: int) -> ChunkedSample:
    has_text = any(chunk.spans is None or chunk.spans for chunk in chunks)
    return ChunkedSample(chunks, images, bos, False, False, count - len(images), has_text)


def _around(span: tuple[int, int], holes: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The parts of a span between the holes in it."""
    start, stop = span
    for first, last in holes:
        if start < last and first < stop:
            if start < first:
                yield start, first
            start = last
    if start < stop:
        yield start, stop


def _cut(spans: Sequence[tuple[int, int]], first: int, last: int) -> tuple[tuple[int, int], ...]:
    cut = ((max(start, first) - first, min(stop, last) - first) for start, stop in spans)
    return tuple((start, stop) for start, stop in cut if start < stop)


def _sliced(pieces: Sequence[Piece], first: int, last: int) -> tuple[Piece, ...]:
    found = []
    at = 0
    for piece in pieces:
        start, stop = max(first - at, 0), min(last - at, len(piece.text))
        if start < stop:
            found.append(piece._replace(text=piece.text[start:stop]))
        at += len(piece.text)
    return tuple(found)


def _split_at_images(pieces: Sequence[Piece]) -> Iterator[list[Piece]]:
    group: list[Piece] = []
    for piece in pieces:
        if IMAGE not in piece.text:
            group.append(piece)
            continue
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
    """(start, stop) characters of the trained pieces in the text that they are joined to; neighbors are one."""
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


OK: Final = "ok"
NO_TEXT: Final = "no_text"
TOO_LONG: Final = "too_long"
TOO_MANY_IMAGES: Final = "too_many_images"
FATES: Final = (OK, NO_TEXT, TOO_LONG, TOO_MANY_IMAGES, TEMPLATE_REFUSED, ANSWER_NOT_FOUND, IMAGE_NOT_PLACED)
"""A sequence; or none: nothing in it to train; nothing trainable fits; a pack takes fewer images; the chat template
refuses the conversation, or does not write one of its answers or images."""


class TokenSequence(NamedTuple):
    """One sample as tokens.

    ids:      with IMAGE_ID for an image; trained: (start, stop) spans of `ids` that are labels, in order.
    images:   the sample's image numbers, one an IMAGE_ID.
    tokens:   length with images expanded; in the fidelity modes the last image may be cut short by it.
    left_out: images of the sample that are not in it; cut: tokens that the limits took away.
    detail:   why there is none, in the chat template's own words; empty where the fate says it all.
    """

    ids: list[int]
    trained: list[tuple[int, int]]
    images: tuple[int, ...]
    tokens: int
    left_out: int = 0
    cut: int = 0
    fate: str = OK
    detail: str = ""


def nothing(fate: str, left_out: int, cut: int, detail: str = "") -> TokenSequence:
    """A sample that gives no sequence."""
    return TokenSequence([], [], (), 0, left_out, cut, fate, detail)


Spans = list[tuple[int, int]]
"""(start, stop) spans of a list of ids that are trained, in order."""


class TokenizedSample(NamedTuple):
    """A chunked sample, and the ids and trained spans of each of its chunks."""

    chunked: ChunkedSample
    chunks: list[tuple[list[int], Spans]]


def tokenize(chunked_samples: Sequence[ChunkedSample], tokenizer: TextTokenizer) -> Iterator[TokenizedSample]:
    """Tokenize the chunks of many chunked_samples in one batch."""
    done = tokenized_chunks([chunk for chunked in chunked_samples for chunk in chunked.chunks], tokenizer)
    at = 0
    for chunked in chunked_samples:
        at += len(chunked.chunks)
        yield TokenizedSample(chunked, done[at - len(chunked.chunks) : at])


def tokenized_chunks(chunks: Sequence[Chunk], tokenizer: TextTokenizer) -> list[tuple[list[int], Spans]]:
    """Ids and trained spans of each chunk; where all of a chunk is trained or nothing, no offsets are asked for."""
    uniform = iter(tokenizer.encode_ids([text for text, spans, _, images in chunks if text and not (spans or images)]))
    mixed = iter(tokenizer.encode([text for text, spans, _, images in chunks if text and (spans or images)]))
    found: list[tuple[list[int], Spans]] = []
    for text, spans, pieces, images in chunks:
        if not text:
            found.append(([], []))
            continue
        encoded = next(mixed) if spans or images else None
        ids: list[int] = next(uniform) if encoded is None else encoded.ids
        if pieces is not None and tokenizer.spells_special(text, ids, sum([piece.special for piece in pieces])):
            found.append(_piecewise(pieces or (Piece(text, trained=True),), tokenizer))
        elif encoded is None:
            found.append((ids, [(0, len(ids))] if spans is None and ids else []))
        else:
            for start, stop in images:
                place = encoded.tokens_of(start, stop)
                assert place is not None and place[1] == place[0] + 1, "a placeholder is one token"
                ids[place[0]] = IMAGE_ID
            found.append((ids, _spans(encoded, ((0, len(text)),) if spans is None else spans)))
    return found


def _spans(encoded: EncodedText, spans: Sequence[tuple[int, int]]) -> Spans:
    return [place for span in spans if (place := encoded.tokens_of(*span))]


def _piecewise(pieces: Sequence[Piece], tokenizer: TextTokenizer) -> tuple[list[int], Spans]:
    """A chunk in which text spells special tokens: only those of the template become tokens."""
    ids: list[int] = []
    trained: Spans = []
    for (special, image), group in groupby(
        _stripped(pieces, tokenizer), key=lambda piece: (piece.special, piece.image)
    ):
        together = [piece for piece in group if piece.text]
        text = "".join(piece.text for piece in together)
        if image:
            ids += [IMAGE_ID] * len(together)
        if image or not text:
            continue
        encoded = tokenizer.encode([text])[0] if special else tokenizer.encode_as_text(text, begins=not ids)
        places = _spans(encoded, trained_spans(together))
        trained += [(len(ids) + first, len(ids) + last) for first, last in places]
        ids += encoded.ids
    return ids, trained


def _stripped(pieces: Sequence[Piece], tokenizer: TextTokenizer) -> list[Piece]:
    """The pieces without the white space that a special token next to them takes."""
    found = list(pieces)
    for at, piece in enumerate(found):
        if not (piece.special or piece.image):
            continue
        before, after = tokenizer.strips.get(piece.text, (False, False))
        for step, wanted in ((-1, before), (1, after)):
            next_to = at + step
            while wanted and 0 <= next_to < len(found) and not (found[next_to].special or found[next_to].image):
                text = found[next_to].text
                found[next_to] = found[next_to]._replace(text=text.rstrip() if step < 0 else text.lstrip())
                if found[next_to].text:
                    break
                next_to += step
    return found
