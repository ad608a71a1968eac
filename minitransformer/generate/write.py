"""From a trained model to text: one token at a time, the likeliest or one drawn at random."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np

from ..tensor import no_grad
from . import doors
from .choose import Sampler, greedy, penalise, require_penalty
from .read import Texts, Translations

Choose = Callable[[np.ndarray], np.ndarray]
Until = Callable[[list[int]], bool] | None


def _write(
    reader: Texts | Translations, count: int, choose: Choose, stop: Collection[int], penalty: float,
    until: Until = None,
) -> list[list[int]]:  # fmt: skip
    """Write until each row has stopped, or `count` tokens; a row that has stopped leaves the batch."""
    texts: list[list[int]] = [[] for _ in reader.rows]
    going = list(range(len(texts)))
    for _ in range(count):
        if not going:
            break
        scores = penalise(reader.scores(), reader.rows, penalty)
        chosen = (choose(scores, going) if isinstance(choose, Sampler) else choose(scores)).tolist()
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
    cached: bool = True, repetition_penalty: float = 1.0, stop: Collection[int] = (),
) -> list[list[int]]:  # fmt: skip
    """Decode a batch of sources with an encoder-decoder until each has written EOS, or max_length tokens.

    sources: lists of token ids → lists of token ids, without BOS and EOS

    The batch is padded to its longest, and those that have ended leave it; the model must be in eval mode. A text ends
    before EOS, before the pad_id and before any token of `stop`. cached=False decodes the whole target anew for each
    token, which comes to the same tokens. repetition_penalty: see `penalise`; of a source's tokens it knows nothing.
    Raises ValueError for an empty source, what is no token, a max_length that is no integer ≥ 0, and a choice that
    cannot be called.
    """
    vocab = doors.vocabulary(model)
    doors.require_rows(sources, doors.vocabulary(model, source=True), "sources")
    doors.require_tokens(vocab, bos=bos, eos=eos)
    ends = {eos, model.config.pad_id} | doors.stops(stop, vocab)
    _require(choose, repetition_penalty, max_length=max_length)
    with no_grad():
        reader = Translations(model, sources, bos, cached)
        return _write(reader, max_length, choose, ends, repetition_penalty)


def continue_texts(
    model: Any, prompts: Sequence[Sequence[int]], count: int, choose: Choose = greedy, stop: Collection[int] = (),
    cached: bool = True, repetition_penalty: float = 1.0, chunk: int = 0, until: Until = None,
) -> list[list[int]]:  # fmt: skip
    """Write up to `count` tokens after each prompt with a causal language model, all prompts at once.

    prompts: lists of token ids, each at least one, of any lengths → lists of the new ids

    Of a text beyond the model's max_length, the last max_length tokens are seen. A row ends before the first of the
    `stop` tokens, or once until(its new ids) is true, and then leaves the batch. Each prompt gets the tokens that it
    would get alone, drawn ones too: see `sampler` on rows. chunk: how much of the prompts is read at once (0: all);
    with cached=False every token is read anew each time, to the same result. repetition_penalty: see `penalise`.
    Raises ValueError for an empty prompt, what is no token, a count or chunk that is no integer ≥ 0, and a choice that
    cannot be called.
    """
    vocab = doors.vocabulary(model)
    doors.require_rows(prompts, vocab, "prompts")
    ends = doors.stops(stop, vocab)
    _require(choose, repetition_penalty, count=count)
    with no_grad():
        return _write(Texts(model, prompts, cached, chunk), count, choose, ends, repetition_penalty, until)


def continue_text(
    model: Any, ids: Sequence[int], count: int, choose: Choose = greedy, stop: Collection[int] = (),
    cached: bool = True, repetition_penalty: float = 1.0, chunk: int = 0, until: Until = None,
) -> list[int]:  # fmt: skip
    """Write up to `count` tokens after one prompt: `continue_texts` for a single row.

    ids: a list of token ids, at least one → the new ids.    Raises ValueError as there.
    """
    return continue_texts(model, [ids], count, choose, stop, cached, repetition_penalty, chunk, until)[0]


def _require(choose: Choose, penalty: float, **counts: int) -> None:
    doors.require_choice(choose)
    require_penalty(penalty)
    for name, value in counts.items():
        doors.require_count(name, value)
