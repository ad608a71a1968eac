"""Attention in blocks: equal to the dense op whatever hides, biases or drops, and never a T×S array."""

import itertools
import tracemalloc

import numpy as np
import pytest

import minitransformer as mt
from minitransformer import ops
from minitransformer.bench.attention import counted_products
from minitransformer.kernels import blockwise, products
from minitransformer.kernels.blas import limit_blas_threads
from minitransformer.ops.blockwise import Blocks, _blockwise_attention
from minitransformer.ops.mask import band_mask

T, S = 29, 37
MASK = np.random.default_rng(0).random((2, 1, T, S)) > 0.5
MASK[0, 0, 3] = False  # a row that may look nowhere
MASK[:, :, :, 20:28] = False  # and keys that nobody looks at
PADDING = np.arange(S) < np.array([37, 21]).reshape(2, 1, 1, 1)
HIDES = {"nothing": {}, "causal": {"causal": True}, "mask": {"mask": MASK},
         "padding": {"mask": PADDING, "causal": True},
         "window": {"window": 5}, "window, causal": {"window": 5, "causal": True}}  # fmt: skip
ADDS = {"nothing": (), "bias": ("bias",), "of keys": ("key_bias",), "by distance": ("distance_bias",),
        "both": ("bias", "distance_bias")}  # fmt: skip


def inputs(rng, t=T, s=S):
    arrays = {"q": (2, 3, t, 4), "k": (2, 3, s, 4), "v": (2, 3, s, 5)}
    more = {"bias": (t, s), "key_bias": (2, 1, 1, s), "distance_bias": (3, t + s - 1)}
    return {name: rng.standard_normal(shape) for name, shape in {**arrays, **more}.items()}


def run(f, arrays):
    tensors = [mt.tensor(a, requires_grad=True) for a in arrays]
    mt.manual_seed(5)
    y = f(*tensors)
    y.backward(np.random.default_rng(1).standard_normal(y.shape))
    return [y.numpy(), *[t.grad.numpy() for t in tensors]]


@pytest.fixture(params=["as they are", "of 8 keys", "of 8 keys, cut up"])
def blocks(request, monkeypatch):
    """The kernel's blocks, larger than these sequences or small; and their products, cut up or not, on any machine."""
    if request.param != "as they are":
        monkeypatch.setattr(blockwise, "sizes", lambda: blockwise.Sizes(keys=8, queries=16, together=4))
    products._rows_at_once.cache_clear()
    products.most_parts.cache_clear()
    monkeypatch.setattr(products, "FEWEST", 2)
    monkeypatch.setattr(products, "unpacked", lambda: 5 * 8 * 4 if "cut" in request.param else 0)
    monkeypatch.setattr(products, "blas_threads", lambda: 1)
    yield request.param
    products._rows_at_once.cache_clear()
    products.most_parts.cache_clear()


@pytest.mark.parametrize("hides, adds, dropout_p", list(itertools.product(HIDES, ADDS, (0.0, 0.3))))
def test_blocks_give_what_the_dense_op_gives(hides, adds, dropout_p, rng, monkeypatch, blocks):
    given, names = inputs(rng), ADDS[adds]
    if "cut" in blocks:
        given["v"] = given["v"][..., :3].copy()  # narrower than keys, or wider
    arrays = [given[name] for name in ("q", "k", "v", *names)]

    def attend(op, **settings):
        def f(q, k, v, *biases):
            called = {name.replace("key_", ""): b for name, b in zip(names, biases, strict=True)}
            return op(q, k, v, **HIDES[hides], dropout_p=dropout_p, **called, **settings)

        return f

    with mt.use_kernels(False):
        dense = run(attend(ops.scaled_dot_product_attention, blockwise=False), arrays)
        monkeypatch.setitem(_blockwise_attention.body.__kwdefaults__, "size", 8)
        book = run(attend(ops.blockwise_attention), arrays)
    fast = run(attend(ops.blockwise_attention), arrays)
    for a, b, c in zip(dense, book, fast, strict=True):
        np.testing.assert_allclose(b, a, rtol=0, atol=1e-12)
        np.testing.assert_allclose(c, a, rtol=0, atol=1e-12)


