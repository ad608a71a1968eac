# %% [markdown]
# # 13 · Translation
#
# **English says eighty-seven, German says siebenundachtzig: seven-and-eighty. Can the model of lesson 12 learn which
# word goes where, from 800 examples? And is it wise to write the likeliest word each time?**
#
# Number words are a small piece of real language: the order changes, words appear that have no twin (*und*, "and"), and
# one word has two forms (*ein*, *eins*). The pairs come from
# [number_words.py](../minitransformer/data/number_words.py), the ways to write from
# [beam.py](../minitransformer/generate/beam.py).
#
# [← 12 · The whole Transformer](12_the_whole_transformer.ipynb) ·
# [14 · Cheaper attention →](14_cheaper_attention.ipynb)

# %%
import itertools
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np

import minitransformer as mt
from minitransformer import draw, generate
from minitransformer.data import BOS, EOS, PAD
from minitransformer.kernels.blas import limit_blas_threads
from minitransformer.models import Transformer, TransformerConfig

print("minitransformer", mt.__version__)

# %% [markdown]
# ## A thousand pairs
#
# All numbers below a thousand, in both languages. A fifth of them is held out: the model will know every word, but
# never have seen these numbers.

# %%
pairs = mt.data.number_pairs(1000)
training, held_out = mt.data.split_pairs(pairs, 0.2, seed=0)
english, german = (mt.data.NumberWordTokenizer(f"numbers-{code}") for code in ("en", "de"))
print(f"{len(training)} pairs to learn from, {len(held_out)} held out, such as")
for number in (1, 16, 87, 101, 345):
    pieces = english.split(pairs[number][0]), german.split(pairs[number][1])
    print(f"{number:5}   {' · '.join(pieces[0]):30} {' · '.join(pieces[1])}")

# %% [markdown]
# Words are cut into tokens, German ones where they were put together.
#
# ## Training
#
# As in lesson 12: teacher forcing, padding, the same small model. Batches are made of pairs of like length, so that
# there is little padding.

# %%
mt.manual_seed(0)
config = TransformerConfig(
    len(english), len(german), d_model=64, heads=1, layers=1, d_ff=256, dropout=0.0,
    max_length=32, norm="pre", tie_embeddings="none",
)  # fmt: skip
model = Transformer(config)
ids = [(english.encode(source), german.encode(target)) for source, target in training]
batches = mt.data.PairBatches(ids, tokens_per_batch=288)
source, given, wanted = batches.at(1)
print("a batch:", source.shape, given.shape, f"  padding in all: {batches.padding_fraction():.0%}")

# %%
STEPS, RATE = 500, 5e-3
optimizer = mt.optim.AdamW(model.parameters(), lr=RATE)
schedule = mt.optim.WarmupCosine(RATE, warmup=50, total=STEPS)
print({step: round(schedule(step), 5) for step in (1, 25, 50, 250, 500)})


# %%
def train(first, last):
    for step in range(first, last + 1):
        source, given, wanted = batches.at(step)
        loss = mt.ops.cross_entropy(model(source, given), wanted, ignore_index=PAD)
        model.zero_grad()
        loss.backward()
        mt.optim.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.lr = schedule(step)
        optimizer.step()
        yield loss.item()


losses = list(train(1, 1))
print(f"step 1: {losses[0]:.2f} nats, ln V = {np.log(len(german)):.2f}")

# %% [markdown]
# We keep the weights of step 40, a **young** model that is often unsure: it will be of use below.

# %%
with limit_blas_threads(1):
    losses += train(2, 40)
    young = {name: array.copy() for name, array in model.state_dict().items()}
    losses += train(41, STEPS)
model.eval()
print(f"step 40: {losses[39]:.2f}    step {STEPS}: {losses[-1]:.4f} nats per token")

# %%
figure, axes = plt.subplots(num="loss", figsize=(7.5, 3.4), layout="constrained")
axes.semilogy(range(1, STEPS + 1), losses, color="#08519c")
axes.semilogy(40, losses[39], "o", color="#d95f02")
axes.annotate("the young model", (40, losses[39]), (70, 1.5), arrowprops=dict(arrowstyle="->"))
axes.set(xlabel="training step", ylabel="loss (nats per token)")
plt.show()

# %% [markdown]
# ## Greedily
#
# Take the likeliest token, again and again, as in lesson 12.

# %%
sources = [english.encode(source) for source, _ in held_out]
references = [german.encode(target) for _, target in held_out]
written = generate.translate(model, sources, BOS, EOS, max_length=20)
exact = np.mean([w == r for w, r in zip(written, references)])
for (source, _), ids in list(zip(held_out, written))[10::45]:
    print(f"{source:28} {german.decode(ids)}")
