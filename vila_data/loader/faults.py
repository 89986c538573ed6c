"""The fault budget: counts broken images and samples and stops the run when the limit is exceeded.

And the one error that is not a sample's: the process cannot open more files.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterable
from typing import Annotated, Final

from pydantic import Field

from vila_data.core.config import StrictModel
from vila_data.core.errors import DataError, RunError
from vila_data.loader.arrays import Fault

log = logging.getLogger("vila_data.loader")

_MIN_SAMPLES: Final = 10_000
"""A fraction is of the samples so far, but of no fewer than these."""
_DEFAULT_FRACTION: Final = 0.001
_SHOWN: Final = 3


class FaultBudget(StrictModel):
    """How many broken samples a rank accepts: at most `count`, and at most `fraction` of its samples so far (of 10,000
    before there are as many). If neither is given, a fraction of 0.001."""

    count: Annotated[int, Field(ge=0)] | None = None
    fraction: Annotated[float, Field(ge=0, le=1)] | None = None

    @property
    def largest_fraction(self) -> float | None:
        """The fraction that applies; None: no limit."""
        return _DEFAULT_FRACTION if self.count is None and self.fraction is None else self.fraction


class FaultLog:
    """Counts a rank's faults by stage, logs each, and ends the run when there are too many."""

    def __init__(self, budget: FaultBudget) -> None:
        self._budget = budget
        self._recent: list[Fault] = []
        self.counts = {"tokens": 0, "read": 0, "decode": 0}
        self.samples = 0
        self.broken = 0

    def add(self, faults: Iterable[Fault], samples: int) -> None:
        """Count a batch's faults and samples.

        Raises:
            DataError: there are more broken samples than the budget allows; the message names the latest ones.
        """
        self.samples += samples
        broken: set[int] = set()
        for fault in faults:
            self.counts[fault.stage] += 1
            broken.add(fault.sample)
            self._recent = [*self._recent[1 - _SHOWN :], fault]
            log.warning("%s: %s; this sample is excluded from the loss (%s)", fault.where, fault.reason, fault.stage)
        self.broken += len(broken)
        count, fraction = self._budget.count, self._budget.largest_fraction
        too_many = count is not None and self.broken > count
        too_many |= fraction is not None and self.broken > fraction * max(self.samples, _MIN_SAMPLES)
        if broken and too_many:
            limits = [
                f"{name} {limit}" for name, limit in (("count", count), ("fraction", fraction)) if limit is not None
            ]
            latest = "; ".join(f"{fault.where}: {fault.reason}" for fault in self._recent)
            raise DataError(
                f"stream: {self.broken:,} of {self.samples:,} samples are broken, more than fault_budget allows "
                f"({', '.join(limits)}). Latest: {latest}. Run `vila-data check RUN` to list the damage."
            )


def too_many_files(batches: int, who: str = "the process", holder: str = "") -> RunError:
    """The error that `who` cannot open more files. batches: held by `holder`; each costs both a file descriptor."""
    held = "1 batch" if batches == 1 else f"{batches} batches"
    holding = f"while {holder} holds {held}" if holder else f"while holding {held}"
    fewer = "hold fewer (clone what you keep), or " if batches else ""
    return RunError(
        f"stream: {who} has reached its open-file limit {holding}; {fewer}raise `ulimit -n` (and `ulimit -Hn` if that "
        "is the limit)"
    )


def is_too_many_files(error: BaseException | None) -> bool:
    """Whether an error is, or was caused by, the open-file limit of the process or the machine."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            return True
        error = error.__cause__ or error.__context__
    return False
