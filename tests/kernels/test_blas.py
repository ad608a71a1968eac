"""Threads of products: how many read weights soonest is found by trying."""

import pytest

from minitransformer.kernels import blas


@pytest.fixture
def clock(monkeypatch):
    """Seconds that each way takes, by a clock of its own: (threads, in one stream) → seconds."""
    taken, state = {}, {"threads": 1, "now": 0.0, "streams": False}

    class Limit:
        def __init__(self, threads):
            state["threads"] = threads

        def __enter__(self):
            pass

        def __exit__(self, *exception):
            pass

    class Weights:
        """What is multiplied, and how."""

        def __getattr__(self, name):
            return self

        def dot(self, other):
            state["now"] += taken[state["threads"], False]

    class Numpy:
        float32 = None

        def ones(self, shape, dtype):
            return Weights()

        def vecdot(self, a, b):
            state["now"] += taken[state["threads"], True]

    monkeypatch.setattr(blas, "limit_blas_threads", Limit)
    monkeypatch.setattr(blas, "np", Numpy())
    monkeypatch.setattr(blas.time, "perf_counter", lambda: state["now"])
    blas.reading.cache_clear()
    yield taken
    blas.reading.cache_clear()


@pytest.mark.parametrize("best", [(1, True), (1, False), (4, False)])
def test_the_quickest_way_to_read_is_taken(best, clock):
    clock.update({(1, True): 3.0, (1, False): 3.0, (4, False): 3.0, best: 1.0})
    assert blas.reading(4) == best


def test_where_one_thread_is_allowed_one_is_used():
    blas.reading.cache_clear()
    assert blas.reading(1).threads == 1 and blas.reading(0).threads == 1
    assert blas.reading(1) is blas.reading(1)
