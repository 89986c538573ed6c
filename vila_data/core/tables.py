"""Schemas of the run's tables, and how they are read: in the calling thread, without pyarrow's own threads.

pyarrow's own threads, those that read ahead among them, may still hold a Python stream when the
interpreter ends; a process whose work is done then dies with SIGABRT ("terminate called without an
active exception"): one in five under load, with pyarrow 26. Tasks run side by side anyway.
`pyarrow.parquet.read_table` has such threads whatever it is told, since it goes over a dataset."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import pyarrow as pa

from vila_data.core.errors import DataError
from vila_data.core.store import Store

SCHEMA_VERSION: Final = 2
"""Of the tables, and of a set's manifest.json: a reader refuses another one. 2: checksums, widths and heights."""


def check_version(where: str, what: str, found: Any, read: int) -> None:
    """Refuse what another version of the package made. what: the name of its version's number.

    Raises:
        DataError: the number found is not the one that this version reads; says what to do.
    """
    if found != read:
        raise DataError(
            f"{where}: {what} {found}, this version of vila-data reads {what} {read}: make the run again with another "
            "--out, or use the version that made it"
        )


DOWNLOAD_IMAGES: Final = pa.schema(
    [
        pa.field("row", pa.int32(), nullable=False),
        pa.field("record_id", pa.string(), nullable=False),
        pa.field("image_index", pa.int32(), nullable=False),
        pa.field("url", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),  # ok | failed
        pa.field("error", pa.string()),  # core.fates.IMAGE_ERRORS, null if ok
        pa.field("http_code", pa.int32()),
        pa.field("sha256", pa.string()),  # of the stored JPEG, hex
        pa.field("width", pa.int32()),  # of the stored JPEG, pixels
        pa.field("height", pa.int32()),
        pa.field("bytes", pa.int64()),
        pa.field("original_width", pa.int32()),  # as served, EXIF orientation applied
        pa.field("original_height", pa.int32()),
        pa.field("original_bytes", pa.int64()),
        pa.field("phash", pa.string()),  # 64 bits, hex
        pa.field("matched_text_index", pa.int32()),  # as published
        pa.field("offset", pa.int64()),  # of the JPEG's bytes in the part's tar
        pa.field("detail", pa.string()),  # an unsupported format's name, a limit, or profile_ignored; else null
    ]
)
"""download/<corpus>/part-NNNNN.parquet: one row an image, in record and image order."""

DOWNLOAD_RECORDS: Final = pa.schema(
    [
        pa.field("row", pa.int32(), nullable=False),
        pa.field("record_id", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),  # ok | failed
        pa.field("error", pa.string()),  # core.fates.RECORD_REASONS, null if ok
        pa.field("detail", pa.string()),  # file, line and problem of a failed record
        pa.field("n_images", pa.int32(), nullable=False),
        pa.field("n_texts", pa.int32(), nullable=False),
        pa.field("text_chars", pa.int64(), nullable=False),
        pa.field("json_bytes", pa.int64(), nullable=False),
        pa.field("offset", pa.int64()),  # of the record's block in the part's tar: JSON, then its images
        pa.field("size", pa.int64()),
        pa.field("json_sha256", pa.string()),  # of the record's JSON, hex; null if failed
    ]
)
"""download/<corpus>/part-NNNNN.records.parquet: one row a metadata row, in order."""

SCORE_IMAGES: Final = pa.schema(
    [
        pa.field("row", pa.int32(), nullable=False),
        pa.field("record_id", pa.string(), nullable=False),
        pa.field("image_index", pa.int32(), nullable=False),
        pa.field("scored", pa.bool_(), nullable=False),  # false: no bytes, or a cheap rule drops it
        pa.field("similarity", pa.float32()),  # to its caption, or to its published sentence
        pa.field("matched_text_index", pa.int32()),  # as published
        pa.field("assigned_text_index", pa.int32()),  # fresh linear assignment
        pa.field("assigned_similarity", pa.float32()),
        pa.field("similarities", pa.list_(pa.float32())),  # documents: to every sentence
    ]
)
"""score/<corpus>/<scorer>/part-NNNNN.parquet of kind clip: one row an image, the same rows as DOWNLOAD_IMAGES."""


def score_schema(unit: str, columns: Iterable[pa.Field]) -> pa.Schema:
    """score/<corpus>/<scorer>/part-NNNNN.parquet of other kinds: the rows of DOWNLOAD_IMAGES (unit ``image``) or of
    DOWNLOAD_RECORDS (``record``), and the scorer's columns, null where `scored` is false."""
    head = [SCORE_IMAGES.field(name) for name in ("row", "record_id", "image_index", "scored")]
    return pa.schema([*(field for field in head if unit == "image" or field.name != "image_index"), *columns])


FATES: Final = pa.schema(
    [
        pa.field("row", pa.int32(), nullable=False),
        pa.field("record_id", pa.string(), nullable=False),
        pa.field("image_index", pa.int32()),  # null: the record itself
        pa.field("fate", pa.string(), nullable=False),  # kept | dropped | failed
        pa.field("reason", pa.string()),  # rule or error, null if kept
        pa.field("stage", pa.string(), nullable=False),  # stage in which it was decided: download | filter
        pa.field("text_index", pa.int32()),  # of a kept image: the sentence that it comes before
        pa.field("similarity", pa.float32()),  # of a kept image: to that sentence
    ]
)
"""filter/<corpus>/part-NNNNN.parquet: each record's row, followed by its images' rows."""

