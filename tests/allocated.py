"""How much memory this process has asked for and not given back.

Unlike the resident pages, which Linux counts lazily, one batch of pages for each core, this is
exact; and unlike their peak, it is not hidden below what an earlier test has needed.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch

_FIELDS = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks",
           "fordblks", "keepcost")  # fmt: skip
_SAMPLE = 1 << 16
_CALLS = 500
_ROUNDS = 4


class _Mallinfo(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in _FIELDS]


class Allocated(NamedTuple):
    """Bytes of malloc, and blocks of Python's own allocator for small objects."""

    bytes: int
    blocks: int


def allocated() -> Allocated:
    """What is allocated now; skips the test where the C library does not tell."""
    tell = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if tell is None:
        pytest.skip("glibc 2.33 and newer tell how much memory is allocated")
    tell.restype = _Mallinfo
    gc.collect()
    before = tell().uordblks
    sample = torch.empty(_SAMPLE, dtype=torch.uint8)
    after = tell().uordblks
    if after - before < sample.numel():
        pytest.skip("memory is allocated by another library than glibc")
    del sample
    info = tell()
    return Allocated(info.uordblks + info.hblkhd, sys.getallocatedblocks())


def assert_nothing_is_kept(call: Callable[[], object]) -> None:
    """Call it many times, and find neither 128 bytes of malloc nor half an object a call kept.

    A leak grows in every round; what a thread needs that first takes part late, in one.
    """
    for _ in range(_CALLS // 5):
        call()
    grown = []
    for _ in range(_ROUNDS):
        before = allocated()
        for _ in range(_CALLS):
            call()
        after = allocated()
        grown.append((after.bytes - before.bytes, after.blocks - before.blocks))
    assert min(growth for growth, _ in grown) < 128 * _CALLS, grown
    assert min(blocks for _, blocks in grown) < _CALLS // 2, grown
