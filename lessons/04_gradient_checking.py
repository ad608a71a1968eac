# %% [markdown]
# # 04 · Gradient checking: how differences work, fail and fool
#
# **You have written a derivative by hand. How do you find out whether it is right, and when does the check itself
# deceive you?**
#
# A wrong derivative rarely crashes. Training goes on, only worse. So every op of this library is compared with
# differences of its values, by [gradcheck.py](../minitransformer/gradcheck.py), and this lesson builds that check step
# by step. Then it shows five ways in which a careless check is fooled.
#
# [← 03 · Broadcasting, gather and the art of the vjp](03_broadcasting_and_gather.ipynb) ·
# [05 · Linear layers, GELU, initialisation →](05_linear_gelu_initialisation.ipynb)

# %%
import matplotlib.pyplot as plt
import numpy as np

import minitransformer as mt
from minitransformer.gradcheck import GradcheckError, difference

mt.use_kernels(False)
rng = np.random.default_rng(4)
print("minitransformer", mt.__version__)

# %% [markdown]
# ## A derivative from values
#
# Take $f(x) = e^x \sin x$ at $x = 1$. The slope between two points nearby is close to the derivative. How close depends
# on where the two points lie.


# %%
def f(x):
    return mt.ops.exp(x) * mt.ops.sin(x)


def forward(x, h):
    return (f(x + h) - f(x)) / h


def central(x, h):
    return (f(x + h) - f(x - h)) / (2 * h)


x = np.array(1.0)
exact = mt.grad(f)(x).item()
print(f"exact {exact:.9f}   forward {forward(x, 0.01):.9f}   central {central(x, 0.01):.9f}")

# %% [markdown]
# A forward and a backward difference err in opposite directions. The central one is their mean, so the largest part
# of the error cancels.
# Taylor's series says what is left:
#
# $$ \frac{f(x+h) - f(x-h)}{2h} = f'(x) + \frac{h^2}{6} f'''(x) + O(h^4) $$
#
# The library can differentiate three times, so we can check the series itself.

# %%
third = mt.grad(mt.grad(mt.grad(f)))(x).item()
for h in (0.1, 0.01, 0.001):
    error = central(x, h) - exact
    print(f"h = {h:<6} error {error: .3e}   h²/6·f''' {h * h / 6 * third: .3e}")
    assert abs(error - h * h / 6 * third) < h**4 + 1e-11

# %% [markdown]
# ## Why not simply a tiny step?
#
# Because $f(x+h)$ and $f(x-h)$ are rounded. Their difference keeps an error of about $10^{-16}$ (in float64), and we
# divide it by $2h$. A large step suffers from the series, a tiny one from rounding; the best lies in between.

# %%
steps = 10.0 ** np.arange(-14, 0, 0.25)
single = np.float32(1.0)
figure, axes = plt.subplots(num="step-and-error", figsize=(7, 3.8))
axes.loglog(steps, [abs(forward(x, h) - exact) for h in steps], label="forward, float64")
axes.loglog(steps, [abs(central(x, h) - exact) for h in steps], label="central, float64")
few = steps[steps > 1e-7].astype("float32")
in_32 = [abs(central(np.array([single]), np.array([h]))[0] - exact) for h in few]
axes.loglog(few, in_32, label="central, float32")
axes.set(xlabel="step h", ylabel="error of the derivative", ylim=(1e-13, 10))
axes.legend(frameon=False), axes.grid(color="#e3e3e3")
plt.show()

# %% [markdown]
# Read off three things. The central difference gains about three digits on the forward one. It never reaches full
# precision. And in float32 even the best step leaves an error of a few millionths, about a million times that of float64,
# in which a small mistake can hide: **gradient checks run in float64.**
#
# ## Letting errors cancel
#
# The error goes with $h^2$. At half the step it is a quarter. So two differences $D(h)$ and $D(h/2)$ can be combined
# such that it cancels. This is Richardson's extrapolation:
#
# $$ \frac{4\,D(h/2) - D(h)}{3} = f'(x) + O(h^4) $$
#
# The next error goes with $h^4$, so halving the step should divide it by 16.


