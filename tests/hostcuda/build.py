"""Build the host mock for the Python that runs this: CuPy's runtime extension against mock.cpp.

    python -m tests.hostcuda.build

Needs Linux on x86-64, g++ 12 or later, Python's headers, and the packages of the extra `hostcuda` in these very
versions. CuPy's source package is fetched once; it and what is made of it stay in the cache, outside the project.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
CUPY = "14.2.0"
SOURCE = f"cupy-{CUPY}"
SHA256 = "cfed725e612178cfbdbf62f4a3a598b60edecbbca718c0d4580c21a16ae4a62c"
VERSIONS = {
    "cupy-cuda12x": CUPY,
    "nvidia-cuda-nvrtc-cu12": "12.9.86",
    "nvidia-cuda-runtime-cu12": "12.9.79",
    "nvidia-cuda-nvcc-cu12": "12.9.86",
    "Cython": "3.2.4",
}
# What CuPy's own build tells Cython.
CONSTANTS = (
    "CUPY_CUDA_VERSION=12090,CUPY_HIP_VERSION=0,CUPY_USE_CUDA_PYTHON=False,CUPY_CUFFT_STATIC=False,"
    "CUPY_CYTHON_VERSION='3.2.4',CUPY_USE_GEN_HIP_CODE=0"
)
# A header that the CUDA wheels do not carry, as far as CuPy needs it.
PROFILER = (
    '#include <cuda_runtime_api.h>\nextern "C" { cudaError_t cudaProfilerStart(); cudaError_t cudaProfilerStop(); }\n'
)
# What CuPy's extensions ask for by name.
LIBRARIES = ("libcublasLt.so.12", "libcublas.so.12", "libcurand.so.10", "libnccl.so.2")
NOT_SUPPORTED = {"cuda": 801, "cublas": 15, "curand": 999, "nccl": 5}  # how each library says so


class CannotBuildError(Exception):
    """Something that the mock needs is not there; the text says what."""


def cache() -> Path:
    """Return where builds and compiled kernels are kept: $HOSTCUDA_CACHE, or hostcuda in the user's cache folder."""
    if "HOSTCUDA_CACHE" in os.environ:
        return Path(os.environ["HOSTCUDA_CACHE"]).expanduser().resolve()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hostcuda"


def digest(*names: str) -> str:
    """Return a short name for the contents of files of this folder."""
    return hashlib.sha256(b"".join((HERE / name).read_bytes() for name in names)).hexdigest()[:12]


def folder() -> Path:
    """Return where the build of these sources for this Python is, or shall be."""
    return cache() / f"{sys.implementation.cache_tag}-{digest('build.py', 'mock.cpp', 'nccl.cpp')}"


def extension(built: Path) -> Path:
    """Return the path of the rebuilt runtime extension."""
    return built / f"runtime{sysconfig.get_config_var('EXT_SUFFIX')}"


def _run(*command: object, **options: object) -> str:
    done = subprocess.run(
        [str(word) for word in command], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options
    )  # type: ignore[call-overload]
    if done.returncode:
        raise CannotBuildError(f"{' '.join(map(str, command))} failed:\n{done.stdout[-3000:]}")
    return str(done.stdout)


def _compiler() -> str:
    compiler = os.environ.get("CXX", "g++")
    if sys.platform != "linux" or os.uname().machine != "x86_64":
        raise CannotBuildError("the host mock runs on Linux on x86-64")
    for tool in (compiler, "nm"):
        if not shutil.which(tool):
            raise CannotBuildError(f"{tool} is not there; install g++ 12 or later and binutils, or set CXX")
    if int(_run(compiler, "-dumpversion").split(".")[0]) < 12:
        raise CannotBuildError(f"{compiler} is too old; 12 or later is needed")
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").exists():
        raise CannotBuildError("Python.h is not there; install Python's development headers")
    return compiler


def _check_versions() -> None:
    for name, wanted in VERSIONS.items():
        try:
            came = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            came = "none"
        if came != wanted:
            raise CannotBuildError(
                f"the host mock is made for {name} {wanted}; found {came}; run pip install -e '.[hostcuda]'"
            )


