"""The checker itself: it passes what is right, and catches what was broken on purpose."""

import math

import numpy as np
import pytest

import minitransformer as mt
from minitransformer import ops
from minitransformer.gradcheck import GradcheckError, difference
from minitransformer.ops.elementwise import sum_to
from minitransformer.tensor import PRIMITIVES, primitive

NORMAL = np.random.default_rng(1).standard_normal
A, B, ROW, WEIGHT = NORMAL((3, 5)), NORMAL((3, 5)), NORMAL(5), NORMAL((7, 5))
POSITIVE = np.abs(A) + 0.5
IDS = np.array([0, 2, 2, 1])


def unregistered(body):
    """Make an op of a body without leaving it in the registry."""
    op = primitive(body)
    del PRIMITIVES[body.__name__]
    return op


# -- derivatives broken on purpose: each is a plain op with one mistake in its vjp --------------------------------
def exp_sign(xp, x):
    y = xp.exp(x)
    return y, lambda g: (-g * y,)


def tanh_square_lost(xp, x):
    y = xp.tanh(x)
    return y, lambda g: (g * (1 - y),)


def sqrt_two_lost(xp, x):
    y = xp.sqrt(x)
    return y, lambda g: (g / y,)


def power_factor_lost(xp, x):
    return x**3, lambda g: (g * x**2,)


def divide_sign_of_the_divisor(xp, a, b):
    return a / b, lambda g: (g / b, g * a / (b * b))


def multiply_own_factor(xp, a, b):
    return a * b, lambda g: (g * a, g * b)


def maximum_all_to_the_first(xp, a, b):
    return xp.maximum(a, b), lambda g: (g, g * 0)


def relu_open_gate(xp, x):
    return x * (x > 0), lambda g: (g,)


def silu_product_rule_lost(xp, x):
    s = (xp.tanh(x * 0.5) + 1) * 0.5
    return x * s, lambda g: (g * s,)


def gelu_cubic_slope_lost(xp, x):
    c = math.sqrt(2 / math.pi)
    t = xp.tanh(c * x * (1 + 0.044715 * x * x))
    return 0.5 * x * (1 + t), lambda g: (g * (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * c),)


def gelu_density_lost(xp, x):
    below = (ops.erf(x / math.sqrt(2)) + 1) * 0.5
    return x * below, lambda g: (g * below,)


def add_broadcast_sum_lost(xp, a, b):
    return a + b, lambda g: (g, g[0])


def mean_count_lost(xp, x):
    shape = x.shape
    return x.mean(axis=-1, keepdims=True), lambda g: (xp.broadcast_to(g, shape),)


def softmax_sum_lost(xp, x):
    e = xp.exp(x - x.max(axis=-1, keepdims=True))
    y = e / e.sum(axis=-1, keepdims=True)
    return y, lambda g: (y * g,)


def softmax_sum_over_the_wrong_axis(xp, x):
    e = xp.exp(x - x.max(axis=-1, keepdims=True))
    y = e / e.sum(axis=-1, keepdims=True)
    return y, lambda g: (y * (g - (g * y).sum(axis=0, keepdims=True)),)


def log_softmax_exponential_lost(xp, x):
    z = x - x.max(axis=-1, keepdims=True)
    y = z - xp.log(xp.exp(z).sum(axis=-1, keepdims=True))
    return y, lambda g: (g - g.sum(axis=-1, keepdims=True) / 5,)


def _norm(xp, x, weight, through_mean=1.0, through_std=1.0, count=None):
    count = count or x.shape[-1]
    centred = x - x.mean(axis=-1, keepdims=True)
    inv_std = 1 / xp.sqrt((centred * centred).mean(axis=-1, keepdims=True) + 1e-5)
    x_hat = centred * inv_std

    def vjp(g):
        h = g * weight
        spread = x_hat * (h * x_hat).sum(axis=-1, keepdims=True) / count
        return inv_std * (h - through_mean * h.mean(axis=-1, keepdims=True) - through_std * spread), sum_to(
            g * x_hat, weight.shape
        )

    return weight * x_hat, vjp


def layer_norm_mean_lost(xp, x, weight):
    return _norm(xp, x, weight, through_mean=0.0)


