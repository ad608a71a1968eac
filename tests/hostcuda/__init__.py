"""The real CuPy without a GPU: its wheel, unchanged, on a mock of CUDA that runs kernels on the CPU. See README.md.

from tests import hostcuda
hostcuda.activate()          # before the first `import cupy`
"""

from __future__ import annotations

import ctypes
import importlib.machinery
import importlib.util
import os
import re
import struct
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .build import HERE, LIBRARIES, cache, digest, extension
from .build import build as build_mock

COUNTERS = ("launch", "to_device", "to_host", "on_device", "sync", "allocation", "product", "fill")
THREAD_ORDERS = ("forward", "backward", "warp by warp")  # numbered as in device.h
ARCHITECTURES = ("70", "75", "80", "86", "89", "90", "100", "120")  # sm_70 to sm_120

_mock: Any = None


def activate() -> None:
    """Make `import cupy` find the mock. Raises RuntimeError if CuPy is there already; see also `build.build`."""
    global _mock
    if _mock is not None:
        return
    if "cupy" in sys.modules:
        raise RuntimeError("hostcuda.activate comes before the first import of cupy; it came after")
    built = build_mock()
    os.environ["CUPY_ACCELERATORS"] = ""  # CUB and cuTENSOR are machine code for a GPU
    os.environ["CUPY_CACHE_DIR"] = str(cache() / f"kernels-{digest('__init__.py', 'device.h')}")
    mock = ctypes.CDLL(str(built / "libhostcuda.so"))
    mock.host_kernels.restype = ctypes.c_size_t
    mock.host_kernels.argtypes = [ctypes.c_char_p, ctypes.c_size_t]
    mock.host_on_device.argtypes = [ctypes.c_void_p]
    _mock = mock
    for name in LIBRARIES:
        ctypes.CDLL(str(built / name))
    _import_cupy(built)
    _compile_for_the_host()
    _sort_by_numpy()
    print("CuPy runs on the host mock: no GPU takes part", file=sys.stderr)


def is_active() -> bool:
    """Tell whether CuPy runs on the mock."""
    return _mock is not None


def _import_cupy(built: Path) -> None:
    """Import CuPy with the rebuilt runtime, and with the mock where it looks for the driver (and only there)."""
    real = ctypes.CDLL

    class Redirected(real):  # type: ignore[valid-type,misc]
        def __init__(self, name: Any = None, *args: Any, **kwargs: Any):
            super().__init__(str(built / "libhostcuda.so") if name == "libcuda.so.1" else name, *args, **kwargs)

    ctypes.CDLL = Redirected  # type: ignore[misc]
    try:
        import cupy_backends.cuda.api as api

        name, path = "cupy_backends.cuda.api.runtime", str(extension(built))
        loader = importlib.machinery.ExtensionFileLoader(name, path)
        spec = importlib.util.spec_from_file_location(name, path, loader=loader)
        assert spec is not None
        sys.modules[name] = api.runtime = importlib.util.module_from_spec(spec)
        loader.exec_module(api.runtime)
        import cupy  # noqa: F401
        from cupy_backends.cuda.api import driver

        driver.ctxGetCurrent()  # opens the driver, while it is redirected
    finally:
        ctypes.CDLL = real  # type: ignore[misc]


# -- counting ---------------------------------------------------------------------------------------------------------
def counts() -> dict[str, int]:
    """Return how often each thing happened since `reset`; products of matrices are not among the launches."""
    values = (ctypes.c_long * len(COUNTERS))()
    _mock.host_counts(values)
    return dict(zip(COUNTERS, values, strict=True))


def kernels() -> dict[str, int]:
    """Return how often each kernel was launched since `reset`."""
    room = _mock.host_kernels(None, 0)
    text = ctypes.create_string_buffer(room)
    _mock.host_kernels(text, room)
    return {name: int(n) for name, n in (line.rsplit("\t", 1) for line in text.value.decode().splitlines())}


def reset() -> None:
    """Set all counters to zero."""
    _mock.host_reset()


def set_thread_order(name: str) -> None:
    """Choose in which order the threads of a block take turns; a correct kernel gives the same in each."""
    _mock.host_thread_order(THREAD_ORDERS.index(name))


# -- kernels: accepted by NVRTC, then compiled by g++ -----------------------------------------------------------------
_KERNEL = re.compile(
    r"__global__\s+(?:__launch_bounds__\s*\([^)]*\)\s*)?void\s+(?:__launch_bounds__\s*\([^)]*\)\s*)?(\w+)\s*\("
)
_DYNAMIC = re.compile(r"extern\s+__shared__\s+(?:__align__\s*\(\s*\d+\s*\)\s*)?([\w\s:<>]+?)\s+(\w+)\s*\[\s*\]\s*;")
_BARRIER = re.compile(r"__sync|__shfl|__ballot_sync|__any_sync|__all_sync")
_EXPORTED = """
static void host_body_{i}(void** given) {{ host::unpack(&{kernel}, given); }}
extern "C" {{
extern const host::Sizes {name}__sizes;
const host::Sizes {name}__sizes = host::sizes_of(&{kernel});
void {name}__entry(void** given, const unsigned* grid, const unsigned* block, unsigned shared, int order) {{
    host::launch(host_body_{i}, given, grid, block, shared, order, {barriers});
}}
}}
"""


