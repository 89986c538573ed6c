"""Real documents and conversations as token sequences, with real tokenizers."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from tests.encode import reading
from tests.encode.generated import encoded, labels_of, sample_of
from tests.encode.made_tokenizers import CHATML, TRIMMING
from tests.encode.trained import assert_answers_alone_are_trained
from tests.realdata import mistral, real_samples
from vila_data.core.errors import UsageError
from vila_data.encode.config import PackConfig
from vila_data.encode.samples import encode_samples
from vila_data.encode.sequence import OK
from vila_data.encode.tokenizer import TextTokenizer, load_tokenizer

pytestmark = pytest.mark.realdata


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    if mistral.model_file() is None:
        pytest.fail(f"needs: {mistral.NEEDS}")
    return mistral.write_folder(tmp_path_factory.mktemp("tokenizer") / "mistral")


@pytest.fixture(scope="module")
def tokenizer(folder: str) -> TextTokenizer:
    return load_tokenizer(folder)


def config_of(semantics: str, length: int = 4096, tokens_per_image: int = 576, **others: Any) -> PackConfig:
    values = {"tokenizer": "mistral", "sequence_length": length, "tokens_per_image": tokens_per_image, **others}
    if semantics == "released_code":
        values["micro_batch"] = 8
    if semantics != "improved":
        values["max_images_per_document"] = 6
    return PackConfig.model_validate({**values, "semantics": semantics})


class Reference:
    """SentencePiece's own ids as VILA's slow tokenizer gives them, with offsets: what the reading asks of a tokenizer."""

    bos_token_id, eos_token_id, unk_token_id, eos_token = 1, 2, 0, "</s>"

    def __init__(self, tokenizer: TextTokenizer) -> None:
        spm = pytest.importorskip("sentencepiece")
        self._model = spm.SentencePieceProcessor(str(Path(tokenizer.name) / "tokenizer.model"))

    def __call__(self, text: str, **_: bool) -> dict[str, Any]:
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        spans: list[tuple[int, int]] = []
        whole = (0, 0)
        at = 0
        for number, section in enumerate(re.split("(<unk>|<s>|</s>)", text)):
            if number % 2:
                ids.append(("<unk>", "<s>", "</s>").index(section))
                offsets.append((at, at + len(section)))
            elif section:
                lead = "" if at == 0 else "\n"  # no space in front behind a special token: a line break joins nothing
                found = self._model.encode(lead + section, return_type="proto").pieces
                found = found[2:] if lead else found
                ids += [piece.id for piece in found]
                data = (lead + section).encode()
                end = 0
                for piece in reversed(found):  # a character's bytes are pieces without a surface, but for the last
                    whole = (piece.begin, piece.end) if piece.end > piece.begin or not end else whole
                    end = piece.end
                    first, last = (len(data[:edge].decode(errors="ignore")) - len(lead) for edge in whole)
                    spans.append((at + first, at + last))
                offsets += spans[::-1]
                spans = []
            at += len(section)
        return {"input_ids": ids, "offset_mapping": offsets}


def assert_as_read(samples: list[dict[str, Any]], config: PackConfig, tokenizer: TextTokenizer) -> tuple[int, int]:
    """How many were compared, and how many of them were cut."""
    reference = Reference(tokenizer)
    cut = 0
    sequences = encode_samples([sample_of(value) for value in samples], config, tokenizer)
    for value, sequence in zip(samples, sequences, strict=True):
        counts = config.semantics == "released_code"
        size = (config.sequence_length, config.tokens_per_image)
        expected = reading.read(value, reference, *size, counts=counts)
        assert sequence.ids == expected.ids
        assert labels_of(sequence) == expected.labels
        assert list(sequence.images) == expected.images
        assert sequence.tokens == expected.length
        cut += sequence.cut > 0
    return len(samples), cut


MODES = pytest.mark.parametrize("semantics", ["paper", "released_code"])


@MODES
@pytest.mark.parametrize("size", [(4096, 576), (1024, 576), (300, 144), (64, 16)])
def test_documents_are_as_read(semantics: str, size: tuple[int, int], shared: Path, tokenizer: TextTokenizer) -> None:
    documents = [*real_samples.mmc4(shared), *real_samples.gimp_help()]
    count, cut = assert_as_read(documents, config_of(semantics, *size), tokenizer)
    assert count == 472 and cut > 10


@MODES
def test_pairs_are_as_read(semantics: str, shared: Path, tokenizer: TextTokenizer) -> None:
    assert assert_as_read(real_samples.captions(shared), config_of(semantics), tokenizer) == (2500, 0)


@MODES
def test_conversations_are_as_read(semantics: str, shared: Path, tokenizer: TextTokenizer) -> None:
    for name, samples in real_samples.all_conversations(shared):
        if name != "t0":
            assert_as_read(samples, config_of(semantics, 256, 144), tokenizer)
    assert_as_read(samples[:1000], config_of(semantics, 256, 144), tokenizer)


@pytest.mark.parametrize("template", ["vicuna_v1", "llama_2"])
def test_answers_alone_are_trained(template: str, shared: Path, tokenizer: TextTokenizer) -> None:
    config = config_of("improved", 100_000, template=template)
    counts = {}
    for name, samples in real_samples.all_conversations(shared):
        sequences = list(encode_samples([sample_of(value) for value in samples], config, tokenizer))
        for value, sequence in zip(samples, sequences, strict=True):
            assert sequence.fate == OK and sequence.cut == 0
            assert_answers_alone_are_trained(value, sequence, tokenizer)
        counts[name] = len(sequences)
    assert counts == {"llava": 90, "chats": 6, "sharegpt": 500, "alpaca_zh": 1000, "alpaca_en": 999, "t0": 8000}


@pytest.mark.parametrize(("template", "end"), [(CHATML, "<|im_end|>\n"), (TRIMMING, "<|eot|>")])
def test_chat_templates(template: str, end: str, shared: Path, folder: str, tmp_path: Path) -> None:
    auto = AutoTokenizer.from_pretrained(folder)
    marks = [mark for mark in ("<|im_start|>", "<|im_end|>", "<|start|>", "<|end|>", "<|eot|>") if mark in template]
    auto.add_special_tokens({"additional_special_tokens": marks})
    auto.chat_template = template
    auto.save_pretrained(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path))
    config = config_of("improved", 100_000, template="chat")
    for value in [*real_samples.llava(shared), *real_samples.chats(shared), *real_samples.sharegpt(shared)]:
        assert_answers_alone_are_trained(value, encoded(value, config, tokenizer), tokenizer, end)


def test_plain_is_the_image_and_its_caption(shared: Path, tokenizer: TextTokenizer) -> None:
    for value in real_samples.llava(shared):
        answer = value["conversations"][1]["value"]
        sequence = encoded(value, config_of("improved", template="plain"), tokenizer)
        assert sequence.ids == [1, -200, *tokenizer.encode([f"{answer}\n"])[0].ids]
        assert sequence.trained == [(2, len(sequence.ids))]


def test_the_tokenizer_of_a_clip(shared: Path, tmp_path: Path) -> None:
    """Lower case, no first token, padded and cut to 64 by its own file: nothing of that may show."""
    with pytest.raises(UsageError, match="has no end-of-sequence token"):
        load_tokenizer(str(shared / "liteclip"))
    shutil.copyfile(shared / "liteclip" / "tokenizer.json", tmp_path / "tokenizer.json")
    names = {"eos_token": "[SEP]", "unk_token": "[UNK]", "pad_token": "[PAD]"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **names}))
    tokenizer = load_tokenizer(str(tmp_path))
    long = "A boat is at sea. " * 40
    value = real_samples.talk("<image>\nWhat is this?", long, "Where?", "At sea.")
    sequence = encoded(value, config_of("improved"), tokenizer)
    trained = [tokenizer.decode(sequence.ids[first:last]) for first, last in sequence.trained]
    assert [text.replace(" ", "") for text in trained] == [
        text.lower().replace(" ", "") + "[SEP]" for text in (long, "At sea.")
    ]
    assert tokenizer.pad_id not in sequence.ids and sequence.ids.count(tokenizer.eos_id) == 2
