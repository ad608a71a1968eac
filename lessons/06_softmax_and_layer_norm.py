# %% [markdown]
# # 06 · Softmax and LayerNorm: rows that forget
#
# **Scores can be any numbers, and signals can have any size. How do we turn a row of scores into shares that sum to 1,
# and a row of signals into one of a fixed size, without an overflow? And what does the gradient lose on the way back?**
#
# Both steps *normalise* a row: they forget something about it on purpose. Softmax forgets where the row lies, LayerNorm
# also how large it is. What a step has forgotten cannot come back in its gradient, and that one thought explains both
# backward passes. The real things are in [softmax.py](../minitransformer/ops/softmax.py) and
# [norm.py](../minitransformer/ops/norm.py).
#
# [← 05 · Linear layers, GELU, initialisation](05_linear_gelu_initialisation.ipynb) ·
# [07 · Residuals and dropout →](07_residuals_and_dropout.ipynb)

# %%
import matplotlib.pyplot as plt
import numpy as np

import minitransformer as mt

mt.use_kernels(False)  # the plain book of ops, whose lines this lesson re-derives
rng = np.random.default_rng(6)
print("minitransformer", mt.__version__)

# %% [markdown]
# ## From scores to shares
#
# A model gives a score to each of four words. We want shares: positive, and with the sum 1. Taking $e$ to the power of
# each score makes all of them positive, and dividing by their sum makes the sum 1. That is **softmax**:
#
# $$ y_i = \frac{e^{x_i}}{\sum_j e^{x_j}} $$


# %%
def softmax_as_written(x):
    e = np.exp(x)
    return e / e.sum(axis=-1, keepdims=True)


words = ["cat", "dog", "tree", "the"]
scores = np.array([2.0, 1.0, -1.0, 0.5])
shares = softmax_as_written(scores)
assert np.allclose(shares, mt.ops.softmax(scores)) and np.isclose(shares.sum(), 1)
print(dict(zip(words, shares.round(3).tolist())))

# %% [markdown]
# A share says nothing by itself. The **ratio** of two shares does: it is $e$ to the power of the difference of the
# scores. *cat* scores 1 more than *dog*, so its share is $e \approx 2.718$ times as large.
#
# ## What softmax forgets: the height of the row
#
# Only differences count. Add one number $c$ to all scores, and each $e^{x_i}$ is multiplied by $e^c$, above and below
# the fraction line:
#
# $$ \frac{e^{x_i + c}}{\sum_j e^{x_j + c}} = \frac{e^{c}\,e^{x_i}}{e^{c} \sum_j e^{x_j}} = \frac{e^{x_i}}{\sum_j e^{x_j}} $$

# %%
for c in (-3.0, 0.0, 5.0):
    assert np.allclose(softmax_as_written(scores + c), shares, rtol=1e-14)
    print(f"scores {scores + c} → shares {softmax_as_written(scores + c).round(3)}")

# %% [markdown]
# ## Overflow
#
# On paper that holds for every $c$. In a computer $e^x$ has an end: float32 knows no number above $3.4 \cdot 10^{38}$,
# which is about $e^{88.7}$. Beyond it there is only infinity, and infinity divided by infinity is not a number, NaN.

# %%
high = np.float32([98, 97, 95, 96.5])
with np.errstate(over="ignore", invalid="ignore"):
    print("e to the power of it:", np.exp(high))
    print("softmax as written:  ", softmax_as_written(high))
print("shifted by 98:       ", softmax_as_written(high - 98).round(3))

# %% [markdown]
# So the library uses the freedom that it has, and shifts each row by its **own maximum**. Then the largest power is
# $e^0 = 1$: nothing can overflow, and the sum is at least 1, so nothing is divided by zero. Small powers may be rounded
# down to 0, but next to a sum of at least 1 they would not have been seen anyway.
#
# The picture shows the first share of the row $(h, h - 1)$, which should be the same at every height $h$, with and
# without the shift.

# %%
heights = np.linspace(-150, 150, 301, dtype="float32")
rows = np.stack([heights, heights - 1], axis=1)
with np.errstate(all="ignore"):
    as_written = softmax_as_written(rows)[:, 0]
