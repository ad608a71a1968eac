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
from minitransformer.kernels.cuda import adafactor, blockwise, norm
from minitransformer.kernels.cuda.softmax import softmax_rows, softmax_rows_backward
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


on_cupy = pytest.mark.skipif("config.where == 'numpy'", reason="for --backend cupy")


def shares(x, looks):
    """Return softmax(x) over the keys that are looked at, in double precision; a row that looks nowhere gives zeros."""
    with np.errstate(invalid="ignore"):
        x = np.where(looks, x.astype("float64"), -np.inf)
        top = x.max(-1, keepdims=True)
        e = np.exp(x - np.where(top == -np.inf, 0, top))
        total = e.sum(-1, keepdims=True)
        return np.where(looks, e / np.where(total == 0, 1, total), 0)


@on_cupy
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize(
    "causal, window, offset", [(0, 0, 0), (1, 0, 30), (1, 0, 4090), (0, 40, 60), (1, 9, 4095), (1, 7, 9999)]
)
@pytest.mark.parametrize("keys, masked", [(77, True), (80, False), (1040, True), (4099, False), (4104, True)])
def test_softmax_of_rows_of_any_length(keys, masked, causal, window, offset, dtype, rng):
    """Rows in one span and in two, with and without 16-byte accesses; keys that nobody looks at may hold anything."""
    import cupy

    queries = 5
    x = rng.standard_normal((2, 3, queries, keys)).astype(dtype)
    ahead = np.arange(keys) - np.arange(queries)[:, None] - offset
    near = (not causal or ahead <= 0) & (not window or (ahead < window) & (-ahead < window))
    mask = rng.random((2, 1, queries, keys)) > 0.3 if masked else None
    looks = np.broadcast_to(near if mask is None else near & mask, x.shape)
    x[~looks & (rng.random(x.shape) > 0.5)] = np.nan
    x[0, 0, 1] = np.where(looks[0, 0, 1], -np.inf, x[0, 0, 1])  # nothing left: zeros
    for row, value in ((2, np.nan), (3, np.inf)):  # stays visible where it is looked at
        if looks[0, 0, row].any():
            x[0, 0, row, looks[0, 0, row].argmax()] = value
    kept = (rng.random(x.shape) > 0.5).astype(dtype) * 2
    scores, y, mixed = cupy.asarray(x), cupy.empty_like(x), cupy.empty_like(x)
    on_gpu = None if mask is None else cupy.asarray(mask)
    softmax_rows(scores, y, on_gpu, bool(causal), 1.0, mixed, cupy.asarray(kept), offset, window)
    right, tolerance = shares(x, looks), {"float16": 1e-3, "float32": 1e-6, "float64": 1e-14}[dtype]
    np.testing.assert_allclose(y.get(), right, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(mixed.get(), right * kept, rtol=tolerance, atol=tolerance)
    again = scores.copy()
    softmax_rows(again, again, on_gpu, bool(causal), 1.0, None, None, offset, window)  # in place
    np.testing.assert_array_equal(again.get(), y.get())
    g, g_x = rng.standard_normal(x.shape).astype(dtype), cupy.empty_like(x)
    y = cupy.asarray(np.nan_to_num(right).astype(dtype))
    softmax_rows_backward(y, cupy.asarray(g), g_x, 0.5, cupy.asarray(kept))
    p, g_p = y.get().astype("float64"), g.astype("float64") * kept
    expected = p * (g_p - (p * g_p).sum(-1, keepdims=True)) * 0.5
    np.testing.assert_allclose(g_x.get(), expected, rtol=tolerance, atol=tolerance * 10)


def run_norm(x, g, weight, bias):
    inputs = [mt.tensor(a, requires_grad=True) for a in (x, weight, bias)[: 3 if bias is not None else 2]]
    y = (mt.ops.rms_norm if bias is None else mt.ops.layer_norm)(*inputs)
    y.backward(mt.tensor(g).data)
    return [y.numpy(), *[t.grad.numpy() for t in inputs]]


@on_cupy
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("rows, width", [(1, 3), (9, 64), (1100, 5), (67, 264), (301, 77), (2, 4095), (3, 4096)])
def test_norms_add_up_over_rows_and_blocks(rows, width, centred, dtype, rng, monkeypatch):
    """Several rows a block and one, blocks in one, two and three levels, rows that all threads together just hold."""
    monkeypatch.setattr(norm, "ROWS_EACH", 1)
    x, g = (rng.standard_normal((rows, width)).astype(dtype) for _ in range(2))
    weight, bias = (rng.standard_normal(width).astype(dtype) for _ in range(2))
    arrays = x, g, weight, bias if centred else None
    fast, again = run_norm(*arrays), run_norm(*arrays)
    with mt.use_kernels(False):
        plain = run_norm(*[None if a is None else a.astype("float64") for a in arrays])
    tolerance = {"float16": 2e-3, "float32": 2e-6, "float64": 1e-14}[dtype]
    for a, b, c in zip(fast, plain, again, strict=True):
        assert a.dtype == dtype
        np.testing.assert_array_equal(a, c)  # the same order of sums each time
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max())


