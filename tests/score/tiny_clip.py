"""A CLIP of some thousand random weights, as a transformers folder and as an ONNX folder of the same model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

SIDE = 32
MAX_TOKENS = 24


def write_transformers(folder: Path, seed: int = 0) -> Path:
    """A folder as `save_pretrained` leaves it, with the preprocessing of OpenAI's CLIP at 32 pixels."""
    tokenizer = _tokenizer()
    shared = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    size = tokenizer.get_vocab_size()
    ids = {"bos_token_id": size - 2, "eos_token_id": size - 1, "pad_token_id": size - 1}
    config = CLIPConfig(
        text_config={**shared, "vocab_size": size, "max_position_embeddings": MAX_TOKENS, **ids},
        vision_config={**shared, "image_size": SIDE, "patch_size": 8},
        projection_dim=16,
    )
    torch.manual_seed(seed)
    model = CLIPModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.2)
    model.save_pretrained(folder)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<eos>", model_max_length=MAX_TOKENS
    )
    fast.save_pretrained(folder)
    preprocessing = {
        "size": {"shortest_edge": SIDE},
        "crop_size": {"height": SIDE, "width": SIDE},
        "do_resize": True,
        "do_center_crop": True,
        "do_rescale": True,
        "do_normalize": True,
        "rescale_factor": 1 / 255,
        "resample": 3,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "image_processor_type": "CLIPImageProcessor",
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    return folder


def write_onnx(folder: Path, source: Path) -> Path:
    """The model at `source` as image.onnx and text.onnx; pictures are squashed, values scaled as at `source`."""
    folder.mkdir()
    model = CLIPModel.from_pretrained(source, attn_implementation="eager")
    pixels_NCHW = torch.zeros(2, 3, SIDE, SIDE)
    ids_NT = torch.randint(0, 50, (2, 7))
    ids_NT[:, -1] = model.config.text_config.eos_token_id
    _export(_Image(model), (pixels_NCHW,), folder / "image.onnx", ["pixel_values"], "image_embeds", {0: "n"})
    inputs = (ids_NT, torch.ones_like(ids_NT))
    names = ["input_ids", "attention_mask"]
    _export(_Text(model), inputs, folder / "text.onnx", names, "text_embeds", {0: "n", 1: "t"})
    shutil.copy(source / "tokenizer.json", folder / "tokenizer.json")
    value = json.loads((source / "preprocessor_config.json").read_text())
    config = {
        "image": {
            "size": SIDE,
            "resize_mode": "squash",
            "interpolation": "bicubic",
            "mean": [255 * mean for mean in value["image_mean"]],
            "std": [255 * std for std in value["image_std"]],
        },
        "text": {"max_tokens": MAX_TOKENS},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


class _Image(torch.nn.Module):
    def __init__(self, model: CLIPModel) -> None:
        super().__init__()
        self.tower, self.head = model.vision_model, model.visual_projection

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.head(self.tower(pixel_values=pixel_values).pooler_output)


class _Text(torch.nn.Module):
    def __init__(self, model: CLIPModel) -> None:
        super().__init__()
        self.tower, self.head = model.text_model, model.text_projection

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.head(self.tower(input_ids=input_ids, attention_mask=attention_mask).pooler_output)


def _export(
    module: torch.nn.Module,
    inputs: tuple[torch.Tensor, ...],
    path: Path,
    names: list[str],
    output: str,
    axes: dict[int, str],
) -> None:
    dims: dict[int, Any] = {axis: torch.export.Dim(name) for axis, name in axes.items()}
    torch.onnx.export(
        module.eval(),
        inputs,
        path,
        input_names=names,
        output_names=[output],
        dynamic_shapes=tuple(dims for _ in inputs),
        dynamo=True,
        external_data=False,
        verbose=False,
    )


def _tokenizer() -> Tokenizer:
    """Byte-level, without merges: every text is its bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {symbol: index for index, symbol in enumerate([*alphabet, "<bos>", "<eos>"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    ends = [("<bos>", vocab["<bos>"]), ("<eos>", vocab["<eos>"])]
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A <eos>", special_tokens=ends)
    tokenizer.add_special_tokens(["<bos>", "<eos>"])
    return tokenizer
