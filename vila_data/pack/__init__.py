"""Lengths to packs: which whole samples share a sequence. Nothing here reads a token or a picture."""

from vila_data.pack.packs import Packs, micro_batches, one_each
from vila_data.pack.plan import BLOCK_SAMPLES, pack_block
from vila_data.pack.report import PackReport
from vila_data.pack.sequence_length import SequenceLengths, best_sequence_length

__all__ = [
    "BLOCK_SAMPLES",
    "PackReport",
    "Packs",
    "SequenceLengths",
    "best_sequence_length",
    "micro_batches",
    "one_each",
    "pack_block",
]
