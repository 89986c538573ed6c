"""`vila_data.stream`: a loader for a recipe and a run; its arguments, and what they refer to."""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Mapping
from typing import Annotated, Any

import torch
from pydantic import BaseModel, Field, PlainValidator, ValidationError

from vila_data.core.config import StrictModel
from vila_data.core.cpus import cpu_count
from vila_data.core.errors import UsageError
from vila_data.core.ranges.reader import ReadOptions
from vila_data.core.store import Store
from vila_data.encode.config import PackConfig
from vila_data.encode.tokenizer import TextTokenizer
from vila_data.loader.assemble import RowLayout
from vila_data.loader.faults import FaultBudget
from vila_data.loader.loader import LoaderOptions, StreamLoader
from vila_data.loader.pixels import ImageOptions, Normalization
from vila_data.loader.pool import Seconds, Timeout
from vila_data.loader.producer import StreamSpec
from vila_data.loader.ranks import Ranks, ranks_here
from vila_data.loader.state import StreamIdentity
from vila_data.mix.rank_share import RankShare
from vila_data.mix.released import released_blend, rows_at_most
from vila_data.mix.sequence import PackSequence
from vila_data.mix.shard_sets import read_blended_sets
from vila_data.recipe.recipe import Recipe, load_recipe
from vila_data.recipe.yaml_lines import suggestion, walk
from vila_data.runs.run import Run, open_run
from vila_data.runs.set_stages import ready_tokenizer

_MAX_WORKERS = 8
log = logging.getLogger("vila_data.loader")


def stream(
    recipe: Recipe | Run | str | os.PathLike[str],
    run: Run | str | os.PathLike[str] | None = None,
    tokenizer: Any = None,
    *,
    rank: int | None = None,
    world_size: int | None = None,
    batch_size: int = 1,
    num_workers: int | None = None,
    image: ImageOptions | Mapping[str, Any] | None = None,
    device: torch.device | str | None = None,
    epoch: int = 0,
    seed: int | None = None,
    fault_budget: FaultBudget | Mapping[str, Any] | None = None,
    read: ReadOptions | Mapping[str, Any] | None = None,
    prefetch_mb: int = 512,
    timeout: Timeout | Mapping[str, float] | None = None,
    report_every_s: float = 60.0,
    restart: bool = False,
    check_ranks: bool = True,
    patience: Mapping[str, float] | None = None,
) -> StreamLoader:
    """Return a loader that yields packed batches of the recipe's blend from a finished run's shards and token files.

    ``stream("runs/demo", …)`` reads the blend of a run (a path, a URL or a Run), ``stream(recipe, run=…)`` another one
    over the same shards.

    Args:
        tokenizer: a path, a hub id or a fast Hugging Face tokenizer; default: the recipe's. It must match the tokenizer
            that the run was encoded with.
        rank, world_size: default: those of torch.distributed if it is initialized, else RANK and WORLD_SIZE of the
            environment, else 0 of 1. When an iteration begins they are compared with those of torch.distributed, or
            taken from there if they were not given.
        batch_size: packs per batch, or micro-batches under semantics `released_code`.
        num_workers: worker processes; default: one fewer than the CPUs, between 1 and 8; 0 builds batches in this process.
        image: size_px, fit, background, and the model's normalization: mean and std of RGB from 0 to 1, or processor, its
            directory or hub id.
        device: where batches are; they are copied there while the previous step computes.
        read: cache and retries of reads from an object store, see ReadOptions.
        prefetch_mb: maximum size of finished, waiting batches, in MB (10^6 bytes).
        timeout: warn_s and fail_s, seconds of waiting for one batch until a warning and until an error.
        report_every_s: seconds between two lines of metrics in the log.
        restart: every iteration begins at the first batch of `epoch`, as a validation needs it.
        check_ranks: whether given ranks must be those of torch.distributed; False if several ranks read the same packs,
            as under tensor parallelism.
        patience: the old name of `timeout`, with the keys say_s and end_s; accepted for one release.

    Raises:
        UsageError: no run; no pack or blend; sets that do not exist or are not encoded with this tokenizer; a wrong value.
    """
    given = dict(locals())
    if patience is not None:
        warnings.warn("patience is now timeout, with warn_s and fail_s", DeprecationWarning, stacklevel=2)
        new_names = {"say_s": "warn_s", "end_s": "fail_s"}
        given["timeout"] = {new_names.get(name, name): value for name, value in patience.items()}
    arguments = StreamArguments.of(given)
    ranks, normalization = arguments.ranks(), arguments.normalization()
    recipe, run = _opened(recipe, run)
    return _loader(recipe, run.store, tokenizer, arguments, ranks, normalization)


