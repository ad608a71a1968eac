# %% [markdown]
# # 07 · Residuals and dropout: why depth trains
#
# **On its way down a stack of layers, the gradient is multiplied by one Jacobian after another. What is left of it after
# fifty layers? And why does everything change when a layer adds to its input, instead of replacing it?**
#
# A Transformer is deep: each of its layers has two or three branches, each around a **residual**. This lesson measures
# what reaches the bottom of a stack, layer by layer, with and without residuals, and where the norm of
# [lesson 06](06_softmax_and_layer_norm.ipynb) belongs. Then it adds what training needs beside: dropout, noise on the
# branches that does not move the mean. The real things are in [block.py](../minitransformer/nn/block.py) and
# [dropout.py](../minitransformer/ops/dropout.py).
#
# [← 06 · Softmax and LayerNorm](06_softmax_and_layer_norm.ipynb) · [08 · Attention →](08_attention.ipynb)

# %%
import matplotlib.pyplot as plt
import numpy as np

import minitransformer as mt
from minitransformer import nn

rng = np.random.default_rng(7)
print("minitransformer", mt.__version__)

# %% [markdown]
# ## A stack to look into
#
# Our layers have width 64, and there are 48 of them. A layer bends by ReLU and multiplies by a random matrix. The numbers
# of each matrix have the spread $\text{gain}/\sqrt{64}$; at first the gain is $\sqrt2$.

# %%
D, L = 64, 48
normal = rng.standard_normal((L, D, D)) / np.sqrt(D)  # gain 1
W = np.sqrt(2) * normal
x_in, g_out = rng.standard_normal((64, D)), rng.standard_normal((64, D))


def branch(x, w):
    return mt.ops.relu(x) @ w


branch(x_in, W[0]).shape

# %% [markdown]
# `walk` sends rows up through a layer for each matrix, sends a gradient down again, and keeps what it finds at every layer.
# Here they are 64 random rows, each with a random gradient.


# %%
def walk(layer, x=x_in, g=g_out, over=W):
    xs = [mt.tensor(x, requires_grad=True)]
    for w in over:
        xs.append(layer(xs[-1], w).retain_grad())
    xs[-1].backward(g)
    return [x.numpy() for x in xs], [x.grad.numpy() for x in xs]


signals, gradients = walk(branch)
print(f"{len(signals)} signals and {len(gradients)} gradients, each {signals[0].shape}")

# %% [markdown]
# What `walk` gets from the tape is a product of Jacobians. The Jacobian of layer $l$ for one row is the matrix, with zeros
# where ReLU is shut. Write $x_l$ for the signal behind layer $l$ and $g_l$ for its gradient:
#
# $$ g_{l-1} = J_l^{\top} g_l \qquad\text{so}\qquad g_0 = J_1^{\top} J_2^{\top} \cdots J_L^{\top}\, g_L $$

# %%
g = g_out[0]
for w, signal in zip(W[::-1], signals[-2::-1]):  # from the last layer to the first
    J = w.T * (signal[0] > 0)  # slope of output i along input j: row i, column j
    g = J.T @ g
assert np.allclose(g, gradients[0][0], rtol=1e-10)
print("first numbers of the gradient at the bottom:", g[:4].round(4))

# %% [markdown]
# ## Vanish or explode
#
# Now the size of both, layer by layer, for three gains. (Size is the root mean square of all numbers.)


# %%
def size(x):
    return float(np.sqrt((x**2).mean()))


gains = {"gain 1": 1.0, "gain √2": np.sqrt(2), "gain 1.7": 1.7}
walked = {name: walk(branch, over=gain * normal) for name, gain in gains.items()}
for name, (up, down) in walked.items():
    print(f"{name:8} signal at the top {size(up[-1]):.1e}, gradient below {size(down[0]):.1e}")


# %%
def draw_walks(name, walks, ylim=None):
    figure, (left, right) = plt.subplots(
        1, 2, num=name, figsize=(9, 3.6), sharey=True, layout="constrained"
    )
    for label, (up, down) in walks.items():
        left.semilogy([size(x) for x in up], label=label)
        right.semilogy([size(g) for g in down], label=label)
    left.set(title="signal, on its way up →", xlabel="layer", ylabel="size", ylim=ylim)
    right.set(title="← gradient, on its way down", xlabel="layer")
    left.grid(color="#e3e3e3"), right.grid(color="#e3e3e3"), left.legend(frameon=False)
    plt.show()


