"""One gradient check for each op, each module and each kind of model: for tests, and for `minitransformer gradcheck`.

A case is a function of a generator that returns the function under check, the point, and options of `gradcheck`.
Sizes are different primes, so that no transpose goes unnoticed; points keep away from kinks and ties.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from . import nn, ops
from .backend import get_backend, to_backend
from .draws import manual_seed, next_draw
from .gradcheck import GradcheckError, gradcheck
from .models import GPT2, GPT2Config, Transformer, TransformerConfig
from .ops.blockwise import _blockwise_attention
from .recompute import recompute
from .tensor import Tensor
from .tensor import _identity as identity

Case = Callable[[np.random.Generator], tuple[Callable, list[np.ndarray], dict[str, Any]]]
OPS: dict[str, Case] = {}
MODULES: dict[str, Case] = {}
MODELS: dict[str, Case] = {}
POINTS = 2  # generic points for each case


def away(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Draw numbers of both signs that keep 0.3 from zero and 0.001 from one another: no kink, no tie nearby."""
    values = rng.permutation(int(np.prod(shape))) / max(int(np.prod(shape)), 1)
    return ((0.3 + 1.7 * values) * rng.choice([-1, 1], values.shape)).reshape(shape)


def _op(name: str, f: Callable, make: Callable[[np.random.Generator], list[np.ndarray]], **options: Any) -> None:
    OPS[name] = lambda rng: (f, make(rng), options)


def _normal(*shapes: tuple[int, ...]) -> Callable[[np.random.Generator], list[np.ndarray]]:
    return lambda rng: [rng.standard_normal(shape) for shape in shapes]


def _positive(*shapes: tuple[int, ...]) -> Callable[[np.random.Generator], list[np.ndarray]]:
    return lambda rng: [0.5 + rng.random(shape) for shape in shapes]


def _spread(*shapes: tuple[int, ...]) -> Callable[[np.random.Generator], list[np.ndarray]]:
    return lambda rng: [away(rng, *shape) for shape in shapes]


def _apart(rng: np.random.Generator) -> list[np.ndarray]:
    """Draw two arrays that broadcast, of which no pair of elements comes closer than 0.3."""
    a = rng.standard_normal((3, 1))
    return [a, a + away(rng, 3, 5)]


def here(values: Any) -> Any:
    """Return ids or a mask as an array on the current backend."""
    return to_backend(np.asarray(values), get_backend())


