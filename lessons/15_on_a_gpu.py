# %% [markdown]
# # 15 · The same code on a GPU
#
# **A GPU is a second computer with a memory of its own. What must a program do so that it helps: what has to travel, how
# often is it asked, and how often does each number pass through its memory?**
#
# CuPy has NumPy's functions for arrays on a GPU, so the lines of this library run on both. This lesson does, too: where a
# GPU answers, it uses it; where none does, it counts on NumPy what would be sent and asked for, and measures what
# both have in common. The real things: [backend.py](../minitransformer/backend.py),
# [kernels/cuda/](../minitransformer/kernels/cuda/__init__.py), [graph.py](../minitransformer/graph.py).
#
# [← 14 · Cheaper attention](14_cheaper_attention.ipynb)

# %%
import inspect
import time
import warnings
import weakref

import matplotlib.pyplot as plt
import numpy as np

import minitransformer as mt
from minitransformer import backend
from minitransformer.kernels.blas import limit_blas_threads
from minitransformer.models import Transformer, TransformerConfig
from minitransformer.tensor import TENSORS

print("minitransformer", mt.__version__)

# %% [markdown]
# ## Is there one?
#
# `mt.use_backend("cupy")` says where new arrays are born, and raises where CuPy or a GPU is missing.


# %%
def gpu_answers():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # remarks of CuPy on a machine without CUDA
        try:
            with mt.use_backend("cupy"):
                return True
        except RuntimeError:
            return False


WHERE = "cupy" if gpu_answers() else "numpy"
print("a GPU answers" if WHERE == "cupy" else "no GPU answers: we count on NumPy")

# %% [markdown]
# ## One op, any array
#
# An op of the library does not know what it runs on. It is given `xp`, the module to which its arrays belong, and writes
# `xp.tanh`, never `np.tanh`:

# %%
print(inspect.getsource(mt.ops.silu.body).split('"""')[2])

# %% [markdown]
# So the same lines run with NumPy, with CuPy where there is a GPU, and even with Tensors, whose operators are ops
# themselves (that is how second derivatives come about). For $y = x\,\sigma(x)$ and its slope:
#
# $$ \sigma(x) = \tfrac{1}{2}\bigl(1 + \tanh\tfrac{x}{2}\bigr) \qquad
#    \frac{\mathrm{d}y}{\mathrm{d}x} = \sigma(x)\,\bigl(1 + x\,(1 - \sigma(x))\bigr) $$

# %%
with mt.use_backend(WHERE):
    xp = backend.xp()  # numpy, or cupy
rng = np.random.default_rng(15)
x = rng.standard_normal(5)
sigma = (1 + np.tanh(x / 2)) / 2
for namespace, array in ((np, x), (xp, xp.asarray(x)), (TENSORS, mt.Tensor(x))):
    y, vjp = mt.ops.silu.body(namespace, array)
    (slope,) = vjp(array * 0 + 1)
    y, slope = (z.numpy() if isinstance(z, mt.Tensor) else backend.to_numpy(z) for z in (y, slope))
    assert np.allclose(y, x * sigma) and np.allclose(slope, sigma * (1 + x * (1 - sigma)))
    print(f"the same on {type(array).__module__.split('.')[0]}.{type(array).__name__}")

# %% [markdown]
# Arrays of two kinds never meet by accident: an op given both raises, since a hidden copy from one memory to the other would be
# slow and hard to find.
#
# ## What travels
#
# The parameters go to the GPU once. In each step a batch has to follow: source, target given and target wanted, as
# 64-bit integers. With $B$ rows, $S$ tokens in the source and $T$ in the target that is
#
# $$ \text{bytes} = 8\,B\,(S + 2T) $$

# %%
task = mt.data.Reversal(symbols=10, min_length=1, max_length=16)
V = len(task.tokenizer)
mt.manual_seed(0)
config = TransformerConfig(
    V, V, d_model=64, heads=4, layers=2, d_ff=256, dropout=0.0, norm="pre", tie_embeddings="none"
)
model, batch = Transformer(config), task.batch(1, 64)
(B, S), T = batch.source.shape, batch.target_in.shape[1]
sent, kept = sum(a.nbytes for a in batch), sum(p.data.nbytes for p in model.parameters())
print(f"each step {sent:,} bytes; once {kept:,} bytes of parameters")
assert sent == 8 * B * (S + 2 * T)

