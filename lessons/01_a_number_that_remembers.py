# %% [markdown]
# # 01 · A number that remembers
#
# **A program takes some numbers and computes one result. How much would the result change if one of the numbers were
# a little larger, and can we learn that for all of them in a single walk?**
#
# Training a network is this question, asked again and again: the numbers are the weights, the result is the loss. In
# this lesson we build the answer in about 40 lines of Python, for plain numbers. The library does the same for arrays
# in [tensor.py](../minitransformer/tensor.py).
#
# [02 · Tensors and the tape →](02_tensors_and_the_tape.ipynb)

# %%
import itertools
import math

import matplotlib.pyplot as plt
import numpy as np

import minitransformer as mt

print("minitransformer", mt.__version__)

# %% [markdown]
# ## A slope
#
# Our program is short: $y = a\,b + \sin a$, at $a = 2$ and $b = -1.5$. Move $a$ by a small $h$ to both sides and see
# how much $y$ moves. The quotient is the **slope** of $y$ along $a$: the direction of the curve at that point.


# %%
def program(a, b):
    return a * b + math.sin(a)


a, b, h = 2.0, -1.5, 1e-5
slope_a = (program(a + h, b) - program(a - h, b)) / (2 * h)
slope_b = (program(a, b + h) - program(a, b - h)) / (2 * h)
print(f"slope along a: {slope_a:.6f}    along b: {slope_b:.6f}")

# %%
along = np.linspace(0.5, 3.5, 100)
figure, axes = plt.subplots(num="slope", figsize=(6, 3.2))
axes.plot(along, [program(x, b) for x in along], label="y, for b = −1.5")
axes.plot(along, program(a, b) + slope_a * (along - a), "--", label=f"slope {slope_a:.3f} at a = 2")
axes.plot(a, program(a, b), "ko")
axes.set(xlabel="a", ylabel="y")
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# This costs two runs of the program for each number. A model has millions of numbers, so we need another way.
#
# ## Every step knows its own slopes
#
# The program is made of small steps, and the slopes of one small step are known. If $u = a\,b$, then $u$ grows $b$
# times as fast as $a$, and $a$ times as fast as $b$. If $v = \sin a$, then $v$ grows $\cos a$ times as fast as $a$.
# The **chain rule** puts steps together: along one way the slopes multiply, and the ways add up. From $a$ to $y$ lead
# two ways, one through the product and one through the sine:
#
# $$\frac{\partial y}{\partial a} = \frac{\partial y}{\partial u}\,\frac{\partial u}{\partial a}
#   + \frac{\partial y}{\partial v}\,\frac{\partial v}{\partial a} = 1\cdot b + 1\cdot\cos a$$

# %%
through_product = 1 * b
through_sine = 1 * math.cos(a)
print(f"{through_product:.6f} + {through_sine:.6f} = {through_product + through_sine:.6f}")
assert abs(through_product + through_sine - slope_a) < 1e-9

# %% [markdown]
# ## A number that remembers
#
# So let each number remember how it was made: its **parents**, the numbers that went into the step, and for each of
# them the **slope** of that step. It also gets a birth number, which we shall need in a moment.


# %%
class Number:
    births = itertools.count()

    def __init__(self, value, parents=(), slopes=()):
        self.value, self.parents, self.slopes = value, parents, slopes
        self.birth, self.grad = next(Number.births), 0.0


x = Number(3.0)
vars(x)

# %% [markdown]
# A step is a function that computes a new number and notes its parents and slopes. That is all the calculus there is:
# one line for each kind of step.


# %%
def add(a, b):
    return Number(a.value + b.value, (a, b), (1.0, 1.0))


def multiply(a, b):
    return Number(a.value * b.value, (a, b), (b.value, a.value))


def sine(a):
    return Number(math.sin(a.value), (a,), (math.cos(a.value),))


multiply(x, Number(5.0)).slopes

# %% [markdown]
# Now run the program with such numbers. It computes what it computed before, and leaves a trace behind.

# %%
na, nb = Number(2.0), Number(-1.5)
nu = multiply(na, nb)
nv = sine(na)
ny = add(nu, nv)
assert ny.value == program(2.0, -1.5)
print(f"y = {ny.value:.6f}, made of {ny.parents[0].value} and {ny.parents[1].value:.6f}")

