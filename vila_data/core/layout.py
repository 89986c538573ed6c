"""Names of files in a run directory (the contract of shards/FORMAT.md), and the unit of work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

RUN_DIRECTORIES: Final = ("download", "score", "filter", "shards", "tokens", "search")
"""Directories of a run directory that its stages and search write; anything else there does not belong to the run."""

EXPORT_JSON: Final = "export.json"
"""The receipt of an export, in its directory."""


@dataclass(frozen=True, slots=True)
class Part:
    """One slice of a corpus's metadata: raw rows `start` to `stop` of `file`.

    label:   prefix of the record ids of this file, unique in the corpus.
    records: records expected in the slice (after preselection).
    inputs:  fingerprint of the file, the slice and how records are read from it.
    cut:     (score, id) of the last row that preselection keeps, None: all rows.
    """

    corpus: str
    index: int
    file: str
    label: str
    start: int
    stop: int
    records: int
    inputs: str
    cut: tuple[float, int] | None = None

    @classmethod
    def named(cls, corpus: str, index: int) -> Part:
        """A part of which no more is known than the names of its files."""
        return cls(corpus, index, "", "", 0, 0, 0, "")

    @property
    def name(self) -> str:
        """``part-NNNNN``."""
        return f"part-{self.index:05d}"

    def images_tar(self) -> str:
        """Records and their images as downloaded."""
        return f"download/{self.corpus}/{self.name}.tar"

    def images_table(self) -> str:
        """core.tables.DOWNLOAD_IMAGES."""
        return f"download/{self.corpus}/{self.name}.parquet"

    def records_table(self) -> str:
        """core.tables.DOWNLOAD_RECORDS."""
        return f"download/{self.corpus}/{self.name}.records.parquet"

    def scores_table(self, scorer: str) -> str:
        """core.tables.score_schema, or SCORE_IMAGES of kind clip."""
        return f"score/{self.corpus}/{scorer}/{self.name}.parquet"

    def fates_table(self) -> str:
        """core.tables.FATES."""
        return f"filter/{self.corpus}/{self.name}.parquet"

    def receipt(self, stage: str) -> str:
        """The receipt of this part for ``download``, ``score SCORER`` or ``filter``."""
        kind, _, scorer = stage.partition(" ")
        return "/".join(filter(None, (kind, self.corpus, scorer, f"{self.name}.json")))


def score_stage(scorer: str) -> str:
    """The stage of one scorer, as progress, receipts and messages have it."""
    return f"score {scorer}"


def record_key(corpus: str, part: int, row: int) -> str:
    """Key of a record in a download tar and of its sample: no dot, unique in a run."""
    return f"{corpus}-{part:05d}-{row:06d}"


def parts_list(corpus: str) -> str:
    """The corpus's parts, as laid out by the first run."""
    return f"download/{corpus}/parts.json"


def shard_stem(name: str, index: int) -> str:
    """Path of a shard without suffix."""
    return f"shards/{name}/{name}-{index:06d}"


def tokens_folder(tokenizer: str, name: str, encoding: str) -> str:
    """Directory of a set's token files. tokenizer, encoding: fingerprints."""
    return f"tokens/{tokenizer}/{name}/{encoding}"