# %% [markdown]
# Little, but each copy has a price of its own, however small it is. So `backend.send` puts the three arrays into one and
# copies that; on the other side they are **views** of it, which cost nothing.

# %%
flat = np.concatenate([a.ravel() for a in batch])  # this is what travels: once
ends = np.cumsum([a.size for a in batch])
views = [flat[end - a.size : end].reshape(a.shape) for a, end in zip(batch, ends)]
assert all(np.shares_memory(view, flat) for view in views)
with mt.use_backend(WHERE):
    received = backend.send(*batch)
for a, view, there in zip(batch, views, received):
    assert np.array_equal(a, view) and np.array_equal(a, backend.to_numpy(there))
print(f"{len(views)} arrays, 1 copy of {flat.nbytes:,} bytes")

# %% [markdown]
# The way back matters, too. Asking for one number, as `float(loss)` does, makes the program wait until the GPU has done
# all that it was asked for. [train.py](../minitransformer/train.py) leaves losses where they are and fetches one when a line
# of the log is due.
#
# ## What asking costs
#
# Python asks for one operation at a time: NumPy by a call, CuPy by a **launch** that starts many threads. Asking
# has a price that does not depend on how much there is to do. We time $y = x + 1$ for arrays of many sizes.


# %%
def seconds(action, xp=np, rounds=7):
    """Return the shortest time of an action, on a GPU until it is really done."""
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        action()
        if xp is not np:
            xp.cuda.Stream.null.synchronize()
        times.append(time.perf_counter() - began)
    return min(times)


sizes = [2**k for k in range(0, 25, 2)]
print("arrays of", *sizes, "numbers")

# %%
curves = {}
for name, module in {"numpy": np, WHERE: xp}.items():
    arrays = [module.ones(n, dtype="float32") for n in sizes]
    curves[name] = [seconds(lambda a=a: a + 1, module) for a in arrays]
    together = curves[name][sizes.index(2**16)]
    apart = 16 * curves[name][sizes.index(2**12)]
    print(f"{name}: 65,536 numbers at once are cheaper than in 16 pieces: {together < apart}")
assert curves["numpy"][-1] > 5 * curves["numpy"][0]

# %%
figure, axes = plt.subplots(num="asking", figsize=(6.5, 3.6), layout="constrained")
for name, times in curves.items():
    axes.loglog(sizes, np.array(times) * 1e6, "o-", label=name)
axes.set(xlabel="numbers in the array", ylabel="microseconds for y = x + 1")
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# At first the curve is flat: only the asking counts. Then it rises with the size. A program should ask **seldom, for
# much**. How often does a training step ask? We count on NumPy, with an array that notes what is done with it.


# %%
def plain(x):
    """Return what NumPy knows of an array that counts."""
    if isinstance(x, tuple | dict):
        parts = [plain(part) for part in (x.values() if isinstance(x, dict) else x)]
        return dict(zip(x, parts)) if isinstance(x, dict) else tuple(parts)
    return x.view(np.ndarray) if isinstance(x, np.ndarray) else x


print("plain numbers and settings stay what they are:", plain(({"axis": 1}, 2.5)))


# %%
class Counted(np.ndarray):
    calls = moved = 0  # how often NumPy was asked, and the bytes read and written

    def __array_ufunc__(self, ufunc, method, *inputs, **settings):
        inputs = plain(inputs)
        y = getattr(ufunc, method)(*inputs, **plain(settings))
        Counted.calls += 1
        Counted.moved += sum(x.nbytes for x in (*inputs, y) if isinstance(x, np.ndarray))
        return np.asarray(y).view(Counted)


print("an array that counts:", np.ones(3).view(Counted) + 1)

