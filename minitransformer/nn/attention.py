"""Many attentions side by side, each in a subspace of its own."""

from __future__ import annotations

from typing import Any

from .. import ops
from ..tensor import as_array
from .cache import KVCache
from .linear import Linear
from .module import Module
from .position import RotaryPositions


class MultiHeadAttention(Module):
    """Project to H heads, attend in each, join the heads, project back.

        headₕ = softmax(qₕ·kₕᵀ/√K)·vₕ,   K = D/H            y = [head₁; ...; head_H]·W_outᵀ + b

    query: (B, T, D), key and value: (B, S, D) → y: (B, T, D), and with return_weights the weights (B, H, T, S).

    Called with one sequence it is self-attention, with another as key (and value) cross-attention.
    mask: boolean, broadcastable to (B, H, T, S); key_mask: (B, S), True = a real token, with a cache for all that was
    ever read; causal: no look ahead.
    Dropout acts on the weights, in training.

    kv_heads: heads of keys and values, each serving H/kv_heads heads of queries: 1 is multi-query attention (Shazeer
    2019, arXiv:1911.02150), between 1 and H grouped-query (Ainslie et al. 2023, arXiv:2305.13245). positions: a module
    that turns queries and keys (RotaryPositions) or makes a bias (AlibiBias, RelativeBias). cache: what was read
    before, to which the new keys are added; the queries are then the last ones (see nn.KVCache).
    Raises ValueError when H does not divide D, or kv_heads H, or for wrong shapes.
    Vaswani et al. 2017, arXiv:1706.03762, section 3.2.2.
    """

    def __init__(
        self, d_model: int, heads: int, dropout: float = 0.0, bias: bool = True, kv_heads: int | None = None,
        positions: Module | None = None,
    ):  # fmt: skip
        if heads < 1 or d_model % heads:
            raise ValueError(
                f"heads must divide d_model; got d_model={d_model}, heads={heads}; write heads=4 for d_model=64"
            )
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout drops a share 0 <= p < 1; got {dropout}; write dropout=0.1")
        kv_heads = heads if kv_heads is None else kv_heads
        if kv_heads < 1 or heads % kv_heads:
            raise ValueError(f"kv_heads must divide heads; got heads={heads}, kv_heads={kv_heads}; write kv_heads=1")
        self.heads, self.kv_heads, self.dropout, self.positions = heads, kv_heads, dropout, positions
        narrow = d_model // heads * kv_heads
        self.q_proj = Linear(d_model, d_model, bias)
        self.k_proj = Linear(d_model, narrow, bias)
        self.v_proj = Linear(d_model, narrow, bias)
        self.out_proj = Linear(d_model, d_model, bias)

    def split(self, x: Any, heads: int | None = None) -> Any:
        """Give each head its slice of the width.    (B, T, D) → (B, H, T, K)"""
        return ops.split_heads(x, heads=self.heads if heads is None else heads)

    def join(self, x: Any) -> Any:
        """Put the heads' slices side by side again.    (B, H, T, K) → (B, T, D)"""
        return ops.join_heads(x)

    def forward(
        self,
        query: Any,
        key: Any = None,
        value: Any = None,
        mask: Any = None,
        key_mask: Any = None,
        causal: bool = False,
        return_weights: bool = False,
        cache: KVCache | None = None,
    ) -> Any:
        key = query if key is None else key
        value = key if value is None else value
        q = self.split(self.q_proj(query))
        if cache is not None and cache.fixed and cache.length:
            k, v = cache.read()
        else:
            k = self.split(self.k_proj(key), self.kv_heads)
            v = self.split(self.v_proj(value), self.kv_heads)
            q, k = self.turn(q, k, 0 if cache is None else cache.length)
            if cache is not None:
                k, v = cache.extend(k, v)
        bias = None if self.positions is None or self.turns else self.positions(q.shape[-2], k.shape[-2], q)
        if self.kv_heads < self.heads:
            k, v = (ops.repeat_heads(x, self.heads // self.kv_heads) for x in (k, v))
        if key_mask is not None and cache is not None and cache.window is not None:
            key_mask = key_mask[..., -k.shape[-2] :]  # of the keys that a window has left
        mask = self._masks(mask, key_mask, (*key.shape[:-2], k.shape[-2]))
        dropout_p = self.dropout if self.training else 0.0
        y = ops.scaled_dot_product_attention(q, k, v, mask, causal, dropout_p=dropout_p, bias=bias)
        y = self.out_proj(self.join(y))
        return (y, ops.attention_weights(q, k, mask, causal, bias=bias)) if return_weights else y

    @property
    def turns(self) -> bool:
        """Whether positions turn queries and keys (and do not make a bias)."""
        return isinstance(self.positions, RotaryPositions)

    def turn(self, q: Any, k: Any, past: int = 0) -> tuple[Any, Any]:
        """Let positions turn q (B, H, T, K) and k (B, H, S, K), of which the last stand at one place.

        past: how many keys were there before.
        """
        if self.positions is None or not self.turns:
            return q, k
        return self.positions(q, past + k.shape[-2] - q.shape[-2]), self.positions(k, past)

    @staticmethod
    def _masks(mask: Any, key_mask: Any, keys: tuple[int, ...]) -> Any:
        mask, key_mask = as_array(mask), as_array(key_mask)
        if key_mask is None:
            return mask
        if key_mask.dtype != bool or key_mask.shape != keys:
            came = f"{key_mask.dtype} {key_mask.shape}"
            raise ValueError(
                f"key_mask is boolean and one value for each key; got {came} for keys {keys}; write ids != PAD"
            )
        here = key_mask[..., None, None, :]  # (B, 1, 1, S): the same for all heads and queries
        return here if mask is None else mask & here