print(f"{exact:.1%} of {len(held_out)} unseen numbers are right")
assert exact > 0.95

# %% [markdown]
# ## Heatmaps that cross
#
# Rows are what is written, columns what is read. Up to the hundreds both languages go the same way; then German says
# the units first, so the weights must cross.


# %%
def look(number):
    source, target = english.encode(pairs[number][0]), german.encode(pairs[number][1])
    weights = model.attention(np.array([source]), np.array([[BOS, *target]]))["cross"][0][0, 0]
    return weights, german.tokens([*target, EOS]), english.tokens(source)


figure = draw.attention_heatmap(*look(87), title="eighty-seven → siebenundachtzig")
figure.set_label("cross-87")
figure

# %%
figure = draw.attention_heatmap(*look(345), title="three hundred forty-five")
figure.set_label("cross-345")
figure

# %% [markdown]
# The word *und* has no twin; here it looks at the tens that it introduces. The same as lines between the two
# sentences, the stronger the greater the weight:

# %%
numbers = (87, 345, 962)
figure, panels = plt.subplots(1, 3, num="lines", figsize=(10, 3.2), layout="constrained")
for axes, number in zip(panels, numbers):
    weights, below, above = look(number)
    top, bottom = np.linspace(0, 1, len(above)), np.linspace(0, 1, len(below) - 1)
    for t, s in itertools.product(range(len(bottom)), range(len(top))):
        axes.plot([top[s], bottom[t]], [1, 0], color="#08519c", alpha=float(weights[t, s]), lw=2.5)
    for x, y, words in ((top, 1.08, above), (bottom, -0.22, below)):
        for at, word in zip(x, words):
            axes.text(at, y, word, ha="center", fontsize=9, rotation=25)
    axes.axis((-0.15, 1.15, -0.4, 1.4)), axes.set_axis_off()
plt.show()

# %% [markdown]
# Is it so in general? All held-out numbers whose two last English words are tens and units: does the row of the German
# units look most at the English units, the last word, and the row of the tens at the word before?

# %%
crossing = []
for pair in held_out:
    words = english.split(pair[0])
    if len(words) > 1 and words[-2].endswith("ty"):
        weights, rows, _ = look(pairs.index(pair))
        units, tens = rows.index("und") - 1, rows.index("und") + 1
        most = weights.argmax(axis=1) - len(words)  # −1 is the last word
        crossing.append((most[units] == -1, most[tens] == -2))
share = np.mean(crossing, axis=0)
print(f"{len(crossing)} numbers: units {share[0]:.0%}, tens {share[1]:.0%} where they should")
assert share.min() > 0.9

# %% [markdown]
# Nobody gave the model these alignments; it was given pairs of sentences.
#
# ## The likeliest sentence
#
# A model gives a whole sentence a probability: the product of those of its tokens, `<eos>` among them. Its logarithm
# is a sum:
#
# $$ \ln p(y \mid x) = \sum_{t=1}^{T} \ln p(y_t \mid y_1 \ldots y_{t-1},\, x) $$


# %%
def sentence_log_p(source, ids):
    """Return ln p of each token, <eos> last: one pass, as in training."""
    logits = model(np.array([source]), np.array([[BOS, *ids]]))
    log_p = mt.ops.log_softmax(logits).numpy()[0]
    return log_p[np.arange(len(ids) + 1), [*ids, EOS]]


log_p = sentence_log_p(sources[0], written[0])
loss = mt.ops.cross_entropy(
    model(np.array([sources[0]]), np.array([[BOS, *written[0]]])), np.array([[*written[0], EOS]])
)
print(f"{held_out[0][0]} → {german.decode(written[0])}: p = {np.exp(log_p.sum()):.4f}")
assert np.isclose(log_p.mean(), -loss.item(), atol=1e-5)

# %% [markdown]
# Greedy writing looks for a likely sentence, one token at a time. Does it find the likeliest? Look at a language of
# three words, A, B and C, where the next word depends on the last one alone:

# %%
A, B, C, V = 3, 4, 5, 6
P = np.zeros((V, V))
P[BOS, [A, B]] = 0.55, 0.45
P[A, [A, B, C, EOS]] = 0.1, 0.25, 0.4, 0.25
P[B, [C, EOS]] = 0.95, 0.05
P[C, EOS] = 1.0
NAMES = ["<pad>", "<bos>", "<eos>", "A", "B", "C"]
for row in (BOS, A, B, C):
    print(f"{NAMES[row]:6}", {NAMES[v]: P[row, v].item() for v in np.flatnonzero(P[row])})

