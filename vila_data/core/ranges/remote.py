"""Byte ranges of a remote store for a loader: each attempt with a time limit, attempts counted, results in a disk cache."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as WaitTimeoutError
from contextlib import ExitStack, closing
from pathlib import Path
from random import Random
from typing import Any, Final, TypeVar

import fsspec
import fsspec.asyn

from vila_data.core.errors import StorageError
from vila_data.core.ranges.cache import FileCache, RangeCache, cache_directory, digest
from vila_data.core.ranges.prefetch import (
    LARGEST,
    PrefetchReader,
    RangeCounters,
    RangeError,
    ReadOptions,
    Request,
    Span,
    merged,
    read_prefetched,
    whole,
)
from vila_data.core.scratch_locks import temporary_directory
from vila_data.core.store import Store

T = TypeVar("T")

_LONGEST_PAUSE_S: Final = 20.0
_PASSING_STATUS: Final = {408, 425, 429}
_LASTING: Final = (PermissionError, FileNotFoundError, IsADirectoryError, NotADirectoryError)
_LASTING_NAMES: Final = {"NoCredentialsError", "PartialCredentialsError", "ParamValidationError"}
"""Errors of botocore that no second attempt cures."""


class RangeFetch:
    """Requests to one store, of which each attempt has a hard time limit and its answer is checked for length.

    They run on fsspec's own event loop, in its own thread; what is not asynchronous there gets a thread of its own.
    The store's library does not retry: the attempts are counted here.
    """

    def __init__(self, store: Store, options: ReadOptions, counters: RangeCounters) -> None:
        try:
            self._fs, root = _file_system(store.url, options)
        except (ValueError, ImportError) as error:
            raise StorageError(f"{store.url}: cannot be opened as a store: {error}") from error
        self._root = root.rstrip("/")
        self._loop: asyncio.AbstractEventLoop = getattr(self._fs, "loop", None) or fsspec.asyn.get_loop()
        self._options = options
        self._counters = counters
        self._random = Random()
        self._under_way: set[Future[Any]] = set()
        self._closed = False
        self._beginning = threading.Lock()
        pauses = sum(min(_LONGEST_PAUSE_S, options.backoff_s * 2**n) for n in range(1, options.retries + 1))
        self._deadline_s = pauses + (2 * options.timeout_s) * (options.retries + 1) + 5.0

    def get(self, path: str, offset: int, size: int) -> bytes:
        """The bytes of a range, all of them.

        Raises:
            RangeError: the last attempt's reason.
        """
        return self._run(lambda: self._range(path, offset, size))

    def size(self, path: str) -> int:
        """Bytes of a file.

        Raises:
            RangeError: the last attempt's reason.
        """
        return int(self._file_info(path)["size"])

    def version(self, path: str) -> str:
        """What the store says of a file that changes when it is written again.

        Raises:
            RangeError: the last attempt's reason.
        """
        return repr(sorted(self._file_info(path).items()))

    def _file_info(self, path: str) -> dict[str, Any]:
        return self._run(lambda: self._info(path))

    def close(self) -> None:
        """Break off what is under way; nothing can be begun afterwards."""
        with self._beginning:
            self._closed = True
        for future in list(self._under_way):
            future.cancel()

    def _run(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """The result of the first attempt that succeeds, at the latest when all of them would have run out of time."""
        with self._beginning:  # what is begun is seen by `close`, or not begun
            if self._closed:
                raise RangeError("the reader is closed", 1, True)
            future = asyncio.run_coroutine_threadsafe(self._tried(attempt), self._loop)
            self._under_way.add(future)
        future.add_done_callback(self._under_way.discard)
        try:
            return future.result(self._deadline_s)
        except CancelledError as error:
            raise RangeError("the reader was closed", 1, True) from error
        except WaitTimeoutError as error:
            future.cancel()
            raise RangeError(f"no answer within {self._deadline_s:.0f} s", self._options.retries + 1, False) from error

    async def _tried(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """The result of the first attempt that succeeds."""
        options, reason = self._options, ""
        for number in range(1, options.retries + 2):
            try:
                return await asyncio.wait_for(attempt(), options.timeout_s)
            except RangeError as error:
                reason, lasting = error.reason, error.lasting
            except (asyncio.TimeoutError, TimeoutError):
                reason, lasting = f"no answer within {options.timeout_s:g} s", False
            except Exception as error:
                if _is_bug(error):
                    raise
                reason, lasting = _reason(error), _is_lasting(error)
            if lasting:
                raise RangeError(reason, number, True)
            if number <= options.retries:
                self._counters.retries += 1
                longest = min(_LONGEST_PAUSE_S, options.backoff_s * 2**number)
                await asyncio.sleep(self._random.uniform(0, longest))
        raise RangeError(reason, options.retries + 1, False)

    async def _range(self, path: str, offset: int, size: int) -> bytes:
        at = f"{self._root}/{path}"
        if self._fs.async_impl:
            data: bytes = await self._fs._cat_file(at, start=offset, end=offset + size)
        else:
            data = await _in_thread(lambda: self._fs.cat_file(at, start=offset, end=offset + size))
        if len(data) < size and offset + size > (file_size := int((await self._info(path))["size"])):
            raise RangeError(f"the file has {file_size} bytes", 1, True)
        if len(data) != size:
            raise RangeError(f"got {len(data)} bytes", 1, False)
        return data

    async def _info(self, path: str) -> dict[str, Any]:
        at = f"{self._root}/{path}"
        info: dict[str, Any] = (
            await self._fs._info(at) if self._fs.async_impl else await _in_thread(lambda: self._fs.info(at))
        )
        return info


def _file_system(url: str, options: ReadOptions) -> tuple[Any, str]:
    """The store's file system, not shared with other code, and the store's place in it."""
    protocol, _ = fsspec.core.split_protocol(url)
    given: dict[str, Any] = {}
    if protocol in ("s3", "s3a"):
        given["config_kwargs"] = {
            **fsspec.config.conf.get(protocol, {}).get("config_kwargs", {}),
            "retries": {"total_max_attempts": 1},
            "connect_timeout": options.timeout_s,
            "read_timeout": options.timeout_s,
            "max_pool_connections": options.io_threads + 4,
        }
        given["skip_instance_cache"] = True
    fs, root = fsspec.core.url_to_fs(url, **given)
    if given:
        fs.retries = 1
    return fs, str(root)


async def _in_thread(call: Callable[[], T]) -> T:
    """Run a blocking call in a thread that is abandoned if it never ends."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def give(result: T | None, error: BaseException | None) -> None:
        if not done.done():
            if error is None:
                done.set_result(result)  # type: ignore[arg-type]
            else:
                done.set_exception(error)

    def work() -> None:
        try:
            result = call()
        except BaseException as error:  # noqa: BLE001  raised again where it is awaited
            loop.call_soon_threadsafe(give, None, error)
        else:
            loop.call_soon_threadsafe(give, result, None)

    threading.Thread(target=work, daemon=True, name="vila-data-fetch").start()
    return await done