shifted = mt.ops.softmax(rows)[:, 0]
assert np.isnan(as_written[abs(heights) > 104]).all() and np.ptp(shifted) == 0
off = heights[abs(as_written - shifted) > 0.01]
print("finite but wrong at the heights", off)

# %%
figure, axes = plt.subplots(num="overflow", figsize=(7, 3.2), layout="constrained")
axes.plot(heights, shifted, lw=7, color="#bdd7e7", label="shifted by the maximum")
axes.plot(heights, as_written, lw=2, color="#08519c", label="as written (no line: NaN)")
axes.set(xlabel="height h of the row, in float32", ylabel="share of the first", ylim=(0.4, 1.1))
axes.legend(frameon=False, loc="lower center", ncols=2)
plt.show()

# %% [markdown]
# The row that lies too low fails as well: all its powers are 0, and 0 divided by 0 is NaN, too. Between the two ends
# there are heights where the result is finite and already wrong, because powers so small have few digits left.
#
# ### Logarithms of shares
#
# A loss needs $\ln y_i$. Where a share was rounded to 0, its logarithm is −∞, and so is the loss. `log_softmax`
# never leaves the logarithms:
#
# $$ \ln y_i = x_i - m - \ln \sum_j e^{x_j - m}, \qquad m = \max_j x_j $$

# %%
far = np.float32([0, -50, -200])
shift = far - far.max()
by_hand = shift - np.log(np.exp(shift).sum())
with np.errstate(divide="ignore"):
    print("log of softmax:", np.log(mt.ops.softmax(far)))
print("log_softmax:   ", mt.ops.log_softmax(far))
assert np.array_equal(by_hand, mt.ops.log_softmax(far)) and np.isfinite(by_hand).all()

# %% [markdown]
# ## Temperature
#
# A shift changes nothing. A factor does. Divide the scores by a **temperature** $\tau$ first: when it is cold, the
# largest takes all; when it is hot, all shares become equal. “Soft max” is meant literally, with $\tau$ for how soft.

# %%
temperatures = [0.2, 1.0, 5.0]
figure, panels = plt.subplots(1, 3, num="temperature", figsize=(9, 3), sharey=True)
for axes, tau in zip(panels, temperatures):
    bars = axes.bar(words, mt.ops.softmax(scores / tau), color="#08519c")
    axes.bar_label(bars, fmt="%.2f", padding=2)
    axes.set(title=f"temperature {tau}", ylim=(0, 1.15))
panels[0].set_ylabel("share")
plt.show()

# %%
for tau in (0.01, 1000.0):
    print(f"temperature {tau:>7}: {mt.ops.softmax(scores / tau).round(3)}")
assert np.allclose(mt.ops.softmax(scores / 0.01), scores == scores.max())
assert np.allclose(mt.ops.softmax(scores / 1000), 1 / 4, atol=1e-3)

# %% [markdown]
# In attention the temperature is fixed: scores are divided by $\sqrt K$, and
# [lesson 08](08_attention.ipynb) shows why. When a language model writes, people choose it.
#
# ## The Jacobian of softmax
#
# How does share $i$ change with score $j$? Let $x_j$ grow. The numerator of $y_i$ grows only if $i = j$, at the rate
# $y_i$. The denominator grows in any case, and takes $y_i y_j$ away:
#
# $$ J_{ij} = \frac{\partial y_i}{\partial x_j} = y_i\,(\delta_{ij} - y_j), \qquad \delta_{ij} = 1 \text{ if } i = j, \text{ else } 0 $$


# %%
def jacobian(x):
    y = mt.ops.softmax(x)
    return y[:, None] * (np.eye(len(x)) - y)


def by_differences(f, x, h=1e-5):
    return np.stack([(f(x + h * e) - f(x - h * e)) / (2 * h) for e in np.eye(len(x))], axis=1)


assert np.allclose(jacobian(scores), by_differences(mt.ops.softmax, scores), rtol=0, atol=1e-10)
assert np.allclose(jacobian(scores).sum(axis=0), 0) and np.allclose(jacobian(scores).sum(axis=1), 0)
jacobian(scores).round(3)

