# %% [markdown]
# # 05 · Linear layers, GELU, initialisation
#
# **Put twenty linear layers on top of one another. Why is that no more than one layer, what has to stand between them,
# and how large must the first weights be so that a signal comes out at the other end?**
#
# The real things: [linear.py](../minitransformer/ops/linear.py),
# [activation.py](../minitransformer/ops/activation.py) and [init.py](../minitransformer/nn/init.py).
#
# [← 04 · Gradient checking](04_gradient_checking.ipynb)

# %%
import math

import matplotlib.pyplot as plt
import numpy as np

import minitransformer as mt

rng = np.random.default_rng(5)
mt.manual_seed(5)
print("minitransformer", mt.__version__)

# %% [markdown]
# ## A linear layer
#
# Each of its $F$ outputs is a weighted sum of the $D$ inputs, plus a number of its own. With a row of the matrix $W$ for
# each output:
#
# $$ y_f = \sum_{d} x_d\,W_{fd} + b_f \qquad\text{or}\qquad y = x\,W^{\top} + b $$
#
# The same $W$ and $b$ serve every row of the input, whatever axes stand in front.

# %%
layer = mt.nn.Linear(3, 2)
x = rng.standard_normal((4, 5, 3)).astype("float32")
y = layer(x)
W, b = layer.weight.numpy(), layer.bias.numpy()
assert np.allclose(y[1, 2, 0].item(), sum(x[1, 2, d] * W[0, d] for d in range(3)) + b[0])
assert np.allclose(y, x @ W.T + b, atol=1e-6)
print("x", x.shape, "  W", W.shape, "  b", b.shape, "  y", y.shape)

# %% [markdown]
# Its way back is made of what lessons 02 and 03 have found: transposed products, and sums over everything that shared a
# number. Write all rows of $x$ under one another, and all rows of $g$ as well:
#
# $$ g_x = g\,W \qquad g_W = g^{\top} x \qquad g_b = \sum_{\text{rows}} g $$

# %%
x_leaf = mt.tensor(x, requires_grad=True)
g = rng.standard_normal(y.shape).astype("float32")
layer(x_leaf).backward(g)
rows, g_rows = x.reshape(-1, 3), g.reshape(-1, 2)
assert np.allclose(x_leaf.grad, g @ W, atol=1e-6)
assert np.allclose(layer.weight.grad, g_rows.T @ rows, atol=1e-5)
assert np.allclose(layer.bias.grad, g_rows.sum(axis=0), atol=1e-5)
print("g_x", x_leaf.grad.shape, "  g_W", layer.weight.grad.shape, "  g_b", layer.bias.grad.shape)

# %% [markdown]
# ## Many of them are one
#
# Two linear layers in a row are one linear layer, whose matrix is the product of the two. So is any number of them:
#
# $$ (x\,W_1^{\top} + b_1)\,W_2^{\top} + b_2 \;=\; x\,(W_2 W_1)^{\top} + (b_1 W_2^{\top} + b_2) $$

# %%
W1, b1 = rng.standard_normal((7, 3)), rng.standard_normal(7)
W2, b2 = rng.standard_normal((2, 7)), rng.standard_normal(2)
points = rng.standard_normal((5, 3))
two = mt.ops.linear(mt.ops.linear(points, W1, b1), W2, b2)
one = mt.ops.linear(points, W2 @ W1, b1 @ W2.T + b2)
assert np.allclose(two, one)
print(two[0].round(4), one[0].round(4))

# %% [markdown]
# ## A bend in between
#
# So something must stand between them that is not linear. ReLU cuts at zero. GELU, which BERT and GPT-2 use, weighs $x$
# by the chance that a standard normal number lies below it:
#
# $$ \operatorname{gelu}(x) = x\,\Phi(x) = \frac{x}{2}\left(1 + \operatorname{erf}\frac{x}{\sqrt 2}\right) $$

# %%
x = np.linspace(-3, 3, 121)
Phi = np.array([(1 + math.erf(t / math.sqrt(2))) / 2 for t in x])
assert np.allclose(mt.ops.gelu(x), x * Phi, rtol=0, atol=1e-15)
share = (rng.standard_normal(100_000) < 1).mean()
print(f"Φ(1) = {Phi[80]:.4f}; of 100,000 normal numbers {share:.4f} lie below 1")

