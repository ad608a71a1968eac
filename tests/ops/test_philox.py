"""Philox against the published test vector and NumPy's own, and what a stream has to be."""

import numpy as np
import pytest

import minitransformer as mt
from minitransformer.backend import to_numpy
from minitransformer.ops.philox import philox


def words(blocks, call, key):
    made = mt.tensor(np.asarray(blocks)).data
    return to_numpy(philox(mt.backend.xp(), made, call, key))


def test_the_published_vector():
    """Counter 0, key 0, as in the known answers that come with Random123."""
    expected = [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B]
    assert [int(w) for w in words([0], 0, (0, 0))[0]] == expected


@pytest.mark.parametrize("call, key", [(0, (1, 2)), (3, (2**64 - 1, 2**63)), (2**40, (123456789012345678, 0))])
def test_numpys_philox_is_the_same_function(call, key):
    """NumPy counts before it draws."""
    theirs = np.random.Philox(counter=5 + (call << 64) - 1, key=key[0] + (key[1] << 64)).random_raw(4 * 7)
    np.testing.assert_array_equal(words(np.arange(5, 12), call, key), theirs.reshape(7, 4))


def test_calls_and_keys_are_streams_of_their_own():
    drawn = [words(np.arange(100), call, key).ravel() for call in (0, 1) for key in ((0, 0), (0, 1), (1, 0))]
    assert len(np.unique(np.concatenate(drawn))) == 6 * 400


def test_bits_are_even():
    bits = np.unpackbits(words(np.arange(5000), 1, (7, 8)).view("uint8"))
    assert abs(bits.mean() - 0.5) < 5 * 0.5 / np.sqrt(bits.size)
