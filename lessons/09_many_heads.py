# %% [markdown]
# # 09 · Many heads
#
# **One head gives each token one row of weights, and so one mixture of the others. What can two heads of half the
# width do that one head of the full width cannot, and what do they cost?**
#
# We split the width between heads, let each attend for itself, put the results side by side and project them: that is
# multi-head attention (Vaswani et al. 2017, [arXiv:1706.03762](https://arxiv.org/abs/1706.03762), section 3.2.2), in
# the library [nn/attention.py](../minitransformer/nn/attention.py). Then we find a task at which one head must fail,
# and count parameters and FLOPs.
#
# [← 08 · Attention, one number at a time](08_attention.ipynb) · [10 · Where am I? →](10_positions.ipynb)

# %%
import matplotlib.pyplot as plt
import numpy as np

import minitransformer as mt
from minitransformer import draw

T, D, H = 5, 12, 3  # tokens, model width, heads
K = D // H  # width of a head
rng = np.random.default_rng(0)
x = rng.standard_normal((T, D))
print(f"{T} tokens of {D} numbers; {H} heads of {K} numbers each")

# %% [markdown]
# ## Split
#
# Each token is projected to queries, keys and values as before, $D$ numbers each. Head $h$ then gets its own slice of
# them, $K = D/H$ numbers:
#
# $$q_h = q_{:,\; hK\,:\,(h+1)K} \qquad h = 0, \dots, H-1$$
#
# Cut the last axis in two, `(T, D) → (T, H, K)`, and bring the heads to the front, `(H, T, K)`.


