# %% [markdown]
# # 08 · Attention, one number at a time
#
# **A word has to find the other words that matter to it, and take something from them. How does each single number of
# attention come about, and what does each of them learn on the way back?**
#
# We choose four words with two numbers each, so that everything can be computed by hand and drawn in a plane. First
# forwards: score, scale, mask, softmax, mix. Then backwards, through the same steps. The real thing is in
# [attention.py](../minitransformer/ops/attention.py).
#
# [← 07 · Residuals and dropout](07_residuals_and_dropout.ipynb) · [09 · Many heads →](09_many_heads.ipynb)

# %%
import math

import matplotlib.pyplot as plt
import numpy as np

import minitransformer as mt
from minitransformer import draw

mt.use_kernels(False)  # the plain book of ops, whose lines this lesson re-derives
rng = np.random.default_rng(8)
print("minitransformer", mt.__version__)

# %% [markdown]
# ## Three roles
#
# Each word plays three parts. As a **query** it says what it is looking for. As a **key** it says what it can be found by.
# As a **value** it says what it has to give. A model makes all three by linear layers
# ([lesson 05](05_linear_gelu_initialisation.ipynb)) from the same row, and learns them. Here we choose them. There are
# $T = 4$ queries and $S = 4$ keys, and each has $K = 2$ numbers.

# %%
words = ["the", "cat", "saw", "it"]
q = np.array([[0.5, 0.5], [-0.3, 0.9], [0.3, 1.3], [1.6, 0.5]])
k = np.array([[0.3, -0.9], [1.9, 0.4], [-0.6, 1.6], [1.1, -0.4]])
v = np.array([[0.0, -1.2], [2.0, 1.0], [-1.0, 1.8], [1.2, -1.6]])
T, K = q.shape
S = len(k)
for word, *rows in zip(words, q, k, v):
    print(f"{word:4}  query {rows[0]}   key {rows[1]}   value {rows[2]}")

# %% [markdown]
# ## Score: how well a query matches a key
#
# Multiply the query of word $i$ by the key of word $j$, number by number, and add up. The sum is large when both point the
# same way. Then divide by $\sqrt K$, for a reason that comes soon:
#
# $$ s_{ij} = \frac{1}{\sqrt K} \sum_{m=1}^{K} q_{im}\,k_{jm} $$

# %%
i, j = words.index("it"), words.index("cat")
products = [q[i, m] * k[j, m] for m in range(K)]
score = sum(products) / math.sqrt(K)
print(f"it → cat: ({' + '.join(f'{p:.2f}' for p in products)}) / √2 = {score:.4f}")

scores = q @ k.T / math.sqrt(K)  # all sixteen at once
assert np.isclose(scores[i, j], score)
scores.round(2)

# %% [markdown]
# In the plane: the query of *it* as an arrow, and the four keys. A key scores by how far it reaches along the arrow; all
# points on a dotted line have the same score.

# %%
figure, axes = plt.subplots(num="score", figsize=(7, 4.4), layout="constrained")
grid = np.meshgrid(np.linspace(-1.5, 3.2, 50), np.linspace(-1.5, 2.2, 50))
heights = (q[i, 0] * grid[0] + q[i, 1] * grid[1]) / math.sqrt(K)
axes.clabel(axes.contour(*grid, heights, range(-2, 5), linestyles=":", colors="#999999"), fmt="%d")
axes.annotate("", q[i], (0, 0), arrowprops=dict(arrowstyle="-|>", lw=2.5, color="#d95f02"))
axes.text(0.75, 0.4, "query of it", color="#d95f02", ha="center", rotation=16)
axes.plot(*k.T, "o", color="#08519c")
box = dict(fc="white", ec="none", pad=1)
for word, key, s in zip(words, k, scores[i]):
    axes.text(*key - [0, 0.12], f"{word}: {s:.2f}", ha="center", va="top", bbox=box)
axes.set(xlabel="first number", ylabel="second number", aspect="equal")
plt.show()

# %% [markdown]
# ## Scale: why √K
#
# How large is a score? Take queries and keys whose numbers are random, with mean 0 and variance 1, which is about what
# a LayerNorm and a fresh linear layer give. Each product has the variance 1, and a sum of $K$ independent products has the variance $K$:
#
# $$ \operatorname{Var}\Big[\sum_{m=1}^{K} q_m\,k_m\Big] = K, \qquad \text{so the spread is } \sqrt K $$

