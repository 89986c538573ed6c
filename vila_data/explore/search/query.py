"""What is looked for, as a vector of the run's own model."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vila_data.core.errors import UsageError
from vila_data.core.images import ImageError, decode_rgb, normalize_image
from vila_data.core.store import Store
from vila_data.download.config import DownloadConfig
from vila_data.score.clip import Clip
from vila_data.score.scorer import Scorer


def check_model(config: Scorer, expected: str | None) -> None:
    """Refuse a model other than the one that the run's vectors are from.

    expected: fingerprint in the run's lock.

    Raises:
        UsageError: the model is not there, or is another one.
    """
    try:
        found = config.fingerprint()
    except UsageError as error:
        raise UsageError(f"{error}; where the run's model lies elsewhere now, give its place with --model") from error
    if found != expected:
        raise UsageError(
            f"{getattr(config, 'model', config.kind)}: another model ({found}) than the run's embeddings are from ({expected}), so scores "
            "would mean nothing: give that one with --model"
        )


def text_vector(clip: Clip, text: str) -> NDArray[np.float32]:
    """[D] of unit length."""
    vector_D: NDArray[np.float32] = clip.embed_texts([text])[0]
    return vector_D


def image_vector(clip: Clip, path: str, download: DownloadConfig) -> NDArray[np.float32]:
    """[D] of unit length, of a picture file (or fsspec URL), made what `download` would have stored of it.

    Raises:
        UsageError: it is not there, or is no picture that can be decoded.
        StorageError: it cannot be read.
    """
    folder, _, name = path.rpartition("/")
    store = Store(folder or ("/" if path.startswith("/") else "."))
    if not name or not store.exists(name):
        raise UsageError(f"--image {path}: no such file")
    resize = download.resize
    try:
        stored = normalize_image(
            store.read(name),
            max_pixels=download.max_pixels,
            shorter_side_px=resize.shorter_side_px if resize else None,
            only_if_larger=resize.only_if_larger if resize else True,
            jpeg_quality=resize.jpeg_quality if resize else 90,
        )
        pixels_CHW = clip.prepare(decode_rgb(stored.jpeg, 2 * clip.image_side))
    except ImageError as error:
        raise UsageError(f"--image {path}: not a picture that can be decoded: {error}") from error
    vector_D: NDArray[np.float32] = clip.embed_images([pixels_CHW])[0]
    return vector_D
