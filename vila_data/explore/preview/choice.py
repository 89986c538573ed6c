"""What somebody wants to see of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, get_args

from vila_data.core.errors import UsageError

Order = Literal["random", "worst", "best", "listed"]
FATES: Final = ("kept", "dropped", "failed")


@dataclass(frozen=True, slots=True)
class ListedRecord:
    """One record to show, the image of it that is meant (None: all of it), and what to say of it."""

    corpus: str
    record_id: str
    image_index: int | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Choice:
    """Which records a preview shows.

    count:  how many at most.
    order:  random: as many of each corpus, drawn by `seed`; worst, best: the lowest, or highest, similarity of one of
            their images over all that is looked at; listed: those of `listed`, in its order, each with its note.
    corpus: only this one. fate, reason: only records that have them, or an image that has them.
    text:   only records with these words in a text, in any case.
    packs:  this many packs from the beginning of the epoch, where the run has a blend.
    heading: the page's title; the run's name unless given.

    Raises:
        UsageError: a value that cannot be.
    """

    count: int = 200
    order: Order = "random"
    seed: int = 0
    corpus: str | None = None
    fate: str | None = None
    reason: str | None = None
    text: str | None = None
    packs: int = 0
    listed: tuple[ListedRecord, ...] = ()
    heading: str = ""

    def __post_init__(self) -> None:
        if self.order not in get_args(Order):
            raise UsageError(f"--order {self.order}: give random, worst or best")
        if self.fate is not None and self.fate not in FATES:
            raise UsageError(f"--fate {self.fate}: give {', '.join(FATES[:-1])} or {FATES[-1]}")
        if self.fate == "kept" and self.reason is not None:
            raise UsageError(f"--fate kept --reason {self.reason}: what is kept has no reason: leave one of them out")
        if self.count < 1 and self.order != "listed":
            raise UsageError(f"--count {self.count}: give at least 1")
        if self.packs < 0:
            raise UsageError(f"--packs {self.packs}: give 0 or more")

    def words(self, shown: int, matching: int, records: int) -> str:
        """The choice as a sentence."""
        if self.order == "listed":
            return f"{shown:,} {'record' if shown == 1 else 'records'} of {records:,}."
        how = {
            "random": f"drawn at random (seed {self.seed}), equally from each corpus as far as it goes",
            "worst": "those with the lowest similarities, worst first",
            "best": "those with the highest similarities, best first",
        }[self.order]
        asked = [
            f"{name} {value}"
            for name, value in (("corpus", self.corpus), ("fate", self.fate), ("reason", self.reason))
            if value is not None
        ]
        if self.text:
            asked.append(f"with the words “{self.text}”")
        which = f" ({', '.join(asked)})" if asked else ""
        of = f"{matching:,} that match{which} of {records:,} records" if asked else f"{records:,} records"
        return f"{shown:,} of {of}" + (f": {how}." if shown < matching or self.order != "random" else ".")
