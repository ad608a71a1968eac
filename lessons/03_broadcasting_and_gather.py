# %% [markdown]
# # 03 · Broadcasting, gather and the art of the vjp
#
# **A bias is added to every row of a matrix, and a word stands in a sentence three times. When one number is used many
# times, or not at all, where does its gradient go?**
#
# Many ops compute nothing: they copy, pick, move or add up. Their derivatives follow one rule, and most mistakes in
# hand-written derivatives are mistakes in it. The real things: [elementwise.py](../minitransformer/ops/elementwise.py)
# (`sum_to`), [indexing.py](../minitransformer/ops/indexing.py), [shape.py](../minitransformer/ops/shape.py).
#
# [← 02 · Tensors and the tape](02_tensors_and_the_tape.ipynb) ·
# [04 · Gradient checking →](04_gradient_checking.ipynb)

# %%
import matplotlib.pyplot as plt
import numpy as np

import minitransformer as mt

rng = np.random.default_rng(3)
print("minitransformer", mt.__version__)

# %% [markdown]
# ## To copy is a matrix, too
#
# Take a bias of three numbers that is added to two rows. NumPy **broadcasts** it: it uses each number twice. Written
# as a matrix, that is six rows of zeros with a single one, where each row says which number it copies.

# %%
copies = np.zeros((6, 3))
copies[np.arange(6), [0, 1, 2, 0, 1, 2]] = 1
bias = np.array([10.0, 20.0, 30.0])
assert np.array_equal((copies @ bias).reshape(2, 3), np.broadcast_to(bias, (2, 3)))
np.broadcast_to(bias, (2, 3))

# %% [markdown]
# The way back multiplies by the transposed matrix. Its rows have a one wherever a number was used, so the transpose of
# *copy* is *add up*.

# %%
figure, (left, right) = plt.subplots(1, 2, num="copy-and-sum", figsize=(7, 3), layout="constrained")
left.imshow(copies, cmap="Blues", vmax=1.5)
left.set(title="forwards: copy", xlabel="number of the bias", ylabel="place in the result")
right.imshow(copies.T, cmap="Blues", vmax=1.5)
right.set(title="backwards: add up", xlabel="place in g", ylabel="number of the bias")
for axes in (left, right):
    axes.set(xticks=range(axes.images[0].get_array().shape[1]))
    axes.set(yticks=range(axes.images[0].get_array().shape[0]))
plt.show()

# %%
g = rng.standard_normal((2, 3))
by_matrix = copies.T @ g.ravel()
by_sum = g.sum(axis=0)
assert np.allclose(by_matrix, by_sum, rtol=0, atol=1e-15)
print(by_matrix.round(4), by_sum.round(4))

# %% [markdown]
# ## One rule, and a test that costs nothing
#
# For a step that is linear, $y = A\,x$, the vjp is $g_x = A^{\top} g$, whatever the step looks like in code. Nobody
# writes $A$ down. But there is a test that needs no matrix either. By the meaning of a transpose, for **all** $x$ and
# $g$:
#
# $$ \langle g,\; A\,x \rangle = \langle A^{\top} g,\; x \rangle $$
#
# So take random $x$ and $g$ and compare two numbers. We do it for the mean, and then for other ops that move things.


# %%
def two_products(f, shape):
    x = mt.tensor(rng.standard_normal(shape), requires_grad=True)
    y = f(x)
    g = rng.standard_normal(y.shape)
    y.backward(g)
    return (g * y.numpy()).sum(), (x.grad.numpy() * x.numpy()).sum()


there, back = two_products(lambda x: x.mean(axis=0), (3, 5))
assert abs(there - back) < 1e-14
print(f"mean over axis 0: ⟨g, Ax⟩ = {there:.6f}, ⟨Aᵀg, x⟩ = {back:.6f}")

# %%
moves = {
    "sum over axis 0": lambda x: x.sum(axis=0),
    "broadcast": lambda x: mt.ops.broadcast_to(x, (7, 3, 5)),
    "transpose": lambda x: x.T,
    "every other row": lambda x: x[::2],
    "rows 2, 0, 2": lambda x: x[np.array([2, 0, 2])],
    "beside itself": lambda x: mt.ops.concatenate([x, x], axis=1),
}
for name, move in moves.items():
    there, back = two_products(move, (3, 5))
    print(f"{name:18} {there:11.6f} {back:11.6f}")
    assert abs(there - back) < 1e-12

# %% [markdown]
# The moves come in pairs, each the way back of the other:
#
# | forwards | backwards |
# |---|---|
# | copy (broadcast) | add up |
# | add up | copy |
# | mean of n | copy, times 1/n |
# | pick (slice, gather) | put into zeros, **adding** |
# | put side by side | cut apart |
# | reorder the axes | the inverse order |
#
# ## `sum_to`: the way back of broadcasting
#
# NumPy broadcasts in two ways. It adds axes in front, and it stretches axes of length 1. `sum_to` sums over both
# kinds, and the vjp of every op that broadcasts ends with it. It finds the axes from the shapes alone.


# %%
def repeated_axes(from_shape, to_shape):
    extra = len(to_shape) - len(from_shape)
    stretched = [extra + i for i, n in enumerate(from_shape) if n == 1 and to_shape[extra + i] > 1]
    return list(range(extra)) + stretched


for shape in [(3,), (1, 3), (2, 1), (4, 1, 1), ()]:
    g = rng.standard_normal((4, 2, 3))
    ours = g.sum(axis=tuple(repeated_axes(shape, g.shape)), keepdims=True).reshape(shape)
    assert np.allclose(ours, mt.ops.sum_to(g, shape))
    print(f"{shape!s:10} broadcast to {g.shape}: sum over {repeated_axes(shape, g.shape)}")

