"""Which URL is requested next: fair among hosts, limited per host and in total, with redirects and retries.

A URL that waits, for its host or for another attempt, is a small object in a queue: it holds no slot and no task.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

from vila_data.download.config import DownloadConfig
from vila_data.download.fetch import Fetched, Fetcher, FetchError, Redirected
from vila_data.download.pending import Image
from vila_data.download.robots import Robots
from vila_data.download.urls import WebURL

MAX_REDIRECTS: Final = 5
_RETRY_AFTER_CAP_S: Final = 30.0

Deliver = Callable[[Image, Fetched | FetchError], Awaitable[None]]


@dataclass(slots=True)
class _Job:
    """A URL's way: `first` is its URL in the metadata, `url` where redirects have led it."""

    image: Image
    first: WebURL
    url: WebURL
    hops: int = 0
    attempt: int = 0
    spent_s: float = 0.0
    http_code: int | None = None


@dataclass(slots=True)
class _Host:
    waiting: deque[_Job] = field(default_factory=deque)
    active: int = 0
    queued: bool = False  # in the ready line
    opened: bool = False  # robots.txt is known: more than one at a time


class Schedule:
    """Runs requests and hands each image's last outcome to `deliver`, once.

    deliver: awaited while the request still counts against `concurrency`, not against its
        host: where it waits, fetching pauses.
    """

    def __init__(
        self,
        config: DownloadConfig,
        fetcher: Fetcher,
        robots: Robots | None,
        deliver: Deliver,
        backoff_s: float,
    ) -> None:
        self._config = config
        self._fetcher = fetcher
        self._robots = robots
        self._deliver = deliver
        self._backoff_s = backoff_s
        self._hosts: dict[str, _Host] = {}
        self._ready: deque[tuple[str, _Host]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._active = 0
        self.unfinished = 0
        self._changed = asyncio.Event()
        self._failure: BaseException | None = None
        self._stopped = False

    def add(self, image: Image, url: WebURL) -> None:
        """Queue an image's URL."""
        self.unfinished += 1
        self._enqueue(_Job(image, url, url))

    async def wait_below(self, limit: int) -> None:
        """Wait until fewer than `limit` URLs are unfinished.

        Raises:
            BaseException: what a request or a delivery raised.
        """
        while self._failure is None and self.unfinished >= limit:
            self._changed.clear()
            await self._changed.wait()
        if self._failure is not None:
            raise self._failure

    async def stop(self) -> None:
        """Cancel what is under way."""
        self._stopped = True
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _enqueue(self, job: _Job) -> None:
        name = job.url.host
        host = self._hosts.get(name)
        if host is None:
            host = self._hosts[name] = _Host()
        host.waiting.append(job)
        self._line_up(name, host)
        self._pump()

    def _line_up(self, name: str, host: _Host) -> None:
        limit = self._config.per_host if host.opened or self._robots is None else 1
        if host.waiting and not host.queued and host.active < limit:
            host.queued = True
            self._ready.append((name, host))

    def _pump(self) -> None:
        while self._ready and self._active < self._config.concurrency and not self._stopped:
            name, host = self._ready.popleft()
            host.queued = False
            job = host.waiting.popleft()
            host.active += 1
            self._active += 1
            self._line_up(name, host)
            task = asyncio.create_task(self._run(job, name, host))
            self._tasks.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._active -= 1
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self.fail(error)
        self._pump()

    async def _run(self, job: _Job, name: str, host: _Host) -> None:
        """One request, and what follows from it."""
        try:
            outcome = await self._request(job, name, host)
        finally:
            host.active -= 1
            host.opened = True
            if host.waiting:
                self._line_up(name, host)
            elif host.active == 0:
                self._hosts.pop(name, None)
        self._pump()
        final: Fetched | FetchError | None
        if isinstance(outcome, Redirected):
            final = self._follow(job, outcome)
        elif isinstance(outcome, FetchError):
            final = self._retry(job, outcome)
        else:
            final = outcome
        if final is not None:
            if isinstance(final, FetchError):
                final.http_code = final.http_code or job.http_code
            await self._deliver(job.image, final)

    async def _request(self, job: _Job, name: str, host: _Host) -> Fetched | Redirected | FetchError:
        loop = asyncio.get_running_loop()
        try:
            if self._robots is not None:
                refusal = await self._robots.refusal(job.url)
                if not host.opened:
                    host.opened = True
                    self._line_up(name, host)
                    self._pump()
                if refusal is not None:
                    return FetchError(refusal)
            started = loop.time()
            outcome = await self._fetcher.request(
                job.url,
                self._config.timeout_s - job.spent_s,
                limit=self._config.max_bytes,
                close=not host.waiting,
            )
        except FetchError as error:
            return error
        job.spent_s += loop.time() - started
        job.http_code = outcome.http_code
        return outcome

    def _follow(self, job: _Job, outcome: Redirected) -> FetchError | None:
        if outcome.url is None:
            return FetchError("bad_url", outcome.http_code)
        job.hops += 1
        if job.hops > MAX_REDIRECTS:
            return FetchError("too_many_redirects", outcome.http_code)
        job.url = outcome.url
        self._enqueue(job)
        return None

    def _retry(self, job: _Job, error: FetchError) -> FetchError | None:
        """Queue another attempt after a pause; the error where it is the last word."""
        if not error.retryable or job.attempt >= self._config.retries:
            return error
        if error.retry_after_s is not None and error.retry_after_s > _RETRY_AFTER_CAP_S:
            return error
        jitter = random.Random(f"{job.attempt} {job.first}").uniform(0.5, 1.5)
        pause_s = max(error.retry_after_s or 0.0, self._backoff_s * 2**job.attempt * jitter)
        job.attempt += 1
        job.url, job.hops, job.spent_s = job.first, 0, 0.0
        job.http_code = error.http_code or job.http_code
        asyncio.get_running_loop().call_later(min(pause_s, _RETRY_AFTER_CAP_S), self._enqueue, job)
        return None

    def finished(self) -> None:
        """Count one image as finished; called by the consumer of deliveries."""
        self.unfinished -= 1
        self._changed.set()

    def fail(self, error: BaseException) -> None:
        """End the schedule: waiting callers get `error`."""
        self._failure = self._failure or error
        self._stopped = True
        self._changed.set()
