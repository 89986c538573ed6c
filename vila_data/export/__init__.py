"""Shard sets in the formats that other programs read: one file per format; exporting.py runs them."""
