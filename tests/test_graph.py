"""A recorded step does what the step itself does, with each step's own batch, learning rate and dropout."""

import json

import numpy as np
import pytest

import minitransformer as mt
from minitransformer import backend, checkpoint, tasks
from minitransformer.graph import Live
from minitransformer.train import train
from tests import hostcuda

on_cupy = pytest.mark.skipif("config.where == 'numpy'", reason="for --backend cupy")
TINY = {"steps": 10, "d_model": 16, "d_ff": 32, "heads": 2, "layers": 1, "batch_size": 8, "log_every": 1}
TINY |= {"dropout": 0.1, "warmup_steps": 3, "checkpoint_every": 10, "max_length": 20, "backend": "cupy"}


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(tasks, "TEST_SEQUENCES", 4)
    monkeypatch.setattr(tasks, "VALIDATED", 4)


def trained(folder, **settings):
    folder.mkdir()
    config = tasks.make_config("reversal", {**TINY, **settings})
    train(tasks.make_task(config), config, folder, quiet=True)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return lines, checkpoint.load_checkpoint(folder / "checkpoint")[0]


@on_cupy
@pytest.mark.parametrize(
    "settings",
    [*({"optimizer": name} for name in ("adamw", "adafactor", "sgd", "lion")), {"clip_value": 1e-3, "clip_norm": 0.02}],
    ids=str,
)
def test_a_recorded_run_is_the_same_to_the_bit(settings, tmp_path):
    """Losses and norms of every step, and the weights at the end: batches, rates and masks are each step's own."""
    (plain, a), (graphed, b) = (trained(tmp_path / str(g), graph=g, **settings) for g in (False, True))
    for x, y in zip(plain, graphed, strict=True):
        assert (x["step"], x["loss"], x["grad_norm"], x["lr"]) == (y["step"], y["loss"], y["grad_norm"], y["lr"])
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])


@on_cupy
@pytest.mark.skipif("'mock' not in config.where", reason="only the host mock counts")
def test_a_recorded_step_is_one_launch_and_one_copy(tmp_path, monkeypatch):
    """Beside the graph: the copies of loss and norm that outlive the next launch."""
    config = tasks.make_config("reversal", {**TINY, "graph": True, "log_every": 100, "steps": 12})
    task = tasks.make_task(config)
    one, counted = task.batch(1), []

    def batch(step):  # always of one shape
        counted.append((hostcuda.counts(), hostcuda.kernels()))
        hostcuda.reset()
        return one

    task.batch = batch
    train(task, config, tmp_path, quiet=True)
    counts, kernels = counted[8]
    assert counts["launch"] <= 3 and counts["to_device"] == 1 and counts["product"] == 0
    assert counts["sync"] == counts["to_host"] == counts["allocation"] == 0
    assert kernels["graph"] == 1 and sum(kernels.values()) > 60  # what the graph runs is counted by name


@pytest.mark.parametrize(
    "settings, text",
    [
        ({"backend": "numpy", "graph": True}, "graph=true is for a GPU"),
        ({"graph": "yes"}, "graph is true or false"),
        ({"graph": True, "precision": "float16"}, "without a scaled loss"),
        ({"graph": True, "spike": 4}, "spike has to know each loss before its step; got spike=4, graph=true"),
        ({"graph": True, "accumulate": 2}, "records steps of one batch; got accumulate=2; write graph=false"),
    ],
)
def test_misuse_is_named(settings, text):
    with pytest.raises(ValueError, match=text):
        tasks.make_config("reversal", {**TINY, **settings})


@on_cupy
def test_what_is_no_array_of_the_batch_is_refused():
    ids = np.arange(6)
    live = Live([ids], 8)
    assert backend.to_numpy(live.arrays(ids)[0]).shape == (6,)
    with pytest.raises(RuntimeError, match="given the arrays of a batch"):
        live.arrays(ids.copy())
    with pytest.raises(RuntimeError, match="keeps 8 numbers"):
        live.numbers("f8", 3, lambda: (1, 2, 3))


@on_cupy
def test_changing_numbers_are_written_before_each_launch():
    ids, rate = np.arange(3), [0.5]
    live = Live([ids], 16)
    (view,) = live.arrays(ids)
    live.numbers("f8", 1, lambda: rate[0])
    live.write()
    np.testing.assert_array_equal(backend.to_numpy(view), ids)
    live.batch, rate[0] = [ids + 7], 0.25
    live.write()
    np.testing.assert_array_equal(backend.to_numpy(view), ids + 7)
    assert backend.to_numpy(live.device)[3:4].view("f8")[0] == 0.25
    assert mt.get_backend() == "cupy"
