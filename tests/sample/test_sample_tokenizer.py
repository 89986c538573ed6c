"""The sample's tokenizer is what its script trains, loads as any Hugging Face one, and gives every text back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import make
import pytest
import train_tokenizer

FOLDER = make.HERE / "tokenizer"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(str(FOLDER))


def test_the_folder_is_what_the_script_writes(tmp_path: Path) -> None:
    names = sorted(path.name for path in FOLDER.iterdir())
    assert names == ["tokenizer.json", "tokenizer_config.json"]
    for folder in ("once", "again"):
        train_tokenizer.write_folder(tmp_path / folder)
        assert sorted(path.name for path in (tmp_path / folder).iterdir()) == names
        for name in names:
            assert (tmp_path / folder / name).read_bytes() == (FOLDER / name).read_bytes()
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 150_000


def test_special_tokens_are_those_of_llama(tokenizer: Any) -> None:
    assert tokenizer.is_fast
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token) == ("<s>", "</s>", "<unk>")
    assert (tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert tokenizer.pad_token_id is None
    assert len(tokenizer) == train_tokenizer.VOCABULARY
    assert tokenizer("a boat").input_ids[0] == tokenizer.bos_token_id


def test_every_text_of_the_sample_comes_back(tokenizer: Any) -> None:
    texts = train_tokenizer.sample_texts()
    assert len(texts) > 2_000
    ids = tokenizer(texts, add_special_tokens=False).input_ids
    assert tokenizer.batch_decode(ids) == texts
    letters, tokens = sum(map(len, texts)), sum(map(len, ids))
    assert letters / tokens > 3.5, "pieces are words and parts of words"
    assert not any(tokenizer.unk_token_id in row for row in ids)


@pytest.mark.parametrize(
    "text", ["Äpfel, 漢字 and 🙂", "two  spaces\n\n\tand a tab", " a space before", "", "\x00 zero", "{<0x41>}"]
)
def test_other_texts_come_back_by_bytes(tokenizer: Any, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text
    assert tokenizer.unk_token_id not in ids


def test_its_template_writes_each_turn_once_and_ends_answers(tokenizer: Any) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "How many?"},
        {"role": "assistant", "content": "Three."},
        {"role": "user", "content": "And now?"},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "<s>Be brief.\nQuestion: How many?\nAnswer: Three.</s>\nQuestion: And now?\nAnswer:"


def test_no_merge_crosses_a_word() -> None:
    model = json.loads((FOLDER / "tokenizer.json").read_text("utf-8"))["model"]
    pieces = [piece for piece in model["vocab"] if len(piece) > 1 and not piece.startswith("<")]
    assert len(pieces) > 1_000
    assert not [piece for piece in pieces if "▁" in piece[1:] or "\n" in piece]
