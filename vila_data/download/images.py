"""A part's records into the line of pending ones, their distinct images to the network or straight to the decoder."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Final

from vila_data.core.cpus import cpu_count
from vila_data.core.fates import IMAGE_ERRORS
from vila_data.core.images import ImageError, StoredImage, normalize_image
from vila_data.core.records import BadRecord, ImageRef, Record, record_to_json, without_surrogates
from vila_data.corpora.images import read_image
from vila_data.download.config import DownloadConfig
from vila_data.download.fetch import BodyMemory, Fetched, Fetcher, FetchError, Network
from vila_data.download.pending import Image, Pending, PendingRecord, ScratchFile
from vila_data.download.robots import Robots
from vila_data.download.schedule import Schedule
from vila_data.download.urls import parse_url

Progress = Callable[[int], None]

_BATCH: Final = 32  # records read at once
_LOOKAHEAD: Final = 16_384  # URLs known and unfinished
_FILE: Final = "\0file:"  # before a local image's path, so that no URL is taken for one
_DETAILED: Final = ("unsupported_format", "too_many_pixels", "too_large")  # of others the decoder's words would be it


Picked = tuple[Image, ImageRef]
"""An image to look after, and where it is."""


class PartImages:
    """A part's records and images on their way to `pending`; scratch files are in `directory`."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self.directory = directory
        self.scratch = ScratchFile(directory / "spool")
        self.pending = Pending(self.scratch)
        self.bytes_fetched = 0
        self._images: dict[str, Image] = {}  # by URL, or _FILE and path

    def take(self, records: Iterator[Record | BadRecord], count: int) -> tuple[bool, list[Picked], int]:
        """Take up to `count` records: whether there may be more, images to look after, images finished at once."""
        picked: list[Picked] = []
        finished = taken = 0
        for record in islice(records, count):
            taken += 1
            if isinstance(record, BadRecord):
                self.pending.append(record)
                continue
            images = [self._image(image) for image in record.images]
            self.pending.append(
                PendingRecord(
                    record_id=without_surrogates(record.record_id),
                    n_texts=len(record.texts),
                    text_chars=len(without_surrogates("".join(record.texts))),
                    content=self.pending.records.put(record_to_json(record)),
                    images=[
                        (without_surrogates(ref.url), ref.matched_text_index, image)
                        for ref, (image, _) in zip(record.images, images, strict=True)
                    ],
                )
            )
            for ref, (image, new) in zip(record.images, images, strict=True):
                if ref.error is not None:
                    self.fail(image, ref.error)
                if new and ref.error is None:
                    picked.append((image, ref))
                else:
                    finished += 1
        return taken == count, picked, finished

    def _image(self, ref: ImageRef) -> tuple[Image, bool]:
        """A reference's image, and whether it is new."""
        if ref.error is not None or ref.data is not None:
            return Image(), True
        key = ref.url if ref.file is None else _FILE + ref.file
        image = self._images.get(key)
        if image is not None:
            return image, False
        self._images[key] = image = Image()
        return image, True

    def fail(
        self,
        image: Image,
        error: str,
        http_code: int | None = None,
        original_bytes: int | None = None,
        detail: str | None = None,
    ) -> None:
        """Finish an image with an error; `original_bytes` where a whole body came."""
        if error not in IMAGE_ERRORS:
            raise ValueError(f"no such image error: {error}")
        image.error, image.http_code, image.original_bytes, image.detail = error, http_code, original_bytes, detail
        self.pending.finish(image)

    def store(self, image: Image, stored: StoredImage, http_code: int | None, original_bytes: int | None) -> None:
        """Finish an image with its bytes.

        Raises:
            OSError: no space left.
        """
        image.http_code, image.original_bytes = http_code, original_bytes
        image.sha256 = hashlib.sha256(stored.jpeg).digest()
        image.held = self.pending.images.put(stored.jpeg)
        image.stored = replace(stored, jpeg=b"")
        self.pending.finish(image)

    def close(self) -> None:
        """Close the scratch file."""
        self.scratch.close()


def local_body(ref: ImageRef, max_bytes: int) -> Callable[[], bytes] | None:
    """What gives the bytes of an image that needs no download; None: it is to be fetched."""
    if ref.file is not None:
        return partial(read_image, ref.file, max_bytes)
    data = ref.data
    return None if data is None else lambda: data


