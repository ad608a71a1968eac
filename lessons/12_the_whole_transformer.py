# %% [markdown]
# # 12 · The whole Transformer
#
# **All parts are there: embeddings, positions, attention, feed-forward layers, norms, an optimizer. Put together, can
# they learn to write a sequence backwards, from nothing but examples?**
#
# Reversing is translation at its smallest: the words stay, their order changes. Whoever wants to write the next symbol
# has to find the right place in the source, and that is what attention is for. The real thing lives in
# [transformer.py](../minitransformer/models/transformer.py); `minitransformer train reversal` trains a larger one.
#
# [← 11 · Optimizers](11_optimizers.ipynb) · [13 · Translation →](13_translation.ipynb)

# %%
import matplotlib.pyplot as plt
import numpy as np

import minitransformer as mt
from minitransformer import draw, generate
from minitransformer.data import BOS, EOS, PAD
from minitransformer.kernels.blas import limit_blas_threads
from minitransformer.models import Transformer, TransformerConfig

print("minitransformer", mt.__version__)

# %% [markdown]
# ## Three rows for each example
#
# A sequence has one to eight digits. One in 16 of all sequences is set aside for the test and never trained on. In a
# batch each example has three rows: what the **encoder** reads, what the **decoder** is given, and what it shall say.

# %%
LONGEST = 8
task = mt.data.Reversal(symbols=10, min_length=1, max_length=LONGEST)
batch = task.batch(step=1, batch_size=64)
for name, row in batch._asdict().items():
    print(f"{name:10} {row.shape}  ", *task.tokenizer.tokens(row[0]))

# %% [markdown]
# The decoder is given the right answer, moved by one place: behind `<bos>` it shall say the first symbol, behind the
# first symbol the second, and behind the last one `<eos>`. So it never has to live with its own mistakes while it
# learns. That is called **teacher forcing**. Shorter sequences are filled up with `<pad>`.
#
# ## The model
#
# We take a small one: one layer, one head, width 64.

# %%
mt.manual_seed(0)
V = len(task.tokenizer)  # ten digits and four special tokens
config = TransformerConfig(
    V, V, d_model=64, heads=1, layers=1, d_ff=256, dropout=0.0, max_length=32, norm="pre",
    tie_embeddings="none",
)  # fmt: skip
model = Transformer(config)
print(f"V = {V}, {sum(p.size for p in model.parameters()):,} parameters")

# %% [markdown]
# What happens inside is short enough to be written down. The encoder turns the source $x$ into the **memory** $m$, one
# vector for each symbol:
#
# $$ x_1 = x + \operatorname{attend}(\operatorname{norm}_1 x) \qquad
#    m = \operatorname{norm}\bigl(x_1 + \operatorname{feed}(\operatorname{norm}_2 x_1)\bigr) $$
#
# Here is that line by line, beside what the library says.


# %%
def encode(source):
    x = model.embed(source, model.source_embedding)  # embeddings·√D + positions
    layer, real = model.encoder.layers[0], source != PAD
    x = x + layer.self_attention(layer.norm1(x), key_mask=real)
    x = x + layer.feed_forward(layer.norm2(x))
    return model.encoder.norm(x), real


memory, real = encode(batch.source)
np.testing.assert_allclose(memory.numpy(), model.encode(batch.source)[0].numpy(), atol=1e-5)
print("memory", memory.shape, "  the same as the library's")

# %% [markdown]
# The decoder has one part more. Between the other two it looks at the memory: **cross-attention**, with queries from
# the decoder and keys and values from the encoder. The last line turns its vectors into one score, a **logit**, for
# each of the $V$ tokens:
#
# $$ y_1 = y + \operatorname{attend}(\operatorname{norm}_1 y) \qquad
#    y_2 = y_1 + \operatorname{attend}(\operatorname{norm}_2 y_1,\; m) $$
#
# $$ \text{logits} = \operatorname{norm}\bigl(y_2 + \operatorname{feed}(\operatorname{norm}_3 y_2)\bigr)\;W^{\top} $$