def layer_norm_spread_lost(xp, x, weight):
    return _norm(xp, x, weight, through_std=0.0)


def layer_norm_divides_by_D_less_one(xp, x, weight):
    return _norm(xp, x, weight, count=x.shape[-1] - 1)


def linear_bias_averaged(xp, x, weight, bias):
    return x @ weight.T + bias, lambda g: (g @ weight, g.T @ x, g.mean(axis=0))


def matmul_gradients_swapped(xp, a, b):  # square on purpose: with other sizes the shapes alone would tell
    return a @ b, lambda g: (a.T @ g, g @ b.T)


def embedding_overwrites_repeats(xp, weight):
    def vjp(g):
        g_weight = xp.zeros(weight.shape)
        g_weight[IDS] = g
        return (g_weight,)

    return weight[IDS], vjp


def gather_forgets_its_order(xp, x):
    index = np.array([2, 0, 1])
    return x[index], lambda g: (g[index],)


def concatenate_hands_back_the_wrong_parts(xp, a, b):
    return xp.concatenate([a, b]), lambda g: (g[3:], g[:3])


def _attention(xp, q, k, v, back, kept=1.0, swap=False):
    scale = 1 / math.sqrt(q.shape[-1])
    scores = q @ k.T * scale
    e = xp.exp(scores - scores.max(axis=-1, keepdims=True))
    p = e / e.sum(axis=-1, keepdims=True)

    def vjp(g):
        g_p = g @ v.T * kept
        g_s = p * (g_p - (g_p * p).sum(axis=-1, keepdims=True)) * back
        g_q, g_k = g_s @ k, g_s.T @ q
        return (g_k, g_q, (p * kept).T @ g) if swap else (g_q, g_k, (p * kept).T @ g)

    return p * kept @ v, vjp


def attention_root_K_lost(xp, q, k, v):
    return _attention(xp, q, k, v, back=1.0)


def attention_queries_and_keys_swapped(xp, q, k, v):
    return _attention(xp, q, k, v, back=1 / math.sqrt(5), swap=True)


def attention_dropout_not_on_the_way_back(xp, q, k, v):
    kept = (np.arange(9).reshape(3, 3) % 2) * 2.0
    y, _ = _attention(xp, q, k, v, 1 / math.sqrt(5), kept)
    _, vjp = _attention(xp, q, k, v, 1 / math.sqrt(5))
    return y, vjp


def cross_entropy_smoothing_lost(xp, logits):
    right = np.eye(5)[[1, 4, 0]]
    z = logits - logits.max(axis=-1, keepdims=True)
    log_p = z - xp.log(xp.exp(z).sum(axis=-1, keepdims=True))
    wanted = right * 0.9 + 0.1 / 5
    return -(wanted * log_p).sum(axis=-1), lambda g: (g[:, None] * (xp.exp(log_p) - right),)


def dropout_scale_lost(xp, x):
    kept = np.arange(15).reshape(3, 5) % 3 > 0
    return x * kept * 1.5, lambda g: (g * kept,)


C = NORMAL((3, 5))
BROKEN = [
    (exp_sign, [A]), (tanh_square_lost, [A]), (sqrt_two_lost, [POSITIVE]), (power_factor_lost, [A]),
    (divide_sign_of_the_divisor, [A, POSITIVE]), (multiply_own_factor, [A, B]), (maximum_all_to_the_first, [A, B]),
    (relu_open_gate, [A]), (silu_product_rule_lost, [A]), (gelu_cubic_slope_lost, [A]), (gelu_density_lost, [A]),
    (add_broadcast_sum_lost, [A, ROW]), (mean_count_lost, [A]), (softmax_sum_lost, [A]),
    (softmax_sum_over_the_wrong_axis, [A]), (log_softmax_exponential_lost, [A]), (layer_norm_mean_lost, [A, ROW]),
    (layer_norm_spread_lost, [A, ROW]), (layer_norm_divides_by_D_less_one, [A, ROW]),
    (linear_bias_averaged, [A, WEIGHT, NORMAL(7)]), (matmul_gradients_swapped, [NORMAL((3, 3)), NORMAL((3, 3))]),
    (embedding_overwrites_repeats, [NORMAL((4, 3))]), (gather_forgets_its_order, [A]),
    (concatenate_hands_back_the_wrong_parts, [A, B]), (attention_root_K_lost, [A, B, C]),
    (attention_queries_and_keys_swapped, [A, B, C]), (attention_dropout_not_on_the_way_back, [A, B, C]),
    (cross_entropy_smoothing_lost, [A]), (dropout_scale_lost, [A]),
]  # fmt: skip


