"""Each kernel against its book: value, gradient, dtype, what it writes to, what it keeps."""

import gc
import math

import numpy as np
import pytest

import minitransformer as mt
from minitransformer import ops
from minitransformer.backend import to_numpy
from minitransformer.draws import Draw
from minitransformer.kernels import KERNELS
from minitransformer.kernels.cuda import blockwise as cuda_blockwise
from minitransformer.kernels.registry import ALIGNED, LINE, WIDE, on_lines, row_by_row
from minitransformer.ops.dropout import dropout_factors
from minitransformer.ops.mask import causal_mask
from minitransformer.tensor import kernels_enabled
from tests import hostcuda
from tests.hostcuda import THREAD_ORDERS


def normal(rng, *shape):
    return rng.standard_normal(shape)


MASK = np.arange(35).reshape(5, 7) % 3 > 0
MASK[2] = False  # a row that may look nowhere


def attention(**settings):
    return lambda q, k, v: ops.scaled_dot_product_attention(q, k, v, **settings)


def blockwise(**settings):
    return lambda q, k, v: seeded(lambda *qkv: ops.blockwise_attention(*qkv, **settings), q, k, v)


def heads(rng, b=2, t=5, s=7, size=1.0):
    return size * normal(rng, b, 3, t, 4), size * normal(rng, b, 3, s, 4), normal(rng, b, 3, s, 6)


def seeded(f, *args):
    mt.manual_seed(5)
    return f(*args)


