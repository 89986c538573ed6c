"""What a preview shows, as the sources read it and the page's template takes it; and the sources' protocol."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vila_data.core.readable import many

Fate = Literal["kept", "dropped", "failed"]
FATES: Final[tuple[Fate, ...]] = ("kept", "dropped", "failed")


@dataclass(frozen=True, slots=True)
class PreviewImage:
    """One image of a record.

    jpeg: reads its stored bytes, None if there are none. reason, detail: why it was not kept, and the number that
    failed the rule ("0.17 < 0.20"). text_index: the text that it comes before; the number of texts if it comes after
    the last one; None for none. similarity: to that text. better: (text, similarity) of a text that is more similar.
    width, height: pixels as published. highlighted: it is the image that was searched for.
    """

    index: int
    jpeg: Callable[[], bytes | None]
    fate: Fate = "kept"
    reason: str = ""
    detail: str = ""
    text_index: int | None = None
    similarity: float | None = None
    better: tuple[int, float] | None = None
    width: int | None = None
    height: int | None = None
    url: str = ""
    highlighted: bool = False

    @property
    def size(self) -> str:
        """Width and height in words; empty if they are unknown."""
        return f"{self.width:,} x {self.height:,}" if self.width and self.height else ""


@dataclass(frozen=True, slots=True)
class TokenPiece:
    """A piece of a training sequence: text that counts in the loss or does not, or an image (`image`: its index)."""

    text: str
    trained: bool = False
    image: int | None = None


@dataclass(frozen=True, slots=True)
class TrainingSequence:
    """A record's training sequence.

    fate: "ok", or why there is none. truncated: tokens removed to fit the limits, images_omitted: images. more: token
    ids at the end that are not in `pieces`.
    """

    shard_set: str
    pieces: tuple[TokenPiece, ...]
    tokens: int
    trained: int
    images_omitted: int = 0
    truncated: int = 0
    more: int = 0
    fate: str = "ok"


@dataclass(frozen=True, slots=True)
class PreviewRecord:
    """A document, pair or conversation and its fate. kind: "" for a metadata row that is not a valid record.

    detail: the number that failed the rule, or the error of the row. roles: one per text, for conversations.
    """

    corpus: str
    record_id: str
    kind: str
    fate: Fate = "kept"
    reason: str = ""
    detail: str = ""
    note: str = ""
    source_url: str | None = None
    texts: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()
    system: str | None = None
    images: tuple[PreviewImage, ...] = ()
    sequence: TrainingSequence | None = None

    @property
    def fates(self) -> list[str]:
        """Fates of the record and its images, each once."""
        return list(dict.fromkeys([self.fate, *(image.fate for image in self.images)]))

    @property
    def reasons(self) -> list[str]:
        """Reasons of the record and its images, each once."""
        return list(dict.fromkeys(filter(None, [self.reason, *(image.reason for image in self.images)])))

    @property
    def similarities(self) -> list[float]:
        """Of its images that have one."""
        return [image.similarity for image in self.images if image.similarity is not None]


@dataclass(frozen=True, slots=True)
class PackedSample:
    """One sample of a pack. Columns are tokens, images expanded, counted from the sample's first.

    source: number of its shard set. images, trained: (first, stop) columns.
    """

    source: int
    record_id: str
    tokens: int
    images: tuple[tuple[int, int], ...]
    trained: tuple[tuple[int, int], ...]

    @property
    def trained_tokens(self) -> int:
        """Tokens that count in the loss."""
        return sum(stop - first for first, stop in self.trained)


@dataclass(frozen=True, slots=True)
class PreviewPack:
    """A training sequence of `length` columns; those that its samples do not fill are padding."""

    number: int
    length: int
    samples: tuple[PackedSample, ...]

    @property
    def summary(self) -> str:
        """What its bars show, in words."""
        tokens = sum(sample.tokens for sample in self.samples)
        images = sum(len(sample.images) for sample in self.samples)
        trained = sum(sample.trained_tokens for sample in self.samples)
        return (
            f"{many(len(self.samples), 'samples')}, {many(images, 'images')}, {tokens:,} of {self.length:,} tokens "
            f"({tokens / self.length:.1%} full), {trained:,} in the loss"
        )


@dataclass(frozen=True, slots=True)
class CorpusCounts:
    """Records of a corpus: all, those that match the choice, those on the page."""

    name: str
    records: int
    matching: int
    shown: int


@dataclass(frozen=True)
class PreviewPage:
    """Everything that the page shows.

    choice: how its records were chosen, in words. shard_sets: of the packs, by number. thresholds: minimum similarity
    by corpus.
    """

    title: str
    choice: str
    corpora: tuple[CorpusCounts, ...]
    records: Sequence[PreviewRecord]
    packs: tuple[PreviewPack, ...] = ()
    shard_sets: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    thresholds: dict[str, float] = field(default_factory=dict)


class RecordLocation(NamedTuple):
    """Number of a record's corpus, of its part (or shard), and its row there."""

    corpus: int
    part: int
    row: int


