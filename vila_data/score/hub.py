"""Models by folder or by hub id: where their files are, and a fingerprint without loading them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from PIL import Image

from vila_data.core.errors import RunError, UsageError
from vila_data.score.model import PREPROCESSING, files_fingerprint, model_folder
from vila_data.score.pixels import Preprocess, level_table

_BACKEND: Final = "transformers"
_TOKENIZERS: Final = ("tokenizer.json", "vocab.json", "spiece.model", "tokenizer.model")
_PROCESSORS: Final = ("preprocessor_config.json", "processor_config.json")
_SUFFIXES: Final = (".json", ".txt", ".model", ".safetensors")


@dataclass(frozen=True)
class Source:
    """A model's place: `name` and `revision` as transformers takes them; `folder` if it is local."""

    name: str
    revision: str | None
    folder: Path | None

    def file(self, *names: str) -> Path | None:
        """The first of these files that the model has, fetched if need be."""
        if self.folder is not None:
            return next((self.folder / name for name in names if (self.folder / name).is_file()), None)
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError

        for name in names:
            try:
                return Path(hf_hub_download(self.name, name, revision=self.revision))
            except EntryNotFoundError:
                continue
        return None


def find_model(model: str, revision: str | None) -> Source:
    """Where the model is; a hub id is pinned to a commit, the cached one if there is one.

    Raises:
        UsageError: no such folder, a folder that lacks files, or a hub id that cannot be reached.
    """
    if Path(model).expanduser().is_dir() or model.startswith((".", "/", "~")) or model.count("/") != 1:
        _local_files(model)
        return Source(str(Path(model).expanduser()), None, Path(model).expanduser())
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    try:
        cached = try_to_load_from_cache(model, "config.json", revision=revision)
        path = cached if isinstance(cached, str) else hf_hub_download(model, "config.json", revision=revision)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UsageError(
            f"score.clip.model: {model}: neither a folder nor a model that the hub or its local cache gives "
            f"({reason}); give a folder, or download the model where there is a network"
        ) from error
    return Source(model, Path(path).parent.name, None)


def model_fingerprint(model: str, revision: str | None) -> str:
    """16 hex digits: of the files' bytes for a folder, of id and commit for a hub model.

    Raises:
        UsageError: as `find_model`.
    """
    source = find_model(model, revision)
    if source.folder is not None:
        return files_fingerprint(_BACKEND, _local_files(model))
    return hashlib.sha256(f"{_BACKEND} {PREPROCESSING} {source.name}@{source.revision}".encode()).hexdigest()[:16]


def _local_files(model: str) -> list[Path]:
    """The files of a folder that decide what the model computes."""
    folder = model_folder(model, ("config.json",))
    names = {path.name for path in folder.iterdir() if path.is_file()}
    safe = any(name.endswith(".safetensors") for name in names)
    lacking = [
        what
        for what, found in (
            ("its weights (model.safetensors)", safe or any(name.endswith(".bin") for name in names)),
            ("preprocessor_config.json", bool(names & set(_PROCESSORS))),
            ("tokenizer.json", bool(names & set(_TOKENIZERS))),
        )
        if not found
    ]
    if lacking:
        raise UsageError(
            f"score.clip.model: {model}: lacks {', '.join(lacking)}; copy the whole model folder, or name another"
        )
    return [folder / name for name in sorted(names) if name.endswith(_SUFFIXES) or (name.endswith(".bin") and not safe)]


def read_preprocess(source: Source) -> Preprocess:
    """Preprocessing of a model, from its preprocessor_config.json (or processor_config.json).

    Raises:
        RunError: the file is missing, broken, or asks for steps that are not known here.
    """
    path = source.file(*_PROCESSORS)
    if path is None:
        raise RunError(f"score.clip.model: {source.name}: lacks preprocessor_config.json; name a complete model")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        return preprocess_of(value.get("image_processor", value))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise RunError(f"{path}: preprocessing that cannot be followed: {error!r}; name another model") from error


def preprocess_of(value: Mapping[str, Any]) -> Preprocess:
    """Preprocessing from the fields of an image processor of transformers.

    Raises:
        ValueError, KeyError, TypeError: fields that are missing or not known.
    """
    size, crop = _size(value["size"]), _size(value.get("crop_size", value["size"]))
    crops = bool(value.get("do_center_crop", "crop_size" in value))
    if not value.get("do_resize", True) or value.get("do_pad"):
        raise ValueError("do_resize false and do_pad are not known")
    normalise = bool(value.get("do_normalize", True))
    table = level_table(
        value["image_mean"] if normalise else (0.0,) * 3,
        value["image_std"] if normalise else (1.0,) * 3,
        float(value.get("rescale_factor", 1 / 255)) if value.get("do_rescale", True) else None,
    )
    resampling = Image.Resampling(value.get("resample", Image.Resampling.BICUBIC))
    if set(size) == {"shortest_edge"} and crops:
        side = size["shortest_edge"]
        height, width = (crop["height"], crop["width"]) if "height" in crop else (side, side)
        return Preprocess("crop", height, width, resampling, table, shorter_side=side)
    if set(size) == {"height", "width"} and (not crops or crop == size):
        return Preprocess("squash", size["height"], size["width"], resampling, table)
    raise ValueError(f"size {size} with do_center_crop {crops} and crop_size {crop} is not known")


def _size(value: Any) -> dict[str, int]:
    if isinstance(value, int):
        return {"shortest_edge": value}
    return {name: int(number) for name, number in value.items() if number is not None}
