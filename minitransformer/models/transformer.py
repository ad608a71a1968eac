"""The Transformer of Vaswani et al. 2017 (arXiv:1706.03762): an encoder that reads, a decoder that writes."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from .. import nn
from ..tensor import as_array
from .config import LayersConfig

TIES = ("none", "target", "all")
POSITIONS = ("sinusoidal", "learned", "rotary", "alibi", "relative", "none")


@dataclasses.dataclass
class TransformerConfig(LayersConfig):
    """Sizes of an encoder-decoder; the defaults are the paper's base model (65 million parameters at V = 37,000).

    tie_embeddings: "none", "target" (the output projection is the target embedding) or "all" (the source's too, as in
    the paper; one vocabulary; Press & Wolf 2016, arXiv:1608.05859). positions: sinusoidal or learned are added to the
    embeddings; rotary, alibi and relative act in every self-attention. norm: "post" as in the paper, or "pre".
    activation: relu, gelu, gelu_tanh, silu, swiglu, geglu. The other fields are those of LayersConfig.
    """

    source_vocab: int = 37_000
    target_vocab: int = 37_000
    d_model: int = 512
    heads: int = 8
    layers: int = 6  # in the encoder, and as many in the decoder
    d_ff: int = 2048
    dropout: float = 0.1
    max_length: int = 1024
    norm: str = "post"
    activation: str = "relu"
    positions: str = "sinusoidal"
    tie_embeddings: str = "all"
    pad_id: int = 0

    def __post_init__(self) -> None:
        self.require(source_vocab=1, target_vocab=1, d_model=1, heads=1, layers=0, d_ff=1, max_length=1, pad_id=0)
        for name, allowed in (("tie_embeddings", TIES), ("positions", POSITIONS), ("norm", ("post", "pre"))):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} is one of {', '.join(allowed)}; got {getattr(self, name)!r}; write {name}={allowed[0]}"
                )
        if self.pad_id >= self.source_vocab:
            tokens = f"the source's {self.source_vocab} tokens, counted from 0"
            raise ValueError(f"pad_id is one of {tokens}; got {self.pad_id}; write pad_id=0")
        self.check_layers()
        if self.tie_embeddings == "all" and self.source_vocab != self.target_vocab:
            raise ValueError(
                f"tie_embeddings=all needs one vocabulary; got {self.source_vocab} and {self.target_vocab}; "
                "write tie_embeddings=target"
            )


def positions(kind: str, max_length: int, d_model: int) -> nn.Module:
    """Make the module that marks positions on the way in: sinusoidal, learned, or none where attention knows them."""
    if kind == "sinusoidal":
        return nn.SinusoidalPositions(max_length, d_model)
    return nn.LearnedPositions(max_length, d_model) if kind == "learned" else nn.NoPositions()


def attention_positions(kind: str, c: Any, causal: bool) -> nn.Module | None:
    """Make what self-attention knows positions by, one for all layers of a stack; None for the other kinds."""
    if kind == "rotary":
        pairing, scaling = c.rotary_pairing, c.rotary_scaling
        return nn.RotaryPositions(c.d_model // c.heads, c.max_length, pairing=pairing, scaling=scaling)
    if kind == "alibi":
        return nn.AlibiBias(c.heads)
    return nn.RelativeBias(c.heads, bidirectional=not causal) if kind == "relative" else None


class Transformer(nn.Module):
    """Read a source sequence, write a target sequence one token at a time.

    source: integers (B, S), target: integers (B, T) that start with BOS → logits (B, T, V) for the token that
    follows each. Positions equal to pad_id in the source are not looked at.

    Embeddings are drawn with spread 1/√D and multiplied by √D on the way in (section 3.4), so that a tied output
    projection starts at the right size. Raises ValueError for sequences that are too long, IndexError for ids out
    of range, TypeError for ids that are not integers.
    """

    def __init__(self, config: TransformerConfig):
        c = self.config = config
        std = 1 / math.sqrt(c.d_model)
        self.source_embedding = nn.Embedding(c.source_vocab, c.d_model, std)
        self.target_embedding = self.source_embedding
        if c.tie_embeddings != "all":
            self.target_embedding = nn.Embedding(c.target_vocab, c.d_model, std)
        self.positions = positions(c.positions, c.max_length, c.d_model)
        self.drop = nn.Dropout(c.dropout)
        sizes, options = (c.d_model, c.heads, c.d_ff, c.dropout, c.norm, c.activation), c.attention_options()
        reads, writes = (attention_positions(c.positions, c, causal) for causal in (False, True))
        self.encoder = nn.Encoder(c.stack(lambda: nn.EncoderLayer(*sizes, positions=reads, **options)), c.d_model)
        self.decoder = nn.Decoder(c.stack(lambda: nn.DecoderLayer(*sizes, positions=writes, **options)), c.d_model)
        self.output = nn.Linear(c.d_model, c.target_vocab, bias=False)
        if c.tie_embeddings != "none":
            self.output.weight = self.target_embedding.weight

    def embed(self, ids: Any, embedding: nn.Embedding, start: int = 0) -> Any:
        """Turn ids into vectors that know their positions, from `start` on.    (B, T) → (B, T, D)"""
        if ids.ndim != 2:
            raise ValueError(f"token ids come as (batch, length); got {ids.shape}; write ids[None] for one sequence")
        return self.drop(self.positions(embedding(ids) * math.sqrt(self.config.d_model), start))

    def encode(self, source: Any, seen: list | None = None) -> tuple[Any, Any]:
        """Read the source.    (B, S) → memory (B, S, D), and which of it is real (B, S)"""
        mask = as_array(source) != self.config.pad_id
        return self.encoder(self.embed(source, self.source_embedding), key_mask=mask, seen=seen), mask

    def decode(self, *args: Any, **kwargs: Any) -> Any:
        """Score the token after each of the target's; the arguments are those of `features`.    → logits (B, T, V)"""
        return self.output(self.features(*args, **kwargs))

    @property
    def output_weight(self) -> Any:
        """What turns features into logits, (V, D)."""
        return self.output.weight

    def features(
        self, target: Any, memory: Any, memory_mask: Any, seen: list | None = None, seen_cross: list | None = None,
        caches: list[nn.LayerCache] | None = None,
    ) -> Any:  # fmt: skip
        """Return what the logits are made from.    target (B, T), memory (B, S, D), memory_mask (B, S) → (B, T, D)

        With caches (`decoder.new_caches()`) the target is what comes after all that was decoded with them before.
        Causality already hides the padding at the end of a target from all real positions.
        """
        x = self.embed(target, self.target_embedding, caches[0].past.length if caches else 0)
        return self.decoder(x, memory, memory_mask=memory_mask, seen=seen, seen_cross=seen_cross, caches=caches)

    def forward(self, source: Any, target: Any) -> Any:
        memory, mask = self.encode(source)
        return self.decode(target, memory, mask)

    def attention(self, source: Any, target: Any) -> dict[str, list[Any]]:
        """Return every attention weight, by layer: encoder (B, H, S, S), decoder (B, H, T, T), cross (B, H, T, S)."""
        seen: dict[str, list[Any]] = {"encoder": [], "decoder": [], "cross": []}
        memory, mask = self.encode(source, seen["encoder"])
        self.decode(target, memory, mask, seen["decoder"], seen["cross"])
        return {name: [as_array(w) for w in weights] for name, weights in seen.items()}