# %%
widths = 4 ** np.arange(1, 6)
spreads = []
for width in widths:
    dots = (rng.standard_normal((20_000, width)) * rng.standard_normal((20_000, width))).sum(axis=1)
    spreads.append(dots.std())
    print(f"K = {width:4}: spread {dots.std():6.2f}, √K = {math.sqrt(width):5.1f}")
assert np.allclose(spreads, np.sqrt(widths), rtol=0.03)

# %% [markdown]
# So without a scale, scores grow with the width of the model, and [lesson 06](06_softmax_and_layer_norm.ipynb) has shown
# what a softmax makes of large scores: the first takes all, and hardly any gradient gets through. Divided by $\sqrt K$,
# scores have the spread 1 at any width.
#
# **And why not** $\sqrt D$, the root of the width of the whole model? With $H$ heads each head gets $K = D/H$ numbers, and
# the sum runs over those. Divided by $\sqrt D = \sqrt{H K}$, scores would have a spread of $1/\sqrt H$: too flat to choose.
# Here are the three, for $H = 8$ heads and 16 keys.


# %%
def look(K, scale, H=8, keys=16):
    s = rng.standard_normal((400, K)) @ rng.standard_normal((keys, K)).T
    p = mt.ops.softmax(s * {"none": 1, "1/√K": K**-0.5, "1/√D": (H * K) ** -0.5}[scale])
    g = rng.standard_normal(p.shape)
    through = p * (g - (g * p).sum(axis=1, keepdims=True))  # the vjp of softmax
    return p.max(axis=1).mean(), np.sqrt((through**2).sum(axis=1)).mean()


looks = {
    scale: np.array([look(width, scale) for width in widths]) for scale in ("none", "1/√K", "1/√D")
}
for scale, seen in looks.items():
    print(f"scale {scale:4} largest weight {seen[:, 0].round(2)}   gradient {seen[:, 1].round(2)}")

# %%
figure, panels = plt.subplots(1, 2, num="scale", figsize=(10, 3.6), layout="constrained")
titles = "largest weight of 16", "gradient that gets through the softmax"
for axes, title, column in zip(panels, titles, (0, 1)):
    for scale, seen in looks.items():
        axes.semilogx(widths, seen[:, column], "o-", base=2, label=f"scale: {scale}")
    axes.set(title=title, xlabel="K, numbers in each head", xticks=widths, xticklabels=widths)
    axes.grid(color="#e3e3e3"), axes.set_ylim(0)
panels[0].axhline(1 / 16, ls=":", color="black")
panels[1].plot([], ":", color="black", label="all alike: 1/16")
panels[1].legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
plt.show()

# %% [markdown]
# No derivative check finds a wrong scale, because it is a right derivative of another function. It takes a comparison with
# a known value, such as [exercise 08.1](#Exercises).
#
# ## Mask: where a query may look
#
# A word that is being written must not see the words that come after it. A **mask** says so: True where a query may look.
# In a **causal** mask that is the query's own place, and all places before it. What is masked gets the score −∞.

# %%
mask = np.arange(S)[None, :] <= np.arange(T)[:, None]  # key j does not come after query i
masked = np.where(mask, scores, -np.inf)
assert np.array_equal(mask, np.tri(T, dtype=bool))
masked.round(2)

# %% [markdown]
# ## Softmax: from scores to weights
#
# Each row becomes shares that sum to 1. A score of −∞ gives $e^{-\infty} = 0$, exactly: the masked keys take no part, neither
# above the fraction line nor below it.
#
# $$ p_{ij} = \frac{e^{s_{ij}}}{\sum_{j' \text{ seen by } i} e^{s_{ij'}}} $$

# %%
i = words.index("saw")
powers = [math.exp(scores[i, j]) if mask[i, j] else 0.0 for j in range(S)]
row = [power / sum(powers) for power in powers]
for word, power, share in zip(words, powers, row):
    print(f"saw → {word:4} {power:7.4f} / {sum(powers):.4f} = {share:.4f}")
p = mt.ops.softmax(scores, mask=mask)
assert np.allclose(p[i], row) and np.allclose(p.sum(axis=1), 1) and (p[~mask] == 0).all()

# %%
figure = draw.attention_heatmap(p, words, words, title="who looks at whom", allowed=mask)
figure.set_label("weights")
figure

