"""Tokenizers that the tests train themselves, in seconds, and write as Hugging Face folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TRIMMING = (
    "{% for m in messages %}{% set said = '<|start|>' + m['role'] + '<|end|>\n\n' + m['content'] | trim + '<|eot|>' %}"
    "{% if loop.index0 == 0 %}{% set said = bos_token + said %}{% endif %}{{ said }}{% endfor %}"
)
SPACED = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
WORDS = (
    "the a red boat on open sea picture shows what is this USER ASSISTANT answer question of and in it USER: "
    "ASSISTANT: A chat between a curious user and an artificial intelligence assistant gives helpful detailed polite "
    "answers to user's questions INST SYS hello there small large house tree green blue people walking <image> IMAGE"
)


def corpus() -> list[str]:
    words = WORDS.split()
    return [" ".join(words[i:] + words[:i]) for i in range(len(words))]


def _llama_bpe() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Pieces after three special tokens and 256 bytes, with the merges that make them."""
    import json

    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Metaspace("▁", "always")
    learner.train_from_iterator(corpus(), trainers.BpeTrainer(vocab_size=400, show_progress=False))
    learnt = json.loads(learner.to_str())["model"]
    pieces = sorted(learnt["vocab"], key=learnt["vocab"].get)
    vocabulary = {piece: number for number, piece in enumerate(["<unk>", "<s>", "</s>", *BYTES, *pieces])}
    return vocabulary, [tuple(merge) for merge in learnt["merges"]]


def llama(*, legacy: bool) -> Tokenizer:
    """Byte fallback and "▁" for spaces; before each section of text (`legacy`) or before the first alone."""
    vocabulary, merges = _llama_bpe()
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    if legacy:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", "first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(
        [AddedToken(text, normalized=False, special=True) for text in ("<unk>", "<s>", "</s>")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def byte_level() -> Tokenizer:
    """As GPT-2: bytes as letters, one token that begins and ends texts, offsets without leading spaces."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    tokenizer.add_special_tokens(["<|endoftext|>"])
    return tokenizer


def word_piece() -> Tokenizer:
    """As BERT: lower case, words to pieces, `[SEP]` at the end and nothing at the beginning."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[SEP]"]
    trainer = trainers.WordPieceTrainer(vocab_size=500, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


LLAMA_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
KINDS: dict[str, Any] = {
    "llama_legacy": (lambda: llama(legacy=True), LLAMA_TOKENS),
    "llama_first": (lambda: llama(legacy=False), LLAMA_TOKENS),
    "byte_level": (byte_level, {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}),
    "word_piece": (word_piece, {"eos_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"}),
}


def write(folder: Path, kind: str, *, chat_template: str | None = None, without: str | None = None) -> str:
    """A tokenizer's folder; `without`: a special token that its configuration does not name."""
    make, tokens = KINDS[kind]
    named = {name: text for name, text in tokens.items() if name != without}
    fast = PreTrainedTokenizerFast(tokenizer_object=make(), clean_up_tokenization_spaces=False, **named)
    if chat_template is not None:
        marks = ["<|im_start|>", "<|im_end|>", "<|start|>", "<|end|>", "<|eot|>"]
        fast.add_special_tokens({"additional_special_tokens": [mark for mark in marks if mark in chat_template]})
        fast.chat_template = chat_template
    fast.save_pretrained(folder)
    return str(folder)
