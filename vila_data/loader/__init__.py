"""Batches made in worker processes, given out in the one order, counted, and resumed anywhere."""
