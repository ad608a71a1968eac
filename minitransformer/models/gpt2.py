"""A decoder-only language model in the manner of GPT and GPT-2: read what came, guess what comes."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from .. import nn, ops
from ..backend import namespace
from ..nn.block import NORMS
from ..tensor import as_array
from .config import LayersConfig
from .transformer import POSITIONS, attention_positions, positions


@dataclasses.dataclass
class GPT2Config(LayersConfig):
    """Sizes of a causal language model; the defaults are those of the smallest GPT-2.

    tie_embeddings: whether the output projection is the embedding (Press & Wolf 2016, arXiv:1608.05859). positions: as
    in TransformerConfig. norm: "pre" as in GPT-2, or "post" as in the first GPT. The other fields are those of
    LayersConfig.
    """

    vocab_size: int = 50_257
    max_length: int = 1024
    d_model: int = 768
    heads: int = 12
    layers: int = 12
    d_ff: int = 3072
    dropout: float = 0.1
    activation: str = "gelu_tanh"
    tie_embeddings: bool = True
    positions: str = "learned"  # or sinusoidal, rotary, alibi, relative, none
    norm: str = "pre"  # or post

    def __post_init__(self) -> None:
        if self.positions not in POSITIONS:
            raise ValueError(
                f"positions is one of {', '.join(POSITIONS)}; got {self.positions!r}; write positions=learned"
            )
        if self.norm not in NORMS:
            raise ValueError(f"norm is one of {', '.join(NORMS)}; got {self.norm!r}; write norm=pre")
        if not isinstance(self.tie_embeddings, bool):
            raise ValueError(f"tie_embeddings is true or false; got {self.tie_embeddings!r}; write tie_embeddings=true")
        self.require(vocab_size=1, max_length=1, d_model=1, heads=1, layers=0, d_ff=1)
        self.check_layers()


class GPT2(nn.Module):
    """Score the token that follows each token; position t sees 0 … t and nothing later.

    ids: integers (B, T) → logits (B, T, V).    With caches (`decoder.new_caches()`), ids come after those read before.
    padding: integers (B,), how many of a row's first ids, caches included, only pad it: nobody looks at them, and
    positions are counted from what follows.

    With norm="pre", GPT-2 (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners"): a last
    LayerNorm after the layers, weights drawn with spread 0.02, those that write into the residual sum with
    0.02/√(2·layers). With norm="post", the first GPT (Radford et al. 2018, "Improving Language Understanding by
    Generative Pre-Training"): each layer ends in a LayerNorm, so that none follows the last, and since no sum grows
    from layer to layer, all weights are drawn with spread 0.02. Learned positions, GELU in its tanh form and the output
    projection tied to the embedding are those of both.
    Raises ValueError for a sequence that is too long, IndexError for ids out of range.
    """

    def __init__(self, config: GPT2Config):
        c = self.config = config
        self.embedding = nn.Embedding(c.vocab_size, c.d_model, 0.02)
        self.positions = positions(c.positions, c.max_length, c.d_model)
        self.drop = nn.Dropout(c.dropout)
        sizes = (c.d_model, c.heads, c.d_ff, c.dropout, c.norm, c.activation)
        places = attention_positions(c.positions, c, causal=True)
        layers = c.stack(lambda: nn.EncoderLayer(*sizes, positions=places, **c.attention_options()))
        self.decoder = nn.Encoder(layers, c.d_model)
        self.output = None if c.tie_embeddings else nn.Linear(c.d_model, c.vocab_size, bias=False)
        if not layers and c.norm == "pre":
            self.decoder.norm = nn.LayerNorm(c.d_model)
        self._initialise()

    def _initialise(self) -> None:
        into_residual = 0.02 / math.sqrt(2 * max(self.config.layers, 1)) if self.config.norm == "pre" else 0.02
        for layer in self.decoder.layers:
            attention, feed = layer.self_attention, layer.feed_forward
            for linear in (attention.q_proj, attention.k_proj, attention.v_proj, feed.gate, feed.up):
                if linear is not None:
                    linear.weight = nn.init.normal(linear.weight.shape, 0.02)
            for linear in (attention.out_proj, feed.down):
                linear.weight = nn.init.normal(linear.weight.shape, into_residual)
            if self.config.tie_output:
                attention.out_proj.weight = attention.v_proj.weight

    def features(
        self, ids: Any, seen: list | None = None, caches: list[nn.LayerCache] | None = None, padding: Any = None
    ) -> Any:
        """Return what the logits are made from: the last layer's output.    (B, T) → (B, T, D)"""
        if ids.ndim != 2:
            raise ValueError(f"token ids come as (batch, length); got {ids.shape}; write ids[None] for one sequence")
        start, key_mask = caches[0].past.length if caches else 0, None
        if padding is not None:
            key_mask = namespace((padding,)).arange(start + ids.shape[1]) >= padding[:, None]
            start = start - padding
        x = self.drop(self.positions(self.embedding(ids), start))
        return self.decoder(x, key_mask, causal=True, seen=seen, caches=caches)

    def forward(
        self, ids: Any, seen: list | None = None, caches: list[nn.LayerCache] | None = None, padding: Any = None
    ) -> Any:
        return ops.linear(self.features(ids, seen, caches, padding), self.output_weight)

    @property
    def output_weight(self) -> Any:
        """What turns features into logits, (V, D): the embedding once more, unless it is not tied."""
        return self.embedding.weight if self.output is None else self.output.weight

    def attention(self, ids: Any) -> dict[str, list[Any]]:
        """Return every attention weight, by layer: decoder (B, H, T, T)."""
        seen: list[Any] = []
        self(ids, seen)
        return {"decoder": [as_array(w) for w in seen]}
