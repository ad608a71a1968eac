"""Each formula, turned into NumPy and held against its op: value, every gradient, and what is elementwise."""

import inspect
import math
import re

import numpy as np
import pytest

from minitransformer.backend import to_numpy, xp
from minitransformer.draws import Draw
from minitransformer.ops.dropout import dropout_factors
from minitransformer.ops.formulas import ELEMENTWISE, FORMULAS
from minitransformer.tensor import PRIMITIVES

# The lines that are words, and why no machine reads them.
WORDS = {
    "y = 0 with chance p, else 1 / (1 − p)": "random",
    "g_arrays = for each: the einsum of g and the others, out to its own letters": "a rule, not a formula",
    "y[d] = Σ x[i, j] over all j − i + T − 1 = d": "the formula of its transpose, by_distance, is read",
    "y = f(inputs)": "any function",
    "g_inputs = f computed again, and walked backwards": "any function",
}
SIGNS = {"·": "*", "−": "-", "√(": "sqrt(", "²": "**2", "³": "**3", "^": "**", "≤": "<=", "Σ": "total", "…": "...",
         "∞": "inf"}  # fmt: skip


def as_python(formula):
    """Turn a formula into (name, Python expression) pairs."""
    for statement in formula.split("; "):
        name, _, text = statement.partition(" = ")
        text = re.sub(r"\|(\w+)\|", r"abs(\1)", text)
        text = re.sub(r"((?:(?!ᵀ)\w)+(?:\([^()]*\))?)ᵀ", r"T(\1)", text)
        for sign, code in SIGNS.items():
            text = text.replace(sign, code)
        yield name, text


def sum_to(g, like):
    """Add up what was repeated, by counting in which places of g each element of `like` was used."""
    if not hasattr(like, "shape"):
        return None
    out = np.zeros(like.shape)
    places = np.broadcast_to(np.arange(out.size).reshape(like.shape), g.shape)
    np.add.at(out.reshape(-1), places.reshape(-1), g.reshape(-1))
    return out


def scatter_add(values, index, shape):
    out = np.zeros(shape)
    np.add.at(out, index, values)
    return out


def rotate(x, cos, sin):
    half = x.shape[-1] // 2
    turned = (x[..., :half] + 1j * x[..., half:]) * (cos + 1j * sin)
    return np.concatenate([turned.real, turned.imag], axis=-1)


def sum_by_distance(g):
    t, s = g.shape[-2:]
    return np.stack([np.diagonal(g, d - (t - 1), -2, -1).sum(-1) for d in range(t + s - 1)], -1)


