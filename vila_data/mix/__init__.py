"""Mix: from lengths to a blend, to packs, to the order of an epoch. Never reads tokens or images."""
