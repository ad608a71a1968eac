"""Which query may look at which key, from positions alone."""

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
