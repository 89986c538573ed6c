"""A prepared Megatron-Energon dataset: tars, `.nv-meta/` with its sqlite index, a `.tar.idx` for each tar; and the run's blend.

Members are in the order of the set. Documents come through a sample_loader, pairs are CaptioningSamples, conversations
crude data for a cooker of one's own. What is written is what `energon prepare` makes of these tars (tests/conformance).

The blend is a MetadatasetV2, whose weights count samples: a weight that counts images or tokens is divided by the set's
measured images or tokens per sample, and a blend inside the blend is multiplied out, since Energon's blends hold datasets alone."""

from __future__ import annotations

import json
import sqlite3
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

import yaml

from vila_data.core.errors import DataError
from vila_data.core.receipts import Outputs
from vila_data.core.tarcodec import BLOCK
from vila_data.export.format import Content, ExportCounts, ExportedSet, Part, cut_as_shards, tar_file
from vila_data.mix.config import InnerBlend, Unit
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
        """One tar per shard, or as many as requested."""
        return cut_as_shards(set_name, samples, shards)

    def write_part(self, part: Part, contents: Iterator[Content], files: Outputs) -> ExportCounts:
        """Write a tar and its index; leaves a row per sample for the sqlite index."""
        counts = ExportCounts()
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
                counts.add(content)
            end = tar.position
        files.path(part.file(f"{_tar(part)}.idx")).write_bytes(tar_index(starts, end))
        return counts

    def finish(self, exported: ExportedSet, files: Outputs) -> None:
        """Write `.nv-meta/`; all tars are the split `train`."""
        directory = f"{exported.set_name}/.nv-meta"
        shards = [(_tar(done.part), done.counts["exported"]) for done in exported.parts]
        for name, data in metadata_files(exported.view, shards).items():
            files.path(f"{directory}/{name}").write_bytes(data)
        files.path(f"{directory}/index.uuid").write_text(str(uuid.uuid5(uuid.NAMESPACE_OID, exported.fingerprint)))
        _write_index(files.path(f"{directory}/index.sqlite"), exported)


def _tar(part: Part) -> str:
    return f"{part.set_name}-{part.index:06d}.tar"


def _write_index(path: Path, exported: ExportedSet) -> None:
    """Write the sqlite index: the bytes of each sample and member in its tar. The same rows give the same file.

    Raises:
        OSError: it cannot be written (sqlite raises an error of its own).
        DataError: two samples of the set have the same key.
    """
    database = sqlite3.connect(path)
    try:
        database.execute("PRAGMA journal_mode = OFF")  # the file is committed whole or not at all
        database.execute("PRAGMA synchronous = OFF")
        for statement in _TABLES:
            database.execute(statement)
        tar, index = -1, 0
        for part, line in exported.rows():
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
        raise DataError(f"{exported.set_name}: duplicate key {key}: run check on the set") from error
    finally:
        database.close()


@dataclass(frozen=True)
class SetTotals:
    """Totals of a set; tokens: None if the run has not encoded it."""

    samples: int
    images: int
    tokens: int | None

    def mean(self, unit: Unit) -> float | None:
        """Mean per sample; None if it is not known or the set is empty."""
        total = {"samples": self.samples, "images": self.images, "tokens": self.tokens}[unit]
        return None if total is None or not self.samples else total / self.samples


@dataclass(frozen=True)
class SampleBlend:
    """Sets with their shares of the samples, which sum to 1, in the recipe's order."""

    shares: tuple[tuple[str, float], ...]
    counted: tuple[Unit, ...]


class NotExpressible(Exception):
    """The blend uses something that Energon's blends lack; the message says what."""


def sample_blend(blend: InnerBlend, totals: Mapping[str, SetTotals]) -> SampleBlend:
    """The blend by samples.

    totals: of the sets that are exported.

    Raises:
        NotExpressible: a subset, weights that change, a set that is not exported, or one whose tokens are not counted.
    """
    shares = _shares(blend, totals)
    counted = {blend.weight_unit, *(unit for unit in _inner_units(blend))}
    return SampleBlend(tuple(shares), tuple(sorted(counted)))


def metadataset_yaml(found: SampleBlend, totals: Mapping[str, SetTotals]) -> bytes:
    """The file; its paths are relative to it, and its head says where the weights come from."""
    head = [
        "# Megatron-Energon's MetadatasetV2 of the run's blend. Energon's weights count samples; the recipe's count",
        f"# {' and '.join(found.counted)}: each was divided by the set's measured mean.",
    ]
    for name in dict.fromkeys(name for name, _ in found.shares):
        means = [f"{totals[name].mean(unit):.6g} {unit}" for unit in found.counted if unit != "samples"]
        if means:
            head.append(f"#   {name}: {', '.join(means)} per sample")
    head.append(
        "# Energon draws from each set without end: what the recipe says of repeat and on_exhaustion is not in this file."
    )
    value: dict[str, Any] = {
        "__module__": "megatron.energon",
        "__class__": "MetadatasetV2",
        "splits": {"train": {"blend": [{"weight": share, "path": name} for name, share in found.shares]}},
    }
    return "\n".join([*head, yaml.safe_dump(value, sort_keys=False)]).encode()


def _shares(blend: InnerBlend, totals: Mapping[str, SetTotals]) -> list[tuple[str, float]]:
    """Each set's share of the samples of a blend."""
    unit = blend.weight_unit
    found: list[tuple[str, float]] = []
    for source in blend.sources:
        if source.subset is not None:
            raise NotExpressible(f"{source.name} is used in part (subset)")
        if isinstance(source.weight, dict):
            raise NotExpressible(f"the weight of {source.name} changes over the steps")
        inner = [(source.name, 1.0)] if source.blend is None else _shares(source.blend, totals)
        mean = sum(share * _mean(name, unit, totals) for name, share in inner)
        if not mean:
            raise NotExpressible(f"weights count {unit}, and {source.name} has none")
        found += [(name, share * source.weight / mean) for name, share in inner]
    whole = sum(share for _, share in found)
    return [(name, share / whole) for name, share in found]


def _mean(name: str, unit: Unit, totals: Mapping[str, SetTotals]) -> float:
    if name not in totals:
        raise NotExpressible(f"{name} is not exported")
    mean = totals[name].mean(unit)
    if mean is None:
        reason = "is empty" if not totals[name].samples else f"has no count of {unit}: run its recipe to the end"
        raise NotExpressible(f"{name} {reason}")
    return mean


def _inner_units(blend: InnerBlend) -> set[Unit]:
    units: set[Unit] = set()
    for source in blend.sources:
        if source.blend is not None:
            units |= {source.blend.weight_unit} | _inner_units(source.blend)
    return units
