"""Writes a CLIP folder: image.onnx, text.onnx, tokenizer.json, config.json, from two trained towers.

The graphs are written node by node, so the files hold nothing but the model:
opset 17, IR version 8, batch normalisation folded into the convolutions.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import scenes
import torch
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn
from towers import DIM, MEAN, SIZE, STD, ImageTower, TextTower

MAX_TOKENS = 48
SPECIAL = ("[PAD]", "[UNK]", "[CLS]")


def _strings(value: object) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from (*_strings(key), *_strings(inner))
    elif isinstance(value, tuple):
        for inner in value:
            yield from _strings(inner)


def build_tokenizer() -> Tokenizer:
    """Lower-cased words of the grammar, one id a word, unknown words as one; [CLS] first, so no text is empty."""
    tables = [value for name, value in sorted(vars(scenes).items()) if name.isupper()]
    plurals = tuple(thing + "s" for thing in scenes.THINGS)
    text = " ".join([*_strings(tuple(tables)), *plurals, "a an one large small"])
    words = sorted(set(re.findall(r"\w+|[^\w\s]+", re.sub(r"{\w+}", " ", text).lower())))
    vocabulary = {word: i for i, word in enumerate((*SPECIAL, *words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A", special_tokens=[("[CLS]", vocabulary["[CLS]"])]
    )
    tokenizer.enable_truncation(MAX_TOKENS)
    tokenizer.enable_padding(pad_id=0, pad_token="[PAD]")
    return tokenizer


class _Graph:
    """Nodes and weights of one graph, added in order; each call returns the name of its output."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def weight(self, array: np.ndarray) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def add(self, kind: str, *inputs: str, out: str = "", **attributes: Any) -> str:
        out = out or f"n{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [out], **attributes))
        return out

    def unit(self, vectors: str, out: str) -> None:
        """The vectors at length one."""
        length = self.add("ReduceL2", vectors, axes=[1], keepdims=1)
        self.add("Div", vectors, length, out=out)

    def linear(self, inputs: str, layer: nn.Linear) -> str:
        return self.add("Gemm", inputs, self.weight(_array(layer.weight)), self.weight(_array(layer.bias)), transB=1)

    def save(self, path: Path, inputs: list[onnx.ValueInfoProto], output: str) -> None:
        outputs = [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["N", DIM])]
        graph = helper.make_graph(self.nodes, path.stem, inputs, outputs, self.weights)
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name="vila_data sample"
        )
        onnx.checker.check_model(model, full_check=True)
        path.write_bytes(model.SerializeToString(deterministic=True))


def _array(tensor: torch.Tensor | None) -> np.ndarray:
    assert tensor is not None
    return tensor.detach().to(torch.float32).contiguous().numpy()


def write_image_tower(tower: ImageTower, path: Path) -> None:
    """pixel_values float32 [N,3,SIZE,SIZE] -> image_embeds float32 [N,DIM]."""
    graph, name = _Graph(), "pixel_values"
    for conv, norm in tower.blocks:
        mean, variance = norm.running_mean, norm.running_var
        assert mean is not None and variance is not None
        gain = norm.weight / torch.sqrt(variance + norm.eps)
        weight = graph.weight(_array(conv.weight * gain[:, None, None, None]))
        bias = graph.weight(_array(norm.bias - mean * gain))
        strides = list(conv.stride)
        name = graph.add("Conv", name, weight, bias, kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=strides)
        name = graph.add("Relu", name)
    graph.unit(graph.linear(graph.add("Flatten", name, axis=1), tower.head), "image_embeds")
    inputs = [helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["N", 3, SIZE, SIZE])]
    graph.save(path, inputs, "image_embeds")


def write_text_tower(tower: TextTower, path: Path) -> None:
    """input_ids, attention_mask int64 [N,T] -> text_embeds float32 [N,DIM]; padding has no influence."""
    graph = _Graph()
    middle, last = graph.weight(np.array([1], np.int64)), graph.weight(np.array([2], np.int64))
    mask = graph.add("Unsqueeze", graph.add("Cast", "attention_mask", to=TensorProto.FLOAT), middle)
    embedded = graph.add("Gather", graph.weight(_array(tower.embedding.weight)), "input_ids")
    hidden = graph.add("Mul", graph.add("Transpose", embedded, perm=[0, 2, 1]), mask)
    for conv in (tower.first, tower.second):
        weights = graph.weight(_array(conv.weight)), graph.weight(_array(conv.bias))
        turned = graph.add("Relu", graph.add("Conv", hidden, *weights, kernel_shape=[5], pads=[2, 2]))
        hidden = graph.add("Add", hidden, graph.add("Mul", turned, mask))
    total = graph.add("ReduceSum", hidden, last, keepdims=0)
    mean = graph.add("Div", total, graph.add("ReduceSum", mask, last, keepdims=0))
    graph.unit(graph.linear(mean, tower.head), "text_embeds")
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["N", "T"]) for name in ("input_ids", "attention_mask")
    ]
    graph.save(path, inputs, "text_embeds")


def _config(scale: float) -> dict[str, Any]:
    return {
        "name": "sample-clip",
        "version": 1,
        "embedding_dim": DIM,
        "similarity": "dot product of the two L2-normalised outputs (= cosine)",
        "logit_scale": round(scale, 6),
        "image": {
            "file": "image.onnx",
            "input": "pixel_values",
            "output": "image_embeds",
            "layout": "NCHW",
            "dtype": "float32",
            "channels": "RGB",
            "size": SIZE,
            "resize_mode": "squash",
            "pad_colour": [255, 255, 255],
            "alpha": "composite on white",
            "interpolation": "bicubic",
            "mean": MEAN,
            "std": STD,
            "normalise": "(value_0_255 - 127) / 128, same for every channel",
        },
        "text": {
            "file": "text.onnx",
            "tokenizer": "tokenizer.json",
            "inputs": ["input_ids", "attention_mask"],
            "output": "text_embeds",
            "dtype": "int64",
            "max_tokens": MAX_TOKENS,
            "pad_id": 0,
            "lower_case": True,
            "languages": ["en"],
        },
        "licence": "Apache-2.0; trained from nothing on pictures drawn by this folder's own scripts.",
    }


def write_folder(folder: Path, towers: tuple[ImageTower, TextTower], tokenizer: Tokenizer, scale: float) -> None:
    """Write all four files; the towers must be in evaluation mode."""
    folder.mkdir(parents=True, exist_ok=True)
    write_image_tower(towers[0], folder / "image.onnx")
    write_text_tower(towers[1], folder / "text.onnx")
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps(_config(scale), indent=2) + "\n", encoding="utf-8")
