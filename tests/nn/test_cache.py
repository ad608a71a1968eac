"""Writing with a cache: the n-th row of the full forward, for every kind of positions and heads; and its memory."""

import numpy as np
import pytest

import minitransformer as mt
from minitransformer import generate, nn
from minitransformer.backend import to_numpy
from minitransformer.models import GPT2, GPT2Config, Transformer, TransformerConfig

POSITIONS = ["learned", "sinusoidal", "rotary", "alibi", "relative", "none"]


def language_model(positions="learned", kv_heads=0, dropout=0.1, **options):
    mt.manual_seed(3)
    model = GPT2(GPT2Config(11, 24, 16, 4, 2, 24, dropout, positions=positions, kv_heads=kv_heads, **options))
    for p in model.parameters():  # spread out, so that tokens differ
        p.data[...] *= 4
    return model.eval()


def rows_are_those_of_the_full_forward(model, ids, chunks):
    """Read ids in chunks with caches, compare each row, and return the caches."""
    with mt.no_grad():
        full = model(ids).numpy()
        caches, read, rows = model.decoder.new_caches(), 0, []
        for n in chunks:
            rows.append(model(ids[:, read : read + n], caches=caches).numpy())
            read += n
    # cuBLAS adds up in another order for other shapes: 2.6e-6 was seen on a GPU.
    np.testing.assert_allclose(np.concatenate(rows, axis=1), full, rtol=0, atol=5e-6 * np.abs(full).max())
    return caches


@pytest.mark.parametrize("kv_heads", [0, 1, 2])
@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("chunks", [[1] * 12, [5, 1, 1, 3, 2], [12]])
def test_each_row_is_that_of_the_full_forward(positions, kv_heads, chunks, rng):
    """Token by token, or the prompt in chunks of any length."""
    model = language_model(positions, kv_heads)
    ids = mt.tensor(rng.integers(0, 11, (2, 12))).data
    caches = rows_are_those_of_the_full_forward(model, ids, chunks)
    assert all(c.past.length == 12 and c.memory.length == 0 for c in caches)


OPTIONS = {
    "window": {"window": 4}, "window, rotary": {"window": 4, "positions": "rotary"},
    "window, alibi": {"window": 3, "positions": "alibi", "kv_heads": 2}, "qk norm": {"qk_norm": True},
    "window, relative": {"window": 5, "positions": "relative"}, "shared heads": {"share": "heads"},
    "shared qk": {"share": "qk", "tie_output": True}, "linear": {"attention": "linear", "dropout": 0.0},
    "linear, rotary": {"attention": "linear", "dropout": 0.0, "positions": "rotary"},
    "one layer": {"distinct_layers": 1}, "blockwise": {"attention": "blockwise"}, "recompute": {"recompute": True},
    "post-norm": {"norm": "post"}, "post-norm, rotary": {"norm": "post", "positions": "rotary", "kv_heads": 2},
}  # fmt: skip


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("chunks", [[1] * 12, [5, 1, 1, 3, 2]])
def test_options_of_attention_change_nothing_about_that(name, chunks, rng):
    model, ids = language_model(**OPTIONS[name]), mt.tensor(rng.integers(0, 11, (2, 12))).data
    rows_are_those_of_the_full_forward(model, ids, chunks)


@pytest.mark.parametrize("name", OPTIONS)
def test_options_of_attention_write_the_same_text_with_and_without_a_cache(name):
    model = language_model(**OPTIONS[name])
    prompts = [[1, 2, 3], [4], [5, 6, 7, 8, 9]]
    together = generate.continue_texts(model, prompts, 15)
    with mt.use_kernels(False):
        assert together == generate.continue_texts(model, prompts, 15)
    for prompt, text in zip(prompts, together, strict=True):
        assert text == generate.continue_text(model, prompt, 15, cached=False)


def test_a_window_bounds_the_memory_of_a_cache():
    model = language_model(window=4)
    with mt.no_grad():
        caches = model.decoder.new_caches()
        sizes = []
        for i in range(20):
            model(mt.tensor(np.array([[i % 11]])).data, caches=caches)
            sizes.append(caches[0].past.nbytes)
    assert sizes[-1] == sizes[8] <= 2 * 2 * 4 * 16 * 4  # keys and values, twice the window, width 16, float32


