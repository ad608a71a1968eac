"""A step split over processes: the same gradients, the same masks, and a clean end whatever happens."""

import gc
import math
import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

import minitransformer as mt
from minitransformer import Workers, draws, nn, ops, optim
from minitransformer.kernels.blas import blas_threads, limit_blas_threads
from minitransformer.ops.dropout import dropout_mask
from minitransformer.parallel import default_workers

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


class Net(nn.Module):
    """Two linear layers with dropout, over tokens."""

    def __init__(self):
        self.embedding = nn.Embedding(11, 6)
        self.up = nn.Linear(6, 13)
        self.drop = nn.Dropout(0.25)
        self.down = nn.Linear(13, 11)
        self.unused = nn.Linear(2, 3)  # gets no gradient

    def forward(self, ids):
        return self.down(self.drop(ops.relu(self.up(self.embedding(ids)))))


def made():
    mt.manual_seed(1)
    model = Net()

    def loss(ids, target):
        return ops.cross_entropy(model(ids), target, ignore_index=0), int((target != 0).sum())

    return model, loss


def batch(rng, rows=7):
    target = rng.integers(1, 11, (rows, 5))
    target[2, 1:] = 0  # rows of unlike weight
    return rng.integers(0, 11, (rows, 5)), target


def one_step(count, arrays, training=True):
    model, loss = made()
    model.train(training)
    with Workers(model, loss, count) as workers:
        mt.manual_seed(7)
        value, tokens = workers.backward(*arrays)
        return value, tokens, [None if p.grad is None else p.grad.numpy().copy() for p in model.parameters()]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("count", [2, 3, 7, 9])
def test_the_gradient_is_that_of_one_worker(count, training, rng):
    """Nine workers over seven rows leave two of them without any."""
    arrays = batch(rng)
    value, tokens, expected = one_step(1, arrays, training)
    split_value, split_tokens, grads = one_step(count, arrays, training)
    assert tokens == split_tokens == 7 * 5 - 4
    np.testing.assert_allclose(split_value, value, rtol=2e-6)
    assert grads[-1] is expected[-1] is None
    for a, b in zip(grads[:-2], expected[:-2], strict=True):
        assert a.dtype == b.dtype == np.float32
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-6 * np.abs(b).max())


def test_the_same_number_of_workers_gives_the_same_bits(rng):
    arrays = batch(rng)
    first, second = one_step(3, arrays), one_step(3, arrays)
    assert first[0] == second[0]
    for a, b in zip(first[2][:-2], second[2][:-2], strict=True):
        np.testing.assert_array_equal(a, b)


def test_training_goes_the_same_way(rng):
    """Twenty steps of Adam with dropout: the losses agree to rounding, and the parameters arrive in the children."""
    losses = []
    for count in (1, 2):
        model, loss = made()
        optimizer = optim.AdamW(model.parameters(), lr=1e-2)
        with Workers(model, loss, count) as workers:
            losses.append([])
            for step in range(20):
                mt.manual_seed((3, step))
                losses[-1].append(float(workers.backward(*batch(np.random.default_rng(step)))[0]))
                optimizer.step()
    np.testing.assert_allclose(*losses, rtol=1e-4)
    assert sum(losses[0][-5:]) < sum(losses[0][:5])


class Plain(nn.Module):
    """Every parameter gets a gradient; large enough that gradients are added up by all workers."""

    def __init__(self):
        self.embedding = nn.Embedding(1009, 521)
        self.norm = nn.LayerNorm(521)
        self.out = nn.Linear(521, 11)

    def forward(self, ids):
        return self.out(self.norm(self.embedding(ids)))


