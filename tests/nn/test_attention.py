"""Multi-head attention against PyTorch's: self, cross, causal, padded; its weights; its masks."""

import tracemalloc

import numpy as np
import pytest

import minitransformer as mt
from minitransformer import nn
from tests.oracles import attention_state, shaken

D, H = 12, 3


def twins(torch, dtype):
    """Return the same attention twice: ours and PyTorch's."""
    theirs = torch.nn.MultiheadAttention(D, H, batch_first=True, dtype=getattr(torch, dtype))
    shaken(theirs, torch)
    ours = nn.Sequential(nn.MultiHeadAttention(D, H).to(dtype))
    ours.load_state_dict(attention_state(theirs, "0"))
    return ours[0], theirs


@pytest.mark.parametrize("dtype, tolerance", [("float64", 1e-10), ("float32", 1e-5)])
@pytest.mark.parametrize("kind", ["self", "cross", "causal", "padded", "causal and padded"])
def test_attention_agrees_with_torch(kind, dtype, tolerance, torch, rng):
    torch.manual_seed(0)
    ours, theirs = twins(torch, dtype)
    query = rng.standard_normal((2, 5, D)).astype(dtype)
    memory = rng.standard_normal((2, 7, D)).astype(dtype) if kind == "cross" else query
    key_mask = np.array([[True] * 5, [True, True, True, False, False]]) if "padded" in kind else None
    a, b = mt.tensor(query, requires_grad=True), torch.tensor(query, requires_grad=True)
    m, n = (a, b) if memory is query else (mt.tensor(memory), torch.tensor(memory))
    causal = "causal" in kind
    y, weights = ours(a, m, key_mask=key_mask, causal=causal, return_weights=True)
    expected, theirs_weights = theirs(
        b, n, n, average_attn_weights=False,
        key_padding_mask=None if key_mask is None else torch.tensor(~key_mask),
        attn_mask=torch.ones(5, 5).triu(1).bool() if causal else None,
    )  # fmt: skip
    cotangent = rng.standard_normal(y.shape).astype(dtype)
    y.backward(cotangent)
    expected.backward(torch.tensor(cotangent))
    np.testing.assert_allclose(y.numpy(), expected.detach().numpy(), atol=tolerance)
    np.testing.assert_allclose(weights.numpy(), theirs_weights.detach().numpy(), atol=tolerance)
    np.testing.assert_allclose(a.grad.numpy(), b.grad.numpy(), atol=tolerance * 10)
    joint = np.concatenate([getattr(ours, f"{c}_proj").weight.grad.numpy() for c in "qkv"])
    np.testing.assert_allclose(joint, theirs.in_proj_weight.grad.numpy(), atol=tolerance * 10)
    np.testing.assert_allclose(
        ours.out_proj.weight.grad.numpy(), theirs.out_proj.weight.grad.numpy(), atol=tolerance * 10
    )


