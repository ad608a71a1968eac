"""What one process measures on a GPU: each kernel beside the right count of bytes, each kind of attention."""

import pytest

from minitransformer.bench import long, on_gpu

on_cupy = pytest.mark.skipif("config.where == 'numpy'", reason="for --backend cupy")


@pytest.fixture
def small(monkeypatch):
    for name, value in {"ROWS": 6, "WIDTH": 8, "VOCABULARY": 20, "CLASSES": 16, "BURSTS": 1}.items():
        monkeypatch.setattr(on_gpu, name, value)
    measured = on_gpu.seconds_of
    monkeypatch.setattr(on_gpu, "seconds_of", lambda run, wait: measured(run, wait, long_enough=0))


@on_cupy
def test_every_kernel_is_timed_both_ways_beside_the_fewest_bytes(small):
    found = on_gpu.kernels()
    rows = {(row["name"], row["direction"], row["dtype"]): row for row in found["kernels"]}
    pairs = {name for name, direction, _ in rows if direction == "forward"}
    assert len(rows) == 4 * len(pairs) + 5 and len(pairs) == 11 and found["copy"] > 0
    assert all(row["seconds"] > 0 and row["of_copy"] > 0 for row in rows.values())
    n = 6 * 8
    assert rows["softmax", "forward", "float32"]["bytes"] == 2 * n * 4  # read, and written
    assert rows["layer_norm", "backward", "float16"]["bytes"] == 3 * n * 2  # x and g read, g_x written
    assert rows["AdamW", "step", "float32"]["bytes"] == 7 * n * 4  # θ, g, m, v read; θ, m, v written


@on_cupy
def test_attention_is_timed_for_each_kind(small, monkeypatch):
    found = on_gpu.attention_of_ours(24)
    assert list(found) == list(on_gpu.KINDS)
    assert all(row["seconds"] > 0 and row["memory"] > 4 * 24 * long.HEADS * long.WIDTH for row in found.values())
    monkeypatch.setattr(long, "MOST_SCORES", 0)
    assert not any(kind.startswith("dense") for kind in on_gpu.attention_of_ours(8))


def test_a_time_is_that_of_one_run_and_all_bursts_are_waited_for():
    ran, waited = [], []
    assert on_gpu.seconds_of(lambda: ran.append(1), lambda: waited.append(1), long_enough=0) > 0
    assert len(ran) == 2 + on_gpu.BURSTS and len(waited) == 2 + on_gpu.BURSTS
