"""Runs: stages, the engine that executes them, and opened run directories."""
