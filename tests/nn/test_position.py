"""Positions: the table of the paper, what a shift does, the end of the table."""

import math

import numpy as np
import pytest

import minitransformer as mt
from minitransformer import nn, ops
from minitransformer.models import GPT2, GPT2Config
from minitransformer.nn.position import alibi_slopes, relative_buckets, sinusoids


def test_the_table_is_that_of_the_paper():
    table = sinusoids(50, 8)
    for t in (0, 1, 7, 49):
        for i in range(4):
            angle = t / 10000 ** (2 * i / 8)
            np.testing.assert_allclose(table[t, 2 * i : 2 * i + 2], [np.sin(angle), np.cos(angle)], atol=1e-12)
    assert sinusoids(5, 7).shape == (5, 7)  # an odd width loses its last cosine


def test_a_shift_is_a_rotation_of_each_pair():
    table, shift = sinusoids(60, 6).reshape(60, 3, 2), 7
    angle = shift / 10000 ** (2 * np.arange(3) / 6)
    sin, cos = table[:-shift, :, 0], table[:-shift, :, 1]
    moved = np.stack([sin * np.cos(angle) + cos * np.sin(angle), cos * np.cos(angle) - sin * np.sin(angle)], -1)
    np.testing.assert_allclose(table[shift:], moved, atol=1e-12)


@pytest.mark.parametrize("kind", [nn.SinusoidalPositions, nn.LearnedPositions])
def test_positions_start_where_told_and_end_with_the_table(kind, rng):
    module = kind(10, 6)
    x = rng.standard_normal((2, 10, 6)).astype("float32")
    whole = module(x)
    np.testing.assert_array_equal(np.asarray(module(x[:, 4:7], start=4)), np.asarray(whole)[:, 4:7])
    assert np.asarray(whole).dtype == np.float32
    with pytest.raises(ValueError, match="max_length=10; got a sequence of 11"):
        module(x[:, :6], start=5)


def test_no_positions_add_nothing(rng):
    x = rng.standard_normal((2, 3, 6))
    assert nn.NoPositions()(x) is x


# -- positions that act in attention ----------------------------------------------------------------------------------
def same_value_and_gradient(ours, theirs, x, torch, rng):
    """Compare two functions of one array, and the gradients of both for one cotangent."""
    mine, other = mt.tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    y, wanted = ours(mine), theirs(other)
    g = rng.standard_normal(y.shape)
    y.backward(g)
    wanted.backward(torch.tensor(g))
    np.testing.assert_allclose(y.numpy(), wanted.detach().numpy(), atol=2e-6)  # their angles are float32
    np.testing.assert_allclose(mine.grad.numpy(), other.grad.numpy(), atol=2e-6)


@pytest.mark.parametrize("start", [0, 5])
@pytest.mark.parametrize("scaling", [1.0, 4.0, 2.5])
def test_rotary_is_llamas_scaled_too(scaling, start, transformers, torch, rng):
    from transformers.models.llama.modeling_llama import LlamaConfig, LlamaRotaryEmbedding, apply_rotary_pos_emb

    kind = {"rope_type": "default"} if scaling == 1 else {"rope_type": "linear", "factor": scaling}
    config = LlamaConfig(
        hidden_size=24, num_attention_heads=3, max_position_embeddings=16, rope_parameters={**kind, "rope_theta": 500.0}
    )
    rotary, positions = LlamaRotaryEmbedding(config), torch.arange(start, start + 7)[None]

    def theirs(x):
        return apply_rotary_pos_emb(x, x, *rotary(x, positions))[0]

    ours = nn.RotaryPositions(8, 16, base=500.0, scaling=scaling)
    same_value_and_gradient(lambda x: ours(x, start), theirs, rng.standard_normal((2, 3, 7, 8)), torch, rng)


@pytest.mark.parametrize("start", [0, 5])
def test_neighbours_turn_as_in_gpt_j(start, transformers, torch, rng):
    from transformers.models.gptj import modeling_gptj as gptj

    if not hasattr(gptj, "GPTJRotaryEmbedding"):
        pytest.skip("this version of transformers has no GPTJRotaryEmbedding")
    rotary = gptj.GPTJRotaryEmbedding(gptj.GPTJConfig(n_embd=24, n_head=3, rotary_dim=8, n_positions=16))

    def theirs(x):  # their heads stand behind the positions
        x = x.transpose(1, 2)
        return gptj.apply_rotary_pos_emb(x, *rotary(x, torch.arange(start, start + 7)[None])).transpose(1, 2)

    ours = nn.RotaryPositions(8, 16, pairing="neighbours")
    same_value_and_gradient(lambda x: ours(x, start), theirs, rng.standard_normal((2, 3, 7, 8)), torch, rng)