ROW = (3, 5)
_op("add", ops.add, _normal(ROW, (5,)))
_op("subtract", ops.subtract, _normal((3, 1), ROW))
_op("multiply", ops.multiply, _normal(ROW, (2, 1, 5)))
_op("divide", ops.divide, lambda rng: [rng.standard_normal(ROW), away(rng, 5)])
_op("scale", lambda x: ops.scale(x, factor=-1.7), _normal(ROW))
_op("shift", lambda x: ops.shift(x, offset=2.5), _normal(ROW))
_op("reciprocal", lambda x: ops.reciprocal(x, numerator=3.0), _spread(ROW))
_op("power", lambda x: ops.power(x, exponent=2.5), _positive(ROW))
_op("negative", ops.negative, _normal(ROW))
_op("exp", ops.exp, _normal(ROW))
_op("log", ops.log, _positive(ROW))
_op("sqrt", ops.sqrt, _positive(ROW))
_op("sin", ops.sin, _normal(ROW))
_op("cos", ops.cos, _normal(ROW))
_op("abs", ops.abs, _spread(ROW))
_op("sign", lambda x: x * ops.sign(x), _spread(ROW))
_op("maximum", ops.maximum, _apart)
_op("minimum", ops.minimum, _apart)
_op("where", lambda a, b: ops.where(here(np.arange(15).reshape(ROW) % 3 == 0), a, b), _normal(ROW, (5,)))
_op("clip", lambda x: ops.clip(x, low=-1.9, high=0.15) * x, _spread(ROW))
_op("erf", ops.erf, _normal(ROW))
_op("_move", lambda x: x.to("float64") * x, _normal(ROW))
_op("_identity", lambda x: x * identity(x), _normal(ROW))
_op("sum", lambda x: ops.sum(x, axis=(0, 2)), _normal((2, 3, 5)))
_op("mean", lambda x: ops.mean(x, axis=-1, keepdims=True), _normal((2, 3, 5)))
_op("max", lambda x: ops.max(x, axis=1), lambda rng: [rng.permutation(30).reshape(2, 3, 5) / 5.0])
_op("min", lambda x: ops.min(x, axis=-1, keepdims=True), lambda rng: [rng.permutation(30).reshape(2, 3, 5) / 5.0])
_op("reshape", lambda x: x.reshape(5, -1), _normal((2, 3, 5)))
_op("transpose", lambda x: ops.transpose(x, axes=(2, 0, 1)), _normal((2, 3, 5)))
_op("swapaxes", lambda x: x.swapaxes(0, -1), _normal((2, 3, 5)))
_op("broadcast_to", lambda x: ops.broadcast_to(x, (2, 3, 5)), _normal((3, 1)))
_op("concatenate", lambda a, b: ops.concatenate([a, b, a], axis=1), _normal((3, 2, 5), (3, 7, 5)))
_op("stack", lambda a, b: ops.stack([a, b, a], axis=1), _normal(ROW, ROW))
_op("getitem", lambda x: x[here([0, 2, 2, 1]), 1:4], _normal(ROW))
_op("scatter_add", lambda x: ops.scatter_add(x, index=here([1, 3, 1]), shape=(7, 5)), _normal(ROW))
_op("take_along_axis", lambda x: ops.take_along_axis(x, here([[1, 1], [0, 4], [2, 3]])), _normal(ROW))
_op("embedding", lambda w: ops.embedding(here([[0, 2, 2], [1, 6, 0]]), w), _normal((7, 3)))
_op("matmul", ops.matmul, _normal((2, 1, 3, 5), (7, 5, 2)))
_op("linear", ops.linear, _normal((2, 3, 5), (7, 5), (7,)))
_op("einsum", lambda a, b, c: ops.einsum("bqk,bsk,hx->bsqh", a, b, c), _normal((2, 3, 5), (2, 7, 5), (3, 2)))
_op("relu", ops.relu, _spread(ROW))
_op("tanh", ops.tanh, _normal(ROW))
_op("sigmoid", ops.sigmoid, _normal(ROW))
_op("silu", ops.silu, _normal(ROW))
_op("gelu", ops.gelu, _normal(ROW))
_op("gelu (tanh)", lambda x: ops.gelu(x, approximate="tanh"), _normal(ROW))
_op("split_heads", lambda x: ops.split_heads(x, heads=3), _normal((2, 5, 21)))
_op("join_heads", ops.join_heads, _normal((2, 3, 5, 7)))
_op("softmax", ops.softmax, _normal(ROW))
_op(
    "softmax (axis, mask)",
    lambda x: ops.softmax(x, axis=0, mask=here(np.arange(15).reshape(ROW) % 4 > 0)),
    _normal(ROW),
)
_op("log_softmax", ops.log_softmax, _normal(ROW))
_op("layer_norm", ops.layer_norm, _normal(ROW, (5,), (5,)))
_op("rms_norm", ops.rms_norm, _normal(ROW, (5,)))
_op("cross_entropy", lambda x: ops.cross_entropy(x, here([1, -100, 4])), _normal(ROW))
_op(
    "cross_entropy (smooth, weighted)",
    lambda x: ops.cross_entropy(
        x, here([1, 3, 4]), label_smoothing=0.1, weight=here([0.5, 1, 2, 3, 0.1]), reduction="none"
    ),
    _normal(ROW),
)


def _dropout(x: Tensor) -> Any:
    manual_seed(7)
    return ops.dropout(x * x, 0.4)


def _masked(q: Any, k: Any, v: Any) -> Any:
    manual_seed(7)
    mask = here([[True, True, True, False, True, False, True], [False] * 7, [True] * 7])
    return ops.scaled_dot_product_attention(q, k, v, mask, dropout_p=0.2)


def _dropout_add(x: Tensor, branch: Tensor) -> Any:
    manual_seed(7)
    return ops.dropout_add(x, branch * branch, 0.4)


_op("dropout", _dropout, _normal(ROW))
_op("dropout_add", _dropout_add, _normal(ROW, ROW))
HEADS = ((2, 3, 5), (2, 7, 5), (2, 7, 11))
HEADS_OF_THREE = ((2, 5, 3), (2, 7, 3), (2, 7, 11))
KEYS = np.array([[True] * 7, [False, True, True, False, True, True, False]])
_op("repeat_heads", lambda x: ops.repeat_heads(x, 3), _normal((2, 5, 7)))
ANGLES = np.arange(15).reshape(5, 3) / 7
for _pairing in ("halves", "neighbours"):
    _op(
        f"rotary ({_pairing})",
        lambda x, p=_pairing: ops.rotary(x, here(np.cos(ANGLES)), here(np.sin(ANGLES)), p),
        _normal((2, 5, 6)),
    )