@pytest.mark.parametrize("positions", ["sinusoidal", "rotary", "relative"])
def test_a_decoder_with_a_cache_writes_the_same_rows(positions, rng):
    model = Transformer(TransformerConfig(11, 11, 16, 4, 2, 24, 0.0, 24, positions=positions, kv_heads=2)).eval()
    source = rng.integers(1, 11, (3, 7))
    source[1, 4:] = 0
    target = rng.integers(1, 11, (3, 9))
    source, target = mt.tensor(source).data, mt.tensor(target).data
    with mt.no_grad():
        memory, mask = model.encode(source)
        full = model.decode(target, memory, mask).numpy()
        caches = model.decoder.new_caches()
        rows = [model.decode(target[:, i : i + 1], memory, mask, caches=caches).numpy() for i in range(9)]
    # cuBLAS adds up in another order for other shapes: 2.6e-6 was seen on a GPU.
    np.testing.assert_allclose(np.concatenate(rows, axis=1), full, rtol=0, atol=5e-6 * np.abs(full).max())
    assert all(c.past.length == 9 and c.memory.length == 7 for c in caches)


@pytest.mark.parametrize("positions", POSITIONS)
def test_what_is_written_is_the_same_with_and_without_a_cache(positions):
    """Greedily and by sampling, and on beyond the window, where positions begin to move."""
    model = language_model(positions)
    for choose in (lambda: generate.greedy, lambda: generate.sampler(3.0, 11, seed=7)):
        a, b = (generate.continue_text(model, [1, 2, 3], 40, choose(), cached=c) for c in (True, False))
        assert a == b and len(a) == 40
    assert len(set(a)) > 2


def test_translations_are_the_same_with_and_without_a_cache(rng):
    model = Transformer(TransformerConfig(11, 11, 16, 4, 2, 24, 0.0, 24)).eval()
    sources = [rng.integers(3, 11, n).tolist() for n in (3, 7, 1, 5)]
    a, b = (generate.translate(model, sources, 1, 2, 12, cached=c) for c in (True, False))
    assert a == b


def test_rows_can_be_chosen_and_the_rest_is_forgotten(rng):
    model = language_model("rotary")
    ids = rng.integers(0, 11, (3, 6))
    with mt.no_grad():
        caches = model.decoder.new_caches()
        model(mt.tensor(ids[:, :5]).data, caches=caches)
        for cache in caches:
            cache.select(mt.tensor(np.array([2, 0])).data)
        chosen = model(mt.tensor(ids[[2, 0], 5:]).data, caches=caches).numpy()
        full = model(mt.tensor(ids[[2, 0]]).data).numpy()[:, -1:]
    np.testing.assert_allclose(chosen, full, rtol=0, atol=2e-6 * np.abs(full).max())


def test_fewer_heads_of_keys_take_less_memory(rng):
    sizes = {}
    for kv_heads in (1, 2, 4):
        model = language_model("alibi", kv_heads)
        with mt.no_grad():
            caches = model.decoder.new_caches()
            model(mt.tensor(rng.integers(0, 11, (2, 8))).data, caches=caches)
        sizes[kv_heads] = sum(c.past.nbytes for c in caches)
    assert sizes[2] == 2 * sizes[1] and sizes[4] == 4 * sizes[1]
    assert sizes[4] == 2 * 2 * 4 * 2 * 16 * 4 * 4  # layers, k and v, heads, batch, room for 16 tokens, K, bytes


def test_a_cache_is_not_for_training(rng):
    model = language_model()
    with pytest.raises(RuntimeError, match="for writing, not for training"):
        model(mt.tensor(rng.integers(0, 11, (1, 3))).data, caches=model.decoder.new_caches())
    assert nn.KVCache().nbytes == 0


CHUNKS = [[1] * 30, [7] + [1] * 23, [13, 5, 1, 1, 2, 8], [3] * 10, [30], [1, 29], [29, 1], [5, 1, 24]]