@pytest.mark.parametrize("start", [0, 5])
def test_halves_turn_as_in_gpt_neox(start, transformers, torch, rng):
    from transformers.models.gpt_neox.modeling_gpt_neox import (
        GPTNeoXConfig,
        GPTNeoXRotaryEmbedding,
        apply_rotary_pos_emb,
    )

    turned = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0}
    config = GPTNeoXConfig(
        hidden_size=24, num_attention_heads=3, max_position_embeddings=16, rotary_pct=1.0, rope_parameters=turned
    )
    rotary, positions = GPTNeoXRotaryEmbedding(config), torch.arange(start, start + 7)[None]

    def theirs(x):
        return apply_rotary_pos_emb(x, x, *rotary(x, positions))[0]

    ours = nn.RotaryPositions(8, 16)
    same_value_and_gradient(lambda x: ours(x, start), theirs, rng.standard_normal((2, 3, 7, 8)), torch, rng)


def test_the_papers_pairing_is_llamas_with_the_numbers_in_another_order(rng):
    x = rng.standard_normal((2, 5, 6))
    order = [0, 2, 4, 1, 3, 5]  # neighbours, taken apart into halves
    halves, neighbours = (nn.RotaryPositions(6, 5, pairing=p) for p in ("halves", "neighbours"))
    np.testing.assert_allclose(neighbours(x)[..., order], halves(np.ascontiguousarray(x[..., order])), atol=1e-12)


@pytest.mark.parametrize("pairing", ["halves", "neighbours"])
def test_rotary_keeps_lengths_and_knows_only_distances(pairing, rng):
    rotary = nn.RotaryPositions(6, 30, pairing=pairing)
    q, k = rng.standard_normal((2, 6))
    products = {}
    for i, j in ((3, 1), (12, 10), (25, 23), (3, 2)):
        turned = rotary(q[None], i) @ rotary(k[None], j).T
        products[i, j] = turned.item()
        np.testing.assert_allclose(np.linalg.norm(rotary(q[None], i)), np.linalg.norm(q), rtol=1e-12)
    np.testing.assert_allclose([products[12, 10], products[25, 23]], products[3, 1], rtol=1e-10)
    assert abs(products[3, 2] - products[3, 1]) > 1e-3


@pytest.mark.parametrize("kind", ["rotary", "alibi", "relative"])
def test_attention_with_relative_positions_does_not_see_a_shift(kind, rng):
    """The same tokens further on, with padding before them that is not looked at, give the same output."""
    places = {"rotary": lambda: nn.RotaryPositions(4, 20), "alibi": lambda: nn.AlibiBias(3),
              "relative": lambda: nn.RelativeBias(3, 8, 10)}[kind]()  # fmt: skip
    attention = nn.MultiHeadAttention(12, 3, positions=places)
    x = rng.standard_normal((1, 5, 12)).astype("float32")
    shifted = np.concatenate([rng.standard_normal((1, 6, 12)).astype("float32"), x], axis=1)
    real = np.array([[False] * 6 + [True] * 5])
    for causal in (True, False):
        there = attention(shifted, key_mask=real, causal=causal).numpy()[:, 6:]
        np.testing.assert_allclose(there, attention(x, causal=causal).numpy(), atol=2e-6)
    mixed = attention(x[:, ::-1].copy()).numpy()[:, ::-1]
    if kind != "alibi":  # which sees distances alone, and no direction
        assert np.abs(mixed - attention(x).numpy()).max() > 1e-4


def test_the_slopes_of_alibi_are_those_of_the_paper():
    np.testing.assert_allclose(alibi_slopes(8), [2.0**-i for i in range(1, 9)])
    np.testing.assert_allclose(alibi_slopes(16), [2.0 ** (-i / 2) for i in range(1, 17)])
    assert alibi_slopes(12) == alibi_slopes(8) + alibi_slopes(16)[0::2][:4]
    assert alibi_slopes(1) == [2.0**-8]


