"""The command that hands data on to other programs: export."""

from __future__ import annotations
