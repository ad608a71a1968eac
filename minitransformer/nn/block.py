"""The layers of a Transformer: attention and feed-forward, each around a residual.

pre-norm:   x + f(norm(x))          the sum stays untouched from end to end: trains easily
post-norm:  norm(x + f(x))          as in the paper of 2017: needs a warm-up

The residual x + f(x) is that of He et al. 2015, arXiv:1512.03385. Post-norm: Vaswani et al. 2017, arXiv:1706.03762,
section 3.1. Pre-norm, and why it can do without a warm-up: Xiong et al. 2020, arXiv:2002.04745.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from .. import ops
from .activation import ACTIVATIONS, GATED, Dropout, activation, is_known
from .attention import MultiHeadAttention
from .cache import LayerCache
from .linear import Linear
from .module import Module, ModuleList
from .norm import LayerNorm

NORMS = ("pre", "post")


def _check_norm(norm: str) -> None:
    if norm not in NORMS:
        raise ValueError(f"norm is pre or post; got {norm!r}; write norm=pre")


class FeedForward(Module):
    """Widen, bend, narrow, for each position alone.

        y = W₂·act(W₁·x + b₁) + b₂                          act: relu, gelu, gelu_tanh, silu
        y = W₂·(act(W_gate·x + b_gate) ∘ (W₁·x + b₁)) + b₂    act: swiglu (silu as a gate), geglu (gelu)

    x: (B, T, D) → (B, T, D), with F hidden units. Vaswani et al. 2017, arXiv:1706.03762, section 3.3; the gated forms
    are those of Shazeer 2020, arXiv:2002.05202. A gate makes three matrices out of two: for the same count of
    parameters take ⅔ of F.
    """

    def __init__(self, d_model: int, d_ff: int, act: str = "relu", dropout: float = 0.0):
        if not is_known(act, ACTIVATIONS, GATED):
            known = ", ".join([*ACTIVATIONS, *GATED])
            raise ValueError(f"a feed-forward bends by {known}; got {act!r}; write act='gelu'")
        self.gate = Linear(d_model, d_ff) if act in GATED else None
        self.up = Linear(d_model, d_ff)
        self.act = GATED[act]() if act in GATED else activation(act)
        self.drop = Dropout(dropout)
        self.down = Linear(d_ff, d_model)

    def forward(self, x: Any) -> Any:
        hidden = self.act(self.up(x)) if self.gate is None else self.act(self.gate(x)) * self.up(x)
        return self.down(self.drop(hidden))


def _dropout_of_weights(dropout: float, attention: dict[str, Any]) -> float:
    """Return a layer's dropout as its attention takes it: linear attention makes no weights that could be dropped."""
    return 0.0 if attention.get("kind") == "linear" else dropout


class _Layer(Module):
    """What both kinds of layer share: how a sublayer is wrapped into norm, dropout and residual."""

    norm: str

    def residual(self, x: Any, norm: Module, sublayer: Callable) -> Any:
        """Return x + sublayer(norm(x)), or norm(x + sublayer(x)); dropout acts on the sublayer's output."""
        if self.norm == "pre":
            return self.add(x, sublayer(norm(x)))
        return norm(self.add(x, sublayer(x)))

    def add(self, x: Any, branch: Any) -> Any:
        """Return x + dropout(branch).    (B, T, D), (B, T, D) → (B, T, D)"""
        return ops.dropout_add(x, branch, self.drop.p, self.training)

    drop: Dropout


def _keep(seen: list | None, attention: MultiHeadAttention, *args: Any, **kwargs: Any) -> Any:
    """Attend; where someone looks on (seen is a list), append the weights to it."""
    if seen is None:
        return attention(*args, **kwargs)
    y, weights = attention(*args, **kwargs, return_weights=True)
    seen.append(weights)
    return y


class EncoderLayer(_Layer):
    """Self-attention, then feed-forward; causal=True makes it the layer of a decoder-only language model.

    x: (B, T, D), key_mask: (B, T) boolean → (B, T, D).    seen: a list that receives the weights (B, H, T, T).

    dropout: of attention's weights (with kind="linear" there are none), of hidden units, of what each sublayer adds.
    attention: what MultiHeadAttention takes beside: kv_heads, positions, share, qk_norm, window, ...
    """

    def __init__(
        self, d_model: int, heads: int, d_ff: int, dropout: float = 0.0, norm: str = "pre", act: str = "relu",
        **attention: Any,
    ):  # fmt: skip
        _check_norm(norm)
        self.norm = norm
        self.self_attention = MultiHeadAttention(d_model, heads, _dropout_of_weights(dropout, attention), **attention)
        self.feed_forward = FeedForward(d_model, d_ff, act, dropout)
        self.norm1 = LayerNorm(d_model)
        self.norm2 = LayerNorm(d_model)
        self.drop = Dropout(dropout)

    def forward(
        self, x: Any, key_mask: Any = None, causal: bool = False, seen: list | None = None,
        cache: LayerCache | None = None,
    ) -> Any:  # fmt: skip
        past = None if cache is None else cache.past
        x = self.residual(
            x, self.norm1, lambda h: _keep(seen, self.self_attention, h, key_mask=key_mask, causal=causal, cache=past)
        )
        return self.residual(x, self.norm2, self.feed_forward)