class Decoding:
    """Bodies into stored JPEGs, in threads, a bounded number at a time."""

    def __init__(
        self, part_images: PartImages, config: DownloadConfig, done: Callable[[BaseException | None], None]
    ) -> None:
        self._part_images = part_images
        self._config = config
        self.max_bytes = config.max_bytes
        self._done = done
        threads = cpu_count()
        self.threads = ThreadPoolExecutor(threads, thread_name_prefix="vila-decode")
        self._gate = asyncio.Semaphore(2 * threads + 2)
        self._tasks: set[asyncio.Task[None]] = set()

    async def submit(self, image: Image, take: Callable[[], bytes], http_code: int | None) -> None:
        """Queue one body; waits while the queue is full."""
        await self._gate.acquire()
        task = asyncio.create_task(self._run(image, take, http_code))
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    async def _run(self, image: Image, take: Callable[[], bytes], http_code: int | None) -> None:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self.threads, store_body, self._part_images, self._config, image, take, http_code)

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
    part_images: PartImages, config: DownloadConfig, image: Image, take: Callable[[], bytes], http_code: int | None
) -> None:
    """Normalize one body and keep it, or note why that cannot be."""
    data: bytes | None = None
    resize = config.resize
    try:
        data = take()
        stored = normalize_image(
            data,
            max_pixels=config.max_pixels,
            shorter_side_px=resize.shorter_side_px if resize else None,
            only_if_larger=resize.only_if_larger if resize else True,
            jpeg_quality=resize.jpeg_quality if resize else 90,
        )
    except ImageError as error:
        size = None if data is None else len(data)
        detail = error.detail if size is not None and error.error_class in _DETAILED else None
        part_images.fail(image, error.error_class, http_code, size, detail)
        return
    part_images.store(image, stored, http_code, len(data))


async def fetch_all(
    part_images: PartImages,
    records: Iterable[Record | BadRecord],
    config: DownloadConfig,
    network: Network,
    progress: Progress,
) -> None:
    """Take in all records and finish all their images.

    Raises:
        OSError: no space left. RunError: out of file descriptors. Whatever `records` raises.
    """
    memory = BodyMemory(part_images.directory)

    def finished(error: BaseException | None = None) -> None:
        if error is not None:
            schedule.fail(error)
        schedule.finished()
        progress(1)

    async def deliver(image: Image, outcome: Fetched | FetchError) -> None:
        if isinstance(outcome, FetchError):
            part_images.fail(image, outcome.error_class, outcome.http_code)
            finished()
        else:
            part_images.bytes_fetched += outcome.body.size
            await decoding.submit(image, outcome.body.take, outcome.http_code)

    async with Fetcher(config, network, memory) as fetcher:
        robots = Robots(fetcher, part_images.scratch, config, network.backoff_s) if config.robots_txt else None
        schedule = Schedule(config, fetcher, robots, deliver, network.backoff_s)
        decoding = Decoding(part_images, config, finished)
        reading = ThreadPoolExecutor(1, thread_name_prefix="vila-read")
        try:
            await _read_all(part_images, iter(records), schedule, decoding, reading, progress)
            await schedule.wait_below(1)
        finally:
            await schedule.stop()
            await decoding.stop()
            reading.shutdown(wait=True)


async def _read_all(
    part_images: PartImages,
    records: Iterator[Record | BadRecord],
    schedule: Schedule,
    decoding: Decoding,
    reading: ThreadPoolExecutor,
    progress: Progress,
) -> None:
    loop = asyncio.get_running_loop()
    more = True
    while more:
        more, picked, finished = await loop.run_in_executor(reading, part_images.take, records, _BATCH)
        if finished:
            progress(finished)
        for image, ref in picked:
            body = local_body(ref, decoding.max_bytes)
            if body is not None:
                schedule.unfinished += 1
                await decoding.submit(image, body, None)
                continue
            url = parse_url(ref.url)
            if url is None:
                part_images.fail(image, "bad_url")
                progress(1)
            else:
                schedule.add(image, url)
        await schedule.wait_below(_LOOKAHEAD)
