"""The measures of a run: what the report, the card and `inspect` say of it, counted in one pass over columns."""