# %%
figure, panels = plt.subplots(1, 3, num="jacobian", figsize=(10, 3.3), layout="constrained")
for axes, tau in zip(panels, temperatures):
    J = jacobian(scores / tau)
    axes.imshow(J, cmap="RdBu", vmin=-0.25, vmax=0.25)
    for (i, j), slope in np.ndenumerate(J):
        colour = "white" if abs(slope) > 0.15 else "black"
        axes.text(j, i, f"{slope:.2f}".replace("-0.00", "0.00"), ha="center", va="center", c=colour)
    axes.set(title=f"temperature {tau}", xticks=range(4), yticks=range(4))
    axes.set(xticklabels=words, yticklabels=words, xlabel="score j")
panels[0].set_ylabel("share i")
plt.show()

# %% [markdown]
# Three things to see. It is symmetric. When one share comes close to 1 (on the left), **all** slopes come close to
# 0: through a softmax that is sure of itself hardly any gradient passes. And each row sums to 0, because moving all scores together does nothing.
# Each column sums to 0, too, because the shares always sum to 1: what one gains, the others lose.
#
# ## Its backward pass, without the matrix
#
# Multiply out $g_x = J^{\top} g$, and the matrix is gone. One sum for each row is enough:
#
# $$ (g_x)_j = \sum_i g_i\,y_i\,(\delta_{ij} - y_j) = y_j \Big( g_j - \sum_i g_i\,y_i \Big) $$

# %%
g = rng.standard_normal(4)
y = mt.ops.softmax(scores)
with_matrix = jacobian(scores).T @ g
one_sum = y * (g - (g * y).sum())
leaf = mt.tensor(scores, requires_grad=True)
mt.ops.softmax(leaf).backward(g)
assert np.allclose(with_matrix, one_sum) and np.allclose(leaf.grad, one_sum, rtol=1e-14)
print("g_x =", one_sum.round(4), "  sum", abs(one_sum.sum()).round(12))

# %% [markdown]
# The sum in the bracket is the mean of $g$, weighted by the shares. A score gets a positive gradient if its share is worth
# more than that mean, and a negative one if it is worth less. The whole of $g_x$ sums to 0: softmax forgot the height of
# the row, so no gradient can ask to change it.
#
# This has a trap for whoever checks derivatives. With a $g$ of ones every share is worth the same, so the right answer is
# zero, and many wrong formulas give zero as well. That is why [gradient checks](04_gradient_checking.ipynb) use a
# random $g$.

# %%
ones = np.ones(4)
candidates = {
    "right": lambda g: y * (g - (g * y).sum()),
    "y forgotten": lambda g: g - (g * y).sum(),
}
for name, vjp in candidates.items():
    print(f"{name:12} g of ones: {abs(vjp(ones)).max():.1e}   random g: {vjp(g).round(3)}")
assert all(np.allclose(vjp(ones), 0) for vjp in candidates.values())
assert not np.allclose(candidates["right"](g), candidates["y forgotten"](g))

# %% [markdown]
# ## LayerNorm: every row gets the same size
#
# Inside a model, rows of signals drift: some grow large, some lie far from 0. LayerNorm takes from each row its mean
# $\mu$, and divides by its standard deviation $\sigma$. Then two learned vectors, weight $w$ and bias $b$, give each of
# the $D$ features a scale and a place again:
#
# $$ \hat x = \frac{x - \mu}{\sqrt{\sigma^2 + \varepsilon}}, \qquad y = w \odot \hat x + b,
#    \qquad \mu = \frac1D \sum_i x_i, \quad \sigma^2 = \frac1D \sum_i (x_i - \mu)^2 $$


# %%
def layer_norm(x, w, b, eps=1e-5):
    mean = x.sum(axis=-1, keepdims=True) / x.shape[-1]
    variance = ((x - mean) ** 2).sum(axis=-1, keepdims=True) / x.shape[-1]
    return w * (x - mean) / np.sqrt(variance + eps) + b