# %% [markdown]
# Greedy writing begins with A, since 0.55 > 0.45, and never learns that a sentence with B would have been likelier. We
# can see all sentences of up to five words, as there are few:


# %%
def say(ids):
    return " ".join(NAMES[i] for i in ids)


sentences = {}
for length in range(1, 6):
    for words in itertools.product((A, B, C), repeat=length):
        path = [BOS, *words, EOS]
        sentences[words] = np.prod([P[i, j] for i, j in itertools.pairwise(path)])
ranked = sorted(sentences, key=sentences.get, reverse=True)
for words in ranked[:4]:
    print(f"{say(words):6} p = {sentences[words]:.4f}")
assert ranked[0] == (B, C) and ranked[1] == (A, C)

# %% [markdown]
# ## Beams
#
# **Beam search** keeps several beginnings, the *beams*, side by side. In each round it extends each of them by every
# word and keeps the best. What ends among the best is finished; as many as before go on.


# %%
def beam_round(going, finished, beams):
    """Extend all beginnings by one word; (ids, ln p) each."""
    with np.errstate(divide="ignore"):
        longer = [(i + [v], s + np.log(P[i[-1], v])) for i, s in going for v in range(V)]
    longer = sorted((x for x in longer if x[1] > -np.inf), key=lambda x: -x[1])
    finished = finished + [x for x in longer[:beams] if x[0][-1] == EOS]
    return [x for x in longer if x[0][-1] != EOS][:beams], finished


going, finished = [([BOS], 0.0)], []
for number in range(1, 4):
    going, finished = beam_round(going, finished, beams=2)
    for name, texts in (("going on", going), ("finished", finished)):
        print(f"round {number}, {name}:", *(f"{say(i[1:])} {np.exp(s):.3f}  " for i, s in texts))

# %% [markdown]
# Two beams find B C, which greedy writing misses. The library does the same, for whole batches and any model; for our
# table we lend it one whose scores depend on the last token alone.


# %%
class Chain(SimpleNamespace):
    """A model for `generate` whose logits are the rows of a table."""

    config = SimpleNamespace(pad_id=PAD)

    def parameters(self):
        return []

    def encode(self, source):
        return source, source != PAD

    def decode(self, ids, memory, real, caches):
        return self.table[ids]


with np.errstate(divide="ignore"):
    language = Chain(table=np.log(P))
print("after <bos>:", np.exp(language.decode([[BOS]], None, None, None)))

# %%
for beams in (1, 2):
    (best,) = generate.beam_translate(language, [[A]], BOS, EOS, 6, beams, 0.0, cached=False)
    print(beams, *(f"  {say(h.ids)} {np.exp(h.score):.4f}" for h in best))
assert tuple(best[0].ids) == ranked[0] and np.isclose(np.exp(best[0].score), sentences[ranked[0]])

# %% [markdown]
# ## Beams for the young model
#
# Our trained model is so sure of itself that beams find hardly anything new:

# %%
beams = generate.beam_translate(model, sources, BOS, EOS, 20, beams=4, length_penalty=0.0)
changed = sum(best[0].ids != ids for best, ids in zip(beams, written))
print(f"four beams change {changed} of {len(sources)} translations")
assert changed <= 10

# %% [markdown]
# The young one is not. Where do four beams find a likelier translation than greedy writing?

# %%
model.load_state_dict(young)
MOST = 20
greedy = generate.translate(model, sources, BOS, EOS, MOST)
four = generate.beam_translate(model, sources, BOS, EOS, MOST, beams=4, length_penalty=0.0)
ended = [i for i, ids in enumerate(greedy) if len(ids) < MOST]
gained = [four[i][0].score - sentence_log_p(sources[i], greedy[i]).sum() for i in ended]
more, less = (sum(sign * g > 1e-4 for g in gained) for sign in (1, -1))
print(f"{len(greedy) - len(ended)} greedy sentences have no end after {MOST} tokens")
print(f"of the other {len(ended)}, beams find {more} likelier and {less} less likely ones")
assert more > 0

# %% [markdown]
# (Less likely can happen, too, as the beginning of the greedy sentence may drop out of the beams.) Here is a sentence
# that beams get right and greedy writing does not, and one where greedy writing never finds the end.

