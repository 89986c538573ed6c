"""The command `vila-data`: build data, look at it, ask questions of it, hand it on."""

from __future__ import annotations

import sys

from vila_data.cli import ask, build, hand_on, look  # noqa: F401  each adds its commands
from vila_data.cli.options import app
from vila_data.core.errors import VilaDataError


def main() -> None:
    """Run the command; an error made for users is one message, exit 1 (data) or 2 (call)."""
    try:
        app()
    except VilaDataError as error:
        print(f"vila-data: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("vila-data: interrupted; the same command resumes", file=sys.stderr)
        sys.exit(130)
