"""Images that finish out of order wait in memory and on disk, and leave no trace of it; what fails, fails whole."""

from __future__ import annotations

import asyncio
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.download.origin import Origin, Request, jpeg, pair, part
from vila_data.core.errors import StorageError
from vila_data.core.receipts import Receipt
from vila_data.core.store import Store
from vila_data.download import pending as pending_module
from vila_data.download.config import DownloadConfig
from vila_data.download.part import download_part
from vila_data.download.pending import Image, Pending, PendingRecord, ScratchFile, SpillBuffer

PICTURES = [jpeg(420 + 10 * seed, 380, seed) for seed in range(8)]
COUNT = 40


@pytest.fixture
def origin() -> Iterator[Origin]:
    with Origin() as server:
        yield server


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Pending]:
    spool = ScratchFile(tmp_path / "spool")
    yield Pending(spool)
    spool.close()


def records(origin: Origin) -> list:
    """Every third URL is that of an earlier record."""
    numbers = [row if row % 3 else row // 2 for row in range(COUNT)]
    return [pair(row, f"http://127.0.0.1:{origin.port}/{number}.jpg") for row, number in enumerate(numbers)]


async def picture(request: Request) -> None:
    number = int(request.path.removeprefix("/").removesuffix(".jpg"))
    await request.send(PICTURES[number % len(PICTURES)])


def run(origin: Origin, out: Path, progress: object = None) -> Receipt:
    config = DownloadConfig(
        allow_private_hosts=["127.0.0.1"], robots_txt=False, per_host=16, timeout_s=60, idle_timeout_s=60
    )
    return download_part(Store(str(out)), part(COUNT), records(origin), config, "in", progress)  # type: ignore[arg-type]


def tree(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


@pytest.fixture
def alone(origin: Origin, tmp_path: Path) -> dict[str, bytes]:
    """Outputs of a run that was left alone."""
    origin.routes["127.0.0.1"] = {"*": picture}
    run(origin, tmp_path / "alone")
    return tree(tmp_path / "alone")


def hold_first(origin: Origin, let_go: threading.Event) -> None:
    """The first record's image comes only after `let_go`."""

    async def held(request: Request) -> None:
        await asyncio.get_running_loop().run_in_executor(None, let_go.wait, 30)
        await picture(request)

    origin.routes["127.0.0.1"] = {"/0.jpg": held, "*": picture}


def spooled(out: Path) -> int:
    (spool,) = (out / ".scratch").glob("*/part_images/spool")
    return spool.stat().st_size


@pytest.mark.parametrize("budget", [0, 100_000, 1 << 30])
def test_the_first_image_comes_last(
    origin: Origin, alone: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, budget: int
) -> None:
    monkeypatch.setattr(pending_module, "_IMAGES_BYTES", budget)
    monkeypatch.setattr(pending_module, "_RECORDS_BYTES", budget // 10)
    let_go, out = threading.Event(), tmp_path / "out"
    hold_first(origin, let_go)
    finished: list[int] = []
    on_disk: list[int] = []

    def progress(count: int) -> None:
        finished.append(count)
        if sum(finished) == COUNT - 1:
            on_disk.append(spooled(out))
            let_go.set()

    run(origin, out, progress)
    assert tree(out) == alone
    waiting = sum(len(content) for path, content in alone.items() if path.endswith(".tar"))
    assert on_disk and waiting > 300_000, "nothing waited: this proves nothing"
    assert (on_disk[0] == 0) == (budget > waiting)


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """Files end at `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("file", ["tar", "spool"])
def test_no_space_leaves_nothing_and_the_next_run_is_whole(
    origin: Origin, alone: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    """The tar is written by one thread and the spool by those that decode; each failure reaches all others."""
    out, let_go = tmp_path / "out", threading.Event()
    with monkeypatch.context() as patch:
        if file == "spool":
            patch.setattr(pending_module, "_IMAGES_BYTES", 0)
            hold_first(origin, let_go)
        else:
            patch.setattr("vila_data.core.receipts._CHUNK", 1 << 10)
        with room_for(100_000), pytest.raises(StorageError, match="File too large"):
            run(origin, out)
    let_go.set()
    assert tree(out) == {}
    origin.routes["127.0.0.1"] = {"*": picture}
    run(origin, out)
    assert tree(out) == alone


def test_what_waits_is_bounded_in_memory(tmp_path: Path) -> None:
    spool = ScratchFile(tmp_path / "spool")
    waiting = SpillBuffer(spool, 1000)
    contents = [bytes([number]) * 300 for number in range(8)]
    held = [waiting.put(content) for content in contents]
    assert [isinstance(one, bytes) for one in held] == [True] * 3 + [False] * 5
    assert [waiting.take(one) for one in held] == contents
    assert [isinstance(waiting.put(content), bytes) for content in contents] == [True] * 3 + [False] * 5
    spool.close()


def test_an_error_of_one_side_reaches_the_other(line: Pending) -> None:
    image = Image()
    line.append(PendingRecord("r", 1, 1, b"{}", [("u", 0, image)]))
    assert isinstance(next(iter(line)), PendingRecord)
    threading.Timer(0.01, line.fail, (OSError("no space"),)).start()
    with pytest.raises(OSError, match="no space"):
        line.wait_for(image)
    for call in (lambda: line.finish(image), lambda: line.append(PendingRecord("s", 0, 0, b"", [])), lambda: [*line]):
        with pytest.raises(OSError, match="no space"):
            call()


def test_an_image_that_nobody_finishes_is_an_error_and_no_endless_wait(line: Pending) -> None:
    line.end()
    with pytest.raises(RuntimeError, match="never finished"):
        line.wait_for(Image())
