"""From a trained model to text: one token at a time, the likeliest or one drawn at random."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np

from ..tensor import no_grad
from .choose import greedy, penalise
from .read import Texts, Translations

Choose = Callable[[np.ndarray], np.ndarray]


def _write(
    reader: Texts | Translations, count: int, choose: Choose, stop: Collection[int], penalty: float,
    until: Callable[[list[int]], bool] | None = None,
) -> list[list[int]]:  # fmt: skip
    """Write until each row has stopped, or `count` tokens; a row that has stopped leaves the batch."""
    texts: list[list[int]] = [[] for _ in reader.rows]
    going = list(range(len(texts)))
    for _ in range(count):
        if not going:
            break
        chosen = choose(penalise(reader.scores(), reader.rows, penalty)).tolist()
        reader.append(chosen)
        left = []
        for at, row in enumerate(going):
            if chosen[at] in stop:
                continue
            texts[row].append(chosen[at])
            if until is None or not until(texts[row]):
                left.append(at)
        reader.select(left)
        going = [going[at] for at in left]
    return texts


def translate(
    model: Any, sources: Sequence[Sequence[int]], bos: int, eos: int, max_length: int, choose: Choose = greedy,
    cached: bool = True, repetition_penalty: float = 1.0,
) -> list[list[int]]:  # fmt: skip
    """Decode a batch of sources with an encoder-decoder until each has written EOS, or max_length tokens.

    sources: lists of token ids → lists of token ids, without BOS and EOS

    The batch is padded to its longest, and those that have ended leave it; the model must be in eval mode.
    cached=False decodes the whole target anew for each token, which comes to the same tokens. repetition_penalty: see
    `penalise`. Raises ValueError for an empty source.
    """
    with no_grad():
        reader = Translations(model, sources, bos, cached)
        return _write(reader, max_length, choose, {eos, model.config.pad_id}, repetition_penalty)


def continue_texts(
    model: Any, prompts: Sequence[Sequence[int]], count: int, choose: Choose = greedy, stop: Collection[int] = (),
    cached: bool = True, repetition_penalty: float = 1.0, chunk: int = 0,
    until: Callable[[list[int]], bool] | None = None,
) -> list[list[int]]:  # fmt: skip
    """Write up to `count` tokens after each prompt with a causal language model, all prompts at once.

    prompts: lists of token ids, each at least one, of any lengths → lists of the new ids

    Of a text beyond the model's max_length, the last max_length tokens are seen. A row ends before the first of the
    `stop` tokens, or once until(its new ids) is true, and then leaves the batch. The likeliest tokens are those that
    each prompt would get alone; draws at random come from one generator for all rows. chunk: how much of the prompts
    is read at once (0: all); with cached=False every token is read anew each time, to the same result.
    repetition_penalty: see `penalise`. Raises ValueError for an empty prompt or a chunk below 0.
    """
    with no_grad():
        return _write(Texts(model, prompts, cached, chunk), count, choose, stop, repetition_penalty, until)


def continue_text(
    model: Any, ids: Sequence[int], count: int, choose: Choose = greedy, stop: Collection[int] = (),
    cached: bool = True, repetition_penalty: float = 1.0, chunk: int = 0,
) -> list[int]:  # fmt: skip
    """Write up to `count` tokens after one prompt: `continue_texts` for a single row.

    ids: a list of token ids, at least one → the new ids.    Raises ValueError for an empty prompt.
    """
    return continue_texts(model, [ids], count, choose, stop, cached, repetition_penalty, chunk)[0]
