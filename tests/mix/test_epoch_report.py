"""The worst window, found block by block, is the worst of all windows at once."""

from __future__ import annotations

import numpy as np
import pytest

from vila_data.mix.epoch_report import WINDOW_STEPS, ShareWindows


@pytest.mark.parametrize("packs_per_step", [1, 3])
def test_over_blocks_and_changes(packs_per_step: int) -> None:
    rng = np.random.default_rng(0)
    blocks = [rng.integers(0, 9, (int(size), 3)) for size in rng.integers(1, 900, 12)]
    target = [np.asarray([0.2, 0.3, 0.5]) if index < 6 else np.asarray([0.6, 0.4, 0.0]) for index in range(12)]
    windows = ShareWindows(3, packs_per_step)
    for units, share in zip(blocks, target, strict=True):
        windows.add(units, np.repeat(units.sum(axis=1, keepdims=True), 3, axis=1), share)
    units = np.concatenate(blocks)
    due = np.concatenate(
        [block.sum(axis=1, keepdims=True) * share for block, share in zip(blocks, target, strict=True)]
    )
    length, worst, count = WINDOW_STEPS * packs_per_step, np.zeros(3), 0
    for start in range(0, len(units) - length + 1, packs_per_step):
        window = slice(start, start + length)
        worst = np.maximum(worst, np.abs((units[window] - due[window]).sum(axis=0)) / units[window].sum())
        count += 1
    assert windows.windows == count > 0
    assert windows.worst == pytest.approx(worst)


def test_fewer_steps_than_a_window() -> None:
    windows = ShareWindows(2, 1)
    windows.add(np.ones((WINDOW_STEPS - 1, 2), np.int64), np.full((WINDOW_STEPS - 1, 2), 2), np.asarray([1.0, 0.0]))
    assert windows.windows == 0
    windows.add(np.ones((1, 2), np.int64), np.full((1, 2), 2), np.asarray([1.0, 0.0]))
    assert windows.windows == 1 and windows.worst.tolist() == [0.5, 0.5]
