# %% [markdown]
# # 02 · Tensors and the tape
#
# **The tape of lesson 01 had an object for every number. A layer of a Transformer computes millions. What does a tape
# remember when its entries are whole arrays, how much, and for how long?**
#
# The answer is in [tensor.py](../minitransformer/tensor.py) (the tape) and in
# [ops/](../minitransformer/ops/__init__.py) (the steps).
#
# [← 01 · A number that remembers](01_a_number_that_remembers.ipynb) ·
# [03 · Broadcasting, gather and the art of the vjp →](03_broadcasting_and_gather.ipynb)

# %%
import matplotlib.pyplot as plt
import numpy as np

import minitransformer as mt

mt.use_kernels(False)  # the plain book of ops, whose lines this lesson reads
rng = np.random.default_rng(2)
print("minitransformer", mt.__version__)

# %% [markdown]
# ## One entry for one array
#
# A `Tensor` holds an array, and a `Node` that says how it was made. Whether the array has six numbers or six million,
# one step makes one node. Here is a small program and its tape, oldest entry first.


# %%
def tape(tensor):
    known, todo = set(), [tensor.node]
    while todo:
        node = todo.pop()
        if node is not None and node not in known:
            known.add(node)
            todo += node.parents
    return sorted(known, key=lambda node: node.birth)


x = mt.tensor(rng.standard_normal((2, 3)), requires_grad=True)
w = mt.tensor(rng.standard_normal((3, 5)), requires_grad=True)
print(*tape((x @ w).tanh().sum()), sep="\n")

# %% [markdown]
# ## The slopes of a step are a matrix
#
# A step that takes $n$ numbers and gives $m$ has $m \cdot n$ slopes: each result along each input. They form the
# **Jacobian** $J$. We can read it off by asking for one result at a time.


# %%
def jacobian(f, x):
    rows = []
    for i in range(f(x).size):
        leaf = mt.tensor(x, requires_grad=True)
        f(leaf).reshape(-1)[i].backward()
        rows.append(leaf.grad.numpy().ravel())
    return np.array(rows)


v = rng.standard_normal(6)
jacobian(lambda t: mt.ops.exp(t), v).round(2)

# %%
triangle = np.tril(np.ones((6, 6)))
steps = {"exp": mt.ops.exp, "a running sum": lambda t: mt.ops.matmul(triangle, t)}
steps |= {"reversed": lambda t: t[::-1], "softmax": mt.ops.softmax}
figure, panels = plt.subplots(1, 4, num="jacobians", figsize=(10, 3), layout="constrained")
for axes, (name, step) in zip(panels, steps.items()):
    slopes = jacobian(step, v)
    most = abs(slopes).max()
    axes.imshow(slopes, cmap="RdBu", vmin=-most, vmax=most)
    axes.set(title=f"{name}\n±{most:.2f}", xlabel="input", xticks=range(6), yticks=range(6))
panels[0].set_ylabel("result")
plt.show()

# %% [markdown]
# Blue is positive, red negative, and the strongest colour stands for the number above. A function of each element alone
# has a diagonal; a running sum, a triangle; softmax makes each result depend on all inputs. So much structure, and so many zeros. It would be a waste to store them:

# %%
rows, width = 512, 768  # a modest array inside a Transformer
numbers = rows * width
print(f"the array:        {4 * numbers / 1e6:8.1f} MB")
print(f"Jacobian of exp:  {4 * numbers**2 / 1e9:8.1f} GB in float32")

# %% [markdown]
# ## The vjp: a product with the Jacobian, without the Jacobian
#
# The walk never needs $J$ itself. A node gets $g$, the slope of the final result along each of its outputs, and has to
# hand on the slope along each of its inputs. By the chain rule of lesson 01, input $j$ gets a share through every
# output $i$: the share is $g_i J_{ij}$, and the shares add up.
#
# $$ (g_x)_j = \sum_i g_i\,J_{ij} \qquad\text{or}\qquad g_x = J^{\top} g $$
#
# That is a **vector–Jacobian product**, in short a vjp. For softmax it is one line.

# %%
g = rng.standard_normal(6)
y = mt.ops.softmax(v)
with_jacobian = jacobian(mt.ops.softmax, v).T @ g
without = y * (g - (g * y).sum())
assert np.allclose(with_jacobian, without, rtol=0, atol=1e-14)
print(with_jacobian.round(6), without.round(6), sep="\n")

# %% [markdown]
# ## An op of the library
#
# So an op is a function that returns two things: its value, and a function `vjp`. Underneath `mt.ops.tanh` lies such a
# body; its first argument `xp` is NumPy here, and would be CuPy for arrays on a GPU.