# %% [markdown]
# ## The order of the walk
#
# Now to the way back. A number must know its whole slope before it hands shares of it to its parents. Parents are older
# than their children, so we collect all that the result was made of and go from the youngest to the oldest.


# %%
def youngest_first(result):
    known, todo = {result}, [result]
    while todo:
        new = set(todo.pop().parents) - known
        known |= new
        todo += new
    return sorted(known, key=lambda number: -number.birth)


order = youngest_first(ny)
print("births:", [number.birth - na.birth for number in order])
assert order == [ny, nv, nu, nb, na]

# %% [markdown]
# ## The walk backwards
#
# Let `grad` of a number be the slope of the result along it. For the result itself that is 1. Any other number reaches
# the result through its children only, so its `grad` is a sum over them. For a number $p$ with children $c$:
#
# $$\operatorname{grad}(p) = \sum_{c} \operatorname{grad}(c)\cdot\frac{\partial c}{\partial p}$$


# %%
def backward(result):
    result.grad = 1.0
    for child in youngest_first(result):
        for parent, slope in zip(child.parents, child.slopes):
            parent.grad += child.grad * slope


backward(ny)
print(f"grad of a: {na.grad:.6f}    of b: {nb.grad:.6f}")
assert na.grad == nu.grad * nb.value + nv.grad * math.cos(na.value)
assert abs(na.grad - slope_a) < 1e-9 and abs(nb.grad - slope_b) < 1e-9

# %% [markdown]
# One walk, and every number knows its slope. Here is the trace as a graph: in each box a value and what the walk has
# brought to it, at each arrow the slope of that step.

# %%
places = {"a": (0, 1), "b": (0, 0), "u = a·b": (1, 0.2), "v = sin a": (1, 1), "y = u + v": (2, 0.6)}
numbers = dict(zip(places, (na, nb, nu, nv, ny)))
name_of = {number: name for name, number in numbers.items()}
arrows = []
for name, child in numbers.items():
    arrows += [(name_of[p], name, slope) for p, slope in zip(child.parents, child.slopes)]
arrow = dict(arrowstyle="-|>", shrinkA=48, shrinkB=48, color="#08519c")
white = dict(fc="white", ec="none", pad=1)
for start, end, slope in arrows:
    print(f"{start:>10} → {end:10} slope {slope:6.3f}")

# %%
figure, axes = plt.subplots(num="graph", figsize=(8, 3.4))
for name, at in places.items():
    text = f"{name}\n{numbers[name].value:.3f}\ngrad {numbers[name].grad:.3f}"
    axes.text(
        *at, text, ha="center", va="center", bbox=dict(fc="#eef4fb", ec="#08519c", boxstyle="round")
    )
for start, end, slope in arrows:
    axes.annotate("", places[end], places[start], arrowprops=arrow)
    middle = np.add(places[start], places[end]) / 2
    axes.text(*middle, f"{slope:.3f}", ha="center", va="center", color="#08519c", bbox=white)
axes.axis((-0.4, 2.4, -0.3, 1.3)), axes.set_axis_off()
plt.show()

# %% [markdown]
# ## Two ways to get it wrong
#
# The `+=` matters: $a$ is used twice. With `=` the share that comes last would wipe out the other. And the order
# matters: walked from the oldest to the youngest, a number would hand on a `grad` that has not arrived yet.

# %%
shares = [child.grad * child.slopes[0] for child in (nu, nv)]
print(f"both shares: {sum(shares):.6f}    with = instead of +=: {shares[0]:.6f}")
assert abs(sum(shares) - slope_a) < 1e-9 < abs(shares[0] - slope_a)

# %% [markdown]
# ## What it costs
#
# Differences take two runs of the program for every number. The walk passes each arrow of the graph once, however many
# numbers there are: about as much work as the program itself. We count both for a sum of $n$ products, which is made
# from $2n$ numbers.


