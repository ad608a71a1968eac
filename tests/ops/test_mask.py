"""Which query may look at which key, from positions alone."""

import math
import re

import numpy as np
import pytest

import minitransformer as mt
from minitransformer import ops
from minitransformer.ops.mask import band, band_mask, boolean


def test_a_window_holds_its_size_of_keys_with_ones_own_among_them():
    causal = band_mask(np.arange(9), np.arange(9), causal=True, window=3)
    for i in range(9):
        assert list(np.flatnonzero(causal[i])) == [j for j in (i - 2, i - 1, i) if j >= 0]
    both = band_mask(np.arange(9), np.arange(9), causal=False, window=3)
    np.testing.assert_array_equal(both, causal | causal.T)


def test_without_a_window_there_is_no_limit():
    assert band(False, 0) == (-np.inf, np.inf) and band(True, 0) == (-np.inf, 0)
    assert band(True, 4) == (-3, 0) and band(False, 4) == (-3, 3)


@pytest.mark.parametrize("queries, keys", [(3, 3), (2, 5), (5, 2)])
def test_the_last_query_stands_at_the_last_key(queries, keys):
    mask = ops.causal_mask(queries, keys, np)
    assert mask[-1].all()
    np.testing.assert_array_equal(mask.sum(axis=1), np.clip(np.arange(queries) + keys - queries + 1, 0, keys))


def test_a_mask_is_an_array_of_booleans():
    np.testing.assert_array_equal(boolean(mt.tensor(np.array([True, False]))), [True, False])
    assert boolean(None) is None
    with pytest.raises(TypeError, match="True = may look; got float64"):
        boolean(np.ones(3))


@pytest.mark.parametrize("blockwise", [False, True])
def test_a_list_is_no_mask(blockwise, rng):
    q, rows = rng.standard_normal((2, 3)), [[True, False], [True, True]]
    with pytest.raises(TypeError, match=r"^a mask is an array; got a list; write np.array\(mask\)$"):
        ops.scaled_dot_product_attention(q, q, q, mask=rows, blockwise=blockwise)
    with pytest.raises(TypeError, match="a bias is an array; got a list"):
        ops.scaled_dot_product_attention(q, q, q, bias=[[0.0, 1.0], [1.0, 0.0]], blockwise=blockwise)
    with pytest.raises(TypeError, match="a mask is an array; got a list"):
        ops.softmax(rng.standard_normal((2, 2)), mask=rows)


WHOLE = (2, 3, 5, 7)  # of the scores


@pytest.mark.parametrize("name", ["mask", "bias"])
@pytest.mark.parametrize("blockwise, kernels", [(False, False), (False, True), (True, False), (True, True)])
@pytest.mark.parametrize("shape", [(8,), (1, 8), (6, 7), (5, 8), (4, 5, 7), (3, 1, 5, 7), (1, 2, 3, 5, 7), ()])
def test_what_does_not_fit_the_scores_is_refused(shape, blockwise, kernels, name, rng):
    q, k, v = (rng.standard_normal((2, 3, n, 4)) for n in (5, 7, 7))
    added = np.ones(shape, bool) if name == "mask" else np.ones(shape)
    text = rf"a {name} broadcasts to .*got {re.escape(str(shape))} for scores {re.escape(str(WHOLE))}; match its axes"
    with mt.use_kernels(kernels), pytest.raises(ValueError, match=text):
        ops.scaled_dot_product_attention(q, k, v, blockwise=blockwise, **{name: added})
    with pytest.raises(ValueError, match=text):
        ops.attention_weights(q, k, **{name: added})


@pytest.mark.parametrize("blockwise, kernels", [(False, False), (False, True), (True, False), (True, True)])
@pytest.mark.parametrize("shape", [(7,), (1, 7), (5, 1), (5, 7), (3, 1, 1), (2, 1, 5, 7), (1, 1, 1, 1)])
def test_what_fits_the_scores_counts_as_if_it_were_written_out(shape, blockwise, kernels, rng):
    q, k, v = (rng.standard_normal((2, 3, n, 4)) for n in (5, 7, 7))
    bias, mask = rng.standard_normal(shape), rng.random(shape) > 0.2
    with mt.use_kernels(kernels):
        y = ops.scaled_dot_product_attention(q, k, v, mask, bias=bias, blockwise=blockwise)
        whole = [np.broadcast_to(a, WHOLE) for a in (mask, bias)]
        wanted = ops.scaled_dot_product_attention(q, k, v, whole[0], bias=whole[1], blockwise=False)
    np.testing.assert_allclose(y, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("blockwise", [False, True])
@pytest.mark.parametrize("shape", [(2, 11), (3, 3, 11), (1, 2, 3, 11)])
def test_a_distance_bias_has_the_heads_of_the_queries(shape, blockwise, rng):
    q, k, v = (rng.standard_normal((2, 3, n, 4)) for n in (5, 7, 7))
    with pytest.raises(ValueError, match=r"distance_bias \(.*q's leading axes, or 1; got .*; make one a head"):
        ops.scaled_dot_product_attention(q, k, v, distance_bias=np.ones(shape), blockwise=blockwise)
    with pytest.raises(ValueError, match="a number for each distance"):
        ops.scaled_dot_product_attention(q, k, v, distance_bias=np.float64(1.0), blockwise=blockwise)


@pytest.mark.parametrize("blockwise", [False, True])
def test_heads_that_do_not_meet_are_named(blockwise, rng):
    q, k = rng.standard_normal((2, 3, 5, 4)), rng.standard_normal((2, 2, 5, 4))
    with pytest.raises(ValueError, match=r"the same leading axes, or 1; got \(2, 3, 5, 4\), \(2, 2, 5, 4\), "):
        ops.scaled_dot_product_attention(q, k, k, blockwise=blockwise)
    y = ops.scaled_dot_product_attention(q, k[:, :1], k[:1, :1], blockwise=blockwise)  # one serves all
    wanted = ops.scaled_dot_product_attention(q, np.tile(k[:, :1], (1, 3, 1, 1)), np.tile(k[:1, :1], (2, 3, 1, 1)))
    np.testing.assert_allclose(y, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("settings, text", [
    ({"causal": "no"}, "causal is True or False; got 'no'; write causal=True"),
    ({"scale": math.nan}, "scale is a number, None for 1/√K; got nan"),
    ({"scale": math.inf}, "got inf"),
    ({"scale": "1"}, "got '1'"),
])  # fmt: skip
def test_settings_that_are_none_are_named(settings, text, rng):
    q = rng.standard_normal((2, 3, 5, 4))
    for attend in (ops.scaled_dot_product_attention, ops.blockwise_attention):
        with pytest.raises(ValueError, match=text):
            attend(q, q, q, **settings)
    with pytest.raises(ValueError, match=text):
        ops.attention_weights(q, q, **settings)


def test_a_scale_of_numpys_leaves_the_type_alone(rng):
    q = rng.standard_normal((2, 3, 5, 4)).astype("float32")
    for blockwise in (False, True):
        y = ops.scaled_dot_product_attention(q, q, q, scale=np.float64(0.5), blockwise=blockwise)
        assert y.dtype == np.float32
