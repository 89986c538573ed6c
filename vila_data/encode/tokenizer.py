"""A tokenizer as encoding uses it: text to ids with the places of its characters, special tokens, a fingerprint."""

from __future__ import annotations

import json
import os
import re
from bisect import bisect_left
from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Final

from vila_data.core.cpus import cpu_count
from vila_data.core.errors import UsageError
from vila_data.core.receipts import fingerprint
from vila_data.encode.tokenizer_files import TokenizerFiles, holds, read_tokenizer_files

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

_LOADED_AT_ONCE: Final = 4
_SPACE: Final = " "
_FEW: Final = 4
_FLAGS: Final = ("single_word", "lstrip", "rstrip", "normalized")


class EncodedText:
    """A text as ids, with the place of each character.

    ids: the tokens. The text may have been given a space in front (`shift` 1), whose own token may have been removed
    (`dropped` 1).
    """

    __slots__ = ("_asked", "_dropped", "_encoding", "_offsets", "_shift", "_starts", "ids")

    def __init__(self, encoding: Encoding, shift: int = 0, dropped: int = 0) -> None:
        self.ids: list[int] = encoding.ids[dropped:] if dropped else encoding.ids
        self._encoding, self._shift, self._dropped = encoding, shift, dropped
        self._asked = 0
        self._offsets: list[tuple[int, int]] | None = None
        self._starts: list[int] = []

    def tokens_of(self, start: int, stop: int) -> tuple[int, int] | None:
        """(first, last + 1) of the tokens that hold the characters from `start` to `stop`; None where no token does."""
        at, end = start + self._shift, stop + self._shift
        if self._asked < _FEW:  # a list of all offsets pays only for many questions
            self._asked += 1
            return self._tokens_by_character(at, end)
        if self._offsets is None:
            self._offsets = self._encoding.offsets
            self._starts = [first for first, _ in self._offsets]
        held = range(bisect_left(self._starts, at), bisect_left(self._starts, end))
        first, last = held.start, held.stop  # tokens that begin inside, and one that began before and reaches in
        while first and self._offsets[first - 1][1] > at:
            first -= 1
        tokens = [token for token in (first, last - 1) if token < last]
        if not tokens:
            return None
        while first < last and self._offsets[first][1] <= self._offsets[first][0]:
            first += 1
        return (max(0, first - self._dropped), last - self._dropped) if first < last else None

    def _tokens_by_character(self, at: int, end: int) -> tuple[int, int] | None:
        find = self._encoding.char_to_token
        first, last = find(at), find(end - 1)
        if first is None:  # no token holds some characters, such as spaces that a tokenizer drops
            first = next((token for char in range(at, end) if (token := find(char)) is not None), None)
        if first is None:
            return None
        if last is None:
            last = next(token for char in range(end - 1, at - 1, -1) if (token := find(char)) is not None)
        count = len(self._encoding)
        while last + 1 < count:  # one character may take several tokens
            chars = self._encoding.token_to_chars(last + 1)
            if chars is None or chars[0] >= end:
                break
            last += 1
        return max(0, first - self._dropped), last + 1 - self._dropped


