# %% [markdown]
# # 11 · Optimizers
#
# **The gradient tells which way is down at this very point. How far should a step go, and what does it help to remember
# the gradients before?**
#
# We walk down a narrow valley with one optimizer after the other: SGD, momentum, Adam, AdamW, Adafactor, Lion. Then we
# change the size of the steps over time, and put a bound on gradients. The real ones live in
# [optim/sgd.py](../minitransformer/optim/sgd.py), [adam.py](../minitransformer/optim/adam.py),
# [adafactor.py](../minitransformer/optim/adafactor.py), [schedules.py](../minitransformer/optim/schedules.py) and
# [clipping.py](../minitransformer/optim/clipping.py).
#
# [← 10 · Where am I?](10_positions.ipynb) · [12 · The whole Transformer →](12_the_whole_transformer.ipynb)

# %%
import matplotlib.pyplot as plt
import numpy as np

import minitransformer as mt
from minitransformer import optim

curvature = np.array([1.0, 50.0])


def valley(theta):
    return 0.5 * (curvature * theta**2).sum(axis=-1)


print("loss at (-4, 1):", valley(np.array([-4.0, 1.0])))

# %% [markdown]
# ## A narrow valley
#
# Our loss is flat along the first weight and steep along the second: $L = \tfrac12(\theta_0^2 + 50\,\theta_1^2)$. Near
# a minimum a smooth loss looks like this, with one curvature $\lambda_i$ for each of the right directions. A step of
# gradient descent, $\theta \leftarrow \theta - \eta\,g$, multiplies each weight by a factor of its own, so after $t$
# steps
#
# $$\theta_i = (1 - \eta\lambda_i)^t\;\theta_i^{\text{start}}$$


# %%
def walk(make, steps, loss=valley, start=(-4.0, 1.0)):
    theta = mt.tensor(np.array(start), requires_grad=True)
    optimizer, path = make([theta]), [np.array(start)]
    for _ in range(steps):
        optimizer.zero_grad()
        loss(theta).backward()
        optimizer.step()
        path.append(theta.numpy().copy())
    return np.array(path)


path = walk(lambda p: optim.SGD(p, lr=0.03), 20)
np.testing.assert_allclose(path[20], (1 - 0.03 * curvature) ** 20 * path[0])
print("after 20 steps:", path[20].round(5))

# %% [markdown]
# The factors must stay between −1 and 1. So the steepest direction forbids any $\eta$ above $2/\lambda_{\max} = 0.04$,
# and with what is left the flat one creeps.


# %%
def draw_path(axes, title, path, loss=valley, x=(-4.6, 2.4), y=(-1.7, 1.7)):
    grid = np.stack(np.meshgrid(np.linspace(*x, 120), np.linspace(*y, 120)), axis=-1)
    levels = 10.0 ** np.arange(-2, 4, 0.5)
    axes.contour(grid[..., 0], grid[..., 1], loss(grid), levels, colors="#9ecae1", linewidths=1)
    axes.plot(*path.T, "o-", color="#d95f02", markersize=3, linewidth=1)
    axes.plot(0, 0, "k*")
    axes.set(xlabel="flat weight", ylabel="steep weight", xlim=x, ylim=y)
    axes.set_title(title, fontsize=10)


figure, panels = plt.subplots(1, 3, num="sgd", figsize=(10, 3), layout="constrained")
for axes, rate in zip(panels, (0.01, 0.038, 0.041)):
    draw_path(axes, f"SGD, η = {rate}", walk(lambda p, lr=rate: optim.SGD(p, lr), 40))
plt.show()

# %% [markdown]
# ## Momentum
#
# Across the valley the gradients change their sign with each step, along it they agree. So add them up, and forget
# slowly: $b \leftarrow \mu b + g$, $\theta \leftarrow \theta - \eta b$. Larger rates are stable then, up to
# $2(1+\mu)/\lambda_{\max}$; and where the gradient stays the same the steps grow up to $1/(1-\mu)$ times, ten times for
# $\mu = 0.9$:
#
# $$b_t = \sum_{s=1}^{t} \mu^{t-s} g_s \;=\; \frac{1-\mu^t}{1-\mu}\,g \quad\text{for } g_s = g$$

