"""A plain reading of how VILA makes token sequences, written from its description alone; slow on purpose.

It shares no code with `vila_data.encode`: it takes a sample's JSON and a transformers tokenizer and gives what a
training step would see, as the published loader of tag v1.0 does. Tests hold the encoder to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

IMAGE_ID = -200
IGNORED = -100
MARK = "<image>"
FIRST_IMAGES = 6
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


@dataclass
class Reading:
    """ids with -200 once an image; labels with -100; the sample's number of each image; expanded length."""

    ids: list[int]
    labels: list[int]
    images: list[int]
    length: int


def read(sample: dict[str, Any], tokenizer: Any, sequence_length: int, tokens_per_image: int) -> Reading:
    """The sequence of a sample of any view."""
    if "conversations" in sample:
        whole = read_conversation(sample, tokenizer)
    elif "caption" in sample:
        whole = read_pair(sample, tokenizer)
    else:
        whole = read_document(sample, tokenizer)
    return cut(whole, sequence_length, tokens_per_image)


def read_document(sample: dict[str, Any], tokenizer: Any) -> Reading:
    sentences = [text for text in sample["texts"] if text is not None]
    infos = list(enumerate(sample["image_info"]))
    infos.sort(key=lambda numbered: numbered[1]["image_index"])
    kept = infos[:FIRST_IMAGES]
    marked = []
    for k, sentence in enumerate(sentences):
        here = [number for number, info in kept if info["matched_text_index"] == k]
        marked.append(MARK * len(here) + sentence.replace(MARK, "<IMAGE>"))
    text = " ".join(marked)
    text = text.replace("<image> ", "<image>")
    text = text.replace(" <image>", "<image>")
    text = text + tokenizer.eos_token
    kept.sort(key=lambda numbered: numbered[1]["matched_text_index"])  # stable: the published order stays
    return all_trained(text, [number for number, _ in kept], tokenizer)


def read_pair(sample: dict[str, Any], tokenizer: Any) -> Reading:
    text = MARK + sample["caption"].replace(MARK, "<IMAGE>") + tokenizer.eos_token
    return all_trained(text, [0], tokenizer)


def all_trained(text: str, images: list[int], tokenizer: Any) -> Reading:
    ids = [tokenizer.bos_token_id]
    for number, chunk in enumerate(text.split(MARK)):
        if number > 0:
            ids.append(IMAGE_ID)
        ids += tokenizer(chunk, add_special_tokens=False)["input_ids"]
    while ids[-1] == IMAGE_ID:
        ids.pop()
    labels = [IGNORED if token == IMAGE_ID else token for token in ids]
    return Reading(ids, labels, images[: ids.count(IMAGE_ID)], 0)


def read_conversation(sample: dict[str, Any], tokenizer: Any) -> Reading:
    """`{system} USER: {q} ASSISTANT: {a}</s>USER: …`; trained is what touches an answer or its end token."""
    system = SYSTEM if sample["system"] is None else sample["system"]
    text = system + " "
    answers = []
    for turn in sample["conversations"]:
        if turn["from"] == "human":
            text += "USER: " + turn["value"] + " "
        else:
            text += "ASSISTANT: "
            start = len(text)
            text += turn["value"] + tokenizer.eos_token
            answers.append((start, len(text)))
    ids, labels = [tokenizer.bos_token_id], [IGNORED]
    place = 0
    for number, chunk in enumerate(text.split(MARK)):
        if number > 0:
            ids.append(IMAGE_ID)
            labels.append(IGNORED)
            place += len(MARK)
        encoded = tokenizer(chunk, add_special_tokens=False, return_offsets_mapping=True)
        for token, (first, last) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
            ids.append(token)
            labels.append(token if touches(place + first, place + last, answers) else IGNORED)
        place += len(chunk)
    return Reading(ids, labels, list(range(ids.count(IMAGE_ID))), 0)


def touches(first: int, last: int, spans: list[tuple[int, int]]) -> bool:
    """Whether a token's characters have one in common with a span; a token of no characters stands before `first`."""
    last = max(last, first + 1)
    return any(first < stop and start < last for start, stop in spans)


def cut(whole: Reading, sequence_length: int, tokens_per_image: int) -> Reading:
    """Cut at the limit before and after images are expanded; an image of which one token is left is there."""
    ids, labels = whole.ids[:sequence_length], whole.labels[:sequence_length]
    places = []
    for place, token in enumerate(ids):
        places += [place] * (tokens_per_image if token == IMAGE_ID else 1)
    places = places[:sequence_length]
    seen = max(places) + 1
    ids, labels = ids[:seen], labels[:seen]
    return Reading(ids, labels, whole.images[: ids.count(IMAGE_ID)], len(places))
