"""NumPy or CuPy: the one room that knows the difference.

An op never asks which library it runs on: `namespace` looks at the arrays it was given and hands the op the
module they belong to. `set_backend` says where *new* arrays are born. CuPy is imported when it is first asked
for, so that `import minitransformer` works on a machine without it.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numpy as np

Array = Any  # numpy.ndarray or cupy.ndarray: the two have no common type to name
BACKENDS = ("numpy", "cupy")
CUBLAS_TF32 = 3  # cuBLAS's number for its math mode with TensorFloat-32

_cupy: ModuleType | None = None
_gpu: int | None = None  # the GPU of this process among those it sees; None: CuPy's own choice
_current = "numpy"


def _load_cupy() -> ModuleType:
    """Import CuPy once and make sure that a GPU answers. Raises RuntimeError that says what to install."""
    global _cupy
    if _cupy is None:
        try:
            import cupy
        except ImportError as error:
            raise RuntimeError(
                "backend 'cupy' needs CuPy; it is not installed here; "
                "write pip install 'minitransformer[gpu12]' (CUDA 12) or '[gpu13]' (CUDA 13), or --backend numpy"
            ) from error
        try:
            count = cupy.cuda.runtime.getDeviceCount()
        except cupy.cuda.runtime.CUDARuntimeError as error:
            raise RuntimeError(
                f"backend 'cupy' needs a CUDA GPU; CuPy {cupy.__version__} is installed but answers "
                f"'{error}'; write --backend numpy on this machine"
            ) from error
        if count == 0:
            raise RuntimeError("backend 'cupy' needs a CUDA GPU; CuPy sees none; write --backend numpy")
        if _gpu is not None:
            cupy.cuda.Device(_gpu % count).use()  # where each process sees one GPU alone, that is number 0
        _cupy = cupy
    return _cupy


def choose_gpu(number: int) -> None:
    """Say on which GPU this process makes its arrays, before it makes any: ranks of one machine take one each."""
    global _gpu
    _gpu = number
    if _cupy is not None:
        _cupy.cuda.Device(number % _cupy.cuda.runtime.getDeviceCount()).use()


def get_backend() -> str:
    """Return the name of the backend on which new arrays are born: "numpy" or "cupy"."""
    return _current


def set_backend(name: str) -> None:
    """Say where new tensors, parameters and batches are born: "numpy" or "cupy".

    Raises ValueError for another name, RuntimeError where CuPy or a GPU is missing.
    """
    global _current
    if name not in BACKENDS:
        raise ValueError(f"a backend is one of {', '.join(BACKENDS)}; got {name!r}; write set_backend('numpy')")
    if name == "cupy":
        _load_cupy()
    _current = name


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Switch the backend inside a `with` block, and back after it."""
    before = _current
    set_backend(name)
    try:
        yield
    finally:
        set_backend(before)


def xp() -> Any:
    """Return the module of the current backend, for code that makes new arrays."""
    if _current == "numpy":
        return calls_namespace() or np
    return _load_cupy()


def backend_of(array: Array) -> str:
    """Return the name of the backend an array lives on."""
    return "cupy" if _cupy is not None and isinstance(array, _cupy.ndarray) else "numpy"


def namespace(arrays: tuple[Any, ...]) -> Any:
    """Return the module that the arrays belong to; Python numbers and None go with either.

    While NumPy's calls are recorded, it is what stands in for NumPy there.

    Raises TypeError when NumPy and CuPy arrays meet: moving between them is a copy over the bus, and so is
    never done behind your back.
    """
    if _cupy is None:
        return np if _recording.calls is None else calls_namespace() or np
    on_gpu = [isinstance(a, _cupy.ndarray) for a in arrays if hasattr(a, "dtype") and hasattr(a, "shape") and a.ndim]
    if any(on_gpu):
        if not all(on_gpu):
            raise TypeError("an op takes arrays of one backend; got numpy and cupy together; write x.to('cupy')")
        return _cupy
    return _cupy if any(isinstance(a, _cupy.ndarray) for a in arrays) else calls_namespace() or np


def to_numpy(array: Array) -> np.ndarray:
    """Return the array in host memory (a copy only if it lives on a GPU)."""
    return array.get() if backend_of(array) == "cupy" else np.asarray(array)


def to_backend(array: Array, name: str) -> Array:
    """Move an array to the backend of that name; the same object comes back when it is already there.

    Raises RuntimeError for what would go to a GPU while a step is recorded, which would be sent anew at each launch.
    """
    if backend_of(array) == name:
        return array
    if name == "cupy" and _recording.live is not None:
        raise RuntimeError("a recorded step sends nothing but its batch; it sent another array; write graph=false")
    return to_numpy(array) if name == "numpy" else _load_cupy().asarray(array)


def allow_tf32(on: bool = True) -> None:
    """Let a GPU multiply float32 matrices with 10 bits of fraction (TensorFloat-32): faster, and good to 1e-3.

    Raises RuntimeError where CuPy or a GPU is missing.
    """
    _load_cupy()
    from cupy._core import _routines_linalg as products
    from cupy.cuda import device
    from cupy_backends.cuda.libs import cublas

    kind = products.COMPUTE_TYPE_TF32 if on else products.COMPUTE_TYPE_DEFAULT
    products.set_compute_type(np.float32, kind)
    cublas.setMathMode(device.get_cublas_handle(), CUBLAS_TF32 if on else 0)


class NotRecordable(RuntimeError):
    """Something that a recorded step cannot do."""


class _Recording:
    """What a step that is being recorded needs, or None."""

    live: Any = None  # on a GPU: what keeps its changing numbers (graph.Live)
    calls: Any = None  # in NumPy: what stands in for it (kernels/recorded.py), in one thread
    thread = 0


_recording = _Recording()


@contextlib.contextmanager
def recording_calls(stand_in: Any) -> Iterator[None]:
    """Inside the block, and in this thread, ops on NumPy's arrays get another namespace."""
    _recording.calls, _recording.thread = stand_in, threading.get_ident()
    try:
        yield
    finally:
        _recording.calls = None


def calls_namespace() -> Any:
    """Return what stands in for NumPy in a step that is being recorded in this thread, or None."""
    return _recording.calls if _recording.calls is not None and _recording.thread == threading.get_ident() else None


def on_record(f: Callable, *args: Any) -> None:
    """Write down a call that was made and changes how NumPy works, where a step is being recorded."""
    if (stand_in := calls_namespace()) is not None:
        stand_in.recorder.note(f, args)


@contextlib.contextmanager
def recording(live: Any) -> Iterator[None]:
    """Inside the block, what changes from step to step is kept by `live`; see graph.py."""
    _recording.live = live
    try:
        yield
    finally:
        _recording.live = None


def keep(value: Any) -> Any:
    """Return what a cache has given; a step that is being recorded keeps it for as long as it may be launched."""
    if _recording.live is not None:
        _recording.live.kept.append(value)
    return value


def recorder() -> Any:
    """Return what keeps the changing numbers of a step that is being recorded, or None."""
    return _recording.live


def send(*arrays: np.ndarray) -> list[Array]:
    """Return arrays of one dtype on the current backend, where on a GPU all of them go in one copy."""
    if _current == "numpy":
        return list(arrays)
    if _recording.live is not None:
        return list(_recording.live.arrays(*arrays))
    flat = _load_cupy().asarray(np.concatenate([a.ravel() for a in arrays]))
    ends = np.cumsum([a.size for a in arrays]).tolist()
    return [flat[end - a.size : end].reshape(a.shape) for a, end in zip(arrays, ends, strict=True)]
