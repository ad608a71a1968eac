# %% [markdown]
# # 10 · Where am I?
#
# **“The dog bites the man” and “the man bites the dog” are made of the same words. How does attention know which of
# them it reads?**
#
# By itself it does not know. Positions have to be told, and there are four usual ways: add fixed waves, add learned
# vectors, turn queries and keys, or take something off the scores. The library has them in
# [nn/position.py](../minitransformer/nn/position.py) and [ops/position.py](../minitransformer/ops/position.py).
#
# [← 09 · Many heads](09_many_heads.ipynb) · [11 · Optimizers →](11_optimizers.ipynb)

# %%
import matplotlib.pyplot as plt
import numpy as np

import minitransformer as mt

rng = np.random.default_rng(0)
sentence = "the dog bites the man".split()
D = 16
vector = {word: rng.standard_normal(D) for word in sorted(set(sentence))}
x = np.stack([vector[word] for word in sentence])  # (T, D)
print("x:", x.shape, "  first and fourth row alike:", np.array_equal(x[0], x[3]))

# %% [markdown]
# ## A shuffled sentence gives shuffled outputs
#
# Each output is a sum over all keys, and a sum does not know an order. So if $P$ moves the rows of $x$ to other places,
# attention $f$ gives the same outputs at those places:
#
# $$f(Px) = P\,f(x)$$

# %%
w_q, w_k, w_v = (rng.standard_normal((D, D)) / np.sqrt(D) for _ in range(3))


def attend(x, causal=False):
    q, k, v = x @ w_q.T, x @ w_k.T, x @ w_v.T
    return mt.ops.scaled_dot_product_attention(q, k, v, causal=causal)


P = [3, 4, 2, 0, 1]  # the man bites the dog
np.testing.assert_allclose(attend(x[P]), attend(x)[P])
np.testing.assert_allclose(attend(x)[0], attend(x)[3])  # both times "the"
print(" ".join(sentence[i] for i in P), "→ the same five outputs, in another order")

# %%
figure, panels = plt.subplots(1, 2, num="shuffled", figsize=(8, 3.8), layout="constrained")
for axes, order in zip(panels, ([0, 1, 2, 3, 4], P)):
    weights = mt.ops.attention_weights(x[order] @ w_q.T, x[order] @ w_k.T)
    image = axes.imshow(weights, vmin=0, vmax=1)
    words = [sentence[i] for i in order]
    axes.set_xticks(range(5), words), axes.set_yticks(range(5), words)
    axes.set(xlabel="keys (looked at)", ylabel="queries (looking)")
figure.colorbar(image, ax=panels, label="attention weight", shrink=0.8)
plt.show()

# %% [markdown]
# “bites” looks at “dog” and at “man” in the same way in both. More heads would not help, and norms and feed-forward
# layers work on each token alone: a whole layer keeps to $f(Px) = P f(x)$. A causal mask does break it, since the first
# token sees one token and the last sees all; decoders without any positions learn something of them (Haviv et al. 2022,
# [arXiv:2203.16634](https://arxiv.org/abs/2203.16634)).

# %%
mt.manual_seed(0)
layer = mt.nn.EncoderLayer(D, 4, 32)
batch = mt.tensor(x[None].astype("float32"))
shuffled = layer(batch[:, P]).numpy()
np.testing.assert_allclose(shuffled, layer(batch).numpy()[:, P], atol=1e-5)
broken = np.abs(attend(x[P], causal=True) - attend(x, causal=True)[P]).max()
assert broken > 0.1
print(f"a layer: shuffled, too; attention with a causal mask: off by {broken:.2f}")

# %% [markdown]
# ## Way 1: add waves
#
# Give each place $t$ a vector of its own and add it to the token's. The first Transformer took sines and cosines, in
# pairs of one frequency each (Vaswani et al. 2017, [arXiv:1706.03762](https://arxiv.org/abs/1706.03762), section 3.5):
#
# $$\text{table}_{t,\,2i} = \sin(\omega_i\,t) \qquad \text{table}_{t,\,2i+1} = \cos(\omega_i\,t)
#   \qquad \omega_i = 10000^{-2i/D}$$


