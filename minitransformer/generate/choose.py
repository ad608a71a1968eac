"""Which token comes next: the likeliest, or one drawn at random from those that are likely enough."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..draws import check_seed
from .doors import is_number, is_whole


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
    require_penalty(penalty)
    if penalty == 1:
        return scores
    scores = scores.copy()
    for row, ids in zip(scores, rows, strict=True):
        seen = np.unique(np.asarray(ids, dtype=int))
        row[seen] = np.where(row[seen] > 0, row[seen] / penalty, row[seen] * penalty)
    return scores


def require_penalty(penalty: float) -> None:
    """Raise ValueError unless a repetition penalty is a positive number."""
    if not is_number(penalty) or not penalty > 0:
        raise ValueError(f"a repetition penalty is positive, 1 for none; got {penalty!r}; write repetition_penalty=1.2")


def likeliest(scores: np.ndarray, top_k: int = 0, top_p: float = 1.0) -> np.ndarray:
    """Keep the top_k highest scores, and of their tokens the fewest that have a share of top_p together.

    scores: (B, V) → (B, V), −∞ for all that is left out.

    top_k=0 and top_p=1 leave out nothing. The likeliest token always stays; tokens that tie with the k-th stay, too.
    The shares are those of the softmax over what top_k has left. Raises ValueError unless top_k ≥ 0 and 0 < top_p ≤ 1.
    top_k: Fan, Lewis and Dauphin 2018, arXiv:1805.04833. top_p: Holtzman et al. 2019, arXiv:1904.09751, who call the
    tokens that it keeps the nucleus.
    """
    require_kept(top_k, top_p)
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


def require_kept(top_k: int, top_p: float) -> None:
    """Raise ValueError unless something is kept, and both say how much."""
    if not is_whole(top_k) or not is_number(top_p) or not 0 < top_p <= 1:
        raise ValueError(
            f"sampling keeps top_k >= 0 tokens (0: all) and a share 0 < top_p <= 1; got {top_k!r} and {top_p!r}; "
            "write top_k=40, top_p=0.9"
        )


class Sampler:
    """What `sampler` returns: a generator for each row, made when the row first draws."""

    def __init__(self, temperature: float, top_k: int, top_p: float, seed: Any, rows: Sequence[int] | None):
        self.temperature, self.top_k, self.top_p, self.seed, self.rows = temperature, top_k, top_p, seed, rows
        self.generators: dict[int, np.random.Generator] = {}

    def _generator(self, row: int) -> np.random.Generator:
        number = row if self.rows is None else int(self.rows[row])
        if number not in self.generators:
            name = self.seed if isinstance(self.seed, tuple) else (self.seed,)
            self.generators[number] = np.random.default_rng((*name, number))
        return self.generators[number]

    def __call__(self, scores: np.ndarray, rows: Sequence[int] | None = None) -> np.ndarray:
        """Draw a token for each row.    scores: (B, V), rows: which of the batch they are, all unless told → (B,)"""
        rows = range(len(scores)) if rows is None else rows
        if self.rows is not None and max(rows, default=-1) >= len(self.rows):
            raise ValueError(
                f"rows has a number for each row of the batch; got {len(self.rows)} for at least {max(rows) + 1}; "
                f"write rows=range({max(rows) + 1})"
            )
        scores = likeliest(scores.astype("float64") / self.temperature, self.top_k, self.top_p)
        noise = np.array([self._generator(row).exponential(size=scores.shape[1]) for row in rows])
        # argmax(scores + Gumbel noise) is a draw from softmax(scores)
        return (scores - np.log(noise.reshape(scores.shape))).argmax(axis=-1)


def sampler(
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int | tuple[int, ...] = 0,
    rows: Sequence[int] | None = None,
) -> Sampler:
    """Return a chooser that draws from softmax(scores / temperature), among the `likeliest` by top_k and top_p.

    scores: (B, V) → (B,)

    In this order: temperature, top_k, top_p, as transformers does it.

    rows: the number of each row of a batch, 0, 1, 2, ... unless told. A row draws from a generator of its own, named
    by the seed and its number. So it draws what it would draw alone under that number, whatever the other rows are and
    wherever they stop: what sampler(seed=3) writes for the third prompt of a batch, sampler(seed=3, rows=[2]) writes
    for this prompt alone. A chooser that is used again goes on in its streams.

    Raises ValueError unless temperature > 0, top_k ≥ 0 and 0 < top_p ≤ 1, for a seed or a number that is no integer
    ≥ 0, and for numbers that come twice.
    """
    if not is_number(temperature) or not temperature > 0:
        raise ValueError(f"sampling needs temperature > 0; got {temperature!r}; write temperature=0.8")
    require_kept(top_k, top_p)
    check_seed(seed)
    if rows is not None and (not all(map(is_whole, rows)) or len(set(rows)) < len(rows)):
        raise ValueError(f"rows are different integers >= 0, one for each row; got {rows!r}; write rows=[0, 1, 2]")
    return Sampler(temperature, top_k, top_p, seed, rows)
