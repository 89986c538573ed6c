"""`vila_data.stream`: a recipe and a run to a loader."""

from __future__ import annotations

import json
import logging
import os
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
from vila_data.loader.assemble import Rows
from vila_data.loader.faults import FaultBudget
from vila_data.loader.feed import FeedSpec
from vila_data.loader.loader import LoaderOptions, StreamLoader
from vila_data.loader.normalization import Normalization
from vila_data.loader.pixels import ImageOptions
from vila_data.loader.pool import Patience, Seconds
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

_MOST_WORKERS = 8
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
    patience: Patience | Mapping[str, float] | None = None,
    report_every_s: float = 60.0,
    restart: bool = False,
    check_ranks: bool = True,
) -> StreamLoader:
    """A loader of the packed batches of a blend, from the shards and token files of a finished run.

    ``stream("runs/demo", …)`` reads the blend of a run (a path, a URL or a Run), ``stream(recipe, run=…)`` another one over
    the same shards. tokenizer: the recipe's unless given (a path, a hub id or a fast Hugging Face tokenizer);
    it must be the one that the run was encoded with. rank, world_size: of torch.distributed where it is initialized,
    else of the environment's RANK and WORLD_SIZE, else 0 of 1. When an iteration begins they are compared with
    torch.distributed's, which a loader takes over that was told none; check_ranks: whether given ones must agree (False
    where several ranks read the same share, as under tensor parallelism). restart: every iteration begins at the same
    batch, the first of `epoch`, as a validation needs it. batch_size: packs of a batch, or its micro-batches under
    semantics `released_code`. num_workers: processes, one less than there are CPUs (1 to 8) unless given; 0: none.
    image: size_px, fit, background, and the model's normalization: mean and std of RGB from 0 to 1, or processor, its
    directory or hub id. device: batches arrive there, copied beside the computation. prefetch_mb: 10^6 bytes of
    finished batches that wait at most. patience: say_s and end_s, seconds that a batch is waited for.

    Raises:
        UsageError: no run; no pack or blend; sets that are not there or not encoded with this tokenizer; a wrong value.
    """
    call = _Call.of(locals())
    ranks, normalization = call.ranks(), call.normalization()
    recipe, run = _opened(recipe, run)
    return _open(recipe, run.store, tokenizer, call, ranks, normalization)


def _opened(
    recipe: Recipe | Run | str | os.PathLike[str], run: Run | str | os.PathLike[str] | None
) -> tuple[Recipe, Run]:
    """The recipe whose blend is streamed, and the run that has its shards."""
    if run is not None:
        if isinstance(recipe, Run):
            raise UsageError("stream: found two runs; pass one, alone or with a recipe")
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
        raise ValueError(f"one that torch knows ({str(error).splitlines()[0]})") from error
    if found.type == "cuda" and not 0 <= (found.index or 0) < torch.cuda.device_count():
        raise ValueError(f"one of the {torch.cuda.device_count()} GPUs that torch {torch.__version__} sees here")
    return found


Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]