# %%
x, calls, moved = np.ones(1000).view(Counted), Counted.calls, Counted.moved
y = (x * 2 + 1) / x
calls, moved = Counted.calls - calls, Counted.moved - moved
print(f"(x * 2 + 1) / x: {calls} calls, {moved:,} bytes")
assert calls == 3 and moved == (2 + 2 + 3) * x.nbytes

# %% [markdown]
# The three calls read and write seven arrays. (On CuPy each would be a launch or a matrix product; conversions of
# types are launches, too, and are not counted here.) Now a whole training step, by the plain book of ops:

# %%
parts = {}


def counted(name, action):
    before = Counted.calls
    result = action()
    parts[name] = Counted.calls - before
    return result


for p in model.parameters():
    p.data = p.data.view(Counted)
optimizer = mt.optim.AdamW(model.parameters())
print(f"{len(model.parameters())} parameters are arrays that count")


# %%
def loss_of(model, source, given, wanted):
    return mt.ops.cross_entropy(model(source, given), wanted, ignore_index=mt.data.PAD)


with mt.use_kernels(False):
    loss = counted("forward", lambda: loss_of(model, *batch))
    counted("backward", loss.backward)
    counted("clip", lambda: mt.optim.clip_grad_norm_(model.parameters(), 1.0))
    counted("AdamW", optimizer.step)
print(parts, "together", sum(parts.values()))
assert parts["AdamW"] > parts["forward"]

# %%
figure, axes = plt.subplots(num="calls", figsize=(6.5, 2.6), layout="constrained")
axes.barh(list(parts), list(parts.values()), color="#08519c")
for place, count in enumerate(parts.values()):
    axes.text(count, place, f" {count}", va="center")
axes.invert_yaxis()
axes.set(xlabel="calls of one training step", xlim=(0, 1.15 * max(parts.values())))
plt.show()

# %% [markdown]
# More than half of the asking is the optimizer's: a dozen small operations for each parameter, one parameter after the
# other. They all do the same thing. Put behind one another, all parameters take one dozen together.


# %%
def adam(x, g, m, v, rate=1e-3, beta1=0.9, beta2=0.999, eps=1e-8):
    """Take the first step of Adam, in place."""
    m += (1 - beta1) * (g - m)
    v += (1 - beta2) * (g * g - v)
    x -= rate / (1 - beta1) * m / (np.sqrt(v / (1 - beta2)) + eps)


each = [[plain(p.data).copy(), plain(p.grad.data).copy()] for p in model.parameters()]
joined = [np.concatenate([arrays[i].ravel() for arrays in each]) for i in (0, 1)]
print(f"{len(each)} arrays, or one of {len(joined[0]):,} numbers")


# %%
def calls_of(parameters):
    """Step each of some parameters; return how many calls that took, and the results."""
    before, results = Counted.calls, []
    for x, g in parameters:
        x, g, m, v = (a.copy().view(Counted) for a in (x, g, 0 * x, 0 * x))
        adam(x, g, m, v)
        results.append(plain(x).ravel())
    return Counted.calls - before, np.concatenate(results)


(apart, one_by_one), (together, at_once) = calls_of(each), calls_of([joined])
assert np.array_equal(one_by_one, at_once) and apart == together * len(each)
print(f"{apart} calls one by one, {together} for all at once, to the same bits")

# %% [markdown]
# [many.py](../minitransformer/kernels/cuda/many.py) goes one better: parameters stay where they are, the kernel gets a
# list of their addresses, and a step of AdamW is **one** launch.
#
# ## Where memory comes from
#
# Every result needs a place, and asking the driver of a GPU for one is dear: it may have to wait until all work is done.
# So CuPy has a **memory pool**. It rounds sizes up to pieces of 512 bytes, keeps what is given back, and hands it out to
# the next who wants as much; the driver is asked only when nothing suitable lies there. For $n$ bytes:
#
# $$ \text{size} = 512\,\Bigl\lceil \frac{n}{512} \Bigr\rceil $$