def _source() -> Path:
    """Return CuPy's source package, fetched if it is not in the cache, and checked."""
    path = cache() / f"{SOURCE}.tar.gz"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=cache()) as into:
            _run(
                sys.executable,
                "-m",
                "pip",
                "download",
                f"cupy=={CUPY}",
                "--no-deps",
                "--no-binary",
                "cupy",
                "--no-build-isolation",
                "-d",
                into,
                env={**os.environ, "READTHEDOCS": "True"},
            )  # fmt: skip  (the variable keeps its set-up from looking for CUDA)
            os.replace(Path(into) / path.name, path)
    if hashlib.sha256(path.read_bytes()).hexdigest() != SHA256:
        path.unlink()
        raise CannotBuildError(f"{path.name} is not the file it should be, and was removed; try again")
    return path


def _symbols(path: Path, *options: str) -> set[str]:
    return set(re.findall(r"\b[A-Z] (\w+)", _run("nm", *options, path)))


def _package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    assert spec is not None and spec.submodule_search_locations
    return Path(next(iter(spec.submodule_search_locations)))


def _build(compiler: str, into: Path) -> None:
    work = into / "work"
    with tarfile.open(_source()) as archive:
        archive.extractall(work, [m for m in archive if m.name.split("/")[1:2] == ["cupy_backends"]], filter="data")
    tree = work / SOURCE
    (work / "cuda_profiler_api.h").write_text(PROFILER)
    nvidia = _package("nvidia")
    headers = [work, sysconfig.get_paths()["include"], tree, tree / "cupy_backends"]
    headers += [nvidia / "cuda_runtime/include", nvidia / "cuda_nvcc/include"]
    flags = ["-std=c++17", "-fPIC", "-w", *[f"-I{h}" for h in headers]]

    _run(
        sys.executable, "-m", "cython", "--cplus", "-3", "-X", "embedsignature=True", "-E", CONSTANTS,
        "cupy_backends/cuda/api/runtime.pyx", cwd=tree,
    )  # fmt: skip
    _run(compiler, "-O1", *flags, "-c", tree / "cupy_backends/cuda/api/runtime.cpp", "-o", work / "runtime.o")
    for name in ("mock", "nccl"):
        _run(compiler, "-O3", "-march=native", *flags, "-c", HERE / f"{name}.cpp", "-o", work / f"{name}.o")

    asked = _symbols(work / "runtime.o", "--undefined-only")
    for library in ("cublas", "curand", "nccl"):
        (user,) = _package("cupy_backends").glob(f"cuda/libs/{library}.*.so")
        asked |= _symbols(user, "-D", "--undefined-only")
    asked = {name for name in asked if re.match("(cuda|cublas|curand|nccl)[A-Z]", name)}
    ours = [work / "mock.o", work / "nccl.o"]
    missing = sorted(asked.difference(*[_symbols(o, "--defined-only") for o in ours]))
    stubs = ["#include <cstdio>"]
    for name in missing:
        status = NOT_SUPPORTED[re.match("cublas|curand|cuda|nccl", name)[0]]  # type: ignore[index]
        says = f'fprintf(stderr, "hostcuda: {name} is not in the mock\\n")'
        stubs.append(f'extern "C" int {name}() {{ {says}; return {status}; }}')
    (work / "stubs.cpp").write_text("\n".join(stubs) + "\n")

    link = [compiler, "-shared", "-fPIC", "-w", "-Wl,-rpath,$ORIGIN", "-Wl,--no-as-needed"]
    mock = into / "libhostcuda.so"
    _run(*link, *ours, work / "stubs.cpp", "-o", mock, "-Wl,-soname,libhostcuda.so", "-ldl", "-lrt")
    for name in LIBRARIES:
        _run(*link, f"-Wl,-soname,{name}", "-o", into / name, mock)
    _run(*link, work / "runtime.o", mock, "-o", extension(into))
    shutil.rmtree(work)


def build() -> Path:
    """Return the folder of the build, made now if it is not there. Raises CannotBuildError."""
    ready = folder()
    if not ready.exists():
        compiler = _compiler()
        _check_versions()
        cache().mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(dir=cache(), prefix="building-"))
        try:
            _build(compiler, aside)
            aside.chmod(0o755)
            aside.rename(ready)  # so that a failure leaves nothing behind
        except OSError:
            if not ready.exists():  # otherwise somebody else was quicker
                raise
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    return ready


if __name__ == "__main__":
    try:
        print(build())
    except CannotBuildError as error:
        sys.exit(f"hostcuda: {error}")
