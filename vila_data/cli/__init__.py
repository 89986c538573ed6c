"""The `vila-data` command: build, inspect, query and export data."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from vila_data.cli import export, inspect, query, run  # noqa: F401  each adds its commands
from vila_data.cli.options import app
from vila_data.core.errors import VilaDataError


def main() -> None:
    """Run the command. An expected error prints one message and exits with status 1 (data) or 2 (usage)."""
    warnings.formatwarning = partial(_format_warning, warnings.formatwarning)
    try:
        app()
    except VilaDataError as error:
        print(f"vila-data: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("vila-data: interrupted. Run the same command again to resume.", file=sys.stderr)
        sys.exit(130)


def _format_warning(
    default: Callable[..., str], message: Warning | str, category: type[Warning], file: str, *rest: Any
) -> str:
    """Show only the text of a warning that this package raises."""
    own = category is UserWarning and Path(file).is_relative_to(Path(__file__).parents[1])
    return f"vila-data: {message}\n" if own else default(message, category, file, *rest)