def test_heads_see_slices_of_the_width_and_nothing_is_mixed_before_the_end(rng):
    attention = nn.MultiHeadAttention(D, H)
    x = mt.tensor(rng.standard_normal((2, 5, D)))
    split = attention.split(x)
    assert split.shape == (2, H, 5, D // H)
    np.testing.assert_array_equal(split.numpy()[:, 1], x.numpy()[:, :, 4:8])
    np.testing.assert_array_equal(attention.join(split).numpy(), x.numpy())


def test_the_scale_is_that_of_a_head_not_of_the_model(rng):
    attention = nn.MultiHeadAttention(D, H)
    x = rng.standard_normal((1, 5, D)).astype("float32")
    _, weights = attention(x, return_weights=True)
    q, k = (np.asarray(attention.split(p(x))) for p in (attention.q_proj, attention.k_proj))
    scores = q @ k.swapaxes(-1, -2) / np.sqrt(D // H)
    expected = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    np.testing.assert_allclose(np.asarray(weights), expected, rtol=1e-5)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_grouped_queries_agree_with_torch(kv_heads, torch, rng):
    """Each head of keys serves neighbouring heads of queries, as in PyTorch and in published weights."""
    attention = nn.MultiHeadAttention(8, 4, kv_heads=kv_heads).to("float64")
    assert attention.k_proj.weight.shape == attention.v_proj.weight.shape == (2 * kv_heads, 8)
    x = rng.standard_normal((2, 5, 8))
    q, k, v = (
        torch.tensor(p(x).numpy()).unflatten(-1, (n, 2)).transpose(1, 2)
        for p, n in ((attention.q_proj, 4), (attention.k_proj, kv_heads), (attention.v_proj, kv_heads))
    )
    mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    expected = attention.out_proj(mixed.transpose(1, 2).flatten(2).numpy())
    np.testing.assert_allclose(attention(x, causal=True).numpy(), expected.numpy(), atol=1e-12)


def test_a_bias_is_added_to_the_scores(torch, rng):
    q, k, v = (rng.standard_normal((2, 3, n, 4)) for n in (5, 7, 7))
    bias = rng.standard_normal((3, 5, 7))
    ours = mt.ops.scaled_dot_product_attention(*[mt.tensor(a) for a in (q, k, v)], bias=mt.tensor(bias))
    theirs = torch.nn.functional.scaled_dot_product_attention(*map(torch.tensor, (q, k, v)), torch.tensor(bias)[None])
    np.testing.assert_allclose(ours.numpy(), theirs.numpy(), atol=1e-12)


def test_padded_keys_change_nothing(rng):
    attention = nn.MultiHeadAttention(D, H)
    x = rng.standard_normal((1, 4, D)).astype("float32")
    padded = np.concatenate([x, 1e3 * np.ones((1, 3, D), "float32")], axis=1)
    mask = np.array([[True] * 4 + [False] * 3])
    np.testing.assert_allclose(attention(x, padded, key_mask=mask).numpy(), attention(x).numpy(), rtol=1e-5, atol=1e-6)


def test_dropout_is_off_in_eval(rng):
    attention = nn.MultiHeadAttention(D, H, dropout=0.5)
    x = rng.standard_normal((1, 4, D)).astype("float32")
    assert (attention(x).numpy() != attention(x).numpy()).any()
    attention.eval()
    np.testing.assert_array_equal(attention(x).numpy(), attention(x).numpy())


@pytest.mark.parametrize(
    "act, text",
    [
        (lambda x: nn.MultiHeadAttention(10, 3), "d_model=10, heads=3"),
        (lambda x: nn.MultiHeadAttention(10, 0), "heads=0"),
        (lambda x: nn.MultiHeadAttention(12, 4, kv_heads=3), "heads=4, kv_heads=3"),
        (lambda x: nn.MultiHeadAttention(12, 3, dropout=1.0), "0 <= p < 1"),
        (lambda x: nn.MultiHeadAttention(12, 3)(x[..., :11]), r"x \(2, 5, 11\)"),
        (lambda x: nn.MultiHeadAttention(12, 3)(x, key_mask=np.ones((2, 4), bool)), r"\(2, 4\)"),
        (lambda x: nn.MultiHeadAttention(12, 3)(x, key_mask=np.ones((2, 5))), "float64"),
    ],
)
def test_misuse_is_named(act, text):
    with pytest.raises(ValueError, match=text):
        act(np.ones((2, 5, 12), "float32"))


def test_a_window_never_makes_all_scores_unless_it_is_told_to(backend, rng):
    """4000² scores of one head are 61 MiB, and a step holds several such arrays; the blocks of a window, a few."""
    if backend != "numpy":
        pytest.skip("what NumPy allocates is counted")
    t = 4000
    x = mt.tensor(rng.standard_normal((1, t, 8)).astype("float32"))

    def peak(kind):
        attention = nn.MultiHeadAttention(8, 1, window=1001, kind=kind)
        tracemalloc.start()
        attention(x, causal=True).sum().backward()
        result = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return result

    assert peak("auto") < t * t * 4 / 8 < peak("dense")