draw_walks("vanish-explode", walked)

# %% [markdown]
# Straight lines on a logarithmic axis: each layer multiplies by the same factor. ReLU shuts about half of the inputs, which
# leaves $\tfrac12$ of the mean square, and the matrix multiplies the mean square by $\text{gain}^2$. So the factor is
# $\text{gain}/\sqrt2$, up and down alike, and $L$ layers have it $L$ times:
#
# $$ \frac{\text{size}(g_0)}{\text{size}(g_L)} \approx \Big(\frac{\text{gain}}{\sqrt 2}\Big)^{L} $$

# %%
for name, (_, down) in walked.items():
    a_layer = (size(down[0]) / size(down[-1])) ** (1 / L)
    expected = gains[name] / np.sqrt(2)
    print(f"{name:9} each layer multiplies by {a_layer:.3f}, expected {expected:.3f}")
    assert abs(a_layer - expected) < 0.03

# %% [markdown]
# With gain $\sqrt2$ both keep their size. That is the initialisation of He et al. 2015
# ([arXiv:1502.01852](https://arxiv.org/abs/1502.01852)), which [lesson 05](05_linear_gelu_initialisation.ipynb) introduces.
# Is the problem solved, then?
#
# ## The right size is not enough
#
# Look at what the signals say, not only at how loud they are. We sent up 64 different rows, at right angles to each other
# on average. How alike are they on their way? The **cosine** of two rows is 0 at a right angle and 1 when both point the
# same way.


# %%
def alike(rows):
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    cosines = unit @ unit.T
    return cosines[np.triu_indices(len(rows), 1)].mean()


up, down = walked["gain √2"]
for i in (0, 1, 6, 12, 24, 48):
    print(f"behind layer {i:2}: mean cosine {alike(up[i]):.3f}")

# %% [markdown]
# At the top all rows say the same. The stack has kept the size and lost the differences. The gradient fares no better, and
# the Jacobian of the whole stack shows why. Its **singular values** are the factors by which it stretches 64 directions at
# right angles. To get the Jacobian in one walk, we send up 64 copies of one row and let gradient $i$ ask for output $i$
# alone.


# %%
def stretches(layer, depth):
    _, down = walk(layer, np.repeat(x_in[:1], D, axis=0), np.eye(D), W[:depth])
    return np.linalg.svd(down[0], compute_uv=False)


def draw_stretches(axes, layer, title):
    for depth, colour in zip((1, 4, 12, 48), ("#bdd7e7", "#6baed6", "#3182bd", "#08519c")):
        axes.semilogy(
            np.arange(1, D + 1), stretches(layer, depth), c=colour, label=f"depth {depth}"
        )
    axes.set(title=title, xlabel="direction, strongest first", ylim=(1e-8, 100))
    axes.grid(color="#e3e3e3")


few = stretches(branch, 48)
print(f"48 layers: strongest {few[0]:.2f}, tenth {few[9]:.1e}, thirtieth {few[29]:.1e}")

# %% [markdown]
# Almost nothing of a gradient gets through, except along a few directions. And half of the directions end at the first
# ReLU already.
#
# ## Add, do not replace
#
# A **residual** layer keeps its input and adds what its branch $f$ makes of it: $y = x + f(x)$ (He et al. 2015,
# [arXiv:1512.03385](https://arxiv.org/abs/1512.03385)). In the backward pass $x$ was used twice, so two gradients add up.
# One of them is $g$ itself:
#
# $$ y = x + f(x) \qquad\Rightarrow\qquad g_x = g + J_f^{\top} g $$

# %%
x = mt.tensor(x_in, requires_grad=True)
(x + branch(x, W[0])).backward(g_out)
alone = mt.tensor(x_in, requires_grad=True)
branch(alone, W[0]).backward(g_out)
assert np.allclose(x.grad, g_out + alone.grad.numpy(), rtol=1e-14)
print(f"through the branch {size(alone.grad.numpy()):.3f}, straight {size(g_out):.3f}")