@pytest.mark.parametrize("length, window", [(n, w) for n in (33, 34, 35, 47, 48) for w in (0, 3, 40)])
def test_causal_blocks_of_any_length(length, window, rng, blocks):
    given = inputs(rng, length, length)
    arrays = [given[name] for name in "qkv"]

    def attend(op, **settings):
        return lambda q, k, v: op(q, k, v, causal=True, window=window, **settings)

    with mt.use_kernels(False):
        dense = run(attend(ops.scaled_dot_product_attention, blockwise=False), arrays)
    fast = run(attend(ops.blockwise_attention), arrays)
    for a, b in zip(dense, fast, strict=True):
        np.testing.assert_allclose(b, a, rtol=0, atol=1e-12)


def test_a_row_that_may_look_nowhere_gives_zeros_and_no_gradient(rng):
    given = inputs(rng)
    y, g_q, g_k, _ = run(lambda q, k, v: ops.blockwise_attention(q, k, v, MASK), [given[n] for n in "qkv"])
    assert not y[0, :, 3].any() and not g_q[0, :, 3].any() and not g_k[:, :, 20:28].any()
    y, *grads = run(lambda q, k, v: ops.blockwise_attention(q, k, v, np.zeros((1, S), bool)), [given[n] for n in "qkv"])
    assert not y.any() and not any(g.any() for g in grads)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_scores_of_ten_thousand_do_not_overflow(dtype, rng):
    q, k, v = (rng.standard_normal((1, 2, 5, 3)).astype(dtype) for _ in range(3))
    big = np.array(1e4, dtype)
    for block in (True, False):
        y = ops.scaled_dot_product_attention(q * 100, k * 100, v, scale=1.0, causal=True, blockwise=block)
        assert np.isfinite(y).all() and y.dtype == dtype
        y = ops.scaled_dot_product_attention(q, k, v, bias=big * np.eye(5, dtype=dtype), blockwise=block)
        np.testing.assert_allclose(y, v, rtol=1e-2)  # 1e4 at one key each leaves nothing for the others


def test_it_agrees_with_torch(agrees_with_torch, torch, rng):
    F = torch.nn.functional.scaled_dot_product_attention
    q, k, v = (rng.standard_normal((2, 3, 300, 8)) for _ in range(3))
    agrees_with_torch(
        lambda *a: ops.blockwise_attention(*a, causal=True), lambda *a: F(*a, is_causal=True), q, k, v
    )  # fmt: skip
    near = torch.tensor(band_mask(np.arange(300), np.arange(300), True, 40))
    agrees_with_torch(
        lambda *a: ops.blockwise_attention(*a, causal=True, window=40), lambda *a: F(*a, attn_mask=near), q, k, v
    )


@pytest.mark.parametrize("t, s", [(29, 29), (5, 29), (29, 5), (1, 7)])
@pytest.mark.parametrize("causal, window", [(True, 0), (False, 4), (True, 4), (False, 0)])
def test_blocks_cover_exactly_what_may_be_looked_at(t, s, causal, window):
    blocks = Blocks(t, s, None, causal, window, size=4)
    seen = np.zeros((t, s), bool)
    for rows in blocks.rows():
        for keys in blocks.of(rows):
            allowed = blocks.allowed(np, rows, keys)
            seen[rows, keys] = True if allowed is None else allowed
            assert seen[rows, keys].any() or (rows, keys.start) == (rows, 0)
    np.testing.assert_array_equal(seen, band_mask(np.arange(t) + s - t, np.arange(s), causal, window))


@pytest.mark.parametrize("t, s", [(29, 29), (5, 29), (29, 5)])
@pytest.mark.parametrize("causal, window", [(True, 0), (False, 4), (True, 4), (False, 0)])
def test_tall_blocks_leave_out_the_queries_that_reach_nothing(t, s, causal, window):
    blocks, whole = Blocks(t, s, None, causal, window, size=4, tall=11), np.zeros((t, s), bool)
    allowed = band_mask(np.arange(t) + s - t, np.arange(s), causal, window)
    for rows in blocks.rows():
        for keys in blocks.of(rows):
            queries = blocks.looking(rows, keys)
            assert rows.start <= queries.start <= queries.stop <= rows.stop
            whole[queries, keys] = True
            if queries.start < queries.stop:
                assert allowed[queries.start, keys].any() and allowed[queries.stop - 1, keys].any()
    assert not (allowed & ~whole).any()


