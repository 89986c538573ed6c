"""Lengths to a blend, to packs, to the order of an epoch. Nothing here reads a token or an image."""
