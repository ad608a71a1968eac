"""Many attentions side by side, each in a subspace of its own."""

from __future__ import annotations

from typing import Any

from .. import ops
from ..tensor import as_array
from . import init
from .cache import KVCache
from .linear import Linear, Transposed
from .module import Module
from .norm import RMSNorm
from .position import RotaryPositions

SHARES = ("none", "qk", "heads")
KINDS = ("auto", "dense", "blockwise", "linear")


def check_options(
    heads: int, kv_heads: int, share: str, tie_output: bool, window: int, kind: str, biased: bool, dropout: float
) -> None:
    """Raise ValueError for options of attention that exclude one another."""
    if kv_heads < 1 or heads % kv_heads:
        raise ValueError(f"kv_heads must divide heads; got heads={heads}, kv_heads={kv_heads}; write kv_heads=1")
    for name, came, allowed in (("share", share, SHARES), ("attention", kind, KINDS)):
        if came not in allowed:
            raise ValueError(f"{name} is one of {', '.join(allowed)}; got {came!r}; write {name}={allowed[0]}")
    if kv_heads != heads and (share == "qk" or tie_output):
        raise ValueError(
            "share=qk and tie_output need as many heads of keys as of queries; "
            f"got heads={heads}, kv_heads={kv_heads}; leave kv_heads out"
        )
    if isinstance(window, bool) or not isinstance(window, int) or window < 0:
        raise ValueError(f"window is a number of keys, 0 for all; got {window!r}; write window=128")
    if kind == "linear" and (window or dropout or biased):
        raise ValueError(
            "linear attention has no weights to cut off, drop or bias; "
            f"got window={window}, dropout={dropout}, {'a' if biased else 'no'} bias of positions; "
            "write window=0, dropout=0, positions=rotary"
        )


