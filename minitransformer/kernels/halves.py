"""A stack of layers cut in two, for two processes: half of the heads, of the inner width and of the vocabulary each.

    out(heads) = W₁·heads₁ + W₂·heads₂            down(inner) = W₁·inner₁ + W₂·inner₂

Shoeybi et al. 2019, arXiv:1909.08053, cut layers up in this way, for GPUs.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ..backend import Array
from . import decoding
from .one_row import Calls, token_calls

LOOKS = 2_000  # at the other's number, before the core is offered to others between two of them
PATIENCE = 0.02  # seconds, then the other one is missing
TOKEN, PLACE, DONE, ASLEEP = range(4)  # what the numbers of a process say; behind these, which token's part k is there
PARTS = 4  # the first of these
NUMBERS = 512  # of each process


class Missing(Exception):
    """The other process does not answer."""


def can_be_cut(stack: decoding.Stack, output: decoding.Linear) -> bool:
    """Tell whether there are two halves of everything."""
    sublayers = [sublayer for layer in stack.layers for _, sublayer in layer]
    return not len(output.weight) % 2 and all(map(_halves, sublayers)) and len(sublayers) <= NUMBERS - PARTS


def _halves(f: Any) -> bool:
    if isinstance(f, decoding.SelfAttention):
        return not (f.heads % 2 or f.kv_heads % 2)
    return isinstance(f, decoding.FeedForward) and not len(f.up.weight) % 2


def _rows(f: decoding.Linear, rows: Any) -> decoding.Linear:
    return decoding.Linear(f.weight[rows], None if f.bias is None else f.bias[rows], False)


def _columns(f: decoding.Linear, columns: slice, who: int) -> decoding.Linear:
    """Take what some inputs add to a result; the bias is added once."""
    bias = f.bias if who == 0 or f.bias is None else np.zeros_like(f.bias)
    return decoding.Linear(f.weight[:, columns], bias, False)


def _part(n: int, who: int) -> slice:
    return slice(n // 2 * who, n // 2 * (who + 1))


def _sublayer(f: Any, who: int) -> Any:
    if isinstance(f, decoding.FeedForward):
        part = _part(len(f.up.weight), who)
        return decoding.FeedForward(_rows(f.up, part), f.act, _columns(f.down, part, who))
    width = len(f.taken.weight) // f.width
    numbers = np.arange(len(f.taken.weight))
    q, k, v = np.split(numbers, [f.heads * width, (f.heads + f.kv_heads) * width])
    rows = np.concatenate([each[_part(len(each), who)] for each in (q, k, v)])
    out = _columns(f.out, _part(f.heads * width, who), who)
    distance = None if f.distance is None else f.distance[_part(f.kv_heads, who)]
    return decoding.SelfAttention(_rows(f.taken, rows), out, f.heads // 2, f.kv_heads // 2, f.turns, distance)


def cut(stack: decoding.Stack, output: decoding.Linear, who: int) -> tuple[decoding.Stack, decoding.Linear]:
    """Return a process's half of all layers, and of the last product: views, as far as there are any."""
    layers = [[(f, _sublayer(sublayer, who)) for f, sublayer in layer] for layer in stack.layers]
    return decoding.Stack(layers, stack.pre, stack.norm), _rows(output, _part(len(output.weight), who))


def mapped(value: Any, f: Callable[[Array], Any]) -> Any:
    """Return the same with f(array) in place of each array in it."""
    if isinstance(value, np.ndarray):
        return f(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*[mapped(v, f) for v in value])
    return type(value)([mapped(v, f) for v in value]) if type(value) in (tuple, list) else value


def arrays_in(value: Any) -> list[Array]:
    """Return all arrays in it, in the order of `mapped`."""
    found: list[Array] = []
    mapped(value, found.append)
    return found


# -- a token ---------------------------------------------------------------------------------------------------------
class Past:
    """A process's heads of a cache, at the place of the present token."""

    def __init__(self, k: Array, v: Array):
        self.k, self.v, self.length, self.past = k, v, 0, self

    def put(self, k: Array, v: Array) -> tuple[Array, Array]:
        """Write the token's keys and values, and return all up to there."""
        begin = self.length
        end = self.length = begin + 1
        self.k[:, :, begin:end] = k
        self.v[:, :, begin:end] = v
        return self.k[:, :, :end], self.v[:, :, :end]


def wait_for(numbers: memoryview, at: int, token: int) -> None:
    """Wait until a number is that of the token. Raises Missing where it does not become so."""
    for _ in range(LOOKS):
        if numbers[at] == token:
            return
    until = time.perf_counter() + PATIENCE
    while numbers[at] != token:
        os.sched_yield()
        if numbers[at] > token or time.perf_counter() > until:
            raise Missing


class Desk(NamedTuple):
    """What both processes read and write."""

    numbers: memoryview  # of this process, then of the helper
    rooms: list[tuple[Array, Array]]  # of each layer's cache: (1, H, longest, K)
    parts: list[tuple[Array, Array]]  # of each sublayer's result: both parts, (D,)
    embedded: Array  # (D,)
    scores: Array  # (V,)


class Half:
    """One process's calls for a token."""

    def __init__(self, desk: Desk, who: int, stack: decoding.Stack, output: decoding.Linear):
        self.desk, self.who, self.now = desk, who, [0]
        self.x = np.empty_like(desk.embedded)
        self.caches = [Past(*[a[:, _part(a.shape[1], who)] for a in room]) for room in desk.rooms]
        scores = desk.scores[_part(len(desk.scores), who)]
        self.calls = token_calls(stack, output, self.caches, self.x, scores, self._joined)

    def _joined(self, k: int) -> tuple[Array, Calls]:
        """Return where the k-th sublayer writes its part, and the calls that add both parts to x."""
        both, numbers, now, y, add = self.desk.parts[k], self.desk.numbers, self.now, np.empty_like(self.x), np.add
        mine, other = (NUMBERS * who + PARTS + k for who in (self.who, 1 - self.who))
        one, two = both

        def meet() -> None:
            numbers[mine] = token = now[0]
            if numbers[other] != token:
                wait_for(numbers, other, token)
            add(one, two, y)

        return both[self.who], [meet, partial(np.add, self.x, y, self.x)]

    def run(self, token: int, place: int) -> None:
        """Take the token that lies on the desk through all layers. Raises Missing."""
        self.now[0] = token
        for cache in self.caches:
            cache.length = place
        self.x[...] = self.desk.embedded
        for call in self.calls:
            call()
        self.desk.numbers[NUMBERS * self.who + DONE] = token
