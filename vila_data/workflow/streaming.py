"""`vila_data.stream`: a recipe and a run to a loader."""

from __future__ import annotations

import json
import logging
import operator
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import torch
from pydantic import ValidationError

from vila_data.batch.normalization import Normalization
from vila_data.batch.pixels import ImageOptions
from vila_data.core.config import StrictModel
from vila_data.core.cpus import cpu_count
from vila_data.core.errors import UsageError
from vila_data.core.store import Store
from vila_data.encode.config import PackConfig
from vila_data.encode.tokenizer import TextTokenizer
from vila_data.loader.assemble import Rows
from vila_data.loader.faults import FaultBudget
from vila_data.loader.feed import FeedSpec
from vila_data.loader.loader import LoaderOptions, StreamLoader
from vila_data.loader.pool import Patience
from vila_data.loader.ranks import Ranks, ranks_here
from vila_data.loader.state import StreamIdentity
from vila_data.order.released import released_blend, rows_at_most
from vila_data.order.sequence import PackSequence
from vila_data.order.share import Share
from vila_data.order.sources import read_blended_sets
from vila_data.ranges.reader import ReadOptions
from vila_data.workflow.encoding import ready_tokenizer
from vila_data.workflow.lock import read_lock
from vila_data.workflow.marked_yaml import nearest
from vila_data.workflow.recipe import Recipe, load_recipe

Model = TypeVar("Model", bound=StrictModel)
_MOST_WORKERS = 8
log = logging.getLogger("vila_data.loader")


def stream(
    recipe: Recipe | str | os.PathLike[str],
    run: str | os.PathLike[str],
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
    """A loader of the packed batches of a recipe's blend, from the shards and token files of a finished run.

    run: folder or fsspec URL. tokenizer: the recipe's unless given (a path, a hub id or a fast Hugging Face tokenizer);
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
        UsageError: the recipe has no pack or blend, its sets are not in the run or not encoded with this tokenizer, or
            the call makes no sense.
    """
    ranks = _ranks(rank, world_size, _flag("check_ranks", check_ranks))
    batch_size, epoch = _whole("batch_size", batch_size, 1), _whole("epoch", epoch, 0)
    prefetch_mb = _whole("prefetch_mb", prefetch_mb, 0)
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe, find_corpora=False)
    options = LoaderOptions(
        num_workers=min(_MOST_WORKERS, max(1, cpu_count() - 1))
        if num_workers is None
        else _whole("num_workers", num_workers, 0),
        device=None if device is None else _device(device),
        fault_budget=_model(FaultBudget, fault_budget, "fault_budget"),
        patience=_patience(patience),
        report_every_s=_seconds("report_every_s", report_every_s),
        ranks=ranks,
        restart=_flag("restart", restart),
    )
    how = _How(
        Share(ranks.rank, ranks.world_size, batch_size),
        *_image(image),
        read=_model(ReadOptions, read, "read"),
        limit_bytes=prefetch_mb * 1_000_000,
    )
    seed = recipe.seed if seed is None else _whole("seed", seed, None)
    return _open(recipe, Store(os.fspath(run)), tokenizer, seed, epoch, how, options)


@dataclass(frozen=True)
class _How:
    """Who reads, and how."""

    share: Share
    image: ImageOptions
    normalization: Normalization | None
    read: ReadOptions
    limit_bytes: int


def _open(
    recipe: Recipe, store: Store, tokenizer: Any, seed: int, epoch: int, how: _How, options: LoaderOptions
) -> StreamLoader:
    """Find the blend's sets in the run, and put a loader over them."""
    if recipe.pack is None or recipe.blend is None:
        missing = "pack" if recipe.pack is None else "blend"
        raise UsageError(f"{recipe.name}: the recipe has no `{missing}:`, so there is nothing to stream")
    read_lock(store)  # refuses the run of another version
    words = _tokenizer(tokenizer, recipe.pack)
    sets = read_blended_sets(store, recipe.blend, recipe.pack, words)
    pack = recipe.pack
    views = [found.shards.view for found in sets.sets]
    blend = released_blend(recipe.blend, pack, views, how.share.world_size)
    if pack.semantics == "released_code":
        left_out = PackSequence(blend, pack, sets.lengths, seed=seed, epoch=epoch).report().events
        for event in left_out if how.share.rank == 0 else ():
            log.warning("blend: %s: %s", event.source, event.followed)
    rows = Rows(
        rows_at_most(blend, pack, how.share.batch_size),
        pack.sequence_length,
        pack.tokens_per_image,
        words.pad_id,
        as_packed=pack.semantics == "released_code",
        trains_first_label=pack.semantics == "released_code",
        normalization=how.normalization,
    )
    spec = FeedSpec(
        store=store.url,
        blend=blend,
        pack=recipe.pack,
        sets=tuple(sets.sets),
        seed=seed,
        epoch=epoch,
        share=how.share,
        rows=rows,
        image=how.image,
        read=how.read,
        limit_bytes=how.limit_bytes,
    )
    identity = StreamIdentity.of(recipe.blend, recipe.pack, seed, sets.sets, sets.lengths)
    return StreamLoader(spec, sets.lengths, identity, options)


