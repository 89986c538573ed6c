"""Models to columns: CLIP similarities of a part's images and texts."""