# %%
def decode(target, memory, real):
    y, layer = model.embed(target, model.target_embedding), model.decoder.layers[0]
    y = y + layer.self_attention(layer.norm1(y), causal=True)
    y = y + layer.cross_attention(layer.norm2(y), memory, key_mask=real)
    y = y + layer.feed_forward(layer.norm3(y))
    return model.decoder.norm(y) @ model.output.weight.T


logits = decode(batch.target_in, memory, real)
library = model(batch.source, batch.target_in)
np.testing.assert_allclose(logits.numpy(), library.numpy(), atol=1e-4)
print("logits", logits.shape, "  the same as the library's")

# %% [markdown]
# ## Three masks
#
# `real` hides the padding of the source, twice: from the encoder itself and from the decoder. `causal` hides what comes
# later in the target, since that is what the decoder shall guess. Without it the task would be to copy the next symbol
# from the row that is given. The padding at the end of a target needs no mask: no real position looks that far ahead.
#
# A mask is easily got wrong, and a wrong one often still trains. So we test it by touching: change one token of the
# target into another, and see which outputs move.


# %%
def moved(side, place):
    """Return how far each row of logits moves when one token is changed.  → (T,)"""
    rows = [source.copy(), target.copy()]
    rows[side][0, place] = 4 + (rows[side][0, place] - 3) % 10  # another digit
    after = model(*rows).numpy()
    return np.abs(after - model(source, target).numpy()).max(axis=-1)[0]


source, target = batch.source[:1], batch.target_in[:1]
by_target = np.transpose([moved(1, place) for place in range(target.shape[1])])
print(by_target.round(1))
assert not np.triu(by_target, 1).any() and (np.diag(by_target) > 0).all()

# %% [markdown]
# No output moves when a later token is changed: zeros above the diagonal, and each zero is exact. Padding is tested by
# taking it away. With the mask nothing may change; without the mask a lot does, so the test can tell the two apart.

# %%
real_length = int((source != PAD).sum())
alone, padded = model(source[:, :real_length], target).numpy(), model(source, target).numpy()
everywhere = np.ones(source.shape, dtype=bool)  # no mask: padding counts as real
x = model.encoder(model.embed(source, model.source_embedding), key_mask=everywhere)
unmasked = model.decode(target, x, everywhere).numpy()
print(f"{source.shape[1] - real_length} places of padding in the source")
print(f"with the masks   logits move by {np.abs(padded - alone).max():.6f}")
print(f"without          logits move by {np.abs(unmasked - alone).max():.2f}")
assert np.allclose(padded, alone, atol=1e-5) and np.abs(unmasked - alone).max() > 0.1

# %%
by_source = np.transpose([moved(0, place) for place in range(real_length)])
given = task.tokenizer.tokens(target[0])
figure, panels = plt.subplots(1, 2, num="influence", figsize=(9, 4.2), layout="constrained")
figure.get_layout_engine().set(wspace=0.1)
sides = (target, "target"), (source, "source")
for axes, by, (ids, side) in zip(panels, (by_target, by_source), sides):
    image = axes.imshow(np.where(by > 0, by, np.nan), cmap="viridis", vmin=0, aspect="auto")
    axes.set_xticks(range(by.shape[1]), task.tokenizer.tokens(ids[0, : by.shape[1]]), rotation=90)
    axes.set_yticks(range(len(given)), given)
    axes.set(xlabel=f"changed token of the {side}", ylabel="output behind this token")
    figure.colorbar(image, ax=axes, label="logits moved by at most")
plt.show()

# %% [markdown]
# White means: did not move at all. In the target, a token moves its own output and later ones; in the source, every
# symbol moves every output.
#
# ## The loss
#
# The model says for each place how likely each token is, and the loss is its surprise at the right one, averaged over
# all $N$ places that are not padding, in nats:
#
# $$ L = -\frac{1}{N} \sum_{t} \ln p(y_t \mid y_1 \ldots y_{t-1},\, x) $$

# %%
p = mt.ops.softmax(library).numpy()
places = batch.target_out != PAD
chosen = np.take_along_axis(p, batch.target_out[..., None], axis=-1)[..., 0]
by_hand = -np.log(chosen[places]).mean()
loss = mt.ops.cross_entropy(library, batch.target_out, ignore_index=PAD)
print(f"{places.sum()} places, loss {loss.item():.4f}")
assert abs(by_hand - loss.item()) < 1e-5

