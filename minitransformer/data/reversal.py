"""The reversal "translation" task: the same symbols, in the other order. Nothing to memorise, all to attend to."""

from __future__ import annotations

import zlib

import numpy as np

from .batching import Batch, pad_batch
from .tokenizer import SPECIALS, SymbolTokenizer

DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
HELD_OUT_ONE_IN = 16


def is_held_out(ids: list[int]) -> bool:
    """Tell whether a sequence belongs to the test: one in 16 does, by a hash of it, in every run and for every seed."""
    return zlib.crc32(bytes(ids)) % HELD_OUT_ONE_IN == 0


class Reversal:
    """Sequences of symbols with random lengths, and their reversals.

    Sequences held out for the test are never in a training batch. Raises ValueError for impossible sizes.
    """

    def __init__(self, symbols: int = 10, min_length: int = 1, max_length: int = 16, seed: int = 0):
        if not 2 <= symbols <= len(DIGITS) or not 1 <= min_length <= max_length:
            came = f"symbols={symbols}, lengths {min_length} to {max_length}"
            raise ValueError(
                f"reversal has 2 to {len(DIGITS)} symbols and lengths from 1; got {came}; write symbols=10"
            )
        self.symbols, self.min_length, self.max_length, self.seed = symbols, min_length, max_length, seed
        self.tokenizer = SymbolTokenizer(list(DIGITS[:symbols]))

    def _draw(self, rng: np.random.Generator, length: int) -> list[int]:
        return rng.integers(len(SPECIALS), len(SPECIALS) + self.symbols, length).tolist()

    def batch(self, step: int, batch_size: int) -> Batch:
        """Return batch number `step`: a function of (seed, step) alone.    → (B, S), (B, S + 1), (B, S + 1)"""
        rng = np.random.default_rng([self.seed, step])
        sequences: list[list[int]] = []
        while len(sequences) < batch_size:
            ids = self._draw(rng, int(rng.integers(self.min_length, self.max_length + 1)))
            if not is_held_out(ids):
                sequences.append(ids)
        return pad_batch([(ids, ids[::-1]) for ids in sequences])

    def held_out(self, count: int) -> list[list[int]]:
        """Return up to `count` different sequences of the test set, with lengths as even as there are sequences."""
        rng = np.random.default_rng(count)
        lengths = range(self.min_length, self.max_length + 1)
        found: dict[int, dict[tuple[int, ...], None]] = {n: {} for n in lengths}
        tries = dict.fromkeys(lengths, 0)
        turn = 0
        while sum(map(len, found.values())) < count:
            open_ = [n for n in lengths if tries[n] < 200 * HELD_OUT_ONE_IN]
            if not open_:
                break
            n = open_[turn % len(open_)]
            turn += 1
            before = len(found[n])
            while len(found[n]) == before and tries[n] < 200 * HELD_OUT_ONE_IN:
                tries[n] += 1
                ids = self._draw(rng, n)
                if is_held_out(ids):
                    found[n][tuple(ids)] = None
            if len(found[n]) > before:
                tries[n] = 0
        return [list(ids) for of_length in found.values() for ids in of_length]
