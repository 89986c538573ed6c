"""CRC-32C (Castagnoli) of members and token rows. google-crc32c: 27 GB/s of an image of 50 kB, 0.1 µs of 100 bytes."""

from __future__ import annotations

from typing import Any

import google_crc32c
import numpy as np


def crc32c(data: Any) -> int:
    """CRC-32C of bytes, of a memoryview, or of a C-contiguous array's bytes as they are in memory."""
    found: int = google_crc32c.value(np.asarray(data) if isinstance(data, memoryview) else data)
    return found
