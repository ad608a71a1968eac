"""Matrix products by cuBLAS: through CuPy, but for a step that is being recorded, where CuPy 14 refuses.

cuBLAS can be recorded; CuPy's door to it says that it cannot. Then its functions are called as the C library has them.
cuBLAS counts columns first, so that row by row it is asked for outᵀ = bᵀ·aᵀ.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import numpy as np

from ...backend import Array, recorder

LIBRARIES = ("libcublas.so.13", "libcublas.so.12")  # by the version of CUDA; CuPy has loaded one of them


@functools.cache
def _cublas() -> Any:
    """Return the C library. Raises RuntimeError where neither version is there."""
    for name in LIBRARIES:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise RuntimeError(f"recording a step needs cuBLAS; {' and '.join(LIBRARIES)} are not there; write graph=false")


def layout(x: Array) -> tuple[int, int] | None:
    """Return (is it transposed?, the step between rows in elements) of matrices (..., N, M); None if neither is."""
    n, m = x.shape[-2:]
    down, along = (s // x.itemsize for s in x.strides[-2:])
    if (along == 1 or m == 1) and (down >= m or n == 1):  # a step along one element alone means nothing
        return 0, max(down, m)
    return (1, max(along, n)) if down == 1 and (along >= n or m == 1) else None


def call(name: str, dtype: Any, *arguments: Any, beta: int = 0) -> None:
    """Call cublasSname or cublasDname on CuPy's handle and stream; α = 1 and β stand where None does."""
    import cupy
    from cupy.cuda import device

    kind = ctypes.c_float if dtype.char == "f" else ctypes.c_double
    numbers = iter([kind(1), kind(beta)])
    given = [ctypes.byref(next(numbers)) if a is None else ctypes.c_void_p(a.data.ptr) if hasattr(a, "data") else a
             for a in arguments]  # fmt: skip
    library, handle = _cublas(), ctypes.c_void_p(device.get_cublas_handle())
    library.cublasSetStream_v2(handle, ctypes.c_void_p(cupy.cuda.get_current_stream().ptr))
    status = getattr(library, f"cublas{dtype.char.upper().replace('F', 'S')}{name}")(handle, *given)
    if status:
        raise RuntimeError(f"cuBLAS could not multiply matrices; it answered {status}; write graph=false")


def matmul(xp: Any, a: Array, b: Array) -> Array:
    """Multiply two matrices, or a vector and a matrix.    (N, M)·(M, P) → (N, P), (M,)·(M, P) → (P,)"""
    if recorder() is None or a.dtype.char not in "fd":
        return xp.matmul(a, b)
    rows = a[None] if a.ndim == 1 else a
    layouts = layout(rows), layout(b)
    if None in layouts:
        rows, b = xp.ascontiguousarray(rows), xp.ascontiguousarray(b)
        layouts = layout(rows), layout(b)
    (ta, lda), (tb, ldb) = layouts  # type: ignore[misc]
    (n, m), p = rows.shape, b.shape[1]
    out = xp.empty((n, p), dtype=a.dtype)
    call("gemm_v2", a.dtype, tb, ta, p, n, m, None, b, ldb, rows, lda, None, out, p)
    return out[0] if a.ndim == 1 else out


@functools.cache
def _number(char: str, value: int) -> np.ndarray:
    """Return α or β as cuBLAS wants it."""
    return np.full(1, value, dtype=char)


def batched(a: Array, b: Array, out: Array, places: list[Any], layouts: Any, add: bool) -> None:
    """Multiply stacks of matrices in one call; `add`: to what is in out.

    places: of b, a and out: for each a list on the device of where its matrices lie, or for each the step from one to
    the next, in elements.
    """
    (ta, lda), (tb, ldb), (_, ldc) = layouts
    n, m, p, count, char = a.shape[-2], a.shape[-1], b.shape[-1], a.shape[0] * a.shape[1], a.dtype.char
    strided = isinstance(places[0], int)
    name = "gemmStridedBatched" if strided else "gemmBatched"
    operands: list[Any] = [(x, ld, place) if strided else (place, ld)
                for x, ld, place in zip((b, a, out), (ldb, lda, ldc), places, strict=True)]  # fmt: skip
    if recorder() is not None:
        if strided:
            operands = [(x, ld, ctypes.c_longlong(step)) for x, ld, step in operands]
        call(name, a.dtype, tb, ta, p, n, m, None, *operands[0], *operands[1], None, *operands[2], count, beta=int(add))
        return
    from cupy.cuda import device
    from cupy_backends.cuda.libs import cublas

    through = getattr(cublas, ("s" if char == "f" else "d") + name)
    of_b, of_a, of_out = [(x.data.ptr, *rest) for x, *rest in operands]
    one, beta = _number(char, 1).ctypes.data, _number(char, int(add)).ctypes.data
    through(device.get_cublas_handle(), tb, ta, p, n, m, one, *of_b, *of_a, beta, *of_out, count)
