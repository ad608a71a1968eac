"""Solutions of lesson 13."""

import numpy as np


def sentence_score(logits, target, alpha):
    """Sum ln p of the tokens, and divide by a power of their number."""
    top = logits.max(axis=-1, keepdims=True)
    log_p = logits - top - np.log(np.exp(logits - top).sum(axis=-1, keepdims=True))
    return log_p[np.arange(len(target)), target].sum() / len(target) ** alpha


def beam_step(totals, log_p):
    """Sort all extensions of all beams by their totals, and take the first N."""
    extended = (totals[:, None] + log_p).ravel()
    best = np.argsort(-extended)[: len(totals)]
    return best // log_p.shape[1], best % log_p.shape[1], extended[best]


def follow(kept, beams, new):
    """Take the rows of the chosen beams, and put the new keys behind."""
    return np.concatenate([kept[beams], new], axis=2)


SOLUTIONS = {"13.1": sentence_score, "13.2": beam_step, "13.3": follow}