# %% [markdown]
# The Jacobian of the layer is $I + J_f$. Whatever the branch does, even if it gives nothing at all, $I$ lets everything
# through. Multiply several of them out, and you find a sum over **paths**: at each layer a path goes straight or through
# the branch. For three layers there are eight:
#
# $$ (I + J_3)(I + J_2)(I + J_1) = I + J_1 + J_2 + J_3 + J_2 J_1 + J_3 J_1 + J_3 J_2 + J_3 J_2 J_1 $$

# %%
eye = np.eye(D)
J1, J2, J3 = (0.1 * rng.standard_normal((D, D)) for _ in range(3))
product = (eye + J3) @ (eye + J2) @ (eye + J1)
paths = [eye, J1, J2, J3, J2 @ J1, J3 @ J1, J3 @ J2, J3 @ J2 @ J1]
assert np.allclose(product, sum(paths), rtol=0, atol=1e-12)
print(f"{len(paths)} paths through 3 layers, {2**L:,} through {L}")

# %% [markdown]
# The one path with $L$ branches is the plain stack. All the others are shorter, and the shortest has none.
#
# ## The sum grows: where to put the norm
#
# There is a new problem. Each layer adds something to the sum, so it grows. If the branch of a larger sum is larger, too,
# it grows exponentially. So a norm is needed, and there are two places for it:
#
# * **post-norm**, as in the paper of 2017: $x \leftarrow \operatorname{norm}(x + f(x))$. The sum is normalised after each
#   addition.
# * **pre-norm**, as in most models since: $x \leftarrow x + f(\operatorname{norm}(x))$. Only the branch sees the normalised
#   signal; the sum itself is never touched.


# %%
def norm(x):
    return mt.ops.layer_norm(x, np.ones(D), np.zeros(D))


layers = {
    "plain": branch,
    "residual, no norm": lambda x, w: x + branch(x, w),
    "post-norm": lambda x, w: norm(x + branch(x, w)),
    "pre-norm": lambda x, w: x + branch(norm(x), w),
}
walked = {name: walk(layer) for name, layer in layers.items()}
draw_walks("norms", walked)

# %% [markdown]
# Without a norm both explode. With a norm in either place the sizes are tame. In pre-norm every branch gets an input of
# size 1 and adds about the same, in a random direction. Squares of sizes add up, so behind layer $l$:
#
# $$ \text{size}(x_l) \approx \sqrt{1 + l} $$

# %%
pre = [size(x) for x in walked["pre-norm"][0]]
for i in (0, 3, 15, 48):
    print(f"behind layer {i:2}: {pre[i]:.2f}, expected {np.sqrt(1 + i):.2f}")
    assert abs(pre[i] / np.sqrt(1 + i) - 1) < 0.25
ratio = size(walked["pre-norm"][1][0]) / size(g_out)
print(f"gradient at the bottom / at the top: {ratio:.1f}")

# %% [markdown]
# And the content? Here the four part.

# %%
figure, axes = plt.subplots(num="alike", figsize=(7.5, 3.6), layout="constrained")
for name, (up, _) in walked.items():
    axes.plot([alike(x) for x in up], label=name)
axes.set(xlabel="layer", ylabel="how alike the rows are (cosine)", ylim=(-0.05, 1.05))
axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1)), axes.grid(color="#e3e3e3")
assert alike(walked["plain"][0][-1]) > 0.95 > 0.7 > alike(walked["pre-norm"][0][-1])
plt.show()

# %%
figure, panels = plt.subplots(
    1, 3, num="stretches", figsize=(11, 3.8), sharey=True, layout="constrained"
)
for axes, name in zip(panels, ("plain", "post-norm", "pre-norm")):
    draw_stretches(axes, layers[name], name)
panels[0].set_ylabel("stretched by the factor")
panels[2].legend(frameon=False, loc="lower left")
plt.show()

