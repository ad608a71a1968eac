"""Attention's options: what is shared, normed, cut off, or computed in another way, each held by a form written out."""

import numpy as np
import pytest

import minitransformer as mt
from minitransformer import nn, ops, optim
from minitransformer.models import GPT2, GPT2Config, Transformer, TransformerConfig

D, H, K = 12, 3, 4


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def attention(**options):
    mt.manual_seed(3)
    made = nn.MultiHeadAttention(D, H, **options).to("float64")
    rng = np.random.default_rng(0)
    made.load_state_dict({name: a + 0.1 * rng.standard_normal(a.shape) for name, a in made.state_dict().items()})
    return made


def projected(linear, x):
    return x @ linear.weight.numpy().T + linear.bias.numpy()


def heads_of(x):
    return [x[..., h * K : (h + 1) * K] for h in range(H)]


def test_shared_queries_and_keys_make_symmetric_scores(rng):
    made, x = attention(share="qk"), rng.standard_normal((1, 5, D))
    q = heads_of(projected(made.q_proj, x[0]))
    _, weights = made(x, return_weights=True)
    for h in range(H):
        scores = q[h] @ q[h].T / np.sqrt(K)
        np.testing.assert_allclose(scores, scores.T)
        np.testing.assert_allclose(weights.numpy()[0, h], softmax(scores), atol=1e-12)
    assert [n for n, _ in made.named_parameters() if "k_proj" in n] == []


def test_one_projection_for_all_heads_is_weighted_by_each(rng):
    made, x = attention(share="heads"), rng.standard_normal((1, 5, D))
    assert made.q_proj.weight.shape == made.k_proj.weight.shape == (K, D) and made.mixing.shape == (H, K)
    q, k, v = (projected(p, x[0]) for p in (made.q_proj, made.k_proj, made.v_proj))
    mixed = []
    for h, v_h in enumerate(heads_of(v)):
        scores = q @ np.diag(made.mixing.numpy()[h]) @ k.T / np.sqrt(K)
        mixed.append(softmax(scores) @ v_h)
    expected = projected(made.out_proj, np.concatenate(mixed, axis=-1))
    np.testing.assert_allclose(made(x).numpy()[0], expected, atol=1e-12)


def test_the_tied_output_is_the_transpose_of_the_values_projection(rng):
    made, x = attention(tie_output=True), rng.standard_normal((1, 5, D))
    free = attention()
    free.load_state_dict({**made.state_dict(), "out_proj.weight": made.v_proj.weight.numpy().T})
    np.testing.assert_allclose(made(x).numpy(), free(x).numpy(), atol=1e-12)
    (made(x) * x).sum().backward()
    (free(x) * x).sum().backward()
    both = free.v_proj.weight.grad.numpy() + free.out_proj.weight.grad.numpy().T
    np.testing.assert_allclose(made.v_proj.weight.grad.numpy(), both, atol=1e-10)


def test_normed_queries_and_keys_bound_every_score(rng):
    made, x = attention(qk_norm=True), rng.standard_normal((2, 5, D))
    made.q_norm.weight.data[:] = made.k_norm.weight.data[:] = 1
    before = made(x, return_weights=True)[1].numpy()
    for p in (made.q_proj, made.k_proj):
        p.weight.data *= 1e4
        p.bias.data *= 1e4
    after = made(x, return_weights=True)[1].numpy()
    np.testing.assert_allclose(before, after, rtol=1e-3)  # their size is gone, but for the ε of a norm
    bound = np.sqrt(K)  # |q|·|k|/√K with |q| = |k| = √K
    assert after.min() > np.exp(-2 * bound) / 5