D = 8
row, w, b = rng.standard_normal(D), rng.standard_normal(D), rng.standard_normal(D)
assert np.allclose(layer_norm(row, w, b), mt.ops.layer_norm(row, w, b), rtol=1e-14)
mt.ops.layer_norm(row, w, b).round(3)

# %% [markdown]
# Each row is treated alone. No row sees another, and nothing depends on the batch, so training and use are the same.
#
# ## What LayerNorm forgets: height and size
#
# Here is one row three times: as it is, lifted, and stretched. LayerNorm makes the same of all three.

# %%
one, none = np.ones(D), np.zeros(D)
versions = {"x": row, "x + 4": row + 4, "3·x": 3 * row}
figure, (left, right) = plt.subplots(1, 2, num="forgets", figsize=(9, 3.4), layout="constrained")
for (name, version), width in zip(versions.items(), (7, 4, 1.5)):
    left.plot(version, "o-", lw=width, label=name)
    right.plot(mt.ops.layer_norm(version, one, none), "o-", lw=width, label=name)
left.set(title="before", xlabel="feature", ylabel="value")
right.set(title="after LayerNorm (weight 1, bias 0)", xlabel="feature", ylim=(-2.6, 2.6))
left.legend(frameon=False), right.legend(frameon=False, ncols=3)
plt.show()

# %% [markdown]
# Almost the same, to be exact: $\varepsilon$ remembers a little of the size. It is there for rows whose variance is 0, which
# would otherwise be 0 divided by 0.

# %%
after = [mt.ops.layer_norm(version, one, none) for version in versions.values()]
print(f"lifted:    differs by at most {abs(after[1] - after[0]).max():.0e}")
print(f"stretched: differs by at most {abs(after[2] - after[0]).max():.0e}")
print("constant: ", mt.ops.layer_norm(np.full(D, 7.0), one, none))
assert np.allclose(after[1], after[0], atol=1e-14) and np.allclose(after[2], after[0], atol=1e-4)

# %% [markdown]
# ## Divide by D, not by D − 1
#
# Statistics books divide by $D - 1$ when they estimate the variance of a population from a sample. LayerNorm estimates
# nothing. The row *is* the whole population, and its mean square shall be 1, so it divides by $D$: the **biased**
# variance. Here are both on one row:

# %%
biased = (row - row.mean()) / row.std()  # NumPy divides by D
unbiased = (row - row.mean()) / row.std(ddof=1)  # divides by D − 1
print(f"mean square: biased {(biased**2).mean():.4f}, unbiased {(unbiased**2).mean():.4f}")
assert np.isclose((biased**2).mean(), 1) and np.isclose((unbiased**2).mean(), 1 - 1 / D)
assert np.allclose(mt.ops.layer_norm(row, one, none, eps=0.0), biased)

# %%
widths = np.array([2, 4, 8, 16, 32, 64, 128, 256, 512, 1024])
figure, axes = plt.subplots(num="biased", figsize=(7, 3.2), layout="constrained")
axes.semilogx(widths, np.ones(10), label="divide by D", base=2)
axes.semilogx(widths, np.sqrt(1 - 1 / widths), "o-", label="divide by D − 1", base=2)
axes.set(xlabel="width D of the row", ylabel="size of x̂ (root mean square)")
axes.set(xticks=widths, xticklabels=widths, ylim=(0.65, 1.1))
axes.legend(frameon=False, loc="lower right")
plt.show()

# %% [markdown]
# At width 512 the difference is a tenth of a percent. It still counts when published weights are loaded: every layer is
# a little off, all of them in the same direction. And **no gradient check can find it**: a LayerNorm with $D - 1$ in both
# directions has a perfectly right derivative of the wrong function. Only a comparison with a known value finds it.
#
# ## Its backward pass: three terms
#
# Let $\hat g = g \odot w$ be the gradient that arrives at $\hat x$. An element $x_i$ reaches $\hat x$ in three ways:
# straight, through the mean, and through the standard deviation. Each way adds a term:
#
# $$ g_x = \frac{1}{\sqrt{\sigma^2 + \varepsilon}} \Big( \underbrace{\hat g}_{\text{straight}}
#    - \underbrace{\operatorname{mean}(\hat g)}_{\text{through } \mu}
#    - \underbrace{\hat x \cdot \operatorname{mean}(\hat g \odot \hat x)}_{\text{through } \sigma} \Big) $$
#
# We add one term after the other, and compare with differences of the forward pass, which know nothing of this formula.

