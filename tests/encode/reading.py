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


def read(
    sample: dict[str, Any], tokenizer: Any, sequence_length: int, tokens_per_image: int, *, counts: bool = True
) -> Reading:
    """The sequence of a sample of any view. counts: answers found by counting tokens, as the released code does."""
    if "conversations" in sample:
        whole = read_conversation({**sample, "limit": sequence_length}, tokenizer, counts=counts)
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
    ids = [token for token in ids if token != tokenizer.unk_token_id]  # it pads with <unk>, and does not see it
    labels = [IGNORED if token == IMAGE_ID else token for token in ids]
    return Reading(ids, labels, images[: ids.count(IMAGE_ID)], 0)


def read_conversation(sample: dict[str, Any], tokenizer: Any, *, counts: bool) -> Reading:
    """`{system} USER: {q} ASSISTANT: {a}</s>USER: …`, labeled by counting tokens as v1.0 does, or by characters."""
    system = SYSTEM if sample["system"] is None else sample["system"]
    turns = [turn["value"] for turn in sample["conversations"]]
    if sample["images"]:
        turns = [marked_once(turn) if MARK in turn else turn for turn in turns]
    if sample["conversations"][0]["from"] == "gpt":
        turns = turns[1:]
    eos = tokenizer.eos_token
    text = system + " "
    answers = []
    for number, turn in enumerate(turns):
        name = "USER" if number % 2 == 0 else "ASSISTANT"
        end = " " if number % 2 == 0 else eos
        start = len(text) + len(name) + 1
        text += f"{name}: {turn}{end}" if turn else f"{name}:"
        if number % 2 == 1 and turn:
            answers.append((start, len(text)))  # the space before an answer is the model's to say
    has_image = bool(sample["images"])
    ids = tokens(text, tokenizer, has_image)
    labels = list(ids)
    labels[0] = IGNORED
    seen = 1
    for number, part in enumerate(text.split(eos)):
        halves = part.split(" ASSISTANT: ")
        if part == "" or len(halves) != 2:
            break
        whole = len(tokens(part, tokenizer, has_image))
        question = len(tokens(halves[0] + " ASSISTANT: ", tokenizer, has_image)) - 2
        if number > 0:
            whole, question = whole - 1, question - 1
        labels[seen : seen + question] = [IGNORED] * len(labels[seen : seen + question])
        seen += whole
    labels[seen:] = [IGNORED] * len(labels[seen:])
    if not counts:
        labels = [IGNORED, *by_characters(text, answers, tokenizer, has_image)]
        seen = len([token for token in ids if token != tokenizer.unk_token_id])
    known = [token for token in ids if token != tokenizer.unk_token_id]
    if seen < sample.get("limit", 4096) and seen != len(known):
        labels = [IGNORED] * len(labels)
    labels = [IGNORED if token == IMAGE_ID else label for token, label in zip(ids, labels, strict=True)]
    kept = [place for place, token in enumerate(ids) if token != tokenizer.unk_token_id]
    ids, labels = [ids[place] for place in kept], [labels[place] for place in kept]
    return Reading(ids, labels, list(range(ids.count(IMAGE_ID))), 0)


def by_characters(text: str, answers: list[tuple[int, int]], tokenizer: Any, has_image: bool) -> list[int]:
    labels = []
    place = 0
    for number, chunk in enumerate(text.split(MARK) if has_image else [text]):
        if number > 0:
            labels.append(IGNORED)
            place += len(MARK)
        encoded = tokenizer(chunk, add_special_tokens=False, return_offsets_mapping=True)
        for token, (first, last) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
            inside = any(place + first < stop and start < place + max(last, first + 1) for start, stop in answers)
            labels.append(token if inside else IGNORED)
        place += len(chunk)
    return labels


def marked_once(turn: str) -> str:
    rest = turn.replace(MARK, "").strip()
    return (MARK + "\n" + rest).strip()


def tokens(text: str, tokenizer: Any, has_image: bool) -> list[int]:
    ids = [tokenizer.bos_token_id]
    for number, chunk in enumerate(text.split(MARK) if has_image else [text]):
        if number > 0:
            ids.append(IMAGE_ID)
        ids += tokenizer(chunk, add_special_tokens=False)["input_ids"]
    return ids


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
