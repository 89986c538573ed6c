"""What packing came to: fill, and what could not be filled and why; reports of blocks add up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vila_data.core.errors import DataError
from vila_data.mix.packs import Ints, Packs

REASONS = ("image_limit", "no_sample_fits", "end_of_block")
"""Why a pack has room left: it is at its image limit; no sample of its block is that short with that few images; every
shorter sample of the block lies in another pack."""

Histogram = tuple[tuple[int, int], ...]
"""(value, packs) with at least one pack, by value."""


@dataclass(frozen=True)
class PackReport:
    """Counts over packs; `unfilled_tokens` of the reasons add up to `capacity_tokens - tokens`."""

    packs: int = 0
    samples: int = 0
    tokens: int = 0
    images: int = 0
    capacity_tokens: int = 0
    unfilled_tokens: tuple[int, int, int] = (0, 0, 0)
    images_a_pack: Histogram = ()
    samples_a_pack: Histogram = ()

    @classmethod
    def of(cls, packs: Packs, tokens: Ints, images: Ints, *, capacity: int, max_images: int | None) -> PackReport:
        """The report of one block's packs in sequences of `capacity` tokens."""
        held, shown = packs.sums(tokens), packs.sums(images)
        reason = _reasons(capacity - held, shown, tokens, images, max_images)
        unfilled = np.bincount(reason, weights=capacity - held, minlength=len(REASONS)).astype(np.int64)
        return cls(
            packs=len(packs),
            samples=len(packs.members),
            tokens=int(held.sum()),
            images=int(shown.sum()),
            capacity_tokens=len(packs) * capacity,
            unfilled_tokens=(int(unfilled[0]), int(unfilled[1]), int(unfilled[2])),
            images_a_pack=_histogram(shown),
            samples_a_pack=_histogram(packs.ends - packs.starts),
        )

    @property
    def fill(self) -> float:
        """Share of the sequences' tokens that are samples' tokens; 1.0 of nothing."""
        return self.tokens / self.capacity_tokens if self.capacity_tokens else 1.0

    def __add__(self, other: PackReport) -> PackReport:
        mine, theirs = self.unfilled_tokens, other.unfilled_tokens
        return PackReport(
            packs=self.packs + other.packs,
            samples=self.samples + other.samples,
            tokens=self.tokens + other.tokens,
            images=self.images + other.images,
            capacity_tokens=self.capacity_tokens + other.capacity_tokens,
            unfilled_tokens=(mine[0] + theirs[0], mine[1] + theirs[1], mine[2] + theirs[2]),
            images_a_pack=_merged(self.images_a_pack, other.images_a_pack),
            samples_a_pack=_merged(self.samples_a_pack, other.samples_a_pack),
        )

    def as_dict(self) -> dict[str, Any]:
        """Counts for JSON; `from_dict` reads them back. `fill` and the means are given beside them."""
        return {
            "packs": self.packs,
            "samples": self.samples,
            "tokens": self.tokens,
            "images": self.images,
            "capacity_tokens": self.capacity_tokens,
            "fill": self.fill,
            "unfilled_tokens": dict(zip(REASONS, self.unfilled_tokens, strict=True)),
            "images_a_pack": _histogram_dict(self.images_a_pack),
            "samples_a_pack": _histogram_dict(self.samples_a_pack),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PackReport:
        """The report that `as_dict` gave; DataError where a count is absent."""
        missing = [field.name for field in fields(cls) if field.name not in values]
        if missing:
            raise DataError(f"pack report: {', '.join(missing)} is absent")
        unfilled = values["unfilled_tokens"]
        return cls(
            packs=int(values["packs"]),
            samples=int(values["samples"]),
            tokens=int(values["tokens"]),
            images=int(values["images"]),
            capacity_tokens=int(values["capacity_tokens"]),
            unfilled_tokens=(int(unfilled[REASONS[0]]), int(unfilled[REASONS[1]]), int(unfilled[REASONS[2]])),
            images_a_pack=_histogram_of(values["images_a_pack"]),
            samples_a_pack=_histogram_of(values["samples_a_pack"]),
        )


def _reasons(
    room: NDArray[np.int64], shown: NDArray[np.int64], tokens: Ints, images: Ints, max_images: int | None
) -> NDArray[np.int64]:
    """int64[p]: for each pack the position in REASONS, by what samples its block has."""
    if not len(tokens):
        return np.zeros(0, np.int64)
    classes = np.unique(images)
    shortest = np.minimum.accumulate([int(tokens[images == count].min()) for count in classes])
    at_limit = np.zeros(len(room), np.bool_) if max_images is None else shown >= max_images
    slots = np.full(len(room), classes[-1]) if max_images is None else max_images - shown
    allowed = np.searchsorted(classes, slots, side="right")
    needed = np.where(allowed > 0, shortest[np.maximum(allowed, 1) - 1], np.iinfo(np.int64).max)
    return np.where(at_limit, 0, np.where(needed > room, 1, 2)).astype(np.int64)


def _histogram(values: NDArray[np.int64]) -> Histogram:
    found, counts = np.unique(values, return_counts=True)
    return tuple((int(value), int(count)) for value, count in zip(found, counts, strict=True))


def _merged(left: Histogram, right: Histogram) -> Histogram:
    counts = dict(left)
    for value, count in right:
        counts[value] = counts.get(value, 0) + count
    return tuple(sorted(counts.items()))


def _histogram_dict(histogram: Histogram) -> dict[str, Any]:
    packs = sum(count for _, count in histogram)
    mean = sum(value * count for value, count in histogram) / packs if packs else 0.0
    return {"mean": mean, "histogram": {str(value): count for value, count in histogram}}


def _histogram_of(values: Mapping[str, Any]) -> Histogram:
    return tuple(sorted((int(value), int(count)) for value, count in values["histogram"].items()))
