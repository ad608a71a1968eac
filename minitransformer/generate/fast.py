"""The fast way to score one more token, for models that consist of nothing but what `kernels/decoding.py` computes.

Which those are is found out here, by the exact types of the modules: a layer of your own, a module that is trained
just now, another dtype or a GPU are read by the book. Weights are looked up, and q, k and v joined, each time a text is
begun, since a step of training may have changed them in between.

The beginning of a single text, if it is short, is read in the same way: there, too, calls cost more than arithmetic.
"""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from typing import Any

import numpy as np

from .. import nn
from ..kernels import decoding
from ..kernels.blas import blas_threads, limit_blas_threads, reading
from ..kernels.memory import keep_freed_memory
from ..kernels.one_row import Embedded, OneRow
from ..kernels.two_cores import LATER, TwoCores, taken_over
from ..models import GPT2, Transformer
from ..ops.precision import lowered
from ..tensor import as_array, is_grad_enabled, kernels_enabled

FEW, VERY_FEW = 64, 8  # tokens: of a small model, of one whose products wait for memory up to there

# The modules that are known, and of each the attributes: one that has more, and set, does more than is known here.
ATTRIBUTES = {
    GPT2: "config embedding positions drop decoder output",
    Transformer: "config source_embedding target_embedding positions drop encoder decoder output",
    nn.Encoder: "layers norm",
    nn.Decoder: "layers norm",
    nn.EncoderLayer: "norm self_attention feed_forward norm1 norm2 drop",
    nn.DecoderLayer: "norm self_attention cross_attention feed_forward norm1 norm2 norm3 drop",
    nn.MultiHeadAttention: "heads kv_heads dropout positions share window kind q_proj k_proj v_proj out_proj",
    nn.FeedForward: "up act drop down",
    nn.Linear: "weight bias",
    nn.LayerNorm: "eps weight bias",
    nn.GELU: "approximate",
    nn.ReLU: "",
    nn.SiLU: "",
    nn.Dropout: "p",
    nn.Embedding: "weight",
    nn.SinusoidalPositions: "table _tables",
    nn.LearnedPositions: "weight",
    nn.NoPositions: "",
    nn.RotaryPositions: "pairing cos sin _tables",
    nn.AlibiBias: "slopes _tables",
    nn.RelativeBias: "buckets max_distance bidirectional weight _tables",
}
STACKS = {GPT2: nn.Encoder, Transformer: nn.Decoder}


def _known(module: nn.Module) -> bool:
    if type(module) not in ATTRIBUTES:
        return False
    known = {*ATTRIBUTES[type(module)].split(), "training"}
    return not any(value is not None and value is not False for n, value in vars(module).items() if n not in known)


def _modules(model: Any) -> list[nn.Module]:
    """Return all modules that take part in scoring one more token."""
    parts = [model.target_embedding if type(model) is Transformer else model.embedding, model.output]
    parts = [part for part in parts if part is not None]
    layers = [module for layer in model.decoder.layers for module in layer.modules()]
    norm = [] if model.decoder.norm is None else [model.decoder.norm]
    return [model, *parts, model.positions, model.decoder, *layers, *norm]


def fits(model: Any) -> bool:
    """Tell whether a model, as it is now, consists of known modules alone, in eval mode, in float32 and on NumPy."""
    if not kernels_enabled() or is_grad_enabled() or type(model) not in STACKS:
        return False
    if type(model.decoder) is not STACKS[type(model)] or not len(model.decoder.layers):
        return False
    if lowered(np.ones(1, "float32"))[0].dtype.char != "f":  # inside autocast
        return False
    modules = _modules(model)
    single = all(type(p.data) is np.ndarray and p.data.dtype.char == "f" for p in model.parameters())
    alike = len({layer.norm for layer in model.decoder.layers}) == 1
    plain = all(_plain(m) for m in modules if isinstance(m, nn.MultiHeadAttention))
    return single and alike and plain and all(_known(m) and not m.training for m in modules)


def _plain(a: nn.MultiHeadAttention) -> bool:
    """Tell whether an attention is a softmax of four projections, of the sizes that its heads ask for."""
    if a.share != "none" or a.kind == "linear":
        return False
    parts = [getattr(a, name, None) for name in ("q_proj", "k_proj", "v_proj", "out_proj")]
    if any(type(part) is not nn.Linear for part in parts):
        return False
    q, k, v = (part.weight.shape[0] for part in parts[:3])  # type: ignore[union-attr]
    return q * a.kv_heads == k * a.heads == v * a.heads


def _in_cache(model: Any) -> bool:
    return sum(p.data.nbytes for p in model.parameters()) <= decoding.IN_CACHE


def calm(model: Any, tokens: int) -> contextlib.AbstractContextManager[None]:
    """Let products use as many threads as a few tokens are read with soonest: one, if the weights are in a cache.

    Several gain little there, and would go on spinning for a tenth of a second, in which a small model writes a whole
    text.
    """
    return _calm(tokens, _in_cache(model))