IDS = np.random.default_rng(0).integers(0, 300, (7, 11))
FAR = np.concatenate([np.arange(601), [0, 5, 600, 5], np.arange(300, 900), [0, 600]])  # met again beyond 256 tokens
TARGET = np.array([[0, 3, -100], [2, 2, 4]])
# kernel → (name, function, arrays); sizes that do not divide a block, and some that are cut into several.
CASES = {
    "_linear": [
        ("bias", ops.linear, lambda r: (normal(r, 2, 3, 5), normal(r, 7, 5), normal(r, 7))),
        ("no bias", lambda x, w: ops.linear(x, w), lambda r: (normal(r, 3, 5), normal(r, 7, 5))),
        ("a vector", ops.linear, lambda r: (normal(r, 5), normal(r, 7, 5), normal(r, 7))),
        ("blocks on lines", ops.linear, lambda r: (normal(r, 2, 331, 5), normal(r, 521, 5), normal(r, 521))),
    ],
    "_matmul": [
        ("stack by one", ops.matmul, lambda r: (normal(r, 2, 3, 5), normal(r, 5, 7))),
        ("stack by stack", ops.matmul, lambda r: (normal(r, 2, 3, 5), normal(r, 2, 5, 7))),
    ],
    "layer_norm": [
        ("rows", ops.layer_norm, lambda r: (3 + 2 * normal(r, 2, 3, 7), normal(r, 7), normal(r, 7))),
        ("blocks", ops.layer_norm, lambda r: (3 + 2 * normal(r, 701, 131), normal(r, 131), normal(r, 131))),
        ("blocks of wide rows", ops.layer_norm, lambda r: (3 + 2 * normal(r, 263, 307), *normal(r, 2, 307))),
        ("a view", lambda x, w, b: ops.layer_norm(x.swapaxes(0, 1), w, b),
         lambda r: (normal(r, 5, 7), normal(r, 5), normal(r, 5))),
    ],
    "rms_norm": [
        ("rows", ops.rms_norm, lambda r: (normal(r, 2, 3, 7), normal(r, 7))),
        ("blocks", ops.rms_norm, lambda r: (normal(r, 701, 131), normal(r, 131))),
        ("blocks of wide rows", ops.rms_norm, lambda r: (normal(r, 263, 307), normal(r, 307))),
    ],
    "relu": [("signs", ops.relu, lambda r: (normal(r, 5, 7),))],
    "_gelu_tanh": [
        ("signs", lambda x: ops.gelu(x, "tanh"), lambda r: (3 * normal(r, 5, 7),)),
        ("blocks", lambda x: ops.gelu(x, "tanh"), lambda r: (9 * normal(r, 3, 40_009),)),
        ("a view", lambda x: ops.gelu(x.T, "tanh"), lambda r: (normal(r, 5, 7),)),
    ],
    "_gelu_exact": [
        ("signs", ops.gelu, lambda r: (3 * normal(r, 5, 7),)),
        ("blocks", ops.gelu, lambda r: (9 * normal(r, 3, 40_009),)),
        ("a view", lambda x: ops.gelu(x.T), lambda r: (normal(r, 5, 7),)),
    ],
    "silu": [
        ("signs", ops.silu, lambda r: (3 * normal(r, 5, 7),)),
        ("blocks", ops.silu, lambda r: (9 * normal(r, 3, 40_009),)),
        ("a view", lambda x: ops.silu(x.T), lambda r: (normal(r, 5, 7),)),
    ],
    "_softmax": [
        ("rows", ops.softmax, lambda r: (normal(r, 2, 3, 7),)),
        ("mask", lambda x: ops.softmax(x, mask=MASK), lambda r: (normal(r, 2, 5, 7),)),
        ("another axis", lambda x: ops.softmax(x, axis=0), lambda r: (normal(r, 5, 7),)),
        ("far", ops.softmax, lambda r: (1e4 * normal(r, 5, 7),)),
    ],
    "log_softmax": [
        ("rows", ops.log_softmax, lambda r: (normal(r, 2, 3, 7),)),
        ("another axis", lambda x: ops.log_softmax(x, axis=0), lambda r: (normal(r, 5, 7),)),
        ("far", ops.log_softmax, lambda r: (1e4 * normal(r, 5, 7),)),
    ],
    "_dropout": [
        ("rows", lambda x: seeded(ops.dropout, x, 0.3), lambda r: (normal(r, 3, 5, 7),)),
        ("blocks of eight", lambda x: seeded(ops.dropout, x, 0.3), lambda r: (normal(r, 3, 5, 136),)),
    ],
    "_dropout_add": [
        ("rows", lambda x, h: seeded(ops.dropout_add, x, h, 0.3), lambda r: (normal(r, 3, 5, 7), normal(r, 3, 5, 7))),
        ("blocks of eight", lambda x, h: seeded(ops.dropout_add, x, h, 0.3),
         lambda r: (normal(r, 3, 5, 136), normal(r, 3, 5, 136))),
    ],
    "embedding": [
        ("small", lambda w: ops.embedding(IDS % 5, w), lambda r: (normal(r, 5, 3),)),
        ("large", lambda w: ops.embedding(IDS, w), lambda r: (normal(r, 301, 3),)),
        ("wide", lambda w: ops.embedding(IDS[:2] % 5, w), lambda r: (normal(r, 5, 4104),)),
        ("far apart", lambda w: ops.embedding(FAR, w), lambda r: (normal(r, 901, 3),)),
        ("one", lambda w: ops.embedding(np.array(3, "int32"), w), lambda r: (normal(r, 5, 8),)),
    ],
    "_cross_entropy": [
        ("ids", lambda x: ops.cross_entropy(x, TARGET), lambda r: (normal(r, 2, 3, 5),)),
        ("smooth, none", lambda x: ops.cross_entropy(x, TARGET, label_smoothing=0.2, reduction="none"),
         lambda r: (normal(r, 2, 3, 5),)),
        ("far", lambda x: ops.cross_entropy(x, TARGET), lambda r: (1e4 * normal(r, 2, 3, 5),)),
    ],
    "_linear_cross_entropy": [
        ("chunks", lambda x, w: ops.linear_cross_entropy(x, w, IDS[0] % 7, chunk=3),
         lambda r: (normal(r, 11, 5), normal(r, 7, 5))),
        ("smooth, ignored, none", lambda x, w: ops.linear_cross_entropy(x, w, IDS[:2] % 7, 3, 0.2, "none", 4),
         lambda r: (normal(r, 2, 11, 5), normal(r, 7, 5))),
        ("far", lambda x, w: ops.linear_cross_entropy(x, w, IDS[0] % 7, chunk=3),
         lambda r: (100 * normal(r, 11, 5), 100 * normal(r, 7, 5))),
    ],
    "_attention": [
        ("plain", attention(), heads),
        ("causal", attention(causal=True), heads),
        ("mask", attention(mask=MASK), heads),
        ("mask of keys", attention(mask=np.array([[[[1, 1, 0, 1, 0, 0, 0]]], [[[1] * 7]]], bool)), heads),
        ("blocks, causal", attention(causal=True), lambda r: heads(r, 3, 149, 149)),
        ("blocks, causal, a cache", attention(causal=True), lambda r: heads(r, 2, 131, 151)),
        ("blocks, mask", attention(mask=np.random.default_rng(1).random((2, 1, 149, 149)) > 0.7),
         lambda r: heads(r, 2, 149, 149)),
        ("far", attention(causal=True), lambda r: heads(r, size=100.0)),
        ("far, mask", attention(mask=MASK), lambda r: heads(r, size=100.0)),
        ("far, blocks", attention(causal=True), lambda r: heads(r, 3, 149, 149, size=30.0)),
        ("window", attention(window=3), heads),
        ("window, causal", attention(window=2, causal=True, blockwise=False), heads),
        ("three axes", attention(causal=True), lambda r: tuple(a[0] for a in heads(r))),
        ("a query", attention(), lambda r: heads(r, t=1)),
        ("a token, sliced", lambda x: attention()(*[x[:, :, i].swapaxes(1, 2) for i in range(3)]),
         lambda r: (normal(r, 2, 1, 3, 3, 4),)),
    ],
    "_blockwise_attention": [
        ("plain", blockwise(), heads),
        ("causal", blockwise(causal=True), heads),
        ("mask", blockwise(mask=MASK), heads),
        ("window", blockwise(window=3), heads),
        ("window, causal, dropout", blockwise(window=3, causal=True, dropout_p=0.3), heads),
        ("more queries than keys", blockwise(causal=True), lambda r: heads(r, t=9, s=7)),
        ("blocks", blockwise(), lambda r: heads(r, 2, 263, 271)),
        ("blocks, causal", blockwise(causal=True), lambda r: heads(r, 1, 523, 523)),
        ("blocks, causal, a cache", blockwise(causal=True), lambda r: heads(r, 1, 263, 541)),
        ("blocks, mask", blockwise(mask=np.random.default_rng(1).random((2, 1, 263, 271)) > 0.7),
         lambda r: heads(r, 2, 263, 271)),
        ("blocks, mask of keys", blockwise(mask=np.arange(541) < np.array([100, 530]).reshape(2, 1, 1, 1)),
         lambda r: heads(r, 2, 263, 541)),
        ("blocks, window", blockwise(window=100), lambda r: heads(r, 1, 523, 523)),
        ("blocks, window, causal", blockwise(window=100, causal=True), lambda r: heads(r, 1, 523, 523)),
        ("blocks, dropout", blockwise(causal=True, dropout_p=0.3), lambda r: heads(r, 2, 263, 271)),
        ("far", blockwise(causal=True), lambda r: heads(r, size=100.0)),
        ("far, blocks", blockwise(causal=True), lambda r: heads(r, 1, 523, 523, size=10.0)),
        ("bias", lambda q, k, v, x: blockwise(bias=x)(q, k, v), lambda r: (*heads(r), normal(r, 5, 7))),
        ("bias of keys", lambda q, k, v, x: blockwise(bias=x, mask=MASK)(q, k, v),
         lambda r: (*heads(r), normal(r, 2, 1, 1, 7))),
        ("bias by distance", lambda q, k, v, x: blockwise(distance_bias=x, causal=True)(q, k, v),
         lambda r: (*heads(r), normal(r, 3, 11))),
        ("blocks, both biases, dropout",
         lambda q, k, v, x, z: blockwise(bias=x, distance_bias=z, causal=True, window=211, dropout_p=0.2)(q, k, v),
         lambda r: (*heads(r, 2, 263, 271), normal(r, 263, 271), normal(r, 3, 533))),
    ],
}  # fmt: skip
LIST = [(op, *case) for op, cases in CASES.items() for case in cases]


