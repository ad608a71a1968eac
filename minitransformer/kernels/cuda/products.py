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


def call(name: str, dtype: Any, *arguments: Any) -> None:
    """Call cublasSname or cublasDname on CuPy's handle and stream; α = 1 and β = 0 stand where None does."""
    import cupy
    from cupy.cuda import device

    kind = ctypes.c_float if dtype.char == "f" else ctypes.c_double
    numbers = iter([kind(1), kind(0)])
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


def batched(a: Array, b: Array, out: Array, lists: list[Array], layouts: Any) -> None:
    """Multiply stacks of matrices whose addresses lie in lists on the device: those of b, of a, of out."""
    (ta, lda), (tb, ldb), (_, ldc) = layouts
    n, m, p, count = a.shape[-2], a.shape[-1], b.shape[-1], a.shape[0] * a.shape[1]
    if recorder() is not None:
        call("gemmBatched", a.dtype, tb, ta, p, n, m, None, lists[0], ldb, lists[1], lda, None, lists[2], ldc, count)
        return
    from cupy.cuda import device
    from cupy_backends.cuda.libs import cublas

    through = cublas.sgemmBatched if a.dtype.char == "f" else cublas.dgemmBatched
    one, zero = np.ones(1, dtype=a.dtype), np.zeros(1, dtype=a.dtype)
    through(
        device.get_cublas_handle(), tb, ta, p, n, m, one.ctypes.data, lists[0].data.ptr, ldb, lists[1].data.ptr, lda,
        zero.ctypes.data, lists[2].data.ptr, ldc, count,
    )  # fmt: skip
