"""Rows of tokens that grow at their ends, and what a model says may follow.

Both readers have the same methods, so that greedy writing, sampling and beam search are written once:

    scores()        read what is new in each row, and score the token that follows    → (B, V)
    append(tokens)  put one token behind each row
    select(rows)    keep these rows, in this order; a row may come twice
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import backend
from ..tensor import as_array
from .doors import require_chunk
from .fast import Fast, calm, fits


def columns(rows: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Pad rows at their left to the longest; return them, and how much each was padded.    → (B, T), (B,)"""
    longest = max(len(row) for row in rows)
    ids = np.zeros((len(rows), longest), dtype=int)
    padding = np.array([longest - len(row) for row in rows])
    for to, row, pad in zip(ids, rows, padding, strict=True):
        to[pad:] = row
    return ids, padding


class _Rows:
    """The rows, where in each the written part begins, and the caches of what was read."""

    rows: list[list[int]]
    begin: list[int]
    caches: Any = None
    fast: Fast | None = None  # made for the caches, where the model fits

    def append(self, tokens: Sequence[int]) -> None:
        """Put one token behind each row."""
        for row, token in zip(self.rows, tokens, strict=True):
            row.append(int(token))

    def written(self, row: int) -> list[int]:
        """Return what was written behind the beginning of a row."""
        return self.rows[row][self.begin[row] :]

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order: those that go on, or the beams that were chosen."""
        if list(rows) == list(range(len(self.rows))):
            return
        self.rows, self.begin = [list(self.rows[i]) for i in rows], [self.begin[i] for i in rows]
        if rows:
            self._select(np.array(rows))

    def _select(self, rows: np.ndarray) -> None:
        """Do the same with what belongs to the rows."""
        for cache in self.caches or ():
            cache.select(backend.xp().asarray(rows))
        if self.fast is not None:
            self.fast.select(rows)


class Texts(_Rows):
    """Prompts, of any lengths, and a causal language model that goes on with them.

    Shorter prompts are padded at their left, so that all write in the same column. Nobody looks at the padding, and
    each row counts positions from its own first token: it gets the scores that it would get alone.
    chunk: how many columns are read at once, 0 for all; fewer take less memory.
    Once the longest row has outgrown max_length, the last max_length tokens of each row are read anew for each token:
    the window moves, and positions with it. Raises ValueError for an empty prompt, or a chunk that is no integer ≥ 0.
    """

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]], cached: bool = True, chunk: int = 0):
        if any(not len(prompt) for prompt in prompts):
            raise ValueError("a prompt has at least one token; got an empty one; write --prompt 'The '")
        require_chunk(chunk)
        self.model, self.window, self.cached, self.chunk = model, model.config.max_length, cached, chunk
        self.rows, self.begin = [list(prompt) for prompt in prompts], [len(prompt) for prompt in prompts]
        self.padding, self.read = np.zeros(len(prompts), dtype=int), 0

    def scores(self) -> np.ndarray:
        """Score the token that follows each row.    → (B, V)"""
        longest = max(len(row) for row in self.rows)
        if not self.cached or longest > self.window:
            self.caches = self.fast = None
            ids, self.padding = columns([row[-self.window :] for row in self.rows])
            return self._read(ids)
        if self.caches is None or self.read >= self.window:  # the second: since longer rows have left, columns only pad
            self.caches, self.read, self.fast = self.model.decoder.new_caches(), 0, None
        if self.fast is not None:
            scores = self.fast.scores(np.array([row[-1] for row in self.rows]))
            self.read += 1
            return scores
        begins = not self.read
        if begins:
            ids, self.padding = columns(self.rows)
        else:
            ids = np.array([row[-1:] for row in self.rows])
        if begins and len(ids) == 1 and not self.chunk and fits(self.model):
            self.fast = Fast(self.model, self.caches)
            if self.fast.begins(ids.shape[1]):
                self.read = ids.shape[1]
                return self.fast.begin(ids[0])
        step = self.chunk or ids.shape[1]
        for first in range(0, ids.shape[1], step):
            scores = self._read(ids[:, first : first + step])
        self.read += ids.shape[1]
        if begins and self.fast is None and fits(self.model):
            self.fast = Fast(self.model, self.caches, self.padding)
        return scores

    def _read(self, ids: np.ndarray) -> np.ndarray:
        xp = backend.xp()
        padding = xp.asarray(self.padding) if self.padding.any() else None
        with calm(self.model, ids.size):
            logits = as_array(self.model(xp.asarray(ids), caches=self.caches, padding=padding))
        return backend.to_numpy(logits[:, -1])

    def _select(self, rows: np.ndarray) -> None:
        super()._select(rows)
        self.padding = self.padding[rows]


class Translations(_Rows):
    """Sources, and an encoder-decoder that writes a target for each, from BOS on.

    Sources are padded at their right, with the model's pad_id. Raises ValueError for an empty source.
    """

    def __init__(self, model: Any, sources: Sequence[Sequence[int]], bos: int, cached: bool = True):
        if any(not len(s) for s in sources):
            raise ValueError("a source has at least one token; got an empty one; remove it")
        self.model = model
        self.rows, self.begin = [[bos] for _ in sources], [1 for _ in sources]
        source = np.full((len(sources), max(map(len, sources), default=0)), model.config.pad_id)
        for row, ids in zip(source, sources, strict=True):
            row[: len(ids)] = ids
        if len(sources):
            with calm(model, source.size):
                self.memory, self.mask = model.encode(backend.xp().asarray(source))
            self.caches = model.decoder.new_caches() if cached else None

    def scores(self) -> np.ndarray:
        """Score the token that follows each row.    → (B, V)"""
        if self.fast is not None and self.caches[0].past.length < self.model.config.max_length:
            return self.fast.scores(np.array([row[-1] for row in self.rows]))
        ids = np.array([row[-1:] for row in self.rows] if self.caches else self.rows)
        with calm(self.model, ids.size):
            logits = as_array(self.model.decode(backend.xp().asarray(ids), self.memory, self.mask, caches=self.caches))
        if self.caches and len(self.rows[0]) == 1 and fits(self.model):
            self.fast = Fast(self.model, self.caches, memory_mask=self.mask)
        return backend.to_numpy(logits[:, -1])

    def _select(self, rows: np.ndarray) -> None:
        super()._select(rows)
        rows = backend.xp().asarray(rows)
        self.memory, self.mask = as_array(self.memory)[rows], self.mask[rows]
