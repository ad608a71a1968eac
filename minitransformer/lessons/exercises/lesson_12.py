"""Lesson 12, the whole Transformer: what goes in, what may be looked at, what is counted, and how it writes."""

from types import SimpleNamespace

import numpy as np

from ... import generate, ops
from ...data import BOS, EOS, PAD, pad_batch
from ..exercise import exercise


def _rows(rng):
    lengths = (5, 2, 3)
    return [rng.integers(4, 14, n).tolist() for n in lengths], BOS, EOS, PAD


@exercise(
    "12.1",
    "Teacher forcing",
    task="""Return target_in (bos, then the row) and target_out (the row, then eos), both filled up with pad behind
    their ends to the longest.""",
    inputs=_rows,
    returns=("target_in", "target_out"),
)
def teacher_forcing(rows, bos, eos, pad):
    return pad_batch([(row, row) for row in rows])[1:]


def _filled(rows, pad, front=False):
    longest = max(map(len, rows))
    fill = [[pad] * (longest - len(row)) for row in rows]
    return np.array([[*f, *row] if front else [*row, *f] for f, row in zip(fill, rows, strict=True)])


@teacher_forcing.mistake(
    "not moved", "both rows begin with bos: at each place the model is given the very token that it shall say."
)
def _(rows, bos, eos, pad):
    both = _filled([[bos, *row] for row in rows], pad)
    return both, both


@teacher_forcing.mistake("bos said", "what shall be said does not begin with bos: nobody asks the model for that.")
def _(rows, bos, eos, pad):
    return _filled([[bos, *row, eos] for row in rows], pad), _filled([[bos, *row, eos] for row in rows], pad)


@teacher_forcing.mistake("eos given", "after eos there is nothing to say, so the model is not given it.")
def _(rows, bos, eos, pad):
    return _filled([[bos, *row, eos] for row in rows], pad), _filled([[*row, eos] for row in rows], pad)


@teacher_forcing.mistake("eos behind the padding", "eos comes right behind the last token of its row, then padding.")
def _(rows, bos, eos, pad):
    end = np.full((len(rows), 1), eos)
    return _filled([[bos, *row] for row in rows], pad), np.concatenate([_filled(rows, pad), end], axis=1)


@teacher_forcing.mistake("padded in front", "pad stands behind the ends, where no real place looks: it looks back.")
def _(rows, bos, eos, pad):
    return _filled([[bos, *row] for row in rows], pad, True), _filled([[*row, eos] for row in rows], pad, True)


@teacher_forcing.mistake("swapped", "the two are right and stand in the wrong order: what is given comes first.")
def _(rows, bos, eos, pad):
    return _filled([[*row, eos] for row in rows], pad), _filled([[bos, *row] for row in rows], pad)


def _padded_ids(rng):
    source, target = rng.integers(4, 14, (2, 5)), rng.integers(4, 14, (2, 3))
    source[0, 3:], target[1, 2:] = PAD, PAD
    return source, target, PAD


@exercise(
    "12.2",
    "The masks of a batch",
    task="""Return the encoder's mask (B, S, S) and that of the decoder's self-attention (B, T, T): boolean, True = may
    look. Padding is not looked at as a key (what it looks at itself does not matter, and is left as it comes); the
    decoder looks at its own place and back.""",
    inputs=_padded_ids,
    returns=("encoder", "decoder"),
)
def masks(source, target_in, pad):
    read, written = source.shape[1], target_in.shape[1]
    encoder = np.broadcast_to((source != pad)[:, None, :], (len(source), read, read))
    return encoder, ops.causal_mask(written, written, np) & (target_in != pad)[:, None, :]


def _keys(ids, pad):
    return np.repeat((ids != pad)[:, None, :], ids.shape[1], axis=1)


@masks.mistake("not oneself", "the decoder may look at its own place, too: the diagonal is allowed.")
def _(source, target_in, pad):
    t = target_in.shape[1]
    return _keys(source, pad), _keys(target_in, pad) & np.tril(np.ones((t, t), bool), -1)


@masks.mistake("ahead", "the triangle is the wrong way round: row t is who looks, and may look at columns up to t.")
def _(source, target_in, pad):
    t = target_in.shape[1]
    return _keys(source, pad), _keys(target_in, pad) & np.triu(np.ones((t, t), bool))


@masks.mistake("rows hidden", "padding is hidden as a key, which is a column; here its rows are hidden.")
def _(source, target_in, pad):
    t = target_in.shape[1]
    back = np.tril(np.ones((t, t), bool))
    return _keys(source, pad).swapaxes(1, 2), _keys(target_in, pad).swapaxes(1, 2) & back


@masks.mistake("rows and columns", "hide the columns of padding only: a row that may look nowhere helps nobody.")
def _(source, target_in, pad):
    t = target_in.shape[1]
    back = np.tril(np.ones((t, t), bool))
    encoder, decoder = _keys(source, pad), _keys(target_in, pad)
    return encoder & encoder.swapaxes(1, 2), decoder & decoder.swapaxes(1, 2) & back


