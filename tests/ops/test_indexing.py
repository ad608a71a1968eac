"""Gather and scatter: a repeated index adds each time; it never assigns."""

import numpy as np
import pytest

import minitransformer as mt
from minitransformer import ops

INDICES = [
    2,
    slice(1, None, 2),
    (slice(None), 3),
    (Ellipsis, None, slice(0, 2)),
    np.array([0, 2, 2, 1, 2]),
    (np.array([0, 2, 0]), np.array([4, 1, 4])),
    (slice(None), np.array([[0, 0], [4, 1]])),
    np.arange(15).reshape(3, 5) % 2 == 0,
]


@pytest.mark.parametrize("index", INDICES, ids=str)
def test_getitem_agrees_with_torch(index, agrees_with_torch, torch, rng):
    def as_torch(i):
        return torch.tensor(i) if isinstance(i, np.ndarray) else i

    theirs = tuple(map(as_torch, index)) if isinstance(index, tuple) else as_torch(index)
    if isinstance(index, slice):
        theirs = index
    agrees_with_torch(lambda t: t[index], lambda t: t[theirs], rng.standard_normal((3, 5)))


def test_embedding_agrees_with_torch_repeated_ids_included(agrees_with_torch, torch, rng):
    ids = np.array([[1, 1, 4], [6, 1, 0]])
    agrees_with_torch(
        lambda w: ops.embedding(ids, w), lambda w: torch.nn.functional.embedding(torch.tensor(ids), w),
        rng.standard_normal((7, 3)),
    )  # fmt: skip


def test_a_token_that_comes_five_times_gets_five_gradients(backend):
    weight = mt.tensor(np.zeros((4, 2), "float32"), requires_grad=True)
    ops.embedding(mt.tensor([2, 2, 2, 2, 2, 0]).data, weight).sum().backward()
    np.testing.assert_array_equal(weight.grad.numpy(), [[1, 1], [0, 0], [5, 5], [0, 0]])


def test_scatter_add_adds_repeats():
    y = ops.scatter_add(np.array([1.0, 10.0, 100.0]), index=np.array([1, 2, 1]), shape=(4,))
    np.testing.assert_array_equal(y, [0, 101, 10, 0])


def test_take_along_axis_agrees_with_torch_gather(agrees_with_torch, torch, rng):
    index = np.array([[1, 1], [0, 4], [2, 3]])
    agrees_with_torch(
        lambda t: ops.take_along_axis(t, index), lambda t: t.gather(1, torch.tensor(index)),
        rng.standard_normal((3, 5)),
    )  # fmt: skip


@pytest.mark.parametrize("bad", [[0, 7], [-1, 2]])
def test_ids_out_of_range_are_named(bad, backend):
    if backend == "cupy":
        pytest.skip("ids on a GPU are not looked at: the host would have to wait for them")
    with pytest.raises(IndexError, match=r"0 … 6; got (7|-1)"):
        ops.embedding(np.array(bad), mt.tensor(np.ones((7, 3), "float32")))
