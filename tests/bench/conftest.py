"""The losses of our own first steps, which every peer has to repeat."""

import functools

import pytest

from minitransformer.bench import configs
from minitransformer.bench.ours import Ours
from minitransformer.bench.run import Peer

STEPS = 3


def run(peer, c):
    if isinstance(peer, Peer):
        return peer.run(STEPS)["losses"]
    return [peer.step(*batch) for batch in configs.batches(c)[:STEPS]]


@functools.cache
def _ours(name):
    c = configs.CONFIGS[name]
    peer = Ours(c, configs.weights(c))
    try:
        return run(peer, c)
    finally:
        peer.workers.close()


@pytest.fixture(params=["reversal", "gpt-small"])
def agrees(request):
    """Hold the first losses of make(config, weights) against ours."""

    def check(make):
        c = configs.CONFIGS[request.param]
        assert run(make(c, configs.weights(c)), c) == pytest.approx(_ours(c.name), abs=1e-4)

    return check
