"""Ask a trained model: questions to answers, greedily, written as the recipe's template writes conversations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from vila_model import Vila

from vila_data.encode.config import PackConfig
from vila_data.encode.samples import encode_samples
from vila_data.encode.sequence import IMAGE_ID
from vila_data.encode.templates import Conversation
from vila_data.encode.tokenizer import TextTokenizer


@dataclass(frozen=True)
class Prompt:
    """ids with IMAGE_ID for an image, up to where the answer begins; pixels uint8 [k, 3, H, W] as the model reads them."""

    ids: tuple[int, ...]
    pixels: Tensor


def prompt_ids(question: str, pack: PackConfig, tokenizer: TextTokenizer, system: str | None = None) -> tuple[int, ...]:
    """A question, "<image>" where it has an image, as the first turn of a conversation of the recipe."""
    conversation = Conversation((("human", question), ("gpt", "A")), system, question.count("<image>"))
    (asked,) = encode_samples([conversation], pack, tokenizer)
    return tuple(asked.ids[: asked.trained[0][0]])


@torch.inference_mode()
def answers(
    model: Vila, prompts: Sequence[Prompt], tokenizer: TextTokenizer, *, most_tokens: int = 64, together: int = 32
) -> list[str]:
    """Each prompt's answer: the likeliest token after the other, until the end token. The model attends with sdpa."""
    found: list[str] = []
    was = model.training
    model.eval()
    for first in range(0, len(prompts), together):
        rows = [embedded(model, prompt) for prompt in prompts[first : first + together]]
        embeddings = pad_sequence([row.flip(0) for row in rows], batch_first=True).flip(1)  # padding on the left
        seen = pad_sequence([row.new_ones(len(row), dtype=torch.long) for row in rows], batch_first=True).flip(1)
        said = model.llm.generate(
            inputs_embeds=embeddings, attention_mask=seen, max_new_tokens=most_tokens, do_sample=False,
            eos_token_id=tokenizer.eos_id, pad_token_id=tokenizer.eos_id,
        )  # fmt: skip
        for ids in said.tolist():
            end = ids.index(tokenizer.eos_id) if tokenizer.eos_id in ids else len(ids)
            found.append(tokenizer.decode(ids[:end]).strip())
    model.train(was)
    return found


@torch.inference_mode()
def likelihoods(
    model: Vila, prompts: Sequence[Prompt], said: Sequence[Sequence[int]], *, together: int = 64
) -> list[float]:
    """Log-likelihood of the ids `said` after each prompt, to choose between given answers. The model attends with sdpa."""
    found: list[float] = []
    was = model.training
    model.eval()
    for first in range(0, len(prompts), together):
        asked, answered = prompts[first : first + together], said[first : first + together]
        rows = [
            embedded(model, Prompt((*prompt.ids, *ids), prompt.pixels))
            for prompt, ids in zip(asked, answered, strict=True)
        ]
        states = model.llm.model(inputs_embeds=pad_sequence(rows, batch_first=True), use_cache=False).last_hidden_state
        for state, row, ids in zip(states, rows, answered, strict=True):
            logits = model.llm.lm_head(state[len(row) - len(ids) - 1 : len(row) - 1]).float()
            taken = logits.log_softmax(-1).gather(1, torch.tensor([list(ids)], device=logits.device).T)
            found.append(taken.sum().item())
    model.train(was)
    return found


def embedded(model: Vila, prompt: Prompt) -> Tensor:
    """embeddings_LD of a prompt, each image as all its tokens."""
    device = model.llm.model.embed_tokens.weight.device
    ids = torch.tensor(prompt.ids, device=device)
    words_LD = model.llm.model.embed_tokens(ids.clamp(min=0))
    marks = [place for place, token in enumerate(prompt.ids) if token == IMAGE_ID]
    if not marks:
        return words_LD
    mean, std = (torch.tensor(one, device=device).view(3, 1, 1) for one in (model.tower.mean, model.tower.std))
    images_NTD = model.image_tokens((prompt.pixels.to(device).float() / 255 - mean) / std)
    parts, after = [], 0
    for mark, image_TD in zip(marks, images_NTD, strict=True):
        parts += [words_LD[after:mark], image_TD]
        after = mark + 1
    return torch.cat([*parts, words_LD[after:]])
