"""What is timed: the arithmetic is counted as by hand, and the batches are the same in every process."""

import dataclasses

import numpy as np
import pytest

from minitransformer.bench import configs


def test_the_products_of_a_small_gpt_are_those_counted_by_hand():
    c = configs.BenchConfig("hand", "gpt", 8, 2, 3, 5, 7, 11)
    rows = 7 * 5
    qkv_and_out, up, down = 4 * (rows * 8 * 8), rows * 8 * 32, rows * 32 * 8
    scores, mix = 7 * 2 * 5 * 5 * 4 // 2, 7 * 2 * 5 * 5 * 4 // 2  # causal: half
    multiplications = 3 * (qkv_and_out + up + down + scores + mix) + rows * 8 * 11
    assert configs.product_flops(c) == 3 * 2 * multiplications


def test_the_products_of_a_small_encoder_decoder_are_those_counted_by_hand():
    c = configs.BenchConfig("hand", "seq2seq", 8, 2, 1, 6, 7, 11)
    rows = 7 * 6
    attention, feed, dense = 4 * (rows * 8 * 8), 2 * (rows * 8 * 32), 2 * (7 * 2 * 6 * 6 * 4)
    encoder, decoder = attention + dense + feed, attention + dense // 2 + attention + dense + feed
    assert configs.product_flops(c) == 3 * 2 * (encoder + decoder + rows * 8 * 11)


@pytest.mark.parametrize("name", configs.CONFIGS)
def test_batches_are_fixed_and_hold_no_padding(name):
    c = configs.CONFIGS[name]
    for batch, again in zip(configs.batches(c), configs.batches(c), strict=True):
        for a, b in zip(batch, again, strict=True):
            assert a.shape == (c.batch, c.length) and a.min() > 0 and a.max() < c.vocab
            np.testing.assert_array_equal(a, b)


def test_weights_are_the_same_each_time():
    c = dataclasses.replace(configs.CONFIGS["reversal"], d_model=8)
    first, second = configs.weights(c), configs.weights(c)
    assert first and all(np.array_equal(first[name], second[name]) for name in first)
