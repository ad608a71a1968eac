"""A recorded step does what the step itself does, with each step's own batch, learning rate and dropout."""

import functools
import json
import types

import numpy as np
import pytest

import minitransformer as mt
from minitransformer import backend, checkpoint, graph, tasks
from minitransformer.graph import GraphedStep, Live
from minitransformer.kernels import registry
from minitransformer.kernels.cuda import many
from minitransformer.nn import position
from minitransformer.train import train
from tests import hostcuda

on_cupy = pytest.mark.skipif("config.where == 'numpy'", reason="for --backend cupy")
TINY = {"steps": 10, "d_model": 16, "d_ff": 32, "heads": 2, "layers": 1, "batch_size": 8, "log_every": 1}
TINY |= {"dropout": 0.1, "warmup_steps": 3, "checkpoint_every": 10, "max_length": 20, "backend": "cupy"}


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(tasks, "TEST_SEQUENCES", 4)
    monkeypatch.setattr(tasks, "VALIDATED", 4)


def trained(folder, name="reversal", change=None, **settings):
    folder.mkdir()
    config = tasks.make_config(name, {**TINY, **settings})
    task = tasks.make_task(config)
    if change is not None:
        task.loss = functools.partial(change, task, task.loss)
    train(task, config, folder, quiet=True)
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


TEXT = "the quick brown fox jumps over the lazy dog\n" * 20
PAIRS = "".join(f"{a}\t{a[::-1]}\n" for a in ("one two", "three", "four five six", "seven", "eight nine", "ten") * 4)


@on_cupy
@pytest.mark.parametrize(
    "name, settings",
    [
        ("numbers", {"label_smoothing": 0.1, "positions": "rotary", "norm": "post"}),
        ("translate", {"loss_chunk": 5, "tie_embeddings": "all"}),
        ("lm", {"positions": "alibi", "activation": "gelu_tanh", "schedule": "cosine"}),
        ("lm", {"positions": "relative", "precision": "tf32", "weight_decay": 0.1}),
    ],
    ids=str,
)
def test_by_default_every_task_is_recorded_and_ends_in_the_same_bits(name, settings, tmp_path, monkeypatch):
    (tmp_path / "text.txt").write_text(TEXT)
    (tmp_path / "pairs.tsv").write_text(PAIRS)
    where = {"lm": {"text": str(tmp_path / "text.txt")}, "translate": {"pairs": str(tmp_path / "pairs.tsv")}}
    settings = {**settings, **where.get(name, {})}
    recorded = []
    record = GraphedStep._record
    monkeypatch.setattr(GraphedStep, "_record", lambda *args: recorded.append(1) or record(*args))
    plain, a = trained(tmp_path / "plain", name, graph=False, **settings)
    assert not recorded
    graphed, b = trained(tmp_path / "graphed", name, **settings)
    assert recorded
    for x, y in zip(plain, graphed, strict=True):
        assert (x["step"], x["loss"], x["grad_norm"]) == (y["step"], y["loss"], y["grad_norm"])
    for key in a:
        np.testing.assert_array_equal(a[key], b[key])


def waits(task, loss, *arrays):
    value, tokens = loss(*arrays)
    return value * float(mt.ops.mean(value * 0 + 1).item()), tokens  # a number that the host waits for


def copies(task, loss, *arrays):
    value, tokens = loss(*[a.copy() for a in arrays])  # another array than the graph would write
    return value, tokens


def keeps_one_back(task, loss, *arrays):
    return loss(*backend.recorder().batch[:1] * len(arrays)) if backend.recorder() else loss(*arrays)


def has_no_room(task, loss, *arrays):
    if backend.recorder():
        import cupy

        raise cupy.cuda.memory.OutOfMemoryError(1, 2)
    return loss(*arrays)


@on_cupy
@pytest.mark.parametrize("change", [has_no_room, waits, copies, keeps_one_back])
def test_what_cannot_be_recorded_is_taken_as_usual(change, tmp_path):
    """To the same bits, dropout included; and where a graph was asked for, the run says why there is none."""
    (plain, a), (usual, b) = (trained(tmp_path / f"{g}", change=change, graph=g) for g in (False, "auto"))
    assert [x["loss"] for x in plain] == [x["loss"] for x in usual]
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])
    with pytest.raises((RuntimeError, ValueError, MemoryError)):
        trained(tmp_path / "asked", change=change, graph=True)


@on_cupy
def test_a_task_that_counts_no_tokens_is_not_recorded(tmp_path):
    config = tasks.make_config("reversal", TINY)
    task = tasks.make_task(config)
    names = "model", "batch", "loss", "held_out_loss", "evaluate"
    bare = types.SimpleNamespace(**{name: getattr(task, name) for name in names})
    assert train(bare, config, tmp_path, quiet=True)["steps"] == config.steps


@on_cupy
@pytest.mark.parametrize("positions", ["relative", "sinusoidal"])
def test_what_a_cache_forgets_the_graphs_keep(positions, tmp_path, monkeypatch):
    """Ones and tables of many sizes come and go; a graph knows only where they lay."""
    monkeypatch.setattr(registry, "MOST_ONES", 1)
    monkeypatch.setattr(position._Sent, "most", 1)
    monkeypatch.setattr(many, "REMEMBERED", 4)
    settings = {"positions": positions, "steps": 30, "optimizer": "adafactor"}
    (plain, a), (graphed, b) = (trained(tmp_path / f"{g}", graph=g, **settings) for g in (False, "auto"))
    assert [x["loss"] for x in plain] == [x["loss"] for x in graphed]
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])


@on_cupy
def test_nothing_but_the_batch_is_sent_while_a_step_is_recorded():
    live = Live([np.arange(3)], 8)
    with backend.recording(live):
        with pytest.raises(RuntimeError, match="a recorded step sends nothing but its batch; .*write graph=false"):
            backend.to_backend(np.arange(3), "cupy")
        table = backend.keep(live.device)
    assert live.kept[0] is table
    assert backend.keep(5) == 5 and len(live.kept) == 1


@on_cupy
def test_beyond_so_many_shapes_steps_are_taken_as_usual(tmp_path, monkeypatch):
    monkeypatch.setattr(graph, "SHAPES", 1)
    kept = []
    record = GraphedStep._record
    monkeypatch.setattr(GraphedStep, "_record", lambda *args: kept.append(1) or record(*args))
    (plain, a), (graphed, b) = (trained(tmp_path / f"{g}", graph=g, steps=16) for g in (False, True))
    assert len(kept) == 1 and [x["loss"] for x in plain] == [x["loss"] for x in graphed]
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
        ({"graph": "yes"}, "graph is true, false or auto; got 'yes'; write graph=auto"),
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