_op(
    "scaled_dot_product_attention (bias)",
    lambda q, k, v, b: ops.scaled_dot_product_attention(q, k, v, causal=True, bias=b),
    lambda rng: [*_normal(*HEADS)(rng), rng.standard_normal((3, 7))],
)
_op("by_distance", lambda x: ops.by_distance(x, queries=5), _normal((3, 11)))
_op("sum_by_distance", ops.sum_by_distance, _normal((3, 5, 7)))


def _in_blocks(q: Any, k: Any, v: Any, bias: Any) -> Any:
    """Attend in blocks of three, some of which the mask and the window empty."""
    manual_seed(7)
    mask = here([[True, True, True, False, True, False, True], [False] * 7, *[[True] * 5 + [False] * 2] * 3])
    return _blockwise_attention(
        q, k, v, mask, None, bias, scale=0.4, causal=True, window=4, dropout=(0.2, next_draw(2)), learned=True, size=3
    )


_op(
    "blockwise_attention",
    lambda q, k, v, b: ops.blockwise_attention(q, k, v, causal=True, bias=b),
    lambda rng: [*_normal(*HEADS)(rng), rng.standard_normal((3, 7))],
)
_op("blockwise_attention (blocks)", _in_blocks, _normal((2, 5, 3), (2, 7, 3), (2, 7, 11), (2, 11)))
_op("positive_features", ops.positive_features, _spread(ROW))
for _causal in (False, True):
    _op(
        f"linear_attention{' (causal)' if _causal else ''}",
        lambda q, k, v, c=_causal: ops.linear_attention(q, k, v, here(KEYS), causal=c, chunk=2),
        _spread(*HEADS_OF_THREE),
    )
_op("linear_attention_weights", lambda q, k: ops.linear_attention_weights(q, k, causal=True), _spread(*HEADS[:2]))
_op(
    "linear_cross_entropy",
    lambda x, w: ops.linear_cross_entropy(x, w, here([1, 6, -100, 0, 1]), label_smoothing=0.1, chunk=2),
    _normal((5, 3), (7, 3)),
)
_op("attention_weights", lambda q, k: ops.attention_weights(q, k, causal=True), _normal(*HEADS[:2]))
_op(
    "scaled_dot_product_attention",
    lambda q, k, v: ops.scaled_dot_product_attention(q, k, v, causal=True),
    _normal(*HEADS),
)
_op("scaled_dot_product_attention (mask)", _masked, _normal(*HEADS))


def functional(module: nn.Module) -> tuple[Callable, list[np.ndarray], list[str]]:
    """Return a module as a function f(parameters, *inputs), its parameters as float64 arrays, and their names."""
    names = [name for name, _ in module.named_parameters()]
    owners = {name: [] for name in names}  # type: dict[str, list[tuple[nn.Module, str]]]
    first = {id(parameter): name for name, parameter in module.named_parameters()}
    for owner in module.modules():
        for attribute, value in vars(owner).items():
            if isinstance(value, nn.Parameter):
                owners[first[id(value)]].append((owner, attribute))
    arrays = [parameter.numpy().astype("float64") for parameter in module.parameters()]

    def f(parameters: Any, *inputs: Any) -> Any:
        before = [
            (owner, attribute, getattr(owner, attribute)) for places in owners.values() for owner, attribute in places
        ]
        try:
            for name, tensor in zip(names, parameters, strict=True):
                for owner, attribute in owners[name]:
                    setattr(owner, attribute, tensor)
            return module(*inputs)
        finally:
            for owner, attribute, value in before:
                setattr(owner, attribute, value)

    return f, arrays, names


