"""The loss in chunks: equal to the loss of all logits at once, which it never holds."""

import tracemalloc

import numpy as np
import pytest

import minitransformer as mt
from minitransformer import ops


def both(x, weight, target, chunk, **settings):
    results = []
    for chunked in (True, False):
        a, w = mt.tensor(x, requires_grad=True), mt.tensor(weight, requires_grad=True)
        if chunked:
            loss = ops.linear_cross_entropy(a, w, target, chunk=chunk, **settings)
        else:
            loss = ops.cross_entropy(ops.linear(a, w), target, **settings)
        loss.backward(np.random.default_rng(0).standard_normal(loss.shape).astype(loss.dtype))
        results.append([loss.numpy(), a.grad.numpy(), w.grad.numpy()])
    return results


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing, ignore_index", [(0.0, -100), (0.1, 3)])
@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_it_equals_cross_entropy_of_linear(kernels, reduction, smoothing, ignore_index, chunk, rng):
    x, weight, target = rng.standard_normal((3, 5, 4)), rng.standard_normal((7, 4)), rng.integers(0, 7, (3, 5))
    with mt.use_kernels(kernels):
        settings = {"ignore_index": ignore_index, "label_smoothing": smoothing, "reduction": reduction}
        for a, b in zip(*both(x, weight, target, chunk, **settings), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-13)


def test_where_no_token_counts_the_loss_is_zero(rng):
    loss = ops.linear_cross_entropy(rng.standard_normal((5, 4)), rng.standard_normal((7, 4)), np.full(5, -100))
    assert loss == 0


def test_large_logits_do_not_overflow(rng):
    x, weight = 1e3 * rng.standard_normal((5, 4)), 1e3 * rng.standard_normal((7, 4))
    for a, b in zip(*both(x, weight, np.arange(5), 2), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9)


def test_it_never_holds_all_logits(rng):
    n, v = 4096, 2000
    x = mt.tensor(rng.standard_normal((n, 16)).astype("float32"), requires_grad=True)
    weight = mt.tensor(rng.standard_normal((v, 16)).astype("float32"), requires_grad=True)
    ops.linear_cross_entropy(x, weight, np.zeros(n, int), chunk=256).backward()
    tracemalloc.start()
    ops.linear_cross_entropy(x, weight, np.zeros(n, int), chunk=256).backward()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < n * v * 4 / 6  # bytes of the logits; there are two arrays of 256 rows at most


def test_bad_arguments_get_one_line(rng):
    x, weight = rng.standard_normal((5, 4)), rng.standard_normal((7, 4))
    for args, text in (
        ((x, weight, np.zeros(4, int)), "match D, and the tokens"),
        ((x, weight, np.zeros(5)), r"target is integers \(...\); got float64 \(5,\); write target.astype\(int\)"),
        ((x, weight, np.full(5, 7)), "targets lie in 0 … 6 .* got 7"),
        ((x, weight, np.zeros(5, int), -100, 2.0), "label_smoothing lies in"),
        ((x, weight, np.zeros(5, int), -100, 0.0, "mean", 0), "a number of rows of at least 1; got 0"),
    ):
        with pytest.raises(ValueError, match=text):
            ops.linear_cross_entropy(*args)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("classes, tokens", [(70_000, 2), (5, 70_000)])
def test_half_precision_bears_many_classes_and_many_tokens(classes, tokens, autocast, backend, rng):
    """70,000 ones, or losses, are beyond float16; the mean of the losses is ln V."""
    dtype = "float32" if autocast else "float16"
    x = mt.tensor(np.ones((tokens, 1), dtype), requires_grad=True)
    weight = mt.tensor(np.ones((classes, 1), dtype), requires_grad=True)
    target = np.resize(rng.integers(0, 5, 3), tokens)
    with mt.autocast(autocast):
        loss = ops.linear_cross_entropy(x, weight, target, chunk=4096)
    loss.backward(np.full((), 8, loss.dtype))
    assert loss.dtype == np.dtype(dtype) and x.grad.dtype == weight.grad.dtype == np.dtype(dtype)
    np.testing.assert_allclose(loss.item(), np.log(classes), rtol=1e-3)
    counts = np.bincount(target, minlength=classes) / tokens
    np.testing.assert_allclose(weight.grad.numpy()[:5, 0], 8 * (1 / classes - counts[:5]), atol=0.05)