def _tokenizer(given: Any, pack: PackConfig) -> TextTokenizer:
    if given is None:
        return ready_tokenizer(pack)
    if isinstance(given, TextTokenizer):
        return given
    if isinstance(given, str | os.PathLike):
        return ready_tokenizer(pack.model_copy(update={"tokenizer": os.fspath(given)}))
    if not getattr(given, "is_fast", False):
        raise UsageError(f"stream: tokenizer of type {type(given).__name__}: give a path, a hub id or a fast tokenizer")
    return TextTokenizer(str(getattr(given, "name_or_path", "")) or "as given", given)


def _model(kind: type[Model], value: Any, what: str) -> Model:
    """A value object of the keys given.

    Raises:
        UsageError: a key is unknown or its value cannot be.
    """
    if isinstance(value, kind):
        return value
    if not isinstance(value, Mapping | None):
        raise UsageError(f"stream: {what}: found {value!r}: give a mapping of {', '.join(kind.model_fields)}")
    try:
        return kind.model_validate_json(json.dumps(dict(value or {}), default=_plain))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            raise UsageError(f"stream: {what}: unknown key {key!r}{nearest(key, kind.model_fields)}") from error
        message = first["msg"][0].lower() + first["msg"][1:]
        raise UsageError(f"stream: {what}: {key}: {message}; found {first['input']!r}") from error


def _plain(value: Any) -> Any:
    """Numbers of numpy or torch as Python's, a path as text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _image(value: ImageOptions | Mapping[str, Any] | None) -> tuple[ImageOptions, Normalization | None]:
    """The options, with the background that goes with the normalization; and the normalization, if they say it."""
    options = _model(ImageOptions, value, "image")
    try:
        normalization = options.normalization()
    except UsageError as error:
        raise UsageError(f"stream: image: {error}") from error
    return options.padded_for(normalization), normalization


def _patience(value: Patience | Mapping[str, float] | None) -> Patience:
    if isinstance(value, Patience):
        return value
    known = [field.name for field in fields(Patience)]
    if not isinstance(value, Mapping | None):
        raise UsageError(f"stream: patience: found {value!r}: give a mapping of {', '.join(known)}")
    for key in value or {}:
        if key not in known:
            raise UsageError(f"stream: patience: unknown key {key!r}{nearest(str(key), known)}")
    return Patience(**{key: _seconds(f"patience: {key}", given) for key, given in (value or {}).items()})


def _seconds(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        raise UsageError(f"stream: {name} {value!r}: give seconds, 0 or more")
    return float(value)


def _whole(name: str, value: Any, least: int | None) -> int:
    """The value as Python's int, since it goes into states and other processes; numpy's are taken too."""
    try:
        found = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        found = None
    if found is None or (least is not None and found < least):
        rule = "a whole number" if least is None else f"a whole number, {least} or more"
        raise UsageError(f"stream: {name} {value!r}: give {rule}")
    return found


def _device(device: torch.device | str) -> torch.device:
    """The device, which is there.

    Raises:
        UsageError: torch knows none of this name, or this machine has none.
    """
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise UsageError(f"stream: device {device!r}: {str(error).splitlines()[0]}") from error
    if found.type == "cuda" and not 0 <= (found.index or 0) < torch.cuda.device_count():
        raise UsageError(
            f"stream: device {str(found)!r}: torch {torch.__version__} sees {torch.cuda.device_count()} GPUs here"
        )
    return found


def _ranks(rank: int | None, world_size: int | None, checked: bool) -> Ranks:
    """Rank and world size as given, or as the process knows them."""
    if (rank is None) != (world_size is None):
        raise UsageError("stream: give both rank and world_size, or neither")
    if rank is None or world_size is None:
        return ranks_here(os.environ)
    return Ranks(_whole("rank", rank, 0), _whole("world_size", world_size, 1), "arguments", checked)


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise UsageError(f"stream: {name} {value!r}: give True or False")
    return value