def test_normed_attention_is_qwens(transformers, torch, rng):
    from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention, Qwen3Config, Qwen3RotaryEmbedding

    config = Qwen3Config(
        hidden_size=D, num_attention_heads=H, num_key_value_heads=1, head_dim=K, attention_bias=True,
        max_position_embeddings=16, attn_implementation="eager", rms_norm_eps=1e-6, rope_theta=10000.0,
    )  # fmt: skip
    theirs = Qwen3Attention(config, 0).double()
    ours = nn.MultiHeadAttention(D, H, kv_heads=1, qk_norm=True, positions=nn.RotaryPositions(K, 16)).to("float64")
    with torch.no_grad():
        for p in theirs.parameters():
            p += 0.3 * torch.randn_like(p)
    names = {"q_proj": "q_proj", "k_proj": "k_proj", "v_proj": "v_proj", "out_proj": "o_proj"}
    names |= {"q_norm": "q_norm", "k_norm": "k_norm"}
    state = {}
    for mine, other in names.items():
        module = getattr(theirs, other)
        state[f"{mine}.weight"] = module.weight.detach().numpy()
        if getattr(module, "bias", None) is not None:
            state[f"{mine}.bias"] = module.bias.detach().numpy()
    ours.load_state_dict(state)
    x = rng.standard_normal((2, 7, D))
    places = Qwen3RotaryEmbedding(config)(torch.tensor(x), torch.arange(7)[None])
    mask = torch.full((7, 7), -torch.inf, dtype=torch.float64).triu(1)[None, None]
    pairs = {mine: getattr(theirs, other) for mine, other in names.items()}
    given = mt.tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    expected = theirs(given[1], tuple(p.double() for p in places), mask)[0]
    same_gradients(ours, pairs, ours(given[0], causal=True), expected, given, torch, 2e-6)  # their angles are float32


def same_gradients(ours, pairs, y, expected, given, torch, tolerance):
    """Compare what two modules gave, and the gradients of their input and of all parameters, by the names of ours."""
    g = np.random.default_rng(7).standard_normal(y.shape)
    y.backward(g)
    expected.backward(torch.tensor(g))
    np.testing.assert_allclose(y.numpy(), expected.detach().numpy(), atol=tolerance)
    np.testing.assert_allclose(given[0].grad.numpy(), given[1].grad.numpy(), atol=10 * tolerance)
    for name, parameter in ours.named_parameters():
        module, kind = name.rsplit(".", 1)
        wanted = getattr(pairs[module], kind).grad.numpy()
        np.testing.assert_allclose(parameter.grad.numpy(), wanted, atol=10 * tolerance, err_msg=name)


@pytest.mark.parametrize("act, theirs", [("swiglu", "silu"), ("geglu", "gelu")])
def test_a_gated_feed_forward_is_llamas(act, theirs, transformers, torch, rng):
    from transformers.models.llama.modeling_llama import LlamaConfig, LlamaMLP

    mlp = LlamaMLP(
        LlamaConfig(hidden_size=6, intermediate_size=10, hidden_act=theirs, mlp_bias=True, num_attention_heads=2)
    ).double()
    ours = nn.FeedForward(6, 10, act).to("float64")
    pairs = {"gate": mlp.gate_proj, "up": mlp.up_proj, "down": mlp.down_proj}
    ours.load_state_dict(
        {f"{n}.{w}": getattr(m, w).detach().numpy() for n, m in pairs.items() for w in ("weight", "bias")}
    )
    x = rng.standard_normal((2, 3, 6))
    given = mt.tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    same_gradients(ours, pairs, ours(given[0]), mlp(given[1]), given, torch, 1e-12)


@pytest.mark.parametrize("kind", ["dense", "blockwise", "auto"])
def test_a_window_hides_what_is_farther(kind, rng):
    made, x = attention(window=3, kind=kind), rng.standard_normal((1, 20, D))
    before = made(x, causal=True).numpy()
    x[0, 10] += 5
    changed = np.abs(made(x, causal=True).numpy() - before)[0].max(axis=-1) > 1e-12
    assert list(np.flatnonzero(changed)) == [10, 11, 12]
    weights = made(x, causal=True, return_weights=True)[1].numpy()[0, 0]
    assert (np.count_nonzero(weights, axis=1) == np.minimum(np.arange(20) + 1, 3)).all()


