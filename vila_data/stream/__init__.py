"""The sequence of packs of an epoch: which samples make each, in one order, whoever reads it."""

from vila_data.stream.report import BlendReport, SourceShare
from vila_data.stream.sequence import PackSequence, PlannedPacks

__all__ = ["BlendReport", "PackSequence", "PlannedPacks", "SourceShare"]


import sys as _sys
import types as _types


class _Temporary(_types.ModuleType):
    def __call__(self, *a, **k):  # noqa: the lead renames this room to `loader` when helpers are done
        from vila_data.workflow.streaming import stream

        return stream(*a, **k)


_sys.modules[__name__].__class__ = _Temporary