@pytest.mark.parametrize("body, arrays", BROKEN, ids=[body.__name__ for body, _ in BROKEN])
def test_a_broken_derivative_is_caught(body, arrays):
    with pytest.raises(GradcheckError, match="backward gives .*, differences give"):
        mt.gradcheck(unregistered(body), *arrays)


def test_there_are_more_than_twenty_of_them():
    assert len({body.__name__ for body, _ in BROKEN}) == len(BROKEN) >= 20


def test_a_detached_branch_is_caught():
    with pytest.raises(GradcheckError, match="argument 0"):
        mt.gradcheck(lambda x: x * x.detach() * 2, A)


def test_a_transposed_gradient_is_refused_by_the_engine():
    body = unregistered(lambda_transposed)
    with pytest.raises(RuntimeError, match=r"gave a gradient \(5, 3\) for an input \(3, 5\)"):
        mt.gradcheck(body, A)


def lambda_transposed(xp, x):
    return x.T, lambda g: (g,)


def test_a_mistake_in_the_second_derivative_alone_is_caught():
    def exp_with_a_constant_slope(xp, x):
        y = xp.exp(x)
        slope = np.exp(getattr(x, "data", x)) if isinstance(x, mt.Tensor) else y  # cut off from x in a replay
        return y, lambda g: (g * slope,)

    op = unregistered(exp_with_a_constant_slope)
    mt.gradcheck(op, A, order=1)
    with pytest.raises(GradcheckError, match="order 2"):
        mt.gradcheck(op, A, order=2)


# -- mistakes made in forward and backward alike: no difference sees them, an oracle does --------------------------
def attention_without_root_K(xp, q, k, v):
    scores = q @ k.T
    e = xp.exp(scores - scores.max(axis=-1, keepdims=True))
    p = e / e.sum(axis=-1, keepdims=True)

    def vjp(g):
        g_p = g @ v.T
        g_s = p * (g_p - (g_p * p).sum(axis=-1, keepdims=True))
        return g_s @ k, g_s.T @ q, p.T @ g

    return p @ v, vjp


def test_consistent_mistakes_pass_the_check_and_fall_to_an_oracle(torch):
    F = torch.nn.functional
    D = A.shape[-1]

    def unbiased(x):
        centred = x - x.mean(axis=-1, keepdims=True)
        return centred / (((centred * centred).sum(axis=-1, keepdims=True) / (D - 1)) + 1e-5).sqrt()

    weight, bias = torch.ones(D).double(), torch.zeros(D).double()
    for wrong, oracle, arrays in (
        (unregistered(attention_without_root_K), F.scaled_dot_product_attention, [A, B, C]),
        (unbiased, lambda x: F.layer_norm(x, (D,), weight, bias), [A]),
        (lambda x: x.sum(axis=-1), lambda x: x.mean(-1), [A]),
        (lambda x: ops.gelu(x, "tanh"), F.gelu, [A]),
    ):
        mt.gradcheck(wrong, *arrays, order=2)  # not a word
        tensors = [mt.tensor(a) for a in arrays]
        expected = oracle(*map(torch.tensor, arrays)).numpy()
        assert np.abs(wrong(*tensors).numpy() - expected).max() > 1e-5


# -- orders ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "f, arrays",
    [
        (ops.layer_norm, [A, ROW, NORMAL(5)]),
        (ops.softmax, [A]),
        (lambda q, k, v: ops.scaled_dot_product_attention(q, k, v, causal=True), [A, B, C]),
        (ops.gelu, [A]),
    ],
    ids=["layer_norm", "softmax", "attention", "gelu"],
)
def test_third_derivatives_agree_with_differences_of_the_second(f, arrays):
    report = mt.gradcheck(f, *arrays, order=3)
    assert len(report.worst) == 3 and max(report.worst) < 1e-9


