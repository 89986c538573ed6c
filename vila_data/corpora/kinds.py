"""Kinds of corpora by name: the one line to add for a new one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from vila_data.corpora.config import CorpusFiles
from vila_data.corpora.coyo import CoyoSource
from vila_data.corpora.flickr8k import Flickr8kSource
from vila_data.corpora.img2dataset import Img2datasetSource
from vila_data.corpora.llava import llava_rows
from vila_data.corpora.mmc4 import Mmc4Source
from vila_data.corpora.obelics import obelics_row
from vila_data.corpora.rows import RowSource
from vila_data.corpora.source import Source
from vila_data.corpora.text import text_rows
from vila_data.corpora.vflan import vflan_rows

_KINDS: Final[dict[str, Callable[[Any], Source]]] = {
    "mmc4": Mmc4Source,
    "coyo": CoyoSource,
    "img2dataset": Img2datasetSource,
    "llava": lambda config: RowSource(llava_rows(config)),
    "text": lambda config: RowSource(text_rows(config)),
    "vflan": lambda config: RowSource(vflan_rows(config)),
    "obelics": lambda config: RowSource(obelics_row),
    "flickr8k": Flickr8kSource,
}


def open_corpus(config: CorpusFiles) -> Source:
    """The reader of a corpus."""
    own = _KINDS.get(config.kind)
    reader: Source = config.open() if own is None else own(config)
    return reader