def _opened(
    recipe: Recipe | Run | str | os.PathLike[str], run: Run | str | os.PathLike[str] | None
) -> tuple[Recipe, Run]:
    """The recipe whose blend is streamed, and the run that has its shards."""
    if run is not None:
        if isinstance(recipe, Run):
            raise UsageError("stream: found two runs; pass one of them, alone or with a recipe")
        opened = open_run(run)
        return recipe if isinstance(recipe, Recipe) else load_recipe(recipe, find_corpora=False), opened
    if isinstance(recipe, Recipe) or str(recipe).endswith((".yaml", ".yml")):
        name = recipe.name if isinstance(recipe, Recipe) else recipe
        raise UsageError(f"stream: {name} is a recipe; pass run= too, or the directory of its finished run alone")
    opened = open_run(recipe)
    return opened.recipe, opened


def _torch_device(name: Any) -> torch.device:
    try:
        found = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"a device that torch knows ({str(error).splitlines()[0]})") from error
    if found.type == "cuda" and not 0 <= (found.index or 0) < torch.cuda.device_count():
        raise ValueError(
            f"an available device (torch {torch.__version__} finds {torch.cuda.device_count()} GPUs on this machine)"
        )
    return found


Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]


class StreamArguments(StrictModel):
    """The arguments of `stream`, except for what it opens. Those without a default must not be None."""

    rank: Count | None = None
    world_size: Positive | None = None
    batch_size: Positive
    num_workers: Count = Field(default_factory=lambda: min(_MAX_WORKERS, max(1, cpu_count() - 1)))
    image: ImageOptions = ImageOptions()
    device: Annotated[torch.device | None, PlainValidator(_torch_device)] = None
    epoch: Count
    seed: int | None = None
    fault_budget: FaultBudget = FaultBudget()
    read: ReadOptions = ReadOptions()
    prefetch_mb: Count
    timeout: Timeout = Timeout()
    report_every_s: Seconds
    restart: bool
    check_ranks: bool

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> StreamArguments:
        """The arguments of a call, which may be numbers of numpy and torch, mappings and models.

        Raises:
            UsageError: one of them is wrong; one sentence.
        """
        given = {
            name: arguments[name]
            for name, field in cls.model_fields.items()
            if field.is_required() or arguments[name] is not None
        }
        try:
            return cls.model_validate_json(json.dumps(given, default=_plain))
        except ValidationError as error:
            raise UsageError(f"stream: {_sentence(error.errors(include_url=False)[0])}") from error
        except (TypeError, ValueError) as error:  # json's own: keys that are not text, cycles
            raise UsageError(f"stream: mappings must have text keys and plain values, found {error}") from error

    def ranks(self) -> Ranks:
        """Rank and world size as given, or those of the process.

        Raises:
            UsageError: one of them is missing, here or in the environment.
        """
        if self.rank is None and self.world_size is None:
            return ranks_here(os.environ)
        if self.rank is None or self.world_size is None:
            raise UsageError("stream: rank and world_size must be passed together, found only one of them")
        return Ranks(self.rank, self.world_size, "arguments", self.check_ranks)

    def normalization(self) -> Normalization | None:
        """The normalization in `image`.

        Raises:
            UsageError: it is incomplete, or its processor cannot be read.
        """
        try:
            return self.image.normalization()
        except UsageError as error:
            raise UsageError(f"stream: image: {error}") from error