FACTORS = "dropout_factors"  # has no gradient; tests of its own are below


def kernels_of(backend):
    return {op for op, where in KERNELS if where == backend}


@pytest.fixture(params=THREAD_ORDERS)
def thread_order(request, backend):
    """On the host mock, each order in which the threads of a block may take turns; elsewhere there is but one."""
    if not hostcuda.is_active():
        if request.param != THREAD_ORDERS[0]:
            pytest.skip("only the host mock can choose the order of threads")
        yield request.param
        return
    hostcuda.set_thread_order(request.param)
    yield request.param
    hostcuda.set_thread_order(THREAD_ORDERS[0])


@pytest.fixture(autouse=True)
def small_strips(monkeypatch):
    """Have the CUDA kernel of blockwise attention cut the cases into several strips."""
    monkeypatch.setattr(cuda_blockwise, "scores_at_once", lambda device: 1)
    monkeypatch.setattr(cuda_blockwise, "FEWEST", 128)


def needs_kernel(op, backend):
    if op not in kernels_of(backend):
        pytest.skip(f"no kernel for {op} on {backend}")


def test_every_kernel_has_a_case(backend):
    assert kernels_of("numpy") | kernels_of("cupy") == {*CASES, FACTORS}
    assert all(mt.PRIMITIVES[op].kernels[where] is body for (op, where), body in KERNELS.items())


