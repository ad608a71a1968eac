"""Random numbers without a state: a counter goes in, and what comes out looks like chance.

A generator that remembers where it is has to be asked in order. Philox is a function: block number n of a stream is
computed from n alone, so that any worker, and any thread of a GPU, finds its own numbers, and all find the same.
"""

from __future__ import annotations

from typing import Any

from ..backend import Array

M0, M1 = 0xD2E7470EE14C6C93, 0xCA5A826395121157  # multipliers, and what is added to the key in each round
W0, W1 = 0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B
ROUNDS = 10
LOW, WHOLE = 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF


def _product(xp: Any, a: Array, b: int) -> tuple[Array, Array]:
    """Return the upper and the lower 64 bits of a·b, from four products of 32 bits each.    uint64 (...)"""
    word = xp.uint64
    a1, a0, b1, b0 = a >> word(32), a & word(LOW), word(b >> 32), word(b & LOW)
    low, middle, other = a0 * b0, a1 * b0, a0 * b1
    carry = ((low >> word(32)) + (middle & word(LOW)) + (other & word(LOW))) >> word(32)
    return a1 * b1 + (middle >> word(32)) + (other >> word(32)) + carry, a * word(b)


def philox(xp: Any, blocks: Array, call: int, key: tuple[int, int]) -> Array:
    """Turn counters into random words: Philox-4×64 with ten rounds.    blocks: uint64 (N,) → uint64 (N, 4)

    The counter is (block, call, 0, 0): a stream for each call, a block of four words for each number. In a round,

        (c₀, c₁, c₂, c₃) ← (hi(M₁·c₂) ⊕ c₁ ⊕ k₀,  lo(M₁·c₂),  hi(M₀·c₀) ⊕ c₃ ⊕ k₁,  lo(M₀·c₀)),    k ← k + W

    Salmon, Moraes, Dror & Shaw 2011, Parallel random numbers: as easy as 1, 2, 3 (SC 2011).
    """
    word = xp.uint64
    c0, c1 = blocks.astype(word), xp.full(blocks.shape, call, dtype=word)
    c2 = c3 = xp.zeros(blocks.shape, dtype=word)
    k0, k1 = key
    for _ in range(ROUNDS):
        high0, low0 = _product(xp, c0, M0)
        high1, low1 = _product(xp, c2, M1)
        c0, c1, c2, c3 = high1 ^ c1 ^ word(k0), low1, high0 ^ c3 ^ word(k1), low0
        k0, k1 = (k0 + W0) & WHOLE, (k1 + W1) & WHOLE
    return xp.stack([c0, c1, c2, c3], axis=1)
