# %% [markdown]
# # 14 · Cheaper attention
#
# **Attention compares each token with every other. What does that cost in weights, in memory, in time, and which of it
# can be saved without changing the result?**
#
# Some savings change nothing (blocks, caches), some change the model a little (shared heads, windows), one makes another
# function of it (linear attention). We measure each. The real things: [blockwise.py](../minitransformer/ops/blockwise.py),
# [attention.py](../minitransformer/nn/attention.py), [cache.py](../minitransformer/nn/cache.py),
# [linear_attention.py](../minitransformer/ops/linear_attention.py).
#
# [← 13 · Translation](13_translation.ipynb) · [15 · On a GPU →](15_on_a_gpu.ipynb)

# %%
import time
import tracemalloc

import matplotlib.pyplot as plt
import numpy as np

import minitransformer as mt
from minitransformer import draw
from minitransformer.bench.attention import counted_products
from minitransformer.kernels.blas import limit_blas_threads
from minitransformer.models import GPT2, GPT2Config, Transformer, TransformerConfig

rng = np.random.default_rng(14)
print("minitransformer", mt.__version__)

# %% [markdown]
# ## What it costs
#
# A product of matrices $(N, M)\cdot(M, P)$ takes $2NMP$ operations: a multiplication and an addition for each. For $T$
# tokens of width $D$, attention has four projections, and then scores and mix over all pairs:
#
# $$ \text{operations} = \underbrace{4 \cdot 2\,T D^2}_{\text{projections}}
#    + \underbrace{2 \cdot 2\,T^2 D}_{\text{scores and mix}} $$
#
# We count what NumPy is really asked for.


# %%
def operations(T, D, **options):
    mt.manual_seed(0)
    attention = mt.nn.MultiHeadAttention(D, heads=8, bias=False, **options)
    x = mt.tensor(rng.standard_normal((1, T, D)).astype("float32"))
    with mt.use_kernels(False), mt.no_grad(), counted_products() as count:
        attention(x)
    return count[0]


for T, D in ((16, 64), (128, 64), (512, 64)):
    projections, pairs = 8 * T * D**2, 4 * T**2 * D
    assert operations(T, D) == projections + pairs
    print(f"T = {T:3}: projections {projections / 1e6:6.1f} million, pairs {pairs / 1e6:6.1f}")

# %% [markdown]
# The first part grows with $T$, the second with $T^2$: they are equal at $T = 2D$. Below that, shared **projections**
# save most; above, it is the **pairs** that have to go. And all $H\,T^2$ scores at once have to be held in memory.
#
# ## Sharing
#
# Must each head have keys and values of its own? In **multi-query** attention all heads of queries look at the same
# ones, in **grouped-query** attention a few heads do. Nothing else changes: the shared head is used again and again.

# %%
mt.manual_seed(0)
shared = mt.nn.MultiHeadAttention(64, heads=8, kv_heads=2)
x = mt.tensor(rng.standard_normal((1, 5, 64)).astype("float32"))
q, k, v = shared.queries(x), shared.keys(x), shared.split(shared.v_proj(x), 2)
print("queries", q.shape, " keys", k.shape, " values", v.shape)
k, v = (mt.tensor(np.repeat(t.numpy(), 4, axis=1)) for t in (k, v))  # each serves four heads
by_hand = shared.out_proj(shared.join(mt.ops.scaled_dot_product_attention(q, k, v)))
np.testing.assert_allclose(by_hand.numpy(), shared(x).numpy(), atol=1e-5)

# %% [markdown]
# Other ways to share: one projection for queries and keys, one for all heads (each weighs its numbers in its own way),
# or the same layer used twice. We compare them in the encoder-decoder of lesson 12, with two layers of four heads.