def run(f, arrays, kernels):
    inputs = [mt.tensor(a, requires_grad=True) for a in arrays]
    with mt.use_kernels(kernels):
        y = f(*inputs)
        cotangent = np.random.default_rng(3).standard_normal(y.shape).astype(y.dtype)
        y.backward(cotangent)
    return [y.numpy(), *[t.grad.numpy() for t in inputs]]


@pytest.mark.parametrize("op, name, f, make", LIST, ids=[f"{op}: {name}" for op, name, *_ in LIST])
@pytest.mark.parametrize("dtype, tolerance", [("float64", 1e-12), ("float32", 2e-5), ("float16", 0)])
def test_kernel_and_book_agree(op, name, f, make, dtype, tolerance, rng, backend, thread_order):
    needs_kernel(op, backend)
    if dtype == "float16" and "far" in name:
        pytest.skip("1e4 · 1e2 is beyond float16 in the book, too")
    arrays = [a.astype(dtype) for a in make(rng)]
    fast, plain = run(f, arrays, True), run(f, arrays, False)
    largest = max(np.abs(a).max() for a in (*arrays, *plain))
    for i, (a, b) in enumerate(zip(fast, plain, strict=True)):
        assert a.dtype == b.dtype == dtype and a.shape == b.shape
        # Where a softmax is all but one-hot, gradients are differences of like numbers, and 0 up to their rounding.
        size = largest if "far" in name else np.abs(b).max(initial=1e-30)
        if dtype == "float16":  # half precision is the book's, but for relu and products
            np.testing.assert_allclose(a, b, rtol=2e-2, atol=2e-2 * max(size, 1), err_msg=f"number {i}")
        else:
            np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * size, err_msg=f"number {i}")


@pytest.mark.parametrize("op, name, f, make", LIST, ids=[f"{op}: {name}" for op, name, *_ in LIST])
def test_a_kernel_runs_where_its_case_says_so(op, name, f, make, rng, monkeypatch, backend):
    needs_kernel(op, backend)
    called = []
    real = mt.PRIMITIVES[op].kernels[backend]
    monkeypatch.setitem(mt.PRIMITIVES[op].kernels, backend, lambda *a, **k: called.append(op) or real(*a, **k))
    run(f, make(rng), True)
    assert called, f"{op} was not asked"
    called.clear()
    run(f, make(rng), False)
    assert not called, "use_kernels(False) runs the book"


@pytest.mark.parametrize("op, name, f, make", LIST, ids=[f"{op}: {name}" for op, name, *_ in LIST])
def test_a_kernel_writes_into_nothing_it_was_given(op, name, f, make, rng, backend):
    needs_kernel(op, backend)
    arrays = [a.astype("float32") for a in make(rng)]
    inputs = [mt.Tensor(a.copy(), requires_grad=True) for a in arrays]
    y = f(*inputs)
    g = np.random.default_rng(3).standard_normal(y.shape).astype("float32")
    before = g.copy()
    y.backward(g, keep_graph=True)
    first = [t.grad.numpy().copy() for t in inputs]
    np.testing.assert_array_equal(g, before)
    for t, a in zip(inputs, arrays, strict=True):
        np.testing.assert_array_equal(t.numpy(), a)
        t.grad = None
    y.backward(g)  # what was kept is as it was
    for t, a in zip(inputs, first, strict=True):
        np.testing.assert_array_equal(t.grad.numpy(), a)


SMALL = [c for c in LIST if "far" not in c[1] and "blocks" not in c[1] and c[0] != "embedding"]


