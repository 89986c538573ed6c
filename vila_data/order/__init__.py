"""The sequence of packs of an epoch: which samples make each, in one order, whoever reads it, and who takes which."""

from vila_data.order.report import BlendReport, SourceShare
from vila_data.order.sequence import PackSequence, PlannedPacks

__all__ = ["BlendReport", "PackSequence", "PlannedPacks", "SourceShare"]
