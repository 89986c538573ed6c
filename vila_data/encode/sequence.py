"""Drafts to ids and labels: each chunk tokenised alone, answers found by their characters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any, Final, NamedTuple

from vila_data.core.schemas import IGNORED as IGNORED
from vila_data.core.schemas import IMAGE_ID as IMAGE_ID
from vila_data.encode.draft import Chunk, Draft, trained_spans
from vila_data.encode.templates import Piece
from vila_data.encode.tokenizer import TextTokenizer

OK: Final = "ok"
NO_TEXT: Final = "no_text"
TOO_LONG: Final = "too_long"
TOO_MANY_IMAGES: Final = "too_many_images"
FATES: Final = (OK, NO_TEXT, TOO_LONG, TOO_MANY_IMAGES)
"""A sequence; or none, since there is nothing in it to train, nothing trainable fits, or a pack takes fewer images."""


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """One sample as tokens.

    ids:      with IMAGE_ID for an image; trained: (start, stop) places in `ids` that are labels, in order.
    images:   the sample's image numbers, one an IMAGE_ID.
    tokens:   length with images expanded; in the fidelity modes the last image may be cut short by it.
    left_out: images of the sample that are not in it; cut: tokens that the limits took away.
    """

    ids: list[int]
    trained: list[tuple[int, int]]
    images: tuple[int, ...]
    tokens: int
    left_out: int = 0
    cut: int = 0
    fate: str = OK


def nothing(fate: str, left_out: int, cut: int) -> TokenSequence:
    """A sample that gives no sequence."""
    return TokenSequence([], [], (), 0, left_out, cut, fate)


Places = list[tuple[int, int]]
"""(start, stop) places in a list of ids that are trained, in order."""


class Tokenized(NamedTuple):
    """A draft and the ids and trained places of each of its chunks."""

    draft: Draft
    chunks: list[tuple[list[int], Places]]


def tokenize(drafts: Sequence[Draft], tokenizer: TextTokenizer) -> Iterator[Tokenized]:
    """Tokenise the chunks of many drafts in one batch."""
    done = tokenized_chunks([chunk for draft in drafts for chunk in draft.chunks], tokenizer)
    return (Tokenized(draft, list(islice(done, len(draft.chunks)))) for draft in drafts)


def tokenized_chunks(chunks: Sequence[Chunk], tokenizer: TextTokenizer) -> Iterator[tuple[list[int], Places]]:
    """Ids and trained places of each chunk; where all of a chunk is trained or nothing, no offsets are asked for."""
    uniform = iter(tokenizer.encode_ids([text for text, spans, _ in chunks if text and not spans]))
    mixed = iter(tokenizer.encode([text for text, spans, _ in chunks if spans]))
    for chunk in chunks:
        text, spans, pieces = chunk
        if not text:
            yield [], []
            continue
        encoding = next(mixed) if spans else None
        ids: list[int] = next(uniform) if encoding is None else encoding.ids
        if pieces is not None and tokenizer.spells_special(text, ids, sum([piece.special for piece in pieces])):
            yield _piecewise(pieces or (Piece(text, trained=True),), tokenizer)
        elif spans:
            yield ids, _places(encoding, spans, len(ids))
        else:
            yield ids, [(0, len(ids))] if spans is None and ids else []


def _places(encoding: Any, spans: Sequence[tuple[int, int]], count: int) -> Places:
    return [place for span in spans if (place := _place(encoding, *span, count))]


def _place(encoding: Any, start: int, stop: int, count: int) -> tuple[int, int] | None:
    """Tokens that hold the characters from `start` to `stop`; None where no token does."""
    first = next((token for at in range(start, stop) if (token := encoding.char_to_token(at)) is not None), None)
    if first is None:
        return None
    last = next(token for at in range(stop - 1, start - 1, -1) if (token := encoding.char_to_token(at)) is not None)
    while last + 1 < count and encoding.token_to_chars(last + 1)[0] < stop:  # one character may take several tokens
        last += 1
    return first, last + 1


def _piecewise(pieces: Sequence[Piece], tokenizer: TextTokenizer) -> tuple[list[int], Places]:
    """A chunk in which text spells special tokens: only those of the template become tokens."""
    ids: list[int] = []
    trained: Places = []
    for special, group in groupby(pieces, key=lambda piece: piece.special):
        together = [piece for piece in group if piece.text]
        text = "".join(piece.text for piece in together)
        if not text:
            continue
        encoding = tokenizer.encode([text])[0] if special else tokenizer.encode_as_text(text, begins=not ids)
        found: list[int] = encoding.ids
        places = _places(encoding, trained_spans(together), len(found))
        trained += [(len(ids) + first, len(ids) + last) for first, last in places]
        ids += found
    return ids, trained
