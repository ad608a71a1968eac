"""One new token of one text: the calls of `decoding.py` with their arguments in place, one after another.

A small model writes a token with a hundred calls, of which each computes for a third of a microsecond; to find their
arguments takes longer. Here all that is the same for each token is found once, when a text begins: the arrays that
the calls read and write, and the calls.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from ..backend import Array
from . import decoding
from .decoding import CrossAttention, FeedForward, Linear, SelfAttention, ToLengthOne

Calls = list[Callable[[], Any]]


def _row(width: int) -> Array:
    return np.empty(width, dtype=np.float32)


def linear(f: Linear, x: Array, y: Array) -> Calls:
    """Return the calls of y = x·weightᵀ + bias.    x: (D,), y: (F,)"""
    product = partial(np.vecdot, f.weight, x, y) if f.in_one_stream else partial(x.dot, f.weight.T, y)
    return [product] if f.bias is None else [product, partial(np.add, y, f.bias, y)]


def norm(f: decoding.Norm, x: Array, y: Array) -> Calls:
    """Return the calls of a norm.    x: (D,), y: (D,)"""
    width, eps, multiply, square, root, single = len(x), f.eps, np.multiply, x.dot, math.sqrt, np.float32
    if isinstance(f, ToLengthOne):
        return [lambda: multiply(x, single(1 / root(float(square(x)) / width + eps)), y)]
    mean_of = decoding.mean_of_width(width)

    def normalise() -> None:
        np.subtract(x, square(mean_of), y)
        multiply(y, single(1 / root(float(y.dot(y)) / width + eps)), y)

    return [normalise, partial(np.multiply, y, f.weight, y), partial(np.add, y, f.bias, y)]


def _self_attention(f: SelfAttention, x: Array, y: Array, cache: Any) -> Calls:
    heads, kv_heads, turns, distance = f.heads, f.kv_heads, f.turns, f.distance
    taken, mixed = _row(len(f.taken.weight)), _row(len(x))
    each = taken.reshape(1, f.width, 1, -1)
    turned, k_new, v_new = each[:, :-kv_heads], each[:, heads:-kv_heads], each[:, -kv_heads:]
    q = each[:, :heads].reshape(1, kv_heads, heads // kv_heads, -1)
    out, past, attend, longest = mixed.reshape(q.shape), cache.past, decoding.attend, 0
    if distance is not None:
        longest = distance.shape[-1]

    def mix() -> None:
        if turns is not None:
            turns.turn(turned, past.length)
        k, v = past.put(k_new, v_new)
        attend(q, k, v, None if distance is None else distance[..., longest - k.shape[2] :], out)

    return [*linear(f.taken, x, taken), mix, *linear(f.out, mixed, y)]


def _cross_attention(f: CrossAttention, x: Array, y: Array, cache: Any) -> Calls:
    taken, mixed = _row(len(f.taken.weight)), _row(len(x))
    q = taken.reshape(1, f.kv_heads, f.heads // f.kv_heads, -1)
    k, v = cache.memory.arrays()
    return [
        *linear(f.taken, x, taken), partial(decoding.attend, q, k, v, None, mixed.reshape(q.shape)),
        *linear(f.out, mixed, y),
    ]  # fmt: skip


def _feed_forward(f: FeedForward, x: Array, y: Array, cache: Any) -> Calls:
    inner = _row(len(f.up.weight))
    return [*linear(f.up, x, inner), *f.act(inner, np.empty_like(inner)), *linear(f.down, inner, y)]


SUBLAYERS: dict[type, Callable[..., Calls]] = {
    SelfAttention: _self_attention, CrossAttention: _cross_attention, FeedForward: _feed_forward,
}  # fmt: skip


class OneRow:
    """A stack of layers for a text that is written alone, with nothing hidden in it."""

    def __init__(self, stack: decoding.Stack, caches: Sequence[Any], output: Linear):
        width = output.weight.shape[1]
        self.x, read, written = _row(width), _row(width), _row(width)
        self.scores, x = _row(len(output.weight)), self.x
        calls: Calls = []
        for sublayers, cache in zip(stack.layers, caches, strict=True):
            for f, sublayer in sublayers:
                make, add = SUBLAYERS[type(sublayer)], partial(np.add, x, written, x)
                if stack.pre:
                    calls += [*norm(f, x, read), *make(sublayer, read, written, cache), add]
                else:
                    calls += [*make(sublayer, x, written, cache), add, *norm(f, x, read), partial(np.copyto, x, read)]
        if stack.norm is not None:
            calls += norm(stack.norm, x, read)
        self.calls = calls + linear(output, x if stack.norm is None else read, self.scores)

    def step(self, x: Array) -> Array:
        """Take one token through all layers and the last product, and give its scores, new ones.    (D,) → (V,)"""
        self.x[...] = x
        with np.errstate(over="ignore"):  # an exponential that overflows is noticed, and done again
            for call in self.calls:
                call()
        return self.scores.copy()
