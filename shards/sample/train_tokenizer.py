"""Trains the sample's tokenizer on its own texts and writes `tokenizer/`, a Hugging Face folder (tokenizers; seconds).

    python shards/sample/train_tokenizer.py [--out DIR]

Byte-pair encoding in Llama's manner: a space is "▁" and one stands before each text, what
has no piece falls back to bytes, `<s>` begins a text, `</s>` ends it, nothing pads. The same
bytes every time, for one version of tokenizers.
"""

from __future__ import annotations

import argparse
import json
import string
from pathlib import Path
from typing import Any

import conversations
import plan
import webpages
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

HERE = Path(__file__).resolve().parent
VOCABULARY = 1_500
SPECIAL = ("<unk>", "<s>", "</s>")
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
ALPHABET = ("▁", *string.ascii_letters, *string.digits, *string.punctuation)
LONGEST_TEXT = 4096
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}Answer: {{ message['content'] }}{{ eos_token }}\n"
    "{% elif message['role'] == 'system' %}{{ message['content'] }}\n"
    "{% else %}Question: {{ message['content'] }}\n{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}Answer:{% endif %}"
)


def sample_texts() -> list[str]:
    """Every text of the sample's corpora, in a fixed order."""
    texts = [text for document in plan.documents() for text in document.texts]
    texts += [pair.text for pair in plan.pairs()] + [caption for _, caption in conversations.caption_rows()]
    for row in (*conversations.chat_rows(), *conversations.align_rows(), *conversations.talk_rows()):
        texts += [turn["value"] for turn in row["conversations"]]
    for lesson in conversations.instruction_lessons():
        texts += [lesson.prompt, lesson.completion]
    for row in conversations.vflan_rows():
        texts += [row["question"], row["answer"]]
    return texts + [part for page in webpages.web_pages() for part in page.parts if isinstance(part, str)]


def trained_model() -> dict[str, Any]:
    """The `model` part of tokenizer.json: special tokens, bytes, then pieces, whose merges are learnt inside words."""
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace("▁", "always", split=True), pre_tokenizers.Punctuation("isolated")]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIAL) - len(BYTES),
        initial_alphabet=list(ALPHABET),
        limit_alphabet=len(ALPHABET),
        show_progress=False,
    )
    lines = [line.replace(conversations.MARK, "") for text in sample_texts() for line in text.splitlines()]
    words.train_from_iterator(lines, trainer)
    learnt = json.loads(words.to_str())["model"]
    pieces = sorted(learnt["vocab"], key=learnt["vocab"].get)
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": SPECIAL[0],
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": True,
        "ignore_merges": False,
        "vocab": {piece: number for number, piece in enumerate((*SPECIAL, *BYTES, *pieces))},
        "merges": [" ".join(pair) for pair in learnt["merges"]],
    }


def tokenizer_json() -> dict[str, Any]:
    """tokenizer.json: the model, spaces as "▁" before it, bytes put together after it, `<s>` first."""
    special = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False) | {"special": True}
    begin = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": number}} for number, name in enumerate("AB"))
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": number, "content": token, **special} for number, token in enumerate(SPECIAL)],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [begin, first],
            "pair": [begin, first, {"SpecialToken": {"id": "<s>", "type_id": 1}}, second],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [SPECIAL.index("<s>")], "tokens": ["<s>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": trained_model(),
    }


def tokenizer_config() -> dict[str, Any]:
    """tokenizer_config.json: special tokens and the template for conversations; no padding token, as in Llama 2."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": LONGEST_TEXT,
        "chat_template": CHAT_TEMPLATE,
    }


def write_folder(out: Path) -> None:
    """Both files, as UTF-8 JSON."""
    out.mkdir(parents=True, exist_ok=True)
    for name, value in (("tokenizer.json", tokenizer_json()), ("tokenizer_config.json", tokenizer_config())):
        text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
        (out / name).write_text(text, encoding="utf-8")


def main() -> None:
    """Train and write the folder given."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=HERE / "tokenizer")
    out = parser.parse_args().out
    write_folder(out)
    size = sum(path.stat().st_size for path in out.iterdir())
    print(f"{len(trained_model()['vocab'])} pieces, {size / 1e3:.0f} kB in {out}")


if __name__ == "__main__":
    main()
