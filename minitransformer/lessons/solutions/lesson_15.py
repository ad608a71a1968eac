"""Solutions of lesson 15."""

import numpy as np


def square_gate(xp, x):
    """Gate the square; xp and operators alone, so that any array will do."""
    gate = 1 / (1 + xp.exp(-x))

    def vjp(g):
        return g * (2 * x * gate + x * x * gate * (1 - gate))

    return x * x * gate, vjp


def places(n, threads):
    """Round the number of blocks up, and guard the last one."""
    blocks = -(-n // threads)
    i = np.arange(blocks)[:, None] * threads + np.arange(threads)
    return np.where(i < n, i, -1)


def warp_max(values):
    """Exchange with the partner whose number differs in one bit, the highest first."""
    lane, held, stages = np.arange(len(values)), values, []
    distance = len(values) // 2
    while distance:
        held = np.maximum(held, held[lane ^ distance])
        stages.append(held)
        distance //= 2
    return np.stack(stages)


def unpack(flat, shapes):
    """Walk along flat, a slice for each array."""
    arrays, first = [], 0
    for shape in shapes:
        size = int(np.prod(shape))
        arrays.append(flat[first : first + size].reshape(shape))
        first += size
    return arrays


SOLUTIONS = {"15.1": square_gate, "15.2": places, "15.3": warp_max, "15.4": unpack}