# %% [markdown]
# Two mistakes are common here, and neither raises an error. Setting weights to 0 **after** the softmax leaves rows that do
# not sum to 1. Setting scores to 0 instead of −∞ leaves the masked keys a share, because $e^0 = 1$.

# %%
after = mt.ops.softmax(scores) * mask
zero = mt.ops.softmax(np.where(mask, scores, 0.0))
print("sums of rows, mask after softmax:", after.sum(axis=1).round(3))
print("share of the future, score 0:    ", (zero * ~mask).sum(axis=1).round(3))
assert not np.allclose(after.sum(axis=1), 1) and (zero * ~mask).sum() > 0.1

# %% [markdown]
# ## Mix: what is taken home
#
# Each query takes the values of all the words it looks at, in the shares it has just found:
#
# $$ y_i = \sum_j p_{ij}\,v_j $$

# %%
i = words.index("it")
mixed = sum(p[i, j] * v[j] for j in range(S))
terms = [f"{share:.2f}·{word}" for share, word in zip(p[i], words)]
print("it takes", " + ".join(terms), "=", mixed.round(3))
y = p @ v
assert np.allclose(y[i], mixed)

# %% [markdown]
# The shares are positive and sum to 1, so a mix always lies **between** the values. In the plane: the values are corners,
# and each output lies inside the area that they span. *the* sees only itself and stays at its own corner.

# %%
figure, axes = plt.subplots(num="mix", figsize=(7, 4.4), layout="constrained")
corners = v[[0, 3, 1, 2]]  # around the area
axes.fill(*corners.T, fc="#eef4fb", ec="#bdd7e7")
axes.plot(*v.T, "o", color="#08519c", label="values")
axes.plot(*y.T, "D", color="#d95f02", label="outputs")
for word, value, out in zip(words, v, y):
    axes.text(*value + [0.1, 0.12], word, color="#08519c")
    axes.text(*out + [-0.1, 0.05], word, color="#d95f02", ha="right")
axes.set(xlabel="first number", ylabel="second number", aspect="equal")
axes.set(xlim=(-1.6, 2.8), ylim=(-2.1, 2.4))
axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
plt.show()

# %% [markdown]
# ## All together
#
# Score, scale, mask, softmax, mix: three lines, and the library gives the same. (The softmax runs over the keys that the
# mask lets through.)
#
# $$ y = \operatorname{softmax}\Big(\frac{q\,k^{\top}}{\sqrt K}\Big)\,v $$


# %%
def attention(q, k, v, mask):
    scores = q @ k.T / math.sqrt(q.shape[-1])
    p = mt.ops.softmax(scores, mask=mask)
    return p @ v


ours = attention(q, k, v, mask)
library = mt.ops.scaled_dot_product_attention(q, k, v, causal=True)
assert np.allclose(ours, y) and np.allclose(ours, library, rtol=1e-14)
library.round(3)

# %% [markdown]
# ### The future changes nothing
#
# The mask promises something that can be tested: whatever happens to the last word, the words before it do not notice.

# %%
other = v.copy()
other[3] = 1000.0
changed = mt.ops.scaled_dot_product_attention(q, k, other, causal=True) != library
print(dict(zip(words, changed.any(axis=1).tolist())))
assert not changed[:3].any() and changed[3].all()

# %% [markdown]
# ## Backwards
#
# Let $g_i$ be the gradient that arrives at output $y_i$. We go back through the steps, in the opposite order, and check
# each number against the tape.

# %%
g = rng.standard_normal((T, 2))
tq, tk, tv = (mt.tensor(a, requires_grad=True) for a in (q, k, v))
ts = (tq @ tk.T / math.sqrt(K)).retain_grad()  # keep the gradients in between, too
tp = mt.ops.softmax(ts, mask=mask).retain_grad()
(tp @ tv).backward(g)
print("gradients kept for q, k, v, scores and weights")

# %% [markdown]
# ### Through the mix
#
# $y_i = \sum_j p_{ij} v_j$ multiplies a weight by a value, so each gets the gradient times the other one. A value was used
# by every query that looked at it, and adds up what they send. A weight was used once, and gets one number: how far its
# value points along the gradient.
#
# $$ (g_v)_j = \sum_i p_{ij}\,g_i \qquad\qquad (g_p)_{ij} = g_i \cdot v_j $$

