"""Train a VILA-style model on the packed batches of a run: a reference to grow from.

    python examples/train_vila.py --recipe R.yaml --run-dir RUN --stage align --model tiny --checkpoints ck/align
    torchrun --nproc-per-node 8 examples/train_vila.py … --fsdp --bf16 --attention flash

vila_model.py has the model, vila_attention.py packed attention, vila_stages.py VILA's policy of what is trained,
vila_checkpoint.py what is saved. Killed, it goes on with `--resume` as if nothing had been: on CPU in float32 the
losses are the same floats.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TextIO, get_args, get_origin, get_type_hints

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from vila_attention import Attention
from vila_checkpoint import Learned, Progress, load_weights, refuse_used, resume, save
from vila_model import IGNORED, Vila, build, model_config, targets
from vila_stages import STAGES, Stage, freeze, learning_rate, optimizer_of

import vila_data as vd
from vila_data.core.errors import VilaDataError
from vila_data.encode.tokenizer import load_tokenizer
from vila_data.loader.batch import PackedBatch

if TYPE_CHECKING:
    from vila_data.loader.loader import StreamLoader


@dataclass(frozen=True)
class Options:
    """What the command line says; every field is an option of the same name."""

    recipe: Annotated[str, "the recipe that the run was made by"]
    run_dir: Annotated[str, "the run's folder or URL"]  # torchrun takes --run and --log for its own
    stage: Annotated[Literal["align", "pretrain", "sft"], "what is trained, and how fast"]
    on: Annotated[str | None, "stand-ins, as of `vila-data run --on`"] = None
    set: Annotated[tuple[str, ...], "a setting KEY=VALUE, as of `vila-data run --set`"] = ()
    model: Annotated[str, "a preset (tiny, vila-1b-shape, vila-7b-shape), or a YAML or JSON file"] = "tiny"
    init: Annotated[Path | None, "checkpoints of the stage before"] = None
    batch_size: Annotated[int, "packs of a rank and micro-step"] = 1
    accumulate: Annotated[int, "micro-steps of an optimizer step"] = 1
    epochs: Annotated[int, "passes over the blend"] = 1
    learning_rate: Annotated[float | None, "its peak, in place of the stage's"] = None
    clip: Annotated[float, "largest norm of the gradient"] = 1.0
    attention: Annotated[
        Attention, "how samples of a pack are kept apart; to train, flex needs a GPU, flash a GPU and bf16"
    ] = "sdpa"
    bf16: Annotated[bool, "compute in bfloat16; weights stay float32"] = False
    fsdp: Annotated[bool, "shard weights, gradients and moments over the ranks"] = False
    recompute: Annotated[bool, "make activations again in the backward pass, to save memory"] = False
    train_tower: Annotated[bool, "train the vision tower too, as VILA never does: for one that starts random"] = False
    num_workers: Annotated[int, "the loader's processes"] = 2
    fit: Annotated[Literal["pad", "resize", "crop"], "how images become squares"] = "pad"
    seed: Annotated[int, "of random weights"] = 17
    checkpoints: Annotated[Path | None, "folder of checkpoints; none are written without it"] = None
    save_every: Annotated[int, "steps between two checkpoints"] = 500
    resume: Annotated[bool, "go on from the newest checkpoint"] = False
    stop_after: Annotated[int | None, "steps of this call; the schedule stays that of the whole training"] = None
    log_file: Annotated[Path | None, "lines of JSON, one a step; standard output without it"] = None


LEAST = {"batch_size": 1, "accumulate": 1, "epochs": 1, "clip": 0, "num_workers": 0, "save_every": 1, "stop_after": 1}
"""The least that an option may be."""


@dataclass(frozen=True)
class Step:
    """One optimizer step, over all ranks. loss: mean over trained tokens; waited: share of its time spent on data."""

    step: int
    epoch: int
    loss: float
    learning_rate: float
    tokens: int
    trained: int
    images: int
    packs: int
    faults: int
    waited: float
    seconds: float


@dataclass(frozen=True)
class World:
    """This process among all: rank, number, device."""

    rank: int
    size: int
    device: torch.device

    def total(self, *numbers: float) -> list[float]:
        """The sums of some numbers over all ranks, in float64."""
        if self.size == 1:
            return list(numbers)
        sums = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        dist.all_reduce(sums)
        found: list[float] = sums.tolist()
        return found


def join(fsdp: bool) -> World:
    """Take one's place among the ranks that torchrun started; alone without it."""
    launched = "RANK" in os.environ
    gpu = torch.cuda.is_available()
    if launched or fsdp:
        alone = {} if launched else {"store": dist.HashStore(), "rank": 0, "world_size": 1}
        dist.init_process_group("nccl" if gpu else "gloo", **alone)
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if gpu else torch.device("cpu")
    if gpu:
        torch.cuda.set_device(device)
    return World(dist.get_rank(), dist.get_world_size(), device) if launched else World(0, 1, device)


Maker = Callable[[Options, int], Vila]
"""(options, size of the vocabulary) -> a model in float32 on torch's default device."""


