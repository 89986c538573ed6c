"""Small scorers as a user would write them: a picture by an ONNX graph, a record by its words, columns by arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa

from vila_data.core.receipts import fingerprint
from vila_data.core.records import Record
from vila_data.core.scores import Unit, Values
from vila_data.score.model import files_fingerprint
from vila_data.score.scorer import Column, Needs, Scorer


class Shade(Scorer):
    """How dark a picture is, by an ONNX graph.

    kind:  shade.
    model: path of the graph.
    """

    cost: ClassVar[float] = 0.01
    needs: ClassVar[Needs] = "pixels"
    side: ClassVar[int | None] = 16
    harmless: ClassVar[frozenset[str]] = frozenset({"model"})
    paths: ClassVar[tuple[str, ...]] = ("model",)

    kind: Literal["shade"] = "shade"
    model: str

    def columns(self) -> tuple[Column, ...]:
        return (
            Column("dark", pa.float32(), "share", (0, 1), "how dark the picture is"),
            Column("night", pa.bool_(), "", None, "whether it is darker than half"),
        )

    def fingerprint(self) -> str:
        return files_fingerprint("shade", [Path(self.model)])

    def open(self) -> Callable[[np.ndarray], tuple[Any, ...]]:
        import onnxruntime

        session = onnxruntime.InferenceSession(self.model, providers=["CPUExecutionProvider"])

        def dark(rgb_HWC: np.ndarray) -> tuple[Any, ...]:
            pixels_NCHW = np.ascontiguousarray(rgb_HWC.transpose(2, 0, 1)[None], np.float32)
            value = session.run(["dark"], {"pixels": pixels_NCHW})[0].reshape(-1)[0]
            return value, bool(value > 0.5)

        return dark


def write_graph(path: Path, scale: float = 255.0) -> Path:
    """A graph [1, 3, H, W] -> 1 - mean / scale."""
    import onnx
    from onnx import TensorProto, helper

    one, by = (helper.make_tensor(n, TensorProto.FLOAT, [], [v]) for n, v in (("one", 1.0), ("by", scale)))
    nodes = [
        helper.make_node("ReduceMean", ["pixels"], ["mean"], keepdims=0),
        helper.make_node("Div", ["mean", "by"], ["light"]),
        helper.make_node("Sub", ["one", "light"], ["dark"]),
    ]
    pixels = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, [1, 3, "h", "w"])
    dark = helper.make_tensor_value_info("dark", TensorProto.FLOAT, [])
    graph = helper.make_graph(nodes, "shade", [pixels], [dark], [one, by])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


class Words(Scorer):
    """Words of a record.

    kind: words.
    """

    cost: ClassVar[float] = 0.001
    needs: ClassVar[Needs] = "text"
    rows: ClassVar[Unit] = "record"

    kind: Literal["words"] = "words"

    def columns(self) -> tuple[Column, ...]:
        return (
            Column("count", pa.int32(), "words", None, "of all texts"),
            Column("first", pa.string(), "", None, "first word, null without words"),
        )

    def fingerprint(self) -> str:
        return fingerprint(["words", 1])

    def open(self) -> Callable[[Record], tuple[Any, ...]]:
        def words(record: Record) -> tuple[Any, ...]:
            found = " ".join(record.texts).split()
            return len(found), found[0] if found else None

        return words


class Shape(Scorer):
    """Width by height, from columns.

    kind: shape.
    """

    cost: ClassVar[float] = 0.0
    needs: ClassVar[Needs] = "columns"
    reads: ClassVar[tuple[str, ...]] = ("original_width", "original_height", "text_chars")

    kind: Literal["shape"] = "shape"

    def columns(self) -> tuple[Column, ...]:
        return (
            Column("ratio", pa.float64(), "", None, "width / height"),
            Column("chars", pa.int64(), "characters", None, "of its record"),
        )

    def fingerprint(self) -> str:
        return fingerprint(["shape", 1])

    def open(self) -> Callable[[Mapping[str, Values]], tuple[np.ndarray, ...]]:
        def shape(columns: Mapping[str, Values]) -> tuple[np.ndarray, ...]:
            width, height, chars = (columns[name].values for name in self.reads)
            with np.errstate(divide="ignore", invalid="ignore"):
                return width / height, chars.astype(np.int64)

        return shape


MADE: dict[str, type[Scorer]] = {"shade": Shade, "words": Words, "shape": Shape}
