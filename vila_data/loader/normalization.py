"""How a model's vision tower wants its pixels scaled: given as numbers, or read from its image processor's JSON file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from vila_data.core.errors import UsageError

Channels = tuple[float, float, float]

_FILES: Final = ("preprocessor_config.json", "processor_config.json")
_RESCALE: Final = 1 / 255  # of an image processor whose file does not name a factor
HOW_TO_SAY: Final = 'image={"mean": …, "std": …} or image={"processor": …}'


@dataclass(frozen=True, slots=True)
class Normalization:
    """Pixels of levels 0 to 255 as a model takes them: (level * rescale - mean) / std, for red, green and blue.

    rescale is 1/255 for a mean and std of levels from 0 to 1, which is what nearly all models use.
    """

    mean: Channels
    std: Channels
    rescale: float = _RESCALE

    @classmethod
    def of(
        cls, mean: float | Sequence[float], std: float | Sequence[float], rescale: float = _RESCALE
    ) -> Normalization:
        """From three numbers, or one number for all channels.

        Raises:
            UsageError: mean or std is neither one finite number nor three, std is not positive, rescale is not either.
        """
        means, stds = channels(mean), channels(std)
        if means is None or stds is None or not all(value > 0 for value in stds):
            raise UsageError(
                f"mean must be one number or three, and std one positive number or three, found mean {mean}, std {std}"
            )
        factor = channels(rescale)
        if factor is None or factor[0] <= 0:
            raise UsageError(f"rescale must be a positive number, found {rescale}")
        return cls(means, stds, factor[0])

    @property
    def level_of_mean(self) -> tuple[int, int, int] | None:
        """The levels that become 0, rounded down as LLaVA does for its padding; None if one is not from 0 to 255."""
        red, green, blue = (int(value / self.rescale + 1e-6) for value in self.mean)
        return (red, green, blue) if all(0 <= level <= 255 for level in (red, green, blue)) else None


def channels(value: Any) -> Channels | None:
    """One number for all channels or one number for each, as three; None: neither."""
    found = value.tolist() if hasattr(value, "tolist") else value  # of numpy or torch
    numbers = list(found) if isinstance(found, Sequence) and not isinstance(found, str) else [found] * 3
    if len(numbers) != 3:
        return None
    if not all(isinstance(one, int | float) and not isinstance(one, bool) and math.isfinite(one) for one in numbers):
        return None
    red, green, blue = map(float, numbers)
    return red, green, blue


def read_processor(name: str) -> Normalization:
    """The normalization of an image processor: a model's directory, its preprocessor_config.json, or a hub id.

    Raises:
        UsageError: there is no such file, or it does not say how pixels are normalized.
    """
    path = _file(name)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"processor {name}: {path.name} cannot be read: {error}") from error
    return normalization_of(value, f"processor {name}: {path.name}")


def normalization_of(value: Any, where: str) -> Normalization:
    """The normalization in the fields of an image processor of transformers; `where` begins the messages.

    Raises:
        UsageError: it does not say how pixels are normalized, or in a way that is not known here.
    """
    if isinstance(value, Mapping) and isinstance(value.get("image_processor"), Mapping):
        value = value["image_processor"]
    if not isinstance(value, Mapping):
        raise UsageError(f"{where} must hold an object, found a {type(value).__name__}")
    rescales = value.get("do_rescale") is not False
    if rescales and (value.get("rescale_offset") or value.get("offset")):
        raise UsageError(f"{where}: a rescale with an offset is not supported; pass mean and std instead of processor")
    factor = value.get("rescale_factor")
    rescale = (_RESCALE if factor is None else factor) if rescales else 1.0
    mean: Any = 0.0
    std: Any = 1.0
    if value.get("do_normalize") is not False:
        mean, std = value.get("image_mean"), value.get("image_std")
        if mean is None or std is None:
            missing = "image_mean" if mean is None else "image_std"
            raise UsageError(f"{where} has no {missing}; pass mean and std instead of processor")
    try:
        return Normalization.of(mean, std, rescale)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error


def _file(name: str) -> Path:
    """The file that has the processor's fields."""
    path = Path(name).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        found = next((path / file for file in _FILES if (path / file).is_file()), None)
        if found is None:
            raise UsageError(f"processor {name}: the directory has neither {' nor '.join(_FILES)}")
        return found
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError, LocalEntryNotFoundError

    reasons: list[Exception] = []
    for file in _FILES:
        try:
            return Path(hf_hub_download(name, file))
        except LocalEntryNotFoundError as error:  # no network: only a file that is in the cache can be read
            reasons.append(error)
        except EntryNotFoundError:
            continue
        except (OSError, ValueError, RuntimeError, HFValidationError) as error:
            reasons.append(error)
            break
    if not reasons:
        raise UsageError(f"processor {name}: the repository has neither {' nor '.join(_FILES)}")
    reason = str(reasons[0]).strip().split("\n", 1)[0].rstrip(" :.")
    raise UsageError(
        f"processor {name}: it is neither a directory nor a repository that can be read: {reason}"
    ) from reasons[0]
