"""Drafts to ids and labels: each chunk tokenized alone, answers found by their characters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Final, NamedTuple

from vila_data.core.tables import IGNORED as IGNORED
from vila_data.core.tables import IMAGE_ID as IMAGE_ID
from vila_data.encode.chat_answers import ANSWER_NOT_FOUND, IMAGE_NOT_PLACED, TEMPLATE_REFUSED
from vila_data.encode.draft import Chunk, Draft, trained_spans
from vila_data.encode.templates import Piece
from vila_data.encode.tokenizer import Encoded, TextTokenizer

OK: Final = "ok"
NO_TEXT: Final = "no_text"
TOO_LONG: Final = "too_long"
TOO_MANY_IMAGES: Final = "too_many_images"
FATES: Final = (OK, NO_TEXT, TOO_LONG, TOO_MANY_IMAGES, TEMPLATE_REFUSED, ANSWER_NOT_FOUND, IMAGE_NOT_PLACED)
"""A sequence; or none: nothing in it to train; nothing trainable fits; a pack takes fewer images; the chat template
refuses the conversation, or does not write one of its answers or images."""


class TokenSequence(NamedTuple):
    """One sample as tokens.

    ids:      with IMAGE_ID for an image; trained: (start, stop) places in `ids` that are labels, in order.
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


Places = list[tuple[int, int]]
"""(start, stop) places in a list of ids that are trained, in order."""


class Tokenized(NamedTuple):
    """A draft and the ids and trained places of each of its chunks."""

    draft: Draft
    chunks: list[tuple[list[int], Places]]


def tokenize(drafts: Sequence[Draft], tokenizer: TextTokenizer) -> Iterator[Tokenized]:
    """Tokenize the chunks of many drafts in one batch."""
    done = tokenized_chunks([chunk for draft in drafts for chunk in draft.chunks], tokenizer)
    at = 0
    for draft in drafts:
        at += len(draft.chunks)
        yield Tokenized(draft, done[at - len(draft.chunks) : at])


def tokenized_chunks(chunks: Sequence[Chunk], tokenizer: TextTokenizer) -> list[tuple[list[int], Places]]:
    """Ids and trained places of each chunk; where all of a chunk is trained or nothing, no offsets are asked for."""
    uniform = iter(tokenizer.encode_ids([text for text, spans, _, images in chunks if text and not (spans or images)]))
    mixed = iter(tokenizer.encode([text for text, spans, _, images in chunks if text and (spans or images)]))
    found: list[tuple[list[int], Places]] = []
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
            found.append((ids, _places(encoded, ((0, len(text)),) if spans is None else spans)))
    return found


def _places(encoded: Encoded, spans: Sequence[tuple[int, int]]) -> Places:
    return [place for span in spans if (place := encoded.tokens_of(*span))]


def _piecewise(pieces: Sequence[Piece], tokenizer: TextTokenizer) -> tuple[list[int], Places]:
    """A chunk in which text spells special tokens: only those of the template become tokens."""
    ids: list[int] = []
    trained: Places = []
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
        places = _places(encoded, trained_spans(together))
        trained += [(len(ids) + first, len(ids) + last) for first, last in places]
        ids += encoded.ids
    return ids, trained


def _stripped(pieces: Sequence[Piece], tokenizer: TextTokenizer) -> list[Piece]:
    """The pieces without the white space that a special token beside them takes."""
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
