"""The switch: NumPy alone unless asked, an answer where CuPy or a GPU is missing, one seed for all."""

import builtins
import subprocess
import sys

import numpy as np
import pytest

import minitransformer as mt
from minitransformer import backend


def test_importing_the_package_imports_no_cupy_torch_or_matplotlib():
    heavy = ("cupy", "torch", "matplotlib", "safetensors")
    code = f"import minitransformer, sys; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_cupy_that_is_not_installed_is_answered_with_what_to_install(monkeypatch):
    real = builtins.__import__

    def no_cupy(name, *args, **kwargs):
        if name == "cupy":
            raise ImportError("No module named 'cupy'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_cupy)
    monkeypatch.setattr(backend, "_cupy", None)
    with pytest.raises(RuntimeError, match=r"minitransformer\[gpu12\].*--backend numpy"):
        mt.set_backend("cupy")
    assert mt.get_backend() == "numpy"


def test_a_library_without_a_gpu_is_answered_too(monkeypatch):
    class Fake:
        __version__ = "99"

        class cuda:
            class runtime:
                class CUDARuntimeError(RuntimeError):
                    pass

                @staticmethod
                def getDeviceCount():
                    raise Fake.cuda.runtime.CUDARuntimeError("cudaErrorNoDevice")

    monkeypatch.setitem(sys.modules, "cupy", Fake)
    monkeypatch.setattr(backend, "_cupy", None)
    with pytest.raises(RuntimeError, match="needs a CUDA GPU; CuPy 99 is installed but answers 'cudaErrorNoDevice'"):
        mt.set_backend("cupy")


def test_use_backend_comes_back_even_after_an_error(backend):
    before = mt.get_backend()
    with pytest.raises(KeyError), mt.use_backend("numpy"):
        assert mt.get_backend() == "numpy"
        raise KeyError
    assert mt.get_backend() == before == backend


def test_another_name_is_refused():
    with pytest.raises(ValueError, match="numpy, cupy; got 'jax'"):
        mt.set_backend("jax")


def test_one_seed_gives_one_stream_and_a_tuple_names_its_own():
    def draw(seed):
        mt.manual_seed(seed)
        return backend.generator().random(4)

    np.testing.assert_array_equal(draw(3), draw(3))
    assert (draw((3, 1)) != draw((3, 2))).all()


def test_moving_to_where_one_is_costs_nothing():
    a = np.ones(3)
    assert backend.to_numpy(a) is a and backend.to_backend(a, "numpy") is a and backend.backend_of(a) == "numpy"


class Pretender(np.ndarray):
    """Stands in for cupy.ndarray: an array that NumPy must not touch."""


def test_arrays_of_two_backends_do_not_mix(monkeypatch):
    class Fake:
        ndarray = Pretender

    monkeypatch.setattr(backend, "_cupy", Fake)
    on_gpu = np.ones(3).view(Pretender)
    with pytest.raises(TypeError, match="numpy and cupy together; write x.to"):
        mt.ops.add(np.ones(3), on_gpu)
    assert backend.namespace((on_gpu, 2.0, None)) is Fake