# %% [markdown]
# This is the answer to the question. In a plain stack the curves fall off a cliff that gets steeper with every layer: most
# directions are lost, in both directions of travel. In pre-norm the curves of all depths lie close together, and hardly a
# direction is lost. Post-norm stands in between: it normalises the straight way, too, and each norm scales down what
# came from below, so that after many layers the straight way is no longer open.
#
# ## The same in the library
#
# `nn.EncoderLayer` puts each of its two branches, attention and feed-forward, into such a residual. Here are 24 of them,
# freshly initialised, with the gradient on its way down.

# %%
texts, g_texts = (rng.standard_normal((4, 16, D)).astype("float32") for _ in range(2))
walked = {}
for kind in ("post", "pre"):
    mt.manual_seed(7)
    stack = [nn.EncoderLayer(D, heads=4, d_ff=4 * D, norm=kind) for _ in range(24)]
    walked[f"{kind}-norm"] = walk(lambda x, layer: layer(x), texts, g_texts, over=stack)
draw_walks("library", walked, ylim=(0.1, 10))

# %% [markdown]
# In post-norm the topmost layers get a gradient several times as large as those in the middle. Xiong et al. 2020
# ([arXiv:2002.04745](https://arxiv.org/abs/2002.04745)) find the largest gradients of post-norm near the output, too, and
# give that as the reason why it needs a slow start, a warm-up. In pre-norm all but the lowest layers get nearly the same.
#
# ## Does it train?
#
# A task that a straight line cannot solve: do the first two of 32 numbers have the same sign? We train stacks of 4, 24 and
# 100 layers. All begin with the good gain $\sqrt2$, and all get the same steps of the same optimizer.

# %%
kinds = {
    "plain": lambda x, layer, norm: mt.ops.relu(layer(x)),
    "post-norm": lambda x, layer, norm: norm(x + mt.ops.relu(layer(x))),
    "pre-norm": lambda x, layer, norm: x + mt.ops.relu(layer(norm(x))),
}
inputs = rng.standard_normal((128, 32)).astype("float32")
same_sign = (inputs[:, 0] * inputs[:, 1] > 0).astype(int)
print(f"{same_sign.sum()} of {len(same_sign)} rows have the same sign")


# %%
class Stack(nn.Module):
    def __init__(self, depth, kind):
        self.kind = kind
        self.layers = nn.ModuleList([nn.Linear(32, 32) for _ in range(depth)])
        self.norms = nn.ModuleList([nn.LayerNorm(32) for _ in range(depth)])
        self.out = nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 2))

    def forward(self, x):
        for layer, norm in zip(self.layers, self.norms):
            x = kinds[self.kind](x, layer, norm)
        return self.out(x)


Stack(4, "plain")(mt.tensor(inputs)).shape


# %%
def make(depth, kind):
    mt.manual_seed(7)
    model = Stack(depth, kind)
    for layer in model.layers:
        layer.weight.data *= np.float32(np.sqrt(2))  # Linear begins with gain 1
    return model


print(f"spread of the weights · √32: {size(make(24, 'plain').layers[0].weight.data) * 32**0.5:.2f}")


# %%
def train(model, steps=100):
    optimizer, losses = mt.optim.Adam(model.parameters(), lr=1e-3), []
    for _ in range(steps):
        loss = mt.ops.cross_entropy(model(mt.tensor(inputs)), same_sign)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


print(f"plain, 4 layers: loss {train(make(4, 'plain'))[-1]:.3f} nats")

# %%
depths = (4, 24, 100)
curves = {(kind, depth): train(make(depth, kind)) for kind in kinds for depth in depths}
for depth in depths:
    last = {kind: round(curves[kind, depth][-1], 3) for kind in kinds}
    print(f"{depth:3} layers, loss after 100 steps: {last}")
assert curves["pre-norm", 100][-1] < 0.01 < 0.05 < curves["plain", 100][-1]

# %%
figure, panels = plt.subplots(
    1, 3, num="training", figsize=(11, 3.6), layout="constrained", sharey=True
)
for axes, depth in zip(panels, depths):
    for kind in kinds:
        axes.semilogy(curves[kind, depth], label=kind)
    axes.set(title=f"{depth} layers", xlabel="step"), axes.grid(color="#e3e3e3")
