"""Batches with little padding: sequences of like length travel together."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from .tokenizer import BOS, EOS, PAD

Pair = tuple[Sequence[int], Sequence[int]]


class Batch(NamedTuple):
    """Token ids, padded: what is read, what the decoder is given, and what it shall say."""

    source: np.ndarray  # (B, S)
    target_in: np.ndarray  # (B, T): BOS, then the target
    target_out: np.ndarray  # (B, T): the target, then EOS

    @property
    def tokens(self) -> Any:
        """The number of target tokens that count in the loss, 0-d."""
        return (self.target_out != PAD).sum()


def _padded(rows: list[list[int]]) -> np.ndarray:
    table = np.full((len(rows), max(map(len, rows))), PAD)
    for line, row in zip(table, rows, strict=True):
        line[: len(row)] = row
    return table


def pad_batch(pairs: Sequence[Pair]) -> Batch:
    """Pad pairs of id lists to the longest of each side.    B pairs → (B, S), (B, T), (B, T)"""
    return Batch(
        _padded([list(source) for source, _ in pairs]),
        _padded([[BOS, *target] for _, target in pairs]),
        _padded([[*target, EOS] for _, target in pairs]),
    )


class PairBatches:
    """Cut a corpus into batches of sequences of like length, in an order that changes each epoch.

    A batch holds at most `tokens_per_batch` positions, padding included, counted as pairs × longest side; each pair
    comes once in an epoch. Everything is a function of (seed, step): no state to save.
    Raises ValueError for no pairs.
    """

    def __init__(self, pairs: Sequence[Pair], tokens_per_batch: int, seed: int = 0):
        if not pairs:
            raise ValueError("training needs at least one pair; got none; check the file")
        self.pairs, self.seed = pairs, seed
        self.lengths = np.array([max(len(source), len(target) + 1) for source, target in pairs])
        self.tokens_per_batch = max(tokens_per_batch, int(self.lengths.max()))

    @functools.lru_cache(maxsize=2)  # noqa: B019  (one object a run)
    def epoch(self, number: int) -> list[list[int]]:
        """Return the batches of an epoch, as lists of indices."""
        rng = np.random.default_rng([self.seed, number])
        shuffled = rng.permutation(len(self.pairs))  # breaks ties between equal lengths anew each epoch
        order = shuffled[np.argsort(self.lengths[shuffled], kind="stable")]
        batches: list[list[int]] = [[]]
        for i in order.tolist():  # lengths only grow, so the newest is the longest
            if (len(batches[-1]) + 1) * self.lengths[i] > self.tokens_per_batch:
                batches.append([])
            batches[-1].append(i)
        return [batches[i] for i in rng.permutation(len(batches))]

    def at(self, step: int) -> Batch:
        """Return batch number `step`, counted from 1."""
        per_epoch = len(self.epoch(0))  # the sorted lengths are the same in each epoch, hence so is the count
        return pad_batch([self.pairs[i] for i in self.epoch((step - 1) // per_epoch)[(step - 1) % per_epoch]])

    def padding_fraction(self, number: int = 0) -> float:
        """Return the share of an epoch's positions that is padding, both sides together."""
        real = whole = 0
        for batch in self.epoch(number):
            for side in pad_batch([self.pairs[i] for i in batch])[:2]:
                real += int((side != PAD).sum())
                whole += side.size
        return 1 - real / whole