class TextTokenizer:
    """Text to ids, in batches, without special tokens of its own.

    fingerprint:    16 hex digits of everything that decides ids: vocabulary, rules, special tokens.
    bos_id, eos_id: int, `bos_id` None where the tokenizer has none; bos, eos: their spelling. unk_id: None where it has none.
    pad_id:         the padding token; the end token where there is none. Segments say which positions are padding,
                    never this id.
    tokens:         spelling of special tokens by name, as chat templates see them.
    templates:      chat templates (Jinja) by name.
    added:          ids of tokens that are found in texts as they are spelled; strips: whether such a token takes the white
                    space before it, and after it.
    """

    def __init__(self, name: str, files: TokenizerFiles) -> None:
        self.name = name
        self.tokens = files.tokens
        self.templates = files.templates
        self._rules = _rules(name, files)
        self._armed = _built(self._rules, name)
        self._has_prefix = files.prefix == "first"
        ids = {key: self._armed.token_to_id(text) for key, text in files.tokens.items()}
        eos_id = ids.get("eos_token")
        if eos_id is None:
            raise UsageError(
                f"tokenizer {name}: has no end-of-sequence token; set eos_token in its tokenizer_config.json"
            )
        self.bos_id: int | None = ids.get("bos_token")
        self.eos_id: int = eos_id
        self.unk_id: int | None = ids.get("unk_token")
        pad = ids.get("pad_token")
        self.pad_id: int = self.eos_id if pad is None else pad
        self.bos: str | None = files.tokens["bos_token"] if self.bos_id is not None else None
        self.eos: str = files.tokens["eos_token"]
        self.vocabulary_size = int(self._armed.get_vocab_size(with_added_tokens=True))
        added = self._armed.get_added_tokens_decoder()
        special = {key: token.content for key, token in added.items() if token.special}
        self._unknown: str | None = special.pop(self.unk_id, None) if self.unk_id is not None else None
        self._special_ids = frozenset(special)
        self._lone_space = self._armed.token_to_id("▁") if self._has_prefix else None
        self.added = {token.content: key for key, token in added.items()}
        self.strips = {token.content: (token.lstrip, token.rstrip) for token in added.values()}
        spellings = sorted([*special.values(), *filter(None, [self._unknown])], key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, spellings))) if spellings else None
        if not set(self._armed.get_vocab(with_added_tokens=False)) - set(self.added):
            raise UsageError(
                f"tokenizer {name}{holds(name)}: has no vocabulary apart from its special tokens: its tokenizer.json or "
                "tokenizer.model is missing or broken"
            )
        self.fingerprint = fingerprint([self._rules, self.bos_id, self.eos_id, self.pad_id, self._has_prefix])

    def chat_template(self, *, with_tools: bool = False) -> str | None:
        """The tokenizer's own template for conversations (Jinja); None where it has none."""
        if with_tools and "tool_use" in self.templates:
            return self.templates["tool_use"]
        return self.templates.get("default")

    def encode(self, texts: Sequence[str]) -> list[EncodedText]:
        """Each text as it begins a sequence; spellings of special tokens in it become those tokens."""
        given = [self._with_prefix(text) for text in texts]
        encodings = self._armed.encode_batch(given, add_special_tokens=False)
        return [
            EncodedText(encoding, len(prefixed) - len(text), self._dropped(encoding.ids, text))
            for encoding, prefixed, text in zip(encodings, given, texts, strict=True)
        ]

    def encode_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids that `encode` gives, in less time."""
        given = [_SPACE + text if text else text for text in texts] if self._has_prefix else texts
        found = [encoding.ids for encoding in self._armed.encode_batch_fast(given, add_special_tokens=False)]
        if not self._has_prefix:
            return found
        lone = self._lone_space
        return [
            ids[self._dropped(ids, text) :] if ids and ids[0] == lone else ids
            for ids, text in zip(found, texts, strict=True)
        ]

    def encode_as_text(self, text: str, *, begins: bool) -> EncodedText:
        """As `encode`, but spellings of special tokens stay text. begins: no text precedes it."""
        if self._has_prefix and begins and text:
            return EncodedText(self._disarmed.encode(_SPACE + text, add_special_tokens=False), 1)
        disarmed = self._disarmed if begins else self._disarmed_inside
        return EncodedText(disarmed.encode(text, add_special_tokens=False))

    def _with_prefix(self, text: str) -> str:
        return _SPACE + text if self._has_prefix and text else text

    def _dropped(self, ids: Sequence[int], text: str) -> int:
        """1 where the space in front became a token of its own before a special token."""
        if self._lone_space is None or len(ids) < 2 or ids[0] != self._lone_space:
            return 0
        return int(ids[1] in self._special_ids or (self._unknown is not None and text.startswith(self._unknown)))

    @cached_property
    def _disarmed(self) -> Tokenizer:
        tokenizer = _built(self._rules, self.name)
        tokenizer.encode_special_tokens = True
        return tokenizer

    @cached_property
    def _disarmed_inside(self) -> Tokenizer:
        tokenizer = _built(_without_first_space(self._rules), self.name)
        tokenizer.encode_special_tokens = True
        return tokenizer

    def spells_special(self, text: str, ids: Sequence[int], expected: int) -> bool:
        """Whether a text whose ids are given became other special tokens than the `expected` number of its own."""
        special = self._special_ids
        if len(special) <= _FEW:
            found = sum(map(ids.count, special))
        else:
            found = sum(map(special.__contains__, ids)) if expected else not special.isdisjoint(ids)
        return found != expected or (self._unknown is not None and self._unknown in text)

    def special_spans(self, text: str) -> list[tuple[int, int]]:
        """(start, stop) characters of each spelling of a special token in a text, in order."""
        return [match.span() for match in self._special.finditer(text)] if self._special is not None else []

    def special_at(self, text: str, at: int) -> int | None:
        """Where a special token ends that a text spells at a place; None: none does."""
        match = self._special.match(text, at) if self._special is not None else None
        return match.end() if match is not None else None

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens spelled out."""
        text: str = self._armed.decode(list(ids), skip_special_tokens=False)
        return text


def _built(rules: dict[str, Any], name: str) -> Tokenizer:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_str(json.dumps(rules))
    except Exception as error:
        if type(error) is not Exception:  # tokenizers raises Exception itself for rules that it cannot read
            raise
        raise UsageError(f"tokenizer {name}{holds(name)}: cannot be loaded: {error}") from error


def _rules(name: str, files: TokenizerFiles) -> dict[str, Any]:
    """The rules with the configuration's tokens added, and nothing that pads, cuts or adds tokens to a text."""
    from tokenizers import AddedToken

    bare = files.rules | dict.fromkeys(("padding", "truncation", "post_processor"))
    tokenizer = _built(bare, name)
    known = {token.content: token for token in tokenizer.get_added_tokens_decoder().values()}
    for token in files.added:
        text, special = token["content"], bool(token.get("special"))
        if text in known and (token.get("named") or known[text].special == special):
            continue
        flags = {flag: bool(token[flag]) for flag in _FLAGS if flag in token}
        added = AddedToken(text, special=special, **({"normalized": not special} | flags))
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)([added])
    rules: dict[str, Any] = json.loads(tokenizer.to_str())
    return rules


def _without_first_space(rules: Any) -> Any:
    """Rules under which a text at the front is tokenized as one that is not."""
    if isinstance(rules, list):
        return [_without_first_space(rule) for rule in rules]
    if not isinstance(rules, dict):
        return rules
    if rules.get("type") == "Metaspace" and rules.get("prepend_scheme") == "first":
        return {**rules, "prepend_scheme": "never"}
    return {name: rule if name == "model" else _without_first_space(rule) for name, rule in rules.items()}


@lru_cache(maxsize=_LOADED_AT_ONCE)
def load_tokenizer(name: str) -> TextTokenizer:
    """The tokenizer of a hub id or directory, loaded once per process.

    Raises:
        UsageError: it is not there, cannot be read, or has no end-of-sequence token.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true" if cpu_count() > 1 else "false")
    return TextTokenizer(name, read_tokenizer_files(name))
