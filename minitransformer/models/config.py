"""What all model configs share: plain data that JSON can hold, checked at the door."""

from __future__ import annotations

import dataclasses
from typing import Any, Self


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
            if not isinstance(got, int) or got < value:
                raise ValueError(f"{name} is an integer of at least {value}; got {got!r}; write {name}={max(value, 1)}")