def test_pytorchs_layer_norm_is_wrong_at_third_order_and_ours_is_not(torch):
    w, b, u, d = ROW, NORMAL(5), NORMAL((3, 5)), B

    def along(t):
        return (ops.layer_norm(mt.tensor(A) + t * mt.tensor(d), mt.tensor(w), mt.tensor(b)) * u).sum()

    first = mt.grad(along)
    second = mt.grad(lambda t: first(t))
    third = mt.grad(lambda t: second(t))
    true, doubt = difference(lambda t: second(np.array(t)).item())
    assert doubt < 1e-8
    assert abs(third(np.array(0.0)).item() - true) < 1e-9 * abs(true)

    def theirs(normalise):
        t = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)
        value = (normalise(torch.tensor(A) + t * torch.tensor(d)) * torch.tensor(u)).sum()
        for _ in range(3):
            (value,) = torch.autograd.grad(value, t, create_graph=True)
        return value.item()

    def composed(x):
        centred = x - x.mean(-1, keepdim=True)
        return centred / ((centred**2).mean(-1, keepdim=True) + 1e-5).sqrt() * torch.tensor(w) + torch.tensor(b)

    assert abs(theirs(composed) - true) < 1e-9 * abs(true)
    if torch.__version__.startswith("2.13."):
        fused = theirs(lambda x: torch.nn.functional.layer_norm(x, (5,), torch.tensor(w), torch.tensor(b)))
        assert abs(fused - true) > 1e-2 * abs(true)


# -- the differences ----------------------------------------------------------------------------------------------
def test_extrapolation_reaches_twelve_digits_and_knows_its_error():
    slope, doubt = difference(lambda t: math.exp(math.sin(3 * t + 0.4)))
    exact = 3 * math.cos(0.4) * math.exp(math.sin(0.4))
    assert abs(slope - exact) < 1e-11 and abs(slope - exact) <= 10 * doubt + 1e-13
    _, doubt = difference(lambda t: abs(t - 0.0005))
    assert doubt > 1e-3


def test_a_kink_nearby_is_hinted_at():
    with pytest.raises(GradcheckError, match="kink or a tie"):
        mt.gradcheck(ops.relu, np.array([0.0005, -1.0, 2.0]))


def test_the_worst_is_told_with_place_and_both_numbers():
    def at_one_place(xp, x):
        wrong = np.where(np.arange(15).reshape(3, 5) == 7, 1.001, 1.0)
        return x * 2, lambda g: (g * 2 * wrong,)

    with pytest.raises(GradcheckError, match=r"order 1 at x\[1, 2\]: backward gives .* relative error 9.99e-04"):
        mt.gradcheck(unregistered(at_one_place), A, names=["x"])


@pytest.mark.parametrize(
    "act, error, text",
    [
        (lambda: mt.gradcheck(ops.exp, A.astype("float32")), TypeError, "float64 arrays; argument 0 is float32"),
        (lambda: mt.gradcheck(ops.exp, np.array([np.nan])), ValueError, "finite"),
        (lambda: mt.gradcheck(ops.exp, A, order=0), ValueError, "from 1"),
        (lambda: mt.gradcheck(lambda x: x.to("float32"), A), TypeError, "returned float32"),
        (lambda: mt.gradcheck(lambda x: 3.0, A), TypeError, "returns Tensors; got float"),
        (lambda: mt.gradcheck(lambda x: ops.dropout(x, 0.5), A), GradcheckError, "same values each time"),
        (lambda: mt.gradcheck(lambda x: ops.softmax(x).sum(), A), GradcheckError, "zero proves nothing"),
        (lambda: mt.gradcheck(lambda x: (x * 0).exp(), A), GradcheckError, "zero proves nothing"),
        (lambda: mt.gradcheck(lambda x: x * 2, A, zero=[0]), GradcheckError, "said to be zero"),
    ],
)
def test_a_check_that_would_prove_nothing_is_refused(act, error, text):
    mt.manual_seed(0)
    with pytest.raises(error, match=text):
        act()


def test_a_report_counts_what_was_compared():
    report = mt.gradcheck(ops.multiply, A, ROW, order=2)
    assert report.points == 2 * (15 + 5 + 3) and report.worst[0] < 1e-11
