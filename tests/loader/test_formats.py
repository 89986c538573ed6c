"""What trainers take says what the batch says; and no sample sees another in a packed model."""

from __future__ import annotations

import itertools
import pickle
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
import pytest
import torch

from tests.examples.made_batches import MadeSample, pack
from tests.loader.made_arrays import MADE_UP, VOCABULARY, made_batch
from vila_data.core.errors import UsageError
from vila_data.core.tables import IGNORED, IMAGE_ID
from vila_data.loader.batch import PackedBatch
from vila_data.loader.formats import MASKS, block_mask

IMAGE_TOKEN = VOCABULARY  # texts do not have it
SEEDS = range(8)


def samples_of(batch: PackedBatch) -> list[tuple[list[int], list[int]]]:
    """Ids and labels of each sample, expanded; the first label is one only where the batch trains it."""
    found = []
    for row, first, columns in batch.sample_spans.tolist():
        ids, labels = (values[row, first : first + columns].tolist() for values in (batch.ids, batch.labels))
        found.append((ids, labels if batch.trains_first_label else [IGNORED, *labels[1:]]))
    return found


def cut_images(batch: PackedBatch) -> list[bool]:
    """Of each image whether it lacks columns."""
    return [columns < (batch.tokens_per_image or 0) for _, _, columns, _ in batch.image_spans.tolist()]


def collapsed(batch: PackedBatch, sample: int, *, keep_cut: bool = False) -> tuple[list[int], list[int]]:
    """A sample with one placeholder per image, without an image that is cut unless asked for."""
    ids, labels = samples_of(batch)[sample]
    begin = int(batch.sample_spans[sample, 1])
    for (_, first, size, owner), cut in reversed(list(zip(batch.image_spans.tolist(), cut_images(batch), strict=True))):
        if owner == sample:
            at = first - begin
            left_out = cut and not keep_cut
            ids[at : at + size] = [] if left_out else [IMAGE_ID]
            labels[at : at + size] = [] if left_out else [IGNORED]
    return ids, labels


def kept(values: torch.Tensor, mask: torch.Tensor) -> list[int]:
    length = int(mask.sum())
    assert mask[:length].all(), "padding is on the right"
    return values[:length].tolist()


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("seed", SEEDS)
def test_vila_by_sample(seed: int, cut: bool) -> None:
    batch = made_batch(seed, empty_rows=seed % 2, cut=cut)
    view = batch.vila(rows="samples", pad_id=2)
    assert len(view.input_ids) == len(batch.sample_spans)
    assert view.attention_mask.any(0).all()
    for sample, mask in enumerate(view.attention_mask):
        ids, labels = collapsed(batch, sample, keep_cut=True)
        assert kept(view.input_ids[sample], mask) == ids
        assert kept(view.labels[sample], mask) == labels
        assert (view.input_ids[sample][~mask] == 2).all()
        assert (view.labels[sample][~mask] == IGNORED).all()
    assert int((view.input_ids == IMAGE_ID).sum()) == len(view.images) == len(batch.pixels)
    assert view.seqlens.tolist() == batch.sample_spans[:, 2].tolist()


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("seed", SEEDS)
def test_vila_by_pack(seed: int, cut: bool) -> None:
    batch = made_batch(seed, empty_rows=seed % 2, cut=cut)
    view = batch.vila()
    assert len(view.input_ids) == batch.rows
    for row, mask in enumerate(view.attention_mask):
        owned = [n for n, place in enumerate(batch.sample_spans.tolist()) if place[0] == row]
        assert kept(view.input_ids[row], mask) == [i for n in owned for i in collapsed(batch, n)[0]]
        assert kept(view.labels[row], mask) == [i for n in owned for i in collapsed(batch, n)[1]]
    whole = torch.tensor([not one for one in cut_images(batch)], dtype=torch.bool)
    assert int((view.input_ids == IMAGE_ID).sum()) == len(view.images) == int(whole.sum())
    assert torch.equal(view.images, batch.normalized()[whole])
    samples = [collapsed(batch, sample)[0] for sample in range(len(batch.sample_spans))]
    assert view.seqlens.tolist() == [len(ids) + 3 * ids.count(IMAGE_ID) for ids in samples]
    assert view.seqlens.dtype == torch.int32
    assert set(view.as_dict()) == {"input_ids", "attention_mask", "labels", "images"}


