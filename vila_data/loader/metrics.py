"""Metrics of a loader: what it has returned and where the time went, as values, a log line and Prometheus metrics."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from vila_data.core.ranges.prefetch import RangeCounters
from vila_data.loader.assemble import STAGES
from vila_data.loader.producer import BatchHeader

if TYPE_CHECKING:
    from prometheus_client.registry import CollectorRegistry


@dataclass(frozen=True)
class SourceTotals:
    """Totals of one source of the blend. token_share: its tokens divided by all tokens."""

    source: str
    samples: int
    images: int
    tokens: int
    token_share: float


@dataclass(frozen=True)
class StreamMetrics:
    """A rank's totals since its loader was made.

    columns: of all rows, padding included, so that fill = tokens / columns; seconds: since the first batch was
    requested; waited_s: of these, seconds in which the consumer waited for a batch; stage_seconds: of all workers
    together, by loader.assemble.STAGES; reads, read_bytes, cache_hits, retries: of images' byte ranges; faults: by stage;
    replaced_workers: workers that died; slowest_read: (path, seconds).
    """

    batches: int
    packs: int
    samples: int
    images: int
    tokens: int
    columns: int
    seconds: float
    waited_s: float
    stage_seconds: dict[str, float]
    sources: tuple[SourceTotals, ...]
    reads: int
    read_bytes: int
    cache_hits: int
    retries: int
    faults: dict[str, int]
    replaced_workers: int
    slowest_read: tuple[str, float] = ("", 0.0)

    @property
    def wait_share(self) -> float:
        """Share of the time in which the consumer waited."""
        return self.waited_s / self.seconds if self.seconds else 0.0

    @property
    def fill(self) -> float:
        """Share of the columns that are not padding."""
        return self.tokens / self.columns if self.columns else 0.0

    @property
    def slowest_stage(self) -> str:
        """The stage that takes most of the workers' time; "blocked" where they wait for the consumer most."""
        return max(STAGES, key=lambda stage: self.stage_seconds.get(stage, 0.0))

    def rate(self, name: str) -> float:
        """``batches``, ``packs``, ``samples``, ``images``, ``tokens`` or ``read_bytes`` per second."""
        return float(getattr(self, name)) / self.seconds if self.seconds else 0.0

    def line(self) -> str:
        """One line for a log."""
        shares = ", ".join(f"{source.source} {source.token_share:.1%}" for source in self.sources)
        return (
            f"{self.batches:,} batches, {self.rate('samples'):,.0f} samples/s, {self.rate('images'):,.0f} images/s, "
            f"{self.rate('tokens'):,.0f} tokens/s, waited {self.wait_share:.1%}, fill {self.fill:.2%}, "
            f"slowest stage {self.slowest_stage}, cache hits {self.cache_hits:,} of {self.reads:,}, "
            f"faults {sum(self.faults.values())}; tokens: {shares}"
        )

    def as_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        rates = {f"{name}_per_s": self.rate(name) for name in ("samples", "images", "tokens", "read_bytes")}
        shown = {"wait_share": self.wait_share, "fill": self.fill, "slowest_stage": self.slowest_stage}
        return {**asdict(self), **rates, **shown}


class MetricsCollector:
    """Adds up a loader's batches. sources: names of the blend's sources, in order.

    The counters in a worker's headers are running totals: they count from 0 again when the worker is replaced.
    """

    def __init__(self, sources: Sequence[str]) -> None:
        self._names = sources
        self._batches = self._packs = self._columns = 0
        self._sources = np.zeros((len(sources), 3), np.int64)
        self._began: float | None = None
        self._waited_s = 0.0
        self._stage_s = dict.fromkeys(STAGES, 0.0)
        self._read = RangeCounters()
        self._running: dict[int, BatchHeader] = {}  # by worker, its last header

    def add(self, header: BatchHeader, worker: int) -> None:
        """Count a batch that this worker has made."""
        self._batches += 1
        self._packs += header.packs
        self._columns += header.size.rows * header.size.length
        self._sources += header.sources
        self._running[worker] = replace(header, origins=(), faults=())

    def add_wait(self, seconds: float) -> None:
        """Count time in which the consumer waited."""
        if self._began is None:
            self._began = time.perf_counter() - seconds
        self._waited_s += seconds

    def end_worker(self, worker: int) -> None:
        """Keep the totals of a worker that has ended."""
        header = self._running.pop(worker, None)
        if header is not None:
            self._stage_s, self._read = self._plus([header])

    def end_workers(self) -> None:
        """Keep the totals of all workers: they begin anew."""
        for worker in list(self._running):
            self.end_worker(worker)

    def totals(self, faults: dict[str, int], replaced_workers: int) -> StreamMetrics:
        """The totals so far."""
        samples, images, tokens = self._sources.sum(axis=0).tolist()
        stage_s, read = self._plus(self._running.values())
        sources = [
            SourceTotals(name, own_samples, own_images, own_tokens, own_tokens / max(1, tokens))
            for name, (own_samples, own_images, own_tokens) in zip(self._names, self._sources.tolist(), strict=True)
        ]
        return StreamMetrics(
            batches=self._batches,
            packs=self._packs,
            samples=samples,
            images=images,
            tokens=tokens,
            columns=self._columns,
            seconds=0.0 if self._began is None else time.perf_counter() - self._began,
            waited_s=self._waited_s,
            stage_seconds=stage_s,
            sources=tuple(sources),
            reads=read.reads,
            read_bytes=read.bytes,
            cache_hits=read.cache_hits,
            retries=read.retries,
            faults=dict(faults),
            replaced_workers=replaced_workers,
            slowest_read=read.slowest,
        )

    def _plus(self, headers: Collection[BatchHeader]) -> tuple[dict[str, float], RangeCounters]:
        """The seconds by stage and the reads of ended workers and of these."""
        stage_s = {
            stage: sum((one.stage_s[stage] for one in headers), before) for stage, before in self._stage_s.items()
        }
        reads = [self._read, *(one.read for one in headers)]
        return stage_s, RangeCounters(
            reads=sum(one.reads for one in reads),
            bytes=sum(one.bytes for one in reads),
            cache_hits=sum(one.cache_hits for one in reads),
            retries=sum(one.retries for one in reads),
            seconds=sum(one.seconds for one in reads),
            slowest=max((one.slowest for one in reads), key=lambda slowest: slowest[1]),
        )