def nvrtc(source: str, architecture: str, expressions: Sequence[str] = ()) -> None:
    """Have the real NVRTC compile a CUDA C++ source, and templates of it, for sm_`architecture`.

    Raises cupy's CompileException.
    """
    import cupy
    from cupy.cuda import compiler

    real = getattr(compiler._NVRTCProgram.compile, "real", compiler._NVRTCProgram.compile)
    program = compiler._NVRTCProgram(source, "source.cu", (), (), tuple(expressions) or None, "ptx")
    include = Path(cupy.__file__).parent / "_core/include"
    nvidia = importlib.util.find_spec("nvidia.cuda_runtime")
    folders = [include, *[Path(p) / "include" for p in (nvidia.submodule_search_locations if nvidia else ())]]
    real(program, ("-std=c++17", f"-arch=compute_{architecture}", *[f"-I{f}" for f in folders]), None)


def _compile_for_the_host() -> None:
    from cupy.cuda import compiler

    real = compiler._NVRTCProgram.compile

    def compile(self: Any, options: tuple[str, ...] = (), log_stream: Any = None) -> tuple[bytes, Any]:
        image, lowered = real(self, options, log_stream)
        if self.method != "cubin" or "__global__" not in self.src:
            return image, lowered
        # On a GPU a kernel is found by its plain name only where NVRTC exports it so (extern "C"): here, too.
        entries = {n: n for n in set(_KERNEL.findall(self.src)) if b"\0.text." + n.encode() + b"\0" in image}
        for expression, symbol in (lowered or {}).items():  # templates: what was asked for → its name in the image
            entries[symbol.decode() if isinstance(symbol, bytes) else symbol] = expression
        return _gxx(self.src, entries, options), lowered

    compile.real = real  # type: ignore[attr-defined]
    compiler._NVRTCProgram.compile = compile


def _gxx(source: str, entries: dict[str, str], options: tuple[str, ...]) -> bytes:
    """Return the image of a module: a shared object made from the source, behind a short header."""
    barriers = "true" if _BARRIER.search(source) else "false"
    source = _DYNAMIC.sub(r"\1* \2 = (\1*)host::dynamic_shared;", source)
    for i, (name, kernel) in enumerate(sorted(entries.items())):
        source += _EXPORTED.format(i=i, name=name, kernel=kernel, barriers=barriers)
    nvidia = importlib.util.find_spec("nvidia.cuda_nvcc")
    assert nvidia is not None and nvidia.submodule_search_locations
    flags = ["-O1", "-w", "-std=c++17", "-shared", "-fPIC", "-fpermissive", "-ffp-contract=off"]
    flags += ["-include", str(HERE / "device.h"), *[o for o in options if o.startswith(("-I", "-D"))]]
    flags += [f"-I{path}/include" for path in nvidia.submodule_search_locations]
    with tempfile.TemporaryDirectory(prefix="hostcuda-") as folder:
        text, made = Path(folder) / "kernel.cpp", Path(folder) / "kernel.so"
        text.write_text(source)
        done = subprocess.run(
            [os.environ.get("CXX", "g++"), *flags, str(text), "-o", str(made)], capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(f"NVRTC took a kernel that the mock does not understand:\n{done.stderr[:3000]}")
        code = made.read_bytes()
    return b"HOSTSO\0\0" + struct.pack("<Q", len(code)) + code


# -- sorting, which CuPy has as machine code for a GPU ----------------------------------------------------------------
def _on_host(pointer: int, dtype: Any, shape: tuple[int, ...]) -> Any:
    """Return mock memory as a NumPy array."""
    import numpy as np

    size = int(np.prod(shape))
    if size and not _mock.host_on_device(pointer):
        raise RuntimeError("a pointer to host memory came where device memory is needed")
    raw = (ctypes.c_char * (size * np.dtype(dtype).itemsize)).from_address(pointer) if size else b""
    return np.frombuffer(raw, dtype).reshape(shape)


def _sort_by_numpy() -> None:
    import numpy as np
    from cupy.cuda import thrust

    def sort(dtype: Any, data: int, keys: int, shape: tuple[int, ...]) -> None:
        _mock.host_note(b"thrust_sort")
        _on_host(data, dtype, shape).sort(axis=-1)

    def argsort(dtype: Any, indices: int, data: int, keys: int, shape: tuple[int, ...]) -> None:
        _mock.host_note(b"thrust_argsort")
        values = _on_host(data, dtype, shape)
        order = np.argsort(values, axis=-1, kind="stable")
        _on_host(indices, np.int64, shape)[...] = order
        values[...] = np.take_along_axis(values, order, -1)

    thrust.sort, thrust.argsort = sort, argsort
