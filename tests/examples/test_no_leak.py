"""A sample of a pack is read by the reference model as if it stood alone."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.nn import functional
from torch.nn.attention import varlen
from vila_model import ModelConfig, Vila, build, model_config, targets

from tests.examples.made_batches import MadeSample, made_sample, pack

PATCHES = 16


def model(attention: str = "sdpa", projector: str = "mlp2x_gelu") -> Vila:
    torch.manual_seed(5)
    tiny = model_config("tiny")
    made = build(ModelConfig(tiny.tower, tiny.llm, projector), 200, attention).eval()  # type: ignore[arg-type]
    with torch.no_grad():  # sharper attention, so that a leak shows
        for layer in made.llm.model.layers:
            layer.self_attn.q_proj.weight.mul_(20)
    return made


def samples() -> list[list[MadeSample]]:
    random = np.random.default_rng(3)
    first = [made_sample(random, words, images, 64) for words, images in ((20, 2), (9, 0), (30, 1))]
    second = [made_sample(random, words, images, 64) for words, images in ((5, 0), (40, 3))]
    cut = MadeSample((1, 7, 9, -200), random.integers(0, 256, (1, 64, 64, 3), dtype=np.uint8), last_columns=5)
    return [[*first, cut], second]


@pytest.mark.parametrize("attention", ["sdpa", "flex"])
@pytest.mark.parametrize("projector", ["linear", "mlp2x_gelu", "downsample_2x2"])
def test_logits_of_a_sample_are_those_of_the_sample_alone(attention: str, projector: str) -> None:
    read = model(attention, projector)
    patches = read.tokens_per_image
    assert patches == (4 if projector == "downsample_2x2" else PATCHES)
    rows = samples()
    if projector == "downsample_2x2":
        rows[0].pop()  # cut to more tokens than there are
    together = pack(rows, 192, patches)
    with torch.no_grad():
        logits = read.logits(together)
        spread = logits.std().item()
        for number, (row, column, columns) in enumerate(together.sample_spans.tolist()):
            sample = [one for members in rows for one in members][number]
            alone = pack([[sample]], columns, patches)
            found = logits[row, column : column + columns]
            torch.testing.assert_close(found, read.logits(alone)[0], atol=1e-5, rtol=0)
    assert spread > 1e-3


def test_without_the_mask_samples_would_leak() -> None:
    """The test above can fail: with one segment a row, the logits are others."""
    read = model()
    rows = samples()
    together = pack(rows, 192, PATCHES)
    with torch.no_grad():
        kept = read.logits(together)
        together.segments.fill_(1)
        leaked = read.logits(together)
    row, column, columns = together.sample_spans[1].tolist()
    assert (kept - leaked)[row, column : column + columns].abs().max() > 1e-4


def test_no_sample_is_trained_to_predict_the_next_one() -> None:
    batch = pack([[MadeSample((5, 6, 7), np.zeros((0, 64, 64, 3), np.uint8), first=0)] * 2], 8, PATCHES)
    assert targets(batch).tolist() == [[6, 7, -100, 6, 7, -100, -100, -100]]
    released = replace(batch, trains_first_label=True)
    assert targets(released).tolist() == [[6, 7, 5, 6, 7, -100, -100, -100]], "as VILA v1.0 trains"


def test_flash_attention_gets_the_bounds_of_the_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """The varlen kernel needs a GPU; here a plain one takes its arguments and gives what sdpa gives."""

    def attend(query, key, value, starts, _, longest, __, *, scale, window_size, enable_gqa):  # type: ignore[no-untyped-def]
        assert window_size == (-1, 0) and int(starts.diff().max()) == longest
        parts = [
            functional.scaled_dot_product_attention(
                *(one[first:last].transpose(0, 1) for one in (query, key, value)),
                is_causal=True, scale=scale, enable_gqa=enable_gqa,
            ).transpose(0, 1)
            for first, last in pairwise(starts.tolist())
        ]  # fmt: skip
        return torch.cat(parts)

    monkeypatch.setattr(varlen, "varlen_attn", attend)
    together = pack(samples(), 192, PATCHES)
    seen = together.segments > 0
    with torch.no_grad():
        expected, found = (model(attention).logits(together) for attention in ("sdpa", "flash"))
    torch.testing.assert_close(found[seen], expected[seen], atol=1e-5, rtol=0)
