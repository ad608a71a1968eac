"""Lesson 13, translation: what a sentence is worth, and what beams do in a round."""

import numpy as np

from ... import ops
from ...generate.beam import _Sentence
from ...nn import KVCache
from ...tensor import no_grad
from ..exercise import exercise


@exercise(
    "13.1",
    "The score of a sentence",
    task="Return Σ ln p(target[t]) over T to the power of alpha, where p is the softmax of the logits of place t.",
    inputs=lambda rng: (rng.standard_normal((5, 7)), rng.integers(0, 7, 5), float(rng.choice([0.5, 0.7, 2.0]))),
    returns=("the score",),
)
def sentence_score(logits, target, alpha):
    return -ops.cross_entropy(logits, target, reduction="sum") / len(target) ** alpha


def _log_p(logits, target):
    top = logits.max(axis=-1, keepdims=True)
    log_p = logits - top - np.log(np.exp(logits - top).sum(axis=-1, keepdims=True))
    return np.take_along_axis(log_p, target[:, None], axis=-1)[:, 0]


@sentence_score.mistake("no softmax", "logits are not yet ln p: subtract ln Σ e^z of each place.")
def _(logits, target, alpha):
    return np.take_along_axis(logits, target[:, None], axis=-1).sum() / len(target) ** alpha


@sentence_score.mistake("always the mean", "divide by T to the power of alpha, and not by T.")
def _(logits, target, alpha):
    return _log_p(logits, target).mean()


@sentence_score.mistake("multiplied", "the sum is right; the power of the length divides it.")
def _(logits, target, alpha):
    return _log_p(logits, target).sum() * len(target) ** alpha


@sentence_score.mistake("no penalty", "that is ln p itself; divide it by T to the power of alpha.")
def _(logits, target, alpha):
    return _log_p(logits, target).sum()


@sentence_score.mistake("eos left out", "the end counts, too: in the sum and in the length.")
def _(logits, target, alpha):
    return _log_p(logits[:-1], target[:-1]).sum() / (len(target) - 1) ** alpha


@sentence_score.mistake("p and not ln p", "that is p; the score takes its logarithm.")
def _(logits, target, alpha):
    return np.exp(_log_p(logits, target).sum()) / len(target) ** alpha


def _beams(rng):
    """Make beginnings of which one is so likely that several of the best extensions are its own."""
    totals = np.array([-1.0, -2.5, -4.0]) + 0.1 * rng.standard_normal(3)
    z = rng.standard_normal((3, 5))
    return totals, z - np.log(np.exp(z).sum(axis=1, keepdims=True))


@exercise(
    "13.2",
    "One round of beams",
    task="""Of all N·V extensions take the N with the highest totals[beam] + log_p[beam, token], the best first. Return
    which beam each extends, which token it adds, and its total.""",
    inputs=_beams,
    returns=("beams", "tokens", "totals"),
)
def beam_step(totals, log_p):
    sentence = _Sentence(beams=len(totals), ends=(), penalty=0.0, longest=10)
    sentence.totals = totals
    beams, tokens = sentence.step(log_p, [[] for _ in totals], 1)
    return np.array(beams), np.array(tokens), sentence.totals


def _best(scores, count):
    """Return beams, tokens and scores of the highest ones."""
    order = np.argsort(-scores, axis=None, kind="stable")[:count]
    beams, tokens = np.unravel_index(order, scores.shape)
    return beams, tokens, scores[beams, tokens]


@beam_step.mistake("each its own best", "beams compete: take the best of all extensions, even if one beam has several.")
def _(totals, log_p):
    tokens = log_p.argmax(axis=1)
    sums = totals + log_p.max(axis=1)
    order = np.argsort(-sums)
    return order, tokens[order], sums[order]


@beam_step.mistake("the past forgotten", "what a beginning has cost so far counts, too: add its total before choosing.")
def _(totals, log_p):
    return _best(log_p, len(totals))


@beam_step.mistake("total not new", "the choice is right; return the totals with the new token in them.")
def _(totals, log_p):
    beams, tokens, _ = _best(totals[:, None] + log_p, len(totals))
    return beams, tokens, totals[beams]


@beam_step.mistake("worst first", "the best extensions have the highest totals, and the best of them comes first.")
def _(totals, log_p):
    beams, tokens, sums = _best(-(totals[:, None] + log_p), len(totals))
    return beams, tokens, -sums


@beam_step.mistake("not sorted", "these are the right ones in the wrong order: the best comes first.")
def _(totals, log_p):
    return tuple(x[::-1] for x in _best(totals[:, None] + log_p, len(totals)))


@beam_step.mistake("divided by N", "in a flat list of N·V, a row has V entries: beam = place // V, token = place % V.")
def _(totals, log_p):
    n, v = log_p.shape
    beams, tokens, sums = _best(totals[:, None] + log_p, n)
    place = beams * v + tokens
    return place // n, place % n, sums


@beam_step.mistake("multiplied", "ln p of a product is a sum: add, and do not multiply.")
def _(totals, log_p):
    return _best(totals[:, None] * log_p, len(totals))


def _caches(rng):
    """Make caches of four beginnings, of which one goes on twice, another not at all, and the rest change places."""
    kept = rng.standard_normal((4, 2, 3, 5))
    beams = np.array([[2, 0, 0, 1], [3, 3, 0, 2], [1, 3, 1, 0]][int(rng.integers(3))])
    return kept, beams, rng.standard_normal((4, 2, 1, 5))


@exercise(
    "13.3",
    "The caches follow the beams",
    task="""Row i of the result belongs to the beam that beams[i] was until now: its kept keys, and behind them, along
    the axis of places, new[i].""",
    inputs=_caches,
    returns=("kept",),
)
def follow(kept, beams, new):
    cache = KVCache()
    with no_grad():
        cache.extend(kept, kept)
        cache.select(beams)
        return cache.extend(new, new)[0]


@follow.mistake("not reordered", "the new keys go behind the wrong pasts: take the rows that beams names, first.")
def _(kept, beams, new):
    return np.concatenate([kept, new], axis=2)


@follow.mistake("put and not taken", "kept[beams] takes row beams[i] to place i; here row i was put at place beams[i].")
def _(kept, beams, new):
    moved = kept.copy()
    moved[beams] = kept
    return np.concatenate([moved, new], axis=2)


@follow.mistake("new ones reordered, too", "new has one row for each chosen beam already: only the past moves.")
def _(kept, beams, new):
    return np.concatenate([kept[beams], new[beams]], axis=2)


@follow.mistake("overwritten on the way", "row by row in place, a row may be read after it was written: copy first.")
def _(kept, beams, new):
    moved = kept.copy()
    for i, beam in enumerate(beams):
        moved[i] = moved[beam]
    return np.concatenate([moved, new], axis=2)


@follow.mistake("in front", "the new token is the last one: its keys go behind.")
def _(kept, beams, new):
    return np.concatenate([new, kept[beams]], axis=2)


@follow.mistake("oldest dropped", "nothing falls out: there is one place more than before.")
def _(kept, beams, new):
    return np.concatenate([kept[beams][:, :, 1:], new], axis=2)
