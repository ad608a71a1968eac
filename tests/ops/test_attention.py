"""Scaled dot-product attention: against PyTorch, and the gates for what a finite difference cannot see."""

import math

import numpy as np
import pytest

import minitransformer as mt
from minitransformer import ops


def sizes(rng, T=5, S=7, K=3, lead=(2, 2)):
    return [rng.standard_normal((*lead, n, K)) for n in (T, S, S)]


def test_attention_agrees_with_torch_with_and_without_masks(agrees_with_torch, torch, rng):
    F = torch.nn.functional.scaled_dot_product_attention
    q, k, v = sizes(rng)
    mask = rng.random((5, 7)) > 0.3
    mask[:, 0] = True
    agrees_with_torch(ops.scaled_dot_product_attention, F, q, k, v)
    agrees_with_torch(
        lambda *a: ops.scaled_dot_product_attention(*a, mask=mask),
        lambda *a: F(*a, attn_mask=torch.tensor(mask)),
        q,
        k,
        v,
    )
    agrees_with_torch(
        lambda *a: ops.scaled_dot_product_attention(*a, causal=True),
        lambda *a: F(*a, is_causal=True),
        q,
        k[..., :5, :],
        v[..., :5, :],
    )
    agrees_with_torch(lambda *a: ops.scaled_dot_product_attention(*a, scale=0.3), lambda *a: F(*a, scale=0.3), q, k, v)


def test_the_scale_is_one_over_root_K_of_the_head(rng):
    q, k, v = sizes(rng, K=4, lead=())
    scores = q @ k.T / 2.0  # √4, whatever the model's width is
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    np.testing.assert_allclose(ops.attention_weights(q, k), weights, rtol=1e-12)
    np.testing.assert_allclose(ops.scaled_dot_product_attention(q, k, v), weights @ v, rtol=1e-12)


def test_scores_of_random_vectors_keep_a_spread_of_one(rng):
    q, k, _ = sizes(rng, 200, 200, 64, ())
    assert 0.95 < (q @ k.T / math.sqrt(64)).std() < 1.05


def test_a_mask_says_who_may_look(rng):
    q, k, v = sizes(rng, lead=())
    mask = np.zeros((5, 7), bool)
    mask[:, 2] = True  # all look at key 2, and so return its value
    np.testing.assert_allclose(ops.scaled_dot_product_attention(q, k, v, mask), np.tile(v[2], (5, 1)), rtol=1e-12)


@pytest.mark.parametrize("T, S", [(5, 5), (3, 7), (1, 6)])
@pytest.mark.parametrize("kernels", [False, True])
def test_causal_means_the_future_changes_nothing(T, S, kernels, rng):
    with mt.use_kernels(kernels):
        _the_future_changes_nothing(T, S, rng, tolerance=1e-14 if kernels else 0)


def _the_future_changes_nothing(T, S, rng, tolerance):
    """By the book to the bit. A kernel shifts scores by their maximum only where it must: to rounding."""
    q, k, v = sizes(rng, T, S)
    before = ops.scaled_dot_product_attention(q, k, v, causal=True)
    for i in range(T):
        last = i + S - T  # the last key that query i may see
        k2, v2 = k.copy(), v.copy()
        k2[..., last + 1 :, :] += 100
        v2[..., last + 1 :, :] -= 100
        after = ops.scaled_dot_product_attention(q, k2, v2, causal=True)
        np.testing.assert_allclose(after[..., : i + 1, :], before[..., : i + 1, :], rtol=tolerance, atol=tolerance)
        if last + 1 < S:
            assert (after[..., i + 1 :, :] != before[..., i + 1 :, :]).any()
        v2 = v.copy()
        v2[..., last, :] += 1
        assert (ops.scaled_dot_product_attention(q, k, v2, causal=True)[..., i, :] != before[..., i, :]).all()


def test_a_row_that_may_look_nowhere_gives_zeros_and_zero_gradient(backend, rng):
    q, k, v = (mt.tensor(a, requires_grad=True) for a in sizes(rng, 3, 4, 2, ()))
    mask = mt.tensor(np.array([[True] * 4, [False] * 4, [True, False, False, True]])).data
    with np.errstate(all="raise"):
        y = ops.scaled_dot_product_attention(q, k, v, mask)
        (y * y).sum().backward()
    assert not y.numpy()[1].any() and not q.grad.numpy()[1].any()
    assert np.isfinite(k.grad.numpy()).all() and q.grad.numpy()[0].any()


def test_more_queries_than_keys_leaves_the_first_without_a_view(rng):
    q, k, v = sizes(rng, 5, 3, lead=())
    y = ops.scaled_dot_product_attention(q, k, v, causal=True)
    assert not y[:2].any() and y[2:].all()


def test_dropout_on_weights_keeps_their_mean(rng):
    q, k = (mt.tensor(np.zeros((1, n, 2), "float32")) for n in (3, 50))
    v = mt.tensor(np.ones((1, 50, 400), "float32"))
    mt.manual_seed(3)
    y = np.concatenate([ops.scaled_dot_product_attention(q, k, v, dropout_p=0.4).numpy() for _ in range(300)])
    assert abs(y.mean() - 1) < 0.02 and y.std() > 0.05