@on_cupy
def test_how_many_blocks_share_the_rows_of_a_norm(monkeypatch):
    monkeypatch.setattr(norm, "processors", lambda device: 100)
    assert norm.blocks_for(65_536, 1024, 0) == 800  # four warps a row: as many as 100 processors hold
    assert norm.blocks_for(65_536, 64, 0) == 800  # a warp a row, four rows a block
    assert norm.blocks_for(65_536, 4096, 0) == 200
    assert norm.blocks_for(16, 64, 0) == 1 and norm.blocks_for(17, 1024, 0) == 5  # four rows each, at least


@on_cupy
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("rows, width", [(5, 77), (9, 80), (2, 1040), (2, 4099), (1, 4104)])
def test_logarithms_and_losses_of_rows_of_any_length(rows, width, dtype, rng):
    """Against the book in double precision: rows in one span and in two, with and without 16-byte accesses."""
    x, g = (rng.standard_normal((rows, width)).astype(dtype) for _ in range(2))
    target, g_rows = rng.integers(0, width, rows), rng.standard_normal(rows).astype(dtype)
    results = []
    for kernels in (True, False):
        found = []
        for f, out in (
            (mt.ops.log_softmax, g),
            (lambda t: mt.ops.cross_entropy(t, target, reduction="none", label_smoothing=0.1), g_rows),
        ):
            t = mt.tensor(x if kernels else x.astype("float64"), requires_grad=True)
            with mt.use_kernels(kernels):
                y = f(t)
                y.backward(mt.tensor(out.astype(t.dtype)).data)
            found += [y.numpy(), t.grad.numpy()]
        results.append(found)
    tolerance = {"float16": 2e-3, "float32": 1e-6, "float64": 1e-14}[dtype]
    for a, b in zip(*results, strict=True):
        assert a.dtype == dtype
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max())


@on_cupy
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("begin", [0, 1, 8])
def test_arrays_may_begin_at_any_element(begin, dtype, rng):
    """Accesses of 16 bytes are for those that begin at a multiple of that."""
    import cupy

    flat = cupy.asarray(rng.standard_normal(4 * 3 * 5 * 32 + 8).astype(dtype))
    x, g, weight, bias = (flat[begin + i * 480 : begin + i * 480 + 480].reshape(3, 5, 32) for i in range(4))
    weight, bias = weight[0, 0], bias[0, 0]

    def results(x, g, weight, bias):
        t = mt.Tensor(x, requires_grad=True)
        mt.manual_seed(3)
        for y in (mt.ops.softmax(t), mt.ops.log_softmax(t), mt.ops.layer_norm(t, weight, bias),
                  mt.ops.dropout(t, 0.4), mt.ops.dropout_add(t, t, 0.4)):  # fmt: skip
            y.backward(g)
            yield y.numpy()
            yield t.grad.numpy()

    arrays = x, g, weight, bias
    for a, b in zip(results(*arrays), results(*[a.copy() for a in arrays]), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-2 if dtype == "float16" else 1e-5)


@on_cupy
@pytest.mark.parametrize("order", hostcuda.THREAD_ORDERS if hostcuda.is_active() else ["forward"])
@pytest.mark.parametrize("convention", ["torch", "transformers"])
def test_adafactor_adds_columns_up_by_chunks(convention, order, rng, monkeypatch, request):
    """Matrices of one chunk and of several, the last of them shorter, beside vectors; against the book on NumPy."""
    monkeypatch.setattr(adafactor, "CHUNK", 3)
    monkeypatch.setattr(adafactor, "CHUNKS", 11)
    adafactor._tables.cache_clear()
    request.addfinalizer(adafactor._tables.cache_clear)
    shapes = [(7, 5), (4,), (1, 1), (301, 33), (3, 200), (10, 3), (300,)]
    values = [rng.standard_normal(shape) for shape in shapes]
    gradients = [[rng.standard_normal(shape) for shape in shapes] for _ in range(3)]
    results = []
    if hostcuda.is_active():
        hostcuda.set_thread_order(order)
        request.addfinalizer(lambda: hostcuda.set_thread_order(hostcuda.THREAD_ORDERS[0]))
    for backend in ("cupy", "numpy"):
        with mt.use_backend(backend):
            parameters = [mt.tensor(v, requires_grad=True) for v in values]
            optimizer = optim.Adafactor(parameters, convention=convention)
            for step in gradients:
                for t, g in zip(parameters, step, strict=True):
                    t.grad = mt.tensor(g)
                optimizer.step()
            results.append([library.to_numpy(t.data) for t in parameters])
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)


