"""Metadata to records: one file a kind. Adding a corpus is a file here and a line in `kinds`."""