# %%
WAYS = {
    "nothing shared": {},
    "2 heads of keys for 4": {"kv_heads": 2},
    "1 head of keys for 4": {"kv_heads": 1},
    "queries = keys": {"share": "qk"},
    "one projection for all heads": {"share": "heads"},
    "one layer, used twice": {"distinct_layers": 1},
}
task = mt.data.Reversal(symbols=10, min_length=1, max_length=6)
V = len(task.tokenizer)
print(*WAYS, sep="\n")


# %%
def make(options):
    """Return a small encoder-decoder that shares in some way."""
    mt.manual_seed(0)
    sizes = dict(d_model=32, heads=4, layers=2, d_ff=64, dropout=0.0, norm="pre")
    return Transformer(TransformerConfig(V, V, **sizes, tie_embeddings="none", **options))


parameters = {name: sum(p.size for p in make(way).parameters()) for name, way in WAYS.items()}
for name, count in parameters.items():
    print(f"{name:30} {count:7,} parameters")


# %% [markdown]
# Do they still learn? 150 steps of reversal for each, from the same seed.


# %%
def step_of(model, optimizer, step):
    source, given, wanted = task.batch(step, 64)
    loss = mt.ops.cross_entropy(model(source, given), wanted, ignore_index=mt.data.PAD)
    model.zero_grad()
    loss.backward()
    mt.optim.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item()


plain = make({})
print(f"first step: {step_of(plain, mt.optim.AdamW(plain.parameters()), 1):.2f} nats")

# %%
curves = {}
with limit_blas_threads(1):  # small products
    for name, way in WAYS.items():
        model = make(way)
        optimizer = mt.optim.AdamW(model.parameters(), lr=5e-3)
        curves[name] = [step_of(model, optimizer, step) for step in range(1, 151)]
for name, losses in curves.items():
    print(f"{name:30} last 15 steps: {np.mean(losses[-15:]):.2f} nats")

# %%
figure, (left, right) = plt.subplots(1, 2, num="sharing", figsize=(10, 3.6), layout="constrained")
for i, (name, losses) in enumerate(curves.items()):
    left.barh(name, parameters[name] / 1000, color=f"C{i}")
    right.semilogy(np.convolve(losses, np.ones(15) / 15, "valid"), color=f"C{i}")
left.invert_yaxis()
left.set(xlabel="parameters (thousands)")
right.set(xlabel="training step", ylabel="loss (mean of 15 steps)")
right.set_yticks([3, 1, 0.3, 0.1], ["3", "1", "0.3", "0.1"]), right.minorticks_off()
plt.show()
assert all(np.mean(losses[-15:]) < 0.5 for losses in curves.values())

# %% [markdown]
# All of them learn; some need more steps. (One task, one seed, a very small model: a measurement, not a law.) What
# sharing keys and values saves when a model **writes**, we shall see below.
#
# ## Block by block
#
# The softmax of a row needs the sum over all its keys. But the sum can be made while the keys come, a block at a time.
# After some keys we hold three things: the largest score $m$, the sum $l$ of $e^{s-m}$ (`total` in the code), and the mix $a$ of the values
# with these weights. A new block with largest score $m_b$ changes them to
#
# $$ m' = \max(m, m_b) \qquad l' = e^{m-m'}\,l + \sum_j e^{s_j-m'} \qquad
#    a' = e^{m-m'}\,a + \sum_j e^{s_j-m'}\,v_j $$
#
# and at the end $y = a/l$. Step by step for one row of six scores:

# %%
s, v = np.array([0.5, 2.0, 1.0, 4.0, -1.0, 3.0]), np.array([10.0, 20, 30, 40, 50, 60])
m, total, a = -np.inf, 0.0, 0.0
for block in (slice(0, 2), slice(2, 4), slice(4, 6)):
    new_m = max(m, s[block].max())
    e, shrink = np.exp(s[block] - new_m), np.exp(m - new_m)
    total, a = shrink * total + e.sum(), shrink * a + e @ v[block]
    m = new_m
    print(f"scores {s[block]}  m = {m}  l = {total:.4f}  a = {a:.4f}  a/l = {a / total:.4f}")
