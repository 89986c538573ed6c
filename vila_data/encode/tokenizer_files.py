"""The files of a Hugging Face tokenizer, read without transformers: rules, special tokens and chat templates.

Which ids a text gets must not depend on the installed release of transformers: its 4.x and 5.x build different
tokenizers from the same Llama directory. So tokenizer.json, or tokenizer.model alone, is read here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from vila_data.core.errors import UsageError
from vila_data.encode.sentencepiece_model import WORD_START, UnreadableModel, read_model

_NAMES: Final = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_MODEL_FILES: Final = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "sentencepiece.model")
_PATTERNS: Final = ("*.json", "*.jinja", "*.model", "additional_chat_templates/*")
_LLAMA: Final = ("LlamaTokenizer", "CodeLlamaTokenizer")
_LLAMA_TOKENS: Final = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
_NAMED_FILES: Final = 8


@dataclass(frozen=True)
class TokenizerFiles:
    """The content of a tokenizer's files.

    rules:     content of tokenizer.json, or the same made from tokenizer.model.
    prefix:    "first": the first text of a sequence gets one space in front, whatever it begins with, and a text after
               a special token gets none (Llama's tokenizer with `legacy=False`, the reference of VILA v1.0); "rules":
               as `rules` say.
    tokens:    spelling of special tokens by name, such as eos_token.
    added:     tokens that the configuration adds to those of `rules`: {"content", "special", "lstrip", ...}.
    templates: chat templates (Jinja) by name; "default" is the usual one.
    """

    rules: dict[str, Any]
    prefix: str
    tokens: dict[str, str]
    added: tuple[dict[str, Any], ...] = ()
    templates: dict[str, str] = field(default_factory=dict)


def read_tokenizer_files(name: str) -> TokenizerFiles:
    """The tokenizer files of a hub id or directory.

    Raises:
        UsageError: the tokenizer does not exist, it has neither tokenizer.json nor tokenizer.model, or a file is damaged.
    """
    folder = _folder(name)
    config = _json(folder, "tokenizer_config.json", name) or {}
    rules = _json(folder, "tokenizer.json", name)
    kind = str(config.get("tokenizer_class", "")).removesuffix("Fast")
    tokens: dict[str, str] = {}
    if rules is not None:
        if kind in _LLAMA:
            tokens = _LLAMA_TOKENS
        first = config.get("legacy") is False or (kind in _LLAMA and config.get("legacy") is None)
        prefix = "first" if first and _begins_words(rules) else "rules"
        if prefix == "first":
            rules = _without_prefix(rules)
    else:
        rules, has_prefix, tokens = _from_model(folder, name)
        first = config.get("legacy") is not True
        prefix = "first" if has_prefix and first else "rules"
        if has_prefix and not first:
            prepend = {"type": "Prepend", "prepend": WORD_START}
            rules |= {"normalizer": {"type": "Sequence", "normalizers": [prepend, rules["normalizer"]]}}
    if prefix == "first" and config.get("add_prefix_space") is False:
        prefix = "rules"
    special = _json(folder, "special_tokens_map.json", name) or {}
    tokens = {**tokens, **_named(special), **_named(config)}
    return TokenizerFiles(rules, prefix, tokens, tuple(_added(config, special)), _templates(folder, config, name))


def holds(name: str) -> str:
    """The files of a directory, for a message; empty for a hub id."""
    if not Path(name).is_dir():
        return ""
    found = sorted(path.name for path in Path(name).iterdir())
    return f" (a directory with {', '.join(found[:_NAMED_FILES]) or 'nothing in it'})"


def _folder(name: str) -> Path:
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(name, allow_patterns=list(_PATTERNS)))
    except (OSError, ValueError, RuntimeError, HFValidationError) as error:
        reason = str(error).strip().split("\n", 1)[0].rstrip(" :")
        raise UsageError(
            f"tokenizer {name}: cannot be loaded: it is neither a directory nor a repository that can be read: {reason}"
        ) from error


def _json(folder: Path, file: str, name: str) -> dict[str, Any] | None:
    path = folder / file
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"tokenizer {name}: {file} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise UsageError(f"tokenizer {name}: {file} must contain an object, found a {type(value).__name__}")
    return value


def _from_model(folder: Path, name: str) -> tuple[dict[str, Any], bool, dict[str, str]]:
    file = next((folder / file for file in _MODEL_FILES if (folder / file).is_file()), None)
    if file is None:
        raise UsageError(
            f"tokenizer {name}{holds(name)}: has neither tokenizer.json nor tokenizer.model; write one with transformers: "
            "AutoTokenizer.from_pretrained(…).save_pretrained(…)"
        )
    try:
        model = read_model(file.read_bytes())
    except UnreadableModel as error:
        raise UsageError(f"tokenizer {name}: {file.name}: {error}") from error
    return model.rules, model.prefix, model.tokens


def _named(values: dict[str, Any]) -> dict[str, str]:
    found = {}
    for name, value in values.items():
        text = value.get("content") if isinstance(value, dict) else value
        if (name in _NAMES or name.endswith("_token")) and isinstance(text, str):
            found[name] = text
    extra = values.get("extra_special_tokens")
    return found | (_named(extra) if isinstance(extra, dict) else {})


def _added(config: dict[str, Any], special: dict[str, Any]) -> list[dict[str, Any]]:
    """Tokens to add, by number where they have one; named tokens that are not listed are special."""
    decoder = config.get("added_tokens_decoder") or {}
    found = [dict(value) for _, value in sorted(decoder.items(), key=lambda entry: int(entry[0]))]
    listed = {token.get("content") for token in found}
    for values in (special, config):
        for value in [values.get(name) for name in _NAMES] + [
            entry
            for key in ("additional_special_tokens", "extra_special_tokens")
            for entry in (values.get(key) or [] if isinstance(values.get(key), list) else [])
        ]:
            text = value.get("content") if isinstance(value, dict) else value
            if isinstance(text, str) and text not in listed:
                listed.add(text)
                flags = value if isinstance(value, dict) else {}
                found.append({**flags, "content": text, "special": True, "named": True})
    return found


def _begins_words(rules: dict[str, Any]) -> bool:
    """Whether the rules put ▁ in front of a text, as Llama's do."""
    pre, normalizer = rules.get("pre_tokenizer") or {}, rules.get("normalizer") or {}
    steps = normalizer.get("normalizers", [normalizer])
    prepends = any(step.get("type") == "Prepend" and step.get("prepend") == WORD_START for step in steps)
    metaspace = pre.get("type") == "Metaspace" and pre.get("prepend_scheme", "always") != "never"
    return prepends or (metaspace and pre.get("replacement", WORD_START) == WORD_START and pre.get("split") is False)


def _without_prefix(rules: dict[str, Any]) -> dict[str, Any]:
    """The rules with spaces as ▁ and nothing put in front of a text."""
    normalizer = rules.get("normalizer") or {}
    steps = [
        step
        for step in normalizer.get("normalizers", [normalizer])
        if step and step.get("type") != "Prepend" and step.get("content") != WORD_START
    ]
    steps.append({"type": "Replace", "pattern": {"String": " "}, "content": WORD_START})
    return {**rules, "normalizer": {"type": "Sequence", "normalizers": steps}, "pre_tokenizer": None}


def _templates(folder: Path, config: dict[str, Any], name: str) -> dict[str, str]:
    """A file beats the configuration, as in transformers; more templates may be in additional_chat_templates/."""
    found: dict[str, str] = {}
    given = config.get("chat_template")
    if given is None:
        given = (_json(folder, "chat_template.json", name) or {}).get("chat_template")
    if isinstance(given, str):
        found["default"] = given
    elif isinstance(given, list):
        found |= {entry["name"]: entry["template"] for entry in given}
    elif isinstance(given, dict):
        found |= given
    if (folder / "chat_template.jinja").is_file():
        found["default"] = (folder / "chat_template.jinja").read_text()
    found |= {path.stem: path.read_text() for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
    return found
