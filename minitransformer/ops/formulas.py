"""The formula of every op, forward and backward, for those who step through a computation.

They are written so that a test can read them: tests/ops/test_formulas.py turns each into NumPy and compares it, on
numbers, with what the op and its vjp give. So a formula cannot say one thing and the code another.

    ·  element by element      @  product of matrices      ᵀ  exchanges the last two axes      g  the arriving gradient
    Σ, mean, max               over the axis of the op (the last one where it has no say)
    sum_to(g, a)               g, added up over the axes along which a was repeated to meet the other input
    repeat(g, x)               the other way round: g, handed to each element of x that was added up
    scatter_add(g, i, shape)   zeros of that shape, to whose elements [i] g is added, twice where i comes twice

Where the input has no line of its own, nothing flows back into it.
"""

from __future__ import annotations

FORMULAS: dict[str, tuple[str, ...]] = {
    # -- arithmetic
    "add": ("y = a + b", "g_a = sum_to(g, a)", "g_b = sum_to(g, b)"),
    "subtract": ("y = a − b", "g_a = sum_to(g, a)", "g_b = sum_to(−g, b)"),
    "multiply": ("y = a·b", "g_a = sum_to(g·b, a)", "g_b = sum_to(g·a, b)"),
    "divide": ("y = a / b", "g_a = sum_to(g / b, a)", "g_b = sum_to(−g·a / b², b)"),
    "scale": ("y = factor·x", "g_x = factor·g"),
    "shift": ("y = x + offset", "g_x = g"),
    "reciprocal": ("y = numerator / x", "g_x = −g·numerator / x²"),
    "power": ("y = x^exponent", "g_x = g·exponent·x^(exponent − 1)"),
    "negative": ("y = −x", "g_x = −g"),
    "exp": ("y = exp(x)", "g_x = g·y"),
    "log": ("y = ln(x)", "g_x = g / x"),
    "sqrt": ("y = √(x)", "g_x = g / (2·y)"),
    "sin": ("y = sin(x)", "g_x = g·cos(x)"),
    "cos": ("y = cos(x)", "g_x = −g·sin(x)"),
    "abs": ("y = |x|", "g_x = g·sign(x)"),
    "sign": ("y = sign(x)",),
    "maximum": (
        "y = maximum(a, b)",
        "g_a = sum_to(g·(a > b) + g·(a == b) / 2, a)",
        "g_b = sum_to(g·(b > a) + g·(a == b) / 2, b)",
    ),
    "minimum": (
        "y = minimum(a, b)",
        "g_a = sum_to(g·(a < b) + g·(a == b) / 2, a)",
        "g_b = sum_to(g·(b < a) + g·(a == b) / 2, b)",
    ),
    "where": (
        "y = where(condition, a, b)",
        "g_a = sum_to(where(condition, g, 0), a)",
        "g_b = sum_to(where(condition, 0, g), b)",
    ),
    "clip": ("y = minimum(maximum(x, low), high)", "g_x = g·(low ≤ x)·(x ≤ high)"),
    "erf": ("y = erf(x)", "g_x = g·2 / √(π)·exp(−x²)"),
    # -- bends
    "relu": ("y = maximum(x, 0)", "g_x = g·(x > 0)"),
    "tanh": ("y = tanh(x)", "g_x = g·(1 − y²)"),
    "sigmoid": ("y = 1 / (1 + exp(−x))", "g_x = g·y·(1 − y)"),
    "silu": ("σ = 1 / (1 + exp(−x)); y = x·σ", "g_x = g·σ·(1 + x·(1 − σ))"),
    "_gelu_exact": (
        "Φ = (1 + erf(x / √(2))) / 2; y = x·Φ",
        "g_x = g·(Φ + x·exp(−x² / 2) / √(2·π))",
    ),
    "_gelu_tanh": (
        "t = tanh(√(2 / π)·(x + 0.044715·x³)); y = x·(1 + t) / 2",
        "g_x = g·((1 + t) / 2 + x·(1 − t²) / 2·√(2 / π)·(1 + 3·0.044715·x²))",
    ),
    "positive_features": ("y = where(x > 0, x + 1, exp(x))", "g_x = g·where(x > 0, 1, y)"),
    # -- dropout: each factor is 0 with chance p, else 1/(1 − p)
    "dropout_factors": ("y = 0 with chance p, else 1 / (1 − p)",),
    "_dropout": ("y = x·factors", "g_x = g·factors"),
    "_dropout_add": ("y = x + branch·factors", "g_x = g", "g_branch = g·factors"),
    # -- shapes
    "reshape": ("y = reshape(x, shape)", "g_x = reshape(g, x.shape)"),
    "transpose": ("y = transpose(x, axes)", "g_x = transpose(g, inverse(axes))"),
    "swapaxes": ("y = swapaxes(x, axis1, axis2)", "g_x = swapaxes(g, axis1, axis2)"),
    "broadcast_to": ("y = broadcast_to(x, shape)", "g_x = sum_to(g, x)"),
    "_concatenate": ("y = concatenate(parts, axis)", "g_parts = split(g, parts, axis)"),
    "split_heads": (
        "y = swapaxes(reshape(x, (*x.shape[:−1], heads, −1)), −3, −2)",
        "g_x = reshape(swapaxes(g, −3, −2), x.shape)",
    ),
    "join_heads": (
        "z = swapaxes(x, −3, −2); y = reshape(z, (*z.shape[:−2], −1))",
        "g_x = swapaxes(reshape(g, z.shape), −3, −2)",
    ),
    "_move": ("y = x", "g_x = g"),
    "_identity": ("y = x", "g_x = g"),
    # -- sums
    "sum": ("y = Σ(x)", "g_x = repeat(g, x)"),
    "mean": ("y = Σ(x) / N", "g_x = repeat(g, x) / N"),
    "max": ("y = max(x)", "at_top = x == repeat(y, x); g_x = at_top·repeat(g / Σ(at_top), x)"),
    "min": ("y = min(x)", "at_bottom = x == repeat(y, x); g_x = at_bottom·repeat(g / Σ(at_bottom), x)"),
    # -- picking
    "getitem": ("y = x[index]", "g_x = scatter_add(g, index, x.shape)"),
    "scatter_add": ("y = scatter_add(values, index, shape)", "g_values = g[index]"),
    "embedding": ("y = weight[ids]", "g_weight = scatter_add(g, ids, weight.shape)"),
    "by_distance": ("y = x[…, j − i + queries − 1]", "g_x = sum_by_distance(g)"),
    "sum_by_distance": ("y[d] = Σ x[i, j] over all j − i + T − 1 = d", "g_x = g[…, j − i + T − 1]"),
    # -- products
    "_matmul": ("y = a @ b", "g_a = sum_to(g @ bᵀ, a)", "g_b = sum_to(aᵀ @ g, b)"),
    "_linear": (
        "y = x @ weightᵀ + bias",
        "g_x = g @ weight",
        "g_weight = rows(g)ᵀ @ rows(x)",
        "g_bias = sum_to(g, bias)",
    ),
    "_einsum": (
        "y = einsum(inputs, output, arrays)",
        "g_arrays = for each: the einsum of g and the others, out to its own letters",
    ),
    "_rotary": ("y = rotate(x, cos, sin)", "g_x = rotate(g, cos, −sin)"),
    # -- norms and softmax
    "layer_norm": (
        "c = x − mean(x); r = √(mean(c²) + eps); x̂ = c / r; y = weight·x̂ + bias",
        "ĝ = g·weight; g_x = (ĝ − mean(ĝ) − x̂·mean(ĝ·x̂)) / r",
        "g_weight = sum_to(g·x̂, weight)",
        "g_bias = sum_to(g, bias)",
    ),
    "rms_norm": (
        "r = √(mean(x²) + eps); x̂ = x / r; y = weight·x̂",
        "ĝ = g·weight; g_x = (ĝ − x̂·mean(ĝ·x̂)) / r",
        "g_weight = sum_to(g·x̂, weight)",
    ),
    "_softmax": ("s = where(mask, x, −∞); e = exp(s − max(s)); y = e / Σ(e)", "g_x = y·(g − Σ(g·y))"),
    "log_softmax": ("z = x − max(x); y = z − ln(Σ(exp(z)))", "g_x = g − exp(y)·Σ(g)"),
    "_cross_entropy": (
        "p = softmax(logits); y = −Σ(wanted·ln(p))",
        "g_logits = g·(p·Σ(wanted) − wanted)",
        "g_wanted = −g·ln(p)",
    ),
    "_linear_cross_entropy": (
        "p = softmax(x @ weightᵀ); y = −Σ(wanted·ln(p))",
        "g_z = g·(p·Σ(wanted) − wanted); g_x = g_z @ weight",
        "g_weight = g_zᵀ @ x",
    ),
    # -- attention
    "_attention": (
        "s = where(mask, scale·(q @ kᵀ) + bias, −∞); p = softmax(s); m = p·kept; y = m @ v",
        "g_p = (g @ vᵀ)·kept; g_s = p·(g_p − Σ(g_p·p)); g_q = scale·(g_s @ k)",
        "g_k = scale·(g_sᵀ @ q)",
        "g_v = mᵀ @ g",
        "g_bias = sum_to(g_s, bias)",
    ),
    "_blockwise_attention": (
        "s = where(mask, scale·(q @ kᵀ) + bias, −∞); p = softmax(s); y = p @ v",
        "g_p = g @ vᵀ; g_s = p·(g_p − Σ(g_p·p)); g_q = scale·(g_s @ k)",
        "g_k = scale·(g_sᵀ @ q)",
        "g_v = pᵀ @ g",
        "g_bias = sum_to(g_s, bias)",
    ),
    # -- a function that is computed again on the way back (recompute.py); no op
    "recompute": ("y = f(inputs)", "g_inputs = f computed again, and walked backwards"),
}

# Ops of which an element of the output depends on the same element of each input alone: the derivative of each is one
# number an element, and g is multiplied by it.
ELEMENTWISE = frozenset(
    "add subtract multiply divide scale shift reciprocal power negative exp log sqrt sin cos abs maximum minimum where "
    "clip erf relu tanh sigmoid silu _gelu_exact _gelu_tanh positive_features _dropout _dropout_add _identity".split()
)