# %%
figure, (left, right) = plt.subplots(1, 2, num="bends", figsize=(9, 3.4), layout="constrained")
for name, bend in {"ReLU": mt.ops.relu, "GELU": mt.ops.gelu, "tanh": mt.ops.tanh}.items():
    left.plot(x, bend(x), label=name)
    right.plot(x, mt.grad(lambda t, bend=bend: bend(t).sum())(x).numpy())
left.set(xlabel="x", title="value", ylim=(-1.2, 3))
right.set(xlabel="x", title="slope")
left.legend(frameon=False)
plt.show()

# %% [markdown]
# GELU has no kink, lets a little of the negative side through, and its slope rises slightly above 1. tanh flattens
# to both sides: where it is flat, no gradient passes.
#
# GPT-2 computes GELU in another form, which avoids erf:
#
# $$ \frac{x}{2}\left(1 + \tanh\!\left(\sqrt{2/\pi}\,(x + 0.044715\,x^3)\right)\right) $$
#
# The two are close and not the same. A model has to be run with the form that it was trained with.

# %%
by_tanh = x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
assert np.allclose(by_tanh, mt.ops.gelu(x, approximate="tanh"))
apart = abs(by_tanh - mt.ops.gelu(x))
print(f"largest distance {apart.max():.1e}, at x = {x[apart.argmax()]:.2f}")
assert 4e-4 < apart.max() < 5e-4

# %% [markdown]
# ## What the bend buys
#
# Two layers, with 32 numbers between them, are to follow a sine. Without a bend they make a straight line, as promised.
# With GELU they follow.


# %%
def fit(bend, steps=300):
    mt.manual_seed(1)
    model = mt.nn.Sequential(mt.nn.Linear(1, 32), bend, mt.nn.Linear(32, 1))
    optimizer = mt.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(steps):
        loss = ((model(inputs) - wanted) ** 2).mean()
        model.zero_grad()
        loss.backward()
        optimizer.step()
    return model(inputs).numpy(), loss.item()


mt.nn.Sequential(mt.nn.Linear(1, 32), mt.nn.GELU(), mt.nn.Linear(32, 1))

# %%
inputs = np.linspace(-3, 3, 64, dtype="float32")[:, None]
wanted = np.sin(2 * inputs)
fits = {"no bend": fit(mt.nn.Sequential()), "GELU": fit(mt.nn.GELU())}
print({name: round(loss, 3) for name, (_, loss) in fits.items()})

# %%
figure, axes = plt.subplots(num="fit", figsize=(6, 3.2))
axes.plot(inputs, wanted, "k.", markersize=4, label="sin 2x")
for name, (outputs, _) in fits.items():
    axes.plot(inputs, outputs, label=name)
axes.set(xlabel="x", ylim=(-1.3, 1.9))
axes.legend(frameon=False, ncols=3, loc="upper left")
plt.show()

# %% [markdown]
# ## How large to begin
#
# A sum of many terms is larger than its terms. If the inputs are independent with mean 0, and the weights as well, the
# variances multiply, and those of the $D$ terms add up:
#
# $$ \operatorname{Var}(y) = D \cdot \operatorname{Var}(w) \cdot \operatorname{Var}(x) $$

# %%
D = 400
x, w = 1.5 * rng.standard_normal((2000, D)), 0.1 * rng.standard_normal((D, 300))
measured, promised = (x @ w).var(), D * 0.1**2 * 1.5**2
print(f"measured {measured:.3f}   by the formula {promised:.3f}")
assert abs(measured / promised - 1) < 0.02

# %% [markdown]
# So a layer keeps the size of its signals if $\operatorname{Var}(w) = 1/D$. With a spread that is off by a factor, the
# factor acts in every layer, and twenty layers raise it to the twentieth power. The same holds for gradients on their
# way back. Here are both in a stack of 20 layers of width 128, with tanh between them or nothing.


