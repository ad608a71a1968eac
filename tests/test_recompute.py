"""What is computed again gives what was computed before, and nothing of it was kept."""

import numpy as np
import pytest

import minitransformer as mt
from minitransformer import ops


def f(x, w):
    return ops.gelu(ops.linear(ops.dropout(x * x, 0.4), w))


def run(call, rng):
    x, w = (mt.tensor(rng.standard_normal(shape), requires_grad=True) for shape in ((3, 5), (7, 5)))
    mt.manual_seed(3)
    y = call(x, w)
    more = ops.dropout(y, 0.5)  # what is drawn afterwards is not disturbed
    (more * np.random.default_rng(0).standard_normal(y.shape)).sum().backward()
    return [y.numpy(), more.numpy(), x.grad.numpy(), w.grad.numpy()]


def test_values_gradients_and_dropout_are_those_of_the_plain_function():
    plain = run(f, np.random.default_rng(1))
    again = run(lambda x, w: mt.recompute(f, x, w), np.random.default_rng(1))
    owned = run(lambda x, w: mt.recompute(lambda x: f(x, w), x, parameters=[w]), np.random.default_rng(1))
    for a, b, c in zip(plain, again, owned, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c)


def test_it_runs_once_forwards_and_once_more_backwards(rng):
    calls = []
    x = mt.tensor(rng.standard_normal(3), requires_grad=True)
    y = mt.recompute(lambda t: calls.append(1) or t * 2, x)
    assert len(calls) == 1
    y.sum().backward()
    assert len(calls) == 2
    with mt.no_grad():
        mt.recompute(lambda t: calls.append(1) or t * 2, x)
    assert len(calls) == 3


def test_an_input_or_parameter_that_is_not_reached_gets_no_gradient(rng):
    x, unused = (mt.tensor(rng.standard_normal(3), requires_grad=True) for _ in range(2))
    mt.recompute(lambda a, b, n: a * n, x, unused, 3.0, parameters=[unused]).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), 3 * np.ones(3))
    assert unused.grad is None


def test_constants_in_constants_out(rng):
    y = mt.recompute(lambda a: a + 1, mt.tensor(rng.standard_normal(3)))
    assert not y.requires_grad


def test_second_derivatives_see_through_it(rng):
    x = mt.tensor(rng.standard_normal(4))
    second = mt.grad(lambda t: mt.grad(lambda s: mt.recompute(lambda a: (a * a * a).sum(), s))(t).sum())(x)
    np.testing.assert_allclose(second.numpy(), 6 * x.numpy())


def test_a_used_graph_says_so(rng):
    y = mt.recompute(lambda a: a * a, mt.tensor(rng.standard_normal(3), requires_grad=True)).sum()
    y.backward()
    with pytest.raises(RuntimeError, match="used by an earlier backward"):
        y.backward()
