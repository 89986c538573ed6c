"""A CLIP vision tower, a projector and a Llama: VILA's model, from transformers, for packed batches.

Shapes: B rows, L columns, N images, T tokens of an image, D dimensions, S trained places, V words.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
)
from vila_attention import ATTENTION, Attention, packed_attention

from vila_data.loader.batch import PackedBatch

Projection = Literal["linear", "mlp2x_gelu", "downsample_2x2"]
IGNORED = -100


@dataclass(frozen=True)
class ModelConfig:
    """tower, llm: values of CLIPVisionConfig and LlamaConfig, or a hub name or folder whose weights are taken."""

    tower: str | dict[str, Any]
    llm: str | dict[str, Any]
    projector: Projection = "mlp2x_gelu"


_CLIP_L = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
    "image_size": 336, "patch_size": 14,
}  # fmt: skip
PRESETS = {
    "tiny": ModelConfig(
        {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
         "image_size": 64, "patch_size": 16},
        {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2},
    ),
    "vila-1b-shape": ModelConfig(
        _CLIP_L,
        {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32,
         "num_key_value_heads": 4},
    ),
    "vila-7b-shape": ModelConfig(
        _CLIP_L,
        {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
        "linear",
    ),
}  # fmt: skip
"""tiny: for tests, 16 tokens an image of 64 px; the others: the sizes of published models, with random weights."""


def model_config(name: str) -> ModelConfig:
    """A preset by name, or what a YAML or JSON file says (keys tower, llm, projector)."""
    if name in PRESETS:
        return PRESETS[name]
    if not Path(name).is_file():
        raise SystemExit(f"model {name!r}: neither a preset ({', '.join(PRESETS)}) nor a YAML or JSON file")
    said = yaml.safe_load(Path(name).read_text())
    known = [field.name for field in fields(ModelConfig)]
    if not isinstance(said, dict) or not {"tower", "llm"} <= set(said) <= set(known):
        keys = ", ".join(map(str, said)) if isinstance(said, dict) else type(said).__name__
        raise SystemExit(f"model {name}: has {keys}: give tower and llm, and projector where it is not mlp2x_gelu")
    if said.get("projector", "linear") not in get_args(Projection):
        raise SystemExit(f"model {name}: projector {said['projector']!r}: one of {', '.join(get_args(Projection))}")
    return ModelConfig(**said)


class ClipTower(nn.Module):
    """Normalised pixels_NCHW to the patch features_NTD of the last layer but one, as LLaVA and VILA take them."""

    mean = (0.48145466, 0.4578275, 0.40821073)
    std = (0.26862954, 0.26130258, 0.27577711)

    def __init__(self, config: str | dict[str, Any]) -> None:
        super().__init__()
        if isinstance(config, str):
            self.clip = CLIPVisionModel.from_pretrained(config)
        else:
            self.clip = CLIPVisionModel(CLIPVisionConfig(**config))
        self.image_size: int = self.clip.config.image_size
        self.width: int = self.clip.config.hidden_size
        self.side: int = self.image_size // self.clip.config.patch_size

    def forward(self, pixels_NCHW: Tensor) -> Tensor:
        """Features of the patches, row by row; the class token is left out."""
        states = self.clip(pixels_NCHW, output_hidden_states=True).hidden_states
        return states[-2][:, 1:]


class Projector(nn.Module):
    """Features of the tower to embeddings of the language model."""

    def __init__(self, kind: Projection, tower_width: int, width: int) -> None:
        super().__init__()
        self.downsamples = kind == "downsample_2x2"
        tower_width *= 4 if self.downsamples else 1
        if kind == "linear":
            self.layers = nn.Sequential(nn.Linear(tower_width, width))
        else:
            first = [nn.LayerNorm(tower_width)] if self.downsamples else []
            self.layers = nn.Sequential(*first, nn.Linear(tower_width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, features_NTD: Tensor) -> Tensor:
        """embeddings_NTD; with downsample_2x2 four neighbours become one, and a side that is odd is padded by zeros."""
        if self.downsamples:
            images, tokens, width = features_NTD.shape
            side = round(tokens**0.5)
            grid = features_NTD.view(images, side, side, width)
            grid = functional.pad(grid, (0, 0, 0, side % 2, 0, side % 2))
            half = grid.shape[1] // 2
            grid = grid.view(images, half, 2, half, 2, width).transpose(2, 3)
            features_NTD = grid.reshape(images, half * half, 4 * width)
        return self.layers(features_NTD)


class Vila(nn.Module):
    """Packed batches to the sum of their trained tokens' losses.

    tower: any module with `image_size`, `width`, `side`, `mean` and `std`, as ClipTower has them.
    """

    def __init__(self, tower: nn.Module, llm: nn.Module, projector: Projection, attention: Attention = "sdpa") -> None:
        super().__init__()
        self.tower, self.llm, self.attention = tower, llm, attention
        self.projector = Projector(projector, tower.width, llm.config.hidden_size)
        side = (tower.side + 1) // 2 if self.projector.downsamples else tower.side
        self.tokens_per_image: int = side**2

    def forward(self, batch: PackedBatch) -> Tensor:
        """Sum of the losses of the batch's trained tokens, float32; divide it by their number over all ranks.

        The first token of a sample has nothing before it in its sequence, so it is not trained, except under the
        semantics `released_code` (`targets`).
        """
        hidden_BLD = self.hidden(batch)
        targets_BL = targets(batch)
        trained_BL = targets_BL != IGNORED
        logits_SV = self.llm.lm_head(hidden_BLD[trained_BL])
        return functional.cross_entropy(logits_SV.float(), targets_BL[trained_BL], reduction="sum")

    def logits(self, batch: PackedBatch) -> Tensor:
        """logits_BLV of every position: for looking and tests, too large for training."""
        return self.llm.lm_head(self.hidden(batch))

    def hidden(self, batch: PackedBatch) -> Tensor:
        """Last hidden states_BLD; attention stays within a sample."""
        embeddings = self.embed(batch)
        inputs = packed_attention(batch, self.attention)
        return self.llm.model(inputs_embeds=embeddings, use_cache=False, **inputs).last_hidden_state

    def embed(self, batch: PackedBatch) -> Tensor:
        """embeddings_BLD: words, and images where the batch has them; a cut image gives its first tokens alone.

        A batch without an image goes through tower and projector with a blank one of no weight: under FSDP all ranks
        must run the same modules, or they wait for each other for ever.
        """
        words_BLD = self.llm.model.embed_tokens(batch.ids.clamp(min=0))
        pixels = batch.normalized(words_BLD.dtype, self.tower.mean, self.tower.std)
        if not len(pixels):
            blank = pixels.new_zeros(1, 3, self.tower.image_size, self.tower.image_size)
            return words_BLD + 0 * self.image_tokens(blank).sum()
        images_NTD = self.image_tokens(pixels)
        length, width = words_BLD.shape[1:]
        row_N, first_N, columns_N = batch.image_spans.cpu()[:, :3].unbind(1)
        if int(columns_N.max()) > images_NTD.shape[1]:
            raise ValueError(
                f"the batch has {int(columns_N.max())} tokens an image, the model makes {images_NTD.shape[1]}: set "
                "pack.tokens_per_image to that, or take another tower or projector"
            )
        steps_T = torch.arange(images_NTD.shape[1])
        kept_NT = steps_T < columns_N[:, None]
        places = ((row_N * length + first_N)[:, None] + steps_T)[kept_NT].to(words_BLD.device)
        kept_PD = images_NTD[kept_NT.to(words_BLD.device)].to(words_BLD.dtype)
        return words_BLD.flatten(0, 1).index_copy(0, places, kept_PD).view(-1, length, width)

    def image_tokens(self, pixels_NCHW: Tensor) -> Tensor:
        """embeddings_NTD of normalized images; no gradient goes into a tower that is not trained."""
        trained = torch.is_grad_enabled() and any(weight.requires_grad for weight in self.tower.parameters())
        with torch.set_grad_enabled(trained):
            features_NTD = self.tower(pixels_NCHW)
        return self.projector(features_NTD)


def targets(batch: PackedBatch) -> Tensor:
    """int64[B, L]: what each position has to predict: the next label of its own sample, else IGNORED.

    Under the semantics `released_code` the end of a sample predicts the first token of the next one in its row, as in
    VILA v1.0.
    """
    following = functional.pad(batch.labels[:, 1:], (0, 1), value=IGNORED)
    if batch.trains_first_label:
        return following
    same = functional.pad(batch.segments[:, 1:] == batch.segments[:, :-1], (0, 1), value=False)
    return following.masked_fill(~same, IGNORED)


def build(config: ModelConfig, vocabulary_size: int, attention: Attention = "sdpa") -> Vila:
    """The model in float32 on torch's default device: named weights, or random ones by torch's seed."""
    implementation = ATTENTION[attention]
    if isinstance(config.llm, str):
        described = AutoConfig.from_pretrained(config.llm)
        llm = AutoModelForCausalLM.from_pretrained(
            config.llm, config=described, attn_implementation=implementation, dtype=torch.float32
        )
        if llm.config.vocab_size < vocabulary_size:
            llm.resize_token_embeddings(vocabulary_size)
    else:
        described = LlamaConfig(**{"vocab_size": vocabulary_size, "max_position_embeddings": 4096, **config.llm})
        described._attn_implementation = implementation
        llm = LlamaForCausalLM(described)
    return Vila(ClipTower(config.tower), llm, config.projector, attention)
