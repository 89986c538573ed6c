"""Whether a corpus has hosts at all: the images of some lie in files beside the metadata."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

_NO_HOST: Final = "(no host)"


def only_files(hosts: Mapping[str, Any]) -> bool:
    """Whether no address of a corpus's images names a host. hosts: as run.json has them."""
    return bool(hosts["images"]) and [name for name, *_ in hosts["top"]] == [_NO_HOST]
