"""What each client read, counted: kept as JSON, and as the table of docs/conformance.md.

python -m tests.conformance.table      # writes benchmarks/results/conformance.json into docs/conformance.md
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
RESULTS = REPO / "benchmarks" / "results" / "conformance.json"
PAGE = REPO / "docs" / "conformance.md"
SOURCES = ("made", "sample", "real")
START, END = "<!-- table: written by tests/conformance/table.py -->", "<!-- end of table -->"


@dataclass
class Row:
    """One reading: a client, what it was made to read, and what came of it.

    left_out: samples that the export has left out and counted, since the form cannot hold them; not among those expected.
    """

    client: str
    version: str
    reading: str
    source: str
    name: str
    samples_expected: int
    images_expected: int
    samples_read: int = 0
    images_read: int = 0
    seconds: float = 0.0
    left_out: int = 0

    @property
    def whole(self) -> bool:
        """Whether nothing is missing and nothing is there twice."""
        return (self.samples_read, self.images_read) == (self.samples_expected, self.images_expected)


@dataclass
class Table:
    """The readings of a session."""

    rows: list[Row] = field(default_factory=list)

    @contextmanager
    def reading(
        self,
        client: str,
        version: str,
        reading: str,
        source: str,
        name: str,
        samples: int,
        images: int,
        left_out: int = 0,
    ) -> Iterator[Row]:
        """Time the block, which sets `samples_read` and `images_read`; both must be those expected."""
        row = Row(client, version, reading, source, name, samples, images, left_out=left_out)
        started = time.perf_counter()
        yield row
        row.seconds = round(time.perf_counter() - started, 2)
        assert row.whole, row
        self.rows.append(row)

    def write(self, path: Path) -> None:
        """As JSON, in an order of its own."""
        rows = sorted(self.rows, key=lambda row: (row.client, row.version, row.reading, row.source, row.name))
        value = {"conditions": {"python": platform.python_version()}, "rows": [asdict(row) for row in rows]}
        path.write_text(json.dumps(value, indent=1) + "\n")


def read_rows(path: Path = RESULTS) -> list[Row]:
    """The rows of a file that `Table.write` wrote."""
    return [Row(**row) for row in json.loads(path.read_text())["rows"]]


def markdown(rows: Sequence[Row]) -> str:
    """A line for each client and reading: samples and images read, of those there, summed over each input's sets."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.client, row.version, row.reading), []).append(row)
    lines = [
        "| client | reads | " + " | ".join(f"{source}: samples, images" for source in SOURCES) + " | seconds |",
        "| --- | --- | " + "--- | " * len(SOURCES) + "--- |",
    ]
    for (client, version, reading), found in groups.items():
        cells = [_cell([row for row in found if row.source == source]) for source in SOURCES]
        seconds = sum(row.seconds for row in found)
        lines.append(f"| {client} {version} | {reading} | {' | '.join(cells)} | {seconds:.1f} |")
    return "\n".join(lines)


def _cell(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    samples = f"{sum(row.samples_read for row in rows):,} of {sum(row.samples_expected for row in rows):,}"
    images = f"{sum(row.images_read for row in rows):,} of {sum(row.images_expected for row in rows):,}"
    left_out = sum(row.left_out for row in rows)
    return f"{samples}; {images}" + (f" ({left_out} left out by the export)" if left_out else "")


def page_with(table: str, page: str) -> str:
    """`page` with `table` between its marks."""
    head, rest = page.split(START, 1)
    return f"{head}{START}\n{table}\n{END}{rest.split(END, 1)[1]}"


if __name__ == "__main__":
    PAGE.write_text(page_with(markdown(read_rows()), PAGE.read_text()))