# %% [markdown]
# ## What a fresh model must cost
#
# Before any training we know what this number should be about. Who has no idea and gives all $V$ tokens the same chance
# pays $\ln V$. A fresh model has ideas, all of them wrong: its logits have some spread $\sigma$, and for that it pays
# about $\sigma^2/2$ more:
#
# $$ L_0 \approx \ln V + \frac{\sigma^2}{2} $$
#
# (The right token's logit is 0 on average, and $\ln \sum_v e^{z_v} \approx \ln V + \sigma^2/2$ for normal $z$.)


# %%
def initial_loss(seed, scale):
    """Return the spread of a fresh model's logits, its output weights scaled, and the loss."""
    mt.manual_seed(seed)
    fresh = Transformer(config)
    with mt.no_grad():
        x = fresh.features(batch.target_in, *fresh.encode(batch.source))
        z = x @ (fresh.output.weight * scale).T
    return z.numpy()[places].std(), mt.ops.cross_entropy(z, batch.target_out, PAD).item()


spread, losses = np.array([initial_loss(seed, 1.0) for seed in range(20)]).T
expected = np.log(V) + (spread**2).mean() / 2
print(f"ln {V} = {np.log(V):.3f}    with spread {expected:.3f}    20 models {losses.mean():.3f}")
assert abs(expected - losses.mean()) < 0.1

# %%
scales = np.repeat([0.0, 0.25, 0.5, 0.75, 1.0, 1.25], 10)
spread, losses = np.transpose([initial_loss(seed, scales[seed]) for seed in range(len(scales))])
assert np.allclose(losses[scales == 0], np.log(V), atol=1e-6)  # no spread: exactly ln V
curve = np.linspace(0, spread.max(), 50)
figure, axes = plt.subplots(num="initial-loss", figsize=(6.5, 3.6), layout="constrained")
axes.plot(curve, np.log(V) + curve**2 / 2, color="#d95f02", label="ln V + σ²/2")
axes.plot(spread, losses, "o", color="#08519c", alpha=0.6, label="60 fresh models")
axes.axhline(np.log(V), color="grey", linestyle=":", label=f"ln V = {np.log(V):.3f}")
axes.set(xlabel="spread σ of the logits", ylabel="loss at initialisation (nats)")
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# Ten models for each size of the output weights, from nothing to a quarter more than usual. Where they are zero, the
# loss is $\ln V$ to the last digit. Far above the curve would mean a mistake in the scale of something; far below
# $\ln V$, before any training, that the answer leaks.
#
# ## What attention is worth
#
# One more number to know beforehand: what is the best loss **without looking at the source**? Lengths are even among
# 1 … 8 and digits among ten, so a sequence of length $n$ costs $\ln 8 + n \ln 10$ nats, spread over $n + 1$ tokens:
#
# $$ L_{\text{blind}} = \frac{\ln 8 + \bar n \ln 10}{\bar n + 1}, \qquad \bar n = \frac{1 + \dots + 8}{8} = 4.5 $$
#
# We check it by counting: a guesser who knows how often each token comes at each place, and nothing else.

# %%
blind = (np.log(8) + 4.5 * np.log(10)) / 5.5
counts = np.zeros((LONGEST + 1, V))
for step in range(1, 301):
    rows = task.batch(step, 64).target_out
    for place, column in enumerate(rows.T):
        counts[place] += np.bincount(column[column != PAD], minlength=V)
shares = counts / counts.sum(axis=1, keepdims=True)
guesser = -(counts[counts > 0] * np.log(shares[counts > 0])).sum() / counts.sum()
print(f"blind {blind:.3f}    counted {guesser:.3f}")
assert abs(blind - guesser) < 0.03

# %% [markdown]
# Only a model that reads the source gets below this line.
#
# ## Training
#
# Five hundred steps: gradients, clipped; AdamW; a learning rate that rises first and then falls (lesson 11).

