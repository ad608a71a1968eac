"""From a trained model to text: one token at a time, the likeliest or one drawn at random."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from . import backend
from .tensor import as_array, no_grad


def greedy(scores: np.ndarray) -> np.ndarray:
    """Take the likeliest token.    scores: (B, V) → (B,)"""
    return scores.argmax(axis=-1)


def sampler(temperature: float = 1.0, top_k: int = 0, seed: int = 0) -> Callable[[np.ndarray], np.ndarray]:
    """Return a chooser that draws from softmax(scores / temperature), among the top_k likeliest if that is not 0.

    scores: (B, V) → (B,).    Raises ValueError unless temperature > 0 and top_k ≥ 0.
    """
    if temperature <= 0 or top_k < 0:
        raise ValueError(
            f"sampling needs temperature > 0 and top_k >= 0; got {temperature} and {top_k}; write temperature=0.8"
        )
    rng = np.random.default_rng(seed)

    def choose(scores: np.ndarray) -> np.ndarray:
        scores = scores.astype("float64") / temperature
        if 0 < top_k < scores.shape[-1]:
            limit = np.partition(scores, -top_k, axis=-1)[:, -top_k, None]
            scores = np.where(scores >= limit, scores, -np.inf)
        gumbel = -np.log(
            rng.exponential(size=scores.shape)
        )  # argmax(scores + Gumbel noise) is a draw from softmax(scores)
        return (scores + gumbel).argmax(axis=-1)

    return choose


def translate(
    model: Any, sources: Sequence[Sequence[int]], bos: int, eos: int, max_length: int, choose: Callable = greedy,
    cached: bool = True,
) -> list[list[int]]:  # fmt: skip
    """Decode a batch of sources with an encoder-decoder until each has written EOS, or max_length tokens.

    sources: lists of token ids → lists of token ids, without BOS and EOS

    The batch is padded to its longest; the model must be in eval mode. cached=False decodes the whole target anew for
    each token, which comes to the same tokens. Raises ValueError for an empty source.
    """
    if any(not len(s) for s in sources):
        raise ValueError("a source has at least one token; got an empty one; remove it")
    if not sources:
        return []
    pad, xp = model.config.pad_id, backend.xp()
    source = np.full((len(sources), max(map(len, sources))), pad)
    for row, ids in zip(source, sources, strict=True):
        row[: len(ids)] = ids
    target = np.full((len(sources), 1), bos)
    done = np.zeros(len(sources), dtype=bool)
    with no_grad():
        memory, mask = model.encode(xp.asarray(source))
        caches = model.decoder.new_caches() if cached else None
        while not done.all() and target.shape[1] <= max_length:
            new = target[:, -1:] if cached else target
            logits = as_array(model.decode(xp.asarray(new), memory, mask, caches=caches))
            chosen = choose(backend.to_numpy(logits[:, -1]))
            chosen = np.where(done, pad, chosen)
            done |= chosen == eos
            target = np.concatenate([target, chosen[:, None]], axis=1)
    return [_until(row[1:].tolist(), eos, pad) for row in target]


def _until(ids: list[int], eos: int, pad: int) -> list[int]:
    ends = [i for i, token in enumerate(ids) if token in (eos, pad)]
    return ids[: ends[0]] if ends else ids


def continue_text(
    model: Any, ids: Sequence[int], count: int, choose: Callable = greedy, stop: int | None = None, cached: bool = True
) -> list[int]:
    """Write up to `count` tokens after a prompt with a causal language model; the prompt's last max_length are seen.

    ids: a list of token ids, at least one → the new ids.    Raises ValueError for an empty prompt.
    """
    if not len(ids):
        raise ValueError("a prompt has at least one token; got an empty one; write --prompt 'The '")
    window, xp = model.config.max_length, backend.xp()
    written = list(ids)
    with no_grad():
        caches, read = model.decoder.new_caches(), 0
        for _ in range(count):
            if not cached or len(written) > window:  # the window moves: every token stands elsewhere than before
                caches, read = None, max(0, len(written) - window)
            logits = as_array(model(xp.asarray(np.array([written[read:]])), caches=caches))
            read = len(written)
            token = int(choose(backend.to_numpy(logits[:, -1]))[0])
            if token == stop:
                break
            written.append(token)
    return written[len(ids) :]
