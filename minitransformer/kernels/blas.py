"""How many threads the library of matrix products uses, set while the program runs.

The environment (OPENBLAS_NUM_THREADS and its like) is read when NumPy is imported, and so comes too late for a program
that finds out later that it will split its work itself.
"""

from __future__ import annotations

import ctypes
import functools
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

# (set, get) of what NumPy is built with: its own wheels' OpenBLAS, a system's OpenBLAS, Intel's MKL, BLIS.
FUNCTIONS = (
    ("scipy_openblas_set_num_threads64_", "scipy_openblas_get_num_threads64_"),
    ("scipy_openblas_set_num_threads", "scipy_openblas_get_num_threads"),
    ("openblas_set_num_threads64_", "openblas_get_num_threads64_"),
    ("openblas_set_num_threads", "openblas_get_num_threads"),
    ("MKL_Set_Num_Threads", "MKL_Get_Max_Threads"),
    ("bli_thread_set_num_threads", "bli_thread_get_num_threads"),
)

CORE_NAMES = (
    "scipy_openblas_get_corename64_", "scipy_openblas_get_corename",
    "openblas_get_corename64_", "openblas_get_corename",
)  # fmt: skip
# OpenBLAS's name for a kind of processor → multiplications in a product that it does not pack
UNPACKED = dict.fromkeys(("skylakex", "cooperlake", "sapphirerapids"), 100**3)

TRIED, TRIES = 48 << 20, 4  # bytes that are read to find out how, and how often


def _libraries() -> list[str]:
    """Return the paths of the shared libraries that may hold NumPy's products."""
    maps = Path("/proc/self/maps")
    if maps.exists():
        paths = {line.split(maxsplit=5)[-1].strip() for line in maps.read_text().splitlines() if "/" in line}
    else:
        root = Path(np.__file__).parent
        paths = {str(p) for folder in (root.parent / "numpy.libs", root / ".dylibs") for p in folder.glob("*")}
    return sorted(p for p in paths if any(word in p.lower() for word in ("blas", "mkl_rt", "blis")))


def _functions(choices: Sequence[tuple[str, ...]]) -> list[Any] | None:
    """Return the first of some sets of functions that a library has whole; None if none has one."""
    for path in _libraries():
        try:
            library = ctypes.CDLL(path)
        except OSError:
            continue
        for names in choices:
            if all(hasattr(library, name) for name in names):
                return [getattr(library, name) for name in names]
    return None


@functools.cache
def unpacked() -> int:
    """Return up to how many multiplications BLAS takes two matrices as they lie; 0 where it never does.

    A product begins with copies of its matrices, laid out for the processor. OpenBLAS leaves them out for small ones,
    but only where it has code for that: for processors with AVX-512. Small products are then the faster ones.
    """
    found = _functions([(name,) for name in CORE_NAMES])
    if found is None:
        return 0
    found[0].restype = ctypes.c_char_p
    return UNPACKED.get(found[0]().decode().lower(), 0)


@functools.cache
def _controls() -> list[Any] | None:
    """Return (set, get) of the library in use; None for one that has no such functions (Apple's Accelerate)."""
    return _functions(FUNCTIONS)


def blas_threads() -> int:
    """Return how many threads a matrix product may use; 0 where the library does not say."""
    controls = _controls()
    return int(controls[1]()) if controls else 0


class limit_blas_threads:
    """Let matrix products use `count` threads inside a `with` block, and as many as before after it."""

    __slots__ = ("count", "before")

    def __init__(self, count: int):
        self.count = self.before = count

    def __enter__(self) -> None:
        if (controls := _controls()) is not None:
            self.before = controls[1]()
            if self.before != self.count:
                controls[0](self.count)

    def __exit__(self, *exception: Any) -> None:
        if self.before != self.count and (controls := _controls()) is not None:
            controls[0](self.before)


class Reading(NamedTuple):
    """How weights are read from main memory: on how many threads of BLAS, or in one stream by np.vecdot."""

    threads: int
    in_one_stream: bool


@functools.cache
def reading(most: int) -> Reading:
    """Return the quickest way on this machine, with `most` threads at most, found by trying them all."""
    weights = np.ones((TRIED // 4096, 1024), dtype=np.float32)
    x, best, found = np.ones(1024, dtype=np.float32), math.inf, Reading(1, True)
    for way in [Reading(1, True), *[Reading(threads, False) for threads in sorted({1, max(most, 1)})]]:
        with limit_blas_threads(way.threads):
            for _ in range(TRIES):
                began = time.perf_counter()
                np.vecdot(weights, x) if way.in_one_stream else x.dot(weights.T)
                seconds = time.perf_counter() - began
                if seconds < best:
                    best, found = seconds, way
    return found
