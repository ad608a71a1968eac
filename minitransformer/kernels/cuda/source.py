"""CUDA C++ that CuPy compiles for a type of numbers when that type first comes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from ...backend import Array, recorder

TYPES = {"e": "float16", "f": "float", "d": "double"}
WARP = 32
HELD = 8  # elements of a row that a thread takes at once
MOST_THREADS = 512  # of a row: each may have 128 registers
ROWS_AT_ONCE = 4  # of a block, where a warp is enough for a row

PRELUDE = (
    f"const int HELD = {HELD}, MOST_THREADS = {MOST_THREADS};"
    + r"""
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

// The sum over the threads of a row, in the same order each time; every thread gets it. A warp needs no barrier.
template <typename W> __device__ W block_sum(W value) {
    __shared__ W parts[32];
    for (int by = 16; by; by /= 2) value += __shfl_xor_sync(~0u, value, by);
    if (blockDim.x == 32) return value;
    __syncthreads();  // an earlier sum may still be read
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
    __syncthreads();
    W sum = 0;
    for (int i = 0; i < blockDim.x / 32; i++) sum += parts[i];
    return sum;
}

// Two sums at once.
template <typename W> __device__ void block_sums(W& a, W& b) {
    __shared__ W parts[2][32];
    for (int by = 16; by; by /= 2) a += __shfl_xor_sync(~0u, a, by), b += __shfl_xor_sync(~0u, b, by);
    if (blockDim.x == 32) return;
    __syncthreads();
    if (threadIdx.x % 32 == 0) parts[0][threadIdx.x / 32] = a, parts[1][threadIdx.x / 32] = b;
    __syncthreads();
    a = b = 0;
    for (int i = 0; i < blockDim.x / 32; i++) a += parts[0][i], b += parts[1][i];
}

// The same for the greatest; a NaN stays one.
template <typename W> __device__ W block_max(W value) {
    __shared__ W parts[32];
    for (int by = 16; by; by /= 2) {
        W other = __shfl_xor_sync(~0u, value, by);
        value = other > value || other != other ? other : value;
    }
    if (blockDim.x == 32) return value;
    __syncthreads();
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
    __syncthreads();
    W top = parts[0];
    for (int i = 1; i < blockDim.x / 32; i++) top = parts[i] > top || parts[i] != parts[i] ? parts[i] : top;
    return top;
}

// Sixteen bytes in one access, from and to an address that is a multiple of sixteen.
template <typename T> __device__ void read_run(const T* x, T* run) {
    const uint4 bits = *(const uint4*)x;
    memcpy(run, &bits, 16);
}
template <typename T> __device__ void write_run(T* y, const T* run) {
    uint4 bits;
    memcpy(&bits, run, 16);
    *(uint4*)y = bits;
}

// Rows of `width` elements as their threads take them: HELD elements each, then the next span of the row. The HELD are
// runs of 16 bytes, which one access moves, where the rows of all arrays begin at a multiple of that; else single ones,
// next to those of the threads beside. at(from, k): the place of a thread's k-th element in the span that begins there.
#define BY_ROWS __launch_bounds__(MOST_THREADS, sizeof(T) < 8 ? 2 : 1)  // 64 registers, 128 in double precision
template <typename T> struct Rows {
    typedef typename Wide<T>::type W;
    static const int RUN = 16 / sizeof(T);
    integer row;
    int width, span, first, step;
    bool whole;
    __device__ Rows(int width, size_t addresses) : width(width), span(HELD * blockDim.x) {
        row = (integer)blockIdx.x * blockDim.y + threadIdx.y;
        whole = addresses % 16 == 0 && width % RUN == 0;
        first = whole ? threadIdx.x * RUN : threadIdx.x;
        step = whole ? 1 : blockDim.x;
    }
    __device__ int at(int from, int k) const { return from + first + k / RUN * RUN * blockDim.x + k % RUN * step; }
    // N: of the numbers in memory, as wide as T or wider. What is not before the end of the row is `missing`.
    template <typename N> __device__ void load(const N* x, int from, int end, W missing, W* values) const {
        for (int k = 0; !whole && k < HELD; k++) values[k] = at(from, k) < end ? (W)x[at(from, k)] : missing;
        for (int k = 0; whole && k < HELD; k += RUN) {
            N run[RUN] = {};
            for (int r = 0; at(from, k) < end && r < RUN; r += 16 / sizeof(N)) read_run(x + at(from, k) + r, run + r);
            for (int r = 0; r < RUN; r++) values[k + r] = at(from, k) < end ? (W)run[r] : missing;
        }
    }
    template <typename N> __device__ void store(N* y, int from, const W* values) const {
        for (int k = 0; !whole && k < HELD; k++)
            if (at(from, k) < width) y[at(from, k)] = N(values[k]);
        for (int k = 0; whole && k < HELD; k += RUN) {
            N run[RUN];
            for (int r = 0; r < RUN; r++) run[r] = N(values[k + r]);
            for (int r = 0; at(from, k) < width && r < RUN; r += 16 / sizeof(N))
                write_run(y + at(from, k) + r, run + r);
        }
    }
};
"""
)


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

    def __call__(self, name: str, dtype: Any, blocks: Any, threads: Any, args: tuple) -> None:
        """Launch a kernel; blocks, threads: how many, or (along x, along y)."""
        if (name, dtype.char) not in self._compiled:
            self._compile(dtype.char)
        grid = blocks if isinstance(blocks, tuple) else (blocks,)
        block = threads if isinstance(threads, tuple) else (threads,)
        self._compiled[name, dtype.char](grid, block, args)

    def by_rows(self, name: str, dtype: Any, rows: int, width: int, args: tuple) -> None:
        """Launch a kernel whose last arguments are these two, with enough threads for all rows; see `Rows`."""
        threads = threads_for(width)
        self(name, dtype, -(-rows // threads[1]), threads, (*args, np.int32(rows), np.int32(width)))


SOURCES: dict[str, Source] = {}  # by the name of their file, for tests that walk them


def source(file: str, names: str, code: str) -> Source:
    """Make a Source and note it."""
    SOURCES[file] = Source(names, code)
    return SOURCES[file]


@functools.cache
def arrived(device: int) -> Array:
    """Return the counters of a device at which the blocks of a launch meet; whoever comes last sets his to zero."""
    import cupy

    return cupy.zeros(1024, dtype=np.int32)


@functools.cache
def processors(device: int) -> int:
    """Return how many blocks a device works on at once, not counting those that share a processor."""
    from cupy.cuda import runtime

    return int(runtime.deviceGetAttribute(runtime.cudaDevAttrMultiProcessorCount, device))


def threads_for(width: int) -> tuple[int, int]:
    """Return how many threads share a row, whole warps, and how many rows share a block."""
    warps = -(-width // (HELD * WARP))
    return min(MOST_THREADS, warps * WARP), ROWS_AT_ONCE if warps == 1 else 1


def suits(*arrays: Any) -> bool:
    """Tell whether arrays are of one floating type, not empty, and lie row by row."""
    first = arrays[0]
    return first.dtype.char in TYPES and all(
        a.dtype == first.dtype and a.flags.c_contiguous and a.size and a.ndim for a in arrays
    )


def packed(xp: Any, array: Array) -> Array:
    """Return the array row by row: itself where it already lies so."""
    return array if array.flags.c_contiguous else xp.ascontiguousarray(array)