# %%
def waves(length, width):
    omega = 10000.0 ** (-np.arange(0, width, 2) / width)  # (D/2,)
    angle = np.arange(length)[:, None] * omega  # (T, D/2)
    return np.stack([np.sin(angle), np.cos(angle)], axis=-1).reshape(length, width)


table = waves(64, 32)
np.testing.assert_allclose(table, mt.nn.SinusoidalPositions(64, 32).table, atol=1e-12)
print("place 1:", *table[1, :6].round(3), "...")

# %% [markdown]
# Like the hands of a clock: the first pair goes round once in little more than six places, the last hardly moves. Near
# places have similar rows, and how similar depends on the distance alone:
#
# $$\text{table}_t \cdot \text{table}_u = \sum_i \cos\big(\omega_i\,(t-u)\big)$$

# %%
omega = 10000.0 ** (-np.arange(0, 32, 2) / 32)
for t, u in ((5, 3), (40, 38), (63, 0)):
    assert np.isclose(table[t] @ table[u], np.cos(omega * (t - u)).sum())
figure, (left, right) = plt.subplots(1, 2, num="waves", figsize=(9, 3.8), layout="constrained")
image = left.imshow(table, cmap="RdBu", vmin=-1, vmax=1, aspect="auto")
left.set(title="table", xlabel="column", ylabel="place t")
figure.colorbar(image, ax=left)
image = right.imshow(table @ table.T)
right.set(title="product of two rows", xlabel="place u", ylabel="place t")
figure.colorbar(image, ax=right, label="product")
plt.show()

# %% [markdown]
# And a step of $s$ places is the same rotation wherever it begins, so a matrix can learn “three places on”:
#
# $$\begin{pmatrix} \sin\omega(t+s) \\ \cos\omega(t+s) \end{pmatrix} =
#   \begin{pmatrix} \cos\omega s & \sin\omega s \\ -\sin\omega s & \cos\omega s \end{pmatrix}
#   \begin{pmatrix} \sin\omega t \\ \cos\omega t \end{pmatrix}$$

# %%
s, i = 3, 4  # three places on, for the pair of columns 8 and 9
c, sn = np.cos(omega[i] * s), np.sin(omega[i] * s)
rotation = np.array([[c, sn], [-sn, c]])
pairs = table[:, 2 * i : 2 * i + 2]
np.testing.assert_allclose(pairs[s:], pairs[:-s] @ rotation.T, atol=1e-12)
rotation.round(3)

# %% [markdown]
# ## Way 2: add what is learned
#
# Or let the table be a parameter, as BERT and GPT-2 do. Each place is then learned for itself: a batch of texts of five
# tokens teaches rows 0 to 4 and no other. And what is not in the table cannot be read at all.

# %%
mt.manual_seed(0)
learned = mt.nn.LearnedPositions(8, 4)
y = learned(mt.tensor(np.zeros((2, 5, 4), "float32")))
y.backward(np.ones(y.shape, "float32"))
print("gradient of each row:", *learned.weight.grad.numpy()[:, 0])
try:
    learned(mt.tensor(np.zeros((1, 9, 4), "float32")))
except ValueError as error:
    print("nine places:", error)

# %% [markdown]
# ## Way 3: turn queries and keys
#
# What counts is mostly how far apart two tokens are. Rotary positions (Su et al. 2021,
# [arXiv:2104.09864](https://arxiv.org/abs/2104.09864)) build that in. They leave $x$ and the values alone, take the
# numbers of queries and keys in pairs, $(a, b)$ as $a + ib$, and turn each pair by an angle that grows with the place:
#
# $$R_t\,(a + ib) = (a + ib)\,e^{\,i\,\omega t}$$


# %%
def turn(x, start=0):
    """Turn x (T, K), whose first row stands at place start; number i pairs with i + K/2."""
    half = x.shape[1] // 2
    omega = 10000.0 ** (-np.arange(half) / half)
    angle = (start + np.arange(len(x)))[:, None] * omega
    z = (x[:, :half] + 1j * x[:, half:]) * np.exp(1j * angle)
    return np.concatenate([z.real, z.imag], axis=1)