# %%
g = rng.standard_normal(D)
truth = by_differences(lambda x: layer_norm(x, w, b), row).T @ g
inv_std = 1 / np.sqrt(row.var() + 1e-5)
x_hat, g_hat = (row - row.mean()) * inv_std, g * w
terms = [inv_std * g_hat, -inv_std * g_hat.mean(), -inv_std * x_hat * (g_hat * x_hat).mean()]
stages = {"straight": terms[0], "+ mean": terms[0] + terms[1], "+ deviation": sum(terms)}
for name, stage in stages.items():
    print(f"{name:12} largest error {abs(stage - truth).max():.1e}")
assert np.allclose(stages["+ deviation"], truth, rtol=0, atol=1e-8)

# %%
figure, axes = plt.subplots(num="three-terms", figsize=(9, 3.6), layout="constrained")
axes.bar(np.arange(D), truth, 0.85, color="#e3e3e3", label="differences of the forward pass")
for k, (name, stage) in enumerate(stages.items()):
    axes.bar(np.arange(D) + 0.25 * (k - 1), stage, 0.2, label=name)
axes.axhline(0, color="black", lw=0.8)
axes.set(xlabel="feature", ylabel="gradient of x")
axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
plt.show()

# %% [markdown]
# The green bars fill the grey ones. The library computes the same three terms, and keeps only $\hat x$, the inverse
# deviation and the parameters for it; $x$ itself is not needed any more.

# %%
x, weight, bias = (mt.tensor(a, requires_grad=True) for a in (row, w, b))
out = mt.ops.layer_norm(x, weight, bias)
print("kept for the way back:", out.node.vjp.__code__.co_freevars)
out.backward(g)
assert np.allclose(x.grad, sum(terms), rtol=1e-12)
assert np.allclose(weight.grad, g * x_hat) and np.allclose(bias.grad, g)

# %% [markdown]
# ## Why exactly these two terms are taken away
#
# With three features we can draw it. A row is a point in space. Taking the mean away puts it on the plane where the three
# numbers sum to 0. Dividing by $\sigma$ puts it on a circle of radius $\sqrt 3$ in that plane. That is all LayerNorm
# does (with weight 1 and bias 0). From the circle one can only move **along** the circle. So of a gradient $g$ the first
# term keeps all, the second takes away what points out of the plane, and the third what points along the radius.

# %%
plane = np.array([[1, -1, 0], [1, 1, -2]]) / np.sqrt([[2], [6]])  # two axes in the plane of sum 0
angles, sizes = np.arange(7) * 2 * np.pi / 7, np.array([3.0, 1.0, 2.6, 0.7, 2.4, 1.2, 2.8])
points = np.stack([np.cos(angles), np.sin(angles)], axis=1) * sizes[:, None] @ plane
points += rng.uniform(-3, 3, (7, 1))  # seven rows: different directions, sizes and heights
at = mt.tensor(points, requires_grad=True)
normed = mt.ops.layer_norm(at, np.ones(3), np.zeros(3))
g = rng.standard_normal((7, 3))
normed.backward(g)
g_x = at.grad.numpy() * points.std(axis=1, keepdims=True)  # without the factor 1/σ
assert np.allclose(g_x.sum(axis=1), 0)
print("out of the plane, along (1, 1, 1):", abs(g_x.sum(axis=1)).max().round(9))