def test_the_kernel_multiplies_no_more_than_the_blocks_that_are_looked_at(rng, backend):
    if backend != "numpy":
        pytest.skip("the products of NumPy's kernel are counted")
    t, width = 2048, 8
    q, k, v = (mt.tensor(rng.standard_normal((1, 2, t, width)).astype("float32"), requires_grad=True) for _ in "qkv")

    def products(**settings):
        with counted_products() as count, limit_blas_threads(1):
            ops.blockwise_attention(q, k, v, **settings).sum().backward()
        return count[0]

    full = products()
    assert full >= 7 * 2 * 2 * t * t * width  # scores twice, the mix, and four products more on the way back
    assert products(causal=True) < 0.6 * full
    assert products(causal=True, window=128) < 0.25 * full
    assert products(mask=np.arange(t) < 300) < 0.3 * full


def test_blocks_that_are_empty_are_skipped():
    def visited(**settings):
        blocks = Blocks(
            512, 512, settings.pop("mask", None), settings.get("causal", False), settings.get("window", 0), 64
        )
        return sum(len(list(blocks.of(rows))) for rows in blocks.rows())

    assert visited() == 64
    assert visited(causal=True) == 36  # 8·9/2
    assert visited(causal=True, window=64) == 15  # the diagonal and the one before it
    assert visited(mask=(np.arange(512) < 100)[None]) == 16


def peak(f):
    tracemalloc.start()
    f()
    result = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return result


@pytest.mark.parametrize("settings", [{"causal": True}, {"window": 64}, {"causal": True, "dropout_p": 0.1}])
def test_memory_grows_with_the_length_and_not_with_its_square(settings, rng):
    """Forward and backward over twice the length take about twice the memory; the dense op takes four times as much."""

    def bytes_at(t):
        q = mt.tensor(rng.standard_normal((1, 2, t, 16)).astype("float32"), requires_grad=True)

        def step():
            y = ops.blockwise_attention(q, q, q, **settings)
            y.backward(np.ones(y.shape, "float32"))

        with limit_blas_threads(1):  # two threads' blocks live at once, or not
            step()  # tables of ones and the like
            return peak(step)

    small, large = bytes_at(2048), bytes_at(4096)
    assert large < 2.3 * small
    assert large < 4096 * 4096 * 4 * 2 / 4  # a quarter of one T×S array of both heads


def test_long_sequences_and_narrow_windows_go_in_blocks_by_themselves(rng, monkeypatch):
    asked = []
    real = ops.attention.blockwise_attention
    monkeypatch.setattr(ops.attention, "blockwise_attention", lambda *a: asked.append(1) or real(*a))
    q = rng.standard_normal((1, 1, 64, 2)).astype("float32")
    ops.scaled_dot_product_attention(q, q, q)
    ops.scaled_dot_product_attention(q, q, q, causal=True, window=32)
    assert not asked
    ops.scaled_dot_product_attention(q, q, q, causal=True, window=16)
    assert asked == [1]
    monkeypatch.setattr(ops.attention, "MANY_QUERIES", 64)
    ops.scaled_dot_product_attention(q, q, q, causal=True, window=63)
    assert asked == [1, 1]
    ops.scaled_dot_product_attention(q, q, q, causal=True, window=64)  # hides nothing
    ops.scaled_dot_product_attention(q[:, :, :63], q, q, window=63)
    assert asked.count(1) == 2
    monkeypatch.setattr(ops.attention, "MANY_SCORES", 64 * 64 - 1)
    ops.scaled_dot_product_attention(q, q, q)
    assert asked == [1, 1, 1]


@pytest.mark.parametrize(
    "settings, text",
    [
        ({"window": -1}, "window is a number of keys, 0 for all; got -1"),
        ({"window": 2.0}, "got 2.0"),
        ({"dropout_p": 1.0}, "0 <= p < 1; got p=1.0"),
        ({"distance_bias": np.ones((3, 7))}, r"a number for each distance, .* got \(3, 7\) for 9 distances"),
    ],
)
def test_impossible_settings_get_one_line(settings, text, rng):
    q = rng.standard_normal((2, 3, 5, 4))
    for op in (ops.blockwise_attention, ops.scaled_dot_product_attention):
        with pytest.raises(ValueError, match=text):
            op(q, q, q, **settings)
    with pytest.raises(ValueError, match="match K, and S"):
        ops.blockwise_attention(q, q[..., :3], q)
        with pytest.raises(ValueError, match=r"at least a key; got k \(2, 3, 0, 4\)"):
            op(q, q[..., :0, :], q[..., :0, :])
    with pytest.raises(ValueError, match="at least a query"):
        ops.blockwise_attention(q[..., :0, :], q, q)
    with pytest.raises(TypeError, match="a mask is boolean"):
        ops.blockwise_attention(q, q, q, np.ones((5, 5)))
