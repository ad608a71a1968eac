"""One seed for each test, one switch of backends, one way to ask for PyTorch."""

import warnings

import numpy as np
import pytest

import minitransformer as mt


@pytest.fixture
def rng():
    """A generator with the same numbers in every run."""
    mt.manual_seed(0)
    return np.random.default_rng(20170612)


def _has_gpu():
    try:
        with mt.use_backend("cupy"):
            return True
    except RuntimeError:
        return False


@pytest.fixture(
    params=["numpy", pytest.param("cupy", marks=pytest.mark.skipif(not _has_gpu(), reason="no CuPy with a GPU here"))]
)
def backend(request):
    """The same test body on each backend that this machine has."""
    with mt.use_backend(request.param):
        yield request.param


@pytest.fixture(scope="session")
def torch():
    """PyTorch as an oracle; the tests that need it are skipped where it is absent."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("torch")
