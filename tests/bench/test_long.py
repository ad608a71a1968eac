"""One long sequence in a process of its own: it answers, and what is too large is not tried."""

import numpy as np
import pytest

from minitransformer.bench import long
from minitransformer.bench.run import Peer


@pytest.mark.parametrize("kind", ["blockwise-causal", "window-causal"])
def test_a_process_answers_with_seconds_and_memory(kind):
    peer = Peer(kind, "64", module="minitransformer.bench.long")
    try:
        answer = peer.run(2)
    finally:
        peer.close()
    assert len(answer["seconds"]) == 2 and min(answer["seconds"]) > 0 and answer["memory"] > 1 << 20


def test_what_is_too_large_is_not_tried():
    assert long.feasible("dense", 4096) and not long.feasible("dense-causal", 16384)
    assert long.feasible("blockwise", 16384) and long.feasible("torch", 16384)


@pytest.mark.parametrize("kind", long.KINDS)
def test_every_kind_takes_a_step(kind):
    arrays = [np.ones((1, 2, 32, 4), "float32")] * 4
    long._ours(kind, arrays)()


def test_torch_takes_the_same_step(torch):
    long._torch("torch-causal", [np.ones((1, 2, 8, 4), "float32") for _ in range(4)])()
