"""Scores pictures against texts with the sample's ONNX CLIP, and measures how well that tells right from wrong.

`python shards/sample/clip_scores.py` prints the figures of `clip/` on the sample's own pictures.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import pictures
import plan
from PIL import Image, ImageOps
from tokenizers import Tokenizer

HERE = Path(__file__).resolve().parent


def upright_rgb(data: bytes) -> Image.Image:
    """The first frame as a viewer shows it: turned by EXIF, 16 bits scaled to 8, alpha on white."""
    with Image.open(io.BytesIO(data)) as opened:
        image = ImageOps.exif_transpose(opened)
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image, np.uint32) >> 8).astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        white.alpha_composite(image.convert("RGBA"))
        image = white
    return image.convert("RGB")


def squash(image: Image.Image, side: int) -> Image.Image:
    """The image straight to side x side, whatever its aspect ratio."""
    return image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)


def tokenise(tokenizer: Tokenizer, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """ids_NT and mask_NT, int64, padded to the longest text."""
    encodings = tokenizer.encode_batch(list(texts))
    return np.array([e.ids for e in encodings], np.int64), np.array([e.attention_mask for e in encodings], np.int64)


class Clip:
    """The two towers of a folder with image.onnx, text.onnx, tokenizer.json and config.json."""

    def __init__(self, folder: Path) -> None:
        self.config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._image, self._text = (
            onnxruntime.InferenceSession(str(folder / name), providers=["CPUExecutionProvider"])
            for name in ("image.onnx", "text.onnx")
        )

    def embed_pixels(self, pixels_NHWC: np.ndarray, batch: int = 64) -> np.ndarray:
        """Unit vectors_ND of uint8 pixels at the model's size."""
        scaled = (pixels_NHWC.astype(np.float32) - self.config["image"]["mean"]) / self.config["image"]["std"]
        pixels_NCHW = np.ascontiguousarray(scaled.astype(np.float32).transpose(0, 3, 1, 2))
        parts = [pixels_NCHW[i : i + batch] for i in range(0, len(pixels_NCHW), batch)]
        return np.concatenate([self._image.run(None, {"pixel_values": part})[0] for part in parts])

    def embed_files(self, files: Sequence[bytes]) -> np.ndarray:
        """Unit vectors_ND of image files."""
        side = self.config["image"]["size"]
        return self.embed_pixels(np.stack([np.asarray(squash(upright_rgb(data), side)) for data in files]))

    def embed_texts(self, texts: Sequence[str], batch: int = 256) -> np.ndarray:
        """Unit vectors_ND of texts."""
        found: list[np.ndarray] = []
        for start in range(0, len(texts), batch):
            ids, mask = tokenise(self.tokenizer, texts[start : start + batch])
            found.append(self._text.run(None, {"input_ids": ids, "attention_mask": mask})[0])
        return np.concatenate(found)


def auc(right: np.ndarray, wrong: np.ndarray) -> float:
    """The chance that a right score is above a wrong one; ties count half."""
    ranked = np.sort(wrong)
    below = np.searchsorted(ranked, right, "left") + np.searchsorted(ranked, right, "right")
    return float(below.mean() / 2 / len(wrong))


def separation(right: np.ndarray, wrong: np.ndarray) -> dict[str, float]:
    """Pair accuracy (row against row), AUC, and the means."""
    figures = {
        "pairs": len(right),
        "pair_accuracy": float((right > wrong[: len(right)]).mean()),
        "auc": auc(right, wrong),
        "mean_right": float(right.mean()),
        "mean_wrong": float(wrong.mean()),
    }
    return {name: round(value, 4) for name, value in figures.items()}


def safe_threshold(right: np.ndarray) -> float:
    """A threshold 0.15 below the lowest right score, rounded down to 0.05, as room for other resizes and encodings."""
    return round(int((float(right.min()) - 0.15) / 0.05) * 0.05, 2)


def kept_shares(right: np.ndarray, wrong: np.ndarray, threshold: float) -> dict[str, float]:
    """What a threshold keeps of right and wrong, and how near the nearest are."""
    return {
        "min_similarity": threshold,
        "right_kept": round(float((right >= threshold).mean()), 4),
        "wrong_kept": round(float((wrong >= threshold).mean()), 4),
        "lowest_right": round(float(right.min()), 4),
        "highest_wrong": round(float(wrong.max()), 4),
    }


def measure_sample(clip: Clip) -> dict[str, object]:
    """The sample's own captions and sentences, right against wrong, and the threshold between them."""
    pairs = [pair for pair in plan.pairs() if pair.link.behaviour in ("plain", "slow", "redirect")]
    own = clip.embed_files([pictures.picture_file(pair.link.picture) for pair in pairs])
    captions = clip.embed_texts([plan.own_caption(pair.number) for pair in pairs])
    wrong_texts = clip.embed_texts([pair.text for pair in pairs if pair.caption_of != pair.number])
    misled = np.array([i for i, pair in enumerate(pairs) if pair.caption_of != pair.number])
    pair_right = (own * captions).sum(1)
    pair_wrong = (own * np.roll(captions, 1, axis=0)).sum(1)
    marked_wrong = (own[misled] * wrong_texts).sum(1)
    spoken = [
        (document, i)
        for document in plan.documents()
        for i, link in enumerate(document.links)
        if link.behaviour in ("plain", "slow", "redirect") and document.matches[i] is not None
    ]
    shown = clip.embed_files([pictures.picture_file(document.links[i].picture) for document, i in spoken])
    said = clip.embed_texts([document.texts[document.matches[i] or 0] for document, i in spoken])
    empty = clip.embed_texts([text for document, _ in spoken for text in _empty_sentence(document)])
    sentence_right, sentence_wrong = (shown * said).sum(1), (shown * np.roll(said, 1, axis=0)).sum(1)
    about_nothing = (shown[: len(empty)] * empty).sum(1)
    right = np.concatenate([pair_right, sentence_right])
    wrong = np.concatenate([pair_wrong, sentence_wrong, marked_wrong, about_nothing])
    return {
        "sample_captions": separation(pair_right, pair_wrong),
        "sample_marked_wrong": {
            "pairs": len(misled),
            "auc": round(auc(pair_right, marked_wrong), 4),
            "highest": round(float(marked_wrong.max()), 4),
        },
        "sample_sentences": separation(sentence_right, sentence_wrong),
        "sample_sentences_about_nothing": {"auc": round(auc(sentence_right, about_nothing), 4)},
        "threshold": kept_shares(right, wrong, safe_threshold(right)),
    }


def _empty_sentence(document: plan.Document) -> list[str]:
    """A sentence of the page that is about no picture; the crowded document has none, so any other's serves."""
    texts = [text for text, about in zip(document.texts, document.about, strict=True) if about is None]
    return texts[:1] or ["We will be back on Sunday with coffee."]


def main() -> None:
    """Print the figures."""
    print(json.dumps(measure_sample(Clip(HERE / "clip")), indent=2))


if __name__ == "__main__":
    main()