class DecoderLayer(_Layer):
    """Causal self-attention, cross-attention to the encoder's output, feed-forward.

    x: (B, T, D), memory: (B, S, D), masks: (B, T) and (B, S) boolean → (B, T, D).
    seen, seen_cross: lists that receive the weights (B, H, T, T) and (B, H, T, S).

    dropout: as in EncoderLayer. attention: what both MultiHeadAttentions take beside; positions and window are for the
    self-attention alone.
    """

    def __init__(
        self, d_model: int, heads: int, d_ff: int, dropout: float = 0.0, norm: str = "pre", act: str = "relu",
        **attention: Any,
    ):  # fmt: skip
        _check_norm(norm)
        self.norm = norm
        dropped = _dropout_of_weights(dropout, attention)
        self.self_attention = MultiHeadAttention(d_model, heads, dropped, **attention)
        across = {name: value for name, value in attention.items() if name not in ("positions", "window")}
        self.cross_attention = MultiHeadAttention(d_model, heads, dropped, **across)  # two texts: no distances
        self.feed_forward = FeedForward(d_model, d_ff, act, dropout)
        self.norm1 = LayerNorm(d_model)
        self.norm2 = LayerNorm(d_model)
        self.norm3 = LayerNorm(d_model)
        self.drop = Dropout(dropout)

    def forward(
        self,
        x: Any,
        memory: Any,
        key_mask: Any = None,
        memory_mask: Any = None,
        seen: list | None = None,
        seen_cross: list | None = None,
        cache: LayerCache | None = None,
    ) -> Any:
        past, read = (None, None) if cache is None else (cache.past, cache.memory)
        x = self.residual(
            x, self.norm1, lambda h: _keep(seen, self.self_attention, h, key_mask=key_mask, causal=True, cache=past)
        )
        x = self.residual(
            x, self.norm2,
            lambda h: _keep(seen_cross, self.cross_attention, h, memory, key_mask=memory_mask, cache=read),
        )  # fmt: skip
        return self.residual(x, self.norm3, self.feed_forward)


class _Stack(Module):
    def __init__(self, layers: list[Any], d_model: int):
        self.layers = ModuleList(layers)
        # In pre-norm nothing has normalised the sum that leaves the last layer.
        self.norm = LayerNorm(d_model) if layers and layers[0].norm == "pre" else None

    def with_caches(self, caches: list[LayerCache] | None) -> Iterator[tuple[Any, LayerCache | None]]:
        """Yield each layer with its cache, or with None."""
        for i, layer in enumerate(self.layers):
            yield layer, None if caches is None else caches[i]

    def new_caches(self) -> list[LayerCache]:
        """Return empty caches, one for each layer, to write with token by token."""
        windows = [getattr(layer.self_attention, "window", 0) for layer in self.layers]  # attention may be a user's own
        return [LayerCache(window or None) for window in windows]

    def finish(self, x: Any) -> Any:
        """Normalise the sum where the layers have not.    (B, T, D) → (B, T, D)"""
        return x if self.norm is None else self.norm(x)


class Encoder(_Stack):
    """EncoderLayers one on another, and in pre-norm a last LayerNorm.    x: (B, T, D) → (B, T, D)"""

    def forward(
        self, x: Any, key_mask: Any = None, causal: bool = False, seen: list | None = None,
        caches: list[LayerCache] | None = None,
    ) -> Any:  # fmt: skip
        for layer, cache in self.with_caches(caches):
            x = layer(x, key_mask, causal, seen, cache)
        return self.finish(x)


class Decoder(_Stack):
    """DecoderLayers one on another, and in pre-norm a last LayerNorm.    x: (B, T, D), memory: (B, S, D) → (B, T, D)"""

    def forward(
        self,
        x: Any,
        memory: Any,
        key_mask: Any = None,
        memory_mask: Any = None,
        seen: list | None = None,
        seen_cross: list | None = None,
        caches: list[LayerCache] | None = None,
    ) -> Any:
        for layer, cache in self.with_caches(caches):
            x = layer(x, memory, key_mask, memory_mask, seen, seen_cross, cache)
        return self.finish(x)
