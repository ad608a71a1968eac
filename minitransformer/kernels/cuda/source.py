"""CUDA C++ that CuPy compiles for a type of numbers when that type first comes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from ...backend import Array, recorder

TYPES = {"e": "float16", "f": "float", "d": "double"}
WARP = 32

PRELUDE = r"""
#include <cupy/float16.cuh>

template <typename T> struct Wide { typedef float type; };  // in which T is added up
template <> struct Wide<double> { typedef double type; };
typedef long long integer;

// Numbers that come with the launch, or, in a step that is recorded once and launched often, lie on the device.
template <typename N> struct Changing {
    N at[8];
    const N* live;
    __device__ N operator[](int i) const { return live ? live[i] : at[i]; }
};

// The sum over a block's threads, in the same order each time; every thread gets it.
template <typename W> __device__ W block_sum(W value) {
    __shared__ W parts[32];
    for (int by = 16; by; by /= 2) value += __shfl_xor_sync(~0u, value, by);
    __syncthreads();  // an earlier sum may still be read
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
    __syncthreads();
    W sum = 0;
    for (int i = 0; i < blockDim.x / 32; i++) sum += parts[i];
    return sum;
}

// The same for the greatest; a NaN stays one.
template <typename W> __device__ W block_max(W value) {
    __shared__ W parts[32];
    for (int by = 16; by; by /= 2) {
        W other = __shfl_xor_sync(~0u, value, by);
        value = other > value || other != other ? other : value;
    }
    __syncthreads();
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
    __syncthreads();
    W top = parts[0];
    for (int i = 1; i < blockDim.x / 32; i++) top = parts[i] > top || parts[i] != parts[i] ? parts[i] : top;
    return top;
}
"""


CHANGING = {kind: np.dtype([("at", kind, (8,)), ("live", "u8")]) for kind in ("f8", "u8")}


def changing(kind: str, count: int, values: Callable[[], Any]) -> Any:
    """Return the argument for `count` numbers ("f8" or "u8") that may be others at the next step."""
    argument = np.zeros((), dtype=CHANGING[kind])
    live = recorder()
    if live is None:
        argument["at"][:count] = values()
    else:
        argument["live"] = live.numbers(kind, count, values)
    return argument


class Source:
    """Kernels written as templates on the type T of the numbers.

        source("softmax", x.dtype, rows, threads, args)    launches softmax<T> on a grid of `rows` blocks

    names: those that may be called; all of them are compiled together, once for each T.
    """

    def __init__(self, names: str, code: str):
        self.names, self.code = names.split(), PRELUDE + code
        self._compiled: dict[tuple[str, str], Any] = {}

    def expressions(self, char: str) -> list[str]:
        """Return the C++ names of the kernels for a type."""
        return [f"{name}<{TYPES[char]}>" for name in self.names]

    def _compile(self, char: str) -> None:
        import cupy

        module = cupy.RawModule(
            code=self.code, options=("-std=c++17",), name_expressions=self.expressions(char), backend="nvrtc"
        )
        for name, expression in zip(self.names, self.expressions(char), strict=True):
            self._compiled[name, char] = module.get_function(expression)

    def __call__(self, name: str, dtype: Any, blocks: Any, threads: int, args: tuple, shared: int = 0) -> None:
        """Launch a kernel; blocks: how many, or (along x, along y)."""
        if (name, dtype.char) not in self._compiled:
            self._compile(dtype.char)
        grid = blocks if isinstance(blocks, tuple) else (blocks,)
        self._compiled[name, dtype.char](grid, (threads,), args, shared_mem=shared)


SOURCES: dict[str, Source] = {}  # by the name of their file, for tests that walk them


def source(file: str, names: str, code: str) -> Source:
    """Make a Source and note it."""
    SOURCES[file] = Source(names, code)
    return SOURCES[file]


@functools.cache
def arrived(device: int) -> Array:
    """Return the counter of a device at which the blocks of a launch meet; the last one leaves it at zero."""
    import cupy

    return cupy.zeros(1, dtype=np.int32)


def threads_for(width: int) -> int:
    """Return how many threads share a row: whole warps, at most 256, each with some elements of its own."""
    return min(256, -(-width // WARP) * WARP)


def suits(*arrays: Any) -> bool:
    """Tell whether arrays are of one floating type, not empty, and lie row by row."""
    first = arrays[0]
    return first.dtype.char in TYPES and all(
        a.dtype == first.dtype and a.flags.c_contiguous and a.size and a.ndim for a in arrays
    )


def packed(xp: Any, array: Array) -> Array:
    """Return the array row by row: itself where it already lies so."""
    return array if array.flags.c_contiguous else xp.ascontiguousarray(array)
