"""Read a SentencePiece model (tokenizer.model) as the rules of a `tokenizers` tokenizer.

The format is Protocol Buffers (github.com/google/sentencepiece, sentencepiece_model.proto). Only the fields that decide
ids are read. A BPE model becomes its vocabulary and, for each piece, every way to join it from two others, best score
first; a unigram model becomes its pieces and scores.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

WORD_START: Final = "▁"

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)
_UNIGRAM, _BPE = 1, 2
_NEVER: Final = -1e9


class UnreadableModel(ValueError):
    """The file is not a SentencePiece model, or its type is not supported; the message says which."""


@dataclass(frozen=True)
class SentencePieceModel:
    """A model as rules.

    rules:  the content of a tokenizer.json, without a prefix for the beginning of a text.
    prefix: whether a text begins with a space of its own (`add_dummy_prefix`).
    tokens: the spelling of `bos_token`, `eos_token`, `unk_token` and `pad_token`, as far as the model has them.
    """

    rules: dict[str, Any]
    prefix: bool
    tokens: dict[str, str]


def read_model(data: bytes) -> SentencePieceModel:
    """The rules of a model file.

    Raises:
        UnreadableModel: it is damaged, or of a kind other than BPE and unigram.
    """
    try:
        message = _fields(data)
        pieces = [_piece(value) for value in message.get(1, [])]
        trainer, normalizer = (_fields(message[number][-1]) if number in message else {} for number in (2, 3))
    except (struct.error, IndexError, TypeError, ValueError, AttributeError) as error:
        raise UnreadableModel("not a SentencePiece model, or damaged") from error
    if not pieces:
        raise UnreadableModel("not a SentencePiece model: it has no pieces")
    if any(kind == _UNUSED for _, _, kind in pieces):
        raise UnreadableModel("has pieces marked unused, which cannot be read; provide its tokenizer.json")
    if normalizer.get(2, [b""])[-1] or normalizer.get(4, [1])[-1]:
        raise UnreadableModel(
            "normalizes texts (a character map, or runs of spaces as one), which cannot be read; provide its tokenizer.json"
        )
    kind = trainer.get(3, [_UNIGRAM])[-1]
    if kind not in (_UNIGRAM, _BPE):
        raise UnreadableModel(f"its model type is {kind}; BPE (2) and unigram (1) can be read")
    model = _bpe(pieces) if kind == _BPE else _unigram(pieces)
    special = [_added(number, piece, special=True) for number, piece in _of_kind(pieces, _UNKNOWN, _CONTROL)]
    defined = [
        _added(number, piece, special=False)
        for number, piece in _of_kind(pieces, _USER_DEFINED)
        if " " not in piece  # spaces are ▁ when pieces are looked up, so such a piece is never found
    ]
    rules = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": sorted(special + defined, key=lambda token: token["id"]),
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": WORD_START},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": _decoder(),
        "model": model,
    }
    return SentencePieceModel(rules, bool(normalizer.get(3, [1])[-1]), _named(pieces, trainer))


def _fields(data: bytes) -> dict[int, list[Any]]:
    """Field number -> its values in order: integers, 4-byte groups or bytes."""
    found: dict[int, list[Any]] = {}
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        value: Any
        if wire == 0:
            value, at = _varint(data, at)
        elif wire == 2:
            size, at = _varint(data, at)
            value, at = data[at : at + size], at + size
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
            value, at = data[at : at + size], at + size
        else:
            raise ValueError(f"wire type {wire}")
        if at > len(data):
            raise ValueError("a field ends after the file")
        found.setdefault(number, []).append(value)
    return found


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _piece(data: bytes) -> tuple[str, float, int]:
    fields = _fields(data)
    (score,) = struct.unpack("<f", fields[2][-1]) if 2 in fields else (0.0,)
    return fields[1][-1].decode(), score, fields.get(3, [_NORMAL])[-1]


def _of_kind(pieces: list[tuple[str, float, int]], *kinds: int) -> Iterator[tuple[int, str]]:
    return ((number, piece) for number, (piece, _, kind) in enumerate(pieces) if kind in kinds)


def _added(number: int, text: str, *, special: bool) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
    return {"id": number, "content": text, **flags, "normalized": not special, "special": special}


def _bpe(pieces: list[tuple[str, float, int]]) -> dict[str, Any]:
    joinable = {piece: number for number, (piece, _, kind) in enumerate(pieces) if kind == _NORMAL}
    best_first = sorted(joinable, key=lambda piece: (-pieces[joinable[piece]][1], joinable[piece]))
    merges = [
        [piece[:at], piece[at:]]
        for piece in best_first
        for at in range(1, len(piece))
        if piece[:at] in joinable and piece[at:] in joinable
    ]
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": next((piece for _, piece in _of_kind(pieces, _UNKNOWN)), None),
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": any(kind == _BYTE for _, _, kind in pieces),
        "ignore_merges": False,
        "vocab": {piece: number for number, (piece, _, _) in enumerate(pieces)},
        "merges": merges,
    }


def _unigram(pieces: list[tuple[str, float, int]]) -> dict[str, Any]:
    return {
        "type": "Unigram",
        "unk_id": next((number for number, _ in _of_kind(pieces, _UNKNOWN)), None),
        "vocab": [[piece, _NEVER if kind in (_BYTE, _USER_DEFINED) else score] for piece, score, kind in pieces],
        "byte_fallback": any(kind == _BYTE for _, _, kind in pieces),
    }


def _decoder() -> dict[str, Any]:
    return {
        "type": "Sequence",
        "decoders": [
            {"type": "Replace", "pattern": {"String": WORD_START}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ],
    }


def _named(pieces: list[tuple[str, float, int]], trainer: dict[int, list[Any]]) -> dict[str, str]:
    """Special tokens by the numbers in the trainer's settings: unk 40, bos 41, eos 42, pad 43; defaults 0, 1, 2, -1."""
    named = {}
    for field, default, name in (
        (40, 0, "unk_token"),
        (41, 1, "bos_token"),
        (42, 2, "eos_token"),
        (43, -1, "pad_token"),
    ):
        number = trainer.get(field, [default])[-1]
        if 0 <= number < len(pieces) and pieces[number][2] in (_UNKNOWN, _CONTROL):
            named[name] = pieces[number][0]
    return named