SHARD_INDEX: Final = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("record_id", pa.string(), nullable=False),
        pa.field("n_images", pa.int32(), nullable=False),
        pa.field("text_chars", pa.int64(), nullable=False),
        pa.field("members", pa.list_(pa.string()), nullable=False),  # in tar order
        pa.field("offsets", pa.list_(pa.int64()), nullable=False),  # of each member's bytes
        pa.field("sizes", pa.list_(pa.int64()), nullable=False),
        pa.field("crc32c", pa.list_(pa.uint32()), nullable=False),  # of each member's bytes
        pa.field("widths", pa.list_(pa.int32()), nullable=False),  # of each image, pixels
        pa.field("heights", pa.list_(pa.int32()), nullable=False),
        pa.field("similarities", pa.list_(pa.float32()), nullable=False),  # one an image, null if not scored
    ]
)
"""shards/<set>/<set>-NNNNNN.parquet: one row a sample, in tar order."""

IMAGE_ID: Final = -200
"""Is in `ids` once for each image, however many tokens the image takes."""
IGNORED: Final = -100
"""Label of what is not trained."""

TOKENS: Final = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("record_id", pa.string(), nullable=False),
        pa.field("ids", pa.list_(pa.int32()), nullable=False),  # IMAGE_ID once for each image
        pa.field("trained", pa.list_(pa.int32()), nullable=False),  # start, stop, start, stop … places in ids
        pa.field("images", pa.list_(pa.int32()), nullable=False),  # number of the sample's image, one for each IMAGE_ID
        pa.field("offsets", pa.list_(pa.int64()), nullable=False),  # of those images' bytes in the shard's tar
        pa.field("sizes", pa.list_(pa.int64()), nullable=False),
        pa.field("crc32c", pa.list_(pa.uint32()), nullable=False),  # of those images' bytes
        pa.field("widths", pa.list_(pa.int32()), nullable=False),  # of those images, pixels
        pa.field("heights", pa.list_(pa.int32()), nullable=False),
        pa.field("tokens", pa.int32(), nullable=False),  # length with images expanded; 0: not in the stream
        pa.field("images_left_out", pa.int32(), nullable=False),
        pa.field("tokens_cut", pa.int32(), nullable=False),
        pa.field("fate", pa.string(), nullable=False),  # encode.sequence.FATES
        pa.field("detail", pa.string(), nullable=False),  # why it is not ok, in the chat template's words; else empty
        pa.field("row_crc32c", pa.uint32(), nullable=False),  # encode.token_set.row_crc32c
    ]
)
"""tokens/<tokenizer>/<set>/<encoding>/<set>-NNNNNN.arrow: one row a sample, in the shard's order."""

LENGTHS: Final = pa.schema(
    [
        pa.field("shard", pa.int32(), nullable=False),
        pa.field("row", pa.int32(), nullable=False),
        pa.field("tokens", pa.int32(), nullable=False),  # as in TOKENS
        pa.field("images", pa.int32(), nullable=False),
        pa.field("widths", pa.list_(pa.int32()), nullable=False),
        pa.field("heights", pa.list_(pa.int32()), nullable=False),
        pa.field("text_tokens", pa.int32(), nullable=False),
        pa.field("images_left_out", pa.int32(), nullable=False),
        pa.field("tokens_cut", pa.int32(), nullable=False),
        pa.field("fate", pa.string(), nullable=False),
    ]
)
"""tokens/<tokenizer>/<set>/<encoding>/lengths.parquet: what blends and packs are planned from."""


def read_table(
    store: Store,
    path: str,
    columns: Sequence[str] | None = None,
    schema: pa.Schema | None = None,
    *,
    what: str = "a whole Parquet table",
    advice: str = "run check on the run",
) -> pa.Table:
    """A Parquet file of a store, or some of its columns. what, advice: as for `parsing`.

    Raises:
        DataError: it is not a whole Parquet file, or not of `schema`, or lacks a column.
        StorageError: it is missing or cannot be read.
    """
    with store.open_read(path) as stream, parsing(store.location(path), what, advice):
        return read_parquet(stream, None if columns is None else list(columns), schema)


@contextmanager
def parsing(
    where: str, what: str = "a whole Parquet table", advice: str = "run check on the run", *more: type[Exception]
) -> Iterator[None]:
    """Raise pyarrow's errors in the block, and those of `more`, as a DataError: ``{where}: not {what}: {error}; {advice}``."""
    try:
        yield
    except (pa.ArrowException, *more) as error:
        raise DataError(f"{where}: not {what}: {error}; {advice}") from error


def read_parquet(stream: Any, columns: list[str] | None = None, schema: pa.Schema | None = None) -> pa.Table:
    """A whole Parquet file, or some of its columns.

    Raises:
        pyarrow.ArrowInvalid: it is not a complete Parquet file, or not of `schema`, or lacks a column.
    """
    from pyarrow import parquet as pq  # loader processes do without it

    names = schema.names if columns is None and schema is not None else columns
    table = pq.ParquetFile(stream, pre_buffer=False).read(columns=names, use_threads=False)
    if names is None:
        return table
    missing = [name for name in names if name not in table.column_names]
    if missing:
        raise pa.ArrowInvalid(f"no column {missing[0]!r}")
    table = table.select(names)
    return table if schema is None else table.cast(pa.schema([schema.field(name) for name in names]))


def read_arrow(source: Any) -> pa.Table:
    """A whole Arrow IPC file; of a memory map nothing is copied.

    Raises:
        pyarrow.ArrowInvalid: it is not a complete Arrow file.
    """
    with pa.ipc.open_file(source, options=pa.ipc.IpcReadOptions(use_threads=False)) as file:
        return file.read_all()