@pytest.mark.parametrize("op, name, f, make", SMALL, ids=[f"{op}: {name}" for op, name, *_ in SMALL])
def test_a_kernel_passes_the_gradient_check(op, name, f, make, rng, backend):
    """At first order forward and backward both run the kernel."""
    needs_kernel(op, backend)
    assert mt.gradcheck(f, *make(rng), order=1, max_coordinates=12).points > 0


def kept_bytes(f, arrays, kernels):
    """Return the bytes of all arrays that a graph holds on to, each memory once."""
    inputs = [mt.tensor(a, requires_grad=True) for a in arrays]
    with mt.use_kernels(kernels):
        y = f(*inputs)
    seen, todo, known = {}, [y.node], set()
    while todo:
        item = todo.pop()
        if id(item) in known:
            continue
        known.add(id(item))
        if hasattr(item, "nbytes"):
            base = item
            while hasattr(base.base, "nbytes"):
                base = base.base
            seen[id(base)] = base.nbytes
        elif hasattr(item, "vjp"):
            todo += [item.vjp, *item.parents]
        elif callable(item) and getattr(item, "__closure__", None):
            todo += [cell.cell_contents for cell in item.__closure__]
        elif isinstance(item, list | tuple):
            todo += list(item)
    return sum(seen.values())


@pytest.mark.parametrize(
    "op",
    [
        "layer_norm",
        "rms_norm",
        "relu",
        "_gelu_tanh",
        "_gelu_exact",
        "silu",
        "_softmax",
        "log_softmax",
        "_cross_entropy",
    ],
)
def test_a_kernel_keeps_no_more_than_the_book(op, rng, backend):
    needs_kernel(op, backend)
    _, f, make = CASES[op][0]
    arrays = [a.astype("float32") for a in make(rng)]
    assert kept_bytes(f, arrays, True) <= kept_bytes(f, arrays, False) + 256


def test_gelu_keeps_one_array_where_the_book_keeps_three(rng):
    x = rng.standard_normal((100, 100)).astype("float32")
    f = lambda x: ops.gelu(x, "tanh")  # noqa: E731
    assert kept_bytes(f, [x], True) == x.nbytes  # dy/dx, and not even x
    assert kept_bytes(f, [x], False) == 3 * x.nbytes  # x, its square and the tanh


def test_the_exact_gelu_in_single_precision_is_exact_in_its_tail(rng):
    """Held against the C library's erfc in double precision, where the book's 1 + erf(x/√2) has lost all digits."""
    x = np.linspace(-9, 9, 3001).astype("float32")
    t = mt.tensor(x, requires_grad=True)
    y = ops.gelu(t)
    y.backward(np.ones_like(x))
    share = np.array([0.5 * math.erfc(-v / math.sqrt(2)) for v in x.tolist()])
    slope = share + x.astype("float64") * np.exp(-0.5 * x.astype("float64") ** 2) / math.sqrt(2 * math.pi)
    np.testing.assert_allclose(y.numpy(), x * share, rtol=1e-5)
    np.testing.assert_allclose(t.grad.numpy(), slope, atol=5e-7)


def test_blocks_that_a_mask_empties_are_not_computed(rng):
    q, k, v = (a.astype("float32") for a in heads(rng, 1, 256, 256))
    mask = causal_mask(256, 256, np)
    y, vjp = KERNELS["_attention", "numpy"](np, q, k, v, mask, None, None, scale=0.5, causal=False)
    blocks = next(c.cell_contents for c in vjp.__closure__ if isinstance(c.cell_contents, list))
    assert sum(b.p.size for b in blocks) <= 0.63 * 3 * 256 * 256


def test_dropout_on_the_weights_is_the_same_in_kernel_and_book(rng):
    q, k, v = heads(rng, 2, 131, 131)
    results = []
    for kernels in (True, False):
        mt.manual_seed(5)
        results.append(run(attention(causal=True, dropout_p=0.3), (q, k, v), kernels))
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * np.abs(b).max())


def test_scores_that_are_not_numbers_stay_visible(rng):
    q, k, v = heads(rng)
    q[0, 0, 0, 0] = math.nan
    with np.errstate(invalid="ignore"):
        y = ops.scaled_dot_product_attention(mt.tensor(q), mt.tensor(k), mt.tensor(v)).numpy()
    assert np.isnan(y[0, 0, 0]).all() and np.isfinite(y[1]).all() and np.isfinite(y[0, 0, 1:]).all()