@masks.mistake("target's padding", "the triangle is right; the padding of target_in is still looked at.")
def _(source, target_in, pad):
    t = target_in.shape[1]
    return _keys(source, pad), np.broadcast_to(np.tril(np.ones((t, t), bool)), (len(source), t, t))


@masks.mistake("encoder looks back only", "the encoder reads all at once: it may look ahead, too.")
def _(source, target_in, pad):
    s, t = source.shape[1], target_in.shape[1]
    return _keys(source, pad) & np.tril(np.ones((s, s), bool)), _keys(target_in, pad) & np.tril(np.ones((t, t), bool))


def _scored(rng):
    target = rng.integers(4, 7, (2, 5))
    target[1, 2:] = PAD
    return rng.standard_normal((2, 5, 7)), target, PAD


@exercise(
    "12.3",
    "The loss of a padded batch",
    task="Return the mean of −ln p(target) over the places of the batch where target is not pad; p = softmax(logits).",
    inputs=_scored,
    returns=("loss",),
)
def masked_loss(logits, target, pad):
    return ops.cross_entropy(logits, target, ignore_index=pad)


def _surprise(logits, target):
    e = np.exp(logits - logits.max(axis=-1, keepdims=True))
    p = e / e.sum(axis=-1, keepdims=True)
    return -np.log(np.take_along_axis(p, target[..., None], axis=-1)[..., 0])


@masked_loss.mistake("padding counted", "padding is no token: leave its places out of the sum and of the count.")
def _(logits, target, pad):
    return _surprise(logits, target).mean()


@masked_loss.mistake("divided by all places", "the sum is right; divide by the places that count, not by all B·T.")
def _(logits, target, pad):
    return (_surprise(logits, target) * (target != pad)).mean()


@masked_loss.mistake(
    "mean of means", "average over the tokens of the batch: a mean for each row makes short rows dear."
)
def _(logits, target, pad):
    real = target != pad
    return ((_surprise(logits, target) * real).sum(axis=1) / real.sum(axis=1)).mean().astype(logits.dtype)


@masked_loss.mistake("a sum", "that is the sum; the mean does not grow with the batch.")
def _(logits, target, pad):
    return _surprise(logits, target)[target != pad].sum()


@masked_loss.mistake(
    "log of the mean", "take the logarithm of each place first, then the mean; not the other way round."
)
def _(logits, target, pad):
    return -np.log(np.exp(-_surprise(logits, target))[target != pad].mean())


@masked_loss.mistake("bits", "that is in bits: nats come from the natural logarithm.")
def _(logits, target, pad):
    return _surprise(logits, target)[target != pad].mean() / np.log(2).astype(logits.dtype)


def _table(rng):
    """Make scores by which greedy writing goes through some tokens, and ends after them or would never end."""
    table = rng.standard_normal((9, 9))
    order = [BOS, *rng.permutation(np.arange(3, 9))[: int(rng.integers(3, 6))].tolist(), EOS]
    for now, following in zip(order, order[1:], strict=False):
        table[now, following] = 5
    return table, BOS, EOS, int(rng.integers(2, 8))


def _chain(table):
    """Return a model for generate.translate whose logits depend on the last token alone."""
    return SimpleNamespace(
        config=SimpleNamespace(pad_id=-1),
        encode=lambda source: (source, source != -1),
        decode=lambda ids, memory, real, caches: table[ids],
        parameters=lambda: [],
    )


def _given(function, table, bos, eos, most):
    return function(table, bos, eos, most)


@exercise(
    "12.4",
    "Greedy writing",
    task="""Begin with bos; take the token with the highest score in table[last], put it behind, and go on until eos or
    until there are `most` tokens. Return the list without bos and eos.""",
    inputs=_table,
    returns=("tokens",),
)
def write_greedily(table, bos, eos, most):
    return generate.translate(_chain(table), [[3]], bos, eos, most, cached=False)[0]


def _walk(table, last, eos, most, choose=np.argmax):
    """Write, and return all with the end, if it came."""
    written: list = []
    while len(written) < most and last != eos:
        last = int(choose(table[last]))
        written.append(last)
    return written


def _without(written, eos):
    return [token for token in written if token != eos]


@write_greedily.mistake("bos kept", "bos starts the writing, and is no part of what is written.")
def _(table, bos, eos, most):
    return [bos, *_without(_walk(table, bos, eos, most), eos)]


@write_greedily.mistake("eos kept", "eos ends the text, and is no part of it.")
def _(table, bos, eos, most):
    return _walk(table, bos, eos, most)


@write_greedily.mistake("never ends", "writing ends when eos is the likeliest, and not only after `most` tokens.")
def _(table, bos, eos, most):
    return _walk(table, bos, -1, most)


@write_greedily.mistake("one too few", "`most` counts the tokens that are written, bos not among them.")
def _(table, bos, eos, most):
    return _without(_walk(table, bos, eos, most - 1), eos)


@write_greedily.mistake("from bos again", "each token is scored after the one before it: table[last], not table[bos].")
def _(table, bos, eos, most):
    return _without([int(np.argmax(table[bos]))] * most, eos)