def heads_of_rows(rng, b, t, h=3, width=4):
    """Return q, k, v as attention gets them: heads are slices of a row."""
    return [mt.tensor(rng.standard_normal((b, t, h, width)), requires_grad=True).swapaxes(1, 2) for _ in range(3)]


def launches_and_products(f):
    hostcuda.reset()
    y = f()
    forward = hostcuda.counts()
    g = mt.tensor(np.ones((y.shape[0], y.shape[2], y.shape[1], y.shape[3]))).data.swapaxes(1, 2)
    hostcuda.reset()
    y.node.vjp(g)
    backward = hostcuda.counts()
    return [(counts["launch"], counts["product"]) for counts in (forward, backward)]


@on_mock
@pytest.mark.parametrize("b", [1, 2])
def test_a_batch_of_one_needs_no_list_of_addresses(b, rng):
    q, k, v = heads_of_rows(rng, b, 5)
    lists = int(b > 1)
    mt.ops.scaled_dot_product_attention(q, k, v)  # compiles
    found = launches_and_products(lambda: mt.ops.scaled_dot_product_attention(q, k, v))
    assert found == [(1 + lists, 2), (1 + lists, 4)]


@on_mock
@pytest.mark.parametrize("b", [1, 2])
def test_a_strip_is_a_softmax_each_way(b, rng, monkeypatch):
    """Forward a softmax and two products; backward it is made again, and differentiated, with five products."""
    monkeypatch.setattr(blockwise, "scores_at_once", lambda device: b * 3 * 48 * 16)
    q, k, v = heads_of_rows(rng, b, 48)
    strips, lists, zeros = 3, int(b > 1), 3
    mt.ops.blockwise_attention(q, k, v)
    found = launches_and_products(lambda: mt.ops.blockwise_attention(q, k, v))
    assert found == [(strips * (1 + lists), strips * 2), (strips * (2 + lists) + zeros, strips * 5)]


@on_mock
@pytest.mark.parametrize("settings", [{}, {"dropout_p": 0.2}], ids=str)
def test_strips_of_all_sizes_share_one_place(settings, rng, monkeypatch):
    """Causal strips reach more keys each time. The pool grows by what the largest needs, not by the sum of them."""
    import cupy

    t, most = 256, 16 * 3 * 256
    monkeypatch.setattr(blockwise, "scores_at_once", lambda device: most)
    q, k, v = heads_of_rows(rng, 1, t)
    pool = cupy.get_default_memory_pool()
    pool.free_all_blocks()
    before = pool.total_bytes()
    y = mt.ops.blockwise_attention(q, k, v, causal=True, **settings)
    y.backward(np.ones(y.shape))
    strip, small = 8 * most, 8 * 3 * 4 * t  # float64; q, or k, or what has its size
    assert pool.total_bytes() - before <= (5 if settings else 2) * strip + 16 * small


@on_mock
def test_a_strip_is_as_large_as_the_memory_lets_it(monkeypatch):
    import cupy

    assert blockwise.scores_at_once(0) == 1 << 24  # 64 MiB in float32, of the mock's 8 GiB
    for memory, scores in ((80 << 30, 80 << 20), (1 << 40, 1 << 27)):
        monkeypatch.setattr(cupy.cuda.runtime, "memGetInfo", lambda m=memory: (0, m))
        assert blockwise.scores_at_once.__wrapped__(0) == scores


@on_cupy
@pytest.mark.parametrize("kind", ["int32", "int64", "uint8"])
def test_rows_are_looked_up_as_cupy_does(kind, rng):
    """Also ids that no table has: the host does not wait to be told of them, but no other memory is read or written."""
    import cupy

    weight = mt.tensor(rng.standard_normal((7, 12)), requires_grad=True)
    ids = cupy.asarray(np.array([[0, 6, 7], [255, 200, 3]] if kind == "uint8" else [[0, -1, 7], [-9, 200, 3]], kind))
    g = mt.tensor(rng.standard_normal((2, 3, 12))).data
    results = []
    for kernels in (True, False):
        with mt.use_kernels(kernels):
            y = mt.ops.embedding(ids, weight)
        results.append((y.numpy(), y.node.vjp(g)[-1].get()))
    np.testing.assert_array_equal(results[0][0], results[1][0])
    np.testing.assert_allclose(results[0][1], results[1][1], rtol=1e-12, atol=0)