# %%
def extrapolated(x, h):
    return (4 * central(x, h / 2) - central(x, h)) / 3


errors = [abs(extrapolated(x, h) - exact) for h in (0.2, 0.1, 0.05)]
print([f"{e:.2e}" for e in errors], "ratios", np.divide(errors[:-1], errors[1:]).round(1))
assert np.allclose(np.divide(errors[:-1], errors[1:]), 16, rtol=0.05)

# %% [markdown]
# The same again cancels $h^4$, then $h^6$, and so on. The library makes six levels, and takes the entry that agrees best
# with its neighbours; how well they agree is its own estimate of the error (Ridders 1982).

# %%
value, doubt = difference(lambda t: float(f(x + t)))
print(f"error of the best central difference  {min(abs(central(x, h) - exact) for h in steps):.1e}")
print(f"error after extrapolation             {abs(value - exact):.1e}   estimated {doubt:.1e}")
assert abs(value - exact) < 1e-12

# %% [markdown]
# ## Many numbers, one direction
#
# An op takes arrays. Moving each element by itself costs two runs each. But along **one** random direction $v$ all
# elements move together, and the chain rule says what must come out:
#
# $$ \frac{\mathrm{d}}{\mathrm{d}t}\,\varphi(x + t\,v)\,\Big|_{t=0} = \langle \nabla\varphi(x),\; v\rangle $$
#
# A wrong element of the gradient changes the right side, unless $v$ happens to be zero there.


# %%
def phi(x):
    return (mt.ops.softmax(x) * np.arange(15.0).reshape(3, 5)).sum()


X, v = rng.standard_normal((3, 5)), rng.standard_normal((3, 5))
along, _ = difference(lambda t: float(phi(X + t * v)))
gradient = mt.grad(phi)(X).numpy()
print(f"{along:.12f}\n{(gradient * v).sum():.12f}")
assert abs(along - (gradient * v).sum()) < 1e-11

# %% [markdown]
# ## `mt.gradcheck`
#
# It puts these parts together: float64, extrapolated differences, every element of small arrays and random directions
# through all of them. It **raises** when something disagrees, and returns what it has seen when nothing does.


# %%
def verdict(function, *arrays):
    try:
        report = mt.gradcheck(function, *arrays)
    except GradcheckError as error:
        return str(error).replace("; ", ";\n    ").replace(", diff", ",\n    diff")
    return f"{report.points} numbers compared, worst relative error {report.worst[0]:.1e}"


print(verdict(mt.ops.layer_norm, X, rng.standard_normal(5), rng.standard_normal(5)))

# %% [markdown]
# ## Fooled, 1: the wrong question
#
# Here is a softmax with a mistake in its vjp: it subtracts the plain mean of $g$, where the mean weighted with $y$
# belongs. To check an array of results we need one number, and the sum comes to mind.


# %%
@mt.primitive
def careless_softmax(xp, x):
    e = xp.exp(x - x.max(axis=-1, keepdims=True))
    y = e / e.sum(axis=-1, keepdims=True)

    def vjp(g):
        return (y * (g - g.mean(axis=-1, keepdims=True)),)

    return y, vjp


by_sum = mt.grad(lambda x: careless_softmax(x).sum())(X).numpy()
print("gradient of the sum:", abs(by_sum).max(), "  and it should be 0")

# %% [markdown]
# The rows of softmax sum to 1, whatever $x$ is. So the true gradient of the sum is zero, the wrong vjp gives zero as
# well, and the check is content. The cure is a **random** weight for each result. `mt.gradcheck` takes random weights
# always, and refuses to be satisfied by zeros.

# %%
print("the sum:", verdict(lambda x: careless_softmax(x).sum(axis=-1), X))
print("\nall results:", verdict(careless_softmax, X))
assert "relative error" in verdict(careless_softmax, X)

# %% [markdown]
# ## Fooled, 2: numbers that are too nice
#
# This matrix product forgets a transpose on its way back. With a symmetric matrix nobody can see it. Shapes of
# different sizes would even have made it an error: check with different primes on every axis.