# %%
rescued = [i for i, r in enumerate(references) if four[i][0].ids == r != greedy[i]]
longest = int(np.argmax([len(ids) for ids in greedy]))
print(f"{len(rescued)} sentences are rescued")
for at in (rescued[0], longest):
    print(f"\n{held_out[at][0]} → {held_out[at][1]}")
    for name, ids in (("greedy", greedy[at]), ("beams", four[at][0].ids)):
        steps = zip(german.tokens([*ids, EOS]), np.exp(sentence_log_p(sources[at], ids)))
        print(f"{name:7}", *(f"{token} {p:.2f} " for token, p in list(steps)[:8]))

# %% [markdown]
# ## Long or short?
#
# Each further token makes a sentence less likely, so $\ln p$ prefers short ones. The usual remedy divides by a power of
# the length, $\alpha$ being the **length penalty**:
#
# $$ \text{score} = \frac{\ln p(y \mid x)}{T^{\alpha}} $$

# %%
best_of = {
    alpha: generate.beam_translate(model, sources, BOS, EOS, MOST, beams=4, length_penalty=alpha)
    for alpha in (0.0, 2.0)
}
firsts = [[results[i][0].ids for results in best_of.values()] for i in range(len(sources))]
at = next(i for i, (a, b) in enumerate(firsts) if a != b and max(len(a), len(b)) < MOST)
print(held_out[at][0], "→", held_out[at][1])
for alpha, results in best_of.items():
    best = results[at][0]
    log_p = sentence_log_p(sources[at], best.ids)
    print(f"α = {alpha}: {german.decode(best.ids)}, ln p = {log_p.sum():.3f}, T = {len(log_p)}")
    assert np.isclose(best.score, log_p.sum() / len(log_p) ** alpha, atol=1e-4)

# %%
alphas, widths, found = (0.0, 0.5, 1.0, 2.0), (1, 2, 4, 8), {}
for alpha, beams in itertools.product(alphas, widths):
    best = generate.beam_translate(model, sources, BOS, EOS, MOST, beams, alpha)
    ids = [hypotheses[0].ids for hypotheses in best]
    right = np.mean([i == r for i, r in zip(ids, references)])
    found[alpha, beams] = right, np.mean([len(i) for i in ids])
true_length = np.mean([len(r) for r in references])
for alpha in alphas:
    print(f"α = {alpha}: ", *(f"{b} beams {found[alpha, b][0]:.1%}" for b in widths), sep="  ")

# %%
figure, (left, right) = plt.subplots(1, 2, num="beams", figsize=(10, 3.6), layout="constrained")
for alpha in alphas:
    left.plot(widths, [found[alpha, b][0] for b in widths], "o-", label=f"α = {alpha}")
    right.plot(widths, [found[alpha, b][1] for b in widths], "o-", label=f"α = {alpha}")
right.axhline(true_length, color="grey", linestyle=":", label="right answers")
left.set(xlabel="beams", ylabel="share right, young model", xscale="log", xticks=widths)
right.set(xlabel="beams", ylabel="mean length (tokens)", xscale="log", xticks=widths)
for axes in (left, right):
    axes.set_xticklabels(widths), axes.minorticks_off()
right.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()

# %% [markdown]
# More beams find likelier sentences; whether those are **better** is another question. This young model errs by writing
# on and on, so preferring short sentences is a help, and a length penalty takes that help away. A model that stops too
# early wants the opposite. So beams and penalty are tried on held-out sentences, as any setting is.
#
# ## Exercises
#
# **13.1 The score of a sentence** · `logits` $(T, V)$ are a model's scores at each place, `target` $(T,)$ the tokens
# that were written, `<eos>` last. Return $\ln p$ of the sentence over $T^{\alpha}$.


# %%
def sentence_score(logits, target, alpha):
    """Return the score, one number."""
    ...


mt.lessons.check("13.1", sentence_score)

# %% [markdown]
# **13.2 One round of beams** · `totals` $(N,)$ are the $\ln p$ of $N$ beginnings, and `log_p` $(N, V)$ those of each next
# token. Return, for the $N$ best extensions, the best first: which beginning, which token, and its new total. (No token
# ends a sentence here.)


# %%
def beam_step(totals, log_p):
    """Return beams, tokens, totals; (N,) each."""
    ...


mt.lessons.check("13.2", beam_step)

# %% [markdown]
# **13.3 The caches follow the beams** · Each beginning has kept keys, `kept` $(N, H, S, K)$. Now `beams` $(M,)$ says which
# beginnings go on, some perhaps twice, and `new` $(M, H, 1, K)$ are the keys of their new tokens. Return the keys that
# are kept from now on, $(M, H, S + 1, K)$.


# %%
def follow(kept, beams, new):
    """Return the keys of the beams that were chosen."""
    ...


mt.lessons.check("13.3", follow)
