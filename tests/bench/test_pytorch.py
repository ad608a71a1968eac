"""The models in PyTorch lose what ours lose, step by step."""

import pytest


@pytest.mark.parametrize("fused", [True, False])
def test_pytorch_agrees(torch, agrees, fused):
    from minitransformer.bench.pytorch import PyTorch

    threads = torch.get_num_threads()
    try:
        agrees(lambda c, w: PyTorch(c, w, fused=fused))
    finally:
        torch.set_num_threads(threads)
