"""Batches: what is padded where, every pair once an epoch, little padding, no state."""

import numpy as np
import pytest

from minitransformer import data


def corpus(rng, n=500):
    return [([int(i)] * int(rng.integers(1, 40)), [int(i)] * int(rng.integers(1, 40))) for i in rng.integers(4, 99, n)]


def test_a_batch_is_padded_and_shifted():
    batch = data.pad_batch([([5, 6], [7]), ([8], [9, 10])])
    assert batch.source.tolist() == [[5, 6], [8, 0]]
    assert batch.target_in.tolist() == [[1, 7, 0], [1, 9, 10]]
    assert batch.target_out.tolist() == [[7, 2, 0], [9, 10, 2]]
    assert batch.tokens == 5


def test_every_pair_comes_once_an_epoch_and_in_another_order_the_next(rng):
    batches = data.PairBatches(corpus(rng), 400)
    first, second = batches.epoch(0), batches.epoch(1)
    for epoch in (first, second):
        assert sorted(i for batch in epoch for i in batch) == list(range(500))
    assert first != second


def test_no_batch_is_larger_than_asked_and_little_of_it_is_padding(rng):
    pairs = corpus(rng)
    batches = data.PairBatches(pairs, 400)
    for step in range(1, 40):
        batch = batches.at(step)
        assert max(batch.source.size, batch.target_in.size) <= 400
    same = [(a, a) for a, _ in pairs]
    shuffled = 1 - sum(len(a) for a, _ in same) / (len(same) * max(len(a) for a, _ in same))
    assert data.PairBatches(same, 400).padding_fraction() < 0.1 < shuffled


def test_a_batch_is_a_function_of_seed_and_step(rng):
    pairs = corpus(rng)
    for step in (1, 57, 200):
        a, b = (data.PairBatches(pairs, 400, seed=3).at(step) for _ in range(2))
        np.testing.assert_array_equal(a.source, b.source)
    assert any(
        a.shape != b.shape or (a != b).any()
        for a, b in zip(data.PairBatches(pairs, 400, 3).at(1), data.PairBatches(pairs, 400, 4).at(1), strict=True)
    )


def test_no_pairs_are_refused():
    with pytest.raises(ValueError, match="at least one pair"):
        data.PairBatches([], 10)