# %%
j = words.index("cat")
g_v_cat = sum(p[i, j] * g[i] for i in range(T))
g_v, g_p = p.T @ g, g @ v.T
assert np.allclose(g_v[j], g_v_cat) and np.allclose(g_v, tv.grad) and np.allclose(g_p, tp.grad)
looking = [word for word, share in zip(words, p[:, j]) if share > 0]
print("cat hears from", looking, "→", g_v_cat.round(3))

# %% [markdown]
# ### Through the softmax
#
# Lesson 06: take away the mean of the row, weighted by the shares, then multiply by the share. Here that mean has a
# meaning. It is $\sum_j p_{ij}\,(g_i \cdot v_j) = g_i \cdot y_i$, so what is left compares each value with the mix itself:
#
# $$ (g_s)_{ij} = p_{ij}\,\Big((g_p)_{ij} - \sum_{j'} p_{ij'}\,(g_p)_{ij'}\Big) = p_{ij}\;g_i \cdot (v_j - y_i) $$

# %%
g_s = p * (g_p - (g_p * p).sum(axis=1, keepdims=True))
by_meaning = np.array([[p[i, j] * (g[i] @ (v[j] - y[i])) for j in range(S)] for i in range(T)])
assert np.allclose(g_s, by_meaning) and np.allclose(g_s, ts.grad)
assert np.allclose(g_s.sum(axis=1), 0) and (g_s[~mask] == 0).all()
g_s.round(3) + 0.0

# %% [markdown]
# Every row sums to 0, and masked scores get exactly 0. The row of *the* is all zeros: with one word to look at, its weight
# is 1 whatever the score.

# %%
figure, panels = plt.subplots(1, 3, num="backwards", figsize=(11, 3.8), layout="constrained")
shown = {"p: weights": p, "g_p = g·vᵀ": g_p, "g_s: gradient of the scores": g_s}
for axes, (name, numbers) in zip(panels, shown.items()):
    most = abs(numbers[mask]).max()
    axes.imshow(np.where(mask, numbers, np.nan), cmap="RdBu", vmin=-most, vmax=most)
    for row, column in np.argwhere(mask):
        colour = "white" if abs(numbers[row, column]) > 0.6 * most else "black"
        axes.text(column, row, f"{numbers[row, column]:.2f}", ha="center", va="center", c=colour)
    axes.set(title=name, xlabel="key", xticks=range(S), yticks=range(T))
    axes.set(xticklabels=words, yticklabels=words)
panels[0].set_ylabel("query")
plt.show()

# %% [markdown]
# What does such a gradient do? Say the output of *it* should be at a target. The gradient of half the squared distance is
# $g = y - \text{target}$, and training goes against it. The scores of values that lie on the target's side of the mix go
# up, the others go down.

# %%
i, target = words.index("it"), np.array([0.2, 1.4])
pull = target - y[i]  # −g
pushes = p[i] * ((v - y[i]) @ pull)  # −g_s: how each score is pushed
before = np.hypot(*pull)
after = np.hypot(*(target - mt.ops.softmax(scores[i] + 0.5 * pushes) @ v))
print(f"distance to the target: {before:.3f}, after half a step {after:.3f}")
assert after < before

# %%
figure, axes = plt.subplots(num="pull", figsize=(7, 4.4), layout="constrained")
axes.fill(*corners.T, fc="#f7f7f7", ec="#dddddd")
axes.plot(*target, "k*", ms=14, label="target")
axes.plot(*y[i], "D", color="#d95f02", label="output of it")
axes.quiver(*y[i], *pull, angles="xy", scale_units="xy", scale=1, color="#d95f02", width=0.006)
for word, value, push in zip(words, v, pushes):
    axes.plot(*value, "o", color="#2166ac" if push > 0 else "#b2182b")
    axes.text(*value + [0.1, 0.12], f"{word}: score {'up' if push > 0 else 'down'} ({push:+.2f})")
axes.set(xlabel="first number", ylabel="second number", aspect="equal")
axes.set(xlim=(-1.4, 4.6), ylim=(-2.1, 2.6))
axes.legend(frameon=False, loc="upper right")
plt.show()

# %% [markdown]
# ### Through the scores
#
# A score is a product of a query and a key, so again each gets the gradient times the other one. A query adds up over the
# keys it may see, and a key over the queries that may see it. The scale that was there on the way forwards is there on the
# way back:
#
# $$ (g_q)_i = \frac{1}{\sqrt K} \sum_j (g_s)_{ij}\,k_j \qquad\qquad (g_k)_j = \frac{1}{\sqrt K} \sum_i (g_s)_{ij}\,q_i $$

