"""The sequence of packs of an epoch: which samples make each, in one order, whoever reads it."""

from vila_data.stream.report import BlendReport, SourceShare
from vila_data.stream.sequence import PackSequence, PlannedPacks

__all__ = ["BlendReport", "PackSequence", "PlannedPacks", "SourceShare"]
