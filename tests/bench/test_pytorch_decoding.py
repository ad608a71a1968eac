"""PyTorch's writer writes what ours does, whatever its settings."""

import pytest

from minitransformer.bench import configs, decoding


@pytest.mark.parametrize("joined", [True, False])
def test_pytorch_writes_the_same_tokens_in_every_setting(joined, torch):
    from minitransformer.bench.pytorch_decoding import PyTorchDecoder

    c = configs.BenchConfig("tiny", "gpt", 16, 2, 2, 40, 1, 23)
    weights, prompt = decoding.weights(c), decoding.prompt(c)
    wanted, _ = decoding.Ours(c, weights).write(prompt, 20)
    peer, threads = PyTorchDecoder(c, weights, joined), torch.get_num_threads()
    try:
        for peer.preallocated in (True, False):
            ids, times = peer.write(prompt, 20)
            assert ids == wanted and len(set(ids)) > 2 and times == sorted(times)
        assert peer.tune(prompt, 4).startswith("threads ") and peer.write(prompt, 20)[0] == wanted
    finally:
        torch.set_num_threads(threads)
