"""Both fidelity modes give what the plain reading of VILA's loader gives: ids, labels, images, lengths."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from tests.encode import reading
from tests.encode.conftest import Made
from tests.encode.generated import conversations, document_json, documents, encoded, labels_of, pairs
from vila_data.encode.config import PackConfig

MODES = ("paper", "released_code")
LLAMAS = ("llama_legacy", "llama_first")
relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


def config_of(mode: str, sequence_length: int, tokens_per_image: int) -> PackConfig:
    return PackConfig.model_validate(
        {
            "tokenizer": "made",
            "sequence_length": sequence_length,
            "tokens_per_image": tokens_per_image,
            "max_images_per_document": 6,
            "semantics": mode,
            "micro_batch": 8 if mode == "released_code" else None,
        }
    )


def assert_same(value: dict[str, Any], mode: str, size: tuple[int, int], tokenizer: Any, auto: Any) -> reading.Reading:
    expected = reading.read(value, auto, *size, counts=mode == "released_code")
    sequence = encoded(value, config_of(mode, *size), tokenizer)
    assert sequence.ids == expected.ids
    assert labels_of(sequence) == expected.labels
    assert list(sequence.images) == expected.images
    assert sequence.tokens == expected.length
    return expected


def seen_in(value: dict[str, Any], size: tuple[int, int], auto: Any) -> list[str]:
    """Which of the hard cases a sample is."""
    whole = reading.read(value, auto, 10**9, size[1])
    shown = reading.read(value, auto, *size)
    expanded = len(shown.ids) + shown.ids.count(reading.IMAGE_ID) * (size[1] - 1)
    cases = {
        "whole": shown.length == whole.length,
        "cut before expansion": len(whole.ids) > size[0],
        "cut after expansion": len(whole.ids) <= size[0] < whole.length,
        "image cut in the middle": expanded > shown.length,
        "image at the very end": shown.ids[-1] == reading.IMAGE_ID,
        "more than six images": len(value.get("image_info", ())) > 6,
        "special tokens in text": whole.ids.count(auto.eos_token_id) > 1,
        "no image": reading.IMAGE_ID not in whole.ids,
    }
    return [name for name, holds in cases.items() if holds]


def check_all(samples: st.SearchStrategy[dict[str, Any]], count: int, kinds: Any, made: Made) -> Counter[str]:
    """Compare `count` generated samples, at limits from too short to too long for each; how many were what."""
    tokenizers = {kind: made(kind) for kind in kinds}
    autos = {kind: AutoTokenizer.from_pretrained(tokenizer.name) for kind, tokenizer in tokenizers.items()}
    seen: Counter[str] = Counter()

    @settings(relaxed, max_examples=count)
    @given(samples, st.integers(0, 120), st.sampled_from([1, 2, 7, 40]), st.sampled_from(MODES), st.sampled_from(kinds))
    def check(value: dict[str, Any], percent: int, tokens_per_image: int, mode: str, kind: str) -> None:
        whole = reading.read(value, autos[kind], 10**9, tokens_per_image)
        size = (max(tokens_per_image + 2, whole.length * percent // 100), tokens_per_image)
        assert_same(value, mode, size, tokenizers[kind], autos[kind])
        seen.update(seen_in(value, size, autos[kind]))

    check()
    return seen


def test_500_documents(made: Made) -> None:
    seen = check_all(documents(), 500, (*LLAMAS, "byte_level"), made)
    for case in ("whole", "cut before expansion", "cut after expansion", "image cut in the middle", "no image"):
        assert seen[case] >= 10, (case, seen)
    assert seen["more than six images"] and seen["special tokens in text"] and seen["image at the very end"], seen


def test_pairs(made: Made) -> None:
    seen = check_all(pairs(), 150, (*LLAMAS, "byte_level"), made)
    assert seen["whole"] and seen["cut after expansion"] and seen["special tokens in text"], seen


def test_conversations(made: Made) -> None:
    seen = check_all(conversations(empty=True), 200, LLAMAS, made)
    assert seen["whole"] and seen["cut after expansion"] and seen["image cut in the middle"] and seen["no image"], seen


@pytest.mark.parametrize("mode", MODES)
def test_a_document_by_hand(made: Made, mode: str) -> None:
    """Spelled out, so that a mistake that reading and encoder share would still show."""
    tokenizer = made("llama_legacy")
    infos = [
        {"matched_text_index": 1, "image_index": 2, "similarity": 0.1},
        {"matched_text_index": 1, "image_index": 5, "similarity": 0.9},
        {"matched_text_index": 2, "image_index": 0, "similarity": 0.5},
    ]
    value = document_json(["the boat", "red <image> sea", "hello"], infos)
    assert value["texts"] == ["the boat", None, None, "red <image> sea", None, "hello"]
    config = config_of(mode, 4096, 10).model_copy(update={"max_images_per_document": 2})
    sequence = encoded(value, config, tokenizer)
    chunks = [tokenizer.encode([text])[0].ids for text in ("the boat", "red <IMAGE> sea", "hello")]
    assert sequence.ids == [1, *chunks[0], -200, *chunks[1], -200, *chunks[2], 2]
    assert sequence.images == (0, 2) and sequence.left_out == 1
    assert labels_of(sequence) == [-100 if token == -200 else token for token in sequence.ids]
    assert sequence.tokens == len(sequence.ids) + 2 * 9
