"""What a training step costs on a GPU, in numbers that need no clock; and that NVRTC takes every kernel.

The budgets are those of the README's table. They hold on a real GPU and on the host mock alike, but only the mock
counts.
"""

import dataclasses

import numpy as np
import pytest

import minitransformer as mt
from minitransformer import backend as library
from minitransformer import optim
from minitransformer.bench import configs
from minitransformer.kernels.cuda.source import SOURCES, TYPES
from minitransformer.parallel import Workers
from tests import hostcuda

on_mock = pytest.mark.skipif("not config.where.startswith('cupy on the host')", reason="only the host mock counts")

# configuration, optimizer → launches of kernels, products of matrices (cuBLAS calls)
BUDGETS = {
    ("reversal", "AdamW"): (166, 167),
    ("reversal", "Lion"): (166, 167),
    ("reversal", "Adafactor"): (171, 167),
    ("gpt-small", "AdamW"): (128, 123),
}


def small(name):
    """Return a configuration with its layers and heads, so that it makes the same calls on smaller arrays."""
    return dataclasses.replace(configs.CONFIGS[name], batch=2, length=8, d_model=32, heads=2)


def one_step(name, optimizer, kernels=True, steps=8):
    """Return what the last of some steps of a model costs: counts, and kernels by name."""
    c = small(name)
    with mt.use_kernels(kernels):
        model, batches = configs.model(c), configs.batches(c)
        chosen = getattr(optim, optimizer)(model.parameters())
        with Workers(model, configs.loss(model), 1) as workers:
            for i in range(steps):
                hostcuda.reset()
                loss, _ = workers.backward(*library.send(*batches[i % len(batches)]))
                norm = optim.clip_grad_norm_(model.parameters(), 1.0, error_if_nonfinite=False)
                chosen.step()
            counts, names = hostcuda.counts(), hostcuda.kernels()
        assert np.isfinite([float(loss), float(norm)]).all()
        return counts, names


@on_mock
@pytest.mark.parametrize("name, optimizer", BUDGETS)
def test_a_training_step_stays_within_its_budget(name, optimizer):
    """No waiting, nothing sent back, one copy in for the batch, nothing asked of the driver; few launches."""
    counts, _ = one_step(name, optimizer)
    launches, products = BUDGETS[name, optimizer]
    assert counts["sync"] == counts["to_host"] == counts["allocation"] == 0
    assert counts["to_device"] == 1 and counts["on_device"] <= 1
    assert counts["launch"] <= launches and counts["product"] <= products and counts["fill"] <= 2


@on_mock
def test_the_book_takes_ten_times_as_many_launches():
    book, fused = (one_step("reversal", "AdamW", kernels)[0] for kernels in (False, True))
    assert book["launch"] > 10 * fused["launch"]
    assert book["sync"] == book["to_host"] == 0  # it does not make the host wait, either


@on_mock
def test_each_fused_op_is_one_launch_each_way():
    _, names = one_step("reversal", "AdamW")
    layers, norms = 6, 12
    for kernel, times in {
        "norm_forward": norms, "norm_backward": norms, "softmax_forward": layers, "softmax_backward": layers,
        "loss_forward": 1, "loss_backward": 1, "adam": 1, "square_norm": 1, "clip": 1, "chains": 2,
    }.items():  # fmt: skip
        found = [n for name, n in names.items() if f"{len(kernel)}{kernel}I" in name]
        assert found == [times], (kernel, names)


@on_mock
@pytest.mark.parametrize("p", [0.0, 0.1])
def test_dropout_and_the_residual_are_one_launch(p):
    x, h = (mt.tensor(np.ones((2, 3, 5), "float32"), requires_grad=True) for _ in range(2))
    mt.ops.dropout_add(x, h, p)
    hostcuda.reset()
    y = mt.ops.dropout_add(x, h, p)
    assert hostcuda.counts()["launch"] == 1
    y.backward(mt.tensor(np.ones((2, 3, 5), "float32")).data)


@on_mock
@pytest.mark.parametrize("architecture", hostcuda.ARCHITECTURES)
@pytest.mark.parametrize("file", SOURCES)
def test_nvrtc_takes_every_kernel_for_every_gpu(file, architecture):
    source = SOURCES[file]
    for char in TYPES:
        hostcuda.nvrtc(source.code, architecture, source.expressions(char))