def _calm(tokens: int, in_cache: bool) -> contextlib.AbstractContextManager[None]:
    if tokens > (FEW if in_cache else VERY_FEW):
        return contextlib.nullcontext()
    return limit_blas_threads(1 if in_cache else reading(blas_threads()).threads)


class _Maker:
    """Turns modules into functions of kernels/decoding.py. folds: LayerNorms go into the weights, as is said there."""

    def __init__(self, longest: int, in_one_stream: bool, folds: bool):
        self.longest, self.in_one_stream, self.folds = longest, in_one_stream, folds

    def linear(
        self, *parts: Any, scale: float = 1.0, reads: nn.LayerNorm | None = None, writes: bool = False
    ) -> decoding.Linear:
        """Join linear layers of the same input, the first multiplied by a number.

        reads: the norm in front; writes: whether the result is added to the residual sum.
        """
        weights = [p.weight.data for p in parts]
        biases = [np.zeros(len(p.weight.data), "float32") if p.bias is None else p.bias.data for p in parts]
        if len(parts) == 1 and scale == 1 and not self.folds:
            return decoding.Linear(weights[0], None if parts[0].bias is None else biases[0], self.in_one_stream)
        weight, bias, first = np.concatenate(weights), np.concatenate(biases), len(weights[0])  # copies
        if reads is not None and self.folds:
            bias += weight.dot(reads.bias.data)
            weight *= reads.weight.data
        if writes and self.folds:
            mean_of = decoding.mean_of_width(len(bias))
            weight -= mean_of.dot(weight)
            bias -= mean_of.dot(bias)
        weight[:first] *= np.float32(scale)
        bias[:first] *= np.float32(scale)
        return decoding.Linear(weight, bias, self.in_one_stream)

    def output(self, weight: Any, norm: nn.LayerNorm | None) -> decoding.Linear:
        """Take the last product, without a bias of its own; it reads the last norm."""
        if not self.folds or norm is None:
            return decoding.Linear(weight, None, self.in_one_stream)
        return decoding.Linear(weight * norm.weight.data, weight.dot(norm.bias.data), self.in_one_stream)

    def norm(self, norm: nn.LayerNorm) -> decoding.Norm:
        """Take a norm, or what is left of it."""
        if self.folds:
            return decoding.ToLengthOne(norm.eps)
        return decoding.LayerNorm(norm.weight.data, norm.bias.data, norm.eps)

    def self_attention(self, a: nn.MultiHeadAttention, norm: nn.LayerNorm) -> decoding.SelfAttention:
        """Join the projections, and make a table of what depends on distances alone."""
        taken = self.linear(a.q_proj, a.k_proj, a.v_proj, scale=_scale(a), reads=norm)
        turns = distance = None
        if isinstance(a.positions, nn.RotaryPositions):
            turns = _turns(a.positions)
        elif a.positions is not None:
            distance = as_array(a.positions(1, self.longest, a.q_proj.weight.data))
            distance = distance.reshape(a.kv_heads, a.heads // a.kv_heads, self.longest)
        out = self.linear(a.out_proj, writes=True)
        return decoding.SelfAttention(taken, out, a.heads, a.kv_heads, turns, distance)

    def layer(self, layer: Any) -> list[tuple[decoding.Norm, Any]]:
        """Return the sublayers of a layer with their norms."""
        norms = [layer.norm1, layer.norm2, *([layer.norm3] if isinstance(layer, nn.DecoderLayer) else [])]
        sublayers: list[Any] = [self.self_attention(layer.self_attention, norms[0])]
        if isinstance(layer, nn.DecoderLayer):
            a = layer.cross_attention
            taken, out = self.linear(a.q_proj, scale=_scale(a), reads=norms[1]), self.linear(a.out_proj, writes=True)
            sublayers.append(decoding.CrossAttention(taken, out, a.heads, a.kv_heads))
        feed = layer.feed_forward
        up, down = self.linear(feed.up, reads=norms[-1]), self.linear(feed.down, writes=True)
        sublayers.append(decoding.FeedForward(up, _activation(feed.act), down))
        return [(self.norm(norm), sublayer) for norm, sublayer in zip(norms, sublayers, strict=True)]


def _scale(a: nn.MultiHeadAttention) -> float:
    return 1 / math.sqrt(a.q_proj.weight.shape[0] // a.heads)


def _activation(act: Any) -> Any:
    if isinstance(act, nn.GELU):
        return decoding.gelu_tanh if act.approximate == "tanh" else decoding.gelu_exact
    return decoding.relu if isinstance(act, nn.ReLU) else decoding.silu


def _turns(positions: nn.RotaryPositions) -> decoding.Turns:
    cos, sin = positions.cos.astype("float32"), positions.sin.astype("float32")
    if positions.pairing == "halves":
        half = cos.shape[1]
        return decoding.Turns(np.concatenate([cos, cos], axis=1), sin, slice(0, half), slice(half, None))
    return decoding.Turns(np.repeat(cos, 2, axis=1), sin, slice(0, None, 2), slice(1, None, 2))


class Fast:
    """One more token for each row of a batch, behind those in the caches, for a model that `fits`.

    padding: how many columns of a row only pad it (B,); memory_mask: which of a source is real (B, S).

    The caches are those of the book, which may read on where this has stopped, and the other way round.
    """

    def __init__(self, model: Any, caches: list[nn.LayerCache], padding: Any = None, memory_mask: Any = None):
        keep_freed_memory()  # for the next text
        self.caches, self.longest = caches, model.config.max_length
        layers, norm = list(model.decoder.layers), model.decoder.norm
        self.in_cache = _in_cache(model)
        read_by_norms_alone = layers[0].norm == "pre" and norm is not None
        in_one_stream = not self.in_cache and reading(blas_threads()).in_one_stream
        make = _Maker(self.longest, in_one_stream, self.in_cache and read_by_norms_alone)
        last = None if norm is None else make.norm(norm)
        self.stack = decoding.Stack([make.layer(layer) for layer in layers], layers[0].norm == "pre", last)
        translates = isinstance(model, Transformer)
        embedding = (model.target_embedding if translates else model.embedding).weight.data
        scale = np.float32(math.sqrt(model.config.d_model)) if translates else None
        self.output = make.output(model.output_weight.data, norm)
        mean_of, table = decoding.mean_of_width(model.config.d_model) if make.folds else None, None
        if not isinstance(model.positions, nn.NoPositions):
            learned = isinstance(model.positions, nn.LearnedPositions)
            table = model.positions.weight.data if learned else model.positions.table.astype("float32")
        self.embedded = Embedded(embedding, scale, table, mean_of)
        self.looks = [(layer.self_attention.positions, layer.self_attention.window) for layer in layers]
        self.mask = memory_mask
        self.padding = padding if padding is not None and padding.any() else None
        self.one: OneRow | TwoCores | None = None
        self.seconds: list[float] = []  # that the first tokens took
        self._hide()

    def _hide(self) -> None:
        """Make what is added to scores, −∞ for keys that only pad.    → (B, 1, 1, max_length), (B, 1, 1, S)"""
        self.hidden = self.hidden_memory = None
        if self.padding is not None:
            self.hidden = _minus_infinity(np.arange(self.longest) < self.padding[:, None])
        if self.mask is not None and not self.mask.all():
            self.hidden_memory = _minus_infinity(~self.mask)

    def select(self, rows: np.ndarray) -> None:
        """Keep these rows, in this order, as the caches do."""
        self.padding = None if self.padding is None else self.padding[rows]
        self.mask = None if self.mask is None else self.mask[rows]
        self.one = None
        self._hide()

    def begins(self, tokens: int) -> bool:
        """Tell whether a text of so many tokens, or its beginning, can be read here: `begin`."""
        plain = all(isinstance(p, nn.RotaryPositions | None) and not window for p, window in self.looks)
        return plain and tokens <= FEW

    def begin(self, ids: np.ndarray) -> np.ndarray:
        """Read the first tokens of a single text all at once and score the one that follows.    (T,) → (1, V)"""
        x = self.embedded(ids, slice(0, len(ids)))
        ahead = np.triu(np.full((len(ids), len(ids)), -np.inf, dtype=np.float32), 1)
        with _calm(len(ids), self.in_cache):
            return self.output(self.stack.step(x, self.caches, decoding.Now(0, ahead=ahead))[-1:])

    def scores(self, ids: np.ndarray) -> np.ndarray:
        """Read a token for each row and score the one that follows.    (B,) → (B, V)"""
        place = self.caches[0].past.length
        with _calm(len(ids), self.in_cache):
            if len(ids) == 1 and self.hidden is None and self.hidden_memory is None:
                return self._alone(ids[0], place)
            x = self.embedded(ids, place if self.padding is None else place - self.padding)
            now = decoding.Now(place, self.hidden, self.hidden_memory)
            return self.output(self.stack.step(x, self.caches, now))

    def _alone(self, token: int, place: int) -> np.ndarray:
        """Take a token of a text that is written alone; a longer one goes on with two cores."""
        if self.one is None:
            self.one, self.seconds = OneRow(self.stack, self.caches, self.output, self.embedded), []
        if len(self.seconds) == LATER:
            return self.one.step(token, place)
        began = time.perf_counter()
        scores = self.one.step(token, place)
        self.seconds.append(time.perf_counter() - began)
        if len(self.seconds) == LATER and self.in_cache and isinstance(self.one, OneRow):
            usual = statistics.median(self.seconds)
            self.one = taken_over(self.one, self.stack, self.output, self.caches, self.longest, usual)
        return scores


def _minus_infinity(hidden: np.ndarray) -> np.ndarray:
    return np.where(hidden, np.float32(-np.inf), np.float32(0))[:, None, None]
