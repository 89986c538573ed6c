"""Does a tiny model learn to answer from the sample? Align, pretrain, instruct; then held-out questions are asked.

    python benchmarks/learning.py --json benchmarks/results/learning.json

The reference trainer (examples/train_vila.py) goes through VILA's stages on the sample's runs. The tower is the sample's own
CLIP, frozen as VILA freezes it; the language model is a tiny Llama that starts from random weights, so rates are higher and
epochs more than VILA's, packs are filled (pack.semantics) and the template is llama_2, which has no long system prompt. The last
stage is trained twice from the same weights, on sft_blended and on sft_visual_only, for as many passes over the visual rows.
Questions are drawn by the sample's own questions.py and lessons.py: pictures that neither the sample nor the training of its
CLIP has seen, tasks that the sample does not have. `chosen`: the true answer is the likeliest of up to four; wrong ones are true
of a scene that differs in one respect, or of another task of the kind. `word_for_word`: the greedy answer is the true one.
Beside the trained models: the untrained one; and each question with the next one's picture, which tells what is learnt from
pictures and what from the words of questions. CPU, float32, no network.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

REPO = Path(__file__).resolve().parents[1]
SAMPLE = REPO / "shards" / "sample"
sys.path[:0] = [str(REPO / "examples"), str(SAMPLE)]

import torch
from learning_tower import SampleTower
from scenes import Scene
from torch import Tensor
from train_vila import Options, Trainer
from transformers import LlamaConfig, LlamaForCausalLM
from vila_answer import Prompt, answers, likelihoods, prompt_ids
from vila_model import Vila

import vila_data as vd
from vila_data.core.cpus import cpu_count
from vila_data.encode.config import PackConfig
from vila_data.encode.tokenizer import load_tokenizer

SEED = 17
SETTINGS = ("pack.tokens_per_image=16", "pack.sequence_length=512", "pack.semantics=improved", "pack.template=llama_2")
PICTURES, LESSONS, WRONG = 400, 300, 3
PACKS_A_STEP = 4


@dataclass(frozen=True)
class Plan:
    """One stage: its recipe, epochs, and peak rate."""

    stage: str
    recipe: str
    epochs: int
    rate: float


BEFORE = (Plan("align", "vila_align", 2, 1e-3), Plan("pretrain", "vila_pretrain", 24, 2e-3))
LAST = (Plan("sft", "sft_blended", 24, 2e-3), Plan("sft", "sft_visual_only", 24, 2e-3))


@dataclass(frozen=True)
class Question:
    """A prompt, its true answer, answers that are wrong, and the kind of the question."""

    prompt: Prompt
    answer: str
    wrong: tuple[str, ...]
    kind: str


def tiny_model(options: Options, vocabulary_size: int) -> Vila:
    """The sample's CLIP under a Llama of about 600,000 weights."""
    config = LlamaConfig(
        vocab_size=vocabulary_size, hidden_size=96, intermediate_size=256, num_hidden_layers=3, num_attention_heads=3,
        max_position_embeddings=1024,
    )  # fmt: skip
    config._attn_implementation = "sdpa"
    return Vila(SampleTower(), LlamaForCausalLM(config), "mlp2x_gelu")


def make_runs(folder: Path) -> Path:
    """Run the recipes on the sample; returns the stand-ins that they ran on."""
    import rebase
    import serve

    with serve.serving() as base_url:
        stand_ins = rebase.rebase_sample(folder, base_url)
        for plan in (*BEFORE, *LAST):
            recipe = vd.load_recipe(REPO / "recipes" / f"{plan.recipe}.yaml", stand_ins, SETTINGS)
            vd.run(recipe, folder / plan.recipe, runner="local")
    return stand_ins


