"""A LLaVA of transformers with random weights, small enough for a test: pictures of 64 px become 16 tokens."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

WORDS = 1500


def write(folder: Path) -> Path:
    """Its folder, for `from_pretrained`. The image token is one behind the tokenizer's last."""
    torch.manual_seed(5)
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=64, patch_size=16
    )
    text = LlamaConfig(
        vocab_size=WORDS + 8, hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=WORDS, image_seq_length=16)
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    normalization = {
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(normalization))
    return folder