# %% [markdown]
# ## Gather: words that come several times
#
# An embedding looks up one row of a table for each word. Six words, of which *the* comes three times and *ran* never:

# %%
vocabulary = ["the", "cat", "saw", "dog", "ran"]
sentence = "the cat saw the dog the".split()
ids = np.array([vocabulary.index(word) for word in sentence])
table = mt.tensor(rng.standard_normal((5, 4)), requires_grad=True)
g = np.ones((6, 4))
mt.ops.embedding(ids, table).backward(g)
print(ids, dict(zip(vocabulary, table.grad.numpy()[:, 0].tolist())))

# %% [markdown]
# Each use of a row adds its share. With $v$ for a row of the table and $i$ for a place in the sentence:
#
# $$ (g_{\text{table}})_v = \sum_{i\,:\;\text{ids}_i = v} g_i $$

# %%
g = rng.standard_normal((6, 4))
table.grad = None
mt.ops.embedding(ids, table).backward(g)
for v in range(5):
    uses = [g[i] for i in range(6) if ids[i] == v]
    assert np.allclose(table.grad.numpy()[v], sum(uses, np.zeros(4)))
print("row of “the”:", table.grad.numpy()[0].round(4))

# %% [markdown]
# ### The trap
#
# In NumPy there are three ways to write this down, and two of them are wrong. `=` keeps the last use. `+=` with a list
# of places **looks** right, but NumPy reads all the old values first and writes afterwards, so again only the last use
# counts. `np.add.at` adds every time.

# %%
names = "table[ids] = g", "table[ids] += g", "np.add.at(table, ids, g)"
ways = {name: np.zeros((5, 4)) for name in names}
assigned, added, added_each = ways.values()
assigned[ids] = g
added[ids] += g
np.add.at(added_each, ids, g)
right = [np.allclose(way, table.grad) for way in ways.values()]
print(dict(zip(ways, right)))
assert right == [False, False, True]

# %%
figure, panels = plt.subplots(1, 3, num="three-ways", figsize=(9, 3), sharey=True)
for axes, (name, way) in zip(panels, ways.items()):
    axes.imshow(way, cmap="RdBu", vmin=-2, vmax=2)
    axes.set(title=name, xticks=[], yticks=range(5), yticklabels=vocabulary)
panels[0].set_ylabel("gradient of each row")
plt.show()

# %% [markdown]
# Blue is positive, red negative. Look at the first row: *the* is used three times, and only the last panel has all three.
# A mistake like this raises no error. Only the numbers show it.
#
# ## Where the step is not linear
#
# Then the rule holds for the slopes at this one point: $A$ becomes the Jacobian of lesson 02. Take $y = a \cdot b$ with
# a bias-like $b$ that is broadcast. Two moves follow one another: copy $b$ to every row, then multiply. The way back
# takes them in the opposite order: multiply by the other factor, then add up.
#
# $$ g_a = g \odot b \qquad\quad g_b = \sum_{\text{rows}} g \odot a $$

# %%
a = mt.tensor(rng.standard_normal((4, 3)), requires_grad=True)
b = mt.tensor(rng.standard_normal(3), requires_grad=True)
g = rng.standard_normal((4, 3))
(a * b).backward(g)
assert np.allclose(a.grad, g * b.numpy()) and np.allclose(b.grad, (g * a.numpy()).sum(axis=0))
print("g_a", a.grad.shape, "  g_b", b.grad.shape)

# %% [markdown]
# And what is **not** used gets nothing. The maximum uses one element of each row; all others could be a little larger
# without a change. (Where several tie, this library shares the gradient among them.)

# %%
x = mt.tensor(np.array([[1.0, 5.0, 2.0], [4.0, 4.0, 0.0]]), requires_grad=True)
x.max(axis=1).sum().backward()
assert np.array_equal(x.grad, [[0, 1, 0], [0.5, 0.5, 0]])
x.grad.numpy()

# %% [markdown]
# ## The art
#
# To find a vjp: split the step into moves and multiplications; write down where each number is used; go backwards, and
# let every use add its share. Then check the shape (a gradient has the shape of its input), and check the numbers: that
# is the next lesson.
#
# ## Exercises
#
# **03.1 The transpose of broadcasting** · `g` has the shape to which an array of `shape` was broadcast. Return the
# gradient of that array.


# %%
def sum_to(g, shape):
    """Return g_x."""
    ...


mt.lessons.check("03.1", sum_to)

# %% [markdown]
# **03.2 The vjp of a product with broadcasting** · `y = a * b`; `a` is (4, 3), and `b`, (3,), is used in every row.


# %%
def multiply_vjp(a, b, g):
    """Return g_a, g_b."""
    ...


mt.lessons.check("03.2", multiply_vjp)

# %% [markdown]
# **03.3 The vjp of a lookup** · `y = weight[ids]`. Return the gradient of `weight`, which has `rows` rows.


# %%
def lookup_vjp(ids, g, rows):
    """Return g_weight."""
    ...


mt.lessons.check("03.3", lookup_vjp)

# %% [markdown]
# **03.4 The vjp of a mean** · `y = x.mean(axis=1)`; `g` has a number for each row. Return `g_x`.


# %%
def mean_vjp(x, g):
    """Return g_x."""
    ...


mt.lessons.check("03.4", mean_vjp)
