"""Byte ranges of a run's files, from a local disk or any store that fsspec knows."""