# %%
y, vjp = mt.ops.tanh.body(np, v)
(g_x,) = vjp(g)
assert np.allclose(g_x, g * (1 - np.tanh(v) ** 2))
print("y  ", y.round(4), "\ng_x", g_x.round(4))

# %% [markdown]
# A matrix product has two inputs, so its vjp returns two gradients. With $Y = A\,B$ and $G$ the gradient of $Y$:
#
# $$ G_A = G\,B^{\top} \qquad G_B = A^{\top} G $$
#
# The shapes leave no other choice: $G_A$ must be shaped as $A$.

# %%
a, b = rng.standard_normal((2, 3)), rng.standard_normal((3, 5))
ta, tb = mt.tensor(a, requires_grad=True), mt.tensor(b, requires_grad=True)
G = rng.standard_normal((2, 5))
(ta @ tb).backward(G)
assert np.allclose(ta.grad, G @ b.T) and np.allclose(tb.grad, a.T @ G)
print("G_A", ta.grad.shape, "  G_B", tb.grad.shape)

# %% [markdown]
# ## What a step keeps
#
# The tape is as heavy as what its vjps remember, and a vjp remembers the names it mentions. Python tells us which. For
# `exp` the result is enough; `log` needs its input; `add` only the shapes.

# %%
x2, y2 = rng.uniform(1, 2, (512, 768)), rng.uniform(1, 2, (512, 768))
steps = {name: (x2,) for name in ("exp", "log", "tanh", "sqrt", "relu", "sum")}
steps |= {"add": (x2, y2), "multiply": (x2, y2), "divide": (x2, y2)}
kept = {}
for name, arrays in steps.items():
    _, vjp = getattr(mt.ops, name).body(np, *arrays)
    cells = [cell.cell_contents for cell in vjp.__closure__]
    kept[name] = sum(c.nbytes for c in cells if isinstance(c, np.ndarray)) / x2.nbytes
    print(f"{name:9} mentions {', '.join(vjp.__code__.co_freevars)}")

# %%
figure, axes = plt.subplots(num="kept", figsize=(6, 3))
axes.barh(list(kept), list(kept.values()), color="#08519c")
axes.invert_yaxis()
axes.set(xlabel="kept for the way back, in arrays of the size of x")
plt.show()

# %% [markdown]
# (`relu` keeps one byte for each element, which of them were positive: an eighth of float64.)
#
# ## For how long
#
# `backward` drops what a node has kept as soon as it was used. So memory falls while the walk goes on, and a second
# walk finds nothing; it says so and tells what to write.

# %%
loss = (x @ w).tanh().sum()
loss.backward()
try:
    loss.backward()
except RuntimeError as error:
    print(error)
print(tape(loss))

# %% [markdown]
# ## Gradients add up
#
# A leaf keeps what arrives in `.grad`, and a second loss **adds** to it. That is how several batches can share one
# step of training, and why a training loop forgets the gradients before the next step.

# %%
first = x.grad.numpy().copy()
(x @ w).tanh().sum().backward()
print(f"after one walk {first[0, 0]:.4f}   after two {x.grad.numpy()[0, 0]:.4f}")
assert np.allclose(x.grad, 2 * first)
x.grad = None
(x @ w).tanh().sum().backward()
print(f"forgotten, and walked once more: {x.grad.numpy()[0, 0]:.4f}")
assert np.allclose(x.grad, first)

# %% [markdown]
# ## When nothing is recorded
#
# Inside `mt.no_grad()`, and for tensors of which none requires a gradient, the same lines leave no tape. A model that
# only answers keeps nothing.

# %%
with mt.no_grad():
    y = (x @ w).tanh()
print("node:", y.node, "  requires_grad:", y.requires_grad)
assert y.node is None

# %% [markdown]
# ## Exercises
#
# **02.1 The vjp of a matrix product** · For `y = a @ b` return `g_a` and `g_b`.


# %%
def matmul_vjp(a, b, g):
    """Return g_a, g_b."""
    ...


mt.lessons.check("02.1", matmul_vjp)

# %% [markdown]
# **02.2 The vjp of a running sum** · `y = np.cumsum(x)`, so `y[i] = x[0] + ... + x[i]`. Return `g_x`. The triangle in
# the picture above shows which elements of `y` each `x[j]` goes into.


# %%
def cumsum_vjp(x, g):
    """Return g_x."""
    ...


mt.lessons.check("02.2", cumsum_vjp)

# %% [markdown]
# **02.3 An op of your own** · Write the sigmoid $y = 1/(1 + e^{-x})$ in the form of the library: return `y` and a
# function `vjp`, where `vjp(g)` returns `g_x`. Let it keep `y` alone.


# %%
def sigmoid(x):
    """Return y, vjp."""
    ...


mt.lessons.check("02.3", sigmoid)