@pytest.mark.parametrize("chunks", CHUNKS, ids=str)
@pytest.mark.parametrize("window", [1, 2, 5, 29, 64])
def test_a_window_gives_each_query_the_keys_that_it_may_see(window, chunks, rng):
    """Query i may look at keys i − W + 1 … i: with T new ones, the first of them needs W − 1 keys of the past."""
    k, v = (mt.tensor(rng.standard_normal((2, 3, 30, 4)).astype("float32")).data for _ in range(2))
    cache, end = nn.KVCache(window=window), 0
    with mt.no_grad():
        for new in chunks:
            end += new
            seen = cache.extend(k[:, :, end - new : end], v[:, :, end - new : end])
            first = max(0, end - new - (window - 1))
            for got, all_of_it in zip(seen, (k, v), strict=True):
                np.testing.assert_array_equal(got.numpy(), to_numpy(all_of_it[:, :, first:end]))
            for got, all_of_it in zip(cache.read(), (k, v), strict=True):
                assert got.shape[2] >= min(window - 1, end)
                np.testing.assert_array_equal(got.numpy(), to_numpy(all_of_it[:, :, end - got.shape[2] : end]))
            assert cache.length == end
            assert cache.nbytes <= 2 * (2 * window) * (2 * 3 * 4) * 4, "k and v, room, batch · heads · K, bytes"


def test_the_memory_of_a_window_does_not_grow_with_the_text(rng):
    sizes = set()
    one = mt.tensor(np.ones((1, 2, 1, 4), "float32")).data
    cache, whole = nn.KVCache(window=8), nn.KVCache()
    with mt.no_grad():
        for _ in range(1000):
            cache.extend(one, one)
            whole.extend(one, one)
            sizes.add(cache.nbytes)
    assert sizes == {2 * 16 * 2 * 4 * 4} and whole.nbytes > 60 * max(sizes)


def test_rows_of_a_window_can_be_chosen(rng):
    k = mt.tensor(rng.standard_normal((3, 2, 12, 4)).astype("float32")).data
    cache = nn.KVCache(window=4)
    with mt.no_grad():
        cache.extend(k[:, :, :9], k[:, :, :9])
        rows = mt.tensor(np.array([2, 0, 2])).data
        cache.select(rows)
        seen, _ = cache.extend(k[rows][:, :, 9:11], k[rows][:, :, 9:11])
    np.testing.assert_array_equal(seen.numpy(), to_numpy(k[rows][:, :, 6:11]))


def test_a_window_holds_something():
    with pytest.raises(ValueError, match="at least the query's own key; got 0"):
        nn.KVCache(window=0)
    assert nn.LayerCache(window=5).past.window == 5 and nn.LayerCache().memory.window is None
    for window in (1.5, True, "8"):
        with pytest.raises(ValueError, match=f"at least the query's own key; got {window!r}"):
            nn.KVCache(window=window)


def test_a_key_mask_speaks_of_all_that_was_read_also_where_a_window_has_dropped_some(rng):
    """Token by token, where a cache of W keys is all of a window, against a full forward with that window as a mask."""
    mt.manual_seed(0)
    attention, window = nn.MultiHeadAttention(12, 3).eval(), 4
    x, real = rng.standard_normal((2, 9, 12)).astype("float32"), np.ones((2, 9), dtype=bool)
    real[1, :6] = False
    x, key_mask, cache, rows = mt.tensor(x), mt.tensor(real).data, nn.KVCache(window=window), []
    near = mt.tensor(np.arange(9)[None, :] > np.arange(9)[:, None] - window).data
    with mt.no_grad():
        full = attention(x, mask=near, key_mask=key_mask, causal=True).numpy()
        for i in range(9):
            rows.append(attention(x[:, i : i + 1], key_mask=key_mask[:, : i + 1], causal=True, cache=cache).numpy())
        np.testing.assert_allclose(np.concatenate(rows, axis=1), full, atol=1e-5)
        with pytest.raises(ValueError, match="one value for each key"):
            attention(x[:, :1], key_mask=key_mask, cache=nn.KVCache())
