"""Joining packs that fit into one sequence: what waves leave where image limits make some packs short."""

from __future__ import annotations

import numpy as np

from vila_data.mix.packs import Ints, Packs

ATTEMPTS = 256


def joined(packs: Packs, tokens: Ints, images: Ints, capacity: int, limit: int) -> Packs:
    """The packs with those of fewest tokens put into others that have room, the fullest first; ATTEMPTS are made."""
    held, shown = packs.sums(tokens), packs.sums(images)
    short = (held * 2 <= capacity).nonzero()[0]
    into = np.arange(len(packs))
    for pack in short[held[short].argsort(kind="stable")][:ATTEMPTS]:
        fits = (held + held[pack] <= capacity) & (shown + shown[pack] <= limit)
        fits[pack] = False
        others = fits.nonzero()[0]
        if len(others):
            other = others[held[others].argmax()]
            held[other] += held[pack]
            shown[other] += shown[pack]
            held[pack], shown[pack] = capacity + 1, limit + 1
            into[into == pack] = other
    if np.array_equal(into, np.arange(len(packs))):
        return packs
    of_member = np.repeat(into, packs.ends - packs.starts)
    sizes = np.bincount(of_member)
    return Packs(np.cumsum(sizes[sizes > 0]), packs.members[of_member.argsort(kind="stable")])
