"""The reversal task: lengths mixed, held-out sequences never in a batch."""

import numpy as np
import pytest

from minitransformer import data
from minitransformer.data import BOS, EOS, PAD


def test_targets_are_sources_backwards():
    batch = data.Reversal(seed=1).batch(5, 64)
    lengths = set()
    for source, target_in, target_out in zip(*batch, strict=True):
        source = source[source != PAD]
        lengths.add(len(source))
        np.testing.assert_array_equal(target_in[: len(source) + 1], [BOS, *source[::-1]])
        np.testing.assert_array_equal(target_out[: len(source) + 1], [*source[::-1], EOS])
    assert len(lengths) > 10 and max(lengths) <= 16


def test_a_batch_is_a_function_of_seed_and_step():
    a, b, c = data.Reversal(seed=1).batch(5, 8), data.Reversal(seed=1).batch(5, 8), data.Reversal(seed=2).batch(5, 8)
    np.testing.assert_array_equal(a.source, b.source)
    assert a.source.shape != c.source.shape or (a.source != c.source).any()


def test_what_is_held_out_is_never_trained_on():
    task = data.Reversal()
    held = {tuple(ids) for ids in task.held_out(2048)}
    assert len(held) == 2048
    trained = {tuple(row[row != PAD].tolist()) for step in range(1, 200) for row in task.batch(step, 64).source}
    assert not trained & held
    assert not any(data.is_held_out(list(ids)) for ids in trained)


def test_the_test_has_all_lengths_as_evenly_as_they_exist():
    counts = np.bincount([len(ids) for ids in data.Reversal().held_out(2048)], minlength=17)
    assert counts[5:].min() > 100 and counts[5:].max() - counts[5:].min() <= 1  # of length 3 only 1/16 of 1000 exist
    assert counts[3] > 20


@pytest.mark.parametrize(
    "sizes", [{"symbols": 1}, {"symbols": 37}, {"min_length": 0}, {"min_length": 5, "max_length": 4}]
)
def test_impossible_sizes_are_refused(sizes):
    with pytest.raises(ValueError, match="2 to 36 symbols"):
        data.Reversal(**sizes)