# %%
def split(x, heads):
    tokens, width = x.shape
    return x.reshape(tokens, heads, width // heads).swapaxes(0, 1)  # (H, T, K)


w_q, w_k, w_v, w_out = (rng.standard_normal((D, D)) / np.sqrt(D) for _ in range(4))
q, k, v = (split(x @ w.T, H) for w in (w_q, w_k, w_v))
for h in range(H):
    assert np.array_equal(q[h], (x @ w_q.T)[:, h * K : (h + 1) * K])
print("q of one head:", q[0].shape, "  of all:", q.shape)

# %% [markdown]
# Why not `x.reshape(H, T, K)` at once? It has the right shape, raises nothing, and is wrong: it cuts the memory into
# pieces of the right size without regard to where a token ends. Below, the number $12$ stands for column 2 of token 1;
# the colour tells the token. A row of a head must be of one colour.

# %%
numbers = 10 * np.arange(4)[:, None] + np.arange(6)  # 4 tokens of 6 numbers
panels = {"x: 4 tokens, 6 numbers": numbers}
right, wrong = split(numbers, 2), numbers.reshape(2, 4, 3)
for h in range(2):
    panels[f"split: head {h}"] = right[h]
for h in range(2):
    panels[f"reshape alone: {h}"] = wrong[h]
token = np.arange(4)[:, None]
assert (right // 10 == token).all() and (wrong // 10 != token).any()
print(*wrong, sep="\n\n")

# %%
figure, row = plt.subplots(
    1, 5, num="split", figsize=(10, 2.6), layout="constrained", width_ratios=[6, 3, 3, 3, 3]
)
for axes, (title, values) in zip(row, panels.items()):
    axes.imshow(values // 10, cmap="Pastel1", vmin=0, vmax=8)
    for (t, c), number in np.ndenumerate(values):
        axes.text(c, t, f"{number:02d}", ha="center", va="center")
    axes.set(title=title, xticks=[], yticks=[])
    axes.title.set_fontsize(10)
plt.show()

# %% [markdown]
# ## Attend in each head
#
# Inside a head nothing is new. Note the scale: the scores of a head are sums of $K$ products, not of $D$.
#
# $$\operatorname{head}_h = \operatorname{softmax}\!\left(\frac{q_h\,k_h^\top}{\sqrt{K}}\right) v_h$$
#
# With the heads as the first axis, `@` does all of them at once; a loop gives the same.


# %%
def softmax(scores):
    e = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


p = softmax(q @ k.swapaxes(-1, -2) / np.sqrt(K))  # (H, T, T)
heads = p @ v  # (H, T, K)
for h in range(H):
    np.testing.assert_allclose(heads[h], softmax(q[h] @ k[h].T / np.sqrt(K)) @ v[h])
np.testing.assert_allclose(heads, mt.ops.scaled_dot_product_attention(q, k, v))
print("weights", p.shape, " heads", heads.shape)

# %% [markdown]
# ## Concatenate and project
#
# The way back is the split in reverse: `(H, T, K) → (T, H, K) → (T, D)`. Then $W_{out}$ mixes the heads. Written with
# its slices $W_{out,h}$ of $K$ columns each, this is a sum: **each head adds its own part to the result**, and does
# not know of the others.
#
# $$y = [\operatorname{head}_0;\,\dots;\,\operatorname{head}_{H-1}]\;W_{out}^\top
#     = \sum_h \operatorname{head}_h W_{out,h}^\top$$


# %%
def join(heads):
    count, tokens, width = heads.shape
    return heads.swapaxes(0, 1).reshape(tokens, count * width)


y = join(heads) @ w_out.T
parts = [heads[h] @ w_out[:, h * K : (h + 1) * K].T for h in range(H)]
np.testing.assert_allclose(y, sum(parts))
assert np.array_equal(join(split(x, H)), x)
print("shares of the first token's first number:", [f"{part[0, 0]:.3f}" for part in parts])

# %% [markdown]
# The library's module does the same with the same weights, and keeps them in four `Linear` modules.

# %%
module = mt.nn.MultiHeadAttention(D, H, bias=False)
names = ("q_proj", "k_proj", "v_proj", "out_proj")
module.load_state_dict({f"{n}.weight": w for n, w in zip(names, (w_q, w_k, w_v, w_out))})
with mt.no_grad():
    theirs, weights = module(mt.tensor(x[None].astype("float32")), return_weights=True)
np.testing.assert_allclose(theirs.numpy()[0], y, atol=1e-6)
np.testing.assert_allclose(weights.numpy()[0], p, atol=1e-6)
print("the same y and the same weights as the library")

# %% [markdown]
# ## What one head cannot do
#
# Eight tokens sit in a circle; each carries four random numbers. Each shall learn whether things rise or fall around
# it: **the right neighbour minus the left one**. A head that is told positions can look at either neighbour, so where
# is the problem? Whatever a head sends is $M \sum_j p_j x_j$: the same matrix $M = W_{out}W_v$ for everybody, in shares
# $p_j \geq 0$. With independent numbers of variance 1 and weights that come from positions, its mean squared error is
#
# $$E = \lVert p_{r} M - I\rVert^2 + \lVert p_{l} M + I\rVert^2
#     + \sum_{j \neq l, r} p_j^2\,\lVert M\rVert^2 \;\geq\; 4$$
#
# where always zero as an answer has $E = 8$. Why at least $4$? A number $m$ on the diagonal of $M$ is either positive,
# and then $(p_l m + 1)^2 \geq 1$, or not, and then $(p_r m - 1)^2 \geq 1$. This happens four times. One head can fetch
# one of the two neighbours, no more.


# %%
def error(p, m, left=0, right=1):
    rest = (np.delete(p, [left, right]) ** 2).sum() * (m**2).sum()
    eye = np.eye(len(m))
    return ((p[right] * m - eye) ** 2).sum() + ((p[left] * m + eye) ** 2).sum() + rest


shares, m = softmax(rng.standard_normal(8)), rng.standard_normal((4, 4))
draws = rng.standard_normal((100_000, 8, 4))
sent = (shares[:, None] * draws).sum(axis=1) @ m.T
measured = ((sent - (draws[:, 1] - draws[:, 0])) ** 2).sum(axis=-1).mean()
assert abs(measured / error(shares, m) - 1) < 0.02
print(f"E by the formula {error(shares, m):.2f}, on {len(draws)} draws {measured:.2f}")

# %%
tried = [
    error(softmax(rng.normal(0, 4, 8)), s * np.eye(4) + s * rng.normal(0, 0.1, (4, 4)))
    for s in rng.uniform(-1.5, 1.5, 20_000)
]
best = error(np.eye(8)[1], np.eye(4))
assert min(tried) >= 4 and best == 4
print(f"least error in {len(tried)} tries: {min(tried):.2f}")
print(f"all weight on the right neighbour, M = I: {best:.0f}")

# %% [markdown]
# ## What two can
#
# Two heads, each half as wide: one looks to the left, the other to the right, and $W_{out}$ subtracts. We set the
# weights by hand. A token is its four numbers, then a one for its place (of eight), then four zeros: $D = 16$, $K = 8$.
# A query is the token's own place; a key says which place shall find it.


# %%
def circle(rng, batch):
    x = np.zeros((batch, 8, 16), "float32")
    x[..., :4], x[..., 4:12] = rng.standard_normal((batch, 8, 4)), np.eye(8)
    content = x[..., :4]
    return x, np.roll(content, -1, axis=1) - np.roll(content, 1, axis=1)


sequence, slope = circle(rng, 1)
print("token 2:", *sequence[0, 2].round(1))
print("its target:", *slope[0, 2].round(1))

# %%
place, eye = slice(4, 12), np.eye(8)
by_hand = {name: np.zeros((16, 16)) for name in names}
by_hand["q_proj"][:8, place] = by_hand["q_proj"][8:, place] = 60 * eye
by_hand["k_proj"][:8, place] = np.roll(eye, 1, axis=0)  # head 0: found by the next
by_hand["k_proj"][8:, place] = np.roll(eye, -1, axis=0)  # head 1: found by the one before
by_hand["v_proj"][:4, :4] = by_hand["v_proj"][8:12, :4] = np.eye(4)
by_hand["out_proj"][:4, :4], by_hand["out_proj"][:4, 8:12] = -np.eye(4), np.eye(4)
two = mt.nn.MultiHeadAttention(16, 2, bias=False)
two.load_state_dict({f"{name}.weight": w for name, w in by_hand.items()})
off = np.abs(two(mt.tensor(sequence)).numpy()[..., :4] - slope).max()
assert off < 1e-5
print(f"all {slope.size} numbers are right")

# %% [markdown]
# ## Does training find it?
#
# The bound above holds for weights that come from positions. A trained head may look at the numbers, too; does that
# help it? We train one, two and four heads of one total width, all with the same number of parameters, and plot the
# error as a share of the targets' variance.


# %%
def loss_of(module, x, target):
    return ((module(mt.tensor(x))[..., :4] - target) ** 2).mean() / 2  # a target has variance 2


mt.manual_seed(0)
fresh = mt.nn.MultiHeadAttention(16, 1)
x, target = circle(np.random.default_rng(0), 64)
assert loss_of(two, x, target).item() < 1e-9
print(f"before training: {loss_of(fresh, x, target).item():.2f} of the variance; by hand: nothing")


# %%
def train(heads, steps=1000):
    mt.manual_seed(1)
    data, module = np.random.default_rng(1), mt.nn.MultiHeadAttention(16, heads)
    optimizer, curve = mt.optim.Adam(module.parameters(), lr=0.01), []
    for _ in range(steps):
        loss = loss_of(module, *circle(data, 64))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        curve.append(loss.item())
    return module, curve


print(f"one head after 100 steps: {train(1, 100)[1][-1]:.2f} of the variance")

# %%
trained = {heads: train(heads) for heads in (1, 2, 4)}
ends = {heads: np.mean(curve[-50:]) for heads, (_, curve) in trained.items()}
assert 0.45 < ends[1] < 0.55 and ends[2] < 0.01 and ends[4] < 0.01
print(f"one head ends at {ends[1]:.2f}; with two and with four the error is below 0.01")

# %%
figure, axes = plt.subplots(num="training", figsize=(7, 3.4), layout="constrained")
for heads, (_, curve) in trained.items():
    smooth = np.convolve(curve, np.ones(20) / 20, mode="valid")
    axes.semilogy(smooth, label=f"{heads} head{'s' * (heads > 1)} of {16 // heads} numbers")
axes.axhline(0.5, color="0.4", linestyle=":", label="bound for one head")
axes.set(xlabel="training step", ylabel="error / variance")
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# One head stays at about one half, as the bound says: looking at the numbers hardly helps. See what the two heads have
# learned. Each row is a token that looks, each column one that is looked at.

# %%
x, _ = circle(np.random.default_rng(2), 1)
with mt.no_grad():
    _, seen = trained[2][0](mt.tensor(x), return_weights=True)
tokens = [f"token {i}" for i in range(8)]
figure = draw.attention_grid(seen.numpy()[:, :2], tokens, tokens)
figure.set_label("two-heads")
figure

# %% [markdown]
# They need not look at one token alone, as ours by hand did. It is enough that they **differ** at the two neighbours:
# elsewhere both have the same weight, and $W_{out}$ subtracts it away.

# %%
difference = seen.numpy()[0, 0] - seen.numpy()[0, 1]
left, right = (np.array([difference[i, (i + s) % 8] for i in range(8)]) for s in (-1, 1))
others = [difference[i, j] for i in range(8) for j in range(8) if (j - i) % 8 not in (1, 7)]
print("at the left neighbour: ", left.round(2))
print("at the right neighbour:", right.round(2))
print(f"elsewhere at most {np.abs(others).max():.3f}")
assert np.abs(others).max() < 0.1 < 0.2 < min(np.abs(left).min(), np.abs(right).min())
assert len(set(np.sign(left))) == len(set(np.sign(right))) == 1 and left[0] * right[0] < 0

# %% [markdown]
# ## What narrow heads lose
#
# Nothing is free. The scores of a head are $q_h k_h^\top$ with $K$ columns each, so as a matrix they have at most rank
# $K$, however many tokens there are. With very many heads each becomes too narrow for the patterns it is to hold
# (Bhojanapalli et al. 2020, [arXiv:2002.07028](https://arxiv.org/abs/2002.07028)).
#
# $$\operatorname{rank}\!\left(q_h\,k_h^\top\right) \leq K = D/H$$

# %%
text = rng.standard_normal((20, D))
for heads in (1, 2, 3, 6, 12):
    scores = split(text @ w_q.T, heads) @ split(text @ w_k.T, heads).swapaxes(-1, -2)
    ranks = np.linalg.matrix_rank(scores)
    assert (ranks <= D // heads).all()
    print(f"{heads:2} heads of {D // heads:2}: 20×20 scores of rank {ranks.max()}")

# %% [markdown]
# ## What heads cost: parameters
#
# Four projections from $D$ to $D$ with their biases. $H$ is not in it: heads divide the width, they do not add to it.
#
# $$\text{parameters} = 4D^2 + 4D$$

# %%
for width, heads in ((16, 1), (16, 4), (64, 1), (64, 8)):
    parameters = sum(w.size for w in mt.nn.MultiHeadAttention(width, heads).parameters())
    assert parameters == 4 * width**2 + 4 * width
    print(f"D = {width}, H = {heads}: {parameters} parameters")

# %% [markdown]
# ## What heads cost: FLOPs
#
# A product of an $n \times k$ and a $k \times m$ matrix takes $nkm$ multiplications and about as many additions: $2nkm$
# FLOPs. The four projections take $4 \cdot 2TD^2$ together. In each head, scores and mixture take $2T^2K$ each, and
# $H$ heads of $K$ make $D$ again:
#
# $$\text{FLOPs} = 8\,T D^2 + 4\,T^2 D$$


# %%
def product(a, b):
    """Return the FLOPs, 2·n·k·m for each matrix in the stack, and a @ b."""
    return 2 * a.size * b.shape[-1], a @ b


def flops(tokens, width, heads):
    x, w = np.zeros((tokens, width)), np.zeros((width, width))
    project, q = product(x, w)
    score, scores = product(split(q, heads), split(q, heads).swapaxes(-1, -2))
    mix, _ = product(scores, split(q, heads))
    return 4 * project + score + mix


for heads in (1, 2, 8):
    assert flops(20, 64, heads) == 8 * 20 * 64**2 + 4 * 20**2 * 64
print(f"T = 20, D = 64: {flops(20, 64, 1):,} FLOPs with one head, {flops(20, 64, 8):,} with eight")

# %% [markdown]
# Only the softmax sees the number of heads: it works on $H\,T^2$ weights, and a training step may have to hold them
# all. And the two terms grow differently with the text. They meet where $8TD^2 = 4T^2D$:
#
# $$T = 2D$$

# %%
D_model = 512
assert 8 * (2 * D_model) * D_model**2 == 4 * (2 * D_model) ** 2 * D_model
along = 2 ** np.arange(5, 15)
figure, axes = plt.subplots(num="flops", figsize=(7, 3.4), layout="constrained")
axes.loglog(along, 8 * along * D_model**2, "o-", label="projections, 8·T·D²")
axes.loglog(along, 4 * along**2 * D_model, "o-", label="scores and mixtures, 4·T²·D")
axes.axvline(2 * D_model, color="0.4", linestyle=":", label="T = 2·D = 1024")
axes.set(xlabel="tokens T", ylabel="FLOPs of a layer, D = 512")
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# ## Fewer heads of keys and values
#
# When a text is written token by token, the keys and values of all earlier tokens are kept, and all of them are read
# for each new one. **Grouped-query attention** lets several heads of queries share one head of keys and values (Ainslie
# et al. 2023, [arXiv:2305.13245](https://arxiv.org/abs/2305.13245)); with a single one for all it is multi-query
# attention (Shazeer 2019, [arXiv:1911.02150](https://arxiv.org/abs/1911.02150)).

# %%
one_token = mt.tensor(np.zeros((1, 1, 64), "float32"))
for kv_heads in (8, 4, 2, 1):
    grouped = mt.nn.MultiHeadAttention(64, 8, kv_heads=kv_heads)
    count = sum(w.size for w in grouped.parameters())
    kept = 2 * grouped.keys(one_token).size  # keys, and as many values
    assert kept == 2 * kv_heads * 64 // 8
    print(
        f"{kv_heads} heads of keys and values: {count:6} parameters, {kept:3} numbers kept a token"
    )

# %% [markdown]
# ## Exercises
#
# Replace the `...` and run the cell: the check answers at once. `mt.lessons.check("09.1")` without a function says
# again what to write.
#
# **09.1 Split into heads** · Now with a batch: cut `x`, `(B, T, D)`, into heads, `(B, H, T, K)`.


# %%
def split_heads(x, heads):
    """Return (B, H, T, K)."""
    ...


mt.lessons.check("09.1", split_heads)

# %% [markdown]
# **09.2 The vjp of the split** · `g` is the gradient of what `split_heads` returns, `(B, H, T, K)`. Return `g_x`,
# `(B, T, D)`. (The split moves numbers and changes none; so where does each gradient belong?)


# %%
def split_vjp(g):
    """Return g_x."""
    ...


mt.lessons.check("09.2", split_vjp)

# %% [markdown]
# **09.3 Multi-head attention** · `x` is `(T, D)`, the four weights are `(D, D)` as in `Linear` (rows are outputs).
# Project, split, attend, join, project; no mask, no bias.


# %%
def multi_head(x, w_q, w_k, w_v, w_out, heads):
    """Return y, (T, D)."""
    ...


mt.lessons.check("09.3", multi_head)

# %% [markdown]
# **09.4 Parameters with grouped queries** · How many parameters have the four projections, with biases, when `heads`
# heads of queries share `kv_heads` heads of keys and values?


# %%
def count_parameters(d_model, heads, kv_heads):
    """Return an integer."""
    ...


mt.lessons.check("09.4", count_parameters)