def cut_batches(trains_first_label: bool = False) -> list[PackedBatch]:
    """Batches with whole images and cut ones; images of the model below have 4 tokens."""
    found = [made_batch(seed, cut=True, rows=3, length=48, trains_first_label=trains_first_label) for seed in range(60)]
    return [batch for batch in found if len(set(cut_images(batch))) == 2][:6]


def test_another_number_of_tokens_per_image_is_refused() -> None:
    """What the pack was planned with is known, so a cut image does not hide it."""
    for batch in (made_batch(0), *cut_batches()):
        for tokens in (3, 5, 576):
            for view in (batch.vila, partial(batch.hugging_face, IMAGE_TOKEN)):
                with pytest.raises(UsageError, match=f"takes 4 columns, but the model makes {tokens} tokens"):
                    view(tokens_per_image=tokens)
        batch.vila(tokens_per_image=4)
        batch.hugging_face(IMAGE_TOKEN, tokens_per_image=4)


def test_of_a_batch_that_does_not_know_the_number_the_images_tell() -> None:
    batch = replace(made_batch(0), tokens_per_image=None)
    with pytest.raises(UsageError, match=r"row \d+ column \d+: an image takes 4 columns, but the model makes 3 tokens"):
        batch.vila(tokens_per_image=3)
    with pytest.raises(UsageError, match="the model makes 5 tokens"):  # an image with text behind it is not cut
        batch.hugging_face(IMAGE_TOKEN, tokens_per_image=5)
    for cut in cut_batches():
        unknown = replace(cut, tokens_per_image=None)
        assert torch.equal(unknown.vila().input_ids, cut.vila().input_ids)


def test_the_only_image_of_a_batch_may_be_cut() -> None:
    """Its columns do not say how many it lacks: the batch does."""
    batch = next(batch for batch in (made_batch(seed, rows=1, length=9, cut=True) for seed in range(500))
                 if cut_images(batch) == [True])  # fmt: skip
    view = batch.hugging_face(IMAGE_TOKEN)
    assert not (view.input_ids == IMAGE_TOKEN).any() and "pixel_values" not in view.as_dict()
    assert len(batch.vila().images) == 0 and batch.varlen(image_token_id=IMAGE_TOKEN).pixels is None
    _, _, columns, sample = batch.image_spans[0].tolist()
    assert int(batch.vila().seqlens[sample]) == int(batch.sample_spans[sample, 2]) - columns
    with torch.no_grad():
        assert tiny_llava()(**view.as_dict()).logits.shape[:2] == batch.ids.shape


def test_text_with_the_image_token_is_refused() -> None:
    batch = made_batch(0)
    for view in (lambda: batch.hugging_face(1), lambda: batch.varlen(image_token_id=1)):
        with pytest.raises(UsageError, match="token 1"):
            view()
    padded = batch.hugging_face(0)  # the pad id is no text, and padding is no image
    assert int((padded.input_ids == 0).sum()) == int((batch.ids == IMAGE_ID).sum()) > 0
    with pytest.raises(UsageError, match=r"unknown mask .dense.; choose one of none, bool4d, additive"):
        batch.hugging_face(IMAGE_TOKEN, mask="dense")  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", SEEDS)
def test_varlen(seed: int) -> None:
    batch = made_batch(seed, cut=True, empty_rows=seed % 2)
    view = batch.varlen()
    assert view.pixels is None or len(view.pixels) == len(batch.pixels)
    assert view.cu_seqlens.dtype == torch.int32
    samples = samples_of(batch)
    bounds = view.cu_seqlens.tolist()
    assert bounds[-1] == len(view.ids) == batch.tokens
    assert view.max_seqlen == max(np.diff(bounds))
    for sample, (begin, end) in enumerate(itertools.pairwise(bounds)):
        assert (view.ids[begin:end].tolist(), view.labels[begin:end].tolist()) == samples[sample]
        assert view.positions[begin:end].tolist() == list(range(end - begin))
    image = torch.zeros(len(view.ids), dtype=torch.bool)
    for (first, tokens, sample), place in zip(view.image_spans.tolist(), batch.image_spans.tolist(), strict=True):
        image[first : first + tokens] = True
        assert (tokens, sample) == (place[2], place[3])
        assert bounds[sample] <= first < first + tokens <= bounds[sample + 1]
    assert torch.equal(image, view.ids == IMAGE_ID)


