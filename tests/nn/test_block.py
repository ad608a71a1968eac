"""Encoder and decoder layers against PyTorch's, pre- and post-norm; what residuals and norms do."""

import numpy as np
import pytest

import minitransformer as mt
from minitransformer import nn
from tests.oracles import layer_state, shaken

D, H, F = 12, 3, 20


@pytest.mark.parametrize("dtype, tolerance", [("float64", 1e-10), ("float32", 1e-5)])
@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("act", ["relu", "gelu"])
def test_layers_agree_with_torch(norm, act, dtype, tolerance, torch, rng):
    torch.manual_seed(0)
    options = {"dropout": 0.0, "activation": act, "batch_first": True, "norm_first": norm == "pre"}
    options["dtype"] = getattr(torch, dtype)
    x, memory = (rng.standard_normal((2, n, D)).astype(dtype) for n in (5, 7))
    key_mask = np.array([[True] * 7, [True] * 4 + [False] * 3])
    ahead = torch.ones(5, 5).triu(1).bool()
    encoder = shaken(torch.nn.TransformerEncoderLayer(D, H, F, **options), torch)
    decoder = shaken(torch.nn.TransformerDecoderLayer(D, H, F, **options), torch)
    for theirs, ours, call, expect in (
        (
            encoder, nn.EncoderLayer(D, H, F, 0.0, norm, act),
            lambda layer, t: layer(t, key_mask=key_mask[:, 2:]),
            lambda layer, t: layer(t, src_key_padding_mask=torch.tensor(~key_mask[:, 2:])),
        ),
        (
            decoder, nn.DecoderLayer(D, H, F, 0.0, norm, act),
            lambda layer, t: layer(t, mt.tensor(memory), memory_mask=key_mask),
            lambda layer, t: layer(
                t, torch.tensor(memory), tgt_mask=ahead, memory_key_padding_mask=torch.tensor(~key_mask)
            ),
        ),
    ):  # fmt: skip
        ours.to(dtype).load_state_dict(layer_state(theirs))
        a, b = mt.tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
        y, expected = call(ours, a), expect(theirs, b)
        cotangent = rng.standard_normal(y.shape).astype(dtype)
        y.backward(cotangent)
        expected.backward(torch.tensor(cotangent))
        np.testing.assert_allclose(y.numpy(), expected.detach().numpy(), atol=tolerance)
        scale = max(1.0, float(b.grad.abs().max()))
        np.testing.assert_allclose(a.grad.numpy(), b.grad.numpy(), atol=tolerance * scale)
        for ours_grad, theirs_grad in (
            (ours.feed_forward.up.weight.grad, theirs.linear1.weight.grad),
            (ours.norm1.weight.grad, theirs.norm1.weight.grad),
        ):
            scale = max(1.0, float(theirs_grad.abs().max()))
            np.testing.assert_allclose(ours_grad.numpy(), theirs_grad.numpy(), atol=tolerance * scale)


def silent(layer):
    """Make every sublayer write zeros."""
    for name, parameter in layer.named_parameters():
        if "out_proj" in name or "down" in name:
            parameter.data[...] = 0
    return layer


def test_pre_norm_leaves_the_sum_alone_and_post_norm_normalises_it(rng):
    x = (3 + 2 * rng.standard_normal((2, 5, D))).astype("float32")
    pre, post = (silent(nn.EncoderLayer(D, H, F, norm=norm)) for norm in ("pre", "post"))
    np.testing.assert_array_equal(np.asarray(pre(x)), x)
    y = np.asarray(post(x))
    np.testing.assert_allclose(y.mean(-1), 0, atol=1e-5)
    np.testing.assert_allclose(y.var(-1), 1, atol=1e-3)


def test_a_pre_norm_stack_ends_with_a_norm_and_a_post_norm_stack_does_not():
    pre, post = (nn.Encoder([nn.EncoderLayer(D, H, F, norm=n)], D) for n in ("pre", "post"))
    assert isinstance(pre.norm, nn.LayerNorm) and post.norm is None


def test_the_decoder_never_looks_ahead(rng):
    layer = nn.DecoderLayer(D, H, F)
    x, memory = (rng.standard_normal((1, n, D)).astype("float32") for n in (6, 4))
    before = layer(x, memory).numpy()
    for t in range(1, 6):
        changed = x.copy()
        changed[:, t:] += 10
        after = layer(changed, memory).numpy()
        np.testing.assert_array_equal(after[:, :t], before[:, :t])
        assert (after[:, t:] != before[:, t:]).any()


def test_dropout_stands_on_weights_hidden_units_and_sublayers(rng):
    layer = nn.EncoderLayer(D, H, F, dropout=0.3)
    assert layer.self_attention.dropout == layer.feed_forward.drop.p == layer.drop.p == 0.3
    x = rng.standard_normal((2, 5, D)).astype("float32")
    assert (layer(x).numpy() != layer(x).numpy()).any()
    layer.eval()
    np.testing.assert_array_equal(layer(x).numpy(), layer(x).numpy())


def test_the_weights_are_handed_out_on_request(rng):
    layer = nn.DecoderLayer(D, H, F)
    seen, cross = [], []
    layer(rng.standard_normal((2, 5, D)), rng.standard_normal((2, 7, D)), seen=seen, seen_cross=cross)
    assert seen[0].shape == (2, H, 5, 5) and cross[0].shape == (2, H, 5, 7)
    np.testing.assert_allclose(cross[0].numpy().sum(-1), 1, rtol=1e-5)


def test_another_norm_is_refused():
    with pytest.raises(ValueError, match="pre or post; got 'sandwich'"):
        nn.EncoderLayer(D, H, F, norm="sandwich")


@pytest.mark.parametrize("layer", [nn.EncoderLayer, nn.DecoderLayer])
def test_dropout_of_a_layer_leaves_linear_attention_alone_and_acts_on_the_rest(layer, rng):
    made = layer(12, 3, 16, 0.5, kind="linear")
    attentions = [part for part in made.modules() if isinstance(part, nn.MultiHeadAttention)]
    assert attentions and all(a.dropout == 0 for a in attentions)
    assert made.drop.p == made.feed_forward.drop.p == 0.5
    inputs = [mt.tensor(rng.standard_normal((2, n, 12)).astype("float32")) for n in (5, 4)[: len(attentions)]]
    first, second = made(*inputs).numpy(), made(*inputs).numpy()
    assert (first != second).any()
    np.testing.assert_array_equal(made.eval()(*inputs).numpy(), made(*inputs).numpy())
