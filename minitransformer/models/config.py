"""What all model configs share: plain data that JSON can hold, checked at the door."""

from __future__ import annotations

import dataclasses
from typing import Any, Self

from ..nn.activation import ACTIVATIONS


@dataclasses.dataclass
class Config:
    """A model's sizes and switches. `to_dict` and `from_dict` go through JSON; an unknown field is refused."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dict for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Self:
        """Build from a dict. Raises ValueError for a field that does not exist."""
        known = {f.name for f in dataclasses.fields(cls)}
        if unknown := sorted(set(fields) - known):
            raise ValueError(
                f"{cls.__name__} has the fields {', '.join(sorted(known))}; got {', '.join(unknown)}; remove it"
            )
        return cls(**fields)

    def require(self, **least: int) -> None:
        """Raise ValueError if a field is not an integer of at least the value given."""
        for name, value in least.items():
            got = getattr(self, name)
            if not isinstance(got, int) or isinstance(got, bool) or got < value:
                raise ValueError(f"{name} is an integer of at least {value}; got {got!r}; write {name}={max(value, 1)}")

    def check_layers(self) -> None:
        """Raise ValueError where heads, dropout or activation cannot make a layer."""
        d_model, heads, dropout, act = (getattr(self, name) for name in ("d_model", "heads", "dropout", "activation"))
        if d_model % heads:
            raise ValueError(f"heads must divide d_model; got d_model={d_model}, heads={heads}; write heads=1")
        kv_heads = getattr(self, "kv_heads", 0)
        if kv_heads and heads % kv_heads:
            raise ValueError(f"kv_heads must divide heads; got heads={heads}, kv_heads={kv_heads}; write kv_heads=1")
        if getattr(self, "positions", "") == "rotary" and d_model // heads % 2:
            raise ValueError(
                f"rotary positions turn pairs; got {d_model // heads} numbers a head; write heads for an even number"
            )
        if not isinstance(dropout, int | float) or not 0 <= dropout < 1:
            raise ValueError(f"dropout drops a share 0 <= p < 1; got {dropout!r}; write dropout=0.1")
        if act not in ACTIVATIONS:
            raise ValueError(f"an activation is one of {', '.join(ACTIVATIONS)}; got {act!r}; write activation=relu")
