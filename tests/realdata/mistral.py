"""A real tokenizer that comes in a wheel: Mistral's first, SentencePiece with 32,000 pieces, as a Hugging Face folder."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

CONFIG = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def write_folder(folder: Path) -> str:
    """The tokenizer of the package mistral-common as a folder; the package's code is not imported."""
    found = find_spec("mistral_common")
    if found is None or not found.submodule_search_locations:
        pytest.skip("mistral-common is not installed")
    model = Path(found.submodule_search_locations[0]) / "data" / "tokenizer.model.v1"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(model, folder / "tokenizer.model")
    (folder / "tokenizer_config.json").write_text(json.dumps(CONFIG))
    return str(folder)
