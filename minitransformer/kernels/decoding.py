"""One new token through a stack of layers, on plain NumPy arrays.

A token has so few numbers that calls cost more than arithmetic. So here are none but NumPy's own, on vectors where the
batch is one row; q, k and v are one product, and what can be prepared is prepared once: most functions below take
weights and return a function of x, which is (D,) for one row and (B, D) for several. What is computed is what `nn`
says, to the rounding. `generate/fast.py` knows which models this fits, and fills it.

How fast a product goes depends on where its weights are. From the processor's own memory BLAS reads them fastest, on
one thread. From main memory it depends on the machine: np.vecdot reads in one stream from end to end, where BLAS takes
several rows at a time, but on several threads, and one core cannot always read as fast as the memory is. `reading`
tries, once.

Weights of the first kind are few enough to be written anew for each text, and where LayerNorm stands in front
(pre-norm) most of it goes into them:

    W·(γ·x̂ + β) + b  =  (W·γ)·x̂ + (W·β + b)

and, since every reader of the residual sum takes its mean out, all that is written into the sum has it taken out
before: of LayerNorm only x̂ = x / √(x·x/D + ε) is left to be done.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ..backend import Array
from ..ops.activation import CUBIC, SQRT_2_OVER_PI
from .activation import _gelu_exact_curve
from .blas import limit_blas_threads

OF_X = Callable[[Array], Array]
TRIED, TRIES = 48 << 20, 4  # bytes, and how often
IN_CACHE = 16 << 20  # bytes of weights; more than the second caches hold, less than most third ones
# Between these the sum of a row's exponentials is right without looking for the row's maximum first: none has
# overflowed, and all that vanished together is below 1e-12 of the sum.
LEAST, MOST = 1e-20, 1e30


class Reading(NamedTuple):
    """How weights are read from main memory: on how many threads of BLAS, or in one stream by np.vecdot."""

    threads: int
    in_one_stream: bool


@functools.cache
def reading(most: int) -> Reading:
    """Return the quickest way on this machine, with `most` threads at most, found by trying them all."""
    weights = np.ones((TRIED // 4096, 1024), dtype=np.float32)
    x, best, found = np.ones(1024, dtype=np.float32), math.inf, Reading(1, True)
    for way in [Reading(1, True), *[Reading(threads, False) for threads in sorted({1, max(most, 1)})]]:
        with limit_blas_threads(way.threads):
            for _ in range(TRIES):
                began = time.perf_counter()
                np.vecdot(weights, x) if way.in_one_stream else x.dot(weights.T)
                seconds = time.perf_counter() - began
                if seconds < best:
                    best, found = seconds, way
    return found


class Now(NamedTuple):
    """What changes from token to token."""

    place: int  # how many tokens stand before this one
    hidden: Array | None = None  # (B, 1, 1, max_length): −∞ where a key only pads, else 0
    hidden_memory: Array | None = None  # (B, 1, 1, S), of the source
    ahead: Array | None = None  # (T, T): −∞ where a token would look ahead; x is then the T tokens that begin one text


Sublayer = Callable[[Array, Any, Now], Array]


def linear(weight: Array, bias: Array | None, in_one_stream: bool) -> OF_X:
    """Return x ↦ x·weightᵀ + bias.    weight: (F, D), x: (..., D) → (..., F)"""
    weight_t = weight.T

    def product(x: Array) -> Array:
        y = np.vecdot(weight, x) if in_one_stream and x.ndim == 1 else x.dot(weight_t)
        if bias is not None:
            y += bias
        return y

    return product


def layer_norm(weight: Array, bias: Array, eps: float) -> OF_X:
    """Return what `ops.layer_norm` computes.    x: (..., D) → (..., D)"""
    width, mean_of = len(weight), mean_of_width(len(weight))

    def normalise(x: Array) -> Array:
        if x.ndim == 1:
            y = x - x.dot(mean_of)
            y *= 1 / math.sqrt(float(y.dot(y)) / width + eps)
        else:
            y = x - x.dot(mean_of)[:, None]
            y *= (1 / np.sqrt((y * y).dot(mean_of) + eps))[:, None]
        y *= weight
        y += bias
        return y

    return normalise


def to_length_one(width: int, eps: float) -> OF_X:
    """Return x ↦ x / √(x·x/D + ε), which is x̂ where the mean of x is 0.    x: (..., D) → (..., D)"""
    mean_of = mean_of_width(width)

    def normalise(x: Array) -> Array:
        if x.ndim == 1:
            return x * np.float32(1 / math.sqrt(float(x.dot(x)) / width + eps))
        return x * (1 / np.sqrt((x * x).dot(mean_of) + eps))[:, None]

    return normalise


def mean_of_width(width: int) -> Array:
    """Return the vector a product with which is a mean.    → (D,)"""
    return np.full(width, 1 / width, dtype=np.float32)


def attend(q: Array, k: Array, v: Array, added: Array | None) -> Array:
    """Mix the values by softmax(q·kᵀ + added).    q: (B, G, N, K), k, v: (B, G, S, K) → (B, G, N, K), N queries a head

    The maximum of a row is subtracted only where its sum shows that this was needed.
    """
    p = np.matmul(q, k.swapaxes(-1, -2))
    if added is not None:
        p += added
    e, along = np.exp(p), _ones(p.shape[-1])
    total = e.dot(along)
    sums = total.ravel().tolist()
    if not (min(sums) > LEAST and max(sums) < MOST):
        top = p.max(axis=-1, keepdims=True)
        top[top == -math.inf] = 0  # a row that may look nowhere
        e = np.exp(p - top)
        total = e.dot(along)
        total[total == 0] = math.inf
    y = np.matmul(e, v)
    y /= total[..., None]
    return y


def _ones(n: int, kept: list[Array] = []) -> Array:  # noqa: B006  (a cache)
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


def self_attention(
    taken: OF_X, out: OF_X, heads: int, kv_heads: int, turns: Turns | None, distance: Array | None
) -> Sublayer:
    """Return self-attention with a cache.    x: (D,) or (B, D) → the same shape

    taken: x ↦ q/√K, k and v side by side; out: the last projection. distance: (G, N, S), what is added to the scores
    for the distances S − 1, ..., 1, 0. Without it, the tokens that begin a text can be read all at once: x is (T, D).
    """
    width = heads + 2 * kv_heads

    def begin(x: Array, cache: Any, ahead: Array) -> Array:
        each = taken(x).reshape(1, len(x), width, -1).swapaxes(1, 2)
        if turns is not None:
            turns.turn(each[:, :-kv_heads], slice(0, len(x)))
        k, v = cache.past.put(each[:, heads:-kv_heads], each[:, -kv_heads:])
        q = each[:, :heads].reshape(1, kv_heads, heads // kv_heads, len(x), -1)
        y = attend(q, k[:, :, None], v[:, :, None], ahead)
        return out(y.reshape(heads, len(x), -1).swapaxes(0, 1).reshape(x.shape))

    def sublayer(x: Array, cache: Any, now: Now) -> Array:
        if now.ahead is not None:
            return begin(x, cache, now.ahead)
        each = taken(x).reshape(1 if x.ndim == 1 else len(x), width, 1, -1)
        if turns is not None:
            turns.turn(each[:, :-kv_heads], now.place)
        k, v = cache.past.put(each[:, heads:-kv_heads], each[:, -kv_heads:])
        q, added = each[:, :heads], None
        if kv_heads < heads:
            q = q.reshape(len(each), kv_heads, heads // kv_heads, -1)
        if distance is not None:
            added = distance[..., distance.shape[-1] - k.shape[2] :]
        if now.hidden is not None:
            hidden = now.hidden[..., now.place + 1 - k.shape[2] : now.place + 1]
            added = hidden if added is None else added + hidden
        return out(attend(q, k, v, added).reshape(x.shape))

    return sublayer


def cross_attention(taken: OF_X, out: OF_X, heads: int, kv_heads: int) -> Sublayer:
    """Return cross-attention to what the cache holds.    x: (D,) or (B, D) → the same shape;    taken: x ↦ q/√K"""

    def sublayer(x: Array, cache: Any, now: Now) -> Array:
        q = taken(x).reshape(1 if x.ndim == 1 else len(x), kv_heads, heads // kv_heads, -1)
        k, v = cache.memory.arrays()
        return out(attend(q, k, v, now.hidden_memory).reshape(x.shape))

    return sublayer


def feed_forward(up: OF_X, act: Callable[[Array], Array], down: OF_X) -> Sublayer:
    """Return the two products with an activation between them.    x: (D,) or (B, D) → the same shape"""
    return lambda x, cache, now: down(act(up(x)))


class Stack(NamedTuple):
    """Layers one on another, each a list of its sublayers with their norms, and a last norm or None."""

    layers: list[list[tuple[OF_X, Sublayer]]]
    pre: bool
    norm: OF_X | None

    def step(self, x: Array, caches: Any, now: Now) -> Array:
        """Take one token of each row, or the first T of one text, through all layers.    x: (D,) or (B, D) → the same

        The caches, one for each layer, get its keys and values.
        """
        with np.errstate(over="ignore"):  # an exponential that overflows is noticed, and done again
            for sublayers, cache in zip(self.layers, caches, strict=True):
                for norm, sublayer in sublayers:
                    x = x + sublayer(norm(x), cache, now) if self.pre else norm(x + sublayer(x, cache, now))
            return x if self.norm is None else self.norm(x)


# -- activations, in place, for F numbers in a row: with an array of constants a call costs half of what it costs with a
# Python number


def relu(width: int) -> OF_X:
    """Return x ↦ max(x, 0).    x: (..., F) → (..., F)"""
    zero = np.zeros(width, dtype=np.float32)
    return lambda x: np.maximum(x, zero, out=x)


def silu(width: int) -> OF_X:
    """Return x ↦ x / (1 + e^(−x)).    x: (..., F) → (..., F)"""
    one = np.ones(width, dtype=np.float32)

    def act(x: Array) -> Array:
        e = np.negative(x)
        np.exp(e, e)
        e += one
        x /= e
        return x

    return act


def gelu_tanh(width: int) -> OF_X:
    """Return x ↦ x·(1 + tanh u)/2 as x / (1 + e^(−2u)), with u = √(2/π)·(x + 0.044715·x³).    x: (..., F) → (..., F)"""
    one, linear, cubed = (
        np.full(width, value, dtype=np.float32) for value in (1, -2 * SQRT_2_OVER_PI, -2 * SQRT_2_OVER_PI * CUBIC)
    )

    def act(x: Array) -> Array:
        e = x * x
        e *= cubed
        e += linear
        e *= x
        np.exp(e, e)
        e += one
        x /= e
        return x

    return act


def gelu_exact(width: int) -> OF_X:
    """Return what the kernel of the op computes, without the derivative.    x: (..., F) → (..., F)"""

    def act(x: Array) -> Array:
        y = np.empty_like(x)
        _gelu_exact_curve(np, x, y, np.empty_like(x), np.empty((2, *x.shape), dtype=x.dtype))
        return y

    return act
