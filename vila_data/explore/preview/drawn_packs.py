"""Packs as bars: samples in the colour of their set, images marked, padding visible, what is trained below."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from vila_data.explore.preview.text import plain

_WIDTH: Final = 1000.0
_COLOURS: Final = 8
_LEAST: Final = 0.75  # of _WIDTH: narrower gaps between trained places are not to be seen


@dataclass(frozen=True, slots=True)
class PackedSample:
    """One sample of a pack, in columns (tokens with images expanded) counted from its first one.

    source: number of its shard set in the legend. images, trained: (first, stop) columns.
    """

    source: int
    record_id: str
    tokens: int
    images: tuple[tuple[int, int], ...]
    trained: tuple[tuple[int, int], ...]

    @property
    def trained_tokens(self) -> int:
        """Columns that are labels."""
        return sum(stop - first for first, stop in self.trained)


@dataclass(frozen=True, slots=True)
class ShownPack:
    """A training sequence of `length` columns; what its samples do not fill is padding."""

    number: int
    length: int
    samples: tuple[PackedSample, ...]

    @property
    def tokens(self) -> int:
        """Columns that are filled."""
        return sum(sample.tokens for sample in self.samples)


@dataclass(frozen=True, slots=True)
class PackLegend:
    """Names of the shard sets, in the blend's order."""

    sets: tuple[str, ...] = ()

    def colour(self, source: int) -> str:
        """The style's class of a set."""
        return f"f{source % _COLOURS}"


@dataclass(frozen=True, slots=True)
class Bar:
    """A rectangle of the drawing, in its units."""

    x: str
    width: str
    style: str


@dataclass(frozen=True, slots=True)
class DrawnSample:
    """A line of the list below a pack."""

    style: str
    shard_set: str
    record_id: str
    tokens: int
    images: int
    trained: int


@dataclass(frozen=True, slots=True)
class DrawnPack:
    """A pack for the template; `summary` says in words what the bars show."""

    number: int
    summary: str
    bars: tuple[Bar, ...]
    pictures: tuple[Bar, ...]
    mask: tuple[Bar, ...]
    samples: tuple[DrawnSample, ...]


def draw_packs(packs: Sequence[ShownPack], legend: PackLegend) -> Iterator[DrawnPack]:
    """Packs for the template."""
    for pack in packs:
        yield _drawn(pack, legend)


def _drawn(pack: ShownPack, legend: PackLegend) -> DrawnPack:
    bars, pictures, mask = [], [], []
    at = 0
    for number, sample in enumerate(pack.samples):
        style = f"{legend.colour(sample.source)} s{number % 2}"
        bars.append(_bar(at, at + sample.tokens, pack.length, style))
        pictures += [_bar(at + first, at + stop, pack.length, "pic") for first, stop in sample.images]
        mask += [(at + first, at + stop) for first, stop in sample.trained]
        at += sample.tokens
    if at < pack.length:
        bars.append(_bar(at, pack.length, pack.length, "pad"))
    trained = sum(sample.trained_tokens for sample in pack.samples)
    images = sum(len(sample.images) for sample in pack.samples)
    summary = (
        f"{len(pack.samples):,} {'sample' if len(pack.samples) == 1 else 'samples'}, "
        f"{images:,} {'image' if images == 1 else 'images'}, {at:,} of {pack.length:,} tokens "
        f"({at / pack.length:.1%} full), {trained:,} trained"
    )
    return DrawnPack(
        number=pack.number,
        summary=summary,
        bars=tuple(bars),
        pictures=tuple(pictures),
        mask=tuple(_bar(first, stop, pack.length, "loss") for first, stop in _seen(mask, pack.length)),
        samples=tuple(
            DrawnSample(
                style=legend.colour(sample.source),
                shard_set=plain(legend.sets[sample.source], 60),
                record_id=plain(sample.record_id, 120),
                tokens=sample.tokens,
                images=len(sample.images),
                trained=sample.trained_tokens,
            )
            for sample in pack.samples
        ),
    )


def _seen(spans: Sequence[tuple[int, int]], length: int) -> list[tuple[int, int]]:
    """Spans in order, those with no visible gap between them as one."""
    joined: list[tuple[int, int]] = []
    for first, stop in spans:
        if joined and (first - joined[-1][1]) * _WIDTH / length < _LEAST:
            joined[-1] = (joined[-1][0], stop)
        else:
            joined.append((first, stop))
    return joined


def _bar(first: int, stop: int, length: int, style: str) -> Bar:
    return Bar(f"{first * _WIDTH / length:.2f}", f"{(stop - first) * _WIDTH / length:.2f}", style)
