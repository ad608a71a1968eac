"""One seed for each test, one switch of backends, one way to ask for PyTorch."""

import importlib
import os
import shutil
import subprocess
import sys
import warnings

import numpy as np
import pytest

import minitransformer as mt
from minitransformer.figures import BROWSERS


@pytest.fixture
def rng():
    """A generator with the same numbers in every run."""
    mt.manual_seed(0)
    return np.random.default_rng(20170612)


def pytest_addoption(parser):
    parser.addoption(
        "--backend",
        choices=("numpy", "cupy"),
        default="numpy",
        help="where tensors live; cupy: a GPU, else a mock of one",
    )


def pytest_configure(config):
    """With --backend cupy: take the GPU that is there, or let CuPy run on the host mock."""
    config.where = "numpy"
    if config.getoption("--backend") == "cupy":
        if not _gpu_answers():
            from tests import hostcuda

            hostcuda.activate()
        from tests import boundary

        boundary.open_it()
        config.where = "cupy on the host mock: not a GPU" if _on_mock() else "cupy on a GPU"


def _gpu_answers():
    """Ask in a process of its own: an import of CuPy cannot be taken back."""
    ask = "import cupy; assert cupy.cuda.runtime.getDeviceCount()"
    return not subprocess.run([sys.executable, "-W", "ignore", "-c", ask], capture_output=True).returncode


def _on_mock():
    from tests import hostcuda

    return hostcuda.is_active()


def pytest_report_header(config):
    return f"backend: {config.where}"


@pytest.fixture(autouse=True)
def backend(request):
    """The backend of the whole run, on which each test's tensors, parameters and batches are born."""
    with mt.use_backend(request.config.getoption("--backend")):
        yield request.config.getoption("--backend")


def _oracle(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if os.environ.get("MINITRANSFORMER_ORACLES") == "required":
            return importlib.import_module(name)
        return pytest.importorskip(name)


@pytest.fixture(scope="session")
def torch():
    """PyTorch as an oracle, on one thread; tests that need it are skipped where it is absent, except in CI."""
    module = _oracle("torch")
    module.set_num_threads(1)
    return module


@pytest.fixture(scope="session")
def transformers():
    """The library transformers as an oracle."""
    return _oracle("transformers")


@pytest.fixture(scope="session")
def scipy_special():
    """SciPy's special functions as an oracle."""
    return _oracle("scipy.special")


def no_browser(reason):
    """Skip a test that needs a browser, or fail where MINITRANSFORMER_BROWSER=required."""
    if os.environ.get("MINITRANSFORMER_BROWSER") == "required":
        pytest.fail(f"MINITRANSFORMER_BROWSER=required, but {reason}")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def browser_binary():
    """The path of Chromium; tests that need it are skipped where it is absent."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    return found or no_browser("Chromium is not installed: apt-get install chromium")


# What is about the host alone: its processes, its clock, the source text.
HOST_ONLY = (
    "tests/bench/", "tests/test_parallel.py", "tests/test_house.py", "tests/test_gradcheck.py", "tests/data/test_tok",
    "tests/test_lessons.py", "tests/lessons/",
    "tests/views/test_browser.py", "tests/views/test_lines.py", "tests/views/test_terminal.py",
    "tests/test_trace.py::test_each_step_tells",
)  # fmt: skip


ON_A_GPU_TOO = ("tests/bench/test_gpu", "tests/bench/test_on_gpu")
TOO_LONG_FOR_THE_MOCK = ("tests/test_tasks.py",)  # trains until something is learned; on a GPU it runs


def pytest_collection_modifyitems(config, items):
    """Mark what asks for an oracle, so that `pytest -m oracle` finds it; leave out what no backend changes."""
    if config.getoption("--backend") == "cupy":
        names = HOST_ONLY + (TOO_LONG_FOR_THE_MOCK if _on_mock() else ())
        out = [i for i in items if i.nodeid.startswith(names) and not i.nodeid.startswith(ON_A_GPU_TOO)]
        config.hook.pytest_deselected(items=out)
        left = set(out)
        items[:] = [i for i in items if i not in left]
    for item in items:
        if {"torch", "transformers", "scipy_special"} & set(item.fixturenames):
            item.add_marker("oracle")


def _run_ours(f, arrays, cotangent):
    inputs = [mt.tensor(a, requires_grad=a.dtype.kind == "f") for a in arrays]
    y = f(*inputs)
    y.backward(cotangent.astype(y.dtype))
    assert y.dtype == next(a.dtype for a in arrays if a.dtype.kind == "f")
    return y.numpy(), [t.grad.numpy() for t in inputs if t.requires_grad]


@pytest.fixture
def agrees_with_torch(torch, rng):
    """Compare value and every gradient of two functions: to 1e-10 in float64, to 1e-5 in float32."""

    def check(ours, theirs, *arrays):
        for dtype, tolerance in (("float64", 1e-10), ("float32", 1e-5)):
            given = [a.astype(dtype) if a.dtype.kind == "f" else a for a in arrays]
            leaves = [torch.tensor(a, requires_grad=a.dtype.kind == "f") for a in given]
            expected = theirs(*leaves)
            cotangent = rng.standard_normal(expected.shape)
            expected.backward(torch.tensor(cotangent.astype(dtype)))
            y, gradients = _run_ours(ours, given, cotangent)
            wanted = [expected.detach().numpy(), *[t.grad.numpy() for t in leaves if t.requires_grad]]
            for i, (a, b) in enumerate(zip([y, *gradients], wanted, strict=True)):
                size = max(1.0, np.abs(b).max(initial=0))
                np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * size, err_msg=f"{dtype}, number {i}")

    return check