# %%
def counts(n):
    numbers = [Number(1.0) for _ in range(2 * n)]
    total = multiply(numbers[0], numbers[1])
    for i in range(1, n):
        total = add(total, multiply(numbers[2 * i], numbers[2 * i + 1]))
    made = youngest_first(total)
    steps = sum(bool(number.parents) for number in made)
    return 2 * len(numbers) * steps, sum(len(number.parents) for number in made)


counted = {n: counts(n) for n in (1, 10, 100, 1000)}
counted

# %%
figure, axes = plt.subplots(num="cost", figsize=(6, 3.2))
axes.loglog(
    list(counted), [two_runs for two_runs, _ in counted.values()], "o-", label="differences: steps"
)
axes.loglog(list(counted), [walk for _, walk in counted.values()], "o-", label="one walk: arrows")
axes.set(xlabel="n", ylabel="how many")
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# ## What it is for
#
# With slopes we can go downhill. Fit a line $w\,x + c$ to four points: the loss is the sum of the squared errors, and
# each round moves $w$ and $c$ a little against their slopes.


# %%
def loss_of(w, c, points):
    loss = Number(0.0)
    for x, y in points:
        error = add(add(multiply(w, Number(x)), c), Number(-y))
        loss = add(loss, multiply(error, error))
    return loss


points = [(-1.0, -1.8), (0.0, 0.3), (1.0, 1.9), (2.0, 4.2)]
print(f"loss of w = 0, c = 0: {loss_of(Number(0.0), Number(0.0), points).value:.2f}")

# %%
w, c, losses = 0.0, 0.0, []
for _ in range(40):
    nw, nc = Number(w), Number(c)
    loss = loss_of(nw, nc, points)
    backward(loss)
    losses.append(loss.value)
    w, c = w - 0.05 * nw.grad, c - 0.05 * nc.grad
best = np.polyfit(*np.transpose(points), 1)
print(f"downhill: {w:.3f}·x + {c:.3f}    least squares: {best[0]:.3f}·x + {best[1]:.3f}")
assert np.allclose([w, c], best, atol=1e-2)

# %%
figure, (left, right) = plt.subplots(1, 2, num="downhill", figsize=(8, 3.2), layout="constrained")
left.semilogy(losses, "o-", markersize=3)
left.set(xlabel="round", ylabel="loss")
right.plot(*np.transpose(points), "ko", label="points")
right.plot([-1, 2], [c - w, c + 2 * w], label="after 40 rounds")
right.set(xlabel="x", ylabel="y")
right.legend(frameon=False)
plt.show()

# %% [markdown]
# ## The same in the library
#
# A `Tensor` is such a number, with an array for its value. `requires_grad=True` makes it a beginning of the graph, and
# `backward` walks. Its `Node` is what we called parents, slopes, `grad` and birth.

# %%
ta = mt.tensor(np.array(2.0), requires_grad=True)
tb = mt.tensor(np.array(-1.5), requires_grad=True)
ty = ta * tb + mt.ops.sin(ta)
ty.backward()
print(ty.node, f"grad of a: {ta.grad.item():.6f}", sep="\n")
assert ta.grad.item() == na.grad and tb.grad.item() == nb.grad

# %% [markdown]
# ## Exercises
#
# Replace the `...` and run the cell: the check answers at once. `mt.lessons.check("01.1")` without a function says
# again what to write.
#
# **01.1 The slopes of a quotient** · For $y = a/b$ return two numbers, the slopes of $y$ along $a$ and along $b$.


# %%
def quotient_slopes(a, b):
    """Return slope_a, slope_b."""
    ...


mt.lessons.check("01.1", quotient_slopes)

# %% [markdown]
# **01.2 A slope from the result** · For $y = \tanh x$ return $\mathrm{d}y/\mathrm{d}x$, computed from $y$ alone. (That
# is why a step may keep its result and forget what went in.)


# %%
def tanh_slope(y):
    """Return dy/dx; y: an array of results."""
    ...


mt.lessons.check("01.2", tanh_slope)

# %% [markdown]
# **01.3 The walk backwards** · `tape` is a list in order of birth. Each entry is `(parents, slopes)`; parents are places
# in the list. Return a list with the slope of the last entry along each entry.


# %%
def backward(tape):
    """Return grads, as long as tape."""
    ...


mt.lessons.check("01.3", backward)
