"""Render the preview page: one HTML file that needs neither a server nor scripts.

`preview.html` reads the records and packs themselves. What depends on the page's budget is computed here: texts are
escaped and cut, images are made small, and each image is put where it belongs among the texts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from vila_data.core.errors import DataError
from vila_data.core.records import IMAGE_PLACEHOLDER
from vila_data.explore.page import page_pieces
from vila_data.explore.preview.records import FATES, PreviewImage, PreviewPack, PreviewPage, PreviewRecord
from vila_data.explore.preview.text import SafeText, one_line, safe_link, safe_text
from vila_data.explore.thumbnail import Thumbnail, data_uri

_ALT_CHARS: Final = 160
_SENTENCE_BYTES: Final = 400
"""Size of a sentence with an image if a record's text budget is spent."""
_BLOCK_BYTES: Final = 60
"""About the size of the markup around a text: empty texts are not free."""
_SCALE_UNITS: Final = 60.0
_TICK_UNITS: Final = 2.0
_PACK_UNITS: Final = 1000.0
_PACK_COLORS: Final = 8
_VISIBLE_UNITS: Final = 0.75
"""Narrower gaps in a pack's loss bar would not be visible."""


@dataclass(frozen=True, slots=True)
class PageBudget:
    """How large a page's parts may be: images' longer side in pixels and their quality, images and text per record."""

    side_px: int
    quality: int
    images: int = 40
    text_bytes: int = 16_000


@dataclass
class PageCounts:
    """What was rendered so far."""

    records: int = 0
    images: int = 0
    images_omitted: int = 0
    images_broken: int = 0
    characters_cut: int = 0


@dataclass(frozen=True, slots=True)
class Figure:
    """An image for the template. missing: what to say if there is no thumbnail."""

    image: PreviewImage
    thumbnail: Thumbnail | None
    missing: str
    alt: str


@dataclass(frozen=True, slots=True)
class Block:
    """A text and the images that come before it (pieces: only its images if they have no text), or a turn of a conversation.

    pieces: the text, or a turn's texts and images in their order. omitted: its images that are beyond the budget.
    """

    number: int
    role: str
    images: tuple[Figure, ...]
    pieces: tuple[SafeText | Figure, ...]
    omitted: int = 0


@dataclass(frozen=True, slots=True)
class RenderedRecord:
    """The parts of a record that depend on the budget. sequence: (text, trained, image's number or 0) of its tokens."""

    record: PreviewRecord
    number: int
    note: SafeText | None
    system: SafeText | None
    blocks: tuple[Block, ...]
    more_texts: int
    more_images: int
    sequence: tuple[tuple[SafeText, bool, int], ...]


@dataclass(frozen=True, slots=True)
class Scale:
    """The similarities of a page: their range, to filter by, and bars from 0 to the highest."""

    low: float
    high: float
    scored: bool
    thresholds: dict[str, float]

    @classmethod
    def of(cls, page: PreviewPage) -> Scale:
        """The range of all images of a page."""
        found = [similarity for record in page.records for similarity in record.similarities]
        return cls(min(found, default=0.0), max(found, default=1.0), bool(found), page.thresholds)

    def bar(self, similarity: float) -> str:
        """The length of a bar of 60 units at most: bars begin at 0, so that half as long is half as similar."""
        return f"{self._units(similarity):.1f}"

    def tick(self, corpus: str) -> str:
        """Where the corpus's threshold is on the bars; empty if it has none or it is not on them."""
        threshold = self.thresholds.get(corpus)
        if threshold is None or not self.scored or not 0 <= threshold <= self.high:
            return ""
        return f"{min(self._units(threshold), _SCALE_UNITS - _TICK_UNITS):.1f}"

    def _units(self, similarity: float) -> float:
        return min(1.0, max(0.0, similarity / (self.high if self.high > 0 else 1.0))) * _SCALE_UNITS


def render_page(page: PreviewPage, budget: PageBudget, counts: PageCounts) -> Iterator[str]:
    """The HTML in pieces. Images are read and made small as it goes, and `counts` is updated."""
    return page_pieces(
        "preview.html",
        title=one_line(page.title, 120),
        scripts=["preview.js"],
        styles=["preview.css"],
        page=page,
        records=_rendered(page, budget, counts),
        packs=(PackBars.of(pack) for pack in page.packs),
        corpora=list(dict.fromkeys(one_line(record.corpus, 60) for record in page.records)),
        fates=[fate for fate in FATES if any(fate in record.fates for record in page.records)],
        reasons=sorted({one_line(reason, 60) for record in page.records for reason in record.reasons}),
        scale=Scale.of(page),
        line=one_line,
        link=safe_link,
        color=pack_color,
    )


def _rendered(page: PreviewPage, budget: PageBudget, counts: PageCounts) -> Iterator[RenderedRecord]:
    for number, record in enumerate(page.records, 1):
        yield _RecordRenderer(record, budget, counts).rendered(number)
        counts.records += 1