def test_blockwise_and_dense_modules_agree_with_every_mask_at_once(rng):
    x = rng.standard_normal((2, 20, D))
    here = np.arange(20) < np.array([[20], [13]])
    kinds = (
        lambda: None,
        lambda: nn.AlibiBias(H),
        lambda: nn.RelativeBias(H, 8, 20),
        lambda: nn.RotaryPositions(K, 32),
    )
    for positions in kinds:
        results = []
        for kind in ("dense", "blockwise"):
            made = attention(kind=kind, positions=positions(), window=9, kv_heads=1)
            results.append(made(x, key_mask=here, causal=True).numpy())
        np.testing.assert_allclose(*results, atol=1e-12)


def test_linear_attention_is_a_kind(rng):
    made, x = attention(kind="linear"), rng.standard_normal((2, 7, D))
    y, weights = made(x, causal=True, return_weights=True)
    v = made.split(made.v_proj(x))
    np.testing.assert_allclose(y.numpy(), made.out_proj(made.join(weights @ v)).numpy(), atol=1e-12)
    assert not np.triu(weights.numpy()[0, 0], 1).any()


CONFIGS = {
    "multi-query": {"kv_heads": 1}, "grouped": {"kv_heads": 2}, "shared qk": {"share": "qk"},
    "shared heads": {"share": "heads"}, "tied output": {"tie_output": True}, "one layer": {"distinct_layers": 1},
    "two of four": {"distinct_layers": 2}, "qk norm": {"qk_norm": True}, "window": {"window": 3},
    "blockwise": {"attention": "blockwise"}, "linear": {"attention": "linear"}, "swiglu": {"activation": "swiglu"},
    "recompute": {"recompute": True}, "pairs of neighbours": {"positions": "rotary", "rotary_pairing": "neighbours"},
    "rotary, scaled": {"positions": "rotary", "rotary_scaling": 2.0},
}  # fmt: skip


def language_model(**options):
    mt.manual_seed(1)
    return GPT2(GPT2Config(11, 16, D, 6, 4, 24, 0.0, **{"positions": "none", **options}))


def encoder_decoder(**options):
    mt.manual_seed(1)
    return Transformer(TransformerConfig(11, 11, D, 6, 4, 24, 0.0, 16, "pre", **{"activation": "relu", **options}))


@pytest.mark.parametrize("make", [language_model, encoder_decoder])
@pytest.mark.parametrize("name", CONFIGS)
def test_one_field_of_a_config_changes_a_model_that_trains_saves_and_loads(name, make, rng):
    plain, model = make(), make(**CONFIGS[name])
    ids = rng.integers(1, 11, (2, 9))
    args = (ids,) if make is language_model else (ids, ids)
    if name not in ("blockwise", "recompute"):  # these compute the same in another way
        assert np.abs(model(*args).numpy() - plain(*args).numpy()).max() > 1e-6
    state = {k: v.copy() for k, v in model.state_dict().items()}
    memory = [id(v) for v in model.state_dict().values()]
    assert len(set(memory)) == len(memory) == len(model.parameters())
    optimizer = optim.AdamW(model.parameters(), lr=1e-2)
    first = None
    for _ in range(8):
        loss = ops.cross_entropy(model(*args), ids)
        first = loss.item() if first is None else first
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < first
    after = model(*args).numpy()
    other = make(**CONFIGS[name])
    other.load_state_dict(model.state_dict())
    np.testing.assert_array_equal(other(*args).numpy(), after)
    assert any((state[k] != v).any() for k, v in model.state_dict().items())


