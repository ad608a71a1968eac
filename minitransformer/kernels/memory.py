"""What happens to the memory of arrays that are freed."""

from __future__ import annotations

import ctypes
import functools
import sys
from typing import Any

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's numbers for mallopt
LARGEST = 32 << 20  # bytes; glibc takes no higher threshold, and larger arrays are few
KEPT = 512 << 20  # bytes that may lie free at the end of the heap


@functools.cache
def keep_freed_memory() -> bool:
    """Tell the C library to keep what is freed for the next array, and return whether it does.

    A training step frees its arrays and asks for the same ones again. By default glibc gives those above 128 KiB back
    at once, and the system hands out fresh pages that have to be zeroed: that costs as much as the arithmetic done
    on them. Does nothing, and returns False, where the C library is another one.
    """
    mallopt = _function("mallopt")
    return bool(mallopt and mallopt(M_MMAP_THRESHOLD, LARGEST) and mallopt(M_TRIM_THRESHOLD, KEPT))


def give_back_freed_memory() -> None:
    """Give the pages of what is freed back to the system, as far as the C library has a way to."""
    if trim := _function("malloc_trim"):
        trim(0)


@functools.cache
def _function(name: str) -> Any:
    """Return a function of glibc; None where the C library is another one."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        return getattr(ctypes.CDLL(None), name, None)
    except OSError:
        return None
