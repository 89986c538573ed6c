"""VILA's pickle directories: documents as its `mmc4`, pairs as its `coyo` (docs/sources.md).

A directory holds X.pkl and X.count for each part and nothing else, since VILA counts its files. The pickles hold dicts,
lists, texts, numbers and None alone, and are written a sample at a time: protocol 2 has no frames, so the list's
entries may follow one another. VILA reads pairs by four: parts are multiples of four, and fewer than four pairs at
the set's end are omitted.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Final

from vila_data.core.receipts import Outputs
from vila_data.export.format import Content, ExportCounts, ExportedSet, Part, even_bounds, parts_of
from vila_data.export.open_flamingo import base64_text, mmc4_document
from vila_data.shard.config import View

PAIRS_AT_ONCE: Final = 4
_HEAD: Final = b"\x80\x02]"  # protocol 2, an empty list
_APPEND: Final = b"a"
_STOP: Final = b"."


class VilaPickle:
    """See the module."""

    name: ClassVar[str] = "vila-pickle"
    views: ClassVar[tuple[View, ...]] = ("interleaved", "pairs")
    revision: ClassVar[int] = 1

    def __init__(self, view: View) -> None:
        self._pairs = view == "pairs"

    def cut(self, set_name: str, samples: Sequence[int], shards: int | None) -> list[Part]:
        """One part per shard of the set, or as many as requested; of pairs each is a multiple of four, except the last."""
        count, step = sum(samples), PAIRS_AT_ONCE if self._pairs else 1
        if 0 < count < step:
            return parts_of(set_name, [0, count])
        wanted = shards or min(len(samples), count // step)
        return parts_of(set_name, even_bounds(set_name, count, wanted, step))

    def write_part(self, part: Part, contents: Iterator[Content], files: Outputs) -> ExportCounts:
        """X.pkl and X.count."""
        counts = ExportCounts()
        whole = (part.stop - part.start) // PAIRS_AT_ONCE * PAIRS_AT_ONCE
        stem = part.file(f"part-{part.index:05d}" if self._pairs else f"{part.set_name}-{part.index:05d}")
        with _pickled_list(files.path(f"{stem}.pkl")) as append:
            for content in contents:
                if self._pairs and counts.exported == whole:
                    counts.left_out["incomplete_group_of_four"] += 1
                    continue
                value = _pair(content) if self._pairs else _document(content, counts)
                if value is None:
                    counts.left_out["no_image"] += 1
                    continue
                append(value)
                counts.add(content)
        files.path(f"{stem}.count").write_text(str(counts.exported))
        return counts

    def finish(self, exported: ExportedSet, files: Outputs) -> None:
        """Nothing: a third file would break VILA's count."""


def _document(content: Content, counts: ExportCounts) -> dict[str, Any] | None:
    document = mmc4_document(content)
    if document is None:
        return None
    counts.adapted.update(document.adapted)
    return document.value


def _pair(content: Content) -> dict[str, Any]:
    (image,) = content.images
    return {
        "id": content.key,
        "url": image.url,
        "text": content.texts[0],
        "image": base64_text(image.jpeg),
        "clip_sim": image.similarity,
        "record_id": content.record_id,
    }


@contextmanager
def _pickled_list(path: Path) -> Iterator[Any]:
    """A function that appends a value to the pickle of a list."""
    with open(path, "wb", buffering=1 << 20) as stream:
        stream.write(_HEAD)

        def append(value: dict[str, Any]) -> None:
            stream.write(_entry(value) + _APPEND)

        yield append
        stream.write(_STOP)


def _entry(value: dict[str, Any]) -> bytes:
    """A value's opcodes, without a pickle's head and end; equal values give equal bytes."""
    buffer = io.BytesIO()
    pickler = pickle.Pickler(buffer, protocol=2)
    pickler.fast = True  # no references to earlier objects
    pickler.dump(value)
    return buffer.getvalue()[2:-1]