# %%
g_q, g_k = g_s @ k / math.sqrt(K), g_s.T @ q / math.sqrt(K)
assert np.allclose(g_q, tq.grad) and np.allclose(g_k, tk.grad)
tensors = [mt.tensor(a, requires_grad=True) for a in (q, k, v)]
mt.ops.scaled_dot_product_attention(*tensors, causal=True).backward(g)
for name, ours, tensor in zip("qkv", (g_q, g_k, g_v), tensors):
    assert np.allclose(ours, tensor.grad, rtol=1e-12)
    print(f"g_{name} is off by at most {abs(ours - tensor.grad.numpy()).max():.0e}")

# %% [markdown]
# And against differences of the forward pass, which know nothing of all this ([lesson 04](04_gradient_checking.ipynb)):

# %%
report = mt.gradcheck(
    lambda q, k, v: mt.ops.scaled_dot_product_attention(q, k, v, causal=True), q, k, v
)
print(f"{report.points} points, largest relative error {report.worst[0]:.0e}")

# %% [markdown]
# ## A row that may look nowhere
#
# It happens: a sentence in a batch is empty, and all of its keys are padding. Then all scores of a row are −∞, their sum of
# powers is 0, and softmax as written divides 0 by 0. One NaN in one row reaches every weight of the model in the next step.
# A large negative number instead of −∞ hides the problem: a row of equal scores is a row that looks **everywhere**.

# %%
nowhere = mask.copy()
nowhere[1] = False  # "cat" may look nowhere
with np.errstate(invalid="ignore"):
    e = np.exp(np.where(nowhere, scores, -np.inf))
    print("as written:    ", (e / e.sum(axis=1, keepdims=True))[1])
print("with −10⁹:     ", mt.ops.softmax(np.where(nowhere, scores, -1e9))[1])
print("in the library:", mt.ops.softmax(scores, mask=nowhere)[1])
assert (mt.ops.softmax(scores, mask=nowhere)[1] == 0).all()

# %% [markdown]
# Zeros are the honest answer: who sees nothing takes nothing home. In the formula it takes two guards, one for a maximum
# of −∞ and one for a sum of 0. The gradient of such a row is zero as well, and the others are not touched.

# %%
tensors = [mt.tensor(a, requires_grad=True) for a in (q, k, v)]
out = mt.ops.scaled_dot_product_attention(*tensors, mask=nowhere)
out.backward(g)
print("output of cat:", out.numpy()[1], "  gradient of its query:", tensors[0].grad.numpy()[1])
assert (out.numpy()[1] == 0).all() and (tensors[0].grad.numpy()[1] == 0).all()
assert all(np.isfinite(t.grad.numpy()).all() for t in tensors)

# %% [markdown]
# ## Step through it
#
# `mt.trace` records what we have done by hand: each op forwards and backwards, with its numbers. In a notebook the record
# is a page with buttons (the arrow keys work, too). Where only its name is shown, run the cell, or write the page to a file
# with `record.html("attention.html")`.

# %%
record = mt.trace(attention, q, k, v, mask)
record

# %% [markdown]
# Attention is due to Vaswani et al. 2017, [arXiv:1706.03762](https://arxiv.org/abs/1706.03762), in this form; section 3.2.1
# gives the reason for the scale.
#
# ## Exercises
#
# **08.1 Scores, and their scale** · Two heads at once, $D = 10$ wide together. Divide by the right root.


# %%
def scores(q, k):
    """Return the scaled scores; q: (2, 3, 5), k: (2, 7, 5) → (2, 3, 7)."""
    ...


mt.lessons.check("08.1", scores)

# %% [markdown]
# **08.2 The causal mask** · Some keys may have been there before the first query: the last query stands at the last key.


# %%
def causal_mask(queries, keys):
    """Return a boolean array (queries, keys), True = may look."""
    ...


mt.lessons.check("08.2", causal_mask)

# %% [markdown]
# **08.3 Weights under a mask** · One row may look nowhere, and gets zeros.


# %%
def weights(scores, mask):
    """Return p."""
    ...


mt.lessons.check("08.3", weights)

# %% [markdown]
# **08.4 Attention backwards** · From `q`, `k`, `v`, the weights `p` and the gradient `g` of the output.


# %%
def attention_vjp(q, k, v, p, g):
    """Return g_q, g_k, g_v."""
    ...


mt.lessons.check("08.4", attention_vjp)
