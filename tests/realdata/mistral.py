"""A real tokenizer that comes in a wheel: Mistral's first, SentencePiece with 32,000 pieces, as a Hugging Face folder."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

CONFIG = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
NEEDS = "pip install --no-deps mistral-common sentencepiece (with dependencies, an older numpy comes along)"


def model_file() -> Path | None:
    """The model in the package mistral-common, which is not imported; None: it, or what reads it, is not installed."""
    found = find_spec("mistral_common")
    if found is None or not found.submodule_search_locations or find_spec("sentencepiece") is None:
        return None
    return Path(found.submodule_search_locations[0]) / "data" / "tokenizer.model.v1"


def write_folder(folder: Path) -> str:
    """The tokenizer as a folder; its path."""
    model = model_file()
    assert model is not None, NEEDS
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(model, folder / "tokenizer.model")
    (folder / "tokenizer_config.json").write_text(json.dumps(CONFIG))
    return str(folder)