def test_varlen_for_a_model_has_whole_images_alone() -> None:
    for batch in cut_batches():
        plain, view = batch.varlen(), batch.varlen(image_token_id=IMAGE_TOKEN)
        whole = ~torch.tensor(cut_images(batch))
        assert view.pixels is not None and torch.equal(view.pixels, batch.normalized()[whole])
        assert torch.equal(view.image_spans, plain.image_spans[whole])
        assert int((view.ids == IMAGE_TOKEN).sum()) == 4 * int(whole.sum())
        assert not (view.ids == IMAGE_ID).any()
        for name in ("labels", "positions", "cu_seqlens"):
            assert torch.equal(getattr(view, name), getattr(plain, name))


@pytest.mark.parametrize("trained", [False, True])
def test_first_labels_are_in_all_views_or_in_none(trained: bool) -> None:
    batch = made_batch(11, rows=2, length=48, trains_first_label=trained)
    for copied in (batch, batch.to("cpu"), batch.pin(), batch.trim(8), pickle.loads(pickle.dumps(batch))):
        assert copied.trains_first_label is trained and copied.tokens_per_image == 4
        row, first, _ = copied.sample_spans.T
        wanted = copied.labels[row, first] if trained else torch.full((len(row),), IGNORED)
        assert torch.equal(copied.hugging_face(IMAGE_TOKEN).labels[row, first], wanted)
        assert torch.equal(copied.vila(rows="samples").labels[:, 0], wanted)
        places = copied.vila().input_ids == 1  # the first token of each made sample
        assert torch.equal(copied.vila().labels[places], wanted)
        starts = copied.varlen().cu_seqlens[:-1].long()
        later_row = (first == 0) & (row > 0)  # nothing of its own row comes before it
        assert torch.equal(copied.varlen().labels[starts], wanted.masked_fill(later_row, IGNORED))
    assert not trained or int((wanted != IGNORED).sum()) > 3


def test_vila_packs_samples_as_the_batch_has_them() -> None:
    """The longest first, next-fit up to the longest, as v1.0 does: what it finds are the rows of a released batch."""
    blank = np.zeros((1, 8, 8, 3), np.uint8)
    cut = MadeSample((*range(3, 12), IMAGE_ID), blank, last_columns=3)  # truncated to 12 columns
    other = MadeSample((*range(20, 27), IMAGE_ID), blank)
    short = MadeSample((30,), blank[:0], first=0)
    batch = pack([[cut], [other, short]], 12, 4, side=8)
    batch = replace(batch, tokens_per_image=4, trains_first_label=True, normalization=MADE_UP)
    view = batch.vila(rows="samples", tokens_per_image=4)
    expanded = [
        int(mask.sum()) + 3 * int((ids == IMAGE_ID).sum())
        for ids, mask in zip(view.input_ids, view.attention_mask, strict=True)
    ]
    assert expanded == [13, 11, 1]
    assert view.seqlens.tolist() == [min(length, 12) for length in expanded]
    packed: list[list[int]] = []
    for sample in sorted(range(3), key=lambda sample: -int(view.seqlens[sample])):
        if not packed or sum(int(view.seqlens[one]) for one in [*packed[-1], sample]) > int(view.seqlens.max()):
            packed.append([])
        packed[-1].append(sample)
    assert packed == [[0], [1, 2]], "without the cut image the short sample would follow the first one"


def test_views_after_trim_are_the_same() -> None:
    batch = made_batch(6, length=300, rows=2)
    short = batch.trim(8)
    assert short.length < 300
    for name in ("vila", "varlen"):
        for one, other in zip(*(vars(getattr(b, name)()).values() for b in (batch, short)), strict=True):
            assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def test_a_batch_of_padding_alone() -> None:
    batch = made_batch(0, rows=2, empty_rows=2)
    assert batch.vila().input_ids.shape == (2, 0)
    assert batch.vila(rows="samples").input_ids.shape[0] == 0
    assert batch.varlen().cu_seqlens.tolist() == [0]
    assert batch.varlen().pixels is None
    view = batch.hugging_face(IMAGE_TOKEN)
    assert "pixel_values" not in view.as_dict()
    assert (view.labels == IGNORED).all()