q, k = x @ w_q.T, x @ w_k.T
np.testing.assert_allclose(turn(q, 7), mt.nn.RotaryPositions(D, max_length=64)(q, start=7))
print("lengths stay:", np.allclose(np.linalg.norm(turn(q), axis=1), np.linalg.norm(q, axis=1)))

# %% [markdown]
# Turn two vectors by the same angle, and their product stays. So in a score only the difference of the two places is
# left:
#
# $$\langle R_t\,q,\; R_u\,k\rangle = \langle q,\; R_{u-t}\,k\rangle$$

# %%
one_q, one_k = q[:1], k[:1]
for t, u in ((2, 5), (12, 15), (50, 53)):
    score = (turn(one_q, t) @ turn(one_k, u).T).item()
    assert np.isclose(score, (one_q @ turn(one_k, u - t).T).item())
    print(f"query at {t}, key at {u}: {score:.6f}")

# %%
places = np.arange(6)
figure, panels = plt.subplots(1, 2, num="turning", figsize=(8, 3.8), layout="constrained")
for pair, axes in enumerate(panels):
    one = np.repeat(np.eye(D)[pair : pair + 1], 6, axis=0)  # a = 1, b = 0 at each place
    a, b = turn(one)[:, [pair, pair + D // 2]].T
    axes.quiver(0 * a, 0 * a, a, b, places, cmap="viridis", angles="xy", scale_units="xy", scale=1)
    for t in places:
        axes.text(1.15 * a[t], 1.15 * b[t], t, ha="center", va="center")
    axes.set(title=f"pair {pair} at places 0 to 5", xlabel="a", ylabel="b", aspect="equal")
    axes.set(xlim=(-1.35, 1.35), ylim=(-1.35, 1.35))
plt.show()

# %%
same = turn(np.repeat(one_q, 24, axis=0)) @ turn(np.repeat(one_k, 24, axis=0)).T
for ahead in range(-23, 24):
    assert np.allclose(np.diff(np.diag(same, ahead)), 0)
figure, axes = plt.subplots(num="rotary", figsize=(5, 3.8), layout="constrained")
figure.colorbar(axes.imshow(same), ax=axes, label="score")
axes.set(title="one query and one key", xlabel="place of the key", ylabel="place of the query")
plt.show()

# %% [markdown]
# ## Way 4: take something off for distance
#
# ALiBi (Press et al. 2021, [arXiv:2108.12409](https://arxiv.org/abs/2108.12409)) tells positions to the scores alone.
# Each head $h$ of $H$ takes off the distance times a slope of its own, and learns nothing for it:
#
# $$\text{score}_{h,t,u} = \frac{q_t \cdot k_u}{\sqrt K} - m_h\,|t-u| \qquad m_h = 2^{-8h/H}, \quad h = 1 \dots H$$


# %%
def alibi(heads, length):
    slopes = 2.0 ** (-8 * np.arange(1, heads + 1) / heads)
    place = np.arange(length)
    return -slopes[:, None, None] * np.abs(place[:, None] - place)  # (H, T, T)


bias = alibi(8, 32)
theirs = mt.nn.AlibiBias(8)(32, 32, bias)  # by distance, (H, 2·T − 1)
np.testing.assert_allclose(bias, mt.ops.by_distance(theirs, queries=32))
print("slopes:", *(-bias[:, 0, 1]))

# %%
figure, axes = plt.subplots(num="alibi", figsize=(7, 3.4), layout="constrained")
alike, distance = np.zeros((32, 4)), 31 - np.arange(32)
for h in (0, 2, 4, 7):
    weights = mt.ops.attention_weights(alike, alike, causal=True, bias=bias[h])
    label = f"slope {-bias[h, 0, 1]:g}"
    axes.plot(distance, weights[-1], "o-", markersize=3, label=label)
axes.set(xlabel="distance of the key", ylabel="attention weight")
axes.set_title("all queries and keys alike: what the bias alone does", fontsize=11)
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# A steep head sees its neighbours, a flat one the whole text. T5 learns such biases instead, one for each range of
# distances (`RelativeBias` in the library).
#
# ## Shifted
#
# Put the five words at places 20 to 24 instead of 0 to 4. Do they look at one another as before? With the first two
# ways a place is a thing of its own; with the last two only distances count.


# %%
mt.manual_seed(0)
waves_32, rotary = mt.nn.SinusoidalPositions(32, D), mt.nn.RotaryPositions(D, 32)
learned_32 = mt.nn.LearnedPositions(32, D, std=1)  # as large as the words


def weights_at(way, start):
    added = {"sinusoidal": waves_32, "learned": learned_32}.get(way)
    here = x if added is None else added(mt.tensor(x), start).numpy()
    q, k = here @ w_q.T, here @ w_k.T
    q, k = (rotary(q, start), rotary(k, start)) if way == "rotary" else (q, k)
    span = slice(start, start + 5)
    return mt.ops.attention_weights(q, k, bias=bias[0, span, span] if way == "ALiBi" else None)


weights_at("rotary", 20).round(2)

# %%
change = {}
for way in ("sinusoidal", "learned", "rotary", "ALiBi"):
    change[way] = np.abs(weights_at(way, 20) - weights_at(way, 0)).max()
    print(f"{way:10}: a weight changes by up to {change[way]:.3f}")
assert min(change["sinusoidal"], change["learned"]) > 0.05
assert max(change["rotary"], change["ALiBi"]) < 1e-12

# %% [markdown]
# ## Beyond the trained length
#
# Now a task that needs positions: tokens 0 to 3 are letters, 4 to 9 are noise, and at each place the **last letter so
# far** is asked for. A model of one causal attention layer has to find letters, and among them the nearest.


# %%
def letters(rng, count, length):
    ids = rng.integers(0, 10, (count, length))
    ids[:, 0] = rng.integers(0, 4, count)  # begin with a letter
    last = np.maximum.accumulate(np.where(ids < 4, np.arange(length), 0), axis=1)
    return ids, np.take_along_axis(ids, last, axis=1)


ids, asked = letters(np.random.default_rng(1), 1, 16)
print("tokens:", *ids[0])
print("asked: ", *asked[0])


# %%
class Model(mt.nn.Module):
    def __init__(self, added=None, inside=None):
        self.embedding, self.added = mt.nn.Embedding(10, 32), added
        self.attention = mt.nn.MultiHeadAttention(32, 4, positions=inside)
        self.output = mt.nn.Linear(32, 4)

    def forward(self, ids):
        x = self.embedding(ids)
        x = x if self.added is None else self.added(x)
        return self.output(x + self.attention(x, causal=True))


Model()(ids).shape

# %% [markdown]
# Each way is trained on texts of 16 tokens, and then asked about texts of 64. The tables have 64 rows, so nothing is
# refused; but rows 16 to 63 of the learned one are as they were drawn.


# %%
def train(model, steps=1000):
    data, optimizer = np.random.default_rng(0), mt.optim.Adam(model.parameters())
    for step in range(1, steps + 1):
        ids, asked = letters(data, 16, 16)
        loss = mt.ops.cross_entropy(model(ids), asked)
        optimizer.zero_grad()
        loss.backward()
        optimizer.lr = 0.01 * min(step / 50, 1 - step / (steps + 1))
        optimizer.step()
    return model


loss = mt.ops.cross_entropy(train(Model(), steps=100)(ids), asked)
print(f"loss after 100 steps: {loss.item():.2f} (chance: {np.log(4):.2f})")


# %%
def share_right(model):
    ids, asked = letters(np.random.default_rng(1), 500, 64)
    with mt.no_grad():
        return (model(ids).numpy().argmax(axis=-1) == asked).mean(axis=0)  # by place, (64,)


mt.manual_seed(0)
models = {"none": Model(), "learned": Model(mt.nn.LearnedPositions(64, 32))}
models["sinusoidal"] = Model(mt.nn.SinusoidalPositions(64, 32))
models["rotary"] = Model(inside=mt.nn.RotaryPositions(8, 64))
models["ALiBi"] = Model(inside=mt.nn.AlibiBias(4))
right = {way: share_right(train(model)) for way, model in models.items()}
for way, share in right.items():
    print(f"{way:10}: right at 0–15 {share[:16].mean():.2f}, at 48–63 {share[48:].mean():.2f}")

# %%
figure, axes = plt.subplots(num="length", figsize=(8, 4), layout="constrained")
for way, share in right.items():
    smooth = share.reshape(32, 2).mean(axis=1)
    axes.plot(np.arange(0.5, 64, 2), smooth, "o-", markersize=3, label=way)
axes.axvline(15.5, color="0.4", linestyle=":")
axes.text(16, 0.31, "trained up to here", color="0.3")
axes.set(xlabel="place in the text", ylabel="share of right answers", ylim=(0.28, 1.02))
axes.legend(frameon=False, ncols=3, loc="lower right")
plt.show()

# %%
inside = {way: share[:16].mean() for way, share in right.items()}
beyond = {way: share[48:].mean() for way, share in right.items()}
assert inside["learned"] > 0.95 and beyond["learned"] < 0.75
assert inside["ALiBi"] > 0.9 and beyond["ALiBi"] > 0.9
assert inside["sinusoidal"] > 0.95 and beyond["sinusoidal"] < 0.8
assert inside["rotary"] > 0.95 and right["rotary"][16:24].mean() > 0.9
assert inside["none"] < 0.85
print("what holds at trained places need not hold beyond them")

# %% [markdown]
# Without positions a model finds the letters and cannot tell which is the last. Learned vectors and waves serve well
# where they were trained, and fail just beyond. Rotations hold on for a while, until there are keys at distances whose
# angles never occurred; to squeeze the places back into the trained range helps, with some more training
# (`rotary_scaling`; Chen et al. 2023, [arXiv:2306.15595](https://arxiv.org/abs/2306.15595)). ALiBi goes on without a
# break. The task suits it, though: it asks for what is near, and that is what ALiBi prefers everywhere.
#
# | way | where | learned | only distance counts | longer texts |
# |---|---|---|---|---|
# | sinusoidal | added to $x$ | no | no | defined, but not learned |
# | learned | added to $x$ | yes | no | none beyond the table |
# | rotary | turns $q$ and $k$ | no | yes | good for a while |
# | ALiBi | in the scores | no | yes | made for them |
#
# ## Exercises
#
# Replace the `...` and run the cell: the check answers at once. `mt.lessons.check("10.1")` without a function says
# again what to write.
#
# **10.1 The table of waves** · Return the table of sinusoidal positions, `(length, width)`, for an even width: sines in
# the even columns, cosines in the odd ones.


# %%
def sinusoids(length, width):
    """Return the table."""
    ...


mt.lessons.check("10.1", sinusoids)

# %% [markdown]
# **10.2 Turn by an angle** · `x` is `(T, K)`, `angle` is `(T, K/2)`. Turn the pairs (number $i$, number $i + K/2$) by
# their angles, without complex numbers.


# %%
def rotate(x, angle):
    """Return y, (T, K)."""
    ...


mt.lessons.check("10.2", rotate)

# %% [markdown]
# **10.3 The bias of ALiBi** · `slopes` is `(H,)`. Return the bias of every head, query and key, `(H, length, length)`.


# %%
def alibi_bias(slopes, length):
    """Return the bias."""
    ...


mt.lessons.check("10.3", alibi_bias)

# %% [markdown]
# **10.4 The vjp of learned positions** · Row $b$ of a batch begins at place `starts[b]`: `y[b, t] = x[b, t] +
# weight[starts[b] + t]`. `g` is the gradient of `y`, `(B, T, D)`. Return that of `weight`, `(rows, D)`.


# %%
def learned_positions_vjp(starts, g, rows):
    """Return g_weight."""
    ...


mt.lessons.check("10.4", learned_positions_vjp)
