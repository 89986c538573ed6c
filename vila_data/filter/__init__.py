"""Columns to fates: images by rules, then records. Nothing here reads a picture or a text."""