_PROMETHEUS_COUNTERS: Final = (
    "batches", "packs", "samples", "images", "tokens", "reads", "read_bytes", "cache_hits", "retries", "replaced_workers",
)  # fmt: skip


class PrometheusMetrics:
    """A collector for prometheus_client: a loader's totals at each scrape. labels: e.g. rank."""

    def __init__(self, read: Callable[[], StreamMetrics], labels: dict[str, str]) -> None:
        self._read, self._labels = read, labels

    def register(self, registry: CollectorRegistry | None = None) -> PrometheusMetrics:
        """Add it to a registry, by default the global one.

        All loaders of a registry share one collector, because the text format must have each metric once.
        """
        from prometheus_client import REGISTRY

        target = registry or REGISTRY
        with _REGISTRIES_LOCK:
            collector = _REGISTRIES.get(target)
            if collector is None:
                collector = _REGISTRIES[target] = _RegistryCollector()
                target.register(collector)
            collector.members.append(self)
        return self

    def unregister(self, registry: CollectorRegistry | None = None) -> None:
        """Remove it from the registry; does nothing if it is not in it."""
        from prometheus_client import REGISTRY

        with _REGISTRIES_LOCK:
            collector = _REGISTRIES.get(registry or REGISTRY)
            if collector is not None and self in collector.members:
                collector.members.remove(self)

    def describe(self) -> Iterable[Any]:
        """Nothing, so that registering reads no totals."""
        return []

    def collect(self) -> Iterable[Any]:
        """The metrics, as prometheus_client asks for them."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        names, values = list(self._labels), list(self._labels.values())
        found = self._read()
        for name in _PROMETHEUS_COUNTERS:
            family = CounterMetricFamily(f"vila_data_{name}", f"{name} of the stream so far", labels=names)
            family.add_metric(values, getattr(found, name))
            yield family
        waited = CounterMetricFamily("vila_data_waited_seconds", "time the consumer waited", labels=names)
        waited.add_metric(values, found.waited_s)
        fill = GaugeMetricFamily("vila_data_fill_ratio", "columns that are not padding", labels=names)
        fill.add_metric(values, found.fill)
        faults = CounterMetricFamily("vila_data_faults", "broken images and samples", labels=[*names, "stage"])
        for stage, count in found.faults.items():
            faults.add_metric([*values, stage], count)
        stages = CounterMetricFamily("vila_data_stage_seconds", "workers' time by stage", labels=[*names, "stage"])
        for stage, seconds in found.stage_seconds.items():
            stages.add_metric([*values, stage], seconds)
        shares = CounterMetricFamily("vila_data_source_tokens", "tokens of each source", labels=[*names, "source"])
        for source in found.sources:
            shares.add_metric([*values, source.source], source.tokens)
        yield from (waited, fill, faults, stages, shares)


class _RegistryCollector:
    """Collects for all loaders of one registry: each metric once, with the samples of all of them."""

    def __init__(self) -> None:
        self.members: list[PrometheusMetrics] = []

    def describe(self) -> Iterable[Any]:
        """Nothing, as PrometheusMetrics."""
        return []

    def collect(self) -> Iterable[Any]:
        """All loaders' metrics, merged by name."""
        families: dict[str, Any] = {}
        for member in tuple(self.members):
            for family in member.collect():
                if family.name in families:
                    families[family.name].samples.extend(family.samples)
                else:
                    families[family.name] = family
        return families.values()


_REGISTRIES_LOCK: Final = threading.Lock()
_REGISTRIES: Final[weakref.WeakKeyDictionary[CollectorRegistry, _RegistryCollector]] = weakref.WeakKeyDictionary()
