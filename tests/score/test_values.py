"""Scorers of one row of values: pixels by ONNX, text, columns; resume, damage, any parallelism."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from vila_data.core.errors import DataError
from vila_data.core.layout import Part
from vila_data.core.receipts import read_receipt
from vila_data.core.store import Store
from vila_data.core.tables import score_schema
from vila_data.score.kinds import KINDS, ScoreSection
from vila_data.score.part import covers, score_part
from vila_data.score.scorer import Column, Scorer, Task

from .made_scorers import Shade, Shape, Words, write_graph
from .parts import Item, document, jpeg, read_table, write_part

Items = list[Item | None]


@pytest.fixture
def scorers(tmp_path: Path) -> dict[str, Scorer]:
    return {"shade": Shade(model=str(write_graph(tmp_path / "shade.onnx"))), "words": Words(), "shape": Shape()}


def run(
    store: Store,
    part: Part,
    name: str,
    scorer: Scorer,
    needed: np.ndarray | None = None,
    *,
    reuse: bool = False,
    threads: int | None = None,
    opened: Any = None,
) -> list[dict[str, Any]]:
    task = Task(store, part, name, scorer, scorer.fingerprint(), needed, "in", reuse, threads)
    receipt = score_part(task, scorer.open() if opened is None else opened)
    assert receipt == read_receipt(store, part.receipt(f"score {name}"))
    assert covers(task)
    table = read_table(store, task.path)
    assert sum(row["scored"] for row in table) == receipt.counts[f"{scorer.rows}s_scored"]
    assert len(table) == sum(receipt.counts.values())
    return table


def test_pictures_by_a_graph(store: Store, mixed: Items, scorers: dict[str, Scorer]) -> None:
    part = write_part(store, mixed)
    rows, images = run(store, part, "dusk", scorers["shade"]), read_table(store, part.images_table())
    tar = store.read(part.images_tar())
    assert list(rows[0]) == score_schema("image", [column.field() for column in scorers["shade"].columns()]).names
    for row, image in zip(rows, images, strict=True):
        assert [row[name] for name in ("row", "record_id", "image_index")] == [
            image[name] for name in ("row", "record_id", "image_index")
        ]
        assert row["scored"] == (image["status"] == "ok")
        if not row["scored"]:
            assert (row["dark"], row["night"]) == (None, None)
            continue
        data = tar[image["offset"] : image["offset"] + image["bytes"]]  # type: ignore[operator]
        mean = np.asarray(Image.open(BytesIO(data))).mean()
        assert row["dark"] == pytest.approx(1 - mean / 255, abs=2e-3)
        assert row["night"] == (row["dark"] > 0.5)
    assert len({row["dark"] for row in rows if row["scored"]}) == 5


def test_records_by_their_words(store: Store, mixed: Items, scorers: dict[str, Scorer]) -> None:
    part = write_part(store, [*mixed, document("none", ["a b", "c"], [], [])])
    rows = run(store, part, "words", scorers["words"])
    assert [row["scored"] for row in rows] == [item is not None for item in mixed] + [True]
    for row, item in zip(rows, mixed, strict=False):
        if item is not None:
            words = " ".join(item.record.texts).split()
            assert (row["count"], row["first"]) == (len(words), words[0])
    assert (rows[-1]["count"], rows[1]["count"], rows[1]["first"]) == (3, None, None)


def test_columns(store: Store, mixed: Items, scorers: dict[str, Scorer]) -> None:
    part = write_part(store, mixed)
    rows = run(store, part, "shape", scorers["shape"])
    ratios = [row["ratio"] for row in rows if row["scored"]]
    assert ratios[:-1] == [40 / 30] * 8 and ratios[-1] == 64 / 20
    assert rows[0]["chars"] == sum(map(len, mixed[0].record.texts))  # type: ignore[union-attr]
    assert [row["ratio"] for row in rows if not row["scored"]] == [None] * 3


@pytest.mark.parametrize("name", ["shade", "words", "shape"])
@pytest.mark.parametrize("seed", range(3))
def test_what_is_missing_scored_later_equals_scratch(
    tmp_path_factory: pytest.TempPathFactory, mixed: Items, scorers: dict[str, Scorer], name: str, seed: int
) -> None:
    steps, scratch = (Store(str(tmp_path_factory.mktemp("run"))) for _ in range(2))
    part, scorer, rng = write_part(scratch, mixed * 3), scorers[name], np.random.default_rng(seed)
    assert part == write_part(steps, mixed * 3)
    count = 36 if scorer.rows == "image" else 24
    first, second = rng.random(count) < 0.3, rng.random(count) < 0.5
    run(scratch, part, name, scorer, first | second, threads=4)
    run(steps, part, name, scorer, first, threads=1)
    if name != "shape":  # columns are all computed again
        before = steps.read(part.scores_table(name))

        def none(item: Any) -> Any:
            raise AssertionError("is there already")

        run(steps, part, name, scorer, first, reuse=True, opened=none)
        assert steps.read(part.scores_table(name)) == before
    run(steps, part, name, scorer, second, reuse=True, threads=2)
    assert steps.read(part.scores_table(name)) == scratch.read(part.scores_table(name))


def test_equal_pictures_once_and_many_of_a_record(store: Store, scorers: dict[str, Scorer]) -> None:
    pictures = [jpeg(number % 30) for number in range(90)]
    part = write_part(store, [document("d", ["a", "b"], pictures, [0] * 90)])
    shade, seen = scorers["shade"].open(), []

    def counted(rgb_HWC: np.ndarray) -> Any:
        seen.append(rgb_HWC.tobytes())
        return shade(rgb_HWC)

    rows = run(store, part, "shade", scorers["shade"], threads=2, opened=counted)
    assert len(seen) == len(set(seen)) == 30
    assert [row["dark"] for row in rows[:30]] * 3 == [row["dark"] for row in rows]


def test_values_that_are_not_of_the_columns(store: Store, mixed: Items, scorers: dict[str, Scorer]) -> None:
    part = write_part(store, mixed)
    with pytest.raises(DataError, match=r"score.shade: 1 values, expected one for each of its 2 columns"):
        run(store, part, "shade", scorers["shade"], opened=lambda rgb_HWC: (0.5,))
    assert read_receipt(store, part.receipt("score shade")) is None
    rows = run(store, part, "shade", scorers["shade"], opened=lambda rgb_HWC: (float("nan"), None))
    assert {row["dark"] for row in rows} == {None}


@pytest.mark.parametrize(("name", "message"), [("shade", "an image's bytes differ"), ("words", "not a record")])
def test_damaged_tar(store: Store, mixed: Items, scorers: dict[str, Scorer], name: str, message: str) -> None:
    part = write_part(store, mixed)
    data = bytearray(store.read(part.images_tar()))
    data[read_table(store, part.images_table())[4]["offset"] + 100] ^= 255  # type: ignore[operator]
    data[512] = 0
    store.commit_bytes(bytes(data), part.images_tar())
    with pytest.raises(DataError, match=message):
        run(store, part, name, scorers[name])
    assert not store.exists(part.scores_table(name))


def test_another_model_takes_nothing_over(
    store: Store, mixed: Items, scorers: dict[str, Scorer], tmp_path: Path
) -> None:
    part = write_part(store, mixed)
    run(store, part, "shade", scorers["shade"])
    other = Shade(model=str(write_graph(tmp_path / "other.onnx", 510.0)))
    assert not covers(Task(store, part, "shade", other, other.fingerprint(), None, "in"))
    rows = run(store, part, "shade", other, np.arange(12) < 2, reuse=True)
    assert sum(row["scored"] for row in rows) == 2 and min(row["dark"] for row in rows if row["scored"]) >= 0.5


def test_a_kind_that_cannot_be(scorers: dict[str, Scorer]) -> None:
    class Wrong(Shape):
        reads = ("ratio",)

    class Torn(Words):
        rows = "image"

    with pytest.raises(ValueError, match="reads 'ratio', which images do not have"):
        Wrong().check()
    with pytest.raises(ValueError, match="needs text, which images do not have"):
        Torn().check()
    for scorer in scorers.values():
        scorer.check()


@pytest.mark.parametrize("name", ["row", "scored", "a b"])
def test_a_column_that_no_rule_could_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Named(Shape):
        def columns(self) -> tuple[Column, ...]:
            return (Column(name, pa.float32(), "", None, "made"),)

    monkeypatch.setitem(KINDS, "shape", Named)
    with pytest.raises(ValidationError, match=f"that is not one of row, .*; found '{name}'"):
        TypeAdapter(ScoreSection).validate_python({"mine": {"kind": "shape"}})
