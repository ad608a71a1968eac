"""Gradients added up over batches are those of one batch of all their rows, each token with the same weight."""

import numpy as np
import pytest

import minitransformer as mt
from minitransformer import backend as library
from minitransformer import data, ops
from minitransformer.models import Transformer, TransformerConfig
from minitransformer.optim import GradAccumulator
from tests import hostcuda

SIZES = {"source_vocab": 14, "target_vocab": 14, "d_model": 16, "heads": 2, "layers": 1, "d_ff": 32, "dropout": 0.0}


def model():
    mt.manual_seed(2)
    made = Transformer(TransformerConfig(**SIZES, max_length=20)).to("float64")
    made.unused = mt.nn.Linear(2, 3)  # gets no gradient
    return made


def backward(net, batch):
    """Leave the gradient of a batch's mean loss, and return the loss and the count of tokens."""
    source, target_in, target_out = library.send(*batch)
    loss = ops.cross_entropy(net(source, target_in), target_out, data.PAD)
    loss.backward()
    return loss.item(), batch.tokens


def halves():
    """Two batches of 32 sequences: short ones, and long ones. And both as one batch of 64."""
    short, long = (data.Reversal(10, *lengths, seed=1).batch(1, 32) for lengths in ((1, 3), (9, 16)))
    sources = [[int(i) for i in row if i != data.PAD] for batch in (short, long) for row in batch[0]]
    return short, long, data.pad_batch([(ids, ids[::-1]) for ids in sources])


def gradients(net):
    return {n: p.grad.numpy().copy() for n, p in net.named_parameters() if p.grad is not None}


def test_two_batches_of_32_are_one_of_64():
    net = model()
    short, long, both = halves()
    assert 2 * short.tokens < long.tokens and short.tokens + long.tokens == both.tokens
    whole_loss, _ = backward(net, both)
    whole = gradients(net)
    net.zero_grad()
    accumulator = GradAccumulator(net.parameters())
    losses, means = [], []
    for batch in (short, long):
        losses.append(backward(net, batch))
        means.append(gradients(net))
        accumulator.add(batch.tokens)
        assert all(p.grad is None for p in net.parameters())
    assert accumulator.finish() == both.tokens
    summed = gradients(net)
    assert set(summed) == set(whole) and "unused.weight" not in summed
    for name, g in whole.items():
        np.testing.assert_allclose(summed[name], g, rtol=0, atol=1e-12, err_msg=name)
    assert sum(loss * n for loss, n in losses) / both.tokens == pytest.approx(whole_loss, rel=1e-12)
    # What the weights are for: a mean of the two means is another direction.
    apart = max(np.abs((means[0][n] + means[1][n]) / 2 - g).max() for n, g in whole.items())
    assert apart > 1e-3


@pytest.mark.parametrize("kernels", [True, False])
def test_a_parameter_that_only_some_batches_reach(kernels):
    """Where a batch has no gradient for it, it counts as 0; where none has, there is none."""
    a, b, never, frozen = (mt.tensor(np.zeros(s, "float32"), requires_grad=True) for s in ((2, 3), (), (4,), (5,)))
    frozen = frozen.detach()
    accumulator = GradAccumulator([a, b, a, never, frozen])
    with mt.use_kernels(kernels):
        for g_a, g_b, tokens in ((1.0, None, 3), (3.0, 4.0, 1), (100.0, 100.0, 0)):
            a.grad = mt.tensor(np.full((2, 3), g_a, "float32"))
            b.grad = None if g_b is None else mt.tensor(np.full((), g_b, "float32"))
            accumulator.add(tokens)
        assert accumulator.finish() == 4
    np.testing.assert_array_equal(a.grad.numpy(), np.full((2, 3), 1.5, "float32"))
    assert b.grad.item() == 1.0 and b.grad.dtype == np.float32 and never.grad is None
    assert accumulator.finish() == 0 and a.grad is None  # it has begun anew


def test_gradients_that_were_added_are_left_as_they_are():
    """Workers lay them into memory of their own."""
    p = mt.tensor(np.zeros(3, "float32"), requires_grad=True)
    lent = mt.tensor(np.ones(3, "float32"))
    accumulator = GradAccumulator([p])
    for value in (1.0, 2.0):
        lent.data[...] = value
        p.grad = lent
        accumulator.add(1)
        assert (lent.numpy() == value).all()
    accumulator.finish()
    np.testing.assert_array_equal(p.grad.numpy(), [1.5, 1.5, 1.5])


@pytest.mark.skipif("'mock' not in config.where", reason="only the host mock counts")
def test_adding_is_one_launch():
    parameters = [mt.tensor(np.zeros(5, "float32"), requires_grad=True) for _ in range(9)]
    accumulator = GradAccumulator(parameters)
    for _ in range(3):
        for p in parameters:
            p.grad = mt.tensor(np.ones(5, "float32"))
        hostcuda.reset()
        accumulator.add(7)
    assert hostcuda.counts()["launch"] == 1 and hostcuda.counts()["sync"] == 0


def test_what_overflows_is_seen_in_the_norm_and_not_in_a_warning():
    p = mt.tensor(np.zeros(3, "float32"), requires_grad=True)
    p.grad = mt.tensor(np.full(3, 1e38, "float32"))
    accumulator = GradAccumulator([p])
    accumulator.add(100)
    accumulator.finish()
    assert not np.isfinite(float(mt.optim.clip_grad_norm_([p], 1.0, error_if_nonfinite=False)))


def test_misuse_is_named():
    for tokens in (-1, 1.5, np.nan, True):
        with pytest.raises(ValueError, match=f"tokens are counted from 0; got {tokens}"):
            GradAccumulator([mt.tensor([1.0], requires_grad=True)]).add(tokens)