def _is_bug(error: Exception) -> bool:
    """Whether an error is Python's own and no failure of input or output: a fault of the program."""
    return type(error).__module__ == "builtins" and not isinstance(error, OSError | EOFError)


def _is_lasting(error: Exception) -> bool:
    if isinstance(error, _LASTING) or type(error).__name__ in _LASTING_NAMES:
        return True
    status = next(filter(None, map(_status, _chain(error))), 0)
    return 400 <= status < 500 and status not in _PASSING_STATUS


def _status(error: BaseException) -> int:
    """The HTTP status in an error of botocore, aiohttp or a Google or Azure client; 0 where there is none."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    # aiohttp's own complaint of a body cut short has the code 400 too; gcsfs calls the store's status `code`.
    names = ("code",) if type(error).__name__ == "HttpError" else ("status", "status_code")
    found = (getattr(error, name, None) for name in names)
    return next((value for value in found if isinstance(value, int)), 0)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _reason(error: Exception) -> str:
    """One line that says what an error of the store's library is."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    status = next(filter(None, map(_status, _chain(error))), 0)
    text = " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__
    return f"HTTP {status}: {text}" if status and str(status) not in text else text


_GAP: Final = 64 << 10
_COPY_AHEAD: Final = 4 * LARGEST


class RemoteReader(PrefetchReader):
    """Spans of a remote store's files, each request tried as often as the options say, and kept in their cache."""

    def __init__(self, store: Store, options: ReadOptions, version_of: Callable[[str], str] | None) -> None:
        super().__init__(
            self._request, store.location, gap=_GAP, ahead_bytes=options.ahead_bytes, io_threads=options.io_threads
        )
        self._store = store
        self._options = options
        self._fetch = RangeFetch(store, options, self.counters)
        self._version_of = version_of or self._fetch.version
        self._versions: dict[str, str] = {}
        self._closing = ExitStack()
        self._ranges: RangeCache | None = None
        self._files: FileCache | None = None
        if options.cache_dir is not None:
            directory = cache_directory(options.cache_dir)
            self._ranges = RangeCache(directory / "ranges", options.cache_bytes * 3 // 4)
            self._files = FileCache(directory / "files", options.cache_bytes // 4)

    def local_copy(self, path: str) -> Path:
        """See prefetch.RangeReader. Without a `cache_dir` the copy is in a temporary directory until `close`; the directory
        of a process that was killed is deleted by the next one that makes its own.
        """
        start = time.perf_counter()
        location = self._store.location(path)
        try:
            with self._state:
                if self._files is None:
                    directory = self._closing.enter_context(temporary_directory())
                    self._files = FileCache(directory, self._options.cache_bytes // 4)
            version = self._version(path) if self._ranges is not None else ""
            key = digest(self._store.url, path, version)
            return self._files.get(key, os.path.basename(path), lambda target: self._copy(path, target))
        except RangeError as error:
            raise StorageError(f"{location}: cannot be read: {error}") from error
        except OSError as error:
            raise StorageError(f"{location}: cannot be copied to the local disk: {error}") from error
        finally:
            with self._state:
                self.counters.spent(path, time.perf_counter() - start)

    def close(self) -> None:
        """See prefetch.RangeReader."""
        super().close()
        self._closing.close()

    def _request(self, path: str, offset: int, size: int) -> bytes:
        return self._fetch.get(path, offset, size)

    def _break_off(self) -> None:
        self._fetch.close()

    def _load(self, request: Request) -> dict[Span, bytes | memoryview]:
        """The spans' bytes from the cache or the store; those from the store are put into the cache."""
        cache = self._ranges
        if cache is None or not request.size:
            return super()._load(request)
        found: dict[Span, bytes | memoryview] = {}
        version = self._version(request.path)
        keys = {span: digest(self._store.url, span.path, version, span.offset, span.size) for span in request.spans}
        for span, key in keys.items():
            if (kept := cache.get(key, span.size)) is not None:
                found[span] = kept
                with self._state:
                    self.counters.cache_hits += 1
        for part in merged([span for span in request.spans if span not in found], self.gap, LARGEST):
            for span, data in super()._load(part).items():
                found[span] = data
                cache.put(keys[span], data)
        return found

    def _copy(self, path: str, target: int) -> None:
        """Write a whole file to a descriptor, some requests ahead of the one that is written."""
        with (
            closing(PrefetchReader(self._fetch.get, self._location, gap=0, ahead_bytes=_COPY_AHEAD)) as reader,
            open(target, "wb", closefd=False) as stream,
        ):
            for piece in read_prefetched(reader, whole(path, self._fetch.size(path))):
                stream.write(piece)

    def _version(self, path: str) -> str:
        if path not in self._versions:
            self._versions[path] = self._version_of(path)
        return self._versions[path]
