"""What a record is made of: steps, their inputs, leaves, and the pictures of all arrays, within a budget of bytes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

from ..backend import to_numpy
from .arrays import MOST_CELLS, Picture, picture

SIDES = (MOST_CELLS, 12, 6, 0)  # of the pictures, while the budget lasts; 0 leaves the extent alone


class Pictures:
    """The pictures of a record: each content once, and all of them in fewer cells when they outgrow the budget."""

    def __init__(self, budget: int):
        self.kept: list[Picture] = []
        self.numbers: dict[tuple, int] = {}
        self.budget, self.level, self.bytes = budget, 0, 0

    def add(self, array: Any) -> int:
        """Keep a picture of an array; return its number."""
        array = to_numpy(array)
        content = hashlib.blake2b(array.tobytes(), digest_size=16).digest()
        key = array.shape, array.dtype.char, content
        if key not in self.numbers:
            self.numbers[key] = len(self.kept)
            self.kept.append(picture(array).shrunk(SIDES[self.level]))
            self.spend(size_of(self.kept[-1].to_json()))
        return self.numbers[key]

    def spend(self, size: int) -> None:
        """Count bytes of the record, and shrink its pictures until it fits, or nothing is left to leave out."""
        self.bytes += size
        while self.bytes > self.budget and self.level + 1 < len(SIDES):
            self.level += 1
            before = sum(size_of(p.to_json()) for p in self.kept)
            self.kept = [p.shrunk(SIDES[self.level]) for p in self.kept]
            self.bytes += sum(size_of(p.to_json()) for p in self.kept) - before


def size_of(value: Any) -> int:
    """Return how many bytes a value takes as JSON."""
    return len(json.dumps(value, ensure_ascii=False).encode()) + 2


@dataclasses.dataclass
class Input:
    """What went into one place of an op. Numbers name pictures; `step` is the op that made it, None for a leaf."""

    role: str
    name: str
    step: int | None
    array: int
    differentiable: bool
    slope: int | None = None  # of an elementwise op: the derivative at each element
    gradient: int | None = None  # what leaves towards it


@dataclasses.dataclass
class Step:
    """One op of the computation, forwards and backwards. Numbers name pictures."""

    number: int
    op: str
    name: str | None  # that the program gives to the result
    settings: str
    lines: list[int]
    inputs: list[Input]
    output: int
    recorded: bool  # whether a gradient can come back
    turn: int | None = None  # in the backward pass, from 0
    arriving: int | None = None

    @property
    def label(self) -> str:
        """The name of the result: the program's own, or the number of the step."""
        return self.name or f"step {self.number + 1}"


@dataclasses.dataclass
class Leaf:
    """A tensor that the computation began with, and the gradient that has reached it."""

    name: str
    array: int
    gradient: int | None = None


def settings_text(settings: dict[str, Any]) -> str:
    """Write the settings of an op in a line; arrays by dtype and shape."""
    return ", ".join(f"{name}={_setting(value)}" for name, value in settings.items() if name != "draw")


def _setting(value: Any) -> str:
    if isinstance(value, slice):
        ends = ["" if end is None else str(end) for end in (value.start, value.stop)]
        return ":".join(ends + ([str(value.step)] if value.step is not None else []))
    if isinstance(value, tuple):
        return f"({', '.join(_setting(v) for v in value)}{',' if len(value) == 1 else ''})"
    if hasattr(value, "dtype"):
        return f"{value.dtype}{list(value.shape)}" if value.ndim else str(value)
    if value is Ellipsis:
        return "…"
    text = f"{value:.4g}" if isinstance(value, float) else repr(value)
    return text if len(text) <= 60 else text[:59] + "…"
