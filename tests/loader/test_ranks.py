"""Which rank a loader reads for: ranks that are launched after it was made, and launchers that say it in other words."""

from __future__ import annotations

import itertools
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

import vila_data as vd
from tests.conftest import REPO
from tests.loader.made_stream import BLEND, IMAGE, opened
from tests.loader.test_loader_modes import folder_of
from tests.made_run import make_run
from vila_data.core.errors import UsageError
from vila_data.loader.batch import PackedBatch
from vila_data.loader.ranks import Ranks, ranks_here

LAUNCHED = """
import json, os, socket, sys
import torch.distributed as dist
import torch.multiprocessing as mp
import vila_data as vd

recipe, run, released, released_run = sys.argv[1:5]
image = json.loads(sys.argv[5])


def keys(batches):
    return [[origin.key for origin in batch.origins] for batch in batches]


def refused(loader):
    try:
        next(iter(loader))
    except vd.UsageError as error:
        return str(error)
    return ""


def work(rank, port, early):
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    here = dict(rank=rank, world_size=2, image=image, num_workers=0)
    found = {"steps": early["none"].steps(), "refused": refused(early["argument"]), "environment": refused(early["environment"])}
    for name in ("none", "workers", "launcher", "resumed", "unchecked"):
        found[name] = keys(early[name])
    found["released"] = keys(early["released"])
    found["expected"] = keys(vd.stream(recipe, run, batch_size=2, **here))
    found["expected released"] = keys(vd.stream(released, released_run, **here))
    found["now"] = keys(vd.stream(recipe, run, batch_size=2, image=image, num_workers=0))
    print(json.dumps({"rank": rank, **found}), flush=True)
    for loader in early.values():
        loader.close()
    dist.destroy_process_group()


def made(environment, path=recipe, **options):
    os.environ.update(environment)
    here = run if path == recipe else released_run
    loader = vd.stream(path, here, image=image, **{"batch_size": 2, "num_workers": 0, **options})
    for name in environment:
        del os.environ[name]
    return loader


if __name__ == "__main__":
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    begun = made({}, rank=0, world_size=1)
    for _ in zip(range(3), begun):
        pass
    resumed = made({})
    resumed.load_state_dict(begun.state_dict())
    begun.close()
    early = {
        "none": made({}),
        "workers": made({}, num_workers=1),
        "resumed": resumed,
        "released": made({}, released, batch_size=1),
        "launcher": made({"WORLD_SIZE": "2", "LOCAL_RANK": "1"}),
        "argument": made({}, rank=0, world_size=1),
        "unchecked": made({}, rank=0, world_size=1, check_ranks=False),
        "environment": made({"RANK": "0", "WORLD_SIZE": "1"}),
    }
    mp.spawn(work, (port, early), nprocs=2)
"""


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose recipe has the semantics `released_code`."""
    run = make_run(str(tmp_path_factory.mktemp("released") / "run"))
    sources = [{"shards": name, "weight": 1, "repeat": 1} for name in ("docs", "pairs", "chat")]
    blend = {**BLEND, "weight_unit": "samples", "sources": sources}
    pack = {"semantics": "released_code", "max_images_per_pack": None, "micro_batch": 4}
    return folder_of(run, tmp_path_factory.mktemp("released_code"), pack=pack, blend=blend)


def keys_of(batches: Iterable[PackedBatch]) -> list[str]:
    return [origin.key for batch in batches for origin in batch.origins]


def test_loaders_made_before_the_launch_read_for_their_ranks(made_folder: Path, released: Path, tmp_path: Path) -> None:
    whole = [keys_of([batch]) for batch in opened(made_folder, batch_size=4)]
    script = tmp_path / "launched.py"
    script.write_text(LAUNCHED)
    told = [folder / name for folder in (made_folder, released) for name in ("recipe.yaml", "run")]
    environment = {
        name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    }
    done = subprocess.run(
        [sys.executable, str(script), *map(str, told), json.dumps(IMAGE)],
        capture_output=True, text=True, cwd=REPO, env=environment | {"PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    ranks = sorted(map(json.loads, done.stdout.splitlines()), key=lambda found: found["rank"])  # type: ignore[no-any-return]
    assert [found["rank"] for found in ranks] == [0, 1] and len(whole) > 8
    for found in ranks:
        for name in ("none", "workers", "launcher", "now"):
            assert found[name] == found["expected"], name
        assert found["steps"] == len(whole) == len(found["expected"])
        assert found["released"] == found["expected released"]
        assert f"rank 0 of 1 (from arguments), but this process is rank {found['rank']} of 2" in found["refused"]
        assert "(from environment)" in found["environment"] and "after init_process_group" in found["environment"]
    together = [[*one, *other] for one, other in zip(*(found["none"] for found in ranks), strict=True)]
    assert together == whole, "each sample once, in the one order"
    assert ranks[0]["unchecked"] == ranks[1]["unchecked"] and sum(map(len, ranks[0]["unchecked"])) == sum(
        map(len, whole)
    )
    rest = [key for pair in zip(*(found["resumed"] for found in ranks), strict=True) for keys in pair for key in keys]
    begun = keys_of(itertools.islice(opened(made_folder, batch_size=2), 3))
    assert begun + rest == [key for keys in whole for key in keys]


@pytest.mark.parametrize(("ranks", "batch_size"), [(1, 1), (3, 1), (2, 2)])
def test_an_epoch_of_released_code_is_resumed_under_another_world(released: Path, ranks: int, batch_size: int) -> None:
    """It keeps the order of the two ranks that began it; the next epoch has that of the ranks that begin it."""
    began = [opened(released, rank=rank, world_size=2) for rank in range(2)]
    steps = began[0].steps()
    first = [keys_of(itertools.islice(loader, 3)) for loader in began]
    assert began[0].state_dict() == began[1].state_dict() and began[0].steps() == steps - 3 > 3
    loaders = [
        opened(released, rank=rank, world_size=ranks, batch_size=batch_size, num_workers=1) for rank in range(ranks)
    ]
    for loader in loaders:
        loader.load_state_dict(json.loads(json.dumps(began[0].state_dict())))
        assert loader.steps() == -(-(steps - 3) * 2 // (ranks * batch_size))
    batches = [list(loader) for loader in loaders]
    assert len({len(found) for found in batches}) == 1, "as many steps on each rank"
    whole = [key for loader in began for key in keys_of(opened(released, rank=loader._spec.share.rank, world_size=2))]
    found = [key for keys in first for key in keys] + [key for one in batches for key in keys_of(one)]
    assert sorted(found) == sorted(whole) and len(set(found)) == len(found) > 50
    for rank, loader in enumerate(loaders):
        fresh = opened(released, rank=rank, world_size=ranks, batch_size=batch_size, epoch=1)
        assert loader.epoch == 1 and keys_of(itertools.islice(loader, 2)) == keys_of(itertools.islice(fresh, 2))
        loader.close()


def test_a_loader_of_released_code_restarts(released: Path) -> None:
    expected = keys_of(itertools.islice(opened(released), 3))
    with opened(released, num_workers=1, restart=True) as held:
        assert [keys_of(itertools.islice(held, 3)) for _ in range(3)] == [expected] * 3


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in list(os.environ):
        if name in ("RANK", "WORLD_SIZE", "LOCAL_RANK") or name.startswith(("SLURM_", "OMPI_", "PMI", "MV2_")):
            monkeypatch.delenv(name)
    return monkeypatch


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"SLURM_PROCID": "3", "SLURM_NTASKS": "8"}, "SLURM_PROCID=3 of SLURM_NTASKS=8 is set, but RANK is not"),
        (
            {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"},
            "OMPI_COMM_WORLD_RANK=1 of OMPI_COMM_WORLD_SIZE=2",
        ),
        ({"PMI_RANK": "0", "PMI_SIZE": "2"}, "PMI_RANK=0 of PMI_SIZE=2"),
        ({"PMIX_RANK": "1"}, "PMIX_RANK=1 is set"),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, ""),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "RANK": "0", "WORLD_SIZE": "8"}, ""),
        ({}, ""),
    ],
    ids=["slurm", "mpi", "pmi", "pmix", "one task", "said by RANK", "alone"],
)
def test_a_rank_that_only_the_launcher_knows_is_a_warning(
    made_folder: Path, alone: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, variables: dict[str, str], said: str
) -> None:
    for name, value in variables.items():
        alone.setenv(name, value)
    with vd.stream(made_folder / "recipe.yaml", made_folder / "run", image=IMAGE, num_workers=0) as loader:
        for _ in range(2):
            next(iter(loader))
    found = [line for line in caplog.messages if line.startswith("stream: ")]
    assert len(found) == bool(said) and all(said in line and "set RANK and WORLD_SIZE" in line for line in found)
    caplog.clear()
    with opened(made_folder) as loader, caplog.at_level(logging.WARNING):
        next(iter(loader))
    assert not caplog.messages, "it was told"


def test_a_launcher_that_has_not_said_the_rank_must_do_so_before_the_iteration(
    made_folder: Path, alone: pytest.MonkeyPatch
) -> None:
    alone.setenv("WORLD_SIZE", "2")
    alone.setenv("LOCAL_RANK", "1")
    loader = vd.stream(made_folder / "recipe.yaml", made_folder / "run", image=IMAGE, num_workers=0)
    with pytest.raises(
        UsageError, match=r"WORLD_SIZE is 2, but RANK is not set and torch\.distributed is not initialized"
    ):
        next(iter(loader))
    assert ranks_here({"WORLD_SIZE": "1", "LOCAL_RANK": "0"}) == Ranks(0, 1, "default")
