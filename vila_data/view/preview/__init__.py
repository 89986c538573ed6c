"""The preview page: values that a page shows, and how they are drawn."""
