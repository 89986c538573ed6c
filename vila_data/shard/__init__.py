"""Fates and bytes to shards: layout, writing, index, manifest, check."""
