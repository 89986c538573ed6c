"""Receipts: the JSON that is written last for a part and makes its outputs valid.

A unit of work writes its outputs into a scratch directory, commits them one by one
and then the receipt. A process killed in between leaves no receipt, so the work
is repeated and gives the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vila_data.core.errors import StorageError
from vila_data.core.records import canonical_json
from vila_data.core.store import Store

_CHUNK = 1 << 20
_MANY = 16


def fingerprint(value: Any) -> str:
    """16 hex digits of the sha256 of a JSON value's canonical spelling."""
    return hashlib.sha256(canonical_json({"value": value})).hexdigest()[:16]


@dataclass(frozen=True)
class Receipt:
    """Inputs, counts and outputs of a unit of work.

    inputs: fingerprint of everything that its outputs depend on.
    counts: stage counters; funnel rows under "funnel".
    outputs: {path: {"bytes": int, "sha256": hex}}, paths relative to the store.
    earlier: it was read from the store; False: its work has just been done.
    """

    inputs: str
    counts: dict[str, Any] = field(default_factory=dict)
    outputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    earlier: bool = field(default=False, compare=False)

    def fingerprint(self) -> str:
        """Fingerprint of the outputs: what later stages depend on."""
        return fingerprint(self.outputs)


def read_receipt(store: Store, path: str) -> Receipt | None:
    """The receipt at `path`, or None if it is missing or not a receipt."""
    if store.size(path) is None:
        return None
    try:
        value = json.loads(store.read(path))
        return Receipt(value["inputs"], value["counts"], value["outputs"], earlier=True)
    except (ValueError, KeyError, TypeError, StorageError):
        return None


def valid_receipt(store: Store, path: str, inputs: str) -> Receipt | None:
    """The receipt at `path` if it is for `inputs` and each output is there with its size."""
    receipt = read_receipt(store, path)
    if receipt is None or receipt.inputs != inputs or not has_outputs(store, receipt):
        return None
    return receipt


def has_outputs(store: Store, receipt: Receipt) -> bool:
    """Whether each output of a receipt is there with its size."""
    return all(store.size(output) == facts["bytes"] for output, facts in receipt.outputs.items())


class HashedFile(io.BufferedWriter):
    """A new file that is written from its start to its end; its sha256 is computed on the way."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path, "w+"), _CHUNK)
        self._digest = hashlib.sha256()

    def write(self, data: Any) -> int:
        """Append bytes."""
        self._digest.update(data)
        return super().write(data)

    def sha256(self) -> str:
        """Hex sha256 of what has been written."""
        return self._digest.hexdigest()


class Outputs:
    """Files being made by one unit of work: local until the block ends, then committed."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._paths: dict[str, Path] = {}
        self._hashed: dict[str, HashedFile] = {}
        self.counts: dict[str, Any] = {}
        self.receipt: Receipt | None = None

    def path(self, final: str) -> Path:
        """Local path at which to write the file that will be `final` in the store."""
        local = self.directory / f"{len(self._paths):03d}"
        self._paths[final] = local
        return local

    def open(self, final: str) -> HashedFile:
        """The file that will be `final`, to be written in order and closed: it is not read again for its sha256."""
        stream = self._hashed[final] = HashedFile(self.path(final))
        return stream

    def facts(self) -> dict[str, dict[str, Any]]:
        """Size in bytes and sha256 of each file, by its final path."""
        return {
            final: {
                "bytes": local.stat().st_size,
                "sha256": self._hashed[final].sha256() if final in self._hashed else sha256_of(local),
            }
            for final, local in self._paths.items()
        }

    def items(self) -> list[tuple[str, Path]]:
        """(final path, local path) in the order of the calls."""
        return list(self._paths.items())


@contextmanager
def committing(store: Store, receipt_path: str, inputs: str) -> Iterator[Outputs]:
    """Write the outputs of a unit of work, then its receipt; all or nothing.

    Set `counts` inside the block; `receipt` is set when it ends.

    Raises:
        StorageError: no space left, or the store cannot be written; no receipt then.
    """
    with store.scratch() as directory:
        outputs = Outputs(directory)
        try:
            yield outputs
        except OSError as error:
            raise StorageError(f"{store.location(receipt_path)}: {error.strerror or error}") from error
        facts = outputs.facts()
        _commit(store, outputs.items())
        outputs.receipt = Receipt(inputs, outputs.counts, facts)
        write_receipt(store, receipt_path, outputs.receipt)


def _commit(store: Store, files: list[tuple[str, Path]]) -> None:
    """Put files under their final names; where there are many, some at once: each waits for a disk or a store."""
    if len(files) <= _MANY:
        for final, local in files:
            store.commit_file(local, final)
        return
    with ThreadPoolExecutor(_MANY) as pool:
        for put in [pool.submit(store.commit_file, local, final) for final, local in files]:
            put.result()


def write_receipt(store: Store, path: str, receipt: Receipt) -> None:
    """Write a receipt, atomically."""
    value: Mapping[str, Any] = {
        "inputs": receipt.inputs,
        "counts": receipt.counts,
        "outputs": receipt.outputs,
    }
    store.commit_bytes(json.dumps(value, indent=1, sort_keys=True).encode() + b"\n", path)


def sha256_of(local: Path) -> str:
    """Hex sha256 of a local file, read in pieces."""
    digest = hashlib.sha256()
    with open(local, "rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
