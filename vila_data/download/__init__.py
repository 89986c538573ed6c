"""urls -> bytes -> verified, resized JPEG."""