@lru_cache(maxsize=1)
def tiny_llava() -> Any:
    """A LlavaForConditionalGeneration of a few thousand weights: 4 tokens an image of 8 x 8."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    torch.manual_seed(1)
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4
    )
    text = LlamaConfig(
        vocab_size=VOCABULARY + 1,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE_TOKEN,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    return LlavaForConditionalGeneration(config).eval()


def image_features(pixels: torch.Tensor) -> Any:
    """The tokens of each image: in transformers 4.57 what is returned, later a field of it."""
    found = tiny_llava().get_image_features(pixel_values=pixels)
    return getattr(found, "pooler_output", found)


def embeddings(batch: PackedBatch) -> torch.Tensor:
    """[B, L, D], as if the model truncated: words, and of each image its first tokens, as many as it has columns."""
    found: torch.Tensor = tiny_llava().get_input_embeddings()(batch.ids.clamp(min=0))
    features = image_features(batch.normalized())
    for (row, first, columns, _), image in zip(batch.image_spans.tolist(), features, strict=True):
        found[row, first : first + columns] = image[:columns]
    return found


def logits_alone(batch: PackedBatch, sample: int) -> torch.Tensor:
    row, first, columns = batch.sample_spans[sample].tolist()
    seen = embeddings(batch)[row : row + 1, first : first + columns]
    logits: torch.Tensor = tiny_llava()(inputs_embeds=seen).logits[0]
    return logits


def trained_logits(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Those that predict a label, in order: [labels, V]."""
    return logits[:, :-1][labels[:, 1:] != IGNORED]


@pytest.mark.parametrize("trained", [False, True])
def test_the_loss_with_a_cut_image_is_that_of_truncated_embeddings(trained: bool) -> None:
    """The model of transformers, given the view, against the same model given what VILA's truncation leaves."""
    compared = 0
    for made in cut_batches(trained):
        batch = made
        if trained:  # VILA cuts at the end of the row: what a cut image ends in is the last sample there
            behind = torch.zeros_like(batch.ids, dtype=torch.bool)
            for (row, first, columns, _), cut in zip(batch.image_spans.tolist(), cut_images(batch), strict=True):
                behind[row, first + columns :] |= cut
            batch = replace(batch, labels=batch.labels.masked_fill(behind, IGNORED))
        labels = batch.labels if trained else batch.labels.masked_fill(batch.positions == 0, IGNORED)
        view = batch.hugging_face(IMAGE_TOKEN, tokens_per_image=4)
        with torch.no_grad():
            there = {"attention_mask": block_mask(batch.segments), "position_ids": batch.positions}
            wanted = tiny_llava()(inputs_embeds=embeddings(batch), labels=labels, **there)
            found = tiny_llava()(**view.as_dict())
        assert torch.equal(view.labels, labels)
        assert float(found.loss) == pytest.approx(float(wanted.loss), abs=1e-6)
        logits = trained_logits(found.logits, labels)
        assert torch.allclose(logits, trained_logits(wanted.logits, labels), atol=1e-5)
        compared += len(logits)
    assert compared > 100


def test_the_loss_of_a_sample_with_a_cut_image_in_vilas_rows() -> None:
    """Each row of vila(rows="samples"), expanded as VILA's model does, against the truncated sample."""
    compared = 0
    for batch in cut_batches():
        view = batch.vila(rows="samples", tokens_per_image=4)
        with torch.no_grad():
            images = iter(image_features(view.images))
            for sample, (row, first, columns) in enumerate(batch.sample_spans.tolist()):
                length = int(view.attention_mask[sample].sum())
                ids, labels = view.input_ids[sample, :length], view.labels[sample, :length]
                words = tiny_llava().get_input_embeddings()(ids.clamp(min=0))
                parts = [next(images) if token == IMAGE_ID else words[at : at + 1] for at, token in enumerate(ids)]
                told = [[IGNORED] * 4 if token == IMAGE_ID else [int(labels[at])] for at, token in enumerate(ids)]
                expanded = torch.tensor([label for part in told for label in part])
                assert int(view.seqlens[sample]) == columns <= len(expanded)
                logits = tiny_llava()(inputs_embeds=torch.cat(parts)[None]).logits
                whole = batch.labels[row, first : first + columns].clone()[None]
                whole[0, 0] = IGNORED
                wanted = trained_logits(logits_alone(batch, sample)[None], whole)
                found = trained_logits(logits, expanded[None])
                assert torch.allclose(found, wanted, atol=1e-5)
                assert expanded[1:][expanded[1:] != IGNORED].tolist() == whole[0, 1:][whole[0, 1:] != IGNORED].tolist()
                compared += len(found) if len(expanded) > columns else 0
                cut_short = trained_logits(logits[:, :columns], expanded[None, :columns])  # as its maximum length does
                assert torch.equal(cut_short, found)
        assert next(images, None) is None
    assert compared > 10