def softmax(s):
    e = np.exp(s - s.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def names(axis=-1, keep=True, **more):
    """What a formula may mention, for an op that runs along an axis."""

    def reduced(f):
        return lambda x: f(x, axis=axis, keepdims=keep)

    def repeat(g, x):
        wide = g if keep or axis is None else np.expand_dims(g, axis)
        return np.broadcast_to(wide, x.shape)

    erf = np.vectorize(math.erf)
    known = {n: getattr(np, n) for n in "exp sqrt sin cos abs sign maximum minimum tanh reshape swapaxes".split()}
    known |= {"broadcast_to": np.broadcast_to, "ln": np.log, "concatenate": np.concatenate, "inf": np.inf, "π": np.pi}
    known |= {"erf": erf, "sum_to": sum_to, "scatter_add": scatter_add, "softmax": softmax, "rotate": rotate}
    known |= {"T": lambda x: x.swapaxes(-1, -2), "rows": lambda x: x.reshape(-1, x.shape[-1]), "repeat": repeat}
    known |= {"transpose": np.transpose, "inverse": np.argsort, "sum_by_distance": sum_by_distance}
    known |= {"where": lambda c, a, b: a if c is None else np.where(c, a, b)}
    known |= {"einsum": lambda i, o, arrays: np.einsum(",".join(i) + "->" + o, *arrays)}
    known |= {"split": lambda g, parts, axis: np.split(g, np.cumsum([p.shape[axis] for p in parts])[:-1], axis)}
    known |= {"total": reduced(np.sum), "mean": reduced(np.mean), "max": reduced(np.max), "min": reduced(np.min)}
    return known | more


def normal(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape)


def positive(*shape):
    return 0.5 + np.abs(normal(*shape))


TIES = np.array([[1.0, 2.0, 2.0], [3.0, 3.0, -1.0]])
MASK = np.arange(15).reshape(3, 5) % 4 > 0
FACTORS = {"p": 0.4, "draw": Draw((5, 7), 0, 0)}
WANTED = softmax(normal(3, 5))
T, S = 3, 5
I, J = np.arange(T)[:, None], np.arange(S)[None, :]  # noqa: E741
QKV = [normal(2, T, 4), normal(2, S, 4), normal(2, S, 2)]
LOOK = np.tri(T, S, S - T, dtype=bool) & MASK
LOOK[:, 0] = True
# op → (inputs, settings, what the formula mentions beside them)
CASES = {
    "add": ([normal(3, 5), normal(5)], {}, {}),
    "subtract": ([normal(3, 1), normal(3, 5)], {}, {}),
    "multiply": ([normal(3, 5), normal(2, 1, 5)], {}, {}),
    "divide": ([normal(3, 5), positive(5)], {}, {}),
    "scale": ([normal(3, 5)], {"factor": -1.7}, {}),
    "shift": ([normal(3, 5)], {"offset": 2.5}, {}),
    "reciprocal": ([positive(3, 5)], {"numerator": 3.0}, {}),
    "power": ([positive(3, 5)], {"exponent": 2.5}, {}),
    "log": ([positive(3, 5)], {}, {}),
    "sqrt": ([positive(3, 5)], {}, {}),
    "maximum": ([TIES, TIES[:1]], {}, {}),
    "minimum": ([TIES, TIES[:1]], {}, {}),
    "where": ([MASK, normal(3, 5), normal(5)], {}, {}),
    "clip": ([normal(3, 5)], {"low": -0.7, "high": 0.4}, {}),
    "_dropout": ([normal(3, 5)], FACTORS, "factors"),
    "_dropout_add": ([normal(3, 5), normal(3, 5)], FACTORS, "factors"),
    "reshape": ([normal(3, 4)], {"shape": (2, 6)}, {}),
    "transpose": ([normal(2, 3, 5)], {"axes": (2, 0, 1)}, {}),
    "swapaxes": ([normal(2, 3, 5)], {"axis1": 0, "axis2": -1}, {}),
    "broadcast_to": ([normal(3, 1), (2, 3, 5)], {}, {"shape": (2, 3, 5)}),
    "_concatenate": ([normal(3, 2), normal(3, 5), normal(3, 1)], {"axis": 1}, {}),
    "split_heads": ([normal(2, 5, 6)], {"heads": 3}, {}),
    "join_heads": ([normal(2, 3, 5, 2)], {}, {}),
    "_move": ([normal(3, 5)], {"where": "float64"}, {}),
    "sum": ([normal(3, 5)], {"axis": 0}, names(0, False)),
    "mean": ([normal(3, 5)], {"axis": 1}, names(1, False, N=5)),
    "max": ([TIES], {"axis": 1}, names(1, False)),
    "min": ([TIES], {"axis": 0, "keepdims": True}, names(0, True)),
    "getitem": ([normal(3, 5)], {"index": ([0, 2, 2], slice(1, 3))}, {}),
    "scatter_add": ([normal(3, 5)], {"index": np.array([1, 3, 1]), "shape": (4, 5)}, {}),
    "embedding": ([np.array([[0, 2], [2, 1]]), normal(4, 3)], {}, {}),
    "by_distance": ([normal(2, T + S - 1)], {"queries": T}, {"i": I, "j": J}),
    "sum_by_distance": ([normal(2, T, S)], {}, {"i": I, "j": J, "T": T}),
    "_matmul": ([normal(2, 1, 3, 5), normal(7, 5, 2)], {}, {}),
    "_linear": ([normal(2, 3, 5), normal(7, 5), normal(7)], {}, {}),
    "_einsum": ([normal(2, 3), normal(3, 5)], {"inputs": ("ij", "jk"), "output": "ki"}, {}),
    "_rotary": ([normal(2, 5, 6), *(f(np.arange(15).reshape(5, 3) / 7) for f in (np.cos, np.sin))],
                {"pairing": "halves"}, {}),
    "layer_norm": ([normal(2, 3, 5), normal(5), normal(5)], {"eps": 1e-2}, {}),
    "rms_norm": ([normal(2, 3, 5), normal(5)], {"eps": 1e-2}, {}),
    "_softmax": ([normal(3, 5), MASK], {"axis": 0}, names(0)),
    "log_softmax": ([normal(3, 5)], {"axis": 0}, names(0)),
    "_cross_entropy": ([normal(3, 5), WANTED], {}, "rows"),
    "_linear_cross_entropy": (
        [normal(3, 4), normal(5, 4), np.array([1, 4, 0]), np.array([True, True, False])],
        {"smoothing": 0.1, "chunk": 2}, "rows"),
    "_attention": ([*QKV, LOOK, np.where(MASK, 2.0, 0.0), normal(T, S)], {"scale": 0.6, "causal": False}, {}),
    "_blockwise_attention": (
        [*QKV, LOOK, normal(T, S), None],
        {"scale": 0.6, "causal": False, "window": 0, "dropout": None, "learned": True, "size": 2}, {}),
}  # fmt: skip


def case(name):
    """Return the inputs, the settings, and all names that the formula may mention."""
    inputs, settings, more = CASES.get(name, ([normal(3, 5)], {}, {}))
    if more == "factors":
        more = {"factors": to_numpy(dropout_factors(xp().zeros((3, 5)), shape=(3, 5), **FACTORS))}
    if more == "rows":
        one_hot = (inputs[2][:, None] == np.arange(5)) * 0.9 + 0.1 / 5 if len(inputs) == 4 else None
        more = {} if one_hot is None else {"wanted": one_hot * inputs[3][:, None]}
    parameters = [p for p in inspect.signature(PRIMITIVES[name]).parameters.values() if p.kind != p.KEYWORD_ONLY]
    own = {p.name: v for p, v in zip(parameters, inputs, strict=False)}
    if parameters[0].kind == parameters[0].VAR_POSITIONAL:
        own = {parameters[0].name: inputs}
    return inputs, settings, {**names(), **settings, **own, **(more or {})}


def told(lines, known):
    """Work out a formula's lines and return the values of the names they define."""
    values = {}
    for line in lines:
        if line in WORDS:
            continue
        for name, text in as_python(line):
            values[name] = known[name] = eval(text, {"__builtins__": {}}, known)  # noqa: S307  (our own table)
    return values


@pytest.mark.parametrize("name", sorted(FORMULAS.keys() - {"recompute", "dropout_factors"}))
def test_the_formula_is_what_the_op_computes(name):
    inputs, settings, known = case(name)
    forward, *backward = FORMULAS[name]
    given = [xp().asarray(a) if isinstance(a, np.ndarray) else a for a in inputs]
    y, vjp = PRIMITIVES[name].body(xp(), *given, **settings)
    y = to_numpy(y)
    if forward not in WORDS:
        value = told([forward], known)["y"]
        np.testing.assert_allclose(np.asarray(value).reshape(y.shape), y, rtol=1e-9, atol=1e-12, err_msg=forward)
    g = np.random.default_rng(7).standard_normal(y.shape)
    made = vjp(xp().asarray(g))
    known["g"] = g[..., None] if name in ("_cross_entropy", "_linear_cross_entropy") else g
    gradients = {n: v for n, v in told(backward, known).items() if n.startswith("g_")}
    parameters = list(inspect.signature(PRIMITIVES[name]).parameters)
    flows = {f"g_{p}": g_x for p, g_x in zip(parameters, made, strict=False) if g_x is not None}
    if name in ("_concatenate", "_einsum"):
        flows = {f"g_{parameters[0]}": made}
    lines = [line for line in backward if line in WORDS]
    assert set(flows) <= set(gradients) | {line.partition(" = ")[0] for line in lines}, (name, set(flows))
    inputs_named = {f"g_{p}" for p in parameters}
    for wanted, value in gradients.items():
        if wanted not in inputs_named:
            continue  # a name on the way
        found = flows[wanted] if isinstance(flows[wanted], tuple) else (flows[wanted],)
        value = value if isinstance(value, list) else [value]
        for a, b in zip(found, value, strict=True):
            np.testing.assert_allclose(to_numpy(a), b, rtol=1e-9, atol=1e-12, err_msg=f"{name}: {wanted}")


def test_every_op_has_a_formula_and_every_formula_an_op():
    own = {
        n for n, op in PRIMITIVES.items() if hasattr(op, "body") and op.body.__module__.startswith("minitransformer")
    }
    assert own - set(FORMULAS) == set(), "write the formula of a new op into ops/formulas.py"
    assert set(FORMULAS) - own == {"recompute"}


def test_words_stand_in_the_table():
    lines = {line for formula in FORMULAS.values() for line in formula}
    assert set(WORDS) <= lines


def test_a_wrong_formula_is_caught(monkeypatch):
    for name, wrong in (("divide", "g_b = sum_to(g·a / b², b)"), ("layer_norm", "g_bias = sum_to(g·x̂, bias)")):
        lines = [wrong if line.startswith(wrong[:4]) else line for line in FORMULAS[name]]
        assert lines != list(FORMULAS[name])
        monkeypatch.setitem(FORMULAS, name, tuple(lines))
        with pytest.raises(AssertionError, match=name):
            test_the_formula_is_what_the_op_computes(name)


@pytest.mark.parametrize("name", sorted(FORMULAS.keys() - {"recompute", "dropout_factors"}))
def test_elementwise_means_that_each_element_goes_its_own_way(name):
    inputs, settings, _ = case(name)
    if name in ELEMENTWISE:  # one shape, so that nothing is added up
        shape = np.broadcast_shapes(*[np.shape(a) for a in inputs])
        inputs = [np.broadcast_to(a, shape).copy() for a in inputs]
        if "draw" in settings:
            shape = (3, 5)
    given = [xp().asarray(a) if isinstance(a, np.ndarray) else a for a in inputs]
    y, vjp = PRIMITIVES[name].body(xp(), *given, **settings)
    g = np.zeros(y.shape)
    g.reshape(-1)[1] = 1.0
    own = np.zeros(y.shape, bool)
    own.reshape(-1)[1] = True
    diagonal = all(
        g_x is None or (g_x.shape == y.shape and not to_numpy(g_x)[~own].any()) for g_x in vjp(xp().asarray(g))
    )
    moved = name in ("sign", "_move")  # nothing flows, or nothing happens: no number to show
    assert diagonal == (name in ELEMENTWISE) or moved, name
