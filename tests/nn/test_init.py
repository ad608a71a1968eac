"""Initialisers: spread, bounds, dtype."""

import numpy as np

from minitransformer.nn import init


def test_spreads_and_bounds(rng):
    w = init.xavier_uniform((300, 500)).numpy()
    assert abs(w.std() - np.sqrt(2 / 800)) < 1e-3 and np.abs(w).max() <= np.sqrt(6 / 800)
    w = init.kaiming_uniform((300, 500)).numpy()
    assert abs(w.std() - np.sqrt(2 / 500)) < 1e-3
    w = init.normal((300, 500), 0.02).numpy()
    assert abs(w.std() - 0.02) < 1e-3 and abs(w.mean()) < 1e-3
    assert (init.constant((3,), 0.5).numpy() == 0.5).all()


def test_kaiming_keeps_the_size_through_relu(rng):
    x = rng.standard_normal((200, 400)).astype("float32")
    for _ in range(5):
        x = np.maximum(x @ init.kaiming_uniform((400, 400)).numpy().T, 0)
    assert 0.7 < np.sqrt((x * x).mean()) < 1.4


def test_parameters_are_float32_leaves():
    p = init.normal((2, 3))
    assert p.dtype == np.float32 and p.requires_grad and p.is_leaf
