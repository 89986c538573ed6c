"""Recipe values under `shards:`."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field

from vila_data.core.config import StrictModel
from vila_data.core.records import RecordKind
from vila_data.core.samples import View as View

VIEWS: Final[dict[RecordKind, tuple[View, ...]]] = {
    "document": ("interleaved", "pairs"),
    "pair": ("pairs",),
    "conversation": ("conversations",),
}
"""The views that a corpus may have, by the kind of its records."""


class ShardSet(StrictModel):
    """A shard set: the kept records of one corpus, written in one view (sample layout).

    corpus: the name of one of `corpora`.
    view:   `interleaved`, one sample per document; `pairs`, one sample per image with its
            caption (a document's image with the sentence it comes before); `conversations`,
            one sample per conversation, with or without images.
    max_mb: a shard's size is at most this many MB (10^6 bytes), unless one sample alone is larger.
    """

    corpus: str
    view: View
    max_mb: Annotated[int, Field(gt=0, le=8_000)] = 512
