"""How much may be broken before a run ends, and what was."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Annotated, Final

from pydantic import Field

from vila_data.core.config import StrictModel
from vila_data.core.errors import DataError
from vila_data.loader.arrays import Fault

log = logging.getLogger("vila_data.loader")

_BASE: Final = 10_000
"""A fraction is of the samples so far, but of no fewer than these."""
_FRACTION: Final = 0.001
_KEPT: Final = 100
_SHOWN: Final = 3


class FaultBudget(StrictModel):
    """Broken samples that a rank bears, each time that one comes: at most `count`, and at most `fraction` of its samples
    (of 10,000 before there are as many). Neither given: a fraction of 0.001."""

    count: Annotated[int, Field(ge=0)] | None = None
    fraction: Annotated[float, Field(ge=0, le=1)] | None = None

    @property
    def largest_fraction(self) -> float | None:
        """The fraction in force."""
        return _FRACTION if self.count is None and self.fraction is None else self.fraction


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
            DataError: there are more broken samples than the budget bears; the last ones are named.
        """
        self.samples += samples
        broken: set[int] = set()
        for fault in faults:
            self.counts[fault.stage] += 1
            broken.add(fault.sample)
            self._recent = [*self._recent[-_KEPT + 1 :], fault]
            log.warning("%s: %s; its sample is not trained (%s)", fault.where, fault.reason, fault.stage)
        self.broken += len(broken)
        if broken and self._exceeded():
            last = "; ".join(f"{fault.where}: {fault.reason}" for fault in self._recent[-_SHOWN:])
            raise DataError(
                f"stream: {self.broken:,} of {self.samples:,} samples are broken, more than fault_budget allows "
                f"({self._limits()}); the last ones: {last}; vila-data check RUN lists what is damaged"
            )

    def _exceeded(self) -> bool:
        count, fraction = self._budget.count, self._budget.largest_fraction
        over = count is not None and self.broken > count
        return over or (fraction is not None and self.broken > fraction * max(self.samples, _BASE))

    def _limits(self) -> str:
        limits = {"count": self._budget.count, "fraction": self._budget.largest_fraction}
        return ", ".join(f"{name} {value}" for name, value in limits.items() if value is not None)