@pytest.mark.parametrize("kind", [optim.Adam, optim.AdamW, optim.Lion, optim.SGD])
def test_a_step_of_all_workers_is_the_optimizers_own_to_the_bit(kind):
    """With clipping in between; after the workers' end it goes on alone."""
    found = []
    for shared in (False, True):
        mt.manual_seed(1)
        model = Plain()
        matrices, vectors = ([p for p in model.parameters() if (p.ndim > 1) is flag] for flag in (True, False))
        optimizer = kind([{"params": matrices, "weight_decay": 0.1}, {"params": vectors}], lr=1e-2)
        workers = Workers(model, lambda i, t, m=model: (ops.cross_entropy(m(i), t), t.size), 3)  # noqa: B023
        for step in range(4):
            workers.backward(*batch(np.random.default_rng(step)))
            kept = [p.grad.numpy().copy() for p in model.parameters()]
            if step:
                optim.clip_grad_norm_(model.parameters(), 0.5)
            if step == 3:
                workers.close()
                for p, g in zip(model.parameters(), kept, strict=True):
                    p.grad = g
            if shared:
                workers.step(optimizer)
            else:
                optimizer.step()
        found.append([p.numpy().copy() for p in model.parameters()])
        assert optimizer.step_count == 4
    for a, b in zip(*found, strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == np.float32


def test_the_sum_of_all_workers_is_that_of_one(rng, monkeypatch):
    arrays, grads = batch(rng), []
    for least in (1, 1 << 30):
        monkeypatch.setattr("minitransformer.parallel.SHARED_SUM", least)
        mt.manual_seed(1)
        model = Plain()
        with Workers(model, lambda i, t, m=model: (ops.cross_entropy(m(i), t), t.size), 3) as workers:  # noqa: B023
            workers.backward(*arrays)
            grads.append([p.grad.numpy().copy() for p in model.parameters()])
    for a, b in zip(*grads, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_worker_that_dies_in_a_step_is_named(rng):
    model = Plain()
    optimizer = optim.Adam(model.parameters())
    workers = Workers(model, lambda i, t: (ops.cross_entropy(model(i), t), t.size), 2)
    workers.backward(*batch(rng))
    os.kill(workers.children[0], signal.SIGKILL)
    with pytest.raises(RuntimeError, match="worker 1 of 2 has died"):
        workers.step(optimizer)


def test_a_batch_of_nothing_that_counts(rng):
    ids = rng.integers(0, 11, (4, 5))
    value, tokens, grads = one_step(2, (ids, np.zeros_like(ids)))
    assert value == 0 and tokens == 0 and all(g is None or not g.any() for g in grads)


def test_the_dropout_of_a_part_is_that_of_the_whole():
    like = np.ones((), "float32")
    mt.manual_seed(3)
    whole, after = dropout_mask((7, 5), 0.5, like), dropout_mask((2, 3), 0.5, like)
    for first, end in ((0, 3), (3, 7), (2, 2)):
        mt.manual_seed(3)
        with draws.drawing_for_rows(first, end - first):
            np.testing.assert_array_equal(dropout_mask((end - first, 5), 0.5, like), whole[first:end])
            np.testing.assert_array_equal(dropout_mask((9, 3), 0.5, like)[:2], after)  # no array of the batch


def test_what_fails_in_a_worker_is_told_by_its_name(rng):
    model, loss = made()

    def failing(ids, target):
        if (ids == 10).any():
            raise ValueError("ten is too much")
        return loss(ids, target)

    ids, target = batch(rng)
    ids[:] = 1
    with Workers(model, failing, 2) as workers:
        workers.backward(ids, target)
        ids[-1, 0] = 10  # in the part of the second worker
        with pytest.raises(RuntimeError, match="worker 1 of 2 failed: ValueError: ten is too much"):
            workers.backward(ids, target)


def test_a_worker_that_dies_is_named_and_the_rest_ends(rng):
    model, loss = made()
    workers = Workers(model, loss, 3)
    children = list(workers.children)
    os.kill(children[0], signal.SIGKILL)
    with pytest.raises(RuntimeError, match="worker 1 of 3 has died.*workers=1"):
        for _ in range(2):
            workers.backward(*batch(rng))
    for pid in children:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_closing_gives_threads_back_and_leaves_no_process(rng):
    before = blas_threads()
    model, loss = made()
    workers = Workers(model, loss, 2)
    children = list(workers.children)
    assert not before or blas_threads() == 1
    workers.backward(*batch(rng))
    workers.close()
    workers.close()
    assert blas_threads() == before
    for pid in children:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    model.up.weight.data[...] = 0.5  # the memory outlives the workers
    del workers
    gc.collect()
    assert (model.up.weight.numpy() == 0.5).all()


def test_workers_end_with_a_parent_that_was_killed():
    code = textwrap.dedent("""
        import os, sys
        import minitransformer as mt
        model = mt.nn.Linear(3, 2)
        workers = mt.Workers(model, lambda x: (model(x).sum(), 1), 3)
        print(*workers.children, flush=True)
        os.kill(os.getpid(), 9)
    """)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    children = [int(word) for word in done.stdout.split()]
    assert done.returncode == -signal.SIGKILL and len(children) == 2
    until = time.monotonic() + 20
    while any(_alive(pid) for pid in children):
        assert time.monotonic() < until, "a worker outlives its parent"
        time.sleep(0.01)


def _alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("count", [0, -1, 1.5, True, "2"])
def test_a_count_that_is_none_is_refused(count):
    model, loss = made()
    with pytest.raises(ValueError, match="counted from 1.*write workers=2"):
        Workers(model, loss, count)


def test_default_workers_are_at_least_one():
    assert 1 <= default_workers() <= 8


def test_blas_threads_are_set_at_run_time():
    if not blas_threads():
        pytest.skip("this BLAS does not say")
    with limit_blas_threads(1):
        assert blas_threads() == 1
        with limit_blas_threads(2):
            assert blas_threads() in (1, 2)  # not more than there are cores
    assert math.isfinite(np.ones((300, 300)) @ np.ones(300) @ np.ones(300))
