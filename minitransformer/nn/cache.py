"""What attention has read so far: while writing token by token, the keys and values of the past do not change."""

from __future__ import annotations

from typing import Any

from .. import backend
from ..backend import Array
from ..tensor import Tensor, as_array, is_grad_enabled


class KVCache:
    """Keys and values of one attention, (B, H, S, K) each, in arrays with room to grow.

    A cache of self-attention grows with each call; one of cross-attention (fixed=True) is filled by the first call
    and read by the others. Raises RuntimeError where gradients are recorded: a cache is for writing, not for training.
    """

    def __init__(self, fixed: bool = False):
        self.fixed, self.length = fixed, 0
        self._k: Array = None
        self._v: Array = None

    def extend(self, k: Any, v: Any) -> tuple[Tensor, Tensor]:
        """Put new keys and values behind those that are here, and return all.    (B, H, T, K) → (B, H, S, K)"""
        if is_grad_enabled():
            raise RuntimeError("a cache is for writing, not for training; got gradients on; write with mt.no_grad():")
        k, v = as_array(k), as_array(v)
        end = self.length + k.shape[2]
        if self._k is None or end > self._k.shape[2]:
            self._k, self._v = (self._grown(old, new, end) for old, new in ((self._k, k), (self._v, v)))
        self._k[:, :, self.length : end], self._v[:, :, self.length : end] = k, v
        self.length = end
        return self.read()

    def _grown(self, old: Array | None, new: Array, end: int) -> Array:
        """Return a larger array with what was in the old one: twice as large, so that growing costs little."""
        xp = backend.namespace((new,))
        room = end if self.fixed else max(2 * end, 16)
        larger = xp.empty((*new.shape[:2], room, new.shape[3]), dtype=new.dtype)
        if old is not None:
            larger[:, :, : self.length] = old[:, :, : self.length]
        return larger

    def read(self) -> tuple[Tensor, Tensor]:
        """Return the keys and values that are here.    → (B, H, S, K) each"""
        return Tensor(self._k[:, :, : self.length]), Tensor(self._v[:, :, : self.length])

    def select(self, rows: Array) -> None:
        """Keep these rows of the batch, in this order: those that go on writing, or the beams that were chosen."""
        self._k, self._v = self._k[rows], self._v[rows]

    @property
    def nbytes(self) -> int:
        """Bytes of all that is kept, room to grow included."""
        return 0 if self._k is None else int(self._k.nbytes + self._v.nbytes)


class LayerCache:
    """The caches of one layer: of its self-attention and, in a decoder, of its cross-attention."""

    def __init__(self) -> None:
        self.past, self.memory = KVCache(), KVCache(fixed=True)

    def select(self, rows: Array) -> None:
        """Keep these rows of the batch, in this order."""
        for cache in (self.past, self.memory):
            if cache.length:
                cache.select(rows)