@pytest.mark.parametrize("level", [-100.0, -60.0, -30.0, 30.0, 60.0, 100.0])
@pytest.mark.parametrize("causal", [False, True])
def test_a_row_of_scores_far_from_the_others_is_as_exact_as_they_are(level, causal, rng):
    q, k, v, g = rng.standard_normal((4, 2, 3, 9, 8))
    k[..., 0], q[..., 0], q[0, 1, 4, 0] = 1.0, 0.0, level
    arrays = [mt.tensor(a, dtype="float32", requires_grad=True) for a in (q, k, v)]
    exact = [mt.tensor(a, requires_grad=True) for a in (q, k, v)]
    y = ops.scaled_dot_product_attention(*arrays, causal=causal, scale=1.0)
    y.backward(g.astype("float32"))
    with mt.use_kernels(False):
        book = ops.scaled_dot_product_attention(*exact, causal=causal, scale=1.0)
        book.backward(g)
    for ours, theirs in zip((y, *(a.grad for a in arrays)), (book, *(a.grad for a in exact)), strict=True):
        bound = 1e-4 * max(1.0, abs(theirs.numpy()).max())  # a score of 100 has five decimals in single precision
        np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=0, atol=bound)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(), (0, 3), (7, 5), (257, 1031), (131_072,)])
def test_what_is_large_begins_on_a_line(shape, dtype):
    for _ in range(3):
        found = on_lines(np, shape, dtype)
        assert found.shape == shape and found.dtype == dtype and found.flags.c_contiguous and found.flags.writeable
        assert found.nbytes < ALIGNED or found.ctypes.data % LINE == 0


def test_buffers_are_narrow_inside_a_block_alone():
    usual = np.getbufsize()
    with pytest.raises(KeyError), row_by_row(WIDE):
        assert np.getbufsize() == WIDE
        raise KeyError
    assert np.getbufsize() == usual
    with row_by_row(WIDE - 1):
        assert np.getbufsize() == usual


def test_use_kernels_lasts_as_long_as_its_block():
    with mt.use_kernels(False):
        with mt.use_kernels(True):
            pass
        x = mt.tensor(np.ones((2, 3)), requires_grad=True)
        assert "positive" in ops.relu(x).node.vjp.__code__.co_freevars
    assert kernels_enabled()


def test_nothing_waits_for_the_garbage_collector(rng):
    while gc.collect():  # what tests before have left: a figure with a logarithmic axis takes two rounds
        pass
    gc.disable()
    try:
        for op, _, f, make in LIST:
            run(f, make(rng), True)
            assert gc.collect() == 0, op
    finally:
        gc.enable()


@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 5), (3, 712), (2, 3, 17), (2, 3, 5, 7), (0, 4)])
def test_every_body_of_dropout_finds_the_same_factors(shape, backend):
    like = mt.tensor(np.ones(1, "float32")).data
    factors = []
    for kernels in (True, False):
        for first in (0, 2):
            with mt.use_kernels(kernels):
                draw = Draw((2**63 + 5, 2**64 - 1), 3, first)
                factors.append(to_numpy(dropout_factors(like, shape=shape, p=0.3, draw=draw)))
    np.testing.assert_array_equal(factors[0], factors[2])
    np.testing.assert_array_equal(factors[1], factors[3])
    if len(shape) > 1:  # a part has what the whole has there
        for kernels in (True, False):
            for part in ((0, shape[-2]), (shape[-2] // 2, shape[-2]), (0, min(1, shape[0]))):
                with mt.use_kernels(kernels):
                    some = to_numpy(dropout_factors(like, shape=shape, p=0.3, draw=draw, part=part))
                np.testing.assert_array_equal(some, factors[1][..., part[0] : part[1], :])
    words = np.random.Philox(counter=(3 << 64) - 1, key=2**63 + 5 + ((2**64 - 1) << 64)).random_raw(4 * 64)
    if shape == (7,):  # a row of one element: the first word of each block
        np.testing.assert_array_equal(factors[0] > 0, (words[: 4 * 7 : 4] & 0xFFFFFFFF) >= round(0.3 * 2**32))
