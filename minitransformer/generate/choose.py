"""Which token comes next: the likeliest, or one drawn at random from those that are likely enough."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from ..backend import check_seed


def greedy(scores: np.ndarray) -> np.ndarray:
    """Take the likeliest token.    scores: (B, V) → (B,)"""
    return scores.argmax(axis=-1)


def penalise(scores: np.ndarray, rows: Sequence[Sequence[int]], penalty: float) -> np.ndarray:
    """Make every token that a row already has less likely, once, however often it came.

        score → score / penalty where it is positive, score · penalty where it is negative

    scores: (B, V), rows: B lists of token ids → (B, V); with penalty=1 the scores themselves.

    The paper divides in both cases, which would make a negative score more likely; we do as transformers does.
    Raises ValueError unless penalty > 0. Keskar et al. 2019, arXiv:1909.05858.
    """
    if not penalty > 0 or penalty == math.inf:
        raise ValueError(f"a repetition penalty is positive, 1 for none; got {penalty}; write repetition_penalty=1.2")
    if penalty == 1:
        return scores
    scores = scores.copy()
    for row, ids in zip(scores, rows, strict=True):
        seen = np.unique(np.asarray(ids, dtype=int))
        row[seen] = np.where(row[seen] > 0, row[seen] / penalty, row[seen] * penalty)
    return scores


def likeliest(scores: np.ndarray, top_k: int = 0, top_p: float = 1.0) -> np.ndarray:
    """Keep the top_k highest scores, and of their tokens the fewest that have a share of top_p together.

    scores: (B, V) → (B, V), −∞ for all that is left out.

    top_k=0 and top_p=1 leave out nothing. The likeliest token always stays; tokens that tie with the k-th stay, too.
    The shares are those of the softmax over what top_k has left. Raises ValueError unless top_k ≥ 0 and 0 < top_p ≤ 1.
    Holtzman et al. 2020, arXiv:1904.09751, where the tokens kept by top_p are called the nucleus.
    """
    _check_kept(top_k, top_p)
    if 0 < top_k < scores.shape[-1]:
        limit = np.partition(scores, -top_k, axis=-1)[:, -top_k, None]
        scores = np.where(scores >= limit, scores, -np.inf)
    if top_p < 1:
        order = np.argsort(-scores, axis=-1, kind="stable")
        share = np.exp(np.take_along_axis(scores, order, axis=-1) - scores.max(axis=-1, keepdims=True))
        share /= share.sum(axis=-1, keepdims=True)
        before = np.cumsum(share, axis=-1) - share  # what likelier tokens have together; 0 for the likeliest
        kept = np.zeros(scores.shape, dtype=bool)
        np.put_along_axis(kept, order, before < top_p, axis=-1)
        scores = np.where(kept, scores, -np.inf)
    return scores


def _check_kept(top_k: int, top_p: float) -> None:
    if top_k < 0 or not 0 < top_p <= 1:
        raise ValueError(
            f"sampling keeps top_k >= 0 tokens (0: all) and a share 0 < top_p <= 1; got {top_k} and {top_p}; "
            "write top_k=40, top_p=0.9"
        )


def sampler(
    temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, seed: int = 0
) -> Callable[[np.ndarray], np.ndarray]:
    """Return a chooser that draws from softmax(scores / temperature), among the `likeliest` by top_k and top_p.

    scores: (B, V) → (B,)

    In this order: temperature, top_k, top_p, as transformers does it. The same seed and scores give the same draws.
    Raises ValueError unless temperature > 0, top_k ≥ 0, 0 < top_p ≤ 1 and seed ≥ 0.
    """
    check_seed(seed)
    if not 0 < temperature < math.inf:
        raise ValueError(f"sampling needs temperature > 0; got {temperature}; write temperature=0.8")
    _check_kept(top_k, top_p)
    rng = np.random.default_rng(seed)

    def choose(scores: np.ndarray) -> np.ndarray:
        scores = likeliest(scores.astype("float64") / temperature, top_k, top_p)
        # argmax(scores + Gumbel noise) is a draw from softmax(scores)
        return (scores - np.log(rng.exponential(size=scores.shape))).argmax(axis=-1)

    return choose
