"""A Hugging Face tokenizer, as encoding uses it: its fast backend, its special tokens, its fingerprint."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from vila_data.core.cpus import cpu_count
from vila_data.core.errors import UsageError
from vila_data.core.receipts import fingerprint

_LOADED_AT_ONCE = 4
_NAMED_FILES = 8


class TextTokenizer:
    """Text to ids, in batches, without special tokens of its own.

    fingerprint:    16 hex digits of everything that decides ids: vocabulary, rules, special tokens.
    bos_id, eos_id: int, `bos_id` None where the tokenizer has none; bos, eos: their spelling.
    pad_id:         the padding token; the end token where there is none. Which positions are padding is
                    told by segments, never by this id.
    """

    def __init__(self, name: str, auto: Any) -> None:
        if auto.eos_token_id is None:
            raise UsageError(
                f"tokenizer {name}: has no end-of-sequence token: set eos_token in its tokenizer_config.json"
            )
        self.name = name
        self._auto = auto
        self._rules = json.loads(auto.backend_tokenizer.to_str())
        self._rules |= dict.fromkeys(("padding", "truncation", "post_processor"))  # offsets stay those of the text
        self._armed = self._built(self._rules)
        self.bos_id: int | None = auto.bos_token_id
        self.eos_id: int = auto.eos_token_id
        self.pad_id: int = auto.eos_token_id if auto.pad_token_id is None else auto.pad_token_id
        self.bos: str | None = auto.bos_token
        self.eos: str = auto.eos_token
        self.vocabulary_size = int(self._armed.get_vocab_size(with_added_tokens=True))
        special = {key: token.content for key, token in self._armed.get_added_tokens_decoder().items() if token.special}
        self._unknown: str | None = special.pop(auto.unk_token_id, None)
        self._special_ids = frozenset(special)
        spellings = sorted([*special.values(), *filter(None, [self._unknown])], key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, spellings))) if spellings else None
        self.fingerprint = fingerprint([self._rules, self.bos_id, self.eos_id, self.pad_id])

    def _built(self, rules: dict[str, Any]) -> Any:
        return type(self._auto.backend_tokenizer).from_str(json.dumps(rules))

    @property
    def chat_template(self) -> str | None:
        """The tokenizer's own template for conversations (Jinja), None where it has none."""
        template: str | None = self._auto.chat_template
        return template

    def encode(self, texts: Sequence[str]) -> list[Any]:
        """`tokenizers.Encoding` of each text; spellings of special tokens in it become those tokens."""
        encodings: list[Any] = self._armed.encode_batch(texts, add_special_tokens=False)
        return encodings

    def encode_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids that `encode` gives, in less time."""
        return [encoding.ids for encoding in self._armed.encode_batch_fast(texts, add_special_tokens=False)]

    def encode_as_text(self, text: str, *, begins: bool) -> Any:
        """As `encode`, but spellings of special tokens stay text. begins: no text stands before it."""
        disarmed = self._disarmed if begins else self._disarmed_inside
        return disarmed.encode(text, add_special_tokens=False)

    @cached_property
    def _disarmed(self) -> Any:
        tokenizer = self._built(self._rules)
        tokenizer.encode_special_tokens = True
        return tokenizer

    @cached_property
    def _disarmed_inside(self) -> Any:
        tokenizer = self._built(_without_first_space(self._rules))
        tokenizer.encode_special_tokens = True
        return tokenizer

    def spells_special(self, text: str, ids: Sequence[int], expected: int) -> bool:
        """Whether a text whose ids are given became other special tokens than the `expected` number of its own."""
        if not self._special_ids.isdisjoint(ids) if expected == 0 else self._special_among(ids) != expected:
            return True
        return self._unknown is not None and self._unknown in text

    def _special_among(self, ids: Sequence[int]) -> int:
        return sum(map(self._special_ids.__contains__, ids))

    def find_special(self, text: str) -> tuple[int, int] | None:
        """Where the first spelling of a special token begins and ends in a text."""
        found = self._special.search(text) if self._special is not None else None
        return found.span() if found else None

    def render(self, messages: list[dict[str, str]]) -> str:
        """Messages ({"role", "content"}) written by the tokenizer's own template.

        Raises:
            UsageError: it has none, or it refuses such messages.
        """
        import jinja2

        if self.chat_template is None:
            raise UsageError(
                f"tokenizer {self.name}: has no chat template: choose pack.template plain, vicuna_v1 or llama_2"
            )
        try:
            text: str = self._auto.apply_chat_template(messages, tokenize=False)
        except (jinja2.TemplateError, ValueError, TypeError) as error:
            raise UsageError(f"tokenizer {self.name}: its chat template fails: {error}") from error
        return text

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens spelled out."""
        text: str = self._armed.decode(list(ids), skip_special_tokens=False)
        return text


def _without_first_space(rules: Any) -> Any:
    """Rules of a tokenizer under which a text that stands at the front is read as one that does not."""
    if isinstance(rules, list):
        return [_without_first_space(rule) for rule in rules]
    if not isinstance(rules, dict):
        return rules
    if rules.get("type") == "Metaspace" and rules.get("prepend_scheme") == "first":
        return {**rules, "prepend_scheme": "never"}
    return {name: rule if name == "model" else _without_first_space(rule) for name, rule in rules.items()}


@lru_cache(maxsize=_LOADED_AT_ONCE)
def load_tokenizer(name: str) -> TextTokenizer:
    """The tokenizer of a hub id or folder, loaded once a process.

    Raises:
        UsageError: it is not there, has no fast backend, or no end-of-sequence token.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true" if cpu_count() > 1 else "false")
    from transformers import AutoTokenizer

    try:
        auto = AutoTokenizer.from_pretrained(name)
    except Exception as error:
        # tokenizers raises Exception itself for a file that it cannot read
        if not isinstance(error, _LOADING_ERRORS) and type(error) is not Exception:
            raise
        reason = str(error).strip().split("\n", 1)[0].rstrip(" :")
        raise UsageError(f"tokenizer {name}{_folder_holds(name)}: cannot be loaded: {reason}") from error
    if not auto.is_fast:
        raise UsageError(f"tokenizer {name}: has no fast version (tokenizer.json), which labels by span need")
    if not set(auto.backend_tokenizer.get_vocab(with_added_tokens=False)) - set(auto.get_added_vocab()):
        raise UsageError(
            f"tokenizer {name}{_folder_holds(name)}: has no vocabulary beside its special tokens: its tokenizer.json or "
            "tokenizer.model is missing or broken"
        )
    return TextTokenizer(name, auto)


_LOADING_ERRORS = (OSError, ValueError, KeyError, TypeError, ImportError)


def _folder_holds(name: str) -> str:
    """What a folder has in it, for a message; nothing for a hub id."""
    if not Path(name).is_dir():
        return ""
    found = sorted(path.name for path in Path(name).iterdir())
    return f" (a folder with {', '.join(found[:_NAMED_FILES]) or 'nothing in it'})"