def train(plan: Plan, folder: Path, stand_ins: Path, init: str | None) -> tuple[Vila, dict[str, Any]]:
    """Train a stage from the last one's checkpoint; the model, and what its training was like."""
    options = Options(
        recipe=str(REPO / "recipes" / f"{plan.recipe}.yaml"), on=str(stand_ins), set=SETTINGS, stage=plan.stage,
        run_dir=str(folder / plan.recipe), init=folder / "checkpoints" / init if init else None, fit="resize",
        batch_size=PACKS_A_STEP, epochs=plan.epochs, learning_rate=plan.rate, num_workers=0, seed=SEED,
        checkpoints=folder / "checkpoints" / plan.recipe, save_every=1_000_000,
    )  # fmt: skip
    began = time.perf_counter()
    trainer = Trainer(options, tiny_model)
    by_epoch: dict[int, list[tuple[float, int]]] = {}
    for step in trainer.steps():
        by_epoch.setdefault(step.epoch, []).append((step.loss * step.trained, step.trained))
    trainer.close()
    losses = [sum(loss for loss, _ in found) / sum(tokens for _, tokens in found) for found in by_epoch.values()]
    print(f"{plan.recipe}: loss {losses[0]:.3f} -> {losses[-1]:.3f}, {time.perf_counter() - began:.0f} s", flush=True)
    told = {
        "stage": plan.stage, "epochs": plan.epochs, "steps": trainer.progress.steps, "peak_rate": plan.rate,
        "loss_first_epoch": round(losses[0], 4), "loss_last_epoch": round(losses[-1], 4),
        "seconds": round(time.perf_counter() - began, 1),
    }  # fmt: skip
    return trainer.model, told


def altered(scene: Scene) -> list[Scene]:
    """Scenes that differ from this one in one respect."""
    import scenes

    grounds = [(one.ground, one.field, one.sky) for one in (scenes.random_scene(Random(seed)) for seed in range(40))]
    return [
        *(replace(scene, colour=colour) for colour in scenes.COLOURS),
        *(replace(scene, thing=thing) for thing in scenes.THINGS),
        *(replace(scene, count=count, place="middle") for count in range(1, 6)),
        *(replace(scene, place=place) for place in scenes.PLACES if scene.count == 1),
        replace(scene, large=not scene.large),
        *(replace(scene, ground=ground, field=field, sky=sky) for ground, field, sky in grounds),
    ]


def visual_questions(pack: PackConfig) -> list[Question]:
    """One question each about pictures that neither the sample nor its CLIP's training has.

    A wrong answer is the true one of the same question about a scene that differs in one respect.
    """
    import questions
    import train_clip
    from plan import sample_scenes

    tokenizer = load_tokenizer(pack.tokenizer)
    pixels, scenes = train_clip.draw_set(PICTURES, "held-out", sample_scenes())
    rng = Random(f"{SEED} held-out questions")
    closed = [kind for kind in questions.ONE_PICTURE if kind is not questions._describe]
    found = []
    for number, (picture, scene) in enumerate(zip(pixels, scenes, strict=True)):
        for kind in rng.sample(closed, len(closed)):
            exchange = kind(scene, Random(number))
            others = [kind(other, Random(number)) for other in altered(scene)]
            wrong = sorted({one[1] for one in others if exchange and one and one[0] == exchange[0]})
            wrong = [answer for answer in wrong if exchange and answer != exchange[1]]
            if exchange and wrong:
                break
        question, answer = exchange
        prompt = Prompt(
            prompt_ids(f"<image>\n{question}", pack, tokenizer), torch.from_numpy(picture).permute(2, 0, 1)[None]
        )
        chosen = tuple(rng.sample(wrong, min(WRONG, len(wrong))))
        found.append(Question(prompt, answer, chosen, kind.__name__.strip("_")))
    return found


def text_questions(pack: PackConfig) -> list[Question]:
    """Short tasks without a picture that the sample does not have; wrong answers are those of others of the kind."""
    import lessons
    from conversations import chat_rows, instruction_lessons, talk_rows, vflan_rows

    tokenizer = load_tokenizer(pack.tokenizer)
    rows = json.dumps([chat_rows(), talk_rows(), vflan_rows()])
    seen = {one.prompt for one in instruction_lessons()}
    rng = Random(f"{SEED} held-out lessons")
    drawn = lessons.lessons(4 * LESSONS, rng, long_share=0.0)
    found = []
    for one in drawn:
        others = sorted({two.completion for two in drawn if two.task == one.task} - {one.completion})
        new = one.prompt not in seen and json.dumps(one.prompt)[1:-1] not in rows
        if new and len(others) >= WRONG and len(found) < LESSONS:
            prompt = Prompt(prompt_ids(one.prompt, pack, tokenizer, system=""), torch.zeros(0, 3, 64, 64))
            found.append(Question(prompt, one.completion, tuple(rng.sample(others, WRONG)), one.task))
    return found