# %%
mu, g, b = 0.9, 0.7, 0.0
for t in range(1, 31):
    b = mu * b + g
    assert np.isclose(b, (1 - mu**t) / (1 - mu) * g)
print(f"after 30 steps b is {b / g:.2f} times g")

# %%
path = walk(lambda p: optim.SGD(p, lr=0.05, momentum=0.6), 40)
theta, b = np.array([-4.0, 1.0]), np.zeros(2)
for _ in range(40):
    b = 0.6 * b + curvature * theta
    theta = theta - 0.05 * b
np.testing.assert_allclose(path[-1], theta, atol=1e-12)
plain = {
    lr: valley(walk(lambda p, lr=lr: optim.SGD(p, lr), 40)[-1]) for lr in np.arange(1, 40) / 1000
}
best = min(plain, key=plain.get)
assert valley(theta) < 0.01 * plain[best]
print(f"40 steps: plain SGD at best {plain[best]:.2f} (η = {best}), momentum {valley(theta):.6f}")

# %% [markdown]
# ## Adam
#
# A steep weight should take shorter steps and a flat one longer. Adam (Kingma & Ba 2014,
# [arXiv:1412.6980](https://arxiv.org/abs/1412.6980)) divides a running mean of the gradient by the root of a running
# mean of its square, for each weight alone:
#
# $$m \leftarrow \beta_1 m + (1-\beta_1)\,g \qquad v \leftarrow \beta_2 v + (1-\beta_2)\,g^2 \qquad
#   \theta \leftarrow \theta - \eta\,\frac{m/(1-\beta_1^t)}{\sqrt{v/(1-\beta_2^t)} + \varepsilon}$$


# %%
def adam_step(theta, g, m, v, t, lr=0.1, beta1=0.9, beta2=0.999, eps=1e-8):
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g**2
    step = m / (1 - beta1**t) / (np.sqrt(v / (1 - beta2**t)) + eps)
    return theta - lr * step, m, v


theta, m, v = np.array([-4.0, 1.0]), np.zeros(2), np.zeros(2)
for t in range(1, 101):
    theta, m, v = adam_step(theta, curvature * theta, m, v, t)
np.testing.assert_allclose(walk(lambda p: optim.Adam(p, lr=0.1), 100)[-1], theta)
print(f"loss after 100 steps: {valley(theta):.5f}")

# %%
makers = {"SGD, η = 0.038": lambda p: optim.SGD(p, lr=0.038)}
makers["momentum 0.6, η = 0.05"] = lambda p: optim.SGD(p, lr=0.05, momentum=0.6)
makers["Adam, η = 0.3"] = lambda p: optim.Adam(p, lr=0.3)
figure, panels = plt.subplots(1, 3, num="paths", figsize=(10, 3), layout="constrained")
for axes, (name, make) in zip(panels, makers.items()):
    draw_path(axes, name, walk(make, 40))
plt.show()

# %% [markdown]
# ## Why the means are corrected
#
# $m$ and $v$ begin at 0, so at first they are too small. For a gradient that stays the same we know by how much:
#
# $$m_t = (1 - \beta_1^t)\,g \qquad v_t = (1 - \beta_2^t)\,g^2$$
#
# The corrections divide by just these factors. Without them the first step would be $(1-\beta_1)/\sqrt{1-\beta_2}$
# times as long, and with $\beta_2 = 0.999$ it takes $v$ thousands of steps to forget that it began at 0.

# %%
g, m, v = 0.7, 0.0, 0.0
for t in range(1, 101):
    _, m, v = adam_step(0.0, g, m, v, t)
    assert np.isclose(m, (1 - 0.9**t) * g) and np.isclose(v, (1 - 0.999**t) * g**2)
print(f"first step, uncorrected: {(1 - 0.9) / np.sqrt(1 - 0.999):.2f} times as long")
print(f"step 100, uncorrected:   {m / np.sqrt(v):.2f} times as long")

# %%
draws = 1 + 0.5 * np.random.default_rng(0).standard_normal(200)
raw = np.zeros((201, 2))
for t, g in enumerate(draws):
    raw[t + 1] = [0.9, 0.999] * raw[t] + [0.1, 0.001] * np.array([g, g**2])
