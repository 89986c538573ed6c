"""The first pass over a part: records to disk, distinct images to the network or straight to the decoder."""

from __future__ import annotations

import asyncio
import hashlib
import struct
from array import array
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Final

from vila_data.core.cpus import cpu_count
from vila_data.core.images import ImageError, normalise
from vila_data.core.records import BadRecord, ImageRef, Record, canonical_json, record_to_json
from vila_data.corpora.pictures import read_picture
from vila_data.download.body import BodyMemory, Fetched
from vila_data.download.config import DownloadConfig
from vila_data.download.fetch import Fetcher, Network
from vila_data.download.outcome import FetchError
from vila_data.download.results import Results
from vila_data.download.robots import Robots
from vila_data.download.schedule import Schedule
from vila_data.download.spool import Spool
from vila_data.download.urls import parse_url

Progress = Callable[[int], None]

_BATCH: Final = 32  # records read at once
_LOOKAHEAD: Final = 16_384  # URLs known and unfinished
_FILE: Final = b"\0file:"  # before a local image's path, so that no URL is taken for one
_DETAILED: Final = ("unsupported_format", "too_many_pixels", "too_large")  # of others the decoder's words would be it
_FRAME: Final = struct.Struct("<?I")  # whether it is a record, bytes of JSON


@dataclass(frozen=True, slots=True)
class _Picked:
    """An image to look after; `data` and `file` as in ImageRef."""

    number: int
    url: str
    data: bytes | None
    file: str | None

    def body(self, max_bytes: int) -> Callable[[], bytes] | None:
        """What gives the bytes of an image that needs no download; None: it is to be fetched."""
        if self.file is not None:
            return partial(read_picture, self.file, max_bytes)
        data = self.data
        return None if data is None else lambda: data