def _plain(value: Any) -> Any:
    """Convert a value for JSON."""
    if isinstance(value, BaseModel):
        return value.model_dump(exclude_unset=True)
    if isinstance(value, Mapping):
        return dict(value)
    return value.tolist() if hasattr(value, "tolist") else str(value)  # of numpy or torch; a path, a device


def _sentence(problem: Any) -> str:
    """What pydantic found wrong, as "NAME must be …, found …"."""
    where, kind = [str(step) for step in problem["loc"]], problem["type"]
    if kind == "extra_forbidden":
        return (
            f"{'.'.join(where[:-1])}: unknown key {where[-1]!r}{suggestion(where[-1], walk(StreamArguments, where)[1])}"
        )
    expected = problem["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    if kind == "model_type":
        expected = f"a mapping of {', '.join(walk(StreamArguments, [*where, ''])[1])}"
    return f"{'.'.join(where)} must be {expected}, found {problem['input']!r}"


def _loader(
    recipe: Recipe,
    store: Store,
    tokenizer: Any,
    arguments: StreamArguments,
    ranks: Ranks,
    normalization: Normalization | None,
) -> StreamLoader:
    """Find the blend's sets in the run and create their loader."""
    if recipe.pack is None or recipe.blend is None:
        missing = "pack" if recipe.pack is None else "blend"
        raise UsageError(f"{recipe.name}: the recipe has no `{missing}:` section, which streaming needs")
    share = RankShare(ranks.rank, ranks.world_size, arguments.batch_size)
    seed = recipe.seed if arguments.seed is None else arguments.seed
    text_tokenizer = _tokenizer(tokenizer, recipe.pack)
    sets = read_blended_sets(store, recipe.blend, recipe.pack, text_tokenizer)
    pack = recipe.pack
    views = [found.shards.view for found in sets.sets]
    blend = released_blend(recipe.blend, pack, views, share.world_size)
    if pack.semantics == "released_code":
        omissions = PackSequence(blend, pack, sets.lengths, seed=seed, epoch=arguments.epoch).report().events
        for event in omissions if share.rank == 0 else ():
            log.warning("blend: %s: %s", event.source, event.followed)
    layout = RowLayout(
        rows_at_most(blend, pack, share.batch_size),
        pack.sequence_length,
        pack.images,
        text_tokenizer.pad_id,
        pack.tokens_per_image,
        row_per_pack=pack.semantics == "released_code",
        trains_first_label=pack.semantics == "released_code",
        cuts_images=pack.faithful,
        normalization=normalization,
    )
    spec = StreamSpec(
        store=store.url,
        blend=blend,
        pack=recipe.pack,
        sets=tuple(sets.sets),
        seed=seed,
        epoch=arguments.epoch,
        share=share,
        layout=layout,
        image=arguments.image.padded_for(normalization),
        read=arguments.read,
        limit_bytes=arguments.prefetch_mb * 1_000_000,
    )
    identity = StreamIdentity.of(recipe.blend, recipe.pack, seed, sets.sets, sets.lengths)
    options = LoaderOptions(
        num_workers=arguments.num_workers,
        device=arguments.device,
        fault_budget=arguments.fault_budget,
        timeout=arguments.timeout,
        report_every_s=arguments.report_every_s,
        ranks=ranks,
        restart=arguments.restart,
    )
    return StreamLoader(spec, sets.lengths, identity, options)


def _tokenizer(given: Any, pack: PackConfig) -> TextTokenizer:
    if given is None:
        return ready_tokenizer(pack)
    if isinstance(given, TextTokenizer):
        return given
    if isinstance(given, str | os.PathLike):
        return ready_tokenizer(pack.model_copy(update={"tokenizer": os.fspath(given)}))
    if not getattr(given, "is_fast", False):
        raise UsageError(
            f"stream: tokenizer must be a path, a hub id or a fast tokenizer, found one of type {type(given).__name__}"
        )
    return TextTokenizer(str(getattr(given, "name_or_path", "")) or "as given", given)