@pytest.mark.parametrize("mask", MASKS)
def test_logits_in_a_pack_are_those_of_the_sample_alone(mask: Any) -> None:
    batch = made_batch(11, rows=2, length=48)
    assert len(batch.sample_spans) > 3
    assert len(batch.pixels) > 2
    view = batch.hugging_face(IMAGE_TOKEN, mask=mask)
    with torch.no_grad():
        output = tiny_llava()(**view.as_dict())
        leaking = tiny_llava()(**(view.as_dict() | {"attention_mask": None, "use_cache": True})).logits
        compared = 0
        for sample, (row, first, columns) in enumerate(batch.sample_spans.tolist()):
            alone = logits_alone(batch, sample)
            place = (row, slice(first, first + columns))
            assert torch.allclose(output.logits[place], alone, atol=1e-5)
            compared += int(first > 0 and not torch.allclose(leaking[place], alone, atol=1e-3))
    assert compared, "without the mask nothing differs: this test proves nothing"
    assert output.loss.isfinite()


def test_the_loss_of_a_pack_is_that_of_its_samples() -> None:
    """Labels are shifted inside the model: the first token of a sample must not be predicted from the last one's end."""
    batch = made_batch(11, rows=2, length=48)
    view = batch.hugging_face(IMAGE_TOKEN)
    with torch.no_grad():
        loss = tiny_llava()(**view.as_dict()).loss
        total, count = 0.0, 0
        for sample, (row, first, columns) in enumerate(batch.sample_spans.tolist()):
            labels = batch.labels[row, first + 1 : first + columns]
            total += float(torch.nn.functional.cross_entropy(logits_alone(batch, sample)[:-1], labels, reduction="sum"))
            count += int((labels != IGNORED).sum())
    assert float(loss) == pytest.approx(total / count, abs=1e-5)


def test_varlen_is_what_varlen_attention_takes() -> None:
    """Attention segment by segment, as FlashAttention does with these bounds, against the dense mask over the rows."""
    torch.manual_seed(0)
    batch = made_batch(11, rows=2, length=48)
    view = batch.varlen(image_token_id=IMAGE_TOKEN)
    named = view.as_dict()
    assert named["input_ids"].shape == named["position_ids"].shape == named["labels"].shape == (1, batch.tokens)
    assert not (named["input_ids"] == IMAGE_ID).any()
    table = torch.randn(VOCABULARY + 1, 16)
    mask = batch.hugging_face(IMAGE_TOKEN, mask="bool4d")
    rows = table[mask.input_ids][:, None]
    dense = torch.nn.functional.scaled_dot_product_attention(rows, rows, rows, attn_mask=mask.attention_mask)[:, 0]
    bounds = named["cu_seq_lens_q"].tolist()
    for (row, first, columns), begin, end in zip(batch.sample_spans.tolist(), bounds, bounds[1:], strict=False):
        own = table[named["input_ids"][0, begin:end]][None, None]
        alone = torch.nn.functional.scaled_dot_product_attention(own, own, own, is_causal=True)[0, 0]
        assert torch.allclose(alone, dense[row, first : first + columns], atol=1e-5)
        assert end - begin <= named["max_length_q"] == named["max_length_k"]


def test_pixels_of_a_type() -> None:
    batch = made_batch(0)
    assert batch.vila(dtype=torch.bfloat16).images.dtype == torch.bfloat16
    view = batch.hugging_face(IMAGE_TOKEN, mask="additive", dtype=torch.bfloat16)
    assert view.pixel_values is not None and view.pixel_values.dtype == torch.bfloat16
    assert view.attention_mask is not None and view.attention_mask.dtype == torch.bfloat16
    assert batch.hugging_face(IMAGE_TOKEN).attention_mask is None
    nothing = replace(batch, pixels=batch.pixels[:0], image_spans=batch.image_spans[:0])
    assert nothing.varlen().pixels is None