class Intake:
    """A part's records and images on their way into `folder`.

    records: spool of frames; images: for every image in record order its number in `results`.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self.results = Results()
        self.images = array("i")
        self.bodies = Spool(folder / "bodies")
        self.rules = Spool(folder / "robots")
        self._records = Spool(folder / "records")
        self._urls = Spool(folder / "urls")
        self._url_places = array("q")  # by image number: offset, size
        self._frames = 0

    def take(self, records: Iterator[Record | BadRecord], count: int) -> tuple[bool, list[_Picked], int]:
        """Spool up to `count` records: whether there may be more, images to look after, images finished at once."""
        picked: list[_Picked] = []
        finished = taken = 0
        for record in islice(records, count):
            taken += 1
            if isinstance(record, BadRecord):
                content = canonical_json(
                    {"record_id": record.record_id, "reason": record.reason, "detail": record.detail}
                )
                self._frame(False, content)
                continue
            self._frame(True, record_to_json(record))
            for image in record.images:
                found = self._pick(image)
                if found is None:
                    finished += 1
                else:
                    picked.append(found)
        return taken == count, picked, finished

    def _frame(self, good: bool, content: bytes) -> None:
        self._records.append(_FRAME.pack(good, len(content)) + content)
        self._frames += 1

    def _pick(self, image: ImageRef) -> _Picked | None:
        text = b""
        if image.error is not None or image.data is not None:
            number, new = self.results.add(), True
        elif image.file is not None:
            number, new = self.results.number(_FILE + image.file.encode("utf-8", "surrogatepass"))
        else:
            text = image.url.encode("utf-8", "surrogatepass")
            number, new = self.results.number(text)
        self.images.append(number)
        if not new:
            return None
        self._url_places.extend((self._urls.append(text), len(text)))
        if image.error is not None:
            self.results.fail(number, image.error)
            return None
        return _Picked(number, image.url, image.data, image.file)

    def url(self, number: int) -> str:
        """The URL of an image that is fetched."""
        offset, size = self._url_places[2 * number : 2 * number + 2]
        return self._urls.read(offset, size).decode("utf-8", "surrogatepass")

    def frames(self) -> Iterator[tuple[bool, bytes]]:
        """(whether it is a record, its JSON) in order."""
        with open(self.folder / "records", "rb") as stream:
            for _ in range(self._frames):
                good, size = _FRAME.unpack(stream.read(_FRAME.size))
                yield good, stream.read(size)

    def close(self) -> None:
        """Close the scratch files."""
        for spool in (self.bodies, self.rules, self._records, self._urls):
            spool.close()


class Decoding:
    """Bodies into the spool as stored JPEGs, in threads, a bounded number at a time."""

    def __init__(self, intake: Intake, config: DownloadConfig, done: Callable[[BaseException | None], None]) -> None:
        self._intake = intake
        self._config = config
        self.max_bytes = config.max_bytes
        self._done = done
        threads = cpu_count()
        self.threads = ThreadPoolExecutor(threads, thread_name_prefix="vila-decode")
        self._gate = asyncio.Semaphore(2 * threads + 2)
        self._tasks: set[asyncio.Task[None]] = set()

    async def submit(self, number: int, take: Callable[[], bytes], http_code: int | None) -> None:
        """Queue one body; waits while the queue is full."""
        await self._gate.acquire()
        task = asyncio.create_task(self._run(number, take, http_code))
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    async def _run(self, number: int, take: Callable[[], bytes], http_code: int | None) -> None:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self.threads, store_body, self._intake, self._config, number, take, http_code)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._gate.release()
        self._done(None if task.cancelled() else task.exception())

    async def stop(self) -> None:
        """Drop what is queued and wait for what runs."""
        self.threads.shutdown(wait=False, cancel_futures=True)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.threads.shutdown(wait=True)


def store_body(
    intake: Intake, config: DownloadConfig, number: int, take: Callable[[], bytes], http_code: int | None
) -> None:
    """Normalise one body and spool it, or note why that cannot be."""
    data: bytes | None = None
    resize = config.resize
    try:
        data = take()
        image = normalise(
            data,
            max_pixels=config.max_pixels,
            shorter_side_px=resize.shorter_side_px if resize else None,
            only_if_larger=resize.only_if_larger if resize else True,
            jpeg_quality=resize.jpeg_quality if resize else 90,
        )
    except ImageError as error:
        size = None if data is None else len(data)
        detail = error.detail if size is not None and error.error_class in _DETAILED else None
        intake.results.fail(number, error.error_class, http_code, size, detail)
        return
    offset = intake.bodies.append(image.jpeg)
    digest = hashlib.sha256(image.jpeg).digest()
    intake.results.store(number, image, digest, offset, http_code, len(data))


async def fetch_all(
    intake: Intake,
    records: Iterable[Record | BadRecord],
    config: DownloadConfig,
    network: Network,
    progress: Progress,
) -> None:
    """Take in all records and finish all their images.

    Raises:
        OSError: no space left. RunError: out of file descriptors. Whatever `records` raises.
    """
    memory = BodyMemory(intake.folder)

    def finished(error: BaseException | None = None) -> None:
        if error is not None:
            schedule.fail(error)
        schedule.finished()
        progress(1)

    async def deliver(number: int, outcome: Fetched | FetchError) -> None:
        if isinstance(outcome, FetchError):
            intake.results.fail(number, outcome.error_class, outcome.http_code)
            finished()
        else:
            intake.results.bytes_fetched += outcome.body.size
            await decoding.submit(number, outcome.body.take, outcome.http_code)

    async with Fetcher(config, network, memory) as fetcher:
        robots = Robots(fetcher, intake.rules, config, network.backoff_s) if config.robots_txt else None
        schedule = Schedule(config, fetcher, robots, intake.url, deliver, network.backoff_s)
        decoding = Decoding(intake, config, finished)
        reading = ThreadPoolExecutor(1, thread_name_prefix="vila-read")
        try:
            await _read_all(intake, iter(records), schedule, decoding, reading, progress)
            await schedule.wait_below(1)
        finally:
            await schedule.stop()
            await decoding.stop()
            reading.shutdown(wait=True)


async def _read_all(
    intake: Intake,
    records: Iterator[Record | BadRecord],
    schedule: Schedule,
    decoding: Decoding,
    reading: ThreadPoolExecutor,
    progress: Progress,
) -> None:
    loop = asyncio.get_running_loop()
    more = True
    while more:
        more, picked, finished = await loop.run_in_executor(reading, intake.take, records, _BATCH)
        if finished:
            progress(finished)
        for image in picked:
            body = image.body(decoding.max_bytes)
            if body is not None:
                schedule.unfinished += 1
                await decoding.submit(image.number, body, None)
                continue
            url = parse_url(image.url)
            if url is None:
                intake.results.fail(image.number, "bad_url")
                progress(1)
            else:
                schedule.add(image.number, url)
        await schedule.wait_below(_LOOKAHEAD)