def by_options(options: Options, vocabulary_size: int) -> Vila:
    """The model that `--model` names."""
    return build(model_config(options.model), vocabulary_size, options.attention)


def make_model(options: Options, world: World, stage: Stage, vocabulary_size: int, make: Maker = by_options) -> Vila:
    """The stage's model on this rank's device, its parts frozen or not, sharded where there are ranks to share it."""
    torch.manual_seed(options.seed)
    with world.device:
        model = make(options, vocabulary_size)
    freeze(model, stage, train_tower=options.train_tower)
    if options.recompute:
        model.llm.gradient_checkpointing_enable({"use_reentrant": False})
    if dist.is_initialized():
        shard(model, world, whole=not options.fsdp, bf16=options.bf16)
    return model.train()


def shard(model: Vila, world: World, *, whole: bool, bf16: bool) -> None:
    """FSDP2 over all ranks. whole: each rank keeps all weights, and gradients alone are shared."""
    sizes = (world.size, 1) if whole else (1, world.size)
    mesh = init_device_mesh(world.device.type, sizes, mesh_dim_names=("copies", "shards"))
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if bf16 else MixedPrecisionPolicy()
    for part in (model.tower, *model.llm.model.layers, model):
        fully_shard(part, mesh=mesh, mp_policy=policy)


def open_loader(options: Options, recipe: Any, world: World, image_size: int) -> StreamLoader:
    """The run's packs for this rank."""
    return vd.stream(
        recipe,
        run=options.run_dir,
        rank=world.rank,
        world_size=world.size,
        batch_size=options.batch_size,
        num_workers=options.num_workers,
        image={"size_px": image_size, "fit": options.fit},
        device=world.device if world.device.type == "cuda" else None,
    )


