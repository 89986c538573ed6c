"""Search a run's images by text or by example image: exactly, or through an index of large corpora."""