corrected = raw[1:] / (1 - np.array([0.9, 0.999]) ** np.arange(1, 201)[:, None])
figure, panels = plt.subplots(1, 2, num="correction", figsize=(9, 3.2), layout="constrained")
for axes, name, i, truth in ((panels[0], "m", 0, 1.0), (panels[1], "v", 1, 1.25)):
    axes.plot(raw[1:, i], label=f"{name} as it is"), axes.plot(corrected[:, i], label="corrected")
    axes.axhline(truth, color="0.4", linestyle=":", label="what it estimates")
    axes.set(xlabel="step", ylabel=name, ylim=(0, 1.9)), axes.legend(frameon=False, fontsize=9)
plt.show()

# %% [markdown]
# ## What Adam does not see
#
# Adam scales each weight alone. A factor on the whole loss changes nothing, and a valley along the axes is as good as a
# round bowl: the two paths are the same. But turn the valley by 45°, so that each weight is a mixture of the flat and
# the steep direction, and there is nothing left for it to tell apart.

# %%
turn = np.array([[1.0, -1.0], [1.0, 1.0]]) / np.sqrt(2)


def adam_on(loss, start=(-4.0, 1.0)):
    return walk(lambda p: optim.Adam(p, lr=0.3), 60, loss, start)


straight = adam_on(valley)
oblique = adam_on(lambda theta: valley(theta @ turn), start=turn @ np.array([-4.0, 1.0]))
np.testing.assert_allclose(adam_on(lambda theta: 1000 * valley(theta)), straight, atol=1e-6)
np.testing.assert_allclose(adam_on(lambda theta: 0.5 * (theta**2).sum()), straight, atol=1e-6)
losses = valley(straight[20]), valley(oblique[20] @ turn)
print("loss after 20 steps: {:.2f} along the axes, {:.2f} turned".format(*losses))

# %%
figure, (left, right) = plt.subplots(1, 2, num="turned", figsize=(9, 3.6), layout="constrained")
draw_path(left, "Adam, valley along the axes", straight)
around = dict(x=(-4.6, 1.4), y=(-4, 2))
draw_path(right, "Adam, valley turned", oblique, lambda theta: valley(theta @ turn), **around)
right.set(xlabel="first weight", ylabel="second weight")
plt.show()
assert losses[0] < losses[1]

# %% [markdown]
# ## AdamW: shrink beside the step
#
# Weight decay pulls weights to zero. As a penalty it is added to the gradient, $g + \lambda\theta$, and Adam divides it
# by $\sqrt v$ with the rest: weights with large gradients are hardly pulled at all. AdamW (Loshchilov & Hutter 2017,
# [arXiv:1711.05101](https://arxiv.org/abs/1711.05101)) shrinks all alike, beside the step $u$ of Adam:
#
# $$\theta \leftarrow (1 - \eta\lambda)\,\theta - \eta\,u$$
#
# Two weights of 1, one with gradients of ±0.1, the other of ±10 that say nothing on average:


# %%
def shrink(kind, steps=1000):
    theta = mt.tensor(np.ones(2), requires_grad=True)
    optimizer = kind([theta], lr=0.01, weight_decay=0.1)
    for t in range(steps):
        theta.grad = (-1) ** t * np.array([0.1, 10.0])
        optimizer.step()
    return theta.numpy()


penalty, decoupled = shrink(optim.Adam), shrink(optim.AdamW)
print("Adam with a penalty:", penalty.round(2), "   AdamW:", decoupled.round(2))
np.testing.assert_allclose(decoupled, (1 - 0.01 * 0.1) ** 1000, atol=0.01)
assert penalty[0] < 0.1 and penalty[1] > 0.8

# %% [markdown]
# ## Adafactor: the second moments in two vectors
#
# Adam keeps two numbers for each weight. Adafactor (Shazeer & Stern 2018,
# [arXiv:1804.04235](https://arxiv.org/abs/1804.04235)) keeps, of the squares of a matrix $N \times M$, only the means
# $R$ of its rows and $C$ of its columns, and makes the rest from them:
#
# $$V_{ij} = \frac{R_i\,C_j}{\tfrac1N\sum_k R_k}$$
#
# That is exact where the squares are a product of something for the row and something for the column.

# %%
rng = np.random.default_rng(0)
rows, columns = np.exp(rng.normal(0, 1, (24, 1))), np.exp(rng.normal(0, 1, 32))