class MultiHeadAttention(Module):
    """Project to H heads, attend in each, join the heads, project back.

        headₕ = softmax(qₕ·kₕᵀ/√K)·vₕ,   K = D/H            y = [head₁; ...; head_H]·W_outᵀ + b

    query: (B, T, D), key and value: (B, S, D) → y: (B, T, D), and with return_weights the weights (B, H, T, S).

    Called with one sequence it is self-attention, with another as key (and value) cross-attention.
    mask: boolean, broadcastable to (B, H, T, S); key_mask: (B, S), True = a real token, with a cache for all that was
    ever read; causal: no look ahead. Dropout acts on the weights, in training. cache: what was read before, to which
    the new keys are added; the queries are then the last ones (see nn.KVCache). Vaswani et al. 2017, arXiv:1706.03762,
    section 3.2.2.

    kv_heads: heads of keys and values, each serving H/kv_heads heads of queries: 1 is multi-query attention (Shazeer
    2019, arXiv:1911.02150), between 1 and H grouped-query (Ainslie et al. 2023, arXiv:2305.13245).
    positions: a module that turns queries and keys (RotaryPositions) or makes a bias (AlibiBias, RelativeBias).
    share: "qk" makes queries and keys by one projection (Kitaev, Kaiser & Levskaya 2020, arXiv:2001.04451); "heads"
    gives all heads one projection to K numbers for queries and one for keys, of which each head weights the numbers
    in its own way, qₕ = mixingₕ ∘ q (Cordonnier, Loukas & Jaggi 2020, arXiv:2006.16362).
    tie_output: project back with the transpose of what projected to the values, W_out = W_vᵀ.
    qk_norm: give each head's queries and keys a root mean square of 1, times a learned weight, so that no score can
    run away (after Henry et al. 2020, arXiv:2010.04245, who divide by the length and learn one number).
    window: only the W nearest keys, one's own among them; 0 for all.
    kind: "dense" holds all scores, "blockwise" a block at a time, "auto" chooses; "linear" is another function, see
    `ops.linear_attention`.
    Raises ValueError when H does not divide D, or kv_heads H, for positions that are none or for other heads, for
    options that exclude one another, or wrong shapes.
    """

    def __init__(
        self, d_model: int, heads: int, dropout: float = 0.0, bias: bool = True, kv_heads: int | None = None,
        positions: Module | None = None, share: str = "none", tie_output: bool = False, qk_norm: bool = False,
        window: int = 0, kind: str = "auto",
    ):  # fmt: skip
        if heads < 1 or d_model % heads:
            raise ValueError(
                f"heads must divide d_model; got d_model={d_model}, heads={heads}; write heads=4 for d_model=64"
            )
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout drops a share 0 <= p < 1; got {dropout}; write dropout=0.1")
        kv_heads = heads if kv_heads is None else kv_heads
        self._check_positions(positions, heads, d_model // heads)
        biased = positions is not None and not isinstance(positions, RotaryPositions)
        check_options(heads, kv_heads, share, tie_output, window, kind, biased, dropout)
        self.heads, self.kv_heads, self.dropout, self.positions = heads, kv_heads, dropout, positions
        self.share, self.window, self.kind = share, window, kind
        width = d_model // heads
        self.q_proj = Linear(d_model, width if share == "heads" else d_model, bias)
        narrow = width if share == "heads" else width * kv_heads
        self.k_proj = self.q_proj if share == "qk" else Linear(d_model, narrow, bias)
        self.v_proj = Linear(d_model, width * kv_heads, bias)
        self.out_proj = Transposed(self.v_proj, bias) if tie_output else Linear(d_model, d_model, bias)
        self.mixing = init.normal((heads, width), 1.0) if share == "heads" else None
        self.q_norm = RMSNorm(width) if qk_norm else None
        self.k_norm = RMSNorm(width) if qk_norm else None

    @staticmethod
    def _check_positions(positions: Any, heads: int, width: int) -> None:
        if positions is not None and not isinstance(positions, Module):
            hint = f"write positions=nn.RotaryPositions({width}, max_length)"
            raise ValueError(f"positions takes a module, or None; got {positions!r}; {hint}")
        if (own := getattr(positions, "heads", heads)) != heads:
            came = f"one for {own} in an attention of {heads}"
            raise ValueError(
                f"a bias of positions has as many heads as its attention; got {came}; write {heads} in both"
            )

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
        q = self.queries(query)
        if cache is not None and cache.fixed and cache.length:
            k, v = cache.read()
        else:
            k, v = self.keys(key), self.split(self.v_proj(value), self.kv_heads)
            q, k = self.turn(q, k, 0 if cache is None else cache.length)
            if cache is not None:
                k, v = cache.extend(k, v)
        along = None if self.positions is None or self.turns else self.positions(q.shape[-2], k.shape[-2], q)
        k, v = (x if x.shape[1] == self.heads else ops.repeat_heads(x, self.heads // x.shape[1]) for x in (k, v))
        if key_mask is not None and cache is not None and cache.window:
            key_mask = key_mask[..., -k.shape[-2] :]  # of those that the cache still has
        if self.kind == "linear":
            y, weights = self._linearly(q, k, v, mask, key_mask, causal, return_weights)
        else:
            mask = self._masks(mask, key_mask, (*key.shape[:-2], k.shape[-2]))
            dropout_p = self.dropout if self.training else 0.0
            blockwise = {"dense": False, "blockwise": True}.get(self.kind)
            options: dict[str, Any] = {"causal": causal, "distance_bias": along, "window": self.window}
            y = ops.scaled_dot_product_attention(q, k, v, mask, dropout_p=dropout_p, blockwise=blockwise, **options)
            weights = ops.attention_weights(q, k, mask, **options) if return_weights else None
        y = self.out_proj(self.join(y))
        return (y, weights) if return_weights else y

    def queries(self, x: Any) -> Any:
        """Project to the queries of all heads.    (B, T, D) → (B, H, T, K)"""
        q = self.split(self.q_proj(x), 1 if self.share == "heads" else self.heads)
        if self.mixing is not None:
            q = q * self.mixing.reshape(self.heads, 1, -1)
        return q if self.q_norm is None else self.q_norm(q)

    def keys(self, x: Any) -> Any:
        """Project to the keys of as many heads as have their own.    (B, S, D) → (B, kv_heads, S, K)"""
        k = self.split(self.k_proj(x), 1 if self.share == "heads" else self.kv_heads)
        return k if self.k_norm is None else self.k_norm(k)

    @staticmethod
    def _linearly(
        q: Any, k: Any, v: Any, mask: Any, key_mask: Any, causal: bool, return_weights: bool
    ) -> tuple[Any, Any]:
        """Attend linearly, and make the weights that it never makes, where somebody wants to look at them."""
        if mask is not None:
            raise ValueError("linear attention has no scores to mask; got a mask; give a key_mask, or causal=True")
        here = None if key_mask is None else as_array(key_mask)[:, None]  # (B, 1, S): the same for all heads
        weights = ops.linear_attention_weights(q, k, here, causal) if return_weights else None
        return ops.linear_attention(q, k, v, here, causal), weights

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
