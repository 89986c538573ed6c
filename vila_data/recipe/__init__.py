"""Recipes: YAML with line numbers, the validated recipe, and the lock file of a run."""