def _module(
    table: dict[str, Case],
    name: str,
    make: Callable[[], nn.Module],
    inputs: Callable[[np.random.Generator], list[np.ndarray]],
    call: Callable = lambda f, p, *xs: f(p, *xs),
    **options: Any,
) -> None:
    """Add a case for a module: its parameters and its floating inputs are checked together."""

    def case(rng: np.random.Generator) -> tuple[Callable, list[np.ndarray], dict[str, Any]]:
        manual_seed(int(rng.integers(1000)))
        module = make()
        f, parameters, names = functional(module)
        xs = inputs(rng)
        # Norms start at 1 and biases at 0, where errors hide: move every parameter to a generic place.
        parameters = [p + 0.3 * rng.standard_normal(p.shape) for p in parameters]
        labels = [f"input {i}" for i in range(len(xs))] + names
        zero = [i for i, label in enumerate(labels) if label.endswith("k_proj.bias") and _only_shifts(module)]

        def run(*tensors: Any) -> Any:
            manual_seed(7)
            return call(f, tensors[len(xs) :], *tensors[: len(xs)])

        return run, [*xs, *parameters], {"names": labels, "zero": zero, **options}

    table[name] = case


def _only_shifts(module: nn.Module) -> bool:
    """Tell whether a bias of the keys shifts all scores of a row alike, which a softmax cannot see.

    It does not where keys are turned by their places, normed, or mixed in another way than by a softmax.
    """
    attentions = [m for m in module.modules() if isinstance(m, nn.MultiHeadAttention)]
    turned = any(isinstance(m, nn.RotaryPositions) for m in module.modules())
    return not turned and all(a.kind != "linear" and a.k_norm is None for a in attentions)


MASK = np.array([[True] * 5, [True, True, True, False, False]])
_module(MODULES, "Linear", lambda: nn.Linear(5, 3), _normal((2, 5)))
_module(MODULES, "Embedding", lambda: nn.Embedding(7, 3), lambda rng: [], lambda f, p: f(p, here([[1, 1, 4]])))
_module(MODULES, "LayerNorm", lambda: nn.LayerNorm(5), _normal((2, 3, 5)))
_module(MODULES, "RMSNorm", lambda: nn.RMSNorm(5), _normal((2, 3, 5)))
_module(MODULES, "Dropout", lambda: nn.Sequential(nn.Dropout(0.4), nn.Linear(5, 3)), _normal((3, 5)))
_module(MODULES, "GELU", lambda: nn.GELU(), _normal((3, 5)))
_module(MODULES, "ReLU", lambda: nn.ReLU(), _spread((3, 5)))
_module(MODULES, "SiLU", lambda: nn.SiLU(), _normal((3, 5)))
_module(
    MODULES, "Sequential", lambda: nn.Sequential(nn.Linear(5, 3), nn.GELU("tanh"), nn.Linear(3, 2)), _normal((3, 5))
)
_module(
    MODULES, "SinusoidalPositions", lambda: nn.SinusoidalPositions(11, 6), lambda rng: [rng.standard_normal((2, 3, 6))]
)
_module(MODULES, "LearnedPositions", lambda: nn.LearnedPositions(5, 6), _normal((2, 3, 6)), lambda f, p, x: f(p, x))
_module(MODULES, "NoPositions", nn.NoPositions, _normal((2, 3, 6)))
_module(
    MODULES,
    "MultiHeadAttention",
    lambda: nn.MultiHeadAttention(6, 2),
    _normal((2, 5, 6)),
    lambda f, p, x: f(p, x, None, None, None, here(MASK)),
)
_module(MODULES, "MultiHeadAttention (causal)", lambda: nn.MultiHeadAttention(6, 3), _normal((2, 5, 6)), lambda f, p, x: f(p, x, None, None, None, None, True))  # fmt: skip
_module(MODULES, "MultiHeadAttention (cross)", lambda: nn.MultiHeadAttention(6, 2, dropout=0.2), _normal((2, 3, 6), (2, 5, 6)), lambda f, p, x, m: f(p, x, m, None, None, here(MASK)))  # fmt: skip
for _name, _make in {
    "grouped": lambda: nn.MultiHeadAttention(12, 6, kv_heads=2),
    "multi-query": lambda: nn.MultiHeadAttention(6, 3, kv_heads=1),
    "rotary": lambda: nn.MultiHeadAttention(6, 3, positions=nn.RotaryPositions(2, 5)),
    "alibi": lambda: nn.MultiHeadAttention(6, 3, positions=nn.AlibiBias(3)),
    "relative": lambda: nn.MultiHeadAttention(6, 3, positions=nn.RelativeBias(3, 4, 3)),
    "share qk": lambda: nn.MultiHeadAttention(6, 3, share="qk"),
    "share heads": lambda: nn.MultiHeadAttention(6, 3, share="heads"),
    "tied output": lambda: nn.MultiHeadAttention(6, 3, tie_output=True),
    "qk norm": lambda: nn.MultiHeadAttention(6, 2, qk_norm=True),
    "window": lambda: nn.MultiHeadAttention(6, 3, window=2),
    "blockwise": lambda: nn.MultiHeadAttention(6, 3, kind="blockwise"),
}.items():
    _module(
        MODULES, f"MultiHeadAttention ({_name})", _make,
        _normal((2, 5, 12 if _name == "grouped" else 6)), lambda f, p, x: f(p, x, None, None, None, here(MASK)),
    )  # fmt: skip
