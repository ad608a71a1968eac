"""Sums and maxima of rows: the same as NumPy's own, for every length, type and kind of array."""

import numpy as np
import pytest

import minitransformer as mt
from minitransformer.ops.rows import LONGEST, row_dot, row_max, row_mean, row_sum, sum_of_products, sum_of_rows

SHAPES = [(3, 1), (2, 3, 16), (5, 17), (4, LONGEST), (2, LONGEST + 1), (0, 4)]


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_they_are_numpys_sums_and_maxima(rng, shape, dtype):
    a, b = (rng.standard_normal(shape).astype(dtype) for _ in range(2))
    near = {"rtol": 0, "atol": 1e-4 if dtype == "f4" else 1e-12}
    exact_a, exact_b, n = a.astype("f8"), b.astype("f8"), shape[-1]
    np.testing.assert_allclose(row_sum(a), exact_a.sum(-1, keepdims=True), **near)
    np.testing.assert_allclose(row_dot(a, b), (exact_a * exact_b).sum(-1, keepdims=True), **near)
    np.testing.assert_allclose(row_mean(a), exact_a.mean(-1, keepdims=True), **near)
    np.testing.assert_array_equal(row_max(a), a.max(-1, keepdims=True))
    np.testing.assert_allclose(sum_of_rows(a), exact_a.reshape(-1, n).sum(0), **near)
    np.testing.assert_allclose(sum_of_products(a, b), (exact_a * exact_b).reshape(-1, n).sum(0), **near)
    for made in (row_sum(a), row_dot(a, b), row_mean(a), row_max(a), sum_of_rows(a), sum_of_products(a, b)):
        assert made.dtype == dtype


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2])
def test_another_axis_and_rows_that_do_not_lie_side_by_side(rng, axis):
    a, b = (rng.standard_normal((4, 6, 5)).swapaxes(0, 2) for _ in range(2))
    np.testing.assert_allclose(row_sum(a, axis), a.sum(axis, keepdims=True), rtol=1e-12)
    np.testing.assert_allclose(row_dot(a, b, axis), (a * b).sum(axis, keepdims=True), rtol=1e-12)
    np.testing.assert_array_equal(row_max(a, axis), a.max(axis, keepdims=True))
    np.testing.assert_allclose(sum_of_rows(a), a.sum((0, 1)), rtol=1e-12)


def test_long_rows_add_pairs_up():
    x = np.full((1, 1 << 22), 0.1, dtype=np.float32)
    assert abs(float(row_sum(x)[0, 0]) - 0.1 * (1 << 22)) < 1


def test_a_row_of_nothing_and_what_is_not_a_number():
    assert row_max(np.empty((2, 0)))[0, 0] == -np.inf and row_sum(np.empty((2, 0)))[0, 0] == 0
    assert np.isnan(row_max(np.array([[1.0, np.nan, 2.0]]))).all() and row_max(np.full((1, 3), -np.inf)) == -np.inf


def test_half_precision_adds_up_in_single(rng):
    many = np.ones((4096, 3), dtype=np.float16)
    assert (sum_of_rows(many) == 4096).all() and sum_of_rows(many).dtype == np.float16


def test_on_tensors_they_are_differentiated(rng):
    a, b = (mt.tensor(rng.standard_normal((2, 3, 4)), requires_grad=True) for _ in range(2))
    parts = [row_sum(a), row_dot(a, b), row_mean(a), row_max(a), sum_of_rows(a), sum_of_products(a, b)]
    assert [p.shape for p in parts] == [(2, 3, 1)] * 4 + [(4,)] * 2
    sum((p.sum() for p in parts[1:]), start=parts[0].sum()).backward()
    at_top = (a.numpy() == a.numpy().max(-1, keepdims=True)).astype("f8")
    np.testing.assert_allclose(a.grad.numpy(), 1 + b.numpy() + 1 / 4 + at_top + 1 + b.numpy(), rtol=1e-12)
