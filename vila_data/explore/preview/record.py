"""Records as the template takes them: texts cleaned and cut, pictures made small, each at its place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from vila_data.core.errors import DataError
from vila_data.core.records import IMAGE_PLACEHOLDER
from vila_data.explore.preview.text import Shown, link, plain, shown
from vila_data.explore.preview.values import (
    PreviewPage,
    Room,
    ShownImage,
    ShownRecord,
    ShownTokens,
    Tally,
    fates_of,
    reasons_of,
)
from vila_data.explore.thumbnail import Thumbnail, data_uri

_ALT_CHARS: Final = 160
_URL_CHARS: Final = 160
_NAME_CHARS: Final = 120
_SENTENCE_BYTES: Final = 400
"""What a sentence with an image gets where a record's room for text is used up."""
_BLOCK_BYTES: Final = 60
"""What the markup around a text takes of a record's room, about: texts without a word are not free."""
_SCALE_UNITS: Final = 60.0
_TICK_UNITS: Final = 2.0


@dataclass(frozen=True, slots=True)
class Scale:
    """The similarities of a page: their range, to filter by, and the bars' end, which is its highest."""

    low: float
    high: float
    scored: bool

    @classmethod
    def of(cls, page: PreviewPage) -> Scale:
        """The range of all images of a page."""
        found = [image.similarity for record in page.records for image in record.images if image.similarity is not None]
        return cls(min(found, default=0.0), max(found, default=1.0), bool(found))

    def units(self, value: float, width: float = 0.0) -> str:
        """How much of a bar of 60 units a value fills: bars begin at 0, so that half as long is half as similar.

        width: of what is to begin there and stay on the bar.
        """
        whole = self.high if self.high > 0 else 1.0
        return f"{min(min(1.0, max(0.0, value / whole)) * _SCALE_UNITS, _SCALE_UNITS - width):.1f}"


@dataclass(frozen=True, slots=True)
class DrawnUrl:
    """An address to read, and where it may be one, to follow."""

    text: str
    href: str | None


@dataclass(frozen=True, slots=True)
class DrawnImage:
    """An image for the template. missing: what stands in a picture's place; bar, tick: units of its score's bar."""

    number: int
    fate: str
    reason: str
    value: str
    thumbnail: Thumbnail | None
    missing: str
    alt: str
    size: str
    url: DrawnUrl | None
    similarity: float | None
    bar: str
    tick: str
    other: str
    asked: bool


@dataclass(frozen=True, slots=True)
class Block:
    """Images, and the text that they stand before; pieces: a turn's texts and images in its own order; left_out: images
    of this text for which the page has no room."""

    number: int
    role: str
    images: tuple[DrawnImage, ...]
    pieces: tuple[Shown | DrawnImage, ...]
    left_out: int = 0


@dataclass(frozen=True, slots=True)
class DrawnTokens:
    """A training sequence for the template: (text, trained, image's number or 0). whole: nothing of it is left out."""

    facts: ShownTokens
    fate: str
    shard_set: str
    pieces: tuple[tuple[Shown, bool, int], ...]
    whole: bool


@dataclass(frozen=True, slots=True)
class DrawnRecord:
    """A record for the template."""

    number: int
    corpus: str
    name: str
    kind: str
    fate: str
    reason: str
    value: str
    note: Shown | None
    source: DrawnUrl | None
    system: Shown | None
    blocks: tuple[Block, ...]
    more_texts: int
    more_images: int
    tokens: DrawnTokens | None
    fates: str
    reasons: str
    scores: str


def draw_records(
    page: PreviewPage, room: Room, scale: Scale, tally: Tally, advance: Callable[[], None]
) -> Iterator[DrawnRecord]:
    """Each record as it is asked for."""
    for number, record in enumerate(page.records, 1):
        yield _Drawing(record, room, scale, tally, page.thresholds.get(record.corpus)).drawn(number)
        advance()


