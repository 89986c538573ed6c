"""Reading token files: one sample by its number, from a mapped file, in microseconds.

Nothing here needs a tokenizer, and nothing heavy is imported: loader processes begin with this file.
"""

from __future__ import annotations

import ctypes
import json
import mmap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, NamedTuple
from weakref import WeakSet

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vila_data.core.checksums import crc32c
from vila_data.core.errors import DataError
from vila_data.core.store import Store
from vila_data.core.tables import IGNORED, IMAGE_ID, LENGTHS, TOKENS, parsing, read_table

_MAPPED: Final = 1_024
"""About as many shards as a block's samples come from: a block of 65,536 has 1,024 chunks of 64 rows."""
_IN_MEMORY: Final = 64
_MADVISE: Final = ctypes.CDLL(None).madvise


@dataclass(frozen=True)
class TokenManifest:
    """The manifest of a set's token files: tokens/…/manifest.json, written last.

    counts: of encode.part.COUNTS, `samples`, and failed:<fate>; shards: how many token files.
    """

    name: str
    tokenizer: str
    encoding: str
    inputs: str
    shards: int
    counts: dict[str, int]


def read_token_manifest(store: Store, folder: str) -> TokenManifest | None:
    """The manifest of the token files in a directory; None where they are not finished."""
    path = f"{folder}/manifest.json"
    if store.size(path) is None:
        return None
    try:
        return TokenManifest(**json.loads(store.read(path)))
    except (ValueError, TypeError) as error:
        raise DataError(f"{store.location(path)}: is not a manifest of token files: {error}") from error


class TokenSample(NamedTuple):
    """Everything needed to read one sample; the arrays are read-only views of its token file.

    ids int32[n]: one IMAGE_ID per image; trained int32[m, 2]: (start, stop) spans of `ids` that are
    labels. images int32[k]: number of the sample's image for each IMAGE_ID; offsets, sizes int64[k]: bytes of its JPEG
    in the shard's tar; crc32c uint32[k], widths, heights int32[k]: its checksum and pixels. tokens: length with images expanded; in the fidelity modes the last image may be cut by it.
    placeholders: positions of IMAGE_ID in `ids`.
    """

    key: str
    record_id: str
    ids: NDArray[np.int32]
    trained: NDArray[np.int32]
    images: NDArray[np.int32]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    crc32c: NDArray[np.uint32]
    widths: NDArray[np.int32]
    heights: NDArray[np.int32]
    tokens: int
    placeholders: list[int]

    @property
    def labels(self) -> NDArray[np.int32]:
        """int32[n], a new array: the id where a place is trained, else IGNORED."""
        labels = np.full(len(self.ids), IGNORED, np.int32)
        for first, last in self.trained.tolist():
            labels[first:last] = self.ids[first:last]
        return labels


def row_crc32c(key: bytes | memoryview, record_id: bytes | memoryview, tokens: int, *lists: Any) -> int:
    """The checksum of a row of core.tables.TOKENS. key, record_id: in UTF-8; lists: items of `ids` to `heights`."""
    return crc32c(b"".join((key, record_id, *lists, tokens.to_bytes(4, "little"))))


class TokenSet:
    """A set's token files, open for reading.

    local_copy: gives a whole file of the store as a local path, which is mapped; without it files of a store that is
    not local are read into memory. open_files: how many stay mapped (1,024 if not given) or in memory (64), those used
    last; a mapped file holds no descriptor.
    """

    def __init__(
        self,
        store: Store,
        manifest: TokenManifest,
        folder: str,
        *,
        local_copy: Callable[[str], Path] | None = None,
        open_files: int | None = None,
    ) -> None:
        self.manifest, self.folder = manifest, folder
        self._store, self._local_copy = store, local_copy
        self._maps = store.is_local or local_copy is not None
        self._mapped: WeakSet[_TokenFile] = WeakSet()
        self._file = lru_cache(maxsize=open_files or (_MAPPED if self._maps else _IN_MEMORY))(self._open)

    def lengths(self, columns: Sequence[str] = tuple(LENGTHS.names)) -> pa.Table:
        """core.tables.LENGTHS, or some of its columns: a row a sample, in the order of shards and rows."""
        path = f"{self.folder}/lengths.parquet"
        if self._store.size(path) is None:
            raise DataError(f"{self._store.location(path)}: missing: run the recipe again to encode it")
        advice = "delete it and run the recipe again"
        return read_table(self._store, path, columns, LENGTHS, what="the lengths of token files", advice=advice)

    def sample(self, shard: int, row: int) -> TokenSample:
        """One sample.

        Raises:
            DataError: its token file is missing or damaged.
        """
        file = self._file(shard)
        try:
            return file.sample(row)
        except (ValueError, IndexError) as error:
            raise DataError(
                f"{self._store.location(self._path(shard))}: row {row}: {error}; delete it and run the recipe again"
            ) from error

    def let_pages_go(self) -> None:
        """Drop the pages of mapped files from this process's memory; the kernel may keep them cached."""
        for file in self._mapped:
            _MADVISE(ctypes.c_void_p(file.source.address), ctypes.c_size_t(file.source.size), mmap.MADV_DONTNEED)

    def _path(self, shard: int) -> str:
        return f"{self.folder}/{self.manifest.name}-{shard:06d}.arrow"

    def _open(self, shard: int) -> _TokenFile:
        path = self._path(shard)
        where = self._store.location(path)
        with parsing(where, "a token file", "delete it and run the recipe again", ValueError, OSError):
            try:
                file = _TokenFile(self._source(path))
            except FileNotFoundError as error:
                raise DataError(f"{where}: missing: run the recipe again to encode it") from error
        if self._maps:
            self._mapped.add(file)
        return file

    def _source(self, path: str) -> pa.Buffer:
        if self._maps:
            local = self._store.location(path) if self._local_copy is None else str(self._local_copy(path))
            return pa.memory_map(local).read_buffer()
        if self._store.size(path) is None:
            raise FileNotFoundError(path)
        return pa.py_buffer(self._store.read(path))


