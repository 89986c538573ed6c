"""Search over made-up embeddings: exact, and through the index; what the index finds of the true best ten.

    python benchmarks/search.py --json benchmarks/results/search.json

Vectors lie in clusters around a common direction, as pictures' do in CLIP. Queries are of two kinds: `pictures` are
drawn as the vectors are; `texts` point from another direction at one of them and are near to none (cosines of 0.4), as
captions are. Files are in the page cache. One process a measurement; memory is the most that it held.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vila_data.core.cpus import cpu_count
from vila_data.core.layout import Part
from vila_data.core.receipts import committing
from vila_data.core.store import Store
from vila_data.explore.search import index
from vila_data.explore.search.exact import EmbeddedPart, Kind, Ranking, Slice, find_parts, search_exact
from vila_data.score.embeddings import embedding_paths

SEED = 17
CORPUS = "made"
PART_ROWS = 50_000
ROWS_A_CLUSTER = 250
QUERIES = 100
BEST = 10


class Cloud:
    """Unit vectors in clusters; the same seed gives the same vectors, whatever the order in which they are drawn."""

    def __init__(self, dim: int, clusters: int, seed: int = SEED) -> None:
        rng = np.random.default_rng(seed)
        self._seed = seed
        self._axis_D, self._text_axis_D = _unit(rng.normal(size=(2, dim)))
        self._spread = self._spectrum(rng, dim, 0.35)
        centres = rng.normal(size=(clusters, min(dim, 256))) @ self._spectrum(rng, dim, 0.5)
        self._centres = (centres / np.linalg.norm(centres, axis=1).mean()).astype(np.float32)

    def vectors(self, count: int, stream: int) -> NDArray[np.float32]:
        """[count, D] of one stream of draws."""
        rng = np.random.default_rng([self._seed, stream])
        around = rng.standard_normal((count, len(self._spread)), np.float32) @ self._spread
        around /= np.linalg.norm(around, axis=1).mean()
        centres = self._centres[rng.integers(0, len(self._centres), count)]
        return _unit(0.8 * self._axis_D + 0.6 * centres + 0.75 * around)

    def texts(self, count: int, stream: int) -> NDArray[np.float32]:
        """[count, D] queries that are near to no vector."""
        rng = np.random.default_rng([self._seed, stream, 1])
        noise = _unit(rng.normal(size=(count, len(self._axis_D))))
        return _unit(0.45 * self.vectors(count, stream) + 0.7 * self._text_axis_D + 0.4 * noise)

    @staticmethod
    def _spectrum(rng: np.random.Generator, dim: int, power: float) -> NDArray[np.float32]:
        """Directions of falling weight."""
        rank = min(dim, 256)
        basis, _ = np.linalg.qr(rng.normal(size=(dim, rank)))
        return np.ascontiguousarray((basis * np.arange(1, rank + 1) ** -power).T, np.float32)


def _unit(vectors_ND: NDArray[Any]) -> NDArray[np.float32]:
    found: NDArray[np.float32] = (vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True)).astype(np.float32)
    return found


def part(number: int, corpus: str = CORPUS) -> Part:
    return Part.named(corpus, number)


def embedded(store: Store, kind: Kind = "images") -> list[EmbeddedPart]:
    """The parts that `write_embeddings` has written."""
    count = sum(path.endswith(".json") for path in store.files(f"score/{CORPUS}/clip"))
    return find_parts(store, map(part, range(count)), "clip", kind)


def write_embeddings(store: Store, vectors: Iterator[NDArray[np.float32]], corpus: str = CORPUS) -> None:
    """A part for each array of vectors, as the score stage leaves it, without metadata."""
    for number, vectors_ND in enumerate(vectors):
        made = part(number, corpus)
        with committing(store, made.receipt("score clip"), "made") as outputs:
            images, texts, _ = embedding_paths(made, "clip")
            for path in (images, texts):
                with open(outputs.path(path), "wb") as stream:
                    np.save(stream, vectors_ND.astype("<f2"))


def make_run(folder: Path, rows: int, dim: int) -> None:
    """The embeddings, in parts."""
    cloud = Cloud(dim, max(50, rows // ROWS_A_CLUSTER))
    sizes = [min(PART_ROWS, rows - start) for start in range(0, rows, PART_ROWS)]
    write_embeddings(Store(str(folder)), (cloud.vectors(size, number) for number, size in enumerate(sizes)))


def queries(rows: int, dim: int, count: int) -> dict[str, NDArray[np.float32]]:
    """Both kinds, none of them among the vectors."""
    cloud = Cloud(dim, max(50, rows // ROWS_A_CLUSTER))
    return {"pictures": cloud.vectors(count, 1_000_000), "texts": cloud.texts(count, 1_000_001)}


def exactly(store: Store, parts: list[EmbeddedPart], query_D: NDArray[np.float32], count: int = BEST) -> Ranking:
    ranking = Ranking(query_D, count)
    search_exact(store, [Slice(group, part, 0, part.rows) for group, part in enumerate(parts)], ranking)
    return ranking


def through_index(
    store: Store, segments: list[index.Segment], query_D: NDArray[np.float32], count: int = BEST
) -> Ranking:
    ranking = Ranking(query_D, count)
    for segment in segments:
        index.search_segment(store, segment, ranking)
    return ranking


def places(ranking: Ranking) -> set[tuple[int, int]]:
    return set(zip(ranking.groups.tolist(), ranking.rows.tolist(), strict=True))


def step_exact(store: Store, parts: list[EmbeddedPart], rows: int) -> dict[str, Any]:
    query_D = queries(rows, parts[0].dim, 1)["texts"][0]
    exactly(store, parts, query_D)
    seconds = [_seconds(lambda: exactly(store, parts, query_D)) for _ in range(5)]
    return {"seconds": round(statistics.median(seconds), 2), "best_seconds": round(min(seconds), 2)}


def step_build(store: Store, parts: list[EmbeddedPart], rows: int) -> dict[str, Any]:
    segments = index.plan_segments(list(enumerate(parts)), "images")
    seconds = _seconds(lambda: [index.build_segment(store, segment) for segment in segments])
    size = sum(store.size(segment.path) or 0 for segment in segments)
    return {"seconds": round(seconds, 1), "segments": len(segments), "bytes_a_vector": round(size / rows, 1)}


def step_search(store: Store, parts: list[EmbeddedPart], rows: int) -> dict[str, Any]:
    segments = index.plan_segments(list(enumerate(parts)), "images")
    result: dict[str, Any] = {}
    for kind, queries_QD in queries(rows, parts[0].dim, QUERIES).items():
        through_index(store, segments, queries_QD[0])
        timed, found = [], []
        for query_D in queries_QD:
            begun = time.perf_counter()
            found.append(places(through_index(store, segments, query_D)))
            timed.append(time.perf_counter() - begun)
        true = best_of_all(store, parts, queries_QD)
        recall = np.mean([len(one & other) / BEST for one, other in zip(found, true, strict=True)])
        result[kind] = {
            "recall_at_10": round(float(recall), 4),
            "milliseconds": round(1000 * statistics.median(timed), 1),
            "milliseconds_p90": round(1000 * float(np.quantile(timed, 0.9)), 1),
        }
    return result


def best_of_all(store: Store, parts: list[EmbeddedPart], queries_QD: NDArray[np.float32]) -> list[set[tuple[int, int]]]:
    """The true best ten of many queries, by one pass over the files with numpy alone."""
    scores = np.empty((len(queries_QD), 0), np.float32)
    rows = np.empty((len(queries_QD), 0), np.int64)
    first = 0
    for part in parts:
        vectors_ND = np.load(store.location(part.path)).astype(np.float32)
        scores = np.concatenate([scores, queries_QD @ vectors_ND.T], axis=1)
        here = np.broadcast_to(np.arange(first, first + part.rows), (len(queries_QD), part.rows))
        rows = np.concatenate([rows, here], axis=1)
        best = np.argpartition(-scores, BEST, axis=1)[:, :BEST]
        scores, rows = np.take_along_axis(scores, best, 1), np.take_along_axis(rows, best, 1)
        first += part.rows
    ends = np.cumsum([part.rows for part in parts])
    return [
        {
            (group, row - (ends[group] - parts[group].rows))
            for row in some
            for group in [np.searchsorted(ends, row, "right")]
        }
        for some in rows.tolist()
    ]


STEPS = {"exact": step_exact, "build": step_build, "search": step_search}


def _seconds(work: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def run_step(name: str, folder: Path, rows: int) -> dict[str, Any]:
    """In a process of its own: a step's figures, and the memory that it added to the imports'."""
    store = Store(str(folder))
    parts = embedded(store)
    if name != "exact":
        import faiss  # noqa: F401
    before = _most_memory_mb()
    figures = STEPS[name](store, parts, rows)
    if name != "search":  # which holds the truth too
        figures["memory_added_mb"] = round(_most_memory_mb() - before)
    return figures


def _most_memory_mb() -> float:
    """The most resident memory that this process has had."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--step", choices=STEPS, help="one step on a made run, printed")
    parser.add_argument("--folder", type=Path, help="of the made run, kept there; made where it is empty")
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()
    if args.step:
        print(json.dumps(run_step(args.step, args.folder, args.rows)))
        return
    import faiss

    load = round(os.getloadavg()[0], 1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.folder or Path(scratch)
        if not (folder / "score").exists():
            make_run(folder, args.rows, args.dim)
        results = {}
        for step in STEPS:
            command = [sys.executable, __file__, "--step", step, "--folder", str(folder), "--rows", str(args.rows)]
            found = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            results[step] = json.loads(found)
            print(step, json.dumps(results[step]), flush=True)
    conditions = {
        "rows": args.rows,
        "dim": args.dim,
        "rows_a_cluster": ROWS_A_CLUSTER,
        "queries_of_a_kind": QUERIES,
        "share_of_cells_looked_into": index.PROBED_SHARE,
        "files": "local, cached",
        "cpus": cpu_count(),
        "load_average_before": load,
        "machine": platform.machine(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "faiss": faiss.__version__,
    }
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({"conditions": conditions, **results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