# %%
before = (points - points.mean(axis=1, keepdims=True)) @ plane.T
hats, arriving, kept = (rows @ plane.T for rows in (normed.numpy(), g, g_x))
assert np.allclose((hats**2).sum(axis=1), 3, atol=1e-3)  # the radius is √3
assert np.allclose((kept * hats).sum(axis=1), 0, atol=1e-3)  # at right angles to it
turn = np.linspace(0, 2 * np.pi, 200)
circle = np.sqrt(3) * np.stack([np.cos(turn), np.sin(turn)])
how = dict(angles="xy", scale_units="xy", scale=1.3, width=0.006)
print("distances from the middle:", np.hypot(*hats.T).round(3))

# %%
figure, axes = plt.subplots(num="circle", figsize=(8, 5.2), layout="constrained")
axes.plot(*circle, color="#bbbbbb")
axes.plot(*np.stack([before, hats], axis=2).T.swapaxes(0, 1), ":", color="#777777")
axes.plot(*before.T, "o", color="#777777", label="x without its mean")
axes.plot(*hats.T, "o", color="#08519c", label="x̂, on the circle")
axes.quiver(*hats.T, *arriving.T, color="#d95f02", label="g, as it arrives", **how)
axes.quiver(*hats.T, *kept.T, color="#1a7f37", label="σ·g_x, along the circle", **how)
axes.set(xlabel="first axis of the plane", ylabel="second axis of the plane", aspect="equal")
axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
plt.show()

# %% [markdown]
# The green arrows touch the circle, wherever the orange ones point. In general, for weight 1 and $\varepsilon = 0$, the
# gradient of a row is at right angles to two directions, the one that lifts the row and the one that stretches it:
#
# $$ \sum_i (g_x)_i = 0, \qquad \sum_i (g_x)_i\,\hat x_i = 0 $$

# %%
x = mt.tensor(rng.standard_normal((100, 64)), requires_grad=True)
y = mt.ops.layer_norm(x, np.ones(64), np.zeros(64), eps=0.0)
y.backward(rng.standard_normal((100, 64)))
g_x = x.grad.numpy()
print(f"largest sum {abs(g_x.sum(axis=1)).max():.0e}", end=", ")
print(f"largest product with x̂ {abs((g_x * y.numpy()).sum(axis=1)).max():.0e}")
assert abs(g_x.sum(axis=1)).max() < 1e-12 and abs((g_x * y.numpy()).sum(axis=1)).max() < 1e-12

# %% [markdown]
# ## What both have in common
#
# | | forgets | takes from the gradient |
# |---|---|---|
# | softmax | the height of the row | the mean of $g$, weighted by the shares |
# | LayerNorm | height and size | what lifts the row, and what stretches it |
# | RMSNorm (`mt.ops.rms_norm`) | the size | what stretches it |
#
# Sources: Ba, Kiros & Hinton 2016, [arXiv:1607.06450](https://arxiv.org/abs/1607.06450) (LayerNorm); Zhang & Sennrich
# 2019, [arXiv:1910.07467](https://arxiv.org/abs/1910.07467) (RMSNorm).
#
# ## Exercises
#
# **06.1 A softmax that never overflows** · Some rows of `x` lie around 2000, some around −2000.


# %%
def softmax(x):
    """Return y: the softmax of each row of x."""
    ...


mt.lessons.check("06.1", softmax)

# %% [markdown]
# **06.2 The vjp of softmax** · `y` is the softmax of each row of some `x` that you do not get, and `g` the gradient of
# `y`. Return the gradient of `x`.


# %%
def softmax_vjp(y, g):
    """Return g_x."""
    ...


mt.lessons.check("06.2", softmax_vjp)

# %% [markdown]
# **06.3 LayerNorm forwards** · Take care where $\varepsilon$ stands, and what you divide by.


# %%
def layer_norm(x, weight, bias, eps):
    """Return y."""
    ...


mt.lessons.check("06.3", layer_norm)

# %% [markdown]
# **06.4 LayerNorm backwards** · The forward pass has kept `x_hat` and `inv_std`, $1/\sqrt{\sigma^2 + \varepsilon}$, one
# for each row. `weight` and `bias` were used in every row.


# %%
def layer_norm_vjp(x_hat, inv_std, weight, g):
    """Return g_x, g_weight, g_bias."""
    ...


mt.lessons.check("06.4", layer_norm_vjp)