def factored(square):
    row, column = square.mean(axis=1, keepdims=True), square.mean(axis=0)
    return row * column / row.mean()


np.testing.assert_allclose(factored(rows * columns), rows * columns)
gradients = np.sqrt(rows * columns) * rng.standard_normal((50, 24, 32))
measured = (gradients**2).mean(axis=0)
off = np.median(np.abs(factored(measured) / measured - 1))
print(
    f"{24 * 32} numbers from {24 + 32}, a mean over 50 noisy gradients: typically off by {off:.0%}"
)

# %%
figure, panels = plt.subplots(1, 2, num="factored", figsize=(9, 3.6), layout="constrained")
both = {"mean of g²": measured, "from rows and columns": factored(measured)}
for axes, (title, values) in zip(panels, both.items()):
    image = axes.imshow(np.log10(values), vmin=-2, vmax=2)
    axes.set(title=title, xlabel="column", ylabel="row")
figure.colorbar(image, ax=panels, label="log₁₀", shrink=0.8)
plt.show()

# %% [markdown]
# The library's state after one step, where the running means are the gradient's own. (It also sets the length of its
# steps by the size of the weights; see [adafactor.py](../minitransformer/optim/adafactor.py).)

# %%
weight = mt.tensor(rng.standard_normal((24, 32)), requires_grad=True)
weight.grad = rng.standard_normal((24, 32))
adafactor = optim.Adafactor([weight])
adafactor.step()
state, square = adafactor.state[0], weight.grad.numpy() ** 2
R, C = state["row_var"], state["col_var"]
np.testing.assert_allclose(R / R.mean() * C, factored(square))
print({name: array.shape for name, array in state.items() if name != "step"})

# %% [markdown]
# ## Lion: the sign alone
#
# Lion (Chen et al. 2023, [arXiv:2302.06675](https://arxiv.org/abs/2302.06675)) keeps one running mean and steps by its
# sign, so each weight moves by $\eta$ exactly. The step looks at the newest gradient more than the memory does:
#
# $$\theta \leftarrow \theta - \eta\,\operatorname{sign}\big(\beta_1 m + (1-\beta_1)\,g\big) \qquad
#   m \leftarrow \beta_2 m + (1-\beta_2)\,g$$

# %%
path, theta, m = walk(lambda p: optim.Lion(p, lr=0.1), 40), np.array([-4.0, 1.0]), np.zeros(2)
for t in range(40):
    g = curvature * theta
    theta = theta - 0.1 * np.sign(0.9 * m + 0.1 * g)
    m = 0.99 * m + 0.01 * g
    np.testing.assert_allclose(path[t + 1], theta, atol=1e-9)
print("each weight moves by", np.unique(np.abs(np.diff(path, axis=0)).round(9)))

# %% [markdown]
# ## What they remember, in bytes
#
# Beside a matrix $N \times M$ of float32, four bytes a number:
#
# $$\text{momentum, Lion: } 4NM \qquad \text{Adam, AdamW: } 8NM \qquad \text{Adafactor: } 4(N+M)$$

# %%
big = mt.tensor(np.ones((512, 2048), "float32"), requires_grad=True)
big.grad = np.ones((512, 2048), "float32")
kinds = {"SGD": optim.SGD, "momentum": lambda p: optim.SGD(p, momentum=0.9), "Lion": optim.Lion}
kinds |= {"Adam": optim.Adam, "AdamW": optim.AdamW, "Adafactor": optim.Adafactor}
held = {}
for name, kind in kinds.items():
    optimizer = kind([big])
    optimizer.step()
    held[name] = optimizer.state_bytes()
one = 4 * 512 * 2048
assert list(held.values()) == [0, one, one, 2 * one, 2 * one, 4 * (512 + 2048)]
held

# %%
figure, axes = plt.subplots(num="memory", figsize=(7, 2.8), layout="constrained")
bars = axes.barh(list(held), [count / 2**20 for count in held.values()], color="#08519c")
axes.bar_label(bars, [f"{count:,} bytes" for count in held.values()], padding=4)
axes.axvline(one / 2**20, color="0.4", linestyle=":")
axes.set(xlabel="state in MiB; dotted: the matrix itself", xlim=(0, 11))
axes.invert_yaxis()
plt.show()

