"""A loader for validation begins at the same batch each time; and who may iterate a loader at all."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.data_loader import DataLoaderDispatcher, DataLoaderShard

from tests.loader.made_stream import IMAGE, opened
from tests.loader.test_loader import same
from tests.loader.test_loader_faults import workers_of
from vila_data.core.errors import UsageError


@pytest.mark.parametrize("workers", [0, 2])
def test_every_iteration_begins_at_the_same_batch(made_folder: Path, workers: int) -> None:
    expected = list(opened(made_folder, batch_size=2, epoch=1))
    with opened(made_folder, batch_size=2, epoch=1, num_workers=workers, restart=True) as held:
        pids = set()
        for stop in (2, 5, None, None, 3, 2):
            assert held.steps() == len(expected) and held.epoch == 1
            found = list(itertools.islice(held, stop))
            assert len(found) == (stop or len(expected))
            assert all(same(*both) for both in zip(found, expected, strict=False))
            pids |= {worker.pid for worker in workers_of()}
        assert len(pids) == workers, "they stay"
        held.set_epoch(0)
        first = next(iter(opened(made_folder, batch_size=2)))
        assert same(next(iter(held)), first) and same(next(iter(held)), first)


def test_a_state_does_not_move_a_loader_that_restarts(made_folder: Path) -> None:
    loader = opened(made_folder)
    first, *_ = itertools.islice(loader, 5)
    held = opened(made_folder, restart=True)
    held.load_state_dict(loader.state_dict())
    assert same(next(iter(held)), first)
    with pytest.raises(UsageError, match="seed: the state has"):
        held.load_state_dict({**loader.state_dict(), "seed": 3})
    with pytest.raises(UsageError, match="restart must be a valid boolean, found 1"):
        opened(made_folder, restart=1)


def test_validations_leave_the_training_where_it_is(made_folder: Path) -> None:
    expected = list(opened(made_folder))
    with opened(made_folder, num_workers=1) as loader, opened(made_folder, num_workers=1, restart=True) as held:
        found = []
        for batch in loader:
            found.append(batch)
            if len(found) % 7 == 0:
                state = loader.state_dict()
                assert same(list(itertools.islice(held, 2))[1], expected[1])
                assert loader.state_dict() == state
    assert all(same(*both) for both in zip(found, expected, strict=True))


@pytest.mark.parametrize("kind", [DataLoaderShard, DataLoaderDispatcher])
def test_a_loader_that_accelerate_prepared_is_refused(made_folder: Path, kind: type) -> None:
    from accelerate import PartialState

    PartialState(cpu=True)
    with opened(made_folder) as loader:
        prepared = kind(loader, batch_size=None)
        with pytest.raises(
            UsageError, match=rf"inside a {kind.__name__} of accelerate.*do not pass it to accelerator\.prepare"
        ):
            next(iter(prepared))
        assert loader.state_dict()["packs"] == 0


@pytest.mark.parametrize("workers", [0, 1])
def test_an_iteration_is_refused_in_a_forked_process(made_folder: Path, workers: int) -> None:
    expected = list(itertools.islice(opened(made_folder), 6))
    with opened(made_folder, num_workers=workers) as loader:
        batches = iter(loader)
        found = [next(batches), next(batches)]
        child = os.fork()
        if not child:
            try:
                next(batches)
            except UsageError as error:
                own = same(next(iter(loader)), expected[2])
                os._exit(0 if "was forked from it; start a new one there" in str(error) and own else 4)
            os._exit(3)
        assert os.waitpid(child, 0)[1] == 0
        found += itertools.islice(batches, 4)
    assert all(same(*both) for both in zip(found, expected, strict=True))


HELD = """
import itertools, json, sys, threading
import vila_data as vd

recipe, run, image = sys.argv[1:4]


def opened(**options):
    return vd.stream(recipe, run, rank=0, world_size=1, image=json.loads(image), **options)


held = [iter(opened(num_workers=workers, device=device)) for workers in (0, 2) for device in (None, "meta")]
for batches in held:
    next(batches)


class Cycle:
    pass


cycle = Cycle()
cycle.own, cycle.batches = cycle, iter(opened(num_workers=1))
next(cycle.batches)
del cycle
endless = itertools.chain.from_iterable(itertools.repeat(opened(num_workers=1)))
threading.Thread(target=lambda: [None for _ in endless], daemon=True).start()
inline = itertools.chain.from_iterable(itertools.repeat(opened(num_workers=0)))
threading.Thread(target=lambda: [None for _ in inline], daemon=True).start()
if sys.argv[4] == "error":
    sys.exit(3)
"""


@pytest.mark.parametrize(("end", "status"), [("end", 0), ("error", 3)])
def test_a_process_that_holds_iterators_ends_in_silence(made_folder: Path, end: str, status: int) -> None:

    told = [made_folder / "recipe.yaml", made_folder / "run", json.dumps(IMAGE), end]
    done = subprocess.run([sys.executable, "-c", HELD, *map(str, told)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (status, "", "")