panels[0].set_ylabel("loss (nats)")
panels[0].legend(frameon=False, loc="lower left")
plt.show()

# %% [markdown]
# With a good beginning, a plain stack of 24 layers still learns: initialisation carries that far. With 100 layers it
# learns by fits and starts, and post-norm without a warm-up not at all. In pre-norm depth does no harm: the deepest stack
# learns fastest. The seed in `make` changes little of that: with seeds 0 to 5, the plain stack of 100 layers ended between
# 0.37 and 0.75, post-norm between 0.60 and 0.66, and pre-norm at 0.0004 or 0.0005.
#
# ## Dropout: noise on the branches
#
# A large model can learn its examples by heart. **Dropout** (Srivastava et al. 2014, Journal of Machine Learning Research
# 15) makes that harder. In training, each number is set to 0 with chance $p$, anew at every step, so that no unit can rely
# on one other being there. What is kept is multiplied by $\frac1{1-p}$. With a random $m_i$ that is 0 with chance $p$, else
# 1:
#
# $$ y_i = \frac{m_i}{1-p}\,x_i \qquad\Rightarrow\qquad \operatorname{E}[y_i] = (1-p)\,\frac{x_i}{1-p} + p \cdot 0 = x_i $$

# %%
p, row = 0.25, np.array([3.0, -1.0, 0.5, 2.0])
mt.manual_seed(7)
draws = mt.ops.dropout(mt.tensor(np.tile(row, (100_000, 1))), p).numpy()
print("four draws:", *draws[:4].round(3), sep="\n")
print("mean of all:", draws.mean(axis=0).round(2))
assert np.allclose(draws.mean(axis=0), row, atol=0.03)
assert set(np.unique(draws / row)) <= {0.0, 1 / (1 - p)}

# %% [markdown]
# ## Why the scale
#
# The next layer sees a sum, $\sum_i w_i\,y_i$. Without the scale its mean in training is $1-p$ times the sum that it gets
# later, in use, when nothing is dropped: the layer is trained for one loudness and used with another. With the scale the
# mean agrees, and in use there is nothing to do at all.

# %%
n = 64
w, x = rng.standard_normal((2, n)) + 1
in_use = w @ x
scaled = mt.ops.dropout(mt.tensor(np.tile(x, (20_000, 1))), p).numpy() @ w
unscaled = scaled * (1 - p)
print(f"in use {in_use:.2f}; mean in training: {scaled.mean():.2f} with the scale, ", end="")
print(f"{unscaled.mean():.2f} without")
assert abs(scaled.mean() / in_use - 1) < 0.01 and abs(unscaled.mean() / in_use - (1 - p)) < 0.01

# %%
figure, axes = plt.subplots(num="scale", figsize=(7.5, 3.4), layout="constrained")
bins = np.linspace(0, 1.6 * in_use, 60)
axes.hist(
    unscaled, bins, histtype="step", lw=2, color="#d95f02", label="training, without the scale"
)
axes.hist(scaled, bins, histtype="step", lw=2, color="#08519c", label="training, with 1/(1 − p)")
axes.axvline(unscaled.mean(), ls=":", color="#d95f02")
axes.axvline(scaled.mean(), ls=":", color="#08519c")
axes.axvline(in_use, color="black", label="in use: nothing dropped")
axes.set(xlabel="the sum that the next layer sees", ylabel="how often in 20,000 draws")
axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
plt.show()

# %% [markdown]
# ## Not to rely on one
#
# The mean stays, but the sum now has a spread. Each term is 0 or $\frac{w_i x_i}{1-p}$, and has the variance
# $\frac{p}{1-p} (w_i x_i)^2$. The terms are dropped independently, so variances add up:
#
# $$ \operatorname{Var}\Big[\sum_i w_i\,y_i\Big] = \frac{p}{1-p} \sum_i (w_i x_i)^2 $$

# %%
expected = p / (1 - p) * ((w * x) ** 2).sum()
print(f"variance of the draws {scaled.var():.2f}, by the formula {expected:.2f}")
assert abs(scaled.var() / expected - 1) < 0.05

