"""Shard sets in the formats that other programs read: one file a format, one frame around them."""
