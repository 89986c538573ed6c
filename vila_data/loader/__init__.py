"""Stream packed batches of a finished run into a training loop, one rank's share of the global order."""