# %% [markdown]
# Squares punish what is large. Let $n$ terms share a sum of 1 evenly: the variance is $\frac{p}{1-p}\cdot\frac1n$. Whoever
# relies on a single term gets all of the noise, whoever spreads out gets little. That is the pressure that dropout puts on
# the weights.

# %%
counts = 2 ** np.arange(9)
measured = []
for n in counts:
    even = mt.tensor(np.full((20_000, n), 1 / n))
    measured.append(mt.ops.dropout(even, p).numpy().sum(axis=1).std())
by_formula = np.sqrt(p / (1 - p) / counts)
assert np.allclose(measured, by_formula, rtol=0.05)
print("measured / by the formula:", np.divide(measured, by_formula).round(2))

# %%
figure, axes = plt.subplots(num="spread-out", figsize=(7, 3.4), layout="constrained")
axes.loglog(counts, by_formula, label="by the formula")
axes.loglog(counts, measured, "o", label="20,000 draws")
axes.set(xlabel="terms that share a sum of 1", ylabel="spread of the sum", ylim=(0.01, 1))
axes.set(xticks=counts, xticklabels=counts), axes.minorticks_off()
axes.legend(frameon=False), axes.grid(color="#e3e3e3")
plt.show()

# %% [markdown]
# ## On the way back: the same factors
#
# Dropout multiplies by factors, so its vjp multiplies by the **same** factors: what was dropped has no gradient. And where
# does it stand in a layer? On the branch, before the sum. The straight way is never cut, even if nine tenths of the branch
# are dropped:
#
# $$ y = x + \frac{m}{1-p} \odot f \qquad\Rightarrow\qquad g_x = g, \qquad g_f = \frac{m}{1-p} \odot g $$

# %%
x, f = (mt.tensor(rng.standard_normal((3, 5)), requires_grad=True) for _ in range(2))
g = rng.standard_normal((3, 5))
y = mt.ops.dropout_add(x, f, p=0.9)
factors = (y.numpy() - x.numpy()) / f.numpy()
y.backward(g)
assert np.array_equal(x.grad, g) and np.allclose(f.grad, factors * g)
print("factors on the branch:", factors.round(3) + 0.0, sep="\n")

# %% [markdown]
# ## Off in use
#
# A module knows whether it is in training. `eval()` switches dropout off, in the module and in all below it; then it costs
# nothing, and the same input gives the same output. Forgetting `eval()` is a usual mistake: results are noisy, and a little
# worse. In training, `mt.manual_seed` makes the draws repeatable.

# %%
drop, x = nn.Dropout(0.5), mt.tensor(np.ones((1, 8)))
for seed in (1, 1, 2):
    mt.manual_seed(seed)
    print(f"training, seed {seed}:", drop(x).numpy()[0])
drop.eval()
print("in use:          ", drop(x).numpy()[0])
assert drop(x) is x

# %% [markdown]
# ## Exercises
#
# **07.1 The vjp of a residual** · `y = x + relu(x) @ w`. How often is `x` used?


# %%
def residual_vjp(x, w, g):
    """Return g_x, g_w."""
    ...


mt.lessons.check("07.1", residual_vjp)

# %% [markdown]
# **07.2 The gradient on its way down** · `jacobians[l]` is the Jacobian of the branch of layer `l`, and `g` the gradient of
# the output of the last layer. Return an array with the gradient in front of each layer, and `g` as its last row.


# %%
def gradients_down(jacobians, g):
    """Return the gradients, of shape (L + 1, D)."""
    ...


mt.lessons.check("07.2", gradients_down)

# %% [markdown]
# **07.3 Pre-norm and post-norm** · `branch` and `norm` are functions, and `kind` is `"pre"` or `"post"`. Return the output
# of the layer.


# %%
def residual(x, branch, norm, kind):
    """Return y."""
    ...


mt.lessons.check("07.3", residual)

# %% [markdown]
# **07.4 Dropout, there and back** · `kept` says which elements stay. Return `y` and a function `vjp`, where `vjp(g)` returns
# `g_x`, for training and for use.


# %%
def dropout(x, kept, p, training):
    """Return y, vjp."""
    ...


mt.lessons.check("07.4", dropout)
