"""A receipt is written last, and is valid only for its inputs and while its outputs are there."""

from __future__ import annotations

import errno
import hashlib
from pathlib import Path

import pytest

from vila_data.core.errors import StorageError
from vila_data.core.receipts import Receipt, committing, fingerprint, read_receipt, valid_receipt, write_receipt
from vila_data.core.store import Store

RECEIPT = "stage/part.json"


def done(store: Store, inputs: str = "in", content: bytes = b"abc") -> Receipt:
    with committing(store, RECEIPT, inputs) as outputs:
        outputs.path("stage/a.txt").write_bytes(content)
        with outputs.open("stage/b.txt") as stream:
            stream.write(content[:1])
            stream.write(content[1:])
        outputs.counts = {"records": 3}
    assert outputs.receipt is not None
    return outputs.receipt


def test_a_receipt_comes_back_and_names_what_was_written(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    receipt = done(store)
    facts = {"bytes": 3, "sha256": hashlib.sha256(b"abc").hexdigest()}
    assert receipt == Receipt("in", {"records": 3}, {"stage/a.txt": facts, "stage/b.txt": facts})
    found = read_receipt(store, RECEIPT)
    assert found == receipt and found.earlier and not receipt.earlier
    assert store.files("") == ["stage/a.txt", "stage/b.txt", RECEIPT]


@pytest.mark.parametrize("error", [RuntimeError("killed"), OSError(errno.ENOSPC, "No space left on device")])
def test_work_that_fails_leaves_nothing(tmp_path: Path, error: Exception) -> None:
    store = Store(str(tmp_path))
    expected = StorageError if isinstance(error, OSError) else RuntimeError
    with pytest.raises(expected), committing(store, RECEIPT, "in") as outputs:
        outputs.path("stage/a.txt").write_bytes(b"half")
        raise error
    assert store.files("") == [] and read_receipt(store, RECEIPT) is None


def test_a_receipt_is_valid_for_its_inputs_and_whole_outputs(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    receipt = done(store)
    assert valid_receipt(store, RECEIPT, "in") == receipt
    assert valid_receipt(store, RECEIPT, "other") is None
    store.commit_bytes(b"ab", "stage/a.txt")
    assert valid_receipt(store, RECEIPT, "in") is None, "an output has another size"
    store.remove("stage/a.txt")
    assert valid_receipt(store, RECEIPT, "in") is None, "an output is missing"
    assert done(store) == receipt == valid_receipt(store, RECEIPT, "in")


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"inputs": "in"}', b"\xff"])
def test_what_is_not_a_receipt_counts_as_none(tmp_path: Path, content: bytes) -> None:
    store = Store(str(tmp_path))
    store.commit_bytes(content, RECEIPT)
    assert read_receipt(store, RECEIPT) is None and valid_receipt(store, RECEIPT, "in") is None


def test_many_outputs_are_all_there_before_the_receipt(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with committing(store, RECEIPT, "in") as outputs:
        for number in range(100):
            outputs.path(f"out/{number:03d}").write_bytes(b"%d" % number)
    assert [store.read(path) for path in store.files("out")] == [b"%d" % number for number in range(100)]
    assert valid_receipt(store, RECEIPT, "in") is not None


def test_fingerprints_depend_on_values_alone(tmp_path: Path) -> None:
    assert fingerprint({"a": 1, "b": [2, None]}) == fingerprint({"b": [2, None], "a": 1}) != fingerprint({"a": 1})
    store = Store(str(tmp_path))
    first, again = done(store, inputs="x").fingerprint(), done(store, inputs="y").fingerprint()
    assert first == again, "the fingerprint of outputs must not depend on what they were made from"
    assert done(store, content=b"abd").fingerprint() != first


def test_the_same_receipt_has_the_same_bytes(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    spelled = []
    for counts in ({"b": 1, "a": 2}, {"a": 2, "b": 1}):
        write_receipt(store, RECEIPT, Receipt("in", counts, {}))
        spelled.append(store.read(RECEIPT))
    assert spelled[0] == spelled[1]