class Trainer:
    """The parts of a training, and its steps. make: another model than `--model` knows."""

    def __init__(self, options: Options, make: Maker = by_options) -> None:
        self.options, self.world = options, join(options.fsdp)
        self._refuse_impossible()
        self.stage = STAGES[options.stage]
        recipe = vd.load_recipe(options.recipe, options.on, options.set, find_corpora=False)
        words = load_tokenizer(recipe.pack.tokenizer).vocabulary_size
        self.model = make_model(options, self.world, self.stage, words, make)
        if self.model.tokens_per_image != recipe.pack.tokens_per_image:
            raise SystemExit(
                f"{options.model}: makes {self.model.tokens_per_image} tokens of an image, the recipe counts "
                f"{recipe.pack.tokens_per_image or recipe.pack.image_tokens}: --set pack.tokens_per_image={self.model.tokens_per_image}, and run it again"
            )
        self.optimizer = optimizer_of(self.model)
        self.loader = open_loader(options, recipe, self.world, self.model.tower.image_size)
        self.learned = Learned(self.model, self.optimizer)
        packs = options.batch_size * options.accumulate * self.world.size
        self.progress = Progress(f"{options.epochs} epochs, {packs} packs a step")
        if not self._resumed() and options.init is not None:
            load_weights(options.init, self.model)
        if not self.progress.total:
            self.progress.total = self.progress.steps + self._steps_left()

    def _refuse_impossible(self) -> None:
        """End before anything is made where options cannot be followed here."""
        options = self.options
        if options.resume and options.checkpoints is None:
            raise SystemExit("--resume: say with --checkpoints where they are")
        if options.checkpoints is not None and not options.resume:
            refuse_used(options.checkpoints)
        if options.attention != "sdpa" and self.world.device.type == "cpu":
            raise SystemExit(
                f"--attention {options.attention}: needs a GPU to train, and there is none: --attention sdpa"
            )
        if options.attention == "flash" and not options.bf16:
            raise SystemExit("--attention flash: computes in bfloat16 alone: --bf16 too, or --attention flex")

    def _resumed(self) -> bool:
        """Go on from a checkpoint, where that is asked for and one is there."""
        if not self.options.resume or self.options.checkpoints is None:
            return False
        return resume(self.options.checkpoints, self.learned, self.progress, self.loader)

    def _steps_left(self) -> int:
        """Optimizer steps of the rest of this epoch and of the epochs after it."""
        state = self.loader.state_dict()
        steps = -(-self.loader.steps() // self.options.accumulate)
        for epoch in range(int(state["epoch"]) + 1, self.options.epochs):
            self.loader.set_epoch(epoch)
            steps += -(-self.loader.steps() // self.options.accumulate)
        self.loader.load_state_dict(state)
        return steps

    def steps(self) -> Iterator[Step]:
        """Train until the epochs are over, or `stop_after` steps are done; checkpoints are written on the way."""
        progress, options = self.progress, self.options
        stop = progress.total if options.stop_after is None else progress.steps + options.stop_after
        for batches, count in self._groups():
            if progress.steps >= stop:
                return
            done = self.step(batches, count)
            progress.steps += 1
            last = progress.steps in (stop, progress.total)
            if options.checkpoints is not None and (last or progress.steps % options.save_every == 0):
                save(options.checkpoints, self.learned, progress, self.loader)
            yield done

    def _groups(self) -> Iterator[tuple[Iterator[PackedBatch], int]]:
        """The batches, and how many of them are the next step's; the last step of an epoch may have fewer."""
        while int(self.loader.state_dict()["epoch"]) < self.options.epochs:
            left = self.loader.steps()
            batches = iter(self.loader)
            while left > 0:
                count = min(self.options.accumulate, left)
                yield batches, count
                left -= count
            if next(batches, None) is not None:
                raise RuntimeError("the loader has more batches than steps() said")

    def step(self, batches: Iterator[PackedBatch], count: int) -> Step:
        """One optimizer step on `count` batches a rank: the gradient is that of the mean over all their trained tokens."""
        began, waited = time.perf_counter(), 0.0
        sums = [0.0] * 6
        epoch = 0
        for number in range(count):
            asked = time.perf_counter()
            batch = next(batches).trim()
            waited += time.perf_counter() - asked
            epoch = batch.epoch
            trained = int((targets(batch) != IGNORED).sum())
            loss = self._backward(batch, last=number == count - 1)
            found = (loss, trained, batch.tokens, len(batch.pixels), batch.packs, len(batch.faults))
            sums = [before + now for before, now in zip(sums, found, strict=True)]
            del batch  # its memory goes back to the loader before the next one is asked for
        loss, trained, tokens, images, packs, faults = self.world.total(*sums)
        rate = self.options.learning_rate or self.stage.learning_rate
        rate = learning_rate(self.progress.steps, self.progress.total, rate)
        self._update(self.world.size / max(1.0, trained), rate)
        seconds = time.perf_counter() - began
        return Step(
            self.progress.steps, epoch, loss / max(1.0, trained), rate, int(tokens), int(trained), int(images),
            int(packs), int(faults), round(waited / seconds, 6), round(seconds, 6),
        )  # fmt: skip

    def _backward(self, batch: PackedBatch, *, last: bool) -> float:
        """Add the gradient of the sum of the batch's losses; ranks share gradients with the step's last one."""
        sharded = dist.is_initialized()
        if sharded:
            self.model.set_requires_gradient_sync(last)
        half = self.options.bf16 and not sharded  # FSDP has its own mixed precision
        with torch.autocast(self.world.device.type, torch.bfloat16, enabled=half):
            loss: Tensor = self.model(batch)
        loss.backward()
        return loss.item()

    def _update(self, scale: float, rate: float) -> None:
        """Scale the gradients (FSDP gave their mean over ranks), clip them, and step."""
        weights = [weight for weight in self.model.parameters() if weight.grad is not None]
        for weight in weights:
            weight.grad.mul_(scale)
        nn.utils.clip_grad_norm_(weights, self.options.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad()

    def close(self) -> None:
        """End the loader's workers, and leave the ranks."""
        self.loader.close()
        if dist.is_initialized():
            dist.destroy_process_group()


def parse(arguments: Sequence[str] | None = None) -> Options:
    """Options from the command line: every field of Options under its own name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    hints = get_type_hints(Options, include_extras=True)
    for field in fields(Options):
        kind, told = get_args(hints[field.name])
        how: dict[str, Any] = {"required": field.default is MISSING, "default": field.default}
        if kind is bool:
            how = {"action": "store_true"}
        elif get_origin(kind) is Literal:
            how["choices"] = get_args(kind)
        elif field.name == "set":
            how = {"action": "append", "default": []}
        else:
            how["type"] = next(one for one in (*get_args(kind), kind) if one is not type(None))
        parser.add_argument(f"--{field.name.replace('_', '-')}", help=told, **how)
    given = vars(parser.parse_args(arguments))
    for name, least in LEAST.items():
        if given[name] is not None and given[name] < least:
            parser.error(f"--{name.replace('_', '-')} {given[name]}: give {least} or more")
    if given["learning_rate"] is not None and not 0 < given["learning_rate"] < math.inf:
        parser.error(f"--learning-rate {given['learning_rate']}: give a number above 0")
    return Options(**{**given, "set": tuple(given["set"])})


def log_to(options: Options, rank: int) -> AbstractContextManager[TextIO | None]:
    """Where rank 0 writes its lines: added to what a resumed training has written."""
    if rank or options.log_file is None:
        return nullcontext(None if rank else sys.stdout)
    return options.log_file.open("a" if options.resume else "w")


def main(arguments: Sequence[str] | None = None) -> None:
    """Train as the command line says."""
    options = parse(arguments)
    torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
    try:
        train(options)
    except VilaDataError as error:
        raise SystemExit(str(error)) from error


def train(options: Options) -> None:
    """Train, and write a line of JSON a step."""
    trainer = Trainer(options)
    try:
        with log_to(options, trainer.world.rank) as log:
            for done in trainer.steps():
                if log is not None:
                    print(json.dumps(asdict(done)), file=log, flush=True)
    finally:
        trainer.close()


if __name__ == "__main__":
    main()
