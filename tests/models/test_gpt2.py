"""The decoder-only model: against transformers' GPT-2 and GPT on the same weights, causality, initial spread."""

import dataclasses

import numpy as np
import pytest

from minitransformer import ops
from minitransformer.models import GPT2, GPT2Config
from tests.oracles import gpt2_state, gpt_state

IDS = np.array([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])
SMALL = GPT2Config(vocab_size=11, max_length=8, d_model=12, heads=3, layers=2, d_ff=20, dropout=0.0)


def test_gpt2_agrees_with_transformers(torch, transformers):
    config = transformers.GPT2Config(
        vocab_size=11, n_positions=8, n_embd=12, n_layer=2, n_head=3, n_inner=20, resid_pdrop=0, embd_pdrop=0,
        attn_pdrop=0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = transformers.GPT2LMHeadModel(config).double().eval()
    with torch.no_grad():
        for p in theirs.parameters():
            p += 0.1 * torch.randn_like(p)
    model = GPT2(SMALL).to("float64").eval()
    model.load_state_dict(gpt2_state(theirs))
    expected = theirs(torch.tensor(IDS)).logits
    np.testing.assert_allclose(model(IDS).numpy(), expected.detach().numpy(), atol=1e-10)
    ops.cross_entropy(model(IDS), IDS[:, ::-1]).backward()
    torch.nn.functional.cross_entropy(
        expected.reshape(-1, 11), torch.tensor(IDS[:, ::-1].copy()).reshape(-1)
    ).backward()
    np.testing.assert_allclose(
        model.embedding.weight.grad.numpy(), theirs.transformer.wte.weight.grad.numpy(), atol=1e-10
    )


def test_post_norm_agrees_with_the_first_gpt_of_transformers(torch, transformers):
    config = transformers.OpenAIGPTConfig(
        vocab_size=11, n_positions=8, n_embd=12, n_layer=2, n_head=3, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
    )
    torch.manual_seed(0)
    theirs = transformers.OpenAIGPTLMHeadModel(config).double().eval()
    with torch.no_grad():
        for p in theirs.parameters():
            p += 0.1 * torch.randn_like(p)
    model = GPT2(dataclasses.replace(SMALL, norm="post", d_ff=48)).to("float64").eval()
    model.load_state_dict(gpt_state(theirs))
    expected = theirs(torch.tensor(IDS)).logits
    np.testing.assert_allclose(model(IDS).numpy(), expected.detach().numpy(), atol=1e-10)
    ops.cross_entropy(model(IDS), IDS[:, ::-1]).backward()
    torch.nn.functional.cross_entropy(
        expected.reshape(-1, 11), torch.tensor(IDS[:, ::-1].copy()).reshape(-1)
    ).backward()
    np.testing.assert_allclose(
        model.embedding.weight.grad.numpy(), theirs.transformer.tokens_embed.weight.grad.numpy(), atol=1e-10
    )


def test_in_post_norm_nothing_follows_the_last_layers_norm():
    names = [name for name, _ in GPT2(dataclasses.replace(SMALL, norm="post")).named_parameters()]
    assert names == [name for name, _ in GPT2(SMALL).named_parameters() if not name.startswith("decoder.norm.")]
    assert GPT2(dataclasses.replace(SMALL, norm="post", layers=0)).decoder.norm is None


def test_a_config_saved_before_it_had_a_norm_is_pre_norm():
    fields = SMALL.to_dict()
    del fields["norm"]
    assert GPT2Config.from_dict(fields) == SMALL and SMALL.norm == "pre"


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_changing_the_future_moves_no_past_logit(norm):
    model = GPT2(dataclasses.replace(SMALL, norm=norm))
    before = model(IDS).numpy()
    for t in range(1, 5):
        changed = IDS.copy()
        changed[:, t:] = 7
        after = model(changed).numpy()
        np.testing.assert_array_equal(after[:, :t], before[:, :t])
        assert (after[:, t] != before[:, t]).any()


def test_weights_start_with_the_spreads_of_gpt2():
    model = GPT2(GPT2Config(vocab_size=100, max_length=8, d_model=128, heads=4, layers=8, d_ff=512))
    layer = model.decoder.layers[0]
    assert abs(layer.feed_forward.up.weight.numpy().std() - 0.02) < 1e-3
    assert abs(layer.feed_forward.down.weight.numpy().std() - 0.02 / 4) < 3e-4
    assert abs(model.embedding.weight.numpy().std() - 0.02) < 1e-3
    post = GPT2(GPT2Config(vocab_size=100, max_length=8, d_model=128, heads=4, layers=8, d_ff=512, norm="post"))
    assert abs(post.decoder.layers[0].feed_forward.down.weight.numpy().std() - 0.02) < 1e-3


def test_the_output_is_tied_to_the_embedding():
    names = [name for name, _ in GPT2(SMALL).named_parameters()]
    assert names[:2] == ["embedding.weight", "positions.weight"] and not any("output" in n for n in names)


def test_misuse_is_named():
    with pytest.raises(ValueError, match="max_length=8; got a sequence of 9"):
        GPT2(SMALL)(np.ones((1, 9), int))
    with pytest.raises(ValueError, match="batch, length"):
        GPT2(SMALL)(IDS[0])