def test_large_scores_do_not_overflow():
    q = mt.tensor(np.array([[1e4, 0], [0, -1e4]], "float32"), requires_grad=True)
    with np.errstate(all="raise", under="ignore"):
        y = ops.scaled_dot_product_attention(q, q, q)
        y.sum().backward()
    assert np.isfinite(y.numpy()).all() and np.isfinite(q.grad.numpy()).all()


def test_masks_and_shapes_that_do_not_fit_are_named(rng):
    q, k, v = sizes(rng)
    with pytest.raises(TypeError, match="boolean"):
        ops.scaled_dot_product_attention(q, k, v, mask=np.ones((5, 7)))
    with pytest.raises(ValueError, match="match K, and S"):
        ops.scaled_dot_product_attention(q, k[..., :2], v)
    with pytest.raises(ValueError, match="match K, and S"):
        ops.scaled_dot_product_attention(q, k, v[..., :6, :])


LOGIT = 1e4  # of q·kᵀ/√K; with K = 64 the product before the division is 8e4, beyond float16


@pytest.mark.parametrize("kernels", [False, True])
@pytest.mark.parametrize("blockwise", [False, True])
@pytest.mark.parametrize("half", ["inputs", "autocast"])
def test_logits_of_ten_thousand_fit_into_half_precision(half, blockwise, kernels, rng):
    """Two kinds of keys, at logits of 1e4 and −1e4: a query mixes the values of its own kind."""
    signs = np.array([1, -1, 1])[:, None]
    same = signs * np.full((1, 1, 3, 64), (8 * LOGIT / 64) ** 0.5)
    dtype = "float16" if half == "inputs" else "float32"
    q, k, v = (mt.tensor(a.astype(dtype), requires_grad=True) for a in (same, same, rng.standard_normal((1, 1, 3, 2))))
    g = rng.standard_normal((1, 1, 3, 2)).astype("float16")
    with mt.use_kernels(kernels), mt.autocast(half == "autocast"):
        y = ops.scaled_dot_product_attention(q, k, v, blockwise=blockwise)
        weights = ops.attention_weights(q, k)
    y.backward(g)
    p = (signs == signs.T) / (signs == signs.T).sum(axis=1, keepdims=True)
    assert y.dtype == np.float16
    np.testing.assert_allclose(weights.numpy()[0, 0], p, atol=1e-3)
    np.testing.assert_allclose(y.numpy(), p @ v.numpy(), rtol=0, atol=2e-3)
    np.testing.assert_allclose(v.grad.numpy(), p.T @ g, rtol=0, atol=2e-3)
    p, g, x = (a.astype("float64") for a in (p, g, v.numpy()))
    g_p = g @ x.swapaxes(-1, -2)
    g_scores = p * (g_p - (g_p * p).sum(axis=-1, keepdims=True)) / 8
    for ours, wanted in ((q.grad, g_scores @ same), (k.grad, g_scores.swapaxes(-1, -2) @ same)):
        np.testing.assert_allclose(ours.numpy(), wanted, rtol=0, atol=2e-2)


@pytest.mark.parametrize("kernels", [False, True])
@pytest.mark.parametrize("blockwise", [False, True])
def test_seventy_thousand_keys_are_mixed_in_half_precision(blockwise, kernels):
    s = 70_000  # more ones than float16 can add up
    q, k = (mt.tensor(np.zeros((1, 1, n, 2), "float16"), requires_grad=True) for n in (1, s))
    values = np.resize([900, 1100], (1, 1, s, 1)).astype("float16")
    v = mt.tensor(values, requires_grad=True)
    with mt.use_kernels(kernels):
        y = ops.scaled_dot_product_attention(q, k, v, blockwise=blockwise)
        y.backward(np.full((1, 1, 1, 1), 10, "float16"))
    assert y.dtype == v.grad.dtype == k.grad.dtype == np.float16
    np.testing.assert_allclose(y.item(), 1000, rtol=4e-3)
    np.testing.assert_allclose(v.grad.numpy(), 10 / s, rtol=4e-3)
    assert np.isfinite(k.grad.numpy()).all() and not q.grad.numpy().any()
    if not blockwise:
        assert abs(ops.attention_weights(q, k).numpy().sum(dtype="float32") - 1) < 4e-3


@pytest.mark.parametrize("heads", [3, 0, -1, 2.0, True])
def test_heads_that_do_not_divide_the_width_are_named(heads, rng):
    with pytest.raises(ValueError, match=rf"heads divide the width .*got \(2, 5, 8\) for heads={heads}; write heads=1"):
        ops.split_heads(rng.standard_normal((2, 5, 8)), heads=heads)


@pytest.mark.parametrize("groups", [0, -1, 1.5])
def test_a_head_serves_at_least_one(groups, rng):
    with pytest.raises(ValueError, match=rf"at least one head each; got \(2, 3, 5, 4\) and groups={groups}"):
        ops.repeat_heads(rng.standard_normal((2, 3, 5, 4)), groups)
