"""Makes the sample's scripts importable: shards/ is no package."""

from __future__ import annotations

import sys
from pathlib import Path

SAMPLE = Path(__file__).resolve().parents[2] / "shards" / "sample"
sys.path.insert(0, str(SAMPLE))