# %% [markdown]
# ## Why begin slowly
#
# Adam's first step is $-\eta\,g/|g|$: full length for every weight, whatever the gradient knows. Later, gradients that
# are mere noise cancel in $m$ and not in $v$, and the steps get shorter. For noise alone the lengths are, as a root
# mean square over many weights, 1 at first and in the end
#
# $$\frac{\lVert u \rVert}{\sqrt N} \;\to\; \sqrt{\frac{1-\beta_1}{1+\beta_1}} \approx 0.23$$

# %%
noise = np.random.default_rng(0).standard_normal((1000, 2000))  # (steps, weights)
theta, m, v, lengths = np.zeros(2000), np.zeros(2000), np.zeros(2000), []
for t, g in enumerate(noise, start=1):
    after, m, v = adam_step(theta, g, m, v, t, lr=1.0)
    lengths.append(np.sqrt(np.mean((after - theta) ** 2)))
    theta = after
limit, end = np.sqrt((1 - 0.9) / (1 + 0.9)), np.mean(lengths[-200:])
assert np.isclose(lengths[0], 1) and abs(end / limit - 1) < 0.03
print(f"first step {lengths[0]:.2f}, in the end {end:.3f}; the limit is {limit:.3f}")

# %% [markdown]
# So the learning rate starts low, until the means know something: a **warm-up** in a straight line. Then it falls, and
# the walk, which noise keeps from settling, comes to rest. With a cosine:
#
# $$\eta(t) = \begin{cases} \eta_{\max}\, t/w & t \leq w \\
#   \eta_{\max}\,\tfrac12\big(1 + \cos(\pi\,\tfrac{t-w}{T-w})\big) & w < t \leq T \end{cases}$$


# %%
def cosine(t, peak=1e-3, w=100, total=1000):
    return peak * (t / w if t <= w else 0.5 * (1 + np.cos(np.pi * (t - w) / (total - w))))


schedules = {"cosine": optim.WarmupCosine(1e-3, warmup=100, total=1000)}
schedules["linear"] = optim.WarmupLinear(1e-3, warmup=100, total=1000)
schedules["inverse root"] = optim.InverseSquareRoot(1e-3, warmup=100)
schedules["stair"] = optim.StepDecay(1e-3, warmup=100, gamma=0.5, every=300)
for t in (1, 50, 100, 101, 700, 1000):
    assert np.isclose(schedules["cosine"](t), cosine(t), atol=1e-18)
print("cosine at steps 1, 100 and 550:", *(f"{cosine(t):.5f}" for t in (1, 100, 550)))

# %%
figure, (left, right) = plt.subplots(1, 2, num="schedules", figsize=(10, 3.4), layout="constrained")
for name, schedule in schedules.items():
    left.plot(range(1, 1001), [schedule(t) for t in range(1, 1001)], label=name)
left.set(title="schedules with a warm-up", xlabel="step", ylabel="learning rate")
left.legend(frameon=False)
right.semilogx(range(1, 1001), lengths)
right.axhline(limit, color="0.4", linestyle=":", label="limit")
right.set(title="Adam's step when gradients are noise", ylim=(0, 1.05))
right.set(xlabel="step", ylabel="length / η")
right.legend(frameon=False)
plt.show()

# %% [markdown]
# ## A bound on gradients
#
# One bad batch can have a gradient a hundred times as long as the others, and one such step can throw away all that was
# learned. **Clipping by norm** (Pascanu, Mikolov & Bengio 2012, [arXiv:1211.5063](https://arxiv.org/abs/1211.5063))
# takes all gradients together as one long vector and shortens it. **Clipping by value** cuts each number alone, which
# changes the direction.
#
# $$g \leftarrow g \cdot \min\!\left(1,\; \frac{c}{\lVert g\rVert}\right) \qquad\qquad
#   g_i \leftarrow \min(\max(g_i, -c),\, c)$$

# %%
g, c = np.array([3.0, 0.8]), 1.0
by_norm, by_value = g * min(1, c / np.linalg.norm(g)), np.clip(g, -c, c)
theta = mt.tensor(np.zeros(2), requires_grad=True)
for clip, ours in ((optim.clip_grad_norm_, by_norm), (optim.clip_grad_value_, by_value)):
    theta.grad = g.copy()
    clip([theta], c)
    np.testing.assert_allclose(theta.grad.numpy(), ours, rtol=1e-6)
