"""A Megatron-Energon data set, prepared: tars, `.nv-meta/` with its sqlite index, and a `.tar.idx` for each tar.

Members lie as they do in the set. Documents come through a sample_loader, pairs are CaptioningSamples, conversations crude data for a
cooker of one's own. What is written is what `energon prepare` makes of these tars (tests/conformance).
"""

from __future__ import annotations

import json
import sqlite3
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar, Final

from vila_data.core.errors import DataError
from vila_data.core.receipts import Outputs
from vila_data.core.tarcodec import BLOCK
from vila_data.export.content import Content
from vila_data.export.format import Part, Tally, Whole, cut_as_shards, tar_file
from vila_data.shard.config import View
from vila_data.shard.manifest import metadata_files, tar_index

_TABLES: Final = (
    "CREATE TABLE samples (tar_file_id INTEGER NOT NULL, sample_key TEXT NOT NULL UNIQUE, "
    "sample_index INTEGER NOT NULL, byte_offset INTEGER, byte_size INTEGER)",
    "CREATE TABLE sample_parts (tar_file_id INTEGER, sample_index INTEGER, part_name TEXT, "
    "content_byte_offset INTEGER, content_byte_size INTEGER)",
)
_INDEXES: Final = (
    "CREATE INDEX idx_samples_by_tar_and_idx ON samples(tar_file_id, sample_index)",
    "CREATE INDEX idx_sample_parts_seq ON sample_parts(tar_file_id, sample_index, content_byte_offset)",
    "CREATE INDEX idx_sample_parts_full ON sample_parts"
    "(tar_file_id, sample_index, part_name, content_byte_offset, content_byte_size)",
)


class Energon:
    """See the module."""

    name: ClassVar[str] = "energon"
    views: ClassVar[tuple[View, ...]] = ("interleaved", "pairs", "conversations")
    revision: ClassVar[int] = 1

    def __init__(self, view: View) -> None:
        del view

    def cut(self, set_name: str, samples: Sequence[int], shards: int | None) -> list[Part]:
        """A tar a shard, or as many as are asked for."""
        return cut_as_shards(set_name, samples, shards)

    def write_part(self, part: Part, contents: Iterator[Content], files: Outputs) -> Tally:
        """A tar and its index; a row a sample is left for the sqlite index."""
        tally = Tally()
        starts: list[int] = []
        with (
            tar_file(files.path(part.file(_tar(part)))) as tar,
            open(files.path(part.rows), "wb", buffering=1 << 20) as rows,
        ):
            for content in contents:
                starts.append(tar.position)
                placed = [tar.add(name, data) for name, data in content.members.items()]
                members = [[one.name.split(".", 1)[1], one.offset, one.size] for one in placed]
                row = [content.key, placed[0].offset - BLOCK, tar.position - starts[-1], members]
                rows.write(json.dumps(row).encode() + b"\n")
                tally.add(content)
            end = tar.position
        files.path(part.file(f"{_tar(part)}.idx")).write_bytes(tar_index(starts, end))
        return tally

    def finish(self, whole: Whole, files: Outputs) -> None:
        """`.nv-meta/`; all tars are the split `train`."""
        folder = f"{whole.set_name}/.nv-meta"
        shards = [(_tar(done.part), done.counts["exported"]) for done in whole.parts]
        for name, data in metadata_files(whole.view, shards).items():
            files.path(f"{folder}/{name}").write_bytes(data)
        files.path(f"{folder}/index.uuid").write_text(str(uuid.uuid5(uuid.NAMESPACE_OID, whole.fingerprint)))
        _write_index(files.path(f"{folder}/index.sqlite"), whole)


def _tar(part: Part) -> str:
    return f"{part.set_name}-{part.index:06d}.tar"


def _write_index(path: Path, whole: Whole) -> None:
    """Which bytes of which tar each sample and each member takes; the same rows give the same file.

    Raises:
        OSError: it cannot be written; sqlite says so by an error of its own.
        DataError: two samples of the set have one key.
    """
    database = sqlite3.connect(path)
    try:
        database.execute("PRAGMA journal_mode = OFF")  # the file is committed whole or not at all
        database.execute("PRAGMA synchronous = OFF")
        for statement in _TABLES:
            database.execute(statement)
        tar, index = -1, 0
        for part, line in whole.rows():
            index = index + 1 if part.index == tar else 0
            tar = part.index
            key, offset, size, members = json.loads(line)
            database.execute("INSERT INTO samples VALUES (?, ?, ?, ?, ?)", (tar, key, index, offset, size))
            database.executemany(
                "INSERT INTO sample_parts VALUES (?, ?, ?, ?, ?)", [(tar, index, *member) for member in members]
            )
        for statement in _INDEXES:
            database.execute(statement)
        database.commit()
    except sqlite3.OperationalError as error:
        raise OSError(f"the index cannot be written: {error}") from error
    except sqlite3.IntegrityError as error:
        raise DataError(f"{whole.set_name}: key {key} stands twice: run check on the set") from error
    finally:
        database.close()
