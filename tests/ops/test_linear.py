"""Matrix products against PyTorch: batched, broadcast, with vectors; the linear layer; einsum."""

import numpy as np
import pytest

import minitransformer as mt
from minitransformer import ops

SHAPES = [
    ((3, 5), (5, 2)),
    ((2, 1, 3, 5), (7, 5, 2)),
    ((4, 3, 5), (5, 2)),
    ((5,), (5, 2)),
    ((3, 5), (5,)),
    ((5,), (5,)),
]


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_matmul_agrees_with_torch(shapes, agrees_with_torch, rng):
    a, b = (rng.standard_normal(s) for s in shapes)
    agrees_with_torch(lambda x, y: x @ y, lambda x, y: x @ y, a, b)


@pytest.mark.parametrize("rows", [(), (3,), (2, 3), (0,)])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_agrees_with_torch(rows, bias, agrees_with_torch, torch, rng):
    arrays = [rng.standard_normal((*rows, 5)), rng.standard_normal((7, 5)), rng.standard_normal(7)]
    agrees_with_torch(ops.linear, torch.nn.functional.linear, *arrays[: 2 + bias])


@pytest.mark.parametrize(
    "subscripts, shapes",
    [
        ("bqk,bsk->bqs", ((2, 3, 5), (2, 7, 5))),
        ("ij,jk,kl->il", ((2, 3), (3, 5), (5, 7))),
        ("ij->j", ((3, 5),)),
        ("ij->ji", ((3, 5),)),
        ("i,j->ij", ((3,), (5,))),
        ("bhqk,bhsk->bhqs", ((2, 3, 4, 5), (2, 3, 7, 5))),
    ],
)
def test_einsum_agrees_with_torch(subscripts, shapes, agrees_with_torch, torch, rng):
    arrays = [rng.standard_normal(s) for s in shapes]
    agrees_with_torch(lambda *a: ops.einsum(subscripts, *a), lambda *a: torch.einsum(subscripts, *a), *arrays)


@pytest.mark.parametrize(
    "act, text",
    [
        (lambda: mt.tensor(np.ones((2, 3))) @ mt.tensor(np.ones((4, 5))), r"\(2, 3\) and \(4, 5\)"),
        (lambda: ops.linear(np.ones((2, 3)), np.ones((5, 4))), r"x \(2, 3\), weight \(5, 4\)"),
        (lambda: ops.linear(np.ones((2, 4)), np.ones((5, 4)), np.ones(4)), r"bias \(4,\)"),
        (lambda: ops.einsum("ij,jk", np.ones((2, 3)), np.ones((3, 4))), "->"),
        (lambda: ops.einsum("ii->i", np.ones((2, 2))), "diagonal"),
        (lambda: ops.einsum("ij->ik", np.ones((2, 2))), "out only what came in"),
    ],
)
def test_sizes_that_do_not_meet_are_named(act, text):
    with pytest.raises(ValueError, match=text):
        act()
