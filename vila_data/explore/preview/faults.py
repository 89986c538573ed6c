"""Token files that a preview cannot read: what is not shown for them, counted."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import pyarrow as pa

from vila_data.core.errors import VilaDataError
from vila_data.core.readable import many

DAMAGE: Final = (VilaDataError, pa.ArrowException, ValueError, LookupError, OverflowError, TypeError)
"""What reading and decoding a token file raises where it is missing, cut short or of other bytes."""


@dataclass
class TokenFaults:
    """files: {file that cannot be read: why}; sequences, packs: so many are not shown for it."""

    files: dict[str, str] = field(default_factory=dict)
    sequences: int = 0
    packs: int = 0

    def add(self, file: str, error: BaseException, *, sequences: int = 0, packs: int = 0) -> None:
        """Count what cannot be shown for a file; the first error of a file stays."""
        said = str(error) or repr(error)
        self.files.setdefault(file, said if said.startswith(file) else f"{file}: {said}")
        self.sequences += sequences
        self.packs += packs

    def counts(self) -> dict[str, int]:
        """{"files", "sequences", "packs"}; empty where all could be read."""
        counts = {"files": len(self.files), "sequences": self.sequences, "packs": self.packs}
        return counts if self.files else {}

    @property
    def note(self) -> str:
        """One sentence; empty where all could be read."""
        if not self.files:
            return ""
        lost = [many(n, what) for n, what in ((self.sequences, "training sequences"), (self.packs, "packs")) if n]
        shown = f": {' and '.join(lost)} not shown" if lost else ""
        first = next(iter(self.files.values()))
        return f"{many(len(self.files), 'token files')} damaged or missing{shown}; the first: {first}"
