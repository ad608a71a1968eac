"""Steps of optimizers, in place and in blocks; and small parameters joined, so that many cost little more than one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ..backend import Array
from .registry import BLOCK_BYTES

JOINED = 65_536  # elements; a smaller parameter costs more in calls than in copies


def adam(xp: Any, x: Array, g: Array, state: dict[str, Any], group: dict[str, Any], decoupled: bool) -> None:
    """Do what `optim.Adam` says, with the constants gathered so that a block is passed over ten times.

    m += (1 − β₁)·(g − m)        v += (1 − β₂)·(g² − v)        θ −= η√(1 − β₂ᵗ)/(1 − β₁ᵗ) · m / (√v + ε√(1 − β₂ᵗ))
    """
    (beta1, beta2), t, decay = group["betas"], state["step"], group["weight_decay"]
    root = math.sqrt(1 - beta2**t)
    rate, eps = group["lr"] * root / (1 - beta1**t), group["eps"] * root
    arrays = [a.reshape(-1) for a in (x, g, state["exp_avg"], state["exp_avg_sq"])]
    step = BLOCK_BYTES // x.itemsize
    scratch = xp.empty(min(step, x.size), dtype=x.dtype)
    for i in range(0, x.size, step):
        theta, g_block, m, v = (a[i : i + step] for a in arrays)
        u = scratch[: len(theta)]
        if decay and decoupled:
            theta *= 1 - group["lr"] * decay
        elif decay:
            g_block = g_block + decay * theta
        xp.subtract(g_block, m, out=u)
        u *= 1 - beta1
        m += u
        xp.multiply(g_block, g_block, out=u)
        u -= v
        u *= 1 - beta2
        v += u
        xp.sqrt(v, out=u)
        u += eps
        xp.divide(m, u, out=u)
        u *= rate
        theta -= u


def lion(xp: Any, x: Array, g: Array, state: dict[str, Any], group: dict[str, Any]) -> None:
    """Do what `optim.Lion` says, block by block, with the book's own roundings.

    A sign has no room for error: it is taken of the same number as there, to the bit.
    """
    lr, (beta1, beta2), decay = group["lr"], group["betas"], group["weight_decay"]
    arrays = [a.reshape(-1) for a in (x, g, state["exp_avg"])]
    step = BLOCK_BYTES // x.itemsize
    scratch = xp.empty((2, min(step, x.size)), dtype=x.dtype)
    for i in range(0, x.size, step):
        theta, g_block, m = (a[i : i + step] for a in arrays)
        c, part = scratch[:, : len(theta)]
        xp.multiply(m, beta1, out=c)
        xp.multiply(g_block, 1 - beta1, out=part)
        c += part
        xp.sign(c, out=c)
        c *= lr
        if decay:
            theta *= 1 - lr * decay
        theta -= c
        m *= beta2
        xp.multiply(g_block, 1 - beta2, out=part)
        m += part


def add_up(arrays: list[Array], factor: float) -> None:
    """Leave the sum of flat arrays, times a factor, in the first of them.    each (N,)"""
    step = BLOCK_BYTES // arrays[0].itemsize
    for i in range(0, len(arrays[0]), step):
        total, *others = (a[i : i + step] for a in arrays)
        for other in others:
            total += other
        total *= factor


class Joined:
    """Small parameters of one group, side by side in flat arrays, with views of their moments in `state`.

    Parameters and gradients that lie side by side already (as `parallel.Workers` lays them) are used where they are,
    others are copied together and back. It holds for optimizers whose step treats each element alone; then joining
    changes no bit.
    """

    def __init__(self, parameters: list[Any], states: list[dict[str, Any]]):
        self.parameters = parameters
        self.dtype = parameters[0].dtype
        ends = np.cumsum([p.size for p in parameters]).tolist()
        self.parts = [slice(end - p.size, end) for p, end in zip(parameters, ends, strict=True)]
        self._places: dict[str, tuple[list[Array], Array, bool]] = {}
        self.state: dict[str, Any] = {}
        for name in states[0]:
            if name == "step":
                continue
            flat = self.state[name] = np.concatenate([s[name].reshape(-1) for s in states])
            for p, s, part in zip(parameters, states, self.parts, strict=True):
                s[name] = flat[part].reshape(p.shape)

    def _flat(self, kind: str, arrays: list[Array]) -> tuple[Array, bool]:
        """Return the arrays as one, and whether it is a copy."""
        known, flat, copied = self._places.get(kind, ((), None, True))
        if len(known) != len(arrays) or any(a is not b for a, b in zip(known, arrays, strict=True)):
            flat = _side_by_side(arrays)
            copied = flat is None
            if copied:
                flat = np.empty(self.parts[-1].stop, dtype=self.dtype)
            self._places[kind] = (arrays, flat, copied)
        if copied:
            np.concatenate([a.reshape(-1) for a in arrays], out=flat)
        return flat, copied

    def update(self, gradients: list[Array], run: Callable[[Array, Array, dict[str, Any]], None]) -> None:
        """Call run(x, g, moments) on the flat arrays, and put the parameters back where they came from."""
        x, copied = self._flat("parameters", [p.data for p in self.parameters])
        g, _ = self._flat("gradients", gradients)
        run(x, g, self.state)
        if copied:
            for p, part in zip(self.parameters, self.parts, strict=True):
                p.data[...] = x[part].reshape(p.shape)
        if self._places["gradients"][2]:  # each step brings others; do not keep these alive
            del self._places["gradients"]


def _side_by_side(arrays: list[Array]) -> Array | None:
    """Return one flat view of arrays that lie in memory one right after the other; None if they do not."""
    at = arrays[0].__array_interface__["data"][0]
    for a in arrays:
        if not a.flags.c_contiguous or not a.flags.writeable or a.__array_interface__["data"][0] != at:
            return None
        at += a.nbytes
    return np.lib.stride_tricks.as_strided(arrays[0].reshape(-1), (sum(a.size for a in arrays),), (arrays[0].itemsize,))
