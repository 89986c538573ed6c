from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vila_data.score.similarities import assign

MATRICES = st.tuples(st.integers(1, 4), st.integers(1, 5)).flatmap(
    lambda shape: arrays(np.float32, shape, elements=st.integers(-100, 100).map(lambda value: value / 100))
)


def test_optimum_differs_from_the_row_maxima() -> None:
    # the matrix of MMC4's published example: both images like sentence 1 best
    matrix = np.array([[0.2436, 0.3176, 0.2769], [0.2233, 0.3235, 0.2612]], np.float32)
    assert assign(matrix).tolist() == [2, 1]
    assert matrix.argmax(axis=1).tolist() == [1, 1]


def test_left_over_images_take_their_best_sentence() -> None:
    matrix = np.array([[0.1, 0.9], [0.2, 0.8], [0.3, 0.7]], np.float32)
    assert assign(matrix).tolist() == [1, 1, 0]
    assert assign(np.array([[0.5], [0.6]], np.float32)).tolist() == [0, 0]


def test_no_image_no_sentence() -> None:
    assert assign(np.empty((0, 3), np.float32)).tolist() == []
    with pytest.raises(ValueError, match="no sentence"):
        assign(np.empty((2, 0), np.float32))


@settings(max_examples=200, deadline=None)
@given(MATRICES)
def test_best_of_all_assignments(matrix: np.ndarray) -> None:
    images, texts = matrix.shape
    chosen = assign(matrix)
    assert ((chosen >= 0) & (chosen < texts)).all()
    if images <= texts:
        assert len(set(chosen.tolist())) == images
        best = max(
            sum(float(matrix[i, t]) for i, t in enumerate(p)) for p in itertools.permutations(range(texts), images)
        )
        assert sum(float(matrix[i, t]) for i, t in enumerate(chosen)) == pytest.approx(best, abs=1e-6)
        return
    # some `texts` of the images form the best one-to-one assignment, the others are at their maximum
    best = max(sum(float(matrix[i, t]) for t, i in enumerate(p)) for p in itertools.permutations(range(images), texts))
    maxima = [i for i in range(images) if matrix[i, chosen[i]] == matrix[i].max()]
    found = max(
        (
            sum(float(matrix[i, chosen[i]]) for i in some)
            for some in itertools.combinations(range(images), texts)
            if len({int(chosen[i]) for i in some}) == texts and set(range(images)) - set(some) <= set(maxima)
        ),
        default=-1e9,
    )
    assert found == pytest.approx(best, abs=1e-6)


@pytest.mark.realdata
def test_published_document(shared: Path) -> None:
    lines = (shared / "realdata/mmc4_doc.jsonl").read_text(encoding="utf-8").splitlines()
    assert lines
    for line in lines:
        value = json.loads(line)
        matrix = np.array(value["similarity_matrix"], np.float32)
        assert assign(matrix).tolist() == [image["matched_text_index"] for image in value["image_info"]]
