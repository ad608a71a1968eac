"""Linear and Embedding: shapes, initial spread, what they refuse."""

import numpy as np
import pytest

import minitransformer as mt
from minitransformer import nn


def test_linear_has_pytorchs_shapes_and_agrees(torch, rng):
    ours, theirs = nn.Linear(5, 3), torch.nn.Linear(5, 3)
    assert {n: tuple(p.shape) for n, p in theirs.named_parameters()} == {n: p.shape for n, p in ours.named_parameters()}
    ours.load_state_dict({n: p.detach().numpy() for n, p in theirs.named_parameters()})
    x = rng.standard_normal((2, 4, 5)).astype("float32")
    np.testing.assert_allclose(ours(x).numpy(), theirs(torch.tensor(x)).detach().numpy(), atol=1e-6)


def test_xavier_keeps_the_spread(rng):
    layer = nn.Linear(300, 300)
    y = layer(rng.standard_normal((100, 300)).astype("float32")).numpy()
    assert 0.95 < y.std() < 1.05
    assert not layer.bias.numpy().any() and layer.weight.dtype == np.float32


def test_embedding_looks_up_rows_and_starts_with_a_spread_of_one(rng):
    table = nn.Embedding(50, 40)
    ids = rng.integers(0, 50, (2, 3))
    np.testing.assert_array_equal(table(ids).numpy(), table.weight.numpy()[ids])
    assert 0.9 < table.weight.numpy().std() < 1.1
    assert 0.08 < nn.Embedding(50, 40, 0.1).weight.numpy().std() < 0.12


@pytest.mark.parametrize(
    "act, error, text",
    [
        (lambda: nn.Linear(0, 3), ValueError, "at least 1"),
        (lambda: nn.Linear(4, 3)(np.ones((2, 5), "float32")), ValueError, r"x \(2, 5\), weight \(3, 4\)"),
        (lambda: nn.Embedding(4, 3)(np.array([4])), IndexError, "0 … 3; got 4"),
        (lambda: nn.Embedding(4, 3)(np.array([1.0])), TypeError, "integers; got float64"),
        (lambda: nn.Embedding(0, 3), ValueError, "at least 1"),
    ],
)
def test_misuse_is_named(act, error, text, backend):
    if backend == "cupy" and error is IndexError:
        pytest.skip("ids on a GPU are not looked at: the host would have to wait for them")
    mt.manual_seed(0)
    with pytest.raises(error, match=text):
        act()
