"""A run's embeddings, searched: exactly by streaming over them, or through an index of large sets."""
