"""Embeddings in the layout that clip-retrieval writes and embedding-reader reads.

`img_emb/img_emb_NNNNN.npy` and `text_emb/text_emb_NNNNN.npy` hold float16 [N, D], one row a
scored image: its vector and its caption's; `metadata/metadata_NNNNN.parquet` has the same rows.
The reader sorts each directory's names and joins files by position, and it skips an empty
.npy without skipping its metadata: a part without a scored image therefore has none of the three.
"""

from __future__ import annotations

from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vila_data.core.errors import DataError
from vila_data.core.layout import Part, record_key
from vila_data.core.receipts import Outputs
from vila_data.core.store import Store
from vila_data.score.tables import TableWriter

if TYPE_CHECKING:
    from vila_data.score.reading import Job

METADATA: Final = pa.schema(
    [
        pa.field("image_path", pa.string(), nullable=False),  # member name in the part's tar
        pa.field("caption", pa.string(), nullable=False),
        pa.field("url", pa.string()),
        pa.field("key", pa.string(), nullable=False),
        pa.field("record_id", pa.string(), nullable=False),
        pa.field("image_index", pa.int32(), nullable=False),
        pa.field("similarity", pa.float32(), nullable=False),  # of image and caption
    ]
)
"""metadata_NNNNN.parquet."""


def embedding_paths(part: Part, scorer: str) -> tuple[str, str, str]:
    """Image vectors, text vectors and metadata of a part."""
    base, number = f"score/{part.corpus}/{scorer}/embeddings", f"{part.index:05d}"
    return (
        f"{base}/img_emb/img_emb_{number}.npy",
        f"{base}/text_emb/text_emb_{number}.npy",
        f"{base}/metadata/metadata_{number}.parquet",
    )


class EmbeddingFiles:
    """The three files of one part, written row by row.

    The caption is the pair's text, the document's published sentence, or, where none is
    published, the sentence most similar to the image.
    """

    def __init__(
        self, store: Store, part: Part, scorer: str, outputs: Outputs, dim: int, rows: int, known: bool
    ) -> None:
        """`rows` that will be added; `known`: earlier files of the part are there to take vectors from."""
        self._part = part
        self._paths = embedding_paths(part, scorer)
        self._dim = dim
        self._rows = rows
        self._added = 0
        self._stack = ExitStack()
        self._earlier: list[BinaryIO] = []
        self._store = store
        self._outputs = outputs
        self._known = known

    def __enter__(self) -> EmbeddingFiles:
        paths = images, texts, metadata = self._paths
        if self._rows == 0:
            for path in paths:
                self._store.remove(path)
            return self
        with ExitStack() as stack:
            if self._known and self._store.size(images) is not None:
                self._earlier = [self._open_earlier(stack, path) for path in (images, texts)]
            self._files = [self._create(stack, path) for path in (images, texts)]
            self._metadata = stack.enter_context(TableWriter(self._outputs.path(metadata), METADATA))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._stack.__exit__(kind, error, tb)
        if kind is None and self._added != self._rows:
            raise DataError(f"{self._paths[0]}: expected {self._rows} rows, found {self._added}")

    def add(
        self,
        job: Job,
        wanted: list[int],
        similarities_IT: NDArray[np.float32],
        images_ID: dict[int, NDArray[np.float32]],
        texts_TD: NDArray[np.float32],
    ) -> None:
        """The rows of one record: `images_ID`, `texts_TD` for images embedded now, earlier files for the rest."""
        record = job.record
        if record is None:
            return
        key = record_key(self._part.corpus, self._part.index, job.rows.row)
        for number, index in enumerate(wanted):
            image = job.rows.images[index]
            caption = 0 if record.kind == "pair" else image.matched_text_index
            if caption == len(record.texts):  # after the last text: judged by that one
                caption -= 1
            if caption is None or not 0 <= caption < len(record.texts):
                caption = int(np.argmax(similarities_IT[number]))
            if index in images_ID:
                pair = (images_ID[index].astype("<f2").tobytes(), texts_TD[caption].astype("<f2").tobytes())
            else:
                pair = (self._read_earlier(0), self._read_earlier(1))
            for stream, data in zip(self._files, pair, strict=True):
                stream.write(data)
            self._metadata.add(
                f"{key}.{image.image_index}.jpg",
                record.texts[caption],
                record.images[image.image_index].url,
                key,
                record.record_id,
                image.image_index,
                similarities_IT[number, caption],
            )
            self._added += 1

    def _create(self, stack: ExitStack, path: str) -> Any:
        stream = stack.enter_context(self._outputs.path(path).open("wb"))
        facts = {"descr": "<f2", "fortran_order": False, "shape": (self._rows, self._dim)}
        np.lib.format.write_array_header_1_0(stream, facts)
        return stream

    def _open_earlier(self, stack: ExitStack, path: str) -> Any:
        stream = stack.enter_context(self._store.open_read(path))
        np.lib.format.read_magic(stream)
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
        if shape[1:] != (self._dim,) or dtype != np.dtype("<f2"):
            raise DataError(
                f"{self._store.location(path)}: is not float16 of width {self._dim}; delete the part's receipt"
            )
        return stream

    def _read_earlier(self, which: int) -> bytes:
        data = self._earlier[which].read(2 * self._dim) if self._earlier else b""
        if len(data) != 2 * self._dim:
            raise DataError(f"{self._paths[which]}: is truncated; delete the part's score receipt")
        return data
