"""What a loader has done and where its time went: as values, as a line, as Prometheus metrics."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from vila_data.loader.assemble import STAGES
from vila_data.loader.feed import BatchHeader

if TYPE_CHECKING:
    from prometheus_client.registry import CollectorRegistry


_COUNTERS: Final = ("reads", "bytes", "cache_hits", "retries")


@dataclass(frozen=True)
class SourceTotals:
    """What one source of the blend gave. token_share: its tokens over all tokens."""

    source: str
    samples: int
    images: int
    tokens: int
    token_share: float


@dataclass(frozen=True)
class StreamMetrics:
    """A rank's totals since its loader was made.

    columns: of all rows, padding included, so that fill = tokens / columns; seconds: since the first batch was asked
    for; waited_s: of these, seconds in which the consumer waited for a batch; stage_seconds: of all workers together, by
    loader.assemble.STAGES; reads, read_bytes, cache_hits, retries: of images' byte ranges; replaced_workers: that died.
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
        """``batches``, ``packs``, ``samples``, ``images``, ``tokens`` or ``read_bytes`` a second."""
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


@dataclass
class Meter:
    """Adds up a loader's batches. labels: of the blend's sources, in order."""

    labels: Sequence[str]
    batches: int = 0
    packs: int = 0
    columns: int = 0
    waited_s: float = 0.0
    began: float | None = None
    _sources: Any = None
    _spent: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    _reads: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_COUNTERS, 0))
    _slowest: tuple[str, float] = ("", 0.0)
    _feeds: dict[int, BatchHeader] = field(default_factory=dict)

    def end_feed(self, feed: int) -> None:
        """Keep the totals of a worker that is over: headers of the one in its place count from nothing again."""
        header = self._feeds.pop(feed, None)
        if header is not None:
            self._spent = {stage: seconds + header.spent.get(stage, 0.0) for stage, seconds in self._spent.items()}
            self._reads = {name: count + header.read[name] for name, count in self._reads.items()}
            self._slowest = max(self._slowest, tuple(header.read["slowest"]), key=lambda one: one[1])

    def end_feeds(self) -> None:
        """The same for all of them."""
        for feed in list(self._feeds):
            self.end_feed(feed)

    def add(self, header: BatchHeader, feed: int) -> None:
        """Count a batch. feed: number of the worker that made it, whose counters in headers are running totals."""
        rows, length = header.size[:2]
        self.batches += 1
        self.packs += header.packs
        self.columns += rows * length
        self._sources = header.sources if self._sources is None else self._sources + header.sources
        self._feeds[feed] = replace(header, origins=(), faults=())

    def waited(self, seconds: float) -> None:
        """Count time in which the consumer waited."""
        if self.began is None:
            self.began = time.perf_counter() - seconds
        self.waited_s += seconds

    def read(self, faults: dict[str, int], replaced: int) -> StreamMetrics:
        """The totals so far."""
        held = np.zeros((len(self.labels), 3), np.int64) if self._sources is None else self._sources
        samples, images, tokens = held.sum(axis=0).tolist()
        last = list(self._feeds.values())
        spent = {stage: sum((one.spent[stage] for one in last), base) for stage, base in self._spent.items()}
        count = {name: sum((one.read[name] for one in last), base) for name, base in self._reads.items()}
        slowest = max([self._slowest, *(tuple(one.read["slowest"]) for one in last)], key=lambda one: one[1])
        sources = [
            SourceTotals(label, int(row[0]), int(row[1]), int(row[2]), float(row[2] / max(1, tokens)))
            for label, row in zip(self.labels, held, strict=True)
        ]
        return StreamMetrics(
            batches=self.batches,
            packs=self.packs,
            samples=samples,
            images=images,
            tokens=tokens,
            columns=self.columns,
            seconds=0.0 if self.began is None else time.perf_counter() - self.began,
            waited_s=self.waited_s,
            stage_seconds=spent,
            sources=tuple(sources),
            reads=count["reads"],
            read_bytes=count["bytes"],
            cache_hits=count["cache_hits"],
            retries=count["retries"],
            faults=dict(faults),
            replaced_workers=replaced,
            slowest_read=slowest,
        )


_COUNTED: Final = (
    "batches", "packs", "samples", "images", "tokens", "reads", "read_bytes", "cache_hits", "retries", "replaced_workers",
)  # fmt: skip


class PrometheusMetrics:
    """A collector for prometheus_client: the totals of a loader, as counters, at each scrape. labels: e.g. rank."""

    def __init__(self, read: Callable[[], StreamMetrics], labels: dict[str, str]) -> None:
        self._read, self._labels = read, labels

    def register(self, registry: CollectorRegistry | None = None) -> PrometheusMetrics:
        """Add it to a registry, the default one unless another is given.

        All loaders of a registry share one collector: the text format has each metric once, with all its labels.
        """
        from prometheus_client import REGISTRY

        wanted = registry or REGISTRY
        with _JOINING:
            joined = _JOINED.get(wanted)
            if joined is None:
                joined = _JOINED[wanted] = _Joined()
                wanted.register(joined)
            joined.members.append(self)
        return self

    def unregister(self, registry: CollectorRegistry | None = None) -> None:
        """Take it out of the registry again; nothing happens where it is not in it."""
        from prometheus_client import REGISTRY

        with _JOINING:
            joined = _JOINED.get(registry or REGISTRY)
            if joined is not None and self in joined.members:
                joined.members.remove(self)

    def describe(self) -> Iterable[Any]:
        """Nothing, so that registering reads no totals."""
        return []

    def collect(self) -> Iterable[Any]:
        """The metrics, as prometheus_client asks for them."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        names, values = list(self._labels), list(self._labels.values())
        found = self._read()
        for name in _COUNTED:
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


class _Joined:
    """The collector of all loaders in one registry: each metric once, with the samples of all of them."""

    def __init__(self) -> None:
        self.members: list[PrometheusMetrics] = []

    def describe(self) -> Iterable[Any]:
        """Nothing, as PrometheusMetrics."""
        return []

    def collect(self) -> Iterable[Any]:
        """Every loader's metrics, those of one name together."""
        families: dict[str, Any] = {}
        for member in tuple(self.members):
            for family in member.collect():
                if family.name in families:
                    families[family.name].samples.extend(family.samples)
                else:
                    families[family.name] = family
        return families.values()


_JOINING: Final = threading.Lock()
_JOINED: Final[weakref.WeakKeyDictionary[CollectorRegistry, _Joined]] = weakref.WeakKeyDictionary()