assert np.isclose(a / total, mt.ops.softmax(s) @ v)

# %% [markdown]
# After each block $a/l$ is the exact answer for the keys so far. When a larger score comes (4.0), what was there shrinks
# by $e^{m-m'}$. The same for all rows, with matrices:


# %%
def in_blocks(q, k, v, size=32):
    m, total, a = -np.inf, 0.0, 0.0
    for first in range(0, len(k), size):
        s = q @ k[first : first + size].T / np.sqrt(q.shape[1])  # (T, size), never (T, S)
        new_m = np.maximum(m, s.max(axis=1, keepdims=True))
        e, shrink = np.exp(s - new_m), np.exp(m - new_m)
        total = shrink * total + e.sum(axis=1, keepdims=True)
        a = shrink * a + e @ v[first : first + size]
        m = new_m
    return a / total


print(in_blocks(np.eye(2), np.eye(2), np.eye(2), size=1).round(3))

# %%
q, k, v = (rng.standard_normal((100, 16)) for _ in range(3))
dense = mt.ops.scaled_dot_product_attention(q, k, v, blockwise=False)
library = mt.ops.blockwise_attention(q, k, v)
assert np.allclose(in_blocks(q, k, v), dense, atol=1e-13)
assert np.allclose(library, dense, atol=1e-13)
print(f"largest differences: {np.abs(in_blocks(q, k, v) - dense).max():.0e}, ", end="")
print(f"library {np.abs(library - dense).max():.0e}")

# %% [markdown]
# The way back needs the weights again. They are not kept: with one number a row, $m + \ln l$, each block of them is made
# once more. More operations, less memory; with fewer passes over large arrays it can even be faster. We measure a whole
# step, forward and backward, causal, on lengths that double.

# %%
attention = mt.ops.scaled_dot_product_attention
KINDS = {
    "dense": lambda q, k, v: attention(q, k, v, causal=True, blockwise=False),
    "blockwise": lambda q, k, v: attention(q, k, v, causal=True, blockwise=True),
    "window of 128": lambda q, k, v: attention(q, k, v, causal=True, window=128),
    "linear": lambda q, k, v: mt.ops.linear_attention(q, k, v, causal=True),
}
LENGTHS = (512, 1024, 2048, 4096)
print(", ".join(KINDS), "  T =", LENGTHS)


# %%
def step(attend, arrays):
    q, k, v = (mt.tensor(a, requires_grad=True) for a in arrays[:3])
    attend(q, k, v).backward(arrays[3])
    return q.grad


def seconds(attend, arrays):
    times = []
    for _ in range(3):
        began = time.perf_counter()
        step(attend, arrays)
        times.append(time.perf_counter() - began)
    return min(times)


print("one step gives", step(KINDS["dense"], rng.standard_normal((4, 1, 2, 8, 4))).shape)


# %%
def peak(attend, arrays):
    """Return the most memory that a step takes, in MB, beside what is there before."""
    tracemalloc.start()
    step(attend, arrays)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most / 1e6


print(f"dense at T = 100: {peak(KINDS['dense'], rng.standard_normal((4, 1, 2, 100, 32))):.1f} MB")

# %%
times, memory = {name: [] for name in KINDS}, {name: [] for name in KINDS}
for T in LENGTHS:
    arrays = rng.standard_normal((4, 1, 2, T, 32)).astype("float32")  # 2 heads of width 32
    for name, attend in KINDS.items():
        with limit_blas_threads(1):  # so that a busy machine disturbs less
            memory[name].append(peak(attend, arrays))
            times[name].append(seconds(attend, arrays))
assert memory["dense"][-1] > 5 * memory["blockwise"][-1]
print(f"T = {T}: dense {memory['dense'][-1]:.0f} MB, blockwise {memory['blockwise'][-1]:.0f} MB")

