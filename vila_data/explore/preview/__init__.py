"""`preview`: what is chosen of a run, a set or a shard, read, and made one page."""

from vila_data.explore.preview.build import PreviewReport, preview
from vila_data.explore.preview.choice import Choice, ListedRecord

__all__ = ["Choice", "ListedRecord", "PreviewReport", "preview"]
