"""What breaks while streaming: damaged bytes, dead workers, a dead trainer, sources that hang."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pytest
import torch

import vila_data as vd
from tests.conftest import REPO
from tests.loader.made_stream import IMAGE, opened
from tests.loader.test_loader import same
from vila_data.core.checksums import crc32c
from vila_data.core.errors import DataError, RunError
from vila_data.core.tables import IGNORED, TOKENS
from vila_data.encode.token_set import row_crc32c
from vila_data.loader.batch import PackedBatch
from vila_data.loader.pool import Timeout, WorkerPool


@pytest.fixture(scope="module")
def epoch(made_folder: Path) -> list[PackedBatch]:
    return list(opened(made_folder))


@pytest.fixture
def damaged(made_folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    shutil.copytree(made_folder, tmp_path / "copy")
    return tmp_path / "copy"


def workers_of() -> list[psutil.Process]:
    """The worker processes of this process's loaders."""
    return [child for child in psutil.Process().children() if "vila_data.loader.worker" in " ".join(child.cmdline())]


def overwrite(folder: Path, set_: str, number: int) -> tuple[str, str]:
    """Put noise over the last image of a sample; (record_id, member)."""
    sample = vd.open_shards(folder / "run" / "shards" / set_)[number]
    name = [name for name in sample.members if name.endswith("jpg")][-1]
    tar = folder / "run" / sample.shard if (folder / "run" / sample.shard).exists() else None
    tar = tar or folder / "run" / "shards" / set_ / sample.shard
    data = tar.read_bytes()
    assert data.count(sample.members[name]) == 1
    tar.write_bytes(data.replace(sample.members[name], b"\xff\xd8\xff" + b"\x5a" * (len(sample.members[name]) - 3)))
    return sample.json["source"]["record_id"], sample.key


def believe(folder: Path, set_: str, key: str) -> None:
    """Sign a sample's token row for the bytes that its images have now."""
    for path in (folder / "run" / "tokens").glob(f"*/{set_}/*/*.arrow"):
        rows = pa.ipc.open_file(path.read_bytes()).read_all().to_pylist()
        for row in rows:
            if row["key"] == key:
                tar = folder / "run" / "shards" / set_ / f"{path.stem}.tar"
                places = zip(row["offsets"], row["sizes"], strict=True)
                row["crc32c"] = [crc32c(tar.read_bytes()[offset : offset + size]) for offset, size in places]
                lists = [
                    np.array(row[field.name], field.type.value_type.to_pandas_dtype())
                    for field in TOKENS
                    if pa.types.is_list(field.type)
                ]
                row["row_crc32c"] = row_crc32c(key.encode(), row["record_id"].encode(), row["tokens"], *lists)
        with pa.ipc.new_file(path, TOKENS) as writer:
            writer.write_table(pa.Table.from_pylist(rows, TOKENS).combine_chunks())


