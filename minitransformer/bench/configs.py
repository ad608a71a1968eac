"""What is timed: three models, their weights, their batches, and the arithmetic they cannot do without."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from .. import draws, ops
from ..models import GPT2, GPT2Config, Transformer, TransformerConfig

LEARNING_RATE = 1e-3
BATCHES = 8  # different ones, then from the start again


@dataclasses.dataclass(frozen=True)
class BenchConfig:
    """Sizes of a model and its batch. kind: "seq2seq" (encoder-decoder, `layers` on each side) or "gpt"."""

    name: str
    kind: str
    d_model: int
    heads: int
    layers: int
    length: int
    batch: int
    vocab: int

    @property
    def d_ff(self) -> int:
        """The width of the feed-forward layers."""
        return 4 * self.d_model

    @property
    def tokens(self) -> int:
        """Target tokens in a batch."""
        return self.batch * self.length


CONFIGS = {
    c.name: c
    for c in (
        BenchConfig("reversal", "seq2seq", 64, 4, 2, 16, 64, 16),
        BenchConfig("gpt-small", "gpt", 128, 4, 4, 64, 12, 65),
        BenchConfig("gpt-large", "gpt", 384, 6, 6, 256, 8, 65),
    )
}


def model(c: BenchConfig, seed: int = 0) -> Any:
    """Build our model: pre-norm, no dropout; ReLU and sinusoids, or GELU (tanh) and learned positions."""
    draws.manual_seed(seed)
    if c.kind == "gpt":
        return GPT2(GPT2Config(c.vocab, c.length, c.d_model, c.heads, c.layers, c.d_ff, dropout=0.0))
    sizes = (c.vocab, c.vocab, c.d_model, c.heads, c.layers, c.d_ff)
    return Transformer(TransformerConfig(*sizes, dropout=0.0, max_length=c.length, norm="pre", tie_embeddings="none"))


def weights(c: BenchConfig) -> dict[str, np.ndarray]:
    """Return the initial weights that every peer starts from, by our names."""
    return model(c).state_dict()


def batches(c: BenchConfig) -> list[tuple[np.ndarray, ...]]:
    """Return the batches: (source, target in, target out) or (ids, next ids), each (B, T); no id is 0, the padding."""
    rng = np.random.default_rng(1)
    if c.kind == "gpt":
        windows = [rng.integers(1, c.vocab, (c.batch, c.length + 1)) for _ in range(BATCHES)]
        return [(w[:, :-1].copy(), w[:, 1:].copy()) for w in windows]
    return [tuple(rng.integers(1, c.vocab, (c.batch, c.length)) for _ in range(3)) for _ in range(BATCHES)]


def loss(net: Any) -> Any:
    """Return the loss of a batch as `Workers` asks for it: arrays → (mean loss, tokens)."""
    return lambda *arrays: (ops.cross_entropy(net(*arrays[:-1]), arrays[-1]), arrays[-1].size)


def product_flops(c: BenchConfig) -> int:
    """Count the floating-point operations of the matrix products in one training step.

    A product (N, M)·(M, P) takes 2·N·M·P forwards and twice that backwards. With D width, F feed-forward, V vocabulary
    and n = B·T rows: a self-attention layer has 4·n·D² in its projections and 2·n·T·D in scores and mix; of
    the causal scores, half. Looking a row up is not counted.
    """
    n, d, f, t = c.tokens, c.d_model, c.d_ff, c.length
    projections, feed, scores = 4 * n * d * d, 2 * n * d * f, 2 * n * t * d
    if c.kind == "gpt":
        layers = c.layers * (projections + feed + scores // 2)
    else:
        encoder, decoder = projections + feed + scores, 2 * projections + feed + scores + scores // 2
        layers = c.layers * (encoder + decoder)
    return 3 * 2 * (layers + n * d * c.vocab)
