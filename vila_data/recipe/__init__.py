"""YAML with its positions, to a recipe, to what it resolves to."""