@pytest.mark.parametrize(("workers", "stage"), [(0, "read"), (2, "read"), (0, "decode")])
def test_a_broken_image_is_counted_located_and_not_trained(
    damaged: Path, epoch: list[PackedBatch], workers: int, stage: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Bytes that have changed since they were written are a fault of reading, those written so one of decoding."""
    broken = {overwrite(damaged, "docs", 4), overwrite(damaged, "pairs", 7)}
    keys = {key for _, key in broken}
    for key in keys if stage == "decode" else ():
        believe(damaged, key.split("-")[0], key)
    with opened(damaged, num_workers=workers, fault_budget={"count": 2}) as loader:
        found = list(loader)
        metrics = loader.metrics()
    assert metrics.faults == {"tokens": 0, "read": 0, "decode": 0} | {stage: 2}
    faults = [fault for batch in found for fault in batch.faults]
    assert {fault.record_id for fault in faults} == {record for record, _ in broken}
    assert all(any(key in fault.where for key in keys) and ".tar" in fault.where for fault in faults)
    assert sum("this sample is excluded from the loss" in line for line in caplog.messages) == 2
    untrained = 0
    for whole, batch in zip(epoch, found, strict=True):
        assert batch.origins == whole.origins and torch.equal(batch.ids, whole.ids)
        for origin, (row, first, columns) in zip(batch.origins, batch.sample_spans.tolist(), strict=True):
            place = slice(first, first + columns)
            if origin.key in keys:
                untrained += 1
                assert (batch.labels[row, place] == IGNORED).all() and (whole.labels[row, place] != IGNORED).any()
            else:
                assert torch.equal(batch.labels[row, place], whole.labels[row, place])
        bad = [n for n, place in enumerate(batch.image_spans.tolist()) if batch.origins[place[3]].key in keys]
        good = [n for n in range(len(batch.pixels)) if n not in bad]
        assert torch.equal(batch.pixels[good], whole.pixels[good])
        for number in bad[-1:]:
            assert (batch.pixels[number].permute(1, 2, 0) == torch.tensor([122, 116, 104], dtype=torch.uint8)).all()
    assert untrained == 2


def test_more_broken_samples_than_the_budget_end_the_run(damaged: Path) -> None:
    for number in range(6):
        overwrite(damaged, "pairs", number)
    with pytest.raises(DataError, match=r"6 of \d+ samples are broken, more than fault_budget allows \(count 5\)"):
        list(opened(damaged, fault_budget={"count": 5}, num_workers=1))
    for enough in ({"count": 6}, {"count": 600}, {}, {"fraction": 0.0007}):
        assert len(list(opened(damaged, fault_budget=enough))) > 20
    with pytest.raises(DataError, match=r"fraction 0.0005"):
        list(opened(damaged, fault_budget={"count": 600, "fraction": 0.0005}))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_truncated_shard_and_a_missing_one_are_faults_of_their_samples(
    damaged: Path, epoch: list[PackedBatch], workers: int
) -> None:
    pairs = vd.open_shards(damaged / "run" / "shards" / "pairs").manifest.shards
    assert len(pairs) > 1
    first, second = (damaged / "run" / "shards" / "pairs" / Path(shard.name).name for shard in pairs[:2])
    first.write_bytes(first.read_bytes()[: first.stat().st_size // 2])
    second.unlink()
    with opened(damaged, num_workers=workers, fault_budget={"fraction": 1.0}) as loader:
        found = list(loader)
        faults = loader.metrics().faults
    assert faults["read"] > pairs[1].samples / 2 and not faults["decode"] and not faults["tokens"]
    assert [batch.origins for batch in found] == [batch.origins for batch in epoch]
    hit = {fault.where.split(": ")[0] for batch in found for fault in batch.faults}
    assert hit == {str(first), str(second)}


def test_a_damaged_token_file_leaves_its_samples_places_empty(damaged: Path, epoch: list[PackedBatch]) -> None:
    (file,) = (damaged / "run" / "tokens").glob("*/pairs/*/pairs-000000.arrow")
    file.write_bytes(file.read_bytes()[:400])
    loader = opened(damaged, fault_budget={"fraction": 1.0})
    found = list(loader)
    assert loader.metrics().faults["tokens"] > 3
    for whole, batch in zip(epoch, found, strict=True):
        assert torch.equal(batch.segments, whole.segments) and torch.equal(batch.cu_seqlens, whole.cu_seqlens)
        for origin, (row, first, columns) in zip(batch.origins, batch.sample_spans.tolist(), strict=True):
            if not origin.key:
                assert origin.set == "pairs"
                assert (batch.labels[row, first : first + columns] == IGNORED).all()


def test_a_killed_worker_is_named_and_its_place_taken(
    made_folder: Path, epoch: list[PackedBatch], caplog: pytest.LogCaptureFixture
) -> None:
    found, killed = [], []
    with opened(made_folder, num_workers=2, prefetch_mb=0) as loader:
        for batch in loader:
            found.append(batch)
            if len(found) in (3, 8, 20):
                victim = workers_of()[len(killed) % 2]
                os.kill(victim.pid, signal.SIGKILL)
                killed.append(victim.pid)
        metrics = loader.metrics()
    assert len(found) == len(epoch) and all(same(*pair) for pair in zip(found, epoch, strict=True))
    assert metrics.replaced_workers == 3 and metrics.tokens == sum(batch.tokens for batch in epoch)
    for pid in killed:
        assert any(f"(pid {pid}) was killed by SIGKILL" in line for line in caplog.messages)


def test_workers_that_die_again_and_again_end_the_run(made_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHASHSEED", "nonsense")  # an interpreter with this does not start
    with pytest.raises(
        RunError, match=r"worker 0 \(pid \d+\) ended with status 1 .*giving up after 4 failures in a row"
    ):
        list(opened(made_folder, num_workers=1))


def test_a_worker_that_hangs_is_reported_and_ends_the_run(made_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    loader = opened(made_folder)
    pool = WorkerPool(loader._spec, loader._lengths, 1, Timeout(warn_s=0.05, fail_s=0.2))
    worker = psutil.Process(pool.workers[0].process.pid)  # its command line is not there in the first moment
    worker.suspend()
    with pytest.raises(RunError, match=r"waited \d+ s for step 0: .*; this exceeds timeout.fail_s"):
        pool.get()
    assert any(f"loader worker 0 (pid {worker.pid}) is " in line for line in caplog.messages)
    pool.close()
    assert not worker.is_running()


TRAINER = """
import json, sys, torch, vila_data as vd
recipe, run, state, out, stop, image = sys.argv[1:7]
loader = vd.stream(recipe, run, rank=0, world_size=1, batch_size=2, num_workers=2, image=json.loads(image))
if state != "-":
    loader.load_state_dict(json.load(open(state)))
log = open(out, "a")
for number, batch in enumerate(loader, 1):
    record = {"ids": batch.ids.tolist(), "pixels": int(batch.pixels.long().sum()), "state": loader.state_dict()}
    print(json.dumps(record), file=log, flush=True)
    if number == int(stop):
        print("stopped", flush=True)
        sys.stdin.read()
"""


def train(folder: Path, out: Path, state: str = "-", stop: int = 0) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", TRAINER, str(folder / "recipe.yaml"), str(folder / "run")]
    arguments = [state, str(out), str(stop), json.dumps(IMAGE)]
    return subprocess.Popen([*command, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPO)


def test_a_killed_trainer_leaves_no_worker_and_goes_on_token_by_token(made_folder: Path, tmp_path: Path) -> None:
    whole = train(made_folder, tmp_path / "whole")
    assert whole.wait() == 0
    first = train(made_folder, tmp_path / "first", stop=7)
    assert first.stdout is not None and first.stdout.readline() == "stopped\n"
    workers = psutil.Process(first.pid).children()
    assert len(workers) == 2
    first.kill()
    first.wait()
    assert psutil.wait_procs(workers, timeout=30)[1] == []
    lines = (tmp_path / "first").read_text().splitlines()
    (tmp_path / "state").write_text(json.dumps(json.loads(lines[-1])["state"]))
    assert train(made_folder, tmp_path / "second", state=str(tmp_path / "state")).wait() == 0
    again = lines + (tmp_path / "second").read_text().splitlines()
    assert [json.loads(line) for line in again] == [
        json.loads(line) for line in (tmp_path / "whole").read_text().splitlines()
    ]