# %%
def through_stack(factor, bend, layers=20, width=128):
    states = [mt.tensor(rng.standard_normal((64, width)), requires_grad=True)]
    for _ in range(layers):
        weight = factor / math.sqrt(width) * rng.standard_normal((width, width))
        states.append(bend(mt.ops.linear(states[-1], weight)).retain_grad())
    states[-1].backward(rng.standard_normal((64, width)))
    return [s.numpy().std() for s in states], [s.grad.numpy().std() for s in states]


print("signal after layer 20:", round(through_stack(1.0, lambda t: t)[0][-1], 2))

# %%
nothing, tanh = (lambda t: t), mt.ops.tanh
curves = {
    "signal, nothing between": {k: through_stack(k, nothing)[0] for k in (0.5, 1.0, 2.0)},
    "signal, tanh between": {k: through_stack(k, tanh)[0] for k in (0.5, 1.0, 2.0)},
    "gradient, tanh between": {k: through_stack(k, tanh)[1] for k in (0.5, 1.0, 2.0)},
}
for title, lines in curves.items():
    print(f"{title:24}", "  ".join(f"{k}: {y[0]:.1e} … {y[-1]:.1e}" for k, y in lines.items()))

# %%
figure, panels = plt.subplots(1, 3, num="stack", figsize=(11, 3.4), layout="constrained")
for axes, (title, lines) in zip(panels, curves.items()):
    for factor, y in lines.items():
        axes.semilogy(y, label=f"{factor} / √D")
    axes.set(title=title, xlabel="layer", xticks=range(0, 21, 5))
panels[0].set_ylabel("spread")
panels[1].legend(frameon=False, title="spread of weights", loc="lower left")
plt.show()

# %% [markdown]
# Half the spread, and the signal has died after twenty layers; twice, and it explodes, or sticks to the flat ends of
# tanh. In the right panel read from right to left, as gradients travel.
#
# ## The library's choice
#
# Forwards, $\operatorname{Var}(w) = 1/D$ is wanted, where $D$ is the number of inputs; backwards, by the same argument,
# $1/F$ with the number of outputs. Glorot and Bengio (2010) put the mean of $D$ and $F$ in their place. `nn.Linear` draws evenly
# from an interval with this variance:
#
# $$ \operatorname{Var}(w) = \frac{2}{D + F} \qquad\Leftrightarrow\qquad
#    w \sim \text{even in } \pm\sqrt{\frac{6}{D + F}} $$

# %%
weight = mt.nn.Linear(300, 200).weight.numpy()
print(f"variance {weight.var():.6f}   2/(D + F) {2 / 500:.6f}   widest {abs(weight).max():.4f}")
assert abs(weight.var() / (2 / 500) - 1) < 0.03
assert abs(abs(weight).max() / math.sqrt(6 / 500) - 1) < 1e-3

# %% [markdown]
# ReLU throws half of the signal away, so its layers need twice the variance, $2/D$ (He et al. 2015).

# %%
for name, init in {"Xavier": mt.nn.init.xavier_uniform, "He": mt.nn.init.kaiming_uniform}.items():
    x = rng.standard_normal((64, 128)).astype("float32")
    for _ in range(20):
        x = mt.ops.relu(mt.ops.linear(x, init((128, 128)).data))
    print(f"{name:7} after 20 layers with ReLU: root mean square {np.sqrt((x * x).mean()):.5f}")

# %% [markdown]
# The next lesson brings a layer that gives signals the right size by force, whatever the weights do.
#
# ## Exercises
#
# **05.1 The vjp of a linear layer** · For `y = x @ weight.T + bias` return three gradients. `x` is (2, 5, 3): two
# examples of five rows.


# %%
def linear_vjp(x, weight, g):
    """Return g_x, g_weight, g_bias."""
    ...


mt.lessons.check("05.1", linear_vjp)

# %% [markdown]
# **05.2 The slope of GELU** · You are given $x$ and $\Phi(x)$ (`below`). Return the slope of $x\,\Phi(x)$.


# %%
def gelu_slope(x, below):
    """Return the slope at each x."""
    ...


mt.lessons.check("05.2", gelu_slope)

# %% [markdown]
# **05.3 How wide to draw** · Return Xavier's bound for an even draw, for which the variance is 2/(fan_in + fan_out).


# %%
def xavier_bound(fan_in, fan_out):
    """Return the bound."""
    ...


mt.lessons.check("05.3", xavier_bound)
