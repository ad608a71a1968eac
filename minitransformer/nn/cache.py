"""What attention has read so far: while writing token by token, the keys and values of the past do not change."""

from __future__ import annotations

from typing import Any

from .. import backend
from ..backend import Array
from ..tensor import Tensor, as_array, is_grad_enabled


class KVCache:
    """Keys and values of one attention, (B, H, S, K) each, in arrays with room to grow.

    A cache of self-attention grows with each call; one of cross-attention (fixed=True) is filled by the first call
    and read by the others. window: how far a query looks back, itself included; then only what a next query may still
    see is kept, and memory stays the same however long the text becomes. To keep them is common practice and no paper's
    own; Shazeer 2019, arXiv:1911.02150, works out what reading them costs in memory traffic, and so why fewer heads of
    keys and values write faster.
    Raises RuntimeError where gradients are recorded: a cache is for writing, not for training; ValueError for a window
    below 1.
    """

    def __init__(self, fixed: bool = False, window: int | None = None):
        if window is not None and (isinstance(window, bool) or not isinstance(window, int) or window < 1):
            raise ValueError(f"a window holds at least the query's own key; got {window!r}; write window=64, or None")
        self.fixed, self.window = fixed, window
        self.length = 0  # of all that was ever put in, and so the position of what comes next
        self._first = self._end = 0  # where what may still be seen lies in the arrays
        self._k: Array = None
        self._v: Array = None

    def extend(self, k: Any, v: Any) -> tuple[Tensor, Tensor]:
        """Put new keys and values behind those that are here, and return all.    (B, H, T, K) → (B, H, S, K)

        With a window, all that any of the T new queries may see: S is at most window − 1 + T.
        """
        if is_grad_enabled():
            raise RuntimeError("a cache is for writing, not for training; got gradients on; write with mt.no_grad():")
        k, v = self.put(as_array(k), as_array(v))
        return Tensor(k), Tensor(v)

    def put(self, k: Array, v: Array) -> tuple[Array, Array]:
        """Do what `extend` does, with arrays."""
        new, begin, keys, values = k.shape[2], self._end, self._k, self._v
        if self.window is None and keys is not None and begin + new <= keys.shape[2]:  # what most tokens meet
            end = self._end = begin + new
            self.length += new
            keys[:, :, begin:end] = k
            values[:, :, begin:end] = v
            return keys[:, :, self._first : end], values[:, :, self._first : end]
        if self.window is not None:  # what lies further back than the first of the new queries may see
            self._first = max(self._first, self._end - self.window + 1)
        if self._k is None or self._end + new > self._k.shape[2]:
            self._move(k, v, self._room(self._end - self._first + new))
        begin, self._end = self._end, self._end + new
        self._k[:, :, begin : self._end], self._v[:, :, begin : self._end] = k, v
        self.length += new
        all_of_it = self.arrays()
        if self.window is not None and self._k.shape[2] > 2 * self.window:  # a long chunk is given back, but not kept
            self._first = max(self._first, self._end - self.window)
            self._move(k, v, 2 * self.window)
        return all_of_it

    def _room(self, needed: int) -> int:
        """Return how much room to make: more than is needed now, so that growing costs little."""
        if self.window is not None:
            return max(needed, 2 * self.window)  # moved once in about `window` tokens
        return needed if self.fixed else max(2 * needed, 16)

    def _move(self, k: Array, v: Array, room: int) -> None:
        """Take new arrays, like k and v but of that room, and begin them with what is here."""
        xp, here = backend.namespace((k,)), self._end - self._first
        fresh = [xp.empty((*like.shape[:2], room, like.shape[3]), dtype=like.dtype) for like in (k, v)]
        if here:
            for to, of in zip(fresh, self.arrays(), strict=True):
                to[:, :, :here] = of
        self._first, self._end = 0, here
        self._k, self._v = fresh

    def live_in(self, room: tuple[Array, Array] | None) -> None:
        """Go on in other arrays, (B, H, room, K) each, with a copy of what is here; None: in new ones."""
        k, v = self.arrays()
        if room is None:
            self._move(k, v, self._room(k.shape[2]))
            return
        here = k.shape[2]
        room[0][:, :, :here], room[1][:, :, :here] = k, v
        self._first, self._end = 0, here
        self._k, self._v = room

    def lives_in(self, keys: Array) -> bool:
        """Tell whether this is the array of its keys."""
        return self._k is keys

    def grown(self, count: int) -> None:
        """Take note of keys and values that somebody has written into the arrays behind those that are here."""
        self.length += count
        self._end += count

    def arrays(self) -> tuple[Array, Array]:
        """Return the keys and values that are here, as arrays.    → (B, H, S, K) each"""
        return self._k[:, :, self._first : self._end], self._v[:, :, self._first : self._end]

    def read(self) -> tuple[Tensor, Tensor]:
        """Return the keys and values that are here.    → (B, H, S, K) each"""
        k, v = self.arrays()
        return Tensor(k), Tensor(v)

    def select(self, rows: Array) -> None:
        """Keep these rows of the batch, in this order: those that go on writing, or the beams that were chosen."""
        self._k, self._v = self._k[rows], self._v[rows]

    @property
    def nbytes(self) -> int:
        """Bytes of all that is kept, room to grow included."""
        return 0 if self._k is None else int(self._k.nbytes + self._v.nbytes)


class LayerCache:
    """The caches of one layer: of its self-attention (with its window) and, in a decoder, of its cross-attention."""

    def __init__(self, window: int | None = None) -> None:
        self.past, self.memory = KVCache(window=window), KVCache(fixed=True)

    def select(self, rows: Array) -> None:
        """Keep these rows of the batch, in this order."""
        for cache in (self.past, self.memory):
            if cache.length:
                cache.select(rows)