def right(model: Vila, asked: Sequence[Question], pack: PackConfig) -> dict[str, Any]:
    """Shares of questions whose true answer is the likeliest of the given ones, and is said word for word."""
    tokenizer = load_tokenizer(pack.tokenizer)
    offered = [(one.prompt, answer) for one in asked for answer in (one.answer, *one.wrong)]
    ids = [[*tokenizer.encode_ids([answer])[0], tokenizer.eos_id] for _, answer in offered]
    values = iter(likelihoods(model, [prompt for prompt, _ in offered], ids))
    scores = [[next(values) for _ in (one.answer, *one.wrong)] for one in asked]
    chosen = [score[0] > max(score[1:]) for score in scores]
    said = answers(model, [one.prompt for one in asked], tokenizer, most_tokens=24)
    exact = [text == one.answer for text, one in zip(said, asked, strict=True)]
    kinds = sorted({one.kind for one in asked})
    by_kind = {kind: [ok for ok, one in zip(chosen, asked, strict=True) if one.kind == kind] for kind in kinds}
    return {
        "chosen": round(sum(chosen) / len(asked), 4),
        "word_for_word": round(sum(exact) / len(asked), 4),
        "chosen_of_asked": {kind: [sum(found), len(found)] for kind, found in by_kind.items()},
    }


def chance(asked: Sequence[Question]) -> float:
    """What choosing blindly would get."""
    return round(sum(1 / (1 + len(one.wrong)) for one in asked) / len(asked), 4)


def with_other_pictures(asked: Sequence[Question]) -> list[Question]:
    """The same questions, each about the next one's picture."""
    pixels: list[Tensor] = [one.prompt.pixels for one in asked]
    return [
        replace(one, prompt=Prompt(one.prompt.ids, other))
        for one, other in zip(asked, [*pixels[1:], pixels[0]], strict=True)
    ]


def measure(folder: Path) -> dict[str, Any]:
    """The whole chain, and its figures."""
    began = time.perf_counter()
    stand_ins = make_runs(folder)
    packs = {
        plan.recipe: vd.load_recipe(REPO / "recipes" / f"{plan.recipe}.yaml", stand_ins, SETTINGS).pack for plan in LAST
    }
    pack = next(iter(packs.values()))
    visual, text = visual_questions(pack), text_questions(pack)
    other = with_other_pictures(visual)

    def ask(model: Vila) -> dict[str, Any]:
        return {
            "visual": right(model, visual, pack), "visual_with_other_pictures": right(model, other, pack),
            "text": right(model, text, pack),
        }  # fmt: skip

    torch.manual_seed(SEED)
    untrained = tiny_model(None, load_tokenizer(pack.tokenizer).vocabulary_size)
    found: dict[str, Any] = {
        "questions": {"visual": len(visual), "text": len(text)},
        "chance": {"visual": chance(visual), "text": chance(text)},
        "untrained": ask(untrained),
    }
    found["weights"] = sum(weight.numel() for weight in untrained.parameters())
    before: str | None = None
    for plan in BEFORE:
        _, found[plan.recipe] = train(plan, folder, stand_ins, before)
        before = plan.recipe
    for plan in LAST:
        model, told = train(plan, folder, stand_ins, before)
        found[plan.recipe] = told | ask(model)
        print(
            json.dumps(
                {kind: figures["chosen"] for kind, figures in found[plan.recipe].items() if isinstance(figures, dict)}
            ),
            flush=True,
        )
    found["seconds"] = round(time.perf_counter() - began, 1)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.use_deterministic_algorithms(True)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder))
    found["conditions"] = {
        "cpus": cpu_count(), "threads": torch.get_num_threads(), "load_average": os.getloadavg()[0],
        "torch": torch.__version__, "python": platform.python_version(),
    }  # fmt: skip
    text = json.dumps(found, indent=2)
    print(text)
    if args.json:
        args.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