class _Drawing:
    """One record: its room for text is used up from the front."""

    def __init__(self, record: ShownRecord, room: Room, scale: Scale, tally: Tally, threshold: float | None) -> None:
        self._record, self._room, self._scale, self._tally = record, room, scale, tally
        inside = threshold is not None and scale.scored and 0 <= threshold <= scale.high
        self._tick = scale.units(threshold, _TICK_UNITS) if threshold is not None and inside else ""
        self._left = room.text_bytes
        self._images = record.images[: room.images]

    def drawn(self, number: int) -> DrawnRecord:
        record = self._record
        scores = [image.similarity for image in record.images if image.similarity is not None]
        note = self._text(record.note) if record.note else None
        system = self._text(record.system) if record.system else None
        blocks, more_texts = self._blocks()
        more_images = len(record.images) - len(self._images)
        self._tally.pictures_left_out += more_images
        return DrawnRecord(
            number=number,
            corpus=plain(record.corpus, 60),
            name=plain(record.record_id, _NAME_CHARS),
            kind=plain(record.kind, 20),
            fate=plain(record.fate, 20),
            reason=plain(record.reason, 60),
            value=plain(record.value, 400),
            note=note,
            source=_address(record.source_url),
            system=system,
            blocks=tuple(blocks),
            more_texts=more_texts,
            more_images=more_images,
            tokens=None if record.tokens is None else self._tokens(record.tokens),
            fates=plain(" ".join(fates_of(record)), 60),
            reasons=" ".join(plain(reason, 60).replace(" ", "_") for reason in reasons_of(record)),
            scores=" ".join(f"{score:.4f}" for score in scores),
        )

    def _blocks(self) -> tuple[list[Block], int]:
        """Texts in order, each behind its images; images without a text last. Texts without room are counted."""
        record = self._record
        texts = len(record.texts)
        by_text: dict[int, list[ShownImage]] = {}
        without = Counter(self._place(image) for image in record.images[len(self._images) :])
        for image in self._images:
            by_text.setdefault(self._place(image), []).append(image)
        blocks, left_out = [], 0
        for index, text in enumerate(record.texts):
            images = by_text.pop(index, [])
            if self._left <= 0 and not images:
                left_out += 1
                self._tally.characters_cut += self._length(index)
                continue
            block = self._turn(index, text, images) if record.roles else self._passage(index, text, images)
            blocks.append(replace(block, left_out=without[index]))
            self._left -= _BLOCK_BYTES * (2 if without[index] else 1)
        rest = [self._image(image) for image in by_text.pop(texts, [])]
        if rest:
            blocks.append(Block(0, "", tuple(rest), ()))
        return blocks, left_out

    def _place(self, image: ShownImage) -> int:
        """The text that an image stands before; the number of texts for none."""
        texts = len(self._record.texts)
        return texts if image.text_index is None else min(max(image.text_index, 0), texts)

    def _passage(self, index: int, text: str, images: list[ShownImage]) -> Block:
        drawn = tuple(self._image(image) for image in images)
        return Block(index + 1, "", drawn, (self._text(text, bool(images), self._length(index)),))

    def _turn(self, index: int, text: str, images: list[ShownImage]) -> Block:
        """A turn of a conversation: its images stand where its marks do."""
        pieces: list[Shown | DrawnImage] = []
        waiting = list(images)
        rest = text
        while waiting and IMAGE_PLACEHOLDER in rest:
            before, rest = rest.split(IMAGE_PLACEHOLDER, 1)
            if before.strip():
                pieces.append(self._text(before))
            pieces.append(self._image(waiting.pop(0)))
        if rest.strip():
            gone = self._length(index) - len(text)
            words = rest.removeprefix("\n") if pieces else rest
            pieces.append(self._text(words, bool(images), len(words) + gone))
        pieces += [self._image(image) for image in waiting]
        roles = self._record.roles
        role = plain(roles[index], 20) if index < len(roles) else ""
        return Block(index + 1, role or "unnamed", (), tuple(pieces))

    def _tokens(self, tokens: ShownTokens) -> DrawnTokens:
        self._left = self._room.text_bytes // 2
        pieces: list[tuple[Shown, bool, int]] = []
        for piece in tokens.pieces:
            if self._left <= 0:
                break
            pieces.append((self._text(piece.text), piece.trained, 0 if piece.image is None else piece.image + 1))
            self._left -= _BLOCK_BYTES
        return DrawnTokens(
            tokens,
            plain(tokens.fate, 60),
            plain(tokens.shard_set, 60),
            tuple(pieces),
            len(pieces) == len(tokens.pieces) and not tokens.more,
        )

    def _length(self, index: int) -> int:
        """Characters of a text, those that were not brought included."""
        record = self._record
        return record.lengths[index] if record.lengths else len(record.texts[index])

    def _text(self, text: str, needed: bool = False, length: int | None = None) -> Shown:
        found = shown(text, max(self._left, _SENTENCE_BYTES if needed else 0), length)
        self._left -= len(found.markup.encode())
        self._tally.characters_cut += found.cut
        return found

    def _image(self, image: ShownImage) -> DrawnImage:
        thumbnail, missing = self._thumbnail(image)
        size = f"{image.width:,} x {image.height:,}" if image.width and image.height else ""
        return DrawnImage(
            number=image.index + 1,
            fate=plain(image.fate, 20),
            reason=plain(image.reason, 60),
            value=plain(image.value, 200),
            thumbnail=thumbnail,
            missing=missing,
            alt=self._alt(image, size),
            size=size,
            url=_address(image.url),
            similarity=image.similarity,
            bar="" if image.similarity is None else self._scale.units(image.similarity),
            tick=self._tick,
            other="" if image.other is None else f"text {image.other[0] + 1} fits better: {image.other[1]:.3f}",
            asked=image.asked,
        )

    def _alt(self, image: ShownImage, size: str) -> str:
        texts = self._record.texts
        sentence = ""
        if image.text_index is not None and texts and not self._record.roles:
            sentence = plain(texts[min(max(image.text_index, 0), len(texts) - 1)], _ALT_CHARS)
        of = f" of {len(self._record.images)}" if len(self._record.images) > 1 else ""
        return (
            f"Image {image.index + 1}{of}" + f", {size} pixels" * bool(size) + f", beside: {sentence}" * bool(sentence)
        )

    def _thumbnail(self, image: ShownImage) -> tuple[Thumbnail | None, str]:
        """The picture, or what to say in its place."""
        if not self._room.side_px:
            self._tally.pictures_left_out += 1
            return None, "left out: the page would be too large"
        jpeg = image.jpeg()
        if jpeg is None:
            return None, "no picture"
        try:
            thumbnail = data_uri(jpeg, self._room.side_px, self._room.quality)
        except DataError:
            self._tally.pictures_broken += 1
            return None, "its stored bytes cannot be decoded: run check"
        self._tally.pictures += 1
        self._tally.picture_bytes += len(thumbnail.uri)
        return thumbnail, ""


def _address(url: str | None) -> DrawnUrl | None:
    return DrawnUrl(plain(url, _URL_CHARS), link(url)) if url else None
