"""Samples of a shard set to token ids, labels and lengths, computed once."""
