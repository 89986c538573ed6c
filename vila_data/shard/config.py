"""Recipe values under `shards:`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from vila_data.core.config import StrictModel

View = Literal["interleaved", "pairs"]


class ShardSet(StrictModel):
    """One set of shards: the kept records of a corpus, laid down in a view.

    view:   `interleaved`, one sample a document; `pairs`, one sample an image with its
            caption (a document's image with the sentence it stands before).
    max_mb: a shard's size is at most this many MB (10^6 bytes), unless one sample alone is larger.
    """

    corpus: str
    view: View
    max_mb: Annotated[int, Field(gt=0, le=8_000)] = 512