def test_the_bias_of_alibi_grows_with_distance():
    bias = ops.by_distance(nn.AlibiBias(2)(3, 4, np.ones(1, "float32")), queries=3)
    assert bias.dtype == np.float32
    np.testing.assert_allclose(bias[0], -(2.0**-4) * np.array([[1, 0, 1, 2], [2, 1, 0, 1], [3, 2, 1, 0]]))


@pytest.mark.parametrize("heads", [1, 2, 6, 8, 12])
def test_what_alibi_does_to_weights_is_what_it_does_in_bloom(heads, transformers, torch, rng):
    """Theirs is slope·j, ours −slope·(i − j): a number for the whole row, which no softmax sees. Gradients by q·k."""
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor

    real = np.arange(9) >= np.array([[0], [3]])  # the second row is padded at its left
    look = np.tril(np.ones((9, 9), dtype=bool)) & real[:, None, None, :]
    look |= np.eye(9, dtype=bool)  # what pads looks at itself
    alibi = build_alibi_tensor(torch.tensor(real), heads, torch.float64).reshape(2, heads, 1, 9)
    scores = rng.standard_normal((2, heads, 9, 9))
    mine, other = mt.tensor(scores, requires_grad=True), torch.tensor(scores, requires_grad=True)
    hidden = np.where(look, 0.0, -1e30)
    bias = ops.by_distance(nn.AlibiBias(heads)(9, 9, mine.data), queries=9)
    ours = ops.softmax(mine + bias + mt.tensor(hidden))
    theirs = torch.softmax(other + alibi + torch.tensor(hidden), dim=-1)
    g = rng.standard_normal(scores.shape)
    ours.backward(g)
    theirs.backward(torch.tensor(g))
    np.testing.assert_allclose(ours.numpy(), theirs.detach().numpy(), atol=1e-6)  # their slopes are float32
    np.testing.assert_allclose(mine.grad.numpy(), other.grad.numpy(), atol=1e-6)
    plain = torch.softmax(torch.tensor(scores + hidden), dim=-1).numpy()
    assert np.abs(ours.numpy() - plain).max() > 1e-3


@pytest.mark.parametrize("queries, keys", [(9, 9), (40, 40), (4, 30), (1, 30)])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_the_learned_bias_is_t5s_and_so_is_the_gradient_of_its_table(
    bidirectional, queries, keys, transformers, torch, rng
):
    from transformers.models.t5.modeling_t5 import T5Attention, T5Config

    config = T5Config(
        d_model=12, d_kv=4, num_heads=3, relative_attention_num_buckets=8, relative_attention_max_distance=20,
        is_decoder=not bidirectional,
    )  # fmt: skip
    theirs = T5Attention(config, has_relative_attention_bias=True, layer_idx=0).double()
    ours = nn.RelativeBias(3, 8, 20, bidirectional).to("float64")
    ours.load_state_dict({"weight": rng.standard_normal((8, 3))})
    with torch.no_grad():
        theirs.relative_attention_bias.weight.copy_(torch.tensor(ours.weight.numpy()))
    bias = ops.by_distance(ours(queries, keys), queries=queries)
    wanted = theirs.compute_bias(queries, keys, past_seen_tokens=keys - queries)[0]
    g = rng.standard_normal((3, queries, keys))
    bias.backward(g)
    wanted.backward(torch.tensor(g))
    np.testing.assert_array_equal(bias.numpy(), wanted.detach().numpy())
    np.testing.assert_allclose(ours.weight.grad.numpy(), theirs.relative_attention_bias.weight.grad.numpy(), atol=1e-12)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("buckets, distance", [(32, 128), (8, 20)])
def test_buckets_are_those_of_t5(bidirectional, buckets, distance, transformers, torch):
    from transformers.models.t5.modeling_t5 import T5Attention

    apart = torch.arange(300)[None, :] - torch.arange(300)[:, None]
    expected = T5Attention._relative_position_bucket(apart, bidirectional, buckets, distance)
    np.testing.assert_array_equal(relative_buckets(apart.numpy(), buckets, distance, bidirectional), expected.numpy())


