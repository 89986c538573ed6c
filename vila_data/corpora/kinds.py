"""Kinds of corpora by name: the one line to add for a new one."""

from __future__ import annotations

from vila_data.corpora.config import CorpusConfig, CoyoConfig, Img2datasetConfig, Mmc4Config
from vila_data.corpora.coyo import CoyoSource
from vila_data.corpora.img2dataset import Img2datasetSource
from vila_data.corpora.mmc4 import Mmc4Source
from vila_data.corpora.source import Source


def open_corpus(config: CorpusConfig) -> Source:
    """The reader of a corpus."""
    if isinstance(config, Mmc4Config):
        return Mmc4Source(config)
    if isinstance(config, CoyoConfig):
        return CoyoSource(config)
    assert isinstance(config, Img2datasetConfig)
    return Img2datasetSource(config)
