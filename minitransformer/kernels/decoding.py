"""One new token through a stack of layers, on plain NumPy arrays.

A token has so few numbers that calls cost more than arithmetic. So here are none but NumPy's own; q, k and v are one
product, and what can be prepared is prepared once. What is computed is what `nn` says, to the rounding. The parts below
are functions of x, (B, D), a token of each row; for one row alone `one_row.py` makes their calls with all arguments in
place. `generate/fast.py` knows which models this fits, and fills it.

How fast a product goes depends on where its weights are. From the processor's own memory BLAS reads them fastest, on
one thread. From main memory it depends on the machine: np.vecdot reads in one stream from end to end, where BLAS takes
several rows at a time, but on several threads, and one core cannot always read as fast as the memory is.
`blas.reading` tries, once.

Weights of the first kind are few enough to be written anew for each text, and where LayerNorm stands in front
(pre-norm) most of it goes into them:

    W·(γ·x̂ + β) + b  =  (W·γ)·x̂ + (W·β + b)

and, since every reader of the residual sum takes its mean out, all that is written into the sum has it taken out
before: of LayerNorm only x̂ = x / √(x·x/D + ε) is left to be done.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ..backend import Array
from ..ops.activation import CUBIC, SQRT_2_OVER_PI
from .activation import _gelu_exact_curve

IN_PLACE = Callable[[Array, Array], list[Callable[[], Any]]]
IN_CACHE = 16 << 20  # bytes of weights; more than the second caches hold, less than most third ones
# Between these the sum of a row's exponentials is right without looking for the row's maximum first: none has
# overflowed, and all that vanished together is below 1e-12 of the sum.
LEAST, MOST = 1e-20, 1e30


class Now(NamedTuple):
    """What changes from token to token."""

    place: int  # how many tokens stand before this one
    hidden: Array | None = None  # (B, 1, 1, max_length): −∞ where a key only pads, else 0
    hidden_memory: Array | None = None  # (B, 1, 1, S), of the source
    ahead: Array | None = None  # (T, T): −∞ where a token would look ahead; x is then the T tokens that begin one text


class Linear(NamedTuple):
    """x ↦ x·weightᵀ + bias.    weight: (F, D), bias: (F,) or None, x: (B, D) → (B, F)"""

    weight: Array
    bias: Array | None
    in_one_stream: bool

    def __call__(self, x: Array) -> Array:
        one = self.in_one_stream and len(x) == 1
        y = np.vecdot(self.weight, x[0])[None] if one else x.dot(self.weight.T)
        if self.bias is not None:
            y += self.bias
        return y


class LayerNorm(NamedTuple):
    """What `ops.layer_norm` computes.    x: (B, D) → (B, D)"""

    weight: Array
    bias: Array
    eps: float

    def __call__(self, x: Array) -> Array:
        mean_of = mean_of_width(len(self.weight))
        y = x - x.dot(mean_of)[:, None]
        y *= (1 / np.sqrt((y * y).dot(mean_of) + self.eps))[:, None]
        y *= self.weight
        y += self.bias
        return y


class ToLengthOne(NamedTuple):
    """x ↦ x / √(x·x/D + ε), which is x̂ where the mean of x is 0.    x: (B, D) → (B, D)"""

    eps: float

    def __call__(self, x: Array) -> Array:
        return x * (1 / np.sqrt((x * x).dot(mean_of_width(x.shape[1])) + self.eps))[:, None]


Norm = LayerNorm | ToLengthOne


@functools.lru_cache(maxsize=16)
def mean_of_width(width: int) -> Array:
    """Return the vector a product with which is a mean.    → (D,)"""
    return np.full(width, 1 / width, dtype=np.float32)


def attend(q: Array, k: Array, v: Array, added: Array | None, out: Array | None = None) -> Array:
    """Mix the values by softmax(q·kᵀ + added).    q: (B, G, N, K), k, v: (B, G, S, K) → (B, G, N, K), N queries a head

    The maximum of a row is subtracted only where its sum shows that this was needed.
    """
    p = np.matmul(q, k.swapaxes(-1, -2))
    if added is not None:
        p += added
    e, along = np.exp(p), ones(p.shape[-1])
    total = e.dot(along)
    sums = total.ravel().tolist()
    if not (min(sums) > LEAST and max(sums) < MOST):
        top = p.max(axis=-1, keepdims=True)
        top[top == -math.inf] = 0  # a row that may look nowhere
        e = np.exp(p - top)
        total = e.dot(along)
        total[total == 0] = math.inf
    y = np.matmul(e, v, out=out)
    y /= total[..., None]
    return y


def ones(n: int, kept: list[Array] = []) -> Array:  # noqa: B006  (a cache)
    """Return a vector of n ones: the beginning of one that is kept."""
    if not kept or len(kept[0]) < n:
        kept[:] = [np.ones(2 * n, dtype=np.float32)]
    return kept[0][:n]


class Turns(NamedTuple):
    """Rotary positions. cos: (max_length, K), sin: (max_length, K/2), first, second: the numbers that make pairs."""

    cos: Array
    sin: Array
    first: slice
    second: slice

    def turn(self, x: Array, place: int | slice) -> None:
        """Rotate pairs by the angles of a place, or of T, as `ops.rotary` does.    x: (B, H, T, K), written into"""
        a, b = x[..., self.first], x[..., self.second]
        sin = self.sin[place]
        up, down = a * sin, b * sin
        x *= self.cos[place]
        a -= down
        b += up


class SelfAttention(NamedTuple):
    """Self-attention with a cache.    x: (B, D) → (B, D)

    taken: x ↦ q/√K, k and v side by side; out: the last projection. distance: (G, N, S), what is added to the scores
    for the distances S − 1, ..., 1, 0. Without it, the tokens that begin a text can be read all at once: x is (T, D).
    """

    taken: Linear
    out: Linear
    heads: int
    kv_heads: int
    turns: Turns | None
    distance: Array | None

    @property
    def width(self) -> int:
        """Heads of queries, keys and values together."""
        return self.heads + 2 * self.kv_heads

    def begin(self, x: Array, cache: Any, ahead: Array) -> Array:
        """Read the first tokens of a text.    x: (T, D) → (T, D)"""
        heads, kv_heads = self.heads, self.kv_heads
        each = self.taken(x).reshape(1, len(x), self.width, -1).swapaxes(1, 2)
        if self.turns is not None:
            self.turns.turn(each[:, :-kv_heads], slice(0, len(x)))
        k, v = cache.past.put(each[:, heads:-kv_heads], each[:, -kv_heads:])
        q = each[:, :heads].reshape(1, kv_heads, heads // kv_heads, len(x), -1)
        y = attend(q, k[:, :, None], v[:, :, None], ahead)
        return self.out(y.reshape(heads, len(x), -1).swapaxes(0, 1).reshape(x.shape))

    def __call__(self, x: Array, cache: Any, now: Now) -> Array:
        if now.ahead is not None:
            return self.begin(x, cache, now.ahead)
        heads, kv_heads = self.heads, self.kv_heads
        each, added = self.taken(x).reshape(len(x), self.width, 1, -1), None
        if self.turns is not None:
            self.turns.turn(each[:, :-kv_heads], now.place)
        k, v = cache.past.put(each[:, heads:-kv_heads], each[:, -kv_heads:])
        q = each[:, :heads].reshape(len(x), kv_heads, heads // kv_heads, -1)
        if self.distance is not None:
            added = self.distance[..., self.distance.shape[-1] - k.shape[2] :]
        if now.hidden is not None:
            hidden = now.hidden[..., now.place + 1 - k.shape[2] : now.place + 1]
            added = hidden if added is None else added + hidden
        return self.out(attend(q, k, v, added).reshape(x.shape))


class CrossAttention(NamedTuple):
    """Cross-attention to what the cache holds.    x: (B, D) → (B, D);    taken: x ↦ q/√K"""

    taken: Linear
    out: Linear
    heads: int
    kv_heads: int

    def __call__(self, x: Array, cache: Any, now: Now) -> Array:
        q = self.taken(x).reshape(len(x), self.kv_heads, self.heads // self.kv_heads, -1)
        k, v = cache.memory.arrays()
        return self.out(attend(q, k, v, now.hidden_memory).reshape(x.shape))


class FeedForward(NamedTuple):
    """Two products with an activation between them.    x: (B, D) → (B, D)

    act(x, room): the calls that write the activation of x over x, with room for as many numbers.
    """

    up: Linear
    act: IN_PLACE
    down: Linear

    def __call__(self, x: Array, cache: Any, now: Now) -> Array:
        y = self.up(x)
        for call in self.act(y, np.empty_like(y)):
            call()
        return self.down(y)


class Stack(NamedTuple):
    """Layers one on another, each a list of its sublayers with their norms, and a last norm or None."""

    layers: list[list[tuple[Norm, Any]]]
    pre: bool
    norm: Norm | None

    def step(self, x: Array, caches: Any, now: Now) -> Array:
        """Take one token of each row, or the first T of one text, through all layers.    x: (B, D) → the same

        The caches, one for each layer, get its keys and values.
        """
        with np.errstate(over="ignore"):  # an exponential that overflows is noticed, and done again
            for sublayers, cache in zip(self.layers, caches, strict=True):
                for norm, sublayer in sublayers:
                    x = x + sublayer(norm(x), cache, now) if self.pre else norm(x + sublayer(x, cache, now))
            return x if self.norm is None else self.norm(x)


# -- activations, in place. With an array of constants a call costs half of what it costs with a Python number.


def _constant(x: Array, value: float) -> Array:
    return np.full(x.shape[-1], value, dtype=np.float32)


def relu(x: Array, room: Array) -> list[Callable[[], Any]]:
    """max(x, 0).    x: (..., F)"""
    return [partial(np.maximum, x, _constant(x, 0), out=x)]


def silu(x: Array, room: Array) -> list[Callable[[], Any]]:
    """x / (1 + e^(−x)).    x: (..., F)"""
    one = _constant(x, 1)
    return [
        partial(np.negative, x, room), partial(np.exp, room, room), partial(np.add, room, one, room),
        partial(np.divide, x, room, x),
    ]  # fmt: skip


def gelu_tanh(x: Array, room: Array) -> list[Callable[[], Any]]:
    """x·(1 + tanh u)/2 as x / (1 + e^(−2u)), with u = √(2/π)·(x + 0.044715·x³).    x: (..., F)"""
    one, linear, cubed = (_constant(x, v) for v in (1, -2 * SQRT_2_OVER_PI, -2 * SQRT_2_OVER_PI * CUBIC))
    return [
        partial(np.multiply, x, x, room), partial(np.multiply, room, cubed, room), partial(np.add, room, linear, room),
        partial(np.multiply, room, x, room), partial(np.exp, room, room), partial(np.add, room, one, room),
        partial(np.divide, x, room, x),
    ]  # fmt: skip


def gelu_exact(x: Array, room: Array) -> list[Callable[[], Any]]:
    """What the kernel of the op computes, without the derivative.    x: (..., F)"""
    y, scratch = np.empty_like(x), np.empty((2, *x.shape), dtype=x.dtype)
    return [partial(_gelu_exact_curve, np, x, y, room, scratch), partial(np.copyto, x, y)]