# %%
figure, panels = plt.subplots(1, 2, num="lengths", figsize=(10, 3.8), layout="constrained")
for axes, values, unit in zip(panels, (memory, times), ("peak memory (MB)", "seconds a step")):
    for width, (name, measured) in zip((5, 4, 2.5, 1.5), values.items()):  # where lines coincide
        axes.loglog(LENGTHS, measured, "o-", label=name, linewidth=width, markersize=width + 3)
    axes.set(xlabel="length T", ylabel=unit), axes.minorticks_off()
    axes.set_xticks(LENGTHS, LENGTHS)
ideal = memory["dense"][-1] * (np.array(LENGTHS) / LENGTHS[-1]) ** 2
panels[0].plot(LENGTHS, ideal, ":", color="grey", label="∝ T²")
panels[0].legend(frameon=False)
plt.show()

# %% [markdown]
# Dense memory goes with $T^2$: twice the length, four times the memory. In blocks it goes with $T$, and the results are
# the same. (The times are those of one machine, and of the moment.)
#
# ## Windows
#
# Cheaper still: let each token see only the $W$ last ones, itself among them. That is another model, though not as
# short-sighted as it looks: each layer reaches $W - 1$ tokens further back.

# %%
mask = mt.ops.causal_mask(10, 10, np)
near = np.arange(10)[:, None] - np.arange(10) < 4
weights = mt.ops.attention_weights(*rng.standard_normal((2, 10, 8)), causal=True, window=4)
assert np.array_equal(weights > 0, mask & near)
figure = draw.attention_heatmap(weights, range(10), range(10), title="W = 4", allowed=mask & near)
figure.set_label("window")
figure

# %% [markdown]
# With $L$ layers on one another, the output at a place depends on tokens that stand so far back:
#
# $$ \text{reach} = L\,(W - 1) $$
#
# We test it by touching, as in lesson 12: change one token, and see which outputs move.


# %%
def reach(layers, length=20):  # → the last output that moves when token 0 is changed
    small = dict(d_model=16, heads=2, layers=layers, d_ff=32, dropout=0.0, window=4)
    model = GPT2(GPT2Config(vocab_size=9, max_length=length, **small))
    for parameter in model.parameters():
        parameter.data *= 5  # larger weights, so that no small effect is lost in rounding
    ids = np.arange(length)[None] % 9
    moved = model(ids).numpy() != model(np.where(np.arange(length) == 0, 5, ids)).numpy()
    return int(np.flatnonzero(moved.any(axis=-1))[-1])


found = {layers: reach(layers) for layers in (1, 2, 3, 5)}
print("last output that moves, by layers:", found)
assert found == {layers: layers * (4 - 1) for layers in found}

# %% [markdown]
# ## Write once, keep
#
# When a model writes, each new token asks for the keys and values of all before it. In a causal model those do not
# change any more. Without keeping them, writing $T$ tokens reads $1 + 2 + \dots + T = T(T+1)/2$ tokens; with a **cache**,
# each is read once. We put a counter behind the embeddings.


# %%
class Counter(mt.nn.Module):
    """Let embeddings pass, and count them."""

    read = 0

    def forward(self, x):
        self.read += x.shape[1]
        return x


mt.manual_seed(0)
SIZES = dict(d_model=64, heads=8, layers=2, d_ff=256, dropout=0.0, max_length=256)
model, text = GPT2(GPT2Config(vocab_size=50, **SIZES)).eval(), rng.integers(0, 50, (1, 192))
model.drop, T = Counter(), text.shape[1]
print(f"{T} tokens, {sum(p.size for p in model.parameters()):,} parameters")


# %%
def token_by_token(cached):
    """Return the scores after each token, and the seconds that each took."""
    caches, scores, times = model.decoder.new_caches() if cached else None, [], []
    for t in range(1, T + 1):
        began = time.perf_counter()
        logits = model(text[:, t - 1 : t] if cached else text[:, :t], caches=caches)
        times.append(time.perf_counter() - began)
        scores.append(logits.numpy()[0, -1])
    return np.array(scores), times


