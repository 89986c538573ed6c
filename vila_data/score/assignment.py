"""Which sentence each image of a document belongs to, as MMC4 decides it (arXiv 2304.06939, section 3)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def assign(similarities_IT: NDArray[np.float32]) -> NDArray[np.int32]:
    """Give each image its sentence: the one-to-one assignment with the largest sum of similarities.

    With more images than sentences, the images that the assignment leaves over take the
    sentence most similar to them (first of equals), as MMC4 does.

    Args:
        similarities_IT: cosine of image i and sentence t; I >= 0, T >= 1, finite.

    Returns:
        [I] index of each image's sentence.

    Raises:
        ValueError: the matrix has no sentence, or an entry is not finite.
    """
    images, texts = similarities_IT.shape
    if texts == 0:
        raise ValueError("no sentence to assign images to")
    chosen_I: NDArray[np.int32] = np.argmax(similarities_IT, axis=1).astype(np.int32)
    if not np.isfinite(similarities_IT).all():
        raise ValueError("a similarity is not finite")
    if images <= 1 or texts == 1:
        return chosen_I
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(-similarities_IT.astype(np.float64))
    chosen_I[rows] = columns
    return chosen_I
