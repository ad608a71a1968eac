"""The bench of a GPU: what it puts side by side, and what it says without a GPU."""

import json
import math

import pytest

from minitransformer.bench import configs, gpu, run
from minitransformer.cli import main

on_cupy = pytest.mark.skipif("config.where == 'numpy'", reason="for --backend cupy")
on_gpu_only = pytest.mark.skipif("config.where != 'cupy on a GPU'", reason="peers in processes need a GPU")


@on_cupy
def test_the_rate_of_products_is_measured():
    assert gpu.gemm_rate(64) > 0


@on_gpu_only
@pytest.mark.slow
def test_the_command_measures_all(tmp_path, capsys):
    assert main(["bench", "gpu", "--quick", "--peers", "ours,ours-eager", "--out", str(tmp_path / "r"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [c["config"] for c in result["configs"]] == list(configs.CONFIGS) and result["long"] and result["kernels"]
    assert all(c["losses_agree"] for c in result["configs"])


@pytest.mark.skipif("config.where != 'numpy'", reason="CuPy is there")
def test_without_cupy_it_says_what_is_missing(tmp_path, capsys):
    assert main(["bench", "gpu", "--out", str(tmp_path / "r")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and ("CuPy" in error or "GPU" in error) and not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    "words, text",
    [
        (["--peers", "hips"], "ours, ours-eager, book, torch, torch-graph, torch-compile, jax; got 'hips'"),
        (["--config", "huge"], "a configuration is one of reversal, gpt-small, gpt-large; got 'huge'"),
        (["--rounds", "0"], "a bench takes at least one round; got 0; write --rounds 9"),
    ],
)  # fmt: skip
def test_misuse_is_one_line(words, text, capsys):
    assert main(["bench", "gpu", *words]) == 2
    error = capsys.readouterr().err
    assert text in error and error.count("\n") == 1


def test_a_process_that_fails_is_quoted(monkeypatch):
    with pytest.raises(RuntimeError, match="bench gpu could not measure attention nobody 8: KeyError: 'nobody'"):
        gpu.alone("attention", "nobody", "8")


def test_rows_of_attention_stand_beside_their_twin(monkeypatch):
    """Half beside half, causal beside causal."""
    seconds = {"ours": {"blockwise-causal-half": 6.0, "dense": 3.0}, "torch": {"torch": 1.5, "torch-causal-half": 2.0}}
    answers = {k: {kind: {"seconds": s, "memory": 1} for kind, s in kinds.items()} for k, kinds in seconds.items()}
    monkeypatch.setattr(gpu, "alone", lambda what, who, length: answers[who])
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: True)
    rows = {(row["kind"], row["half"]): row["of_torch"] for row in gpu.long_sequences((8,), print)}
    assert rows["blockwise-causal", True] == 3.0 and rows["dense", False] == 2.0 and rows["torch", False] == 1.0


def test_a_result_is_told_and_drawn(tmp_path):
    figures = run.summarise({"torch": [2.0, 2.0], "ours": [1.0, 1.0]}, "torch")
    for row in figures.values():
        row |= {
            "tokens_per_second": 10.0,
            "memory": 1 << 20,
            "memory_ratio": 1.0,
            "of_gemm_rate": 0.1,
            "loss_apart": 0.0,
        }
    step = {"config": "reversal", "reference": "torch", "rounds": 2, "flops": 1e9, "gemm_rate": 1e12,
            "losses_agree": True, "peers": figures, "failed": {}}  # fmt: skip
    kernel = {
        "name": "softmax",
        "direction": "forward",
        "dtype": "float32",
        "seconds": 1e-3,
        "bytes": 8,
        "of_copy": 0.5,
    }
    row = {"kind": "blockwise", "half": True, "length": 4096, "seconds": 2e-3, "memory": 1 << 20, "of_torch": 1.5}
    result = {"configs": [step], "long": [row], "device": "NVIDIA H200", "copy": 2e12, "kernels": [kernel]}
    text = "\n".join(gpu.table(result))
    assert "on one NVIDIA H200, which copies 2,000 GB/s" in text and "minitransformer, step recorded" in text
    assert "T = 4,096: blockwise, float16" in text and "1.50 of PyTorch's fused kernel" in text
    gpu.draw(result, tmp_path / "gpu.png")
    assert (tmp_path / "gpu.png").exists() and math.isclose(result["configs"][0]["peers"]["ours"]["ratio"], 0.5)