# %%
@mt.primitive
def careless_matmul(xp, a, b):
    def vjp(g):
        return xp.matmul(g, b), xp.matmul(a.swapaxes(-1, -2), g)

    return xp.matmul(a, b), vjp


B = rng.standard_normal((5, 5))
print("symmetric:", verdict(careless_matmul, X, B + B.T))
print("\nany other:", verdict(careless_matmul, X, B))

# %% [markdown]
# ## Fooled, 3: a kink
#
# ReLU has a kink at 0. A difference that reaches across it measures neither side but a mixture, and a right derivative
# looks wrong. Points of a check stay away from kinks, at least as far as the largest step.

# %%
near = np.linspace(-0.2, 0.2, 201)
h = 2.0**-4
measured = [(mt.ops.relu(t + h) - mt.ops.relu(t - h)) / (2 * h) for t in near]
figure, axes = plt.subplots(num="kink", figsize=(6, 3))
axes.plot(near, [float(t > 0) for t in near], label="derivative of ReLU")
axes.plot(near, measured, "--", label=f"central difference, h = {h}")
axes.set(xlabel="x", ylabel="slope", ylim=(-0.05, 1.45))
axes.legend(frameon=False, loc="upper left")
plt.show()

# %%
print(verdict(mt.ops.relu, np.array([0.001, -1.0, 2.0])))

# %% [markdown]
# ## Fooled, 4: a mistake on both ways
#
# LayerNorm divides by the variance with $1/D$. Here is one with $1/(D-1)$. Its derivative is perfectly right, for the
# wrong function. No difference can see that, since the values are wrong in the same way. Only something independent
# can: the paper, another library, a known result.


# %%
def unbiased(x):
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / ((centred * centred).sum(axis=-1, keepdims=True) / (x.shape[-1] - 1)).sqrt()


one, zero = np.ones(5), np.zeros(5)
off = abs(unbiased(mt.tensor(X)).numpy() - mt.ops.layer_norm(X, one, zero)).max()
print(f"{verdict(unbiased, X)}\nand yet it differs from LayerNorm by {off:.2f}")
assert off > 0.1

# %% [markdown]
# ## Fooled, 5: one number that hides behind others
#
# Measured against the largest gradient of all, a small one may be wrong entirely. Here the gradient of $b$ should be
# 0.001 and is lost on its way (`detach` cuts it off). Against everything together that is an error of a millionth. So
# `mt.gradcheck` compares argument by argument.


# %%
def weighted(a, b):
    return (a * 1000.0).sum() + (b * 0.001).sum()


def careless(a, b):
    return weighted(a, b.detach()) + (b * 0.0).sum()


a, b = rng.standard_normal(3), rng.standard_normal(3)
right, wrong = (np.concatenate(mt.grad(fn, (0, 1))(a, b)) for fn in (weighted, careless))
print(f"against everything: {np.linalg.norm(wrong - right) / np.linalg.norm(right):.0e}")
print(verdict(careless, a, b))

# %% [markdown]
# ## Exercises
#
# **04.1 Differences for a whole array** · `f` takes an array and returns a number. Return its gradient at `x` by central
# differences with step `h`, one element at a time.


# %%
def central_gradient(f, x, h):
    """Return an array of the shape of x."""
    ...


mt.lessons.check("04.1", central_gradient)

# %% [markdown]
# **04.2 Richardson's extrapolation** · Combine the central differences of `f` at 0 with the steps `h` and `h/2` such that
# the error in $h^2$ cancels.


# %%
def richardson(f, h):
    """Return a number; f takes a number."""
    ...


mt.lessons.check("04.2", richardson)

# %% [markdown]
# **04.3 All at once, along a direction** · How fast does $f(x + t\,v)$ grow with $t$, at $t = 0$? One central difference
# with step `h`.


# %%
def directional(f, x, v, h):
    """Return a number."""
    ...


mt.lessons.check("04.3", directional)