class _RecordRenderer:
    """Renders one record; its text budget is spent from the front."""

    def __init__(self, record: PreviewRecord, budget: PageBudget, counts: PageCounts) -> None:
        self._record, self._budget, self._counts = record, budget, counts
        self._text_bytes = budget.text_bytes

    def rendered(self, number: int) -> RenderedRecord:
        record = self._record
        note = self._text(record.note) if record.note else None
        system = self._text(record.system) if record.system else None
        blocks, more_texts = self._blocks()
        more_images = max(0, len(record.images) - self._budget.images)
        self._counts.images_omitted += more_images
        return RenderedRecord(
            record, number, note, system, tuple(blocks), more_texts, more_images, tuple(self._sequence())
        )

    def _blocks(self) -> tuple[list[Block], int]:
        """Texts in order, each after its images; images without a text last. Texts beyond the budget are counted."""
        texts, images = self._record.texts, self._record.images
        by_text: dict[int, list[PreviewImage]] = {}
        for image in images[: self._budget.images]:
            by_text.setdefault(self._text_of(image), []).append(image)
        omitted = Counter(map(self._text_of, images[self._budget.images :]))
        blocks, more_texts = [], 0
        for index, text in enumerate(texts):
            own = by_text.pop(index, [])
            if self._text_bytes <= 0 and not own:
                more_texts += 1
                self._counts.characters_cut += len(text)
                continue
            if self._record.roles:
                role = self._record.roles[index] if index < len(self._record.roles) else ""
                blocks.append(Block(index + 1, role or "unnamed", (), self._turn(text, own), omitted[index]))
            else:
                figures = tuple(map(self._figure, own))
                blocks.append(Block(index + 1, "", figures, (self._text(text, bool(own)),), omitted[index]))
            self._text_bytes -= _BLOCK_BYTES * (2 if omitted[index] else 1)
        rest = tuple(map(self._figure, by_text.pop(len(texts), [])))
        if rest:
            blocks.append(Block(0, "", rest, ()))
        return blocks, more_texts

    def _text_of(self, image: PreviewImage) -> int:
        """The text that an image comes before; the number of texts for none."""
        texts = len(self._record.texts)
        return texts if image.text_index is None else min(max(image.text_index, 0), texts)

    def _turn(self, text: str, images: Sequence[PreviewImage]) -> tuple[SafeText | Figure, ...]:
        """A turn of a conversation, each image in the place of its placeholder."""
        pieces: list[SafeText | Figure] = []
        rest, left = text, list(images)
        while left and IMAGE_PLACEHOLDER in rest:
            before, rest = rest.split(IMAGE_PLACEHOLDER, 1)
            if before.strip():
                pieces.append(self._text(before))
            pieces.append(self._figure(left.pop(0)))
        if rest.strip():
            pieces.append(self._text(rest.removeprefix("\n") if pieces else rest, bool(images)))
        return (*pieces, *map(self._figure, left))

    def _sequence(self) -> Iterator[tuple[SafeText, bool, int]]:
        """The pieces of the training sequence, which has half a text budget of its own."""
        self._text_bytes = self._budget.text_bytes // 2
        for piece in self._record.sequence.pieces if self._record.sequence else ():
            if self._text_bytes <= 0:
                return
            yield self._text(piece.text), piece.trained, 0 if piece.image is None else piece.image + 1
            self._text_bytes -= _BLOCK_BYTES

    def _text(self, text: str, has_image: bool = False) -> SafeText:
        found = safe_text(text, max(self._text_bytes, _SENTENCE_BYTES if has_image else 0))
        self._text_bytes -= len(found.markup.encode())
        self._counts.characters_cut += found.cut
        return found

    def _figure(self, image: PreviewImage) -> Figure:
        texts, images = self._record.texts, len(self._record.images)
        alt = f"Image {image.index + 1}" + (f" of {images}" if images > 1 else "")
        alt += f", {image.size} pixels" if image.size else ""
        if image.text_index is not None and texts and not self._record.roles:
            sentence = one_line(texts[min(max(image.text_index, 0), len(texts) - 1)], _ALT_CHARS)
            alt += f", next to: {sentence}" if sentence else ""
        jpeg = image.jpeg()
        if jpeg is None:
            return Figure(image, None, "no image", alt)
        try:
            thumbnail = data_uri(jpeg, self._budget.side_px, self._budget.quality)
        except DataError:
            self._counts.images_broken += 1
            return Figure(image, None, "cannot be decoded; run vila-data check", alt)
        self._counts.images += 1
        return Figure(image, thumbnail, "", alt)


@dataclass(frozen=True, slots=True)
class Bar:
    """A rectangle of a pack's drawing, in its units. style: CSS classes."""

    x: str
    width: str
    style: str


@dataclass(frozen=True, slots=True)
class PackBars:
    """A pack drawn as bars: samples and padding, images over them, and below what counts in the loss."""

    pack: PreviewPack
    samples: tuple[Bar, ...]
    images: tuple[Bar, ...]
    loss: tuple[Bar, ...]

    @classmethod
    def of(cls, pack: PreviewPack) -> PackBars:
        """The bars of a pack."""
        samples, images = [], []
        loss: list[tuple[int, int]] = []
        scale = _PACK_UNITS / pack.length

        def bar(first: int, stop: int, style: str) -> Bar:
            return Bar(f"{first * scale:.2f}", f"{(stop - first) * scale:.2f}", style)

        at = 0
        for number, sample in enumerate(pack.samples):
            samples.append(bar(at, at + sample.tokens, f"{pack_color(sample.source)} s{number % 2}"))
            images += [bar(at + first, at + stop, "pic") for first, stop in sample.images]
            for first, stop in sample.trained:
                if loss and (at + first - loss[-1][1]) * scale < _VISIBLE_UNITS:
                    loss[-1] = (loss[-1][0], at + stop)
                else:
                    loss.append((at + first, at + stop))
            at += sample.tokens
        if at < pack.length:
            samples.append(bar(at, pack.length, "pad"))
        return cls(pack, tuple(samples), tuple(images), tuple(bar(first, stop, "loss") for first, stop in loss))


def pack_color(source: int) -> str:
    """The CSS class of a shard set's color."""
    return f"f{source % _PACK_COLORS}"
