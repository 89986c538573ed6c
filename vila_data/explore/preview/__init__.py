"""Preview records of a run, a shard set or a shard: select, read, and render one HTML page."""

from vila_data.explore.preview.build import PreviewReport, preview
from vila_data.explore.preview.select import Choice, ListedRecord

__all__ = ["Choice", "ListedRecord", "PreviewReport", "preview"]
