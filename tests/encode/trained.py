"""Which text a sequence trains, read back from its labels by decoding."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from tests.encode.generated import labels_of
from vila_data.encode.sequence import IGNORED, IMAGE_ID, TokenSequence
from vila_data.encode.templates import IMAGE
from vila_data.encode.tokenizer import TextTokenizer


def parts(sequence: TokenSequence, tokenizer: TextTokenizer) -> tuple[list[str], list[str]]:
    """Texts of the trained spans, joined over images, and of what lies between them."""
    labelled = list(zip(sequence.ids, labels_of(sequence), strict=True))
    first = next((place for place, (_, label) in enumerate(labelled) if label != IGNORED), len(labelled))
    trained: list[list[int]] = []
    between: list[list[int]] = [[token for token, _ in labelled[:first]]]
    for is_trained, group in groupby(labelled[first:], key=lambda pair: pair[1] != IGNORED):
        ids = [token for token, _ in group]
        inside = not is_trained and ids.count(IMAGE_ID) == len(ids)
        if inside or (is_trained and trained and trained[-1][-1] == IMAGE_ID):
            trained[-1] += ids
        else:
            (trained if is_trained else between).append(ids)
    return [decode(ids, tokenizer) for ids in trained], [decode(ids, tokenizer) for ids in between]


def decode(ids: list[int], tokenizer: TextTokenizer) -> str:
    """Text, with a mark for each image; each stretch between images decoded alone, as it was tokenised."""
    stretches: list[list[int]] = [[]]
    for token in ids:
        if token == IMAGE_ID:
            stretches.append([])
        else:
            stretches[-1].append(token)
    return IMAGE.join(tokenizer.decode(stretch) for stretch in stretches)


def assert_answers_alone_are_trained(
    value: dict[str, Any], sequence: TokenSequence, tokenizer: TextTokenizer, end: str | None = None
) -> None:
    """Every answer with its end is trained, and nothing of the questions."""
    answers = [turn["value"] + (end or tokenizer.eos) for turn in value["conversations"] if turn["from"] == "gpt"]
    questions = [turn["value"] for turn in value["conversations"] if turn["from"] == "human"]
    found, between = parts(sequence, tokenizer)
    assert [bare(text) for text in found] == [bare(text) for text in answers]
    assert len(between) - len(questions) in (0, 1), "at most what the template writes at the very end"
    assert all(bare(question) in bare(text) for question, text in zip(questions, between, strict=False))
    for text, answer in zip(found, answers, strict=True):
        if not answer.startswith((" ", "\t", "\u00a0")) and IMAGE not in answer and "▁" not in answer:
            assert text.lstrip(" ").removesuffix(end or tokenizer.eos).rstrip(" ") + (end or tokenizer.eos) == (
                answer.removesuffix(end or tokenizer.eos).rstrip(" ") + (end or tokenizer.eos)
            )


def bare(text: str) -> str:
    """Without spaces, of which a decoder may take or add one, and marks, which belong to no side where they meet."""
    return text.replace(IMAGE, "").replace(" ", "").replace("▁", "")
