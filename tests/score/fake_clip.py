"""A model that costs nothing: vectors from the items' bytes, every call counted (unless memory is measured)."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from vila_data.core.layout import Part
from vila_data.core.receipts import Receipt
from vila_data.core.store import Store
from vila_data.score import part as task
from vila_data.score.clip import ClipConfig
from vila_data.score.reading import FeedStats
from vila_data.score.scorer import Task


class FakeClip:
    image_side = 16

    def __init__(self, batch_size: int = 4, dim: int = 8, fingerprint: str = "f" * 16, count: bool = True) -> None:
        self._count = count
        self.batch_size = batch_size
        self.dim = dim
        self.fingerprint = fingerprint
        self.images: Counter[bytes] = Counter()
        self.texts: Counter[str] = Counter()
        self.calls: list[tuple[str, int]] = []

    def prepare(self, rgb_HWC: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(rgb_HWC[:8, :8].transpose(2, 0, 1), dtype=np.float32)

    def embed_images(self, pixels_CHW: list[np.ndarray]) -> np.ndarray:
        if self._count:
            self.images.update(pixels.tobytes() for pixels in pixels_CHW)
            self.calls.append(("images", len(pixels_CHW)))
        return np.stack([self._vector(pixels.tobytes()) for pixels in pixels_CHW])

    def embed_texts(self, texts: list[str]) -> np.ndarray:
        if self._count:
            self.texts.update(texts)
            self.calls.append(("texts", len(texts)))
        return np.stack([self._vector(text.encode()) for text in texts])

    def _vector(self, data: bytes) -> np.ndarray:
        seed = int.from_bytes(hashlib.sha256(data).digest()[:8], "little")
        vector = np.random.default_rng(seed).normal(size=self.dim)
        return (vector / np.linalg.norm(vector)).astype(np.float32)


def score_part(
    store: Store,
    part: Part,
    needed: np.ndarray | None,
    clip: Any,
    config: ClipConfig,
    inputs: str,
    progress: Callable[[int], None] | None = None,
    *,
    reuse: bool = False,
    stats: FeedStats | None = None,
    threads: int | None = None,
) -> Receipt:
    """A part by a model that is there already, as the scorer `clip`."""
    made = Task(store, part, "clip", config, clip.fingerprint, needed, inputs, reuse, threads)
    return task.score_part(made, clip, progress, stats=stats)


def covers(store: Store, part: Part, needed: np.ndarray | None, fingerprint: str, embeddings: bool = False) -> bool:
    config = ClipConfig(model="fake", embeddings=embeddings)
    return task.covers(Task(store, part, "clip", config, fingerprint, needed, "in"))