@pytest.mark.parametrize("name, share", [("one layer", 1), ("two of four", 2)])
def test_layers_that_are_shared_are_stored_and_stepped_once(name, share, rng):
    model = language_model(**CONFIGS[name])
    layers = list(model.decoder.layers)
    assert len(layers) == 4 and len({id(layer) for layer in layers}) == share
    assert {n.split(".")[2] for n in model.state_dict() if "layers" in n} == {str(i) for i in range(0, 4, 4 // share)}
    before = layers[0].feed_forward.up.weight.numpy().copy()
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    ids = rng.integers(0, 11, (2, 9))
    ops.cross_entropy(model(ids), ids).backward()
    gradient = layers[0].feed_forward.up.weight.grad.numpy().copy()
    optimizer.step()
    np.testing.assert_allclose(layers[0].feed_forward.up.weight.numpy(), before - 0.1 * gradient, rtol=1e-6)
    other = language_model(**CONFIGS[name])
    other.load_state_dict(model.state_dict())
    assert len({id(layer) for layer in other.decoder.layers}) == share


def test_what_sharing_saves_is_what_it_should():
    def count(**options):
        return sum(p.size for p in language_model(**options).parameters())

    layer = 4 * (D * D + D) + 2 * D * 24 + 24 + D + 4 * D  # attention, feed-forward, two norms
    assert count() - count(distinct_layers=1) == 3 * layer
    assert count() - count(share="qk") == 4 * (D * D + D)
    assert count() - count(tie_output=True) == 4 * D * D
    assert count() - count(kv_heads=1) == 4 * 2 * (D * D + D) * 5 // 6
    assert count() - count(share="heads") == 4 * (2 * (D * D + D) * 5 // 6 - D)


@pytest.mark.parametrize(
    "make, text",
    [
        (lambda: nn.MultiHeadAttention(12, 3, share="all"), "share is one of none, qk, heads; got 'all'"),
        (lambda: nn.MultiHeadAttention(12, 3, kind="flash"), "attention is one of auto, dense, blockwise, linear"),
        (lambda: nn.MultiHeadAttention(12, 3, kv_heads=1, share="qk"), "as many heads of keys as of queries"),
        (lambda: nn.MultiHeadAttention(12, 3, kv_heads=1, tie_output=True), "as many heads of keys as of queries"),
        (lambda: nn.MultiHeadAttention(12, 3, window=-2), "window is a number of keys, 0 for all; got -2"),
        (lambda: nn.MultiHeadAttention(12, 3, kind="linear", window=4), "no weights to cut off, drop or bias"),
        (lambda: attention(kind="linear")(np.ones((1, 2, D)), mask=np.ones((2, 2), bool)), "no scores to mask"),
        (lambda: GPT2Config(distinct_layers=13), "at most layers=12; got 13"),
        (lambda: GPT2Config(share="half"), "share is one of"),
        (lambda: GPT2Config(rotary_pairing="both"), "got 'both'; write rotary_pairing=halves"),
        (lambda: GPT2Config(activation=["relu"]), r"geglu; got \['relu'\]; write activation=relu"),
        (lambda: nn.FeedForward(4, 8, ["relu"]), r"geglu; got \['relu'\]"),
        (lambda: nn.activation.activation({}), "an activation is one of .*; got {}"),
        (lambda: nn.MultiHeadAttention(12, 3, positions="rotary"),
         r"takes a module, or None; got 'rotary'; write positions=nn.RotaryPositions\(4, max_length\)"),
        (lambda: nn.MultiHeadAttention(12, 3, positions=nn.AlibiBias(4)), "got one for 4 in an attention of 3"),
        (lambda: nn.MultiHeadAttention(12, 3, positions=nn.AlibiBias(1)), "got one for 1 in an attention of 3"),
        (lambda: nn.MultiHeadAttention(12, 3, positions=nn.RelativeBias(2)), "got one for 2 in an attention of 3"),
        (lambda: attention()(np.ones((1, 2, D)), causal="no"), "causal is True or False; got 'no'"),
        (lambda: GPT2Config(rotary_scaling=0), "rotary_scaling is a positive number; got 0"),
        (lambda: GPT2Config(recompute=1), "recompute is true or false; got 1"),
        (lambda: GPT2Config(attention="linear", positions="alibi", dropout=0.0), "a bias of positions"),
        (lambda: nn.FeedForward(4, 8, "mish"), "swiglu, geglu; got 'mish'"),
    ],
)  # fmt: skip
def test_options_that_exclude_one_another_are_named(make, text):
    with pytest.raises(ValueError, match=text):
        make()
