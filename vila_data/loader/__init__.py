"""Shards and their order to packed batches for a rank."""