with mt.no_grad():
    first = token_by_token(cached=True)[0]
print(f"{model.drop.read} tokens were read to write {T}")

# %%
with mt.no_grad(), limit_blas_threads(1):
    read, scores, fastest = {}, {}, {}
    for cached in (False, True):
        model.drop.read = 0
        rounds = [token_by_token(cached) for _ in range(5)]
        read[cached], scores[cached] = model.drop.read // 5, rounds[0][0]
        fastest[cached] = np.min([times for _, times in rounds], axis=0)
assert read == {False: T * (T + 1) // 2, True: T}
assert np.allclose(scores[False], scores[True], atol=1e-4)  # the same answers
assert fastest[False][-20:].mean() > 1.5 * fastest[True][-20:].mean()
print(f"tokens read: {read[False]:,} anew each time, {read[True]} with a cache")

# %%
figure, axes = plt.subplots(num="cache-time", figsize=(6.5, 3.4), layout="constrained")
for cached, name in ((False, "all read anew"), (True, "with a cache")):
    medians = np.median(1e3 * fastest[cached].reshape(-1, 8), axis=1)
    axes.plot(np.arange(4, T, 8), medians, "o-", markersize=4, label=name)
axes.set(xlabel="place of the token", ylabel="milliseconds (medians of 8 tokens)", ylim=(0, None))
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# The price is memory: for each layer and place, keys and values of every head that has its own. In float32 that is
#
# $$ \text{bytes} = 4 \cdot 2 \cdot L \cdot H_{kv} \cdot K \cdot T $$
#
# Here shared heads pay off, and windows, which bound $T$. (A cache makes room to grow; we count what is in use.)


# %%
def cache_bytes(**options):
    model = GPT2(GPT2Config(vocab_size=50, **SIZES, **options))
    caches = model.decoder.new_caches()
    with mt.no_grad():
        for t in range(T):
            model(text[:, t : t + 1], caches=caches)
    return sum(array.nbytes for cache in caches for array in cache.past.arrays())


used = {f"kv_heads = {n}": cache_bytes(kv_heads=n) for n in (8, 4, 2, 1)}
assert list(used.values()) == [4 * 2 * 2 * n * 8 * T for n in (8, 4, 2, 1)]
used["window = 32"] = cache_bytes(window=32)
print(*(f"{name:13} {count:7,} bytes" for name, count in used.items()), sep="\n")

# %%
figure, axes = plt.subplots(num="cache-bytes", figsize=(6.5, 2.8), layout="constrained")
axes.barh(list(used), np.array(list(used.values())) / 1024, color="#08519c")
axes.invert_yaxis()
axes.set(xlabel=f"KiB in the caches after {T} tokens")
plt.show()

# %% [markdown]
# ## Linear attention: another function
#
# Take the exponential away. With positive features $\varphi(x) = \operatorname{elu}(x) + 1$ in its place, the product can
# be done in another order, and no pair is ever formed:
#
# $$ y_i = \frac{\sum_j \bigl(\varphi(q_i)\cdot\varphi(k_j)\bigr)\,v_j}{\sum_j \varphi(q_i)\cdot\varphi(k_j)}
#        = \frac{\varphi(q_i)\,\bigl(\sum_j \varphi(k_j)^{\top} v_j\bigr)}{\varphi(q_i)\cdot\sum_j \varphi(k_j)} $$
#
# The sums on the right are a $K \times K$ matrix and a vector, however many keys there are.


# %%
def phi(x):
    return np.where(x > 0, x + 1, np.exp(np.minimum(x, 0)))


q, k, v = rng.standard_normal((3, 12, 4))
pairs = phi(q) @ phi(k).T  # (T, S)
left = (pairs @ v) / pairs.sum(axis=1, keepdims=True)
right = phi(q) @ (phi(k).T @ v) / (phi(q) @ phi(k).sum(axis=0))[:, None]
assert np.allclose(left, right) and np.allclose(right, mt.ops.linear_attention(q, k, v))
softmax = mt.ops.scaled_dot_product_attention(q, k, v)
print(
    f"the two orders agree; from softmax attention it is {np.abs(right - softmax).max():.2f} away"
)

# %% [markdown]
# So it does not approximate softmax attention of the same queries and keys: it is a function of its own, to be trained as
# such. What it cannot do is to be sharp. Make the queries longer: softmax turns towards one key, linear attention hardly.

# %%
lengths, sharpness = np.geomspace(0.1, 100, 13), {}
ways = {"softmax": mt.ops.attention_weights, "linear": mt.ops.linear_attention_weights}
for name, weights_of in ways.items():
    sharpness[name] = [weights_of(x * q, k).max(axis=1).mean() for x in lengths]
    print(f"{name:8} largest weight {sharpness[name][0]:.2f} → {sharpness[name][-1]:.2f}")
assert sharpness["softmax"][-1] > 0.9 and sharpness["linear"][-1] < 0.5

# %%
figure, axes = plt.subplots(num="sharpness", figsize=(6.5, 3.2), layout="constrained")
for name, values in sharpness.items():
    axes.semilogx(lengths, values, "o-", label=name)
axes.axhline(1 / 12, color="grey", linestyle=":", label="all keys alike")
axes.set(xlabel="queries multiplied by", ylabel="largest weight, mean")
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# Lesson 12's anti-diagonal needs sharp weights. What linear attention gives for that is in the picture of the lengths
# above: memory and time that grow with $T$ alone. In writing, all it has to keep is that
# matrix and that vector for each head, however long the text.
#
# | | result | weights | memory | time |
# |---|---|---|---|---|
# | shared heads, projections, layers | another model | fewer | smaller caches | about as before |
# | blockwise | the same | as before | $T$, not $T^2$ | $T^2$ |
# | windows | another model | as before | $T$ | $T \cdot W$ |
# | cache | the same | as before | $T$ more | a token reads one |
# | linear | another function | as before | $T$ | $T$ |
#
# ## Exercises
#
# **14.1 Two parts of a row** · Two parts of a row's keys were treated apart; each left its $m$, $l$ and $a$, of shapes
# $(T, 1)$, $(T, 1)$ and $(T, K)$. Return $m$, $l$ and $a$ of both together. (That is how a row can be split over
# processors.)


# %%
def merge(m1, l1, a1, m2, l2, a2):
    """Return m, l, a."""
    ...


mt.lessons.check("14.1", merge)

# %% [markdown]
# **14.2 Shared heads** · `k` $(B, H_{kv}, S, K)$ has fewer heads than the queries. Return the keys for `heads` heads of
# queries, so that head $h$ meets head $\lfloor h / (H / H_{kv}) \rfloor$.


# %%
def spread_heads(k, heads):
    """Return keys (B, heads, S, K)."""
    ...


mt.lessons.check("14.2", spread_heads)

# %% [markdown]
# **14.3 A window with a past** · `queries` tokens are the last of `keys` ones. Return who may look at whom, boolean
# (queries, keys): only itself and earlier, and only the `window` nearest, itself among them.


# %%
def window_mask(queries, keys, window):
    """Return a boolean mask, True = may look."""
    ...


mt.lessons.check("14.3", window_mask)

# %% [markdown]
# **14.4 Linear attention, causal** · For `q`, `k` $(T, K)$ and `v` $(T, K_v)$ return `y`, where place $i$ sums over the
# keys up to and including $i$ only. Can you do it without a $T \times T$ array?


# %%
def causal_linear_attention(q, k, v):
    """Return y (T, Kv)."""
    ...


mt.lessons.check("14.4", causal_linear_attention)