angles = [np.degrees(np.arctan2(a[1], a[0])) for a in (g, by_norm, by_value)]
assert np.isclose(angles[0], angles[1]) and not np.isclose(angles[0], angles[2])
print("direction: {:.1f}°, clipped by norm {:.1f}°, by value {:.1f}°".format(*angles))

# %%
figure, axes = plt.subplots(num="clipping", figsize=(7, 3), layout="constrained")
names, colours = ("gradient", "by norm", "by value"), ("0.7", "#08519c", "#d95f02")
for name, a, colour in zip(names, (g, by_norm, by_value), colours):
    axes.quiver(*a * 0, *a, color=colour, label=name, angles="xy", scale_units="xy", scale=1)
turns = np.linspace(0, 2 * np.pi, 100)
axes.plot(np.cos(turns), np.sin(turns), ":", color=colours[1], label="norm 1")
corners = np.array([-1, 1, 1, -1, -1])
axes.plot(corners, -np.roll(corners, 1), ":", color=colours[2], label="values up to 1")
axes.set(xlim=(-1.3, 3.3), aspect="equal", xlabel="first weight", ylabel="second weight")
axes.legend(frameon=False, loc="lower right", fontsize=9)
plt.show()

# %% [markdown]
# In the valley, with noisy gradients of which one, at step 30, is a thousand times too long:


# %%
def bumpy(bound):
    theta, losses = mt.tensor(np.array([-4.0, 1.0]), requires_grad=True), []
    optimizer = optim.SGD([theta], lr=0.02, momentum=0.5)
    for t, noise in enumerate(np.random.default_rng(0).standard_normal((80, 2))):
        g = curvature * theta.numpy() + 0.1 * noise
        theta.grad = 1000 * g if t == 30 else g
        optim.clip_grad_norm_([theta], bound)
        optimizer.step()
        losses.append(valley(theta.numpy()))
    return losses


free, bounded = bumpy(np.inf), bumpy(4.0)
print(f"worst from step 30 on: {max(free[30:]):.0f} without, {max(bounded[30:]):.1f} with a bound")

# %%
figure, axes = plt.subplots(num="spike", figsize=(7, 3.2), layout="constrained")
axes.semilogy(free, label="no bound"), axes.semilogy(bounded, label="norm at most 4")
axes.axvline(30, color="0.4", linestyle=":", label="the bad gradient")
axes.set(xlabel="step", ylabel="loss")
axes.legend(frameon=False)
plt.show()
assert max(free[30:]) > 100 * max(bounded[30:])

# %% [markdown]
# ## Exercises
#
# Replace the `...` and run the cell: the check answers at once. `mt.lessons.check("11.1")` without a function says
# again what to write. `gradients` has one row for each step; the weights do not influence them here.
#
# **11.1 Momentum** · Take a step for each row of `gradients`: $b \leftarrow \mu b + g$, $\theta \leftarrow \theta -
# \eta b$, with $b = 0$ before. Return $\theta$ after the last.


# %%
def momentum(theta, gradients, lr, mu):
    """Return theta."""
    ...


mt.lessons.check("11.1", momentum)

# %% [markdown]
# **11.2 AdamW** · The same with AdamW: means with `beta1` and `beta2`, both corrected, $\varepsilon$ added after the
# root, weight decay `decay`.


# %%
def adamw(theta, gradients, lr, beta1, beta2, eps, decay):
    """Return theta."""
    ...


mt.lessons.check("11.2", adamw)

# %% [markdown]
# **11.3 Factored second moments** · From the means of the squares of a gradient `g`, `(N, M)`, over its rows and over
# its columns, return Adafactor's estimate `V`, `(N, M)`.


# %%
def factored_moment(g):
    """Return V."""
    ...


mt.lessons.check("11.3", factored_moment)

# %% [markdown]
# **11.4 Clipping by norm** · Return the gradients of two parameters, `g_a` and `g_b`, scaled by one factor so that
# their common norm is at most `bound`.


# %%
def clip_by_norm(g_a, g_b, bound):
    """Return g_a, g_b."""
    ...


mt.lessons.check("11.4", clip_by_norm)
