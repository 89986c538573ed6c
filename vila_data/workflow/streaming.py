"""`vila_data.stream`: a recipe and a run to a loader."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

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
from vila_data.loader.state import StreamIdentity
from vila_data.order.share import Share
from vila_data.order.sources import read_blended_sets
from vila_data.ranges.reader import ReadOptions
from vila_data.workflow.encoding import ready_tokenizer
from vila_data.workflow.recipe import Recipe, load_recipe

Model = TypeVar("Model", bound=StrictModel)
_MOST_WORKERS = 8


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
    patience: Patience | None = None,
    report_every_s: float = 60.0,
) -> StreamLoader:
    """A loader of the packed batches of a recipe's blend, from the shards and token files of a finished run.

    run: folder or fsspec URL. tokenizer: the recipe's unless given (a path, a hub id or a fast Hugging Face tokenizer);
    it must be the one that the run was encoded with. rank, world_size: of torch.distributed where it is initialised,
    else of the environment's RANK and WORLD_SIZE, else 0 of 1. batch_size: packs of a batch. num_workers: processes, one
    less than there are CPUs (1 to 8) unless given; 0: none. image: size_px and fit of pictures. device: batches arrive
    there, copied beside the computation. prefetch_mb: 10^6 bytes of finished batches that wait at most.

    Raises:
        UsageError: the recipe has no pack or blend, its sets are not in the run or not encoded with this tokenizer, or
            the call makes no sense.
    """
    for name, value in (("num_workers", num_workers), ("prefetch_mb", prefetch_mb), ("epoch", epoch)):
        if value is not None and value < 0:
            raise UsageError(f"stream: {name} {value}: give 0 or more")
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe, find_corpora=False)
    if num_workers is None:
        num_workers = min(_MOST_WORKERS, max(1, cpu_count() - 1))
    options = LoaderOptions(
        num_workers=num_workers,
        device=None if device is None else torch.device(device),
        fault_budget=_model(FaultBudget, fault_budget, "fault_budget"),
        patience=patience or Patience(),
        report_every_s=report_every_s,
    )
    how = _How(
        share=Share(*_place(rank, world_size), batch_size),
        image=_model(ImageOptions, image, "image"),
        read=_model(ReadOptions, read, "read"),
        limit_bytes=prefetch_mb * 1_000_000,
    )
    return _open(recipe, Store(os.fspath(run)), tokenizer, recipe.seed if seed is None else seed, epoch, how, options)


@dataclass(frozen=True)
class _How:
    """Who reads, and how."""

    share: Share
    image: ImageOptions
    read: ReadOptions
    limit_bytes: int


def _open(
    recipe: Recipe, store: Store, tokenizer: Any, seed: int, epoch: int, how: _How, options: LoaderOptions
) -> StreamLoader:
    """Find the blend's sets in the run, and put a loader over them."""
    if recipe.pack is None or recipe.blend is None:
        missing = "pack" if recipe.pack is None else "blend"
        raise UsageError(f"{recipe.name}: the recipe has no `{missing}:`, so there is nothing to stream")
    words = _tokenizer(tokenizer, recipe.pack)
    sets = read_blended_sets(store, recipe.blend, recipe.pack, words)
    rows = Rows(how.share.batch_size, recipe.pack.sequence_length, recipe.pack.tokens_per_image, words.pad_id)
    spec = FeedSpec(
        store=store.url,
        blend=recipe.blend,
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
    try:
        return kind.model_validate_json(json.dumps(dict(value or {})))
    except (ValueError, TypeError) as error:
        raise UsageError(f"stream: {what}: {error}") from error


def _place(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """(rank, world size) as given, or as the process knows them."""
    if (rank is None) != (world_size is None):
        raise UsageError("stream: give both rank and world_size, or neither")
    if rank is not None and world_size is not None:
        return rank, world_size
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