# %%
class Pool:
    def __init__(self):
        self.free, self.asked, self.bytes = [], 0, 0

    def take(self, n):
        size = -(-n // 512) * 512
        known = size in self.free
        self.free.remove(size) if known else None
        self.asked, self.bytes = self.asked + (not known), self.bytes + (not known) * size
        return size


pool = Pool()
assert [pool.take(n) for n in (1, 512, 513)] == [512 * np.ceil(n / 512) for n in (1, 512, 513)]
print(f"three arrays of 1, 512 and 513 bytes: asked {pool.asked} times, {pool.bytes} bytes")

# %% [markdown]
# Let every result of the training step above come from such a pool, and go back when Python forgets it:


# %%
class Pooled(Counted):
    def __array_ufunc__(self, ufunc, method, *inputs, **settings):
        y = super().__array_ufunc__(ufunc, method, *inputs, **settings).view(Pooled)
        if not settings.get("out"):
            made.append(pool.take(y.nbytes))
            weakref.finalize(y.base, pool.free.append, made[-1])  # base: whose memory it is
        return y


pool, made = Pool(), []
y = (np.ones(1000).view(Pooled) + 1) * 2 - 3
print(f"{len(made)} results in {pool.asked} places, of which {len(pool.free)} lies free")
assert len(made) == 3 and pool.asked == 2 and len(pool.free) == 1

# %%
pool, steps = Pool(), []
for p in model.parameters():
    p.data = p.data.view(Pooled)
optimizer = mt.optim.AdamW(model.parameters())
with mt.use_kernels(False):
    for _ in range(4):
        made, before = [], pool.asked
        optimizer.zero_grad()
        loss_of(model, *batch).backward()
        optimizer.step()
        steps.append((len(made), pool.asked - before))
print("results, and how often the driver was asked, step by step:", *steps)

# %%
assert steps[0][1] > 0 == steps[-1][1]
figure, (left, right) = plt.subplots(1, 2, num="pool", figsize=(9, 3), layout="constrained")
for name, values in zip(("without a pool", "with a pool"), zip(*steps)):
    left.plot(range(1, 5), values, "o-", label=name)
left.set(xlabel="training step", ylabel="times the driver is asked", xticks=range(1, 5))
left.legend(frameon=False)
megabytes = {"all results": sum(made) / 1e6, "the pool": pool.bytes / 1e6}
bars = right.barh(list(megabytes), list(megabytes.values()), color="#08519c", height=0.5)
right.bar_label(bars, fmt=" %.0f MB")
right.set(xlabel="megabytes of a step", xlim=(0, 1.25 * max(megabytes.values())))
plt.show()

# %% [markdown]
# After the first steps nobody asks the driver any more. A place may even be handed on while the GPU still works on it:
# what is asked for later is done later. On a GPU, CuPy's own pool tells how much of it is in use:

# %%
if WHERE == "cupy":
    real = xp.get_default_memory_pool()
    there = xp.ones(1000, dtype="float32")
    used, total = real.used_bytes(), real.total_bytes()
    del there
    print("used less when an array is forgotten:", real.used_bytes() < used)
    print("and the pool kept its place:", real.total_bytes() == total)
    assert real.used_bytes() == used - 4096 and real.total_bytes() == total
else:
    print("no GPU answers: xp.get_default_memory_pool() would tell")

# %% [markdown]
# ## What goes through memory
#
# For a simple operation the arithmetic is nothing; reading and writing is all. The book reads and writes an array for
# each operator. A **fused** kernel reads each number once, does all its arithmetic in between, and writes once. How much
# would that save? We take some ops, and an array of half a megabyte.

# %%
OPS = {
    "silu": lambda x, w, b: mt.ops.silu(x),
    "gelu, tanh": lambda x, w, b: mt.ops.gelu(x, approximate="tanh"),
    "softmax": lambda x, w, b: mt.ops.softmax(x),
    "rms_norm": lambda x, w, b: mt.ops.rms_norm(x, w),
    "layer_norm": mt.ops.layer_norm,
}
x = rng.standard_normal((256, 512)).astype("float32").view(Counted)
w, b = np.ones((2, 512), dtype="float32").view(Counted)
print(f"x has {x.nbytes:,} bytes")

# %% [markdown]
# The fewest bytes are those of $x$ and $y$. The book's silu, above, has four steps that read one array and write one, and
# a product that reads two and writes one. So it moves
#
# $$ \frac{4 \cdot 2 + 3}{2} = 5.5 $$
#
# times as many as a fused kernel would have to.

# %%
moved, asked, fewest = {}, {}, 2 * x.nbytes  # x is read, y is written; w and b are small
with mt.use_kernels(False):
    for name, op in OPS.items():
        calls, before = Counted.calls, Counted.moved
        op(x, w, b)
        asked[name], moved[name] = Counted.calls - calls, Counted.moved - before
for name in OPS:
    print(f"{name:10} {asked[name]:2} calls, {moved[name] / fewest:.1f} times the fewest bytes")
assert moved["silu"] == (4 * 2 + 3) * x.nbytes == 5.5 * fewest

# %%
figure, axes = plt.subplots(num="moved", figsize=(6.5, 2.8), layout="constrained")
axes.barh(list(moved), [m / 1e6 for m in moved.values()], color="#a6c8e8", label="the book")
axes.barh(list(moved), fewest / 1e6, color="#08519c", height=0.4, label="the fewest")
axes.invert_yaxis()
axes.set(xlabel="megabytes read and written, forward")
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# Does it matter on a processor? It has a small fast memory of its own, the cache. Take a polynomial of degree 12, which is
# 24 operations, over 16 million numbers: all of them step by step, or a **block** after the other, each through all
# steps while it lies in the cache.


# %%
def polynomial(x, out):
    out[...] = 0.5
    for coefficient in np.linspace(-1, 1, 12, dtype="float32"):
        out *= x
        out += coefficient


def in_blocks(x, out, size):
    for first in range(0, len(x), size):
        polynomial(x[first : first + size], out[first : first + size])


x = rng.uniform(-1, 1, 2**24).astype("float32")
whole, blocked = np.empty_like(x), np.empty_like(x)
polynomial(x, whole), in_blocks(x, blocked, 2**14)
print("the same bits:", np.array_equal(whole, blocked))

# %%
blocks = [2**k for k in range(10, 25, 2)]
times = [seconds(lambda size=size: in_blocks(x, blocked, size), rounds=3) for size in blocks]
best = int(np.argmin(times))
figure, axes = plt.subplots(num="blocks", figsize=(6.5, 3.4), layout="constrained")
axes.loglog(blocks, np.array(times) * 1e3, "o-")
axes.axhline(times[-1] * 1e3, color="grey", linestyle=":", label="all at once")
axes.set(xlabel="numbers in a block", ylabel="milliseconds for 24 operations")
axes.legend(frameon=False)
plt.show()
assert 0 < best < len(blocks) - 1

# %% [markdown]
# Both prices in one picture. On the left blocks are small, and asking is dear; on the right they do not fit into the
# cache, and memory is. On a GPU there is no need to compromise: a fused kernel is asked for once, and each of its
# threads carries a number through all steps.
#
# ## A kernel
#
# This is silu in [activation.py](../minitransformer/kernels/cuda/activation.py), in CUDA's C++. It writes the slope, too,
# which the way back will need:

# %%
from minitransformer.kernels.cuda import activation

code = activation.SOURCE.code
print(code[code.index("template <typename T> __global__ void silu") :].strip())

# %% [markdown]
# All threads run the same lines; only their places differ. With a number of threads in each block, an array of $n$ numbers
# takes
#
# $$ \text{blocks} = \Bigl\lceil \frac{n}{\text{threads}} \Bigr\rceil \qquad
#    i = \text{block}\cdot\text{threads} + \text{thread} $$
#
# and the last block has threads for which there is nothing to do: hence the line `if (i >= n) return`. In NumPy, with all
# threads of a block at once:


# %%
def launch_silu(x, threads=256):
    n, y, writes = len(x), np.empty_like(x), np.zeros(len(x), dtype=int)
    blocks = -(-n // threads)
    for block in range(blocks):  # on a GPU in any order, many at a time
        i = block * threads + np.arange(threads)
        i = i[i < n]
        y[i] = x[i] * 0.5 * (np.tanh(0.5 * x[i]) + 1)
        writes[i] += 1
    return y, writes, blocks


y, writes, blocks = launch_silu(x[:1000])
print(f"1,000 numbers: {blocks} blocks of 256 threads, {blocks * 256 - 1000} of them idle")
assert (writes == 1).all() and np.allclose(y, mt.ops.silu(x[:1000]), atol=1e-6)

# %% [markdown]
# Sums need more than that: threads have to tell each other. Within a **warp** of 32 they can read each other's values
# directly. In step after step each adds what the thread at distance 16, 8, 4, 2, 1 has (its number with one bit turned
# over), and after five steps all of them know the sum:
#
# $$ s_i \leftarrow s_i + s_{i \oplus d}, \qquad d = 16, 8, 4, 2, 1 $$

# %%
lane, values = np.arange(32), rng.standard_normal(32)
stages = [values]
for distance in (16, 8, 4, 2, 1):
    stages.append(stages[-1] + stages[-1][lane ^ distance])
assert np.allclose(stages[-1], values.sum())
figure, axes = plt.subplots(num="warp", figsize=(8, 2.6), layout="constrained")
most = np.abs(stages).max()
image = axes.imshow(stages, cmap="RdBu", aspect="auto", vmin=-most, vmax=most)
axes.set_yticks(range(6), ["at first", *(f"after {d}" for d in (16, 8, 4, 2, 1))])
axes.set(xlabel="thread of the warp")
figure.colorbar(image, ax=axes, label="what it holds")
plt.show()

# %% [markdown]
# That is `block_sum` in [source.py](../minitransformer/kernels/cuda/source.py), by which LayerNorm, softmax and the loss
# become one launch each way. The order is always the same, so a run gives the same bits each time. With all kernels, the
# README counts 333 launches and products for a step that takes 2,310 by the book.
#
# ## Asking once
#
# A step asks for the same things each time. So it can be recorded, and then launched as a whole: a **graph**. What is
# recorded are the operations and **where** their numbers lie, so a number that changes from step to step must lie in
# memory, too. A learning rate that is a plain number is recorded as it was.


# %%
def record(tape, operation, *arguments):
    operation(*arguments)
    tape.append((operation, arguments))


live = np.array([0.1])  # the learning rate, in memory
g, step, x_live, x_fixed = np.ones(1), np.empty(1), np.zeros(1), np.zeros(1)
tape = []
for x_at, rate in ((x_live, live), (x_fixed, 0.1)):
    record(tape, np.multiply, g, rate, step)  # step = rate·g
    record(tape, np.subtract, x_at, step, x_at)  # x = x − step
print(f"recorded {len(tape)} operations: x = {x_live[0]:.2f} and {x_fixed[0]:.2f}")

# %%
live[0] = 0.01  # ten times smaller from now on
for operation, arguments in tape:  # one launch on a GPU, and no Python in between
    operation(*arguments)
print(f"with the rate in memory {x_live[0]:.2f}, with the recorded one {x_fixed[0]:.2f}")
assert np.isclose(x_live[0], -0.11) and np.isclose(x_fixed[0], -0.20)

# %% [markdown]
# On a GPU `minitransformer train` does so for the whole training step: batch, learning rate and the key of the dropout lie
# in one array on the GPU, which is written in one copy before each launch ([graph.py](../minitransformer/graph.py)). On one
# NVIDIA H200 a step of the small translator took 12.9 ms launch by launch, nearly all of it Python that asks, and 1.3 ms
# recorded.
#
# On a CPU NumPy's calls can be kept in the same way, with their arguments in place, and there they are
# ([replay.py](../minitransformer/replay.py)): Python asks for so much there, too, that a step of the small translator
# takes 0.7 of the time when it is replayed.
#
# ## The same training
#
# Now sixty steps with the library as it is, wherever we are. Only two lines know: `use_backend`, which says where
# parameters are born, and `send`, which brings the batch. Losses stay there until the end.


# %%
def train_step(model, optimizer, step, rows):
    loss = loss_of(model, *backend.send(*task.batch(step, rows)))
    model.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.data  # an array where the model is; nobody waits for it


def start():
    mt.manual_seed(0)  # the same weights on each backend
    model = Transformer(config)
    return model, mt.optim.AdamW(model.parameters(), lr=3e-3)


print(f"the first loss on NumPy: {train_step(*start(), 1, 64):.3f}")


# %%
def train(where, steps=60):
    with mt.use_backend(where):
        model, optimizer = start()
        losses = [train_step(model, optimizer, step, rows=64) for step in range(1, steps + 1)]
        return np.array([float(loss) for loss in losses])


with limit_blas_threads(1):  # small products
    runs = {where: train(where) for where in ("numpy", WHERE)}
print({where: losses[-1].round(2).item() for where, losses in runs.items()})
assert np.allclose(runs["numpy"][:5], runs[WHERE][:5], rtol=1e-3)

# %%
figure, axes = plt.subplots(num="training", figsize=(6.5, 3.2), layout="constrained")
for width, (where, losses) in zip((4, 1.5), runs.items()):
    axes.plot(range(1, 61), losses, label=where, linewidth=width)
axes.set(xlabel="training step", ylabel="loss (nats per token)")
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# What is asked for in a step does not depend on the batch, so a larger batch shares the price of asking among more
# tokens.

# %%
with mt.use_kernels(False), limit_blas_threads(1):
    for rows in (1, 64, 256):
        counted(f"forward, {rows} rows", lambda rows=rows: loss_of(model, *task.batch(1, rows)))
print({name: count for name, count in parts.items() if "rows" in name})
assert parts["forward, 1 rows"] == parts["forward, 256 rows"] == parts["forward"]

# %% [markdown]
# How many tokens a second does training reach?


# %%
def tokens_a_second(where, rows):
    with mt.use_backend(where):
        state, count = start(), task.batch(1, rows).tokens
        return count / seconds(lambda: train_step(*state, 1, rows), backend.xp(), rounds=3)


batches = (1, 4, 16, 64, 256)
with limit_blas_threads(1):
    speed = {where: [tokens_a_second(where, rows) for rows in batches] for where in runs}
assert speed["numpy"][-1] > 3 * speed["numpy"][0]
print("on NumPy a batch of 256 trains more than three times as many tokens a second as one of 1")

# %%
figure, axes = plt.subplots(num="speed", figsize=(6.5, 3.2), layout="constrained")
for where, values in speed.items():
    axes.semilogx(batches, values, "o-", label=where)
axes.set(xlabel="sequences in a batch", ylabel="tokens a second")
axes.set_xticks(batches, batches)
axes.minorticks_off()
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# (Measured on the machine that built this page; run the lesson to see your own.)
#
# ## Exercises
#
# **15.1 An op for any array** · Write $y = x^2/(1 + e^{-x})$ with its vjp, in the form of the library: `xp` is the module
# of the arrays. The check runs it where `np` would not do.


# %%
def square_gate(xp, x):
    """Return y, vjp; vjp(g) returns g_x."""
    ...


mt.lessons.check("15.1", square_gate)

# %% [markdown]
# **15.2 The place of a thread** · Return an integer array (blocks, threads): for each thread of each block the element $i$
# that it works on, and −1 for those that have nothing to do. As few blocks as will do.


# %%
def places(n, threads):
    """Return the places, (blocks, threads)."""
    ...


mt.lessons.check("15.2", places)

# %% [markdown]
# **15.3 The greatest of a warp** · Softmax needs the greatest of a row, and every thread has to know it. `values` are those
# of a warp, as many as a power of two. Return an array (stages, threads): what each thread holds after each exchange, at
# distances from half the warp down to 1.


# %%
def warp_max(values):
    """Return what the threads hold after each exchange."""
    ...


mt.lessons.check("15.3", warp_max)

# %% [markdown]
# **15.4 One copy for a batch** · `flat` holds several arrays behind one another, row by row; `shapes` is the list of their
# shapes. Return the list of arrays, as views of `flat`: nothing is copied.


# %%
def unpack(flat, shapes):
    """Return the arrays, views of flat."""
    ...


mt.lessons.check("15.4", unpack)
