"""What all model configs share: plain data that JSON can hold, checked at the door."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Self

from .. import nn
from ..nn.activation import ACTIVATIONS, GATED, is_known
from ..nn.attention import check_options
from ..ops.position import PAIRINGS, check_pairing


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


@dataclasses.dataclass(kw_only=True)
class LayersConfig(Config):
    """What a layer may be beside its sizes; each field is one technique, see nn.MultiHeadAttention.

    kv_heads: heads of keys and values, 0 for as many as heads. share: none, qk (one projection for queries and keys)
    or heads (one for all heads). tie_output: project back by the transpose of the values' projection. qk_norm: norm
    queries and keys. window: keys that a query sees, 0 for all. attention: auto, dense, blockwise or linear
    (which makes no weights: dropout then acts on all else).
    distinct_layers: how many layers have weights of their own, 0 for all; with 2 of 6, three follow the first and
    three the second (Lan et al. 2019, arXiv:1909.11942, share one). recompute: compute each layer again in the
    backward pass instead of keeping what is inside (see nn.Recompute). rotary_pairing, rotary_scaling: how rotary
    positions turn, see nn.RotaryPositions; a scaling of 2 reads twice the trained length.
    """

    kv_heads: int = 0
    share: str = "none"
    tie_output: bool = False
    qk_norm: bool = False
    window: int = 0
    attention: str = "auto"
    distinct_layers: int = 0
    recompute: bool = False
    rotary_pairing: str = "halves"
    rotary_scaling: float = 1.0

    def attention_options(self) -> dict[str, Any]:
        """Return what MultiHeadAttention takes of it."""
        return {
            "kv_heads": self.kv_heads or None, "share": self.share, "tie_output": self.tie_output,
            "qk_norm": self.qk_norm, "window": self.window, "kind": self.attention,
        }  # fmt: skip

    def stack(self, make: Callable[[], nn.Module]) -> list[nn.Module]:
        """Make the layers of a stack: as many as there are weights, each as often as it comes, in a row."""
        layers = int(self.layers)  # type: ignore[attr-defined]
        distinct = self.distinct_layers or layers
        made = [nn.Recompute(make()) if self.recompute else make() for _ in range(min(distinct, layers))]
        return [made[i * distinct // layers] for i in range(layers)]

    def check_layers(self) -> None:
        """Raise ValueError where the fields cannot make a layer."""
        d_model, heads, dropout, act = (getattr(self, name) for name in ("d_model", "heads", "dropout", "activation"))
        self.require(kv_heads=0, window=0, distinct_layers=0)
        for name in ("tie_output", "qk_norm", "recompute"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} is true or false; got {getattr(self, name)!r}; write {name}=true")
        if d_model % heads:
            raise ValueError(f"heads must divide d_model; got d_model={d_model}, heads={heads}; write heads=1")
        positions = getattr(self, "positions", "")
        if positions == "rotary" and d_model // heads % 2:
            raise ValueError(
                f"rotary positions turn pairs; got {d_model // heads} numbers a head; write heads for an even number"
            )
        check_pairing(self.rotary_pairing, "rotary_pairing")
        scaling = self.rotary_scaling
        if isinstance(scaling, bool) or not isinstance(scaling, int | float) or not 0 < scaling < math.inf:
            raise ValueError(f"rotary_scaling is a positive number; got {scaling!r}; write rotary_scaling=2")
        if positions != "rotary" and (self.rotary_pairing, scaling) != (PAIRINGS[0], 1):
            came = f"rotary_pairing={self.rotary_pairing}, rotary_scaling={scaling}, positions={positions}"
            raise ValueError(
                f"rotary_pairing and rotary_scaling are for rotary positions; got {came}; write positions=rotary"
            )
        if self.distinct_layers > self.layers:  # type: ignore[attr-defined]
            raise ValueError(
                f"distinct_layers is at most layers={self.layers}; got {self.distinct_layers}; "  # type: ignore[attr-defined]
                "write distinct_layers=1"
            )
        if not isinstance(dropout, int | float) or not 0 <= dropout < 1:
            raise ValueError(f"dropout drops a share 0 <= p < 1; got {dropout!r}; write dropout=0.1")
        if not is_known(act, ACTIVATIONS, GATED):
            known = ", ".join([*ACTIVATIONS, *GATED])
            raise ValueError(f"an activation is one of {known}; got {act!r}; write activation=relu")
        check_options(
            heads, self.kv_heads or heads, self.share, self.tie_output, self.window, self.attention,
            biased=positions in ("alibi", "relative"), dropout=0.0,  # of linear attention a layer drops no weights
        )  # fmt: skip
