"""The models as plain functions: JAX and HIPS autograd lose what we lose, step by step."""

import importlib.util
import warnings

import numpy as np
import pytest

from minitransformer.bench import functional
from minitransformer.bench.run import Peer


@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="no JAX here")
def test_jax_agrees(agrees, tmp_path):
    peers = []

    def make(c, weights):  # in a process of its own: once JAX is imported, a fork warns, and our workers are forks
        np.savez(tmp_path / "w.npz", **weights)
        peers.append(Peer("jax", c.name, str(tmp_path / "w.npz")))
        return peers[0]

    try:
        agrees(make)
    finally:
        peers[0].close()


def test_hips_autograd_agrees(agrees):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("autograd")
        agrees(functional.Hips)
