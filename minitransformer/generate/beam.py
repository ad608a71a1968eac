"""Beam search: several unfinished texts side by side, the likeliest so far, since the best text may begin unlikely."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..tensor import no_grad
from . import doors
from .choose import penalise, require_penalty
from .read import Texts, Translations
from .write import Until


class Hypothesis(NamedTuple):
    """A finished text, and ln p of it over its length to the power of the length penalty."""

    ids: list[int]
    score: float


class _Sentence:
    """The beams of one text: rows of the batch, the logarithms of their chances, and what is finished."""

    def __init__(self, beams: int, ends: Collection[int], penalty: float, longest: int, until: Until = None):
        self.beams, self.ends, self.penalty, self.longest, self.until = beams, ends, penalty, longest, until
        self.totals = np.zeros(1)
        self.finished: list[Hypothesis] = []

    def step(self, log_p: np.ndarray, texts: list[list[int]], length: int) -> tuple[list[int], list[int]]:
        """Extend every beam by every token and keep the best; return (which beam, which token) of those that go on.

        log_p: (beams now, V), texts: what each has written, length: what each has with the next token

        A text that has ended counts if it is among the best `beams` of all extensions; the others make sure that as
        many go on. Ties go to the earlier beam, then to the lower token.
        """
        extended = (self.totals[:, None] + log_p).ravel()
        going: list[int] = []
        for rank, place in enumerate(self._best(extended)):
            if extended[place] == -math.inf or (rank >= self.beams and len(going) == self.beams):
                break
            beam, token = divmod(place, log_p.shape[1])
            ended = token in self.ends
            ids = texts[beam] if ended else [*texts[beam], token]
            if not ended and length < self.longest and not (self.until and self.until(ids)):
                going.append(place)
            elif rank < self.beams:
                self.finished.append(Hypothesis(ids, float(extended[place]) / length**self.penalty))
        self.finished = sorted(self.finished, key=lambda text: -text.score)[: self.beams]
        going = going[: self.beams]
        self.totals = extended[going]
        if self._settled(length):
            self.totals, going = self.totals[:0], []
        return [place // log_p.shape[1] for place in going], [place % log_p.shape[1] for place in going]

    def _best(self, extended: np.ndarray) -> list[int]:
        """Return the places of the best extensions, in order: so many that enough go on, however many of them end."""
        count = (1 + max(1, len(self.ends))) * self.beams if self.until is None else extended.size
        count = min(count, extended.size)
        best = np.argpartition(-extended, count - 1)[:count] if count < extended.size else np.arange(count)
        return best[np.lexsort((best, -extended[best]))].tolist()

    def _settled(self, length: int) -> bool:
        """Tell whether no beam can still enter among the finished, however it goes on.

        ln p only falls. Divided by a power of the length it falls least at the greatest length, for a penalty above 0.
        """
        if not len(self.totals) or len(self.finished) < self.beams:
            return not len(self.totals)
        if self.beams == 1:  # greedy decoding ends with its first end
            return True
        length = self.longest if self.penalty > 0 else length
        return bool(self.totals[0] / length**self.penalty <= self.finished[-1].score)


def _search(
    reader: Texts | Translations, count: int, beams: int, ends: Collection[int], penalty: float,
    repetition_penalty: float = 1.0, until: Until = None,
) -> list[list[Hypothesis]]:  # fmt: skip
    """Go on with each row of a reader in `beams` ways; return what is finished, for each row, the best first."""
    sentences = [_Sentence(beams, ends, penalty, count, until) for _ in reader.rows]
    going = list(range(len(sentences)))  # the sentences whose beams stand in the batch, one after another
    for length in range(1, count + 1):
        if not going:
            break
        scores = reader.scores().astype("float64")
        scores -= scores.max(axis=-1, keepdims=True)
        log_p = scores - np.log(np.exp(scores).sum(axis=-1, keepdims=True))
        log_p = penalise(log_p, reader.rows, repetition_penalty)
        first, rows, tokens, left = 0, [], [], []
        for i in going:
            end = first + len(sentences[i].totals)
            chosen, new = sentences[i].step(log_p[first:end], [reader.written(r) for r in range(first, end)], length)
            rows += [first + beam for beam in chosen]
            tokens += new
            left += [i] if chosen else []
            first = end
        reader.select(rows)
        reader.append(tokens)
        going = left
    return [sentence.finished for sentence in sentences]


def require_search(beams: int, length_penalty: float, count: int = 1) -> None:
    """Raise ValueError unless there is a beam and a token, and lengths can be compared."""
    if not doors.is_whole(beams, 1) or not doors.is_whole(count, 1) or not doors.is_number(length_penalty):
        raise ValueError(
            f"a beam search has beams >= 1, at least one token, and a finite length penalty; got {beams!r}, {count!r} "
            f"and {length_penalty!r}; write beams=4, length_penalty=1"
        )


def beam_translate(
    model: Any, sources: Sequence[Sequence[int]], bos: int, eos: int, max_length: int, beams: int = 4,
    length_penalty: float = 1.0, cached: bool = True, repetition_penalty: float = 1.0, stop: Collection[int] = (),
) -> list[list[Hypothesis]]:  # fmt: skip
    """Find likely translations with an encoder-decoder, for each source the best first.

        score = ln p(ids) / length^α

    sources: lists of token ids → for each, at most `beams` hypotheses: ids without BOS and EOS, and the score

    The length counts EOS; α is the length penalty: 0 for ln p alone, which favours short texts, 1 for the mean of a
    token, above that longer ones. This is transformers' form; Wu et al. 2016, arXiv:1609.08144, divide by
    ((5 + length)/6)^α instead. For translation with networks: Sutskever, Vinyals and Le 2014, arXiv:1409.3215.
    A search ends when no unfinished beam can come among the finished any more, at whatever length: with transformers
    this is early_stopping="never". One beam is greedy decoding. cached=False decodes anew for each token. A text ends
    before EOS, before the pad_id and before any token of `stop`.
    A repetition penalty multiplies the ln p of the tokens that a text has (see `penalise`), as in transformers. Greedy
    writing penalises scores instead, before the softmax: with a penalty one beam need not write the same.
    Raises ValueError for an empty source, what is no token, fewer than one beam or token, or a penalty that is not
    finite.
    """
    vocab = doors.vocabulary(model)
    doors.require_rows(sources, doors.vocabulary(model, source=True), "sources")
    doors.require_tokens(vocab, bos=bos, eos=eos)
    ends = {eos, model.config.pad_id} | doors.stops(stop, vocab)
    require_search(beams, length_penalty, max_length)
    require_penalty(repetition_penalty)
    with no_grad():
        reader = Translations(model, sources, bos, cached)
        return _search(reader, max_length, beams, ends, length_penalty, repetition_penalty)


def beam_texts(
    model: Any, prompts: Sequence[Sequence[int]], count: int, beams: int = 4, length_penalty: float = 1.0,
    stop: Collection[int] = (), cached: bool = True, chunk: int = 0, repetition_penalty: float = 1.0,
    until: Until = None,
) -> list[list[Hypothesis]]:  # fmt: skip
    """Find likely continuations of prompts with a causal language model, for each prompt the best first.

    prompts: lists of token ids, of any lengths → for each, at most `beams` hypotheses: the new ids, and the score

    A text ends before a token of `stop`, which counts in its length, once until(its new ids) is true, or with `count`
    tokens. The rest is as in `beam_translate`, prompts and chunk as in `continue_texts`.
    """
    vocab = doors.vocabulary(model)
    doors.require_rows(prompts, vocab, "prompts")
    ends = doors.stops(stop, vocab)
    require_search(beams, length_penalty, count)
    require_penalty(repetition_penalty)
    with no_grad():
        return _search(Texts(model, prompts, cached, chunk), count, beams, ends, length_penalty, repetition_penalty,
                       until)  # fmt: skip
