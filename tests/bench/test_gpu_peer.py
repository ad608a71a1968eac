"""Our peers of the bench of a GPU compute what a CPU computes, and nobody waits for them."""

import dataclasses

import numpy as np
import pytest

import minitransformer as mt
from minitransformer.bench import configs, gpu_peer, ours

on_cupy = pytest.mark.skipif("config.where == 'numpy'", reason="for --backend cupy")
TINY = dataclasses.replace(configs.CONFIGS["reversal"], batch=2, length=5, d_model=8, heads=2)


@on_cupy
@pytest.mark.parametrize("name", ["ours", "ours-eager", "book"])
def test_each_of_our_peers_trains_as_on_a_cpu(name):
    weights, batches = configs.weights(TINY), configs.batches(TINY)[:4]
    try:
        peer = gpu_peer.PEERS[name][0](TINY, weights)
        losses = [peer.step(*batch) for batch in batches]
        peer.wait()
        assert all(mt.backend.backend_of(loss) == "cupy" for loss in losses)  # nobody waited for them
        assert peer.memory() > sum(w.nbytes for w in weights.values())
    finally:
        mt.use_kernels(True)
    with mt.use_backend("numpy"):
        cpu = ours.Ours(TINY, weights, book=True)
        try:
            expected = [cpu.step(*batch) for batch in batches]
        finally:
            mt.use_kernels(True)
    np.testing.assert_allclose([float(loss) for loss in losses], expected, atol=1e-5)
