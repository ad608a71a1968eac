"""Linear attention: its sums against its own weights, and its causal chunks against one another."""

import sys

import numpy as np
import pytest

import minitransformer as mt
from minitransformer import ops
from tests import hostcuda

module = sys.modules[ops.linear_attention.__module__]  # whose name in `ops` is that of its function


def arrays(rng, t=11, s=13):
    return [rng.standard_normal((2, 3, n, d)) for n, d in ((t, 4), (s, 4), (s, 5))]


def phi(x):
    return np.where(x > 0, x + 1, np.exp(np.minimum(x, 0)))


def test_it_is_the_formula_of_the_paper(rng):
    q, k, v = arrays(rng)
    for b, h, i in ((0, 0, 0), (1, 2, 10)):
        weights = phi(q[b, h, i]) @ phi(k[b, h]).T
        np.testing.assert_allclose(ops.linear_attention(q, k, v)[b, h, i], weights @ v[b, h] / weights.sum())
        seen = weights[: i + 3]  # the last query stands at the last key
        expected = seen @ v[b, h, : i + 3] / seen.sum()
        np.testing.assert_allclose(ops.linear_attention(q, k, v, causal=True, chunk=4)[b, h, i], expected)


@pytest.mark.parametrize("causal", [False, True])
def test_its_weights_are_those_that_it_never_makes(causal, rng):
    q, k, v = arrays(rng)
    here = rng.random((2, 1, 13)) > 0.3
    weights = ops.linear_attention_weights(q, k, here, causal)
    np.testing.assert_allclose(weights @ v, ops.linear_attention(q, k, v, here, causal), rtol=1e-12)
    assert not weights[..., ~here[0, 0]][0].any()
    np.testing.assert_allclose(weights.sum(axis=-1), 1)


def test_elu_plus_one_is_torchs(agrees_with_torch, torch, rng):
    agrees_with_torch(ops.positive_features, lambda x: torch.nn.functional.elu(x) + 1, rng.standard_normal((3, 5)))


@pytest.mark.parametrize("together", [1, 2, 64])
@pytest.mark.parametrize("chunk", [1, 3, 11, 64])
def test_chunks_of_any_size_give_the_same_values_and_gradients(chunk, together, rng, monkeypatch):
    """However many are computed side by side; the last may be shorter, and so may the last lot."""
    monkeypatch.setattr(module, "TOGETHER", together)
    given = arrays(rng)
    results = []
    for size in (11, chunk):
        q, k, v = (mt.tensor(a, requires_grad=True) for a in given)
        y = ops.linear_attention(q, k, v, causal=True, chunk=size)
        y.backward(np.random.default_rng(0).standard_normal(y.shape))
        results.append([y.numpy(), q.grad.numpy(), k.grad.numpy(), v.grad.numpy()])
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-13)


def test_the_future_changes_nothing(rng):
    q, k, v = arrays(rng, 11, 11)
    before = ops.linear_attention(q, k, v, causal=True, chunk=4)
    k[..., 6:, :] += 5
    v[..., 6:, :] -= 5
    np.testing.assert_array_equal(ops.linear_attention(q, k, v, causal=True, chunk=4)[..., :6, :], before[..., :6, :])


def test_without_any_key_there_is_nothing_to_mix(rng):
    q, k, v = arrays(rng)
    y = ops.linear_attention(q, k, v, np.zeros((2, 1, 13), bool))
    assert not y.any()


@pytest.mark.parametrize("causal", [False, True])
def test_half_precision_has_room_for_a_sum_over_many_keys(causal, rng):
    """70,000 features of about 1: half precision ends at 65,504."""
    k, v = (rng.standard_normal((70_000, 2)).astype("float16") for _ in range(2))
    q = mt.tensor(rng.standard_normal((3, 2)).astype("float16"), requires_grad=True)
    y = ops.linear_attention(q, k, v, causal=causal)
    wide = ops.linear_attention(*[a.astype("float32") for a in (q.numpy(), k, v)], causal=causal)
    assert y.dtype == np.float16
    np.testing.assert_allclose(y.numpy(), wide, rtol=2e-3, atol=1e-5)
    y.sum().backward()
    assert q.grad.numpy().dtype == np.float16 and np.isfinite(q.grad.numpy()).all()


def test_far_below_zero_a_feature_is_small_and_not_lost():
    x = np.array([-30.0], "float32")
    np.testing.assert_allclose(ops.positive_features(x), np.exp(x), rtol=1e-6)  # elu(x) + 1 would give 0


def test_bad_shapes_get_one_line(rng):
    q, k, v = arrays(rng, 13, 11)
    with pytest.raises(ValueError, match="at least a key for each query; got 13 and 11"):
        ops.linear_attention(q, k, v, causal=True)
    with pytest.raises(ValueError, match="match K, and S"):
        ops.linear_attention(q, k[..., :3], v)
    with pytest.raises(TypeError, match="a mask is boolean"):
        ops.linear_attention(q, k, v, np.ones((2, 1, 11)))


@pytest.mark.parametrize("settings, text", [
    ({"chunk": 0}, "chunk is a number of queries of at least 1; got 0; write chunk=64"),
    ({"chunk": -1, "causal": True}, "got -1"),
    ({"chunk": 2.0, "causal": True}, "got 2.0"),
    ({"causal": "no"}, "causal is True or False; got 'no'"),
])  # fmt: skip
def test_bad_settings_get_one_line(settings, text, rng):
    q, k, v = arrays(rng, 11, 11)
    with pytest.raises(ValueError, match=text):
        ops.linear_attention(q, k, v, **settings)


@pytest.mark.skipif("not config.where.startswith('cupy on the host')", reason="only the host mock counts")
def test_launches_do_not_grow_with_the_chunks(rng):
    counts = []
    for t in (8, 128):
        q, k, v = (mt.tensor(a, requires_grad=True) for a in arrays(rng, t, t))
        hostcuda.reset()
        ops.linear_attention(q, k, v, causal=True, chunk=4).sum().backward()
        counts.append(hostcuda.counts()["launch"])
    assert counts[0] == counts[1] <= 90
