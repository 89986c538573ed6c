"""The inputs, the environments of other programs, and the table of what they read."""

from __future__ import annotations

import atexit
import functools
import json
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import vila_data as vd
from tests.conformance import make_environments as environments
from tests.conformance.shard_sets import Case, OpenedSet
from tests.conformance.table import Table
from tests.forked import Forks
from tests.made_run import MadeRun, make_run

CLIENTS = Path(__file__).with_name("clients")


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> MadeRun:
    return make_run(str(tmp_path_factory.mktemp("made")))


@pytest.fixture(scope="session")
def sample_run(sample_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """recipes/sample.yaml, run."""
    out = tmp_path_factory.mktemp("sample_run") / "run"
    vd.run(sample_recipe, out, runner="local")
    return out


@pytest.fixture(scope="session")
def real_run(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """gimp-help, Flickr8k and real conversations, from metadata to shards, with embeddings."""
    from tests.realdata import gimp_help
    from tests.realdata import test_real_input as real

    folder = tmp_path_factory.mktemp("real_run")
    web = folder / "web"
    web.mkdir()
    (web / "gimp").symlink_to(gimp_help.HELP)
    (web / "flickr").symlink_to(shared / "realdata" / "flickr8k" / "images")
    with real.Server(("127.0.0.1", 0), functools.partial(real.Quiet, directory=str(web))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        host = f"127.0.0.1:{server.server_port}"
        gimp_help.write_documents(folder / "gimp.jsonl", f"http://{host}/gimp")
        real.write_flickr(folder / "flickr.parquet", shared, f"http://{host}/flickr")
        text = real.RECIPE.split("pack:")[0].replace("batch_size: 64", "batch_size: 64, embeddings: true")
        recipe = folder / "real.yaml"
        recipe.write_text(text.format(shared=shared, data=shared / "realdata", host=host))
        vd.run(recipe, folder / "run", runner="local")
        server.shutdown()
    return folder / "run"


def folder_of(source: str, request: pytest.FixtureRequest) -> Path:
    if source == "made":
        return Path(request.getfixturevalue("made").store.url)
    return Path(request.getfixturevalue(f"{source}_run"))


@pytest.fixture
def opened(request: pytest.FixtureRequest) -> OpenedSet:
    """The set that a parameter of `shard_sets.cases` names."""
    case: Case = request.param
    return OpenedSet(case, folder_of(case.source, request))


@pytest.fixture
def run(request: pytest.FixtureRequest) -> tuple[str, Path]:
    """(name, folder) of the input that a parameter of `shard_sets.runs` names."""
    return request.param, folder_of(request.param, request)


@pytest.fixture(scope="session")
def table() -> Iterator[Table]:
    """What is read in this session; kept where VILA_DATA_CONFORMANCE_JSON names a file."""
    found = Table()
    yield found
    path = os.environ.get("VILA_DATA_CONFORMANCE_JSON")
    if path:
        found.write(Path(path))


Client = Callable[..., Any]


def python_of(name: str) -> Path:
    """The python of an environment; without it the test is skipped, or fails where VILA_DATA_CONFORMANCE is `all`."""
    if environments.is_made(name):
        return environments.python_of(name)
    reason = f"the environment {name} is not made, or not from today's pins: python tests/conformance/make_environments.py {name}"
    if os.environ.get("VILA_DATA_CONFORMANCE") == "all":
        pytest.fail(reason)
    pytest.skip(reason)


def clean() -> dict[str, str]:
    """The variables of a process of another environment."""
    found = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}
    return found | {"RAY_ADDRESS": "local"}


def output(*command: object, **variables: str) -> str:
    """What a program prints; it must end well."""
    done = subprocess.run(
        [str(one) for one in command], capture_output=True, text=True, check=False, env=clean() | variables
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


IMPORTED = {"energon": ["megatron.energon.cli.main"], "clip-retrieval": ["clip_retrieval.cli", "embedding_reader"]}
"""By environment: what is imported once for all its programs; importing this takes seconds."""


@functools.cache
def forks(environment: str) -> Forks:
    """The process that imports for an environment, until the session ends."""
    started = Forks(python_of(environment), IMPORTED[environment], clean() | {"PYTHONPATH": str(CLIENTS / "stand_in")})
    atexit.register(started.close)
    return started


def program(environment: str, script: object, *arguments: object, **variables: str) -> str:
    """What a Python program prints in an environment, in a process of its own; it must end well."""
    if environment not in IMPORTED:
        return output(python_of(environment), script, *arguments, **variables)
    done = forks(environment).run([str(one) for one in (script, *arguments)], variables)
    assert done.status == 0, f"{environment}: {script} {arguments}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture
def client(tmp_path: Path) -> Client:
    """Runs a script of clients/ in an environment; the JSON that it writes to the file named first."""

    def read(environment: str, script: str, *arguments: object, **variables: str) -> Any:
        found = tmp_path / "found.json"
        program(environment, CLIENTS / script, found, *arguments, **variables)
        return json.loads(found.read_text())

    return read
