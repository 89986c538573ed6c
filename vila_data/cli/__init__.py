"""The command `vila-data`: build data, look at it, ask questions of it, hand it on."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from vila_data.cli import ask, build, hand_on, look  # noqa: F401  each adds its commands
from vila_data.cli.options import app
from vila_data.core.errors import VilaDataError


def main() -> None:
    """Run the command; an error made for users is one message, exit 1 (data) or 2 (call)."""
    warnings.formatwarning = partial(_said, warnings.formatwarning)
    try:
        app()
    except VilaDataError as error:
        print(f"vila-data: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("vila-data: interrupted; the same command resumes", file=sys.stderr)
        sys.exit(130)


def _said(usual: Callable[..., str], message: Warning | str, category: type[Warning], file: str, *rest: Any) -> str:
    """A warning as its text alone where this package gives it."""
    own = category is UserWarning and Path(file).is_relative_to(Path(__file__).parents[1])
    return f"vila-data: {message}\n" if own else usual(message, category, file, *rest)
