"""What a preview page shows, as values; and the room that it may take.

How large a picture is and how long a text is a Room, so that a page that came out too large can be drawn again in a
smaller one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from vila_data.explore.preview.drawn_packs import PackLegend, ShownPack

Fate = Literal["kept", "dropped", "failed"]
FATES: Final[tuple[Fate, ...]] = ("kept", "dropped", "failed")


@dataclass(frozen=True, slots=True)
class ShownImage:
    """One image of a record.

    text_index: the text that it stands before, the number of texts behind the last one, None for none. reason, value:
    why it is not kept, and by which number ("0.17 < 0.20"). similarity: to its text. other: a text that it fits better,
    and how well. width, height: pixels as served. jpeg: reads its stored bytes, None where there are none. asked: it is
    what somebody searched for.
    """

    index: int
    jpeg: Callable[[], bytes | None]
    fate: Fate = "kept"
    reason: str = ""
    value: str = ""
    text_index: int | None = None
    similarity: float | None = None
    other: tuple[int, float] | None = None
    width: int | None = None
    height: int | None = None
    url: str = ""
    asked: bool = False


@dataclass(frozen=True, slots=True)
class TokenPiece:
    """A stretch of a training sequence: text that is trained or is not, or an image (`image`: its number)."""

    text: str
    trained: bool = False
    image: int | None = None


@dataclass(frozen=True, slots=True)
class ShownTokens:
    """A record's training sequence. fate: `ok`, or why there is none; cut: tokens that the limits took away;
    more: ids at the end that `pieces` leaves out."""

    shard_set: str
    pieces: tuple[TokenPiece, ...]
    tokens: int
    trained: int
    images_left_out: int = 0
    cut: int = 0
    more: int = 0
    fate: str = "ok"


@dataclass(frozen=True, slots=True)
class ShownRecord:
    """A document, pair or conversation with what became of it; `kind` "" is a metadata row that is no record.

    value: the number that failed, or the problem of the row. texts: their beginnings where they are very long, `lengths`
    then says how long they are. roles: as many as texts, for conversations.
    """

    corpus: str
    record_id: str
    kind: str
    fate: Fate = "kept"
    reason: str = ""
    value: str = ""
    note: str = ""
    source_url: str | None = None
    texts: tuple[str, ...] = ()
    lengths: tuple[int, ...] = ()
    roles: tuple[str, ...] = ()
    system: str | None = None
    images: tuple[ShownImage, ...] = ()
    tokens: ShownTokens | None = None


@dataclass(frozen=True, slots=True)
class CorpusLine:
    """Records of a corpus: in all, those that the choice allows, those on the page."""

    name: str
    records: int
    matching: int
    shown: int


@dataclass(frozen=True)
class PreviewPage:
    """All that the page shows. chosen: how its records were chosen, in words; threshold: of similarity, by corpus."""

    title: str
    chosen: str
    corpora: tuple[CorpusLine, ...]
    records: Sequence[ShownRecord]
    packs: tuple[ShownPack, ...] = ()
    legend: PackLegend = field(default_factory=PackLegend)
    notes: tuple[str, ...] = ()
    thresholds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Room:
    """What a page may take: the longer side of pictures in pixels and their quality (0: no pictures), pictures a
    record, and bytes of text a record."""

    side_px: int
    quality: int
    images: int = 40
    text_bytes: int = 16_000


ROOMS: Final = (
    Room(360, 76),
    Room(320, 72),
    Room(256, 68),
    Room(208, 64),
    Room(160, 58),
    Room(128, 52),
    Room(96, 46),
    Room(72, 40, images=24, text_bytes=8_000),
    Room(48, 34, images=12, text_bytes=3_000),
    Room(0, 0, images=6, text_bytes=1_000),
)
"""From the best to the smallest: the largest one whose page fits is taken."""


@dataclass
class Tally:
    """What was drawn."""

    pictures: int = 0
    picture_bytes: int = 0
    pictures_left_out: int = 0
    pictures_broken: int = 0
    characters_cut: int = 0


def fates_of(record: ShownRecord) -> list[str]:
    """The fates of a record and its images, each once."""
    return list(dict.fromkeys([record.fate, *(image.fate for image in record.images)]))


def reasons_of(record: ShownRecord) -> list[str]:
    """The reasons of a record and its images, each once."""
    return list(dict.fromkeys(filter(None, [record.reason, *(image.reason for image in record.images)])))
