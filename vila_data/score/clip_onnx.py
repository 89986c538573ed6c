"""CLIP from two ONNX graphs, run on the CPU by onnxruntime.

The directory contains `image.onnx` (pixel_values float32 [N, 3, H, W] -> image_embeds [N, D]),
`text.onnx` (input_ids and, if the graph takes it, attention_mask, int64 [N, T] ->
text_embeds [N, D]), `tokenizer.json`, and `config.json` with the preprocessing in numbers.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vila_data.core.errors import RunError, UsageError
from vila_data.score.model import ITEMS_PER_THREAD, ModelKeys, files_fingerprint, model_folder, spread, unit_length
from vila_data.score.preprocess import RESAMPLING, Preprocess, level_table

_FILES: Final = ("image.onnx", "text.onnx", "tokenizer.json", "config.json")


def onnx_files(model: str) -> list[Path]:
    """The files that make up a model, external weights included.

    Raises:
        UsageError: the directory or a file is missing.
    """
    folder = model_folder(model, _FILES)
    beside = (path for path in folder.iterdir() if path.suffix == ".data" or ".onnx" in path.name)
    return sorted({*(folder / name for name in _FILES), *(path for path in beside if path.is_file())})


class OnnxClip:
    """Clip (see clip.py) over onnxruntime: one item per run, `threads` runs at a time."""

    def __init__(self, config: ModelKeys, threads: int) -> None:
        files = onnx_files(config.model)
        folder = Path(config.model).expanduser()
        self.fingerprint = files_fingerprint("onnx", files)
        self._prepare, self._names = _read_config(folder / "config.json")
        self.image_side = self._prepare.side
        self.batch_size = min(config.batch_size, ITEMS_PER_THREAD * threads)
        self._tokenizer = _read_tokenizer(folder / "tokenizer.json", self._names["max_tokens"])
        self._image = onnx_session(folder / "image.onnx")
        self._text = onnx_session(folder / "text.onnx")
        self._text_inputs = [entry.name for entry in self._text.get_inputs()]
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="clip")
        self._where = str(folder)
        self.dim = len(self._embed_text("a"))

    def prepare(self, rgb_HWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See Clip."""
        return self._prepare(rgb_HWC)

    def embed_images(self, pixels_CHW: list[NDArray[np.float32]]) -> NDArray[np.float32]:
        """See Clip."""
        return unit_length(spread(self._pool.map, self._embed_image, pixels_CHW, self.dim), self._where)

    def embed_texts(self, texts: list[str]) -> NDArray[np.float32]:
        """See Clip."""
        return unit_length(spread(self._pool.map, self._embed_text, texts, self.dim), self._where)

    def _embed_image(self, pixels_CHW: NDArray[np.float32]) -> NDArray[np.float32]:
        feed = {self._names["image_input"]: pixels_CHW[None]}
        vector: NDArray[np.float32] = self._image.run([self._names["image_output"]], feed)[0][0]
        return vector

    def _embed_text(self, text: str) -> NDArray[np.float32]:
        encoding = self._tokenizer.encode(text)
        values = {
            "input_ids": encoding.ids,
            "attention_mask": encoding.attention_mask,
            "token_type_ids": encoding.type_ids,
        }
        feed = {name: np.array([values[name]], np.int64) for name in self._text_inputs}
        vector: NDArray[np.float32] = self._text.run([self._names["text_output"]], feed)[0][0]
        return vector


def _read_config(path: Path) -> tuple[Preprocess, dict[str, Any]]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        image, text = value["image"], value["text"]
        size = image["size"]
        height, width = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
        mode = image["resize_mode"]
        if mode not in ("squash", "pad_square"):
            raise ValueError(f"image.resize_mode must be squash or pad_square, found {mode!r}")
        prepare = Preprocess(
            mode,
            height,
            width,
            RESAMPLING[image["interpolation"]],
            level_table(_three(image["mean"]), _three(image["std"])),
            pad_color=tuple(image.get("pad_colour", (255, 255, 255))),
        )
        names = {
            "image_input": image.get("input", "pixel_values"),
            "image_output": image.get("output", "image_embeds"),
            "text_output": text.get("output", "text_embeds"),
            "max_tokens": int(text["max_tokens"]),
        }
    except (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise RunError(
            f"{path}: is not the config.json of an ONNX CLIP: {error!r}; copy the model's own file"
        ) from error
    return prepare, names


def _three(value: float | list[float]) -> list[float]:
    values = [float(entry) for entry in value] if isinstance(value, list) else [float(value)] * 3
    if len(values) != 3:
        raise ValueError(f"mean and std must be one number or three, found {value}")
    return values


def _read_tokenizer(path: Path, max_tokens: int) -> Any:
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_buffer(path.read_bytes())
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: is not a tokenizer: {error}; copy the model's own file") from error
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_tokens)
    return tokenizer


def onnx_session(path: Path) -> Any:
    """A graph, to be run on the CPU by any number of threads, each run in its own.

    Raises:
        UsageError: onnxruntime is not installed.
        RunError: the graph cannot be loaded.
    """
    try:
        import onnxruntime
        from onnxruntime.capi import onnxruntime_pybind11_state as state
    except ImportError as error:
        raise UsageError("score: ONNX models need onnxruntime: pip install 'vila-data[onnx]'") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    broken = (state.Fail, state.InvalidProtobuf, state.InvalidGraph, state.InvalidArgument, state.NoSuchFile)
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except (*broken, state.NotImplemented, state.RuntimeException) as error:
        raise RunError(f"{path}: cannot be loaded: {str(error).splitlines()[0]}; copy the model's own file") from error
