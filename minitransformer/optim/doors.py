"""The doors of this room: what a setting of an optimizer may be."""

from __future__ import annotations

import math
from typing import Any


def check_range(name: str, value: Any, low: float, high: float, low_is_allowed: bool = True) -> None:
    """Raise ValueError unless low ≤ value < high (low < value where low itself is not allowed)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} is a number; got {value!r}; write {name}=0.1")
    if not (low <= value if low_is_allowed else low < value) or not value < high:  # written so that nan fails
        bracket, end = "[" if low_is_allowed else "(", "∞" if math.isinf(high) else high
        raise ValueError(f"{name} lies in {bracket}{low}, {end}); got {value}; write {name}=0.1")


def check_count(name: str, value: Any, low: int) -> None:
    """Raise ValueError unless this is a whole number of at least `low`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ValueError(f"{name} is a whole number from {low} up; got {value!r}; write {name}=100")


def check_flag(name: str, value: Any) -> None:
    """Raise TypeError unless this is True or False: any text would count as true."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} is True or False; got {value!r}; write {name}=True")


def check_betas(betas: Any) -> None:
    """Raise ValueError unless these are two numbers in [0, 1)."""
    if not isinstance(betas, tuple) or len(betas) != 2:
        raise ValueError(f"betas are two numbers; got {betas!r}; write betas=(0.9, 0.999)")
    for i, beta in enumerate(betas):
        check_range(f"betas[{i}]", beta, 0, 1)
