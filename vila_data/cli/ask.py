"""Commands that ask questions of a run: whatif, search."""

from __future__ import annotations