class _TokenFile:
    """One token file, as views of its buffers; offsets are memoryviews, whose items are Python's own integers."""

    def __init__(self, source: pa.Buffer) -> None:
        self.source = source
        file = pa.ipc.open_file(pa.BufferReader(source), options=_READ_OPTIONS)
        if file.num_record_batches != 1 or not file.schema.equals(TOKENS):
            raise ValueError(f"{file.num_record_batches} batches with columns {', '.join(file.schema.names)}")
        batch = file.get_batch(0)
        batch.validate()
        self._rows: int = batch.num_rows
        self._key, self._record_id = (_Strings(batch.column(name)) for name in ("key", "record_id"))
        self._lists = [_list_column(batch.column(name), kind) for name, kind in _LISTS.items()]
        ends = [np.asarray(found) for found, _, _ in self._lists[2:]]
        self._same_images = all(np.array_equal(ends[0], other) for other in ends[1:])
        self._no_images = [values[:0] for _, values, _ in self._lists[2:]]
        self._tokens = _integers(batch.column("tokens").buffers()[1])
        self._row_crc32c = _integers(batch.column("row_crc32c").buffers()[1], np.uint32)

    def sample(self, row: int) -> TokenSample:
        """One row; ValueError or IndexError where it cannot be a sample's."""
        if not 0 <= row < self._rows:
            raise IndexError(f"there are {self._rows} rows")
        key, record_id, tokens = self._key.row(row), self._record_id.row(row), self._tokens[row]
        ids, trained = (_list(column, row) for column in self._lists[:2])
        ends = self._lists[2][0]
        if self._same_images and ends[row] == ends[row + 1]:
            of_images = self._no_images
        else:
            of_images = [_list(column, row) for column in self._lists[2:]]
        if row_crc32c(key, record_id, tokens, ids, trained, *of_images) != self._row_crc32c[row]:
            raise ValueError("its checksum does not match: the bytes have changed")
        images, offsets, sizes, checksums, widths, heights = of_images
        placeholders: list[int] = (ids == IMAGE_ID).nonzero()[0].tolist()
        if {*map(len, of_images)} != {len(placeholders)}:
            raise ValueError("the image columns and the placeholders in ids differ in number")
        places = trained.tolist()
        if places and (places[0] < 0 or places[-1] > len(ids) or places != sorted(places)):
            raise ValueError(f"trained spans {places} of {len(ids)} ids")
        return TokenSample(
            str(key, "utf-8"),
            str(record_id, "utf-8"),
            ids,
            trained.reshape(-1, 2),
            images,
            offsets,
            sizes,
            checksums,
            widths,
            heights,
            tokens,
            placeholders,
        )


_LISTS: Final[dict[str, type[np.integer]]] = {
    field.name: field.type.value_type.to_pandas_dtype() for field in TOKENS if pa.types.is_list(field.type)
}
_READ_OPTIONS: Final = pa.ipc.IpcReadOptions(use_threads=False)


def _integers(buffer: pa.Buffer | None, kind: type[np.integer] = np.int32) -> memoryview:
    """Values whose items are Python's own integers; ValueError where the buffer holds none."""
    if buffer is None:
        raise ValueError("a column without values")
    return np.frombuffer(buffer, kind).data


_Lists = tuple[memoryview, NDArray[Any], int]


def _list(column: _Lists, row: int) -> NDArray[Any]:
    """The list of one row."""
    ends, values, count = column
    first, last = ends[row], ends[row + 1]
    if not 0 <= first <= last <= count:
        raise ValueError(f"a list from {first} to {last} of {count} values")
    return values[first:last]


def _list_column(column: pa.ListArray, kind: type[np.integer]) -> _Lists:
    """A column of lists of integers: where each row ends, the values, and how many there are."""
    _, ends, _, buffer = column.buffers()
    values = np.frombuffer(buffer, kind) if buffer is not None else np.zeros(0, kind)
    return _integers(ends), values, len(values)


class _Strings:
    """A column of strings."""

    def __init__(self, column: pa.StringArray) -> None:
        _, ends, data = column.buffers()
        self._ends = _integers(ends)
        self._data = memoryview(data if data is not None else b"")

    def row(self, row: int) -> memoryview:
        first, last = self._ends[row], self._ends[row + 1]
        if not 0 <= first <= last <= len(self._data):
            raise ValueError(f"a text from {first} to {last} of {len(self._data)} bytes")
        return self._data[first:last]