@pytest.mark.parametrize("positions", ["learned", "sinusoidal", "rotary", "alibi", "relative"])
def test_a_language_model_has_positions_by_one_field(positions, rng):
    model = GPT2(GPT2Config(11, 16, 12, 3 if positions != "rotary" else 2, 2, 24, 0.0, positions=positions))
    ids = rng.integers(0, 11, (2, 9))
    logits = model(ids).numpy()
    later = ids.copy()
    later[:, 6:] = (later[:, 6:] + 1) % 11
    np.testing.assert_array_equal(model(later).numpy()[:, :6], logits[:, :6])  # no look ahead
    swapped = ids[:, [1, 0, *range(2, 9)]]
    assert np.abs(model(swapped).numpy()[:, -1] - logits[:, -1]).max() > 1e-6  # the order of the past is seen


def test_relative_positions_are_shared_by_the_layers_of_a_stack():
    model = GPT2(GPT2Config(11, 16, 12, 3, 2, 24, positions="relative"))
    names = [name for name, _ in model.named_parameters() if "positions" in name]
    assert names == ["decoder.layers.0.self_attention.positions.weight"]
    first, second = (layer.self_attention.positions for layer in model.decoder.layers)
    assert first is second


@pytest.mark.parametrize(
    "act, text",
    [
        (lambda: nn.RotaryPositions(5, 8), "turn pairs; got a width of 5"),
        (lambda: nn.RotaryPositions(6, 8, scaling=0), "are positive"),
        (lambda: nn.RotaryPositions(6, 8, scaling=math.inf), "got 10000.0 and inf"),
        (lambda: nn.RotaryPositions(6, 8, scaling=math.nan), "got 10000.0 and nan"),
        (lambda: nn.RotaryPositions(6, 8, base=math.inf), "got inf and 1.0"),
        (lambda: nn.RotaryPositions(6, 8, scaling="2"), "got 10000.0 and '2'"),
        (lambda: nn.RotaryPositions(6, 8, pairing="foo"), "got 'foo'; write pairing=halves"),
        (lambda: nn.RelativeBias(0), "at least one head; got 0"),
        (lambda: nn.AlibiBias(2.5), "at least one head; got 2.5"),
        (lambda: nn.RotaryPositions(6, 8)(np.ones((9, 6))), "max_length=8; got a sequence of 9"),
        (
            lambda: ops.rotary(np.ones((3, 4)), np.ones((3, 2)), np.ones((3, 2)), "both"),
            "halves, neighbours; got 'both'",
        ),
        (lambda: ops.rotary(np.ones((3, 4)), np.ones((2, 2)), np.ones((2, 2))), r"cos \(2, 2\)"),
        (lambda: nn.AlibiBias(0), "at least one head"),
        (lambda: nn.RelativeBias(2, 32, 16), "max_distance beyond"),
        (lambda: GPT2Config(positions="up"), "got 'up'"),
        (lambda: GPT2Config(d_model=12, heads=4, positions="rotary"), "got 3 numbers a head"),
    ],
)
def test_misuse_of_positions_is_named(act, text):
    with pytest.raises(ValueError, match=text):
        act()


@pytest.mark.parametrize("kind", ["learned", "sinusoidal"])
def test_each_row_may_start_at_its_own_place(kind, rng):
    positions = nn.LearnedPositions(9, 6) if kind == "learned" else nn.SinusoidalPositions(9, 6)
    x = mt.tensor(rng.standard_normal((3, 4, 6)).astype("float32"))
    starts = [5, 0, -2]  # the last: two tokens that only pad, then positions 0 and 1
    y = positions(x, mt.tensor(np.array(starts)).data).numpy()
    for row, start in enumerate(starts[:2]):
        np.testing.assert_array_equal(y[row], positions(x[row : row + 1], start).numpy()[0])
    np.testing.assert_array_equal(y[2, 2:], positions(x[2:, 2:], 0).numpy()[0])
    with pytest.raises(ValueError, match="max_length=9; got a sequence of 10"):
        positions(x, mt.tensor(np.array([0, 6, 1])).data)
    if kind == "learned":
        positions(x, mt.tensor(np.array(starts)).data).sum().backward()
        counts = positions.weight.grad.numpy()[:, 0]
        np.testing.assert_array_equal(counts, [4, 2, 1, 1, 0, 1, 1, 1, 1])
