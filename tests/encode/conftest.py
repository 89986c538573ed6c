"""The tokenizers of tests/encode, made once a session."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.encode import made_tokenizers
from vila_data.encode.tokenizer import TextTokenizer, load_tokenizer

Made = Callable[..., TextTokenizer]


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A tokenizer of made_tokenizers.KINDS, loaded; keywords as in made_tokenizers.write."""
    folder = tmp_path_factory.mktemp("tokenizers")

    @cache
    def make(kind: str, chat_template: str | None = None, without: str | None = None) -> TextTokenizer:
        path: Path = folder / f"{kind}-{len(list(folder.iterdir()))}"
        return load_tokenizer(made_tokenizers.write(path, kind, chat_template=chat_template, without=without))

    return make