# %%
STEPS, RATE = 500, 5e-3
optimizer = mt.optim.AdamW(model.parameters(), lr=RATE)
schedule = mt.optim.WarmupCosine(RATE, warmup=50, total=STEPS)
print({step: round(schedule(step), 5) for step in (1, 25, 50, 250, 500)})


# %%
def train_step(step):
    source, given, wanted = task.batch(step, 64)
    loss = mt.ops.cross_entropy(model(source, given), wanted, ignore_index=PAD)
    model.zero_grad()
    loss.backward()
    mt.optim.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.lr = schedule(step)
    optimizer.step()
    return loss.item()


losses = [train_step(1)]
print(f"step 1: {losses[0]:.2f} nats")

# %% [markdown]
# Now the others. The products are small: one thread will do.

# %%
with limit_blas_threads(1):
    losses += [train_step(step) for step in range(2, STEPS + 1)]
crossed = int(np.argmax(np.array(losses) < blind)) + 1
print(f"step {STEPS}: {losses[-1]:.4f} nats; below {blind:.2f} from step {crossed} on")
assert losses[-1] < 0.1

# %%
figure, axes = plt.subplots(num="loss", figsize=(7.5, 3.8), layout="constrained")
axes.semilogy(range(1, STEPS + 1), losses, color="#08519c", label="training")
axes.axhline(np.log(V), color="grey", ls=":", label=f"all tokens alike, ln V = {np.log(V):.2f}")
axes.axhline(blind, color="#d95f02", ls="--", label=f"without the source, {blind:.2f}")
ticks = [3, 1, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001]
axes.set_yticks(ticks, [str(tick) for tick in ticks])
axes.minorticks_off()
axes.set(xlabel="training step", ylabel="loss (nats per token)")
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# The scale is logarithmic. Once the curve is below the dashed line, the model must be reading the source.
#
# ## Writing
#
# To write a new sequence nobody gives the right answer any more. The model gets its own words back: it starts with
# `<bos>`, takes the likeliest token, puts it behind, and goes on until that token is `<eos>`. Reading happens once.


# %%
def write(sequence, most=20):
    memory, real = model.encode(np.array([sequence]))
    written = [BOS]
    while written[-1] != EOS and len(written) <= most:
        logits = model.decode(np.array([written]), memory, real).numpy()
        written.append(int(logits[0, -1].argmax()))
    return [token for token in written if token not in (BOS, EOS)]


model.eval()
sequence = task.tokenizer.encode("0 1 2 3 4 5 6 7")
print(task.tokenizer.decode(sequence), " → ", task.tokenizer.decode(write(sequence)))

# %% [markdown]
# `generate.translate` does this for many sequences at once, and keeps what it has computed (lesson 14). Here are the
# sequences that were set aside, and the share of them that came out right from the first symbol to the last.

# %%
held_out = task.held_out(256)
outputs = generate.translate(model, held_out, BOS, EOS, max_length=20)
assert outputs[:20] == [write(sequence) for sequence in held_out[:20]]
exact = np.mean([output == s[::-1] for output, s in zip(outputs, held_out)])
print(f"{len(held_out)} sequences never trained on, {exact:.1%} reversed without a mistake")
assert exact > 0.95

# %% [markdown]
# ## Where does it look?
#
# Each row of the heatmap is a token that the decoder writes, each column one that the encoder has read; the number is
# the weight that cross-attention gives it.


# %%
def cross_attention(source, title):
    weights = model.attention(np.array([source]), np.array([[BOS, *source[::-1]]]))["cross"][0]
    rows = task.tokenizer.tokens([*source[::-1], EOS])
    return weights[0, 0], draw.attention_heatmap(
        weights[0, 0], rows, task.tokenizer.tokens(source), title=title
    )


weights, figure = cross_attention(sequence, "cross-attention after training")
figure.set_label("cross-after")
figure

# %% [markdown]
# **The anti-diagonal.** To write the first symbol it looks at the last, and so on back to the beginning. Nobody told it
# to: the loss asked only for the next symbol. The last row, which writes `<eos>`, looks at the beginning of the source,
# where the others have come to their end.
#
# Is that so for this sequence alone? Let us ask all held-out sequences of eight: how much of its weight does row $t$
# give to the place $n - 1 - t$?

