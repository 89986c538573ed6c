"""Trains the sample's tiny CLIP on freshly drawn pictures and writes `clip/` (torch, onnx; minutes on 2 cores).

    python shards/sample/train_clip.py [--out DIR] [--seconds-at-most 330]

Training scenes, held-out scenes and the sample's scenes have none in common.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from random import Random

import clip_scores
import export_clip
import numpy as np
import torch
from draw import draw_scene
from plan import sample_scenes
from scenes import Scene, alt_text, filler, random_scene, sentence
from torch import Tensor, nn
from torch.nn import functional
from towers import MEAN, SIZE, STD, ImageTower, TextTower

SEED = 17
PICTURES, HELD_OUT = 20_000, 1_000
BATCH, FILLERS = 256, 32
SIZES = ((128, 96), (96, 128), (112, 112), (160, 120), (96, 72))


def draw_set(count: int, name: str, avoid: set[Scene]) -> tuple[np.ndarray, list[Scene]]:
    """`count` pictures as pixels_NHWC uint8 at the model's size, with scenes not in `avoid`."""
    pixels = np.empty((count, SIZE, SIZE, 3), np.uint8)
    drawn: list[Scene] = []
    rng = Random(f"{SEED} {name}")
    while len(drawn) < count:
        scene = random_scene(rng)
        if scene in avoid:
            continue
        picture = draw_scene(scene, rng.choice(SIZES), rng)
        pixels[len(drawn)] = np.asarray(clip_scores.squash(picture, SIZE))
        drawn.append(scene)
    return pixels, drawn


def write_text(scene: Scene, rng: Random) -> str:
    """A caption or a sentence about the scene."""
    return alt_text(scene, rng) if rng.random() < 0.5 else sentence(scene, rng)


def _normalised(pixels_NHWC: np.ndarray) -> Tensor:
    scaled = (pixels_NHWC.astype(np.float32) - MEAN) / STD
    return torch.from_numpy(scaled).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


def _jittered(pixels_NHWC: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Brightness, contrast and a little noise, as encodings bring them."""
    gain = generator.uniform(0.9, 1.1, (len(pixels_NHWC), 1, 1, 1)).astype(np.float32)
    shift = generator.uniform(-10, 10, (len(pixels_NHWC), 1, 1, 1)).astype(np.float32)
    return np.asarray(np.clip(pixels_NHWC * gain + shift, 0, 255))


def contrastive_loss(images_ND: Tensor, texts_MD: Tensor, scale: Tensor) -> Tensor:
    """Symmetric contrastive loss; texts beyond the images (sentences about nothing) are wrong for all of them."""
    logits_NM = scale * images_ND @ texts_MD.T
    target = torch.arange(len(images_ND))
    ahead = functional.cross_entropy(logits_NM, target, label_smoothing=0.02)
    back = functional.cross_entropy(logits_NM[:, : len(images_ND)].T, target, label_smoothing=0.02)
    return (ahead + back) / 2


def train(towers: tuple[ImageTower, TextTower], held_out: set[Scene], seconds_at_most: float, epochs: int) -> float:
    """Train both towers in place; returns the logit scale."""
    image_tower, text_tower = towers
    tokenizer = export_clip.build_tokenizer()
    pixels, drawn = draw_set(PICTURES, "train", held_out)
    log_scale = nn.Parameter(torch.tensor(2.7))
    weights = [*image_tower.parameters(), *text_tower.parameters(), log_scale]
    optimiser = torch.optim.AdamW(weights, lr=2e-3, weight_decay=0.02)
    steps = epochs * (PICTURES // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps, pct_start=0.1)
    generator, rng, begun = np.random.default_rng(SEED), Random(f"{SEED} texts"), time.monotonic()
    for epoch in range(epochs):
        order = generator.permutation(PICTURES)
        for start in range(0, PICTURES - BATCH + 1, BATCH):
            rows = order[start : start + BATCH]
            texts = [write_text(drawn[row], rng) for row in rows] + [filler(rng) for _ in range(FILLERS)]
            ids, mask = clip_scores.tokenise(tokenizer, texts)
            images_ND = image_tower(_normalised(_jittered(pixels[rows], generator)))
            texts_MD = text_tower(torch.from_numpy(ids), torch.from_numpy(mask))
            loss = contrastive_loss(images_ND, texts_MD, log_scale.exp().clamp(max=30.0))
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            optimiser.step()
            schedule.step()
        elapsed = time.monotonic() - begun
        print(f"epoch {epoch + 1}/{epochs}: loss {loss.item():.3f}, {elapsed:.0f} s", flush=True)
        if elapsed * (epoch + 2) / (epoch + 1) > seconds_at_most:
            break
    return float(log_scale.detach().exp().clamp(max=30.0))


def measure_held_out(folder: Path, pixels: np.ndarray, drawn: list[Scene]) -> dict[str, float]:
    """Pair accuracy and AUC of the exported files on held-out pictures, each against another's caption."""
    clip = clip_scores.Clip(folder)
    rng = Random(f"{SEED} held-out texts")
    images_ND = clip.embed_pixels(pixels)
    texts_ND = clip.embed_texts([write_text(scene, rng) for scene in drawn])
    right = (images_ND * texts_ND).sum(1)
    wrong = (images_ND * np.roll(texts_ND, 1, axis=0)).sum(1)
    return clip_scores.separation(right, wrong)


def main() -> None:
    """Train, export, measure, and write the figures into the folder's config."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "clip")
    parser.add_argument("--seconds-at-most", type=float, default=330)
    parser.add_argument("--epochs", type=int, default=12)
    args = parser.parse_args()
    torch.manual_seed(SEED)
    pixels, drawn = draw_set(HELD_OUT, "held-out", sample_scenes())
    tokenizer = export_clip.build_tokenizer()
    towers = ImageTower(), TextTower(tokenizer.get_vocab_size())
    avoid = sample_scenes() | set(drawn)
    scale = train(towers, avoid, args.seconds_at_most, args.epochs)
    for tower in towers:
        tower.eval()
    export_clip.write_folder(args.out, towers, tokenizer, scale)
    measured = {
        "held_out": measure_held_out(args.out, pixels, drawn),
        **clip_scores.measure_sample(clip_scores.Clip(args.out)),
    }
    path = args.out / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | {"measured": measured}
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(measured, indent=2))


if __name__ == "__main__":
    main()