class _Call(StrictModel):
    """The arguments of `stream`, except for what it opens. Without a default: those that may not be None."""

    rank: Count | None = None
    world_size: Positive | None = None
    batch_size: Positive
    num_workers: Count = Field(default_factory=lambda: min(_MOST_WORKERS, max(1, cpu_count() - 1)))
    image: ImageOptions = ImageOptions()
    device: Annotated[torch.device | None, PlainValidator(_torch_device)] = None
    epoch: Count
    seed: int | None = None
    fault_budget: FaultBudget = FaultBudget()
    read: ReadOptions = ReadOptions()
    prefetch_mb: Count
    patience: Patience = Patience()
    report_every_s: Seconds
    restart: bool
    check_ranks: bool

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> _Call:
        """The values of a call; numbers of numpy and torch, mappings and models are taken as Python's.

        Raises:
            UsageError: one of them cannot be; one sentence.
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
        except (TypeError, ValueError) as error:  # json's own, of keys that are no texts and of cycles
            raise UsageError(f"stream: mappings must have texts as keys and plain values, found {error}") from error

    def ranks(self) -> Ranks:
        """Rank and world size as given, or as the process knows them.

        Raises:
            UsageError: one of them is missing, here or in the environment.
        """
        if self.rank is None and self.world_size is None:
            return ranks_here(os.environ)
        if self.rank is None or self.world_size is None:
            raise UsageError("stream: rank and world_size must be given together, found one of them")
        return Ranks(self.rank, self.world_size, "arguments", self.check_ranks)

    def normalization(self) -> Normalization | None:
        """What `image` says of it.

        Raises:
            UsageError: it is incomplete, or its processor cannot be read.
        """
        try:
            return self.image.normalization()
        except UsageError as error:
            raise UsageError(f"stream: image: {error}") from error


def _plain(value: Any) -> Any:
    """A value that JSON does not know, as one that it does."""
    if isinstance(value, BaseModel):
        return value.model_dump(exclude_unset=True)
    if isinstance(value, Mapping):
        return dict(value)
    return value.tolist() if hasattr(value, "tolist") else str(value)  # of numpy or torch; a path, a device


def _sentence(problem: Any) -> str:
    """What pydantic found wrong, as "NAME must be …, found …"."""
    where, kind = [str(step) for step in problem["loc"]], problem["type"]
    if kind == "extra_forbidden":
        return f"{'.'.join(where[:-1])}: unknown key {where[-1]!r}{suggestion(where[-1], walk(_Call, where)[1])}"
    wanted = problem["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    if kind == "model_type":
        wanted = f"a mapping of {', '.join(walk(_Call, [*where, ''])[1])}"
    return f"{'.'.join(where)} must be {wanted}, found {problem['input']!r}"


def _open(
    recipe: Recipe, store: Store, tokenizer: Any, call: _Call, ranks: Ranks, normalization: Normalization | None
) -> StreamLoader:
    """Find the blend's sets in the run, and put a loader over them."""
    if recipe.pack is None or recipe.blend is None:
        missing = "pack" if recipe.pack is None else "blend"
        raise UsageError(f"{recipe.name}: the recipe has no `{missing}:`, so there is nothing to stream")
    share = RankShare(ranks.rank, ranks.world_size, call.batch_size)
    seed = recipe.seed if call.seed is None else call.seed
    words = _tokenizer(tokenizer, recipe.pack)
    sets = read_blended_sets(store, recipe.blend, recipe.pack, words)
    pack = recipe.pack
    views = [found.shards.view for found in sets.sets]
    blend = released_blend(recipe.blend, pack, views, share.world_size)
    if pack.semantics == "released_code":
        left_out = PackSequence(blend, pack, sets.lengths, seed=seed, epoch=call.epoch).report().events
        for event in left_out if share.rank == 0 else ():
            log.warning("blend: %s: %s", event.source, event.followed)
    rows = Rows(
        rows_at_most(blend, pack, share.batch_size),
        pack.sequence_length,
        pack.images,
        words.pad_id,
        pack.tokens_per_image,
        as_packed=pack.semantics == "released_code",
        trains_first_label=pack.semantics == "released_code",
        cuts_images=pack.faithful,
        normalization=normalization,
    )
    spec = FeedSpec(
        store=store.url,
        blend=blend,
        pack=recipe.pack,
        sets=tuple(sets.sets),
        seed=seed,
        epoch=call.epoch,
        share=share,
        rows=rows,
        image=call.image.padded_for(normalization),
        read=call.read,
        limit_bytes=call.prefetch_mb * 1_000_000,
    )
    identity = StreamIdentity.of(recipe.blend, recipe.pack, seed, sets.sets, sets.lengths)
    options = LoaderOptions(
        num_workers=call.num_workers,
        device=call.device,
        fault_budget=call.fault_budget,
        patience=call.patience,
        report_every_s=call.report_every_s,
        ranks=ranks,
        restart=call.restart,
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