# %%
eights = np.array([s for s in held_out if len(s) == LONGEST])
given = np.concatenate([np.full((len(eights), 1), BOS), eights[:, ::-1]], axis=1)
of_all = model.attention(eights, given)["cross"][0][:, 0, :LONGEST]  # without the row of <eos>
on_anti_diagonal = of_all[:, np.arange(LONGEST), np.arange(LONGEST)[::-1]].mean()
mt.manual_seed(0)
fresh = Transformer(config).attention(eights, given)["cross"][0][:, 0, :LONGEST]
before = fresh[:, np.arange(LONGEST), np.arange(LONGEST)[::-1]].mean()
print(f"{len(eights)} sequences: {on_anti_diagonal:.2f} on the anti-diagonal, fresh {before:.2f}")
assert on_anti_diagonal > 0.6

# %%
figure, panels = plt.subplots(1, 2, num="mean-attention", figsize=(9, 4), layout="constrained")
for axes, mean, name in zip(panels, (fresh, of_all), ("fresh model", "after training")):
    image = axes.imshow(mean.mean(axis=0), vmin=0, vmax=1, cmap="viridis")
    axes.set(title=name, xlabel="place in the source", ylabel="place in the target")
    axes.set(xticks=range(LONGEST), yticks=range(LONGEST))
figure.colorbar(image, ax=panels, label="mean weight", shrink=0.8)
plt.show()

# %% [markdown]
# ## Where it ends
#
# It learned from lengths up to eight. Has it understood what reversing is? Ask it for longer ones.

# %%
rng = np.random.default_rng(1)
right = {}
for length in range(1, 13):
    asked = [rng.integers(4, 14, length).tolist() for _ in range(40)]
    outputs = generate.translate(model, asked, BOS, EOS, max_length=20)
    right[length] = np.mean([output == s[::-1] for output, s in zip(outputs, asked)])
print({length: f"{share:.0%}" for length, share in right.items()})
assert right[8] > 0.8 > 0.2 > right[10]

# %%
figure, axes = plt.subplots(num="lengths", figsize=(6.5, 3.2), layout="constrained")
colours = ["#08519c" if length <= LONGEST else "#d95f02" for length in right]
axes.bar(list(right), list(right.values()), color=colours)
axes.axvline(LONGEST + 0.5, color="grey", linestyle=":")
axes.text(LONGEST + 0.6, 0.9, "never trained on")
axes.set(xlabel="length of the sequence", ylabel="share reversed exactly", xticks=list(right))
plt.show()

# %% [markdown]
# It has not. It has learned what to do at the places that it was trained on; the marks of the positions beyond (lesson
# 10) are new to it.
#
# ## Exercises
#
# **12.1 Teacher forcing** · `rows` is a list of lists of token ids. Return `target_in` and `target_out`, padded to one
# length with `pad`: what the decoder is given, and what it shall say.


# %%
def teacher_forcing(rows, bos, eos, pad):
    """Return target_in, target_out; integers (B, T)."""
    ...


mt.lessons.check("12.1", teacher_forcing)

# %% [markdown]
# **12.2 The masks of a batch** · Return two boolean arrays, True = may look: who may look at what in the encoder,
# $(B, S, S)$, and in the decoder's self-attention, $(B, T, T)$. Nobody looks at padding, and the decoder not ahead.


# %%
def masks(source, target_in, pad):
    """Return encoder, decoder."""
    ...


mt.lessons.check("12.2", masks)

# %% [markdown]
# **12.3 The loss of a padded batch** · Return the mean surprise, in nats, at the tokens of `target` $(B, T)$ that are
# not `pad`, from `logits` $(B, T, V)$.


# %%
def masked_loss(logits, target, pad):
    """Return the loss, one number."""
    ...


mt.lessons.check("12.3", masked_loss)

# %% [markdown]
# **12.4 Greedy writing** · A very small model: `table[i]` $(V,)$ are the scores of what may follow token `i`. Write from
# `bos` until `eos` comes, or until there are `most` tokens; return the list without `bos` and `eos`.


# %%
def write_greedily(table, bos, eos, most):
    """Return a list of token ids."""
    ...


mt.lessons.check("12.4", write_greedily)