@dataclass(frozen=True, slots=True)
class Highlight:
    """Why a record is listed: a note, and the image that was found."""

    note: str = ""
    image_index: int | None = None


@dataclass(frozen=True)
class Columns:
    """What the m records of one part or shard are chosen by.

    allowed bool[m]: has the fate and reason of the choice. low, high float64[m]: the lowest and highest similarity of
    its images, NaN if none is scored.
    """

    allowed: NDArray[np.bool_]
    low: NDArray[np.float64]
    high: NDArray[np.float64]

    @classmethod
    def of(cls, allowed: NDArray[np.bool_], owner: NDArray[np.int64], similarity: NDArray[np.float64]) -> Columns:
        """From each image's record and similarity (NaN: none)."""
        low, high = np.full(len(allowed), np.inf), np.full(len(allowed), -np.inf)
        known = ~np.isnan(similarity)
        np.minimum.at(low, owner[known], similarity[known])
        np.maximum.at(high, owner[known], similarity[known])
        return cls(allowed, np.where(np.isinf(low), np.nan, low), np.where(np.isinf(high), np.nan, high))


@dataclass
class DamagedTokenFiles:
    """files: {file that cannot be read: error}; sequences, packs: how many are not shown because of it."""

    files: dict[str, str] = field(default_factory=dict)
    sequences: int = 0
    packs: int = 0

    def add(self, file: str, error: BaseException, *, sequences: int = 0, packs: int = 0) -> None:
        """Count what cannot be shown because of a file; the first error of a file is kept."""
        text = str(error) or repr(error)
        self.files.setdefault(file, text if text.startswith(file) else f"{file}: {text}")
        self.sequences += sequences
        self.packs += packs

    def counts(self) -> dict[str, int]:
        """{"files", "sequences", "packs"}; empty if all files could be read."""
        counts = {"files": len(self.files), "sequences": self.sequences, "packs": self.packs}
        return counts if self.files else {}

    @property
    def note(self) -> str:
        """One sentence; empty if all files could be read."""
        if not self.files:
            return ""
        lost = [many(n, what) for n, what in ((self.sequences, "training sequences"), (self.packs, "packs")) if n]
        shown = f": {' and '.join(lost)} not shown" if lost else ""
        first = next(iter(self.files.values()))
        return f"{many(len(self.files), 'token files')} damaged or missing{shown}; first error: {first}"


class Source(Protocol):
    """A run, a shard set or a shard, read part by part (shard by shard)."""

    @property
    def corpora(self) -> Sequence[str]:
        """Names, in the recipe's order."""

    @property
    def title(self) -> str:
        """Name for the page's title."""

    @property
    def thresholds(self) -> dict[str, float]:
        """Minimum similarity by corpus, where there is such a rule."""

    @property
    def notes(self) -> Sequence[str]:
        """Sentences for the reader of the page."""

    @property
    def damaged(self) -> DamagedTokenFiles:
        """Token files that could not be read so far."""

    def parts(self, corpus: int) -> Sequence[int]:
        """Numbers of its parts or shards."""

    def columns(self, corpus: int, part: int, fate: str | None, reason: str | None) -> Columns:
        """What records are chosen by."""

    def record_ids(self, corpus: int, part: int) -> pa.ChunkedArray:
        """One per record."""

    def texts(self, corpus: int, part: int, rows: Sequence[int]) -> Iterator[Sequence[str]]:
        """The texts of some records that `--text` searches, in the order given."""

    def sequences(self, locations: Sequence[RecordLocation]) -> dict[RecordLocation, TrainingSequence]:
        """Training sequences of those records that have one."""

    def record(
        self, location: RecordLocation, highlight: Highlight, sequence: TrainingSequence | None
    ) -> PreviewRecord:
        """A record; the bytes of its images are read later."""
