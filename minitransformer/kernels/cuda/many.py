"""One launch over many arrays: a list of their addresses, and which block works on which piece of which.

Parameters and moments keep their places, so their lists are sent once. Gradients lie elsewhere each step; their
addresses go along with the launch itself, as an argument, which costs no copy.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from typing import Any

import numpy as np

from ...backend import Array, keep, to_backend

CHUNK = 2048  # elements of an array that one block takes
REMEMBERED = 1024  # lists of addresses
BY_VALUE = 400  # addresses that an argument holds; all arguments of a launch have 4 KiB together

POINTERS = np.dtype([("at", "u8", (BY_VALUE,))])
CODE = f"""
struct Pointers {{ unsigned long long at[{BY_VALUE}]; }};
"""

_lists: OrderedDict[tuple[int, ...], Array] = OrderedDict()


def addresses(xp: Any, arrays: tuple[Array, ...]) -> Array:
    """Return the addresses of arrays that stay where they are, as an array on the device."""
    key = tuple([a.data.ptr for a in arrays])
    found = _lists.get(key)
    if found is None:
        found = _lists[key] = to_backend(np.array(key, dtype=np.uint64), "cupy")
        if len(_lists) > REMEMBERED:
            _lists.popitem(last=False)
    else:
        _lists.move_to_end(key)
    return keep(found)


@functools.lru_cache(maxsize=64)
def pieces(device: int, sizes: tuple[int, ...]) -> tuple[Array, Array, Array, int]:
    """Return, on the device: each array's size; each block's array, and where in it the block begins; and how many."""
    counts = [-(-n // CHUNK) for n in sizes]
    owner = np.repeat(np.arange(len(sizes), dtype=np.int32), counts)
    begin = np.concatenate([np.arange(c, dtype=np.int64) * CHUNK for c in counts]) if counts else np.zeros(0, np.int64)
    found = [to_backend(a, "cupy") for a in (np.array(sizes, dtype=np.int64), owner, begin)]
    return found[0], found[1], found[2], len(owner)


def pointers(xp: Any, arrays: tuple[Array, ...]) -> tuple[Any, Any]:
    """Return the addresses of arrays that come and go as two arguments: by value, or null and a list on the device."""
    value = np.zeros((), dtype=POINTERS)
    if len(arrays) <= BY_VALUE:
        value["at"][: len(arrays)] = [a.data.ptr for a in arrays]
        return value, np.uintp(0)
    return value, to_backend(np.array([a.data.ptr for a in arrays], dtype=np.uint64), "cupy")
