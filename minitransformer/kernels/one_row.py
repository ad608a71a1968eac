"""One new token of one text: the calls of `decoding.py` with their arguments in place, one after another.

A small model writes a token with a hundred calls, of which each computes for a third of a microsecond; to find their
arguments takes longer. Here all that is the same for each token is found once, when a text begins: the arrays that
the calls read and write, and the calls.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ..backend import Array
from ..ops.indexing import unknown_id
from . import decoding
from .decoding import LEAST, MOST, CrossAttention, FeedForward, Linear, SelfAttention, ToLengthOne

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
    taken, mixed = _row(len(f.taken.weight)), _row(f.out.weight.shape[1])
    each = taken.reshape(1, f.width, 1, -1)
    turned, k_new, v_new = each[:, :-kv_heads], each[:, heads:-kv_heads], each[:, -kv_heads:]
    q = each[:, :heads].reshape(1, kv_heads, heads // kv_heads, -1)
    out, past, longest = mixed.reshape(q.shape), cache.past, 0 if distance is None else distance.shape[-1]
    matmul, exp, divide, ones = np.matmul, np.exp, np.divide, decoding.ones

    def mix() -> None:
        if turns is not None:
            turns.turn(turned, past.length)
        k, v = past.put(k_new, v_new)
        length, added = k.shape[2], None
        p = matmul(q, k.swapaxes(-1, -2))
        if distance is not None:
            added = distance[..., longest - length :]
            p += added
        total = exp(p, p).dot(ones(length))
        sums = total.ravel().tolist()
        if min(sums) > LEAST and max(sums) < MOST:
            divide(matmul(p, v, out), total[..., None], out)
        else:
            decoding.attend(q, k, v, added, out)

    return [*linear(f.taken, x, taken), mix, *linear(f.out, mixed, y)]


def _cross_attention(f: CrossAttention, x: Array, y: Array, cache: Any) -> Calls:
    taken, mixed = _row(len(f.taken.weight)), _row(f.out.weight.shape[1])
    q = taken.reshape(1, f.kv_heads, f.heads // f.kv_heads, -1)
    k, v = cache.memory.arrays()
    mix = partial(decoding.attend, q, k, v, None, mixed.reshape(q.shape))
    return [*linear(f.taken, x, taken), mix, *linear(f.out, mixed, y)]


def _feed_forward(f: FeedForward, x: Array, y: Array, cache: Any) -> Calls:
    inner = _row(len(f.up.weight))
    return [*linear(f.up, x, inner), *f.act(inner, np.empty_like(inner)), *linear(f.down, inner, y)]


SUBLAYERS: dict[type, Callable[..., Calls]] = {
    SelfAttention: _self_attention, CrossAttention: _cross_attention, FeedForward: _feed_forward,
}  # fmt: skip


class Embedded(NamedTuple):
    """What the first layer reads: a token's row of a table, times a number, plus its place's, less their mean."""

    table: Array
    scale: Any
    places: Array | None
    mean_of: Array | None

    def __call__(self, ids: Any, places: Any) -> Array:
        """Return it for some tokens.    ids: (B,), places: (B,), one, or a slice → (B, D)

        Raises IndexError for an id that the table does not have, as `ops.embedding` does.
        """
        self._require(int(ids.min()))
        self._require(int(ids.max()))
        x = self.table[ids]
        if self.scale is not None:
            x = x * self.scale
        if self.places is not None:
            x = x + self.places[places]
        return x if self.mean_of is None else x - x.dot(self.mean_of)[:, None]

    def _require(self, token: int) -> None:
        if not 0 <= token < len(self.table):
            raise unknown_id(token, len(self.table))

    def write(self, token: int, place: int, x: Array) -> None:
        """Write it for one token.    x: (D,)    Raises IndexError as above."""
        self._require(token)
        if self.scale is None:
            x[...] = self.table[token]
        else:
            np.multiply(self.table[token], self.scale, x)
        if self.places is not None:
            np.add(x, self.places[place], x)
        if self.mean_of is not None:
            np.subtract(x, x.dot(self.mean_of), x)


def token_calls(
    stack: decoding.Stack, output: Linear, caches: Sequence[Any], x: Array, scores: Array,
    joined: Callable[[int], tuple[Array, Calls]],
) -> Calls:  # fmt: skip
    """Return the calls of all layers and of the last product.    x: (D,), scores: (V,)

    joined(k): where the k-th sublayer writes, (D,), and the calls that add that to x.
    """
    calls: Calls = []
    read = _row(len(x))
    sublayers = [
        (f, sublayer, cache) for layer, cache in zip(stack.layers, caches, strict=True) for f, sublayer in layer
    ]
    for k, (f, sublayer, cache) in enumerate(sublayers):
        make, (written, add) = SUBLAYERS[type(sublayer)], joined(k)
        if stack.pre:
            calls += [*norm(f, x, read), *make(sublayer, read, written, cache), *add]
        else:
            calls += [*make(sublayer, x, written, cache), *add, *norm(f, x, read), partial(np.copyto, x, read)]
    if stack.norm is not None:
        calls += norm(stack.norm, x, read)
    return calls + linear(output, x if stack.norm is None else read, scores)


class OneRow:
    """A stack of layers for a text that is written alone, with nothing hidden in it."""

    def __init__(self, stack: decoding.Stack, caches: Sequence[Any], output: Linear, embedded: Embedded):
        width = output.weight.shape[1]
        self.x, written = _row(width), _row(width)
        self.scores, self.embedded, x = _row(len(output.weight)), embedded, self.x
        added: Calls = [partial(np.add, x, written, x)]
        self.calls = token_calls(stack, output, caches, x, self.scores, lambda k: (written, added))

    def step(self, token: int, place: int) -> Array:
        """Take one token through all layers and the last product, and give its scores, new ones.    → (1, V)"""
        self.embedded.write(token, place, self.x)
        with np.errstate(over="ignore"):  # an exponential that overflows is noticed, and done again
            for call in self.calls:
                call()
        return self.scores[None].copy()
