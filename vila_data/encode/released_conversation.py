"""Conversations as VILA v1.0 rewrites and labels them, token by token, including what that masks.

v1.0 writes a prompt, tokenizes it, and finds the answers by counting the tokens of each round and of its question,
tokenized once more by themselves. Where the counts do not add up it trains nothing of the conversation: an answer that
spells the end token, a question that spells ` ASSISTANT: `, an empty question. (llava/data/dataset.py: preprocess_v1,
preprocess_llama_2, preprocess_multimodal; docs/sources.md)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from vila_data.core.tables import IMAGE_ID
from vila_data.encode.config import PackConfig
from vila_data.encode.templates import IMAGE, LLAMA_2_SYSTEM, VICUNA_SYSTEM, Conversation, Turn
from vila_data.encode.tokenizer import TextTokenizer


@dataclass(frozen=True, slots=True)
class LabeledConversation:
    """A conversation's ids, IMAGE_ID for an image, and its trained (start, stop) spans; images: how many it has left."""

    ids: list[int]
    trained: list[tuple[int, int]]
    images: int


def as_released(conversation: Conversation, config: PackConfig) -> Conversation:
    """A conversation as v1.0 rewrites it.

    A turn that holds placeholders becomes one `<image>`, a line break, and the rest, stripped. `llama_2` has a system
    prompt of its own.
    """
    if config.template == "llama_2" and conversation.system is None:
        conversation = conversation._replace(system=LLAMA_2_SYSTEM)
    if not conversation.images or conversation.verbatim:
        return conversation
    turns = tuple((role, _rewritten(text)) for role, text in conversation.turns)
    return conversation._replace(turns=turns, images=sum(IMAGE in text for _, text in turns))


def _rewritten(text: str) -> str:
    return f"{IMAGE}\n{text.replace(IMAGE, '').strip()}".strip() if IMAGE in text else text


def count_conversations(
    conversations: Sequence[Conversation], config: PackConfig, tokenizer: TextTokenizer
) -> list[LabeledConversation]:
    """Conversations in template vicuna_v1 or llama_2, all their texts tokenized in one batch."""
    prompts = [_Prompt.of(conversation, config, tokenizer) for conversation in conversations]
    texts = sorted({chunk for prompt in prompts for text in prompt.texts() for chunk in prompt.chunks(text) if chunk})
    known = dict(zip(texts, tokenizer.encode_ids(texts), strict=True)) | {"": []}
    return [prompt.counted(known, config, tokenizer) for prompt in prompts]


@dataclass(frozen=True, slots=True)
class _Prompt:
    text: str
    separator: str
    rounds: tuple[str, ...]
    has_image: bool
    later_rounds_lose: int

    @staticmethod
    def of(conversation: Conversation, config: PackConfig, tokenizer: TextTokenizer) -> _Prompt:
        turns = conversation.turns[1:] if conversation.turns[0][0] == "gpt" else conversation.turns
        if config.template == "llama_2":
            text = _llama_2(turns, conversation.system or "", tokenizer.bos or "", tokenizer.eos)
            separator, lose = "[/INST] ", 0
        else:
            system = VICUNA_SYSTEM if conversation.system is None else conversation.system
            text = _vicuna(turns, system, tokenizer.eos)
            separator, lose = " ASSISTANT: ", 1
        return _Prompt(text, separator, tuple(text.split(tokenizer.eos)), conversation.images > 0, lose)

    def chunks(self, text: str) -> list[str]:
        return text.split(IMAGE) if self.has_image else [text]

    def _parts(self) -> Iterable[tuple[str, str]]:
        """(round, its question with the separator) up to the first round that is not one question and one answer."""
        for text in self.rounds:
            parts = text.split(self.separator)
            if text == "" or len(parts) != 2:
                return
            yield text, parts[0] + self.separator

    def texts(self) -> list[str]:
        return [self.text, *(text for pair in self._parts() for text in pair)]

    def counted(self, known: dict[str, list[int]], config: PackConfig, tokenizer: TextTokenizer) -> LabeledConversation:
        def ids_of(text: str) -> list[int]:
            ids = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
            for number, chunk in enumerate(self.chunks(text)):
                ids += [IMAGE_ID] * (number > 0) + known[chunk]
            return ids

        ids = ids_of(self.text)
        trained: list[tuple[int, int]] = []
        at = 1
        for number, (text, question) in enumerate(self._parts()):
            lost = self.later_rounds_lose if number else 0
            length, unlabeled = len(ids_of(text)) - lost, len(ids_of(question)) - 2 - lost
            trained.append((at + max(0, unlabeled), at + length))
            at += length
        whole = sum(token != tokenizer.unk_id for token in ids)  # v1.0 pads with <unk>, so it does not count one
        if at < config.sequence_length and at != whole:
            trained = []
        return LabeledConversation(ids, list(_without_images(ids, trained)), ids.count(IMAGE_ID))


def _without_images(ids: Sequence[int], trained: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    for start, stop in trained:
        places = [at for at in range(start, min(stop, len(ids))) if ids[at] == IMAGE_ID]
        edges = [start, *(edge for at in places for edge in (at, at + 1)), min(stop, len(ids))]
        yield from ((first, last) for first, last in zip(edges[::2], edges[1::2], strict=True) if first < last)


def _vicuna(turns: Sequence[Turn], system: str, eos: str) -> str:
    text = f"{system} "
    for number, (_, said) in enumerate(turns):
        name = ("USER", "ASSISTANT")[number % 2]
        text += f"{name}: {said}{(' ', eos)[number % 2]}" if said else f"{name}:"
    return text


def _llama_2(turns: Sequence[Turn], system: str, bos: str, eos: str) -> str:
    text = ""
    for number, (_, said) in enumerate(turns):
        if number == 0:
            said = f"<<SYS>>\n{system}\n<</SYS>>\n\n{said}"
        if said:
            text += f"{bos}[INST] {said} [/INST]" if number % 2 == 0 else f" {said} {eos}"
    return text.lstrip(bos)
