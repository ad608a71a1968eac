"""Ops that only move elements: values, gradients, and what they refuse."""

import numpy as np
import pytest

import minitransformer as mt
from minitransformer import ops


def test_moves_agree_with_torch(agrees_with_torch, torch, rng):
    x = rng.standard_normal((2, 3, 5))
    agrees_with_torch(lambda t: t.reshape(5, -1), lambda t: t.reshape(5, -1), x)
    agrees_with_torch(lambda t: t.transpose(2, 0, 1), lambda t: t.permute(2, 0, 1), x)
    agrees_with_torch(lambda t: t.T, lambda t: t.permute(2, 1, 0), x)
    agrees_with_torch(lambda t: t.swapaxes(0, -1), lambda t: t.transpose(0, -1), x)
    agrees_with_torch(lambda t: ops.broadcast_to(t, (4, 2, 3, 5)), lambda t: t.expand(4, 2, 3, 5), x)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_concatenate_and_stack_agree_with_torch(axis, agrees_with_torch, torch, rng):
    a, b = rng.standard_normal((2, 3, 4, 5))
    agrees_with_torch(lambda x, y: ops.concatenate([x, y, x], axis), lambda x, y: torch.cat([x, y, x], axis), a, b)
    agrees_with_torch(lambda x, y: ops.stack([x, y, x], axis), lambda x, y: torch.stack([x, y, x], axis), a, b)


def test_sizes_may_come_as_numbers_or_as_a_tuple():
    x = mt.tensor(np.arange(6.0))
    assert x.reshape(2, 3).shape == x.reshape((2, 3)).shape == (2, 3)
    assert x.reshape(2, 3).transpose((1, 0)).shape == (3, 2)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="at least one array"):
        ops.concatenate([])
    with pytest.raises(ValueError, match="one shape"):
        ops.stack([np.ones(2), np.ones(3)])
    with pytest.raises(ValueError):
        mt.tensor(np.ones(6)).reshape(4, 2)
