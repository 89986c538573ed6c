"""Folders of living processes are spared, those of killed ones go, and one purpose has one process at a time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from vila_data.core.errors import StorageError, UsageError
from vila_data.core.scratch_locks import delete_locked, delete_unlocked, lock_directory
from vila_data.core.store import SCRATCH_DIR, Store

HOLDER = """
import sys
from vila_data.core.store import Store
store = Store(sys.argv[1])
with store.alone("export"), store.scratch() as folder:
    (folder / "half").write_bytes(b"a file being written")
    print(folder, flush=True)
    sys.stdin.read()
"""


@contextmanager
def holder(out: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A process that does an export and holds a scratch folder, until it is told to end or killed."""
    command = [sys.executable, "-c", HOLDER, str(out)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process, Path(process.stdout.readline().strip())
        finally:
            process.kill()


def test_the_living_are_spared_and_the_dead_cleared(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with holder(tmp_path) as (process, folder):
        store.clear_scratch()
        assert (folder / "half").read_bytes() == b"a file being written"
        with pytest.raises(UsageError, match="another export is writing here"), store.alone("export"):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert (folder / "half").exists()
        with store.alone("export"):
            store.clear_scratch()
            assert not folder.exists()
            assert [path.name for path in (tmp_path / SCRATCH_DIR).iterdir()] == ["export"]
    assert list(tmp_path.iterdir()) == []


def test_what_ends_well_leaves_nothing(tmp_path: Path) -> None:
    with holder(tmp_path) as (process, _):
        process.communicate("")
        assert process.returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_folders_of_before_are_cleared(tmp_path: Path) -> None:
    """An earlier version's have no owner."""
    (tmp_path / SCRATCH_DIR / "0123" / "deep").mkdir(parents=True)
    (tmp_path / SCRATCH_DIR / "0123" / "deep" / "half").write_text("half")
    (tmp_path / SCRATCH_DIR / "stray").write_text("a file")
    Store(str(tmp_path)).clear_scratch()
    assert list(tmp_path.iterdir()) == []


def test_two_purposes_do_not_meet(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with store.alone("export"), store.alone("something else"), store.scratch() as folder:
        assert folder.is_dir()


def test_clearing_and_claiming_at_once(tmp_path: Path) -> None:
    """Whoever has a folder keeps it, however often others clear."""
    base, store = tmp_path / SCRATCH_DIR, Store(str(tmp_path))

    def work(number: int) -> bool:
        with store.scratch() as folder:
            (folder / "file").write_bytes(b"x" * number)
            store.clear_scratch()
            store.commit_file(folder / "file", f"done-{number:04d}")
            return folder.is_dir()

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(200)))
    store.clear_scratch()
    assert not base.exists() and len(store.files("")) == 200


def test_a_folder_that_was_deleted_while_one_waited_is_made_again(tmp_path: Path) -> None:
    folder = tmp_path / "held"
    owner = lock_directory(folder)
    assert owner is not None and lock_directory(folder) is None
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(lock_directory, folder, wait=True)
        delete_locked(folder, owner)
        other = waiting.result()
    assert other is not None and folder.is_dir() and lock_directory(folder) is None
    os.close(other)
    delete_unlocked(tmp_path)
    assert not folder.exists()


def test_a_place_where_nothing_can_be_made_is_one_error(tmp_path: Path) -> None:
    (tmp_path / SCRATCH_DIR).write_text("not a folder")
    with pytest.raises(StorageError), Store(str(tmp_path)).scratch():
        pass
    with pytest.raises(StorageError), Store("/proc/nowhere").alone("export"):
        pass


def test_stores_without_locks_go_on() -> None:
    store = Store("memory://locks")
    with store.alone("export"), store.alone("export"):
        store.clear_scratch()