_module(
    MODULES, "MultiHeadAttention (linear)", lambda: nn.MultiHeadAttention(6, 3, kind="linear"),
    lambda rng: [3 * rng.standard_normal((2, 3, 6))],  # few numbers, far from 0, where φ has no second derivative
    lambda f, p, x: f(p, x, None, None, None, None, True),
)  # fmt: skip
_module(MODULES, "RotaryPositions", lambda: nn.RotaryPositions(6, 11, scaling=2.0), _normal((2, 3, 6)))
_module(MODULES, "RelativeBias", lambda: nn.RelativeBias(2, 8, 9), lambda rng: [], lambda f, p: f(p, 5, 7))
_module(MODULES, "AlibiBias", lambda: nn.AlibiBias(3), _normal((2, 3, 11)), lambda f, p, x: x * f(p, 5, 7, x))
_module(MODULES, "FeedForward", lambda: nn.FeedForward(5, 7, "gelu"), _normal((2, 3, 5)))
for _act in ("swiglu", "geglu"):
    _module(MODULES, f"FeedForward ({_act})", lambda a=_act: nn.FeedForward(5, 7, a), _normal((2, 3, 5)))  # type: ignore[misc]


def _recomputed(x: Any, w: Any) -> Any:
    manual_seed(7)
    return recompute(lambda a, b: ops.gelu(ops.linear(ops.dropout(a, 0.3), b)), x * x, w)


MODULES["Recompute (a function)"] = lambda rng: (_recomputed, _normal((2, 3, 5), (7, 5))(rng), {})
_module(MODULES, "Recompute", lambda: nn.Recompute(nn.FeedForward(5, 7, "gelu", 0.3)), _normal((2, 3, 5)))
for _norm in ("pre", "post"):
    _module(MODULES, f"EncoderLayer ({_norm})", lambda n=_norm: nn.EncoderLayer(6, 2, 7, 0.1, n, "gelu"), _normal((2, 5, 6)), lambda f, p, x: f(p, x, here(MASK)))  # type: ignore[misc]  # fmt: skip
    _module(MODULES, f"DecoderLayer ({_norm})", lambda n=_norm: nn.DecoderLayer(6, 2, 7, 0.1, n, "silu"), _normal((2, 3, 6), (2, 5, 6)), lambda f, p, x, m: f(p, x, m, None, here(MASK)), max_coordinates=12)  # type: ignore[misc]  # fmt: skip
_module(
    MODULES,
    "Encoder",
    lambda: nn.Encoder([nn.EncoderLayer(6, 2, 7, 0.0, "pre", "gelu")], 6),
    _normal((2, 5, 6)),
    lambda f, p, x: f(p, x, here(MASK)),
)
_module(MODULES, "Decoder", lambda: nn.Decoder([nn.DecoderLayer(6, 2, 7, 0.0, "pre", "gelu")], 6), _normal((2, 3, 6), (2, 5, 6)), lambda f, p, x, m: f(p, x, m, None, here(MASK)), max_coordinates=12)  # fmt: skip

SOURCE = np.array([[4, 5, 5, 6, 3], [3, 6, 4, 0, 0]])
TARGET_IN, TARGET_OUT = np.array([[1, 6, 5, 5], [1, 4, 6, 0]]), np.array([[6, 5, 5, 2], [4, 6, 2, 0]])


def _seq2seq(model: Transformer) -> nn.Module:
    """Wrap a model so that calling it computes its loss."""
    return _Loss(
        model,
        lambda m: ops.cross_entropy(
            m(here(SOURCE), here(TARGET_IN)), here(TARGET_OUT), ignore_index=0, label_smoothing=0.1
        ),
    )


class _Loss(nn.Module):
    def __init__(self, model: nn.Module, compute: Callable):
        self.model, self.compute = model, compute

    def forward(self) -> Any:
        return self.compute(self.model)


for _norm, _ties, _where in (("pre", "none", "sinusoidal"), ("post", "all", "learned"), ("pre", "target", "none")):
    _config = TransformerConfig(7, 7, 6, 2, 1, 5, 0.1, 5, _norm, "gelu", _where, _ties)
    _module(MODELS, f"Transformer ({_norm}, tied {_ties})", lambda c=_config: _seq2seq(Transformer(c)), lambda rng: [], lambda f, p: f(p), max_coordinates=6)  # type: ignore[misc]  # fmt: skip
# What a layer may be beside its sizes, several at a time, inside a whole model: where one meets another.
TECHNIQUES: dict[str, dict[str, Any]] = {
    "grouped, rotary neighbours, scaled": {
        "d_model": 8, "kv_heads": 1, "positions": "rotary", "rotary_pairing": "neighbours", "rotary_scaling": 1.7,
    },
    "alibi, window": {"positions": "alibi", "window": 2},
    "relative, one projection for all heads": {"positions": "relative", "share": "heads"},
    "one layer twice, tied output, geglu": {"layers": 2, "distinct_layers": 1, "tie_output": True, "activation": "geglu"},
    "one layer twice, recomputed": {"layers": 2, "distinct_layers": 1, "recompute": True, "dropout": 0.2},
}  # fmt: skip
SMALL: dict[str, Any] = {"d_model": 6, "heads": 2, "layers": 1, "d_ff": 5, "dropout": 0.0, "max_length": 5}


def _with(options: dict[str, Any]) -> nn.Module:
    """Make a small language model of some techniques, and wrap it so that calling it computes its loss."""
    model = GPT2(GPT2Config(7, **{**SMALL, **options}))
    if options.get("positions") == "relative":  # of 32 buckets a short text reaches a few, and the others have no slope
        for layer in model.decoder.layers:
            layer.self_attention.positions = nn.RelativeBias(2, 4, 3, bidirectional=False)
    return _Loss(model, lambda m: ops.cross_entropy(m(here(TARGET_IN)), here(TARGET_OUT)))


for _name, _options in TECHNIQUES.items():
    _module(MODELS, f"GPT2 ({_name})", lambda o=_options: _with(o), lambda rng: [], lambda f, p: f(p), max_coordinates=2)  # type: ignore[misc]  # fmt: skip
_again = TransformerConfig(7, 7, 6, 2, 1, 5, 0.1, 5, activation="gelu", recompute=True)
_module(MODELS, "Transformer (recomputed)", lambda: _seq2seq(Transformer(_again)), lambda rng: [], lambda f, p: f(p), max_coordinates=1, directions=1)  # fmt: skip


def _language(norm: str) -> nn.Module:
    """Return a language model so that calling it computes its loss."""
    model = GPT2(GPT2Config(7, 5, 6, 2, 2, 5, 0.1, norm=norm))
    return _Loss(model, lambda m: ops.cross_entropy(m(here(TARGET_IN)), here(TARGET_OUT)))


for _name, _norm in (("GPT2", "pre"), ("GPT2 (post)", "post")):
    _module(MODELS, _name, lambda n=_norm: _language(n), lambda rng: [], lambda f, p: f(p), max_coordinates=6)  # type: ignore[misc]


def run(only: str | None = None, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Run the cases whose names contain `only`, at two points each, and yield a row of figures for each.

    Raises ValueError when no name does.
    """
    table = {**OPS, **MODULES, **MODELS}
    chosen = {name: case for name, case in table.items() if only is None or only.lower() in name.lower()}
    if not chosen:
        raise ValueError(
            f"gradcheck knows {len(table)} names; got {only!r}, which none contains; write gradcheck layer_norm"
        )
    for name, case in chosen.items():
        yield check(name, case, seed)


def check(name: str, case: Case, seed: int = 0, points: int = POINTS, order: int = 2, **fewer: Any) -> dict[str, Any]:
    """Check one case at some points, up to an order; a failure is told in the row.

    fewer: options of `gradcheck` that go before the case's own, where the time for all is not there.
    """
    row: dict[str, Any] = {"name": name, "points": 0, "first": 0.0, "second": 0.0, "ok": True, "message": ""}
    for point in range(points):
        f, arrays, options = case(np.random.default_rng([seed, point]))
        try:
            report = gradcheck(f, *arrays, order=order, seed=point, **{**options, **fewer})
        except GradcheckError as error:
            return {**row, "first": None, "second": None, "ok": False, "message": str(error)}
        row["points"] += report.points
        row["first"], row["second"] = max(row["first"], report.worst[0]), max(row["second"], report.worst[-1])
    return row
