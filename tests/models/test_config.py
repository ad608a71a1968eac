"""Configs: through JSON and back, and what they refuse."""

import json

import pytest

from minitransformer.models import GPT2Config, TransformerConfig


def test_the_defaults_are_the_papers_base_model():
    c = TransformerConfig()
    assert (c.d_model, c.heads, c.layers, c.d_ff, c.dropout, c.norm, c.activation) == (
        512,
        8,
        6,
        2048,
        0.1,
        "post",
        "relu",
    )
    assert c.tie_embeddings == "all" and c.positions == "sinusoidal"


def test_a_config_goes_through_json():
    c = TransformerConfig(d_model=64, heads=4)
    assert TransformerConfig.from_dict(json.loads(json.dumps(c.to_dict()))) == c


@pytest.mark.parametrize(
    "make, text",
    [
        (lambda: TransformerConfig(d_model=64, heads=5), "d_model=64, heads=5"),
        (lambda: TransformerConfig(layers=-1), "layers is an integer of at least 0; got -1"),
        (lambda: TransformerConfig(d_model=64.0), "d_model is an integer"),
        (lambda: TransformerConfig(norm="mid"), "post, pre; got 'mid'"),
        (lambda: TransformerConfig(positions="rope"), "got 'rope'"),
        (lambda: TransformerConfig(source_vocab=5, target_vocab=6), "one vocabulary; got 5 and 6"),
        (lambda: TransformerConfig(dropout=1.5), "dropout"),
        (lambda: TransformerConfig(activation="tanhh"), "activation"),
        (lambda: TransformerConfig.from_dict({"width": 3}), "got width"),
        (lambda: GPT2Config(d_model=10, heads=3), "heads=3"),
        (lambda: GPT2Config(dropout=-1), "dropout"),
        (lambda: TransformerConfig(activation=[1]), r"an activation is one of .*; got \[1\]; write activation=relu"),
        (lambda: GPT2Config(activation={}), "an activation is one of .*; got {}"),
        (lambda: TransformerConfig(11, 11, pad_id=11), "source's 11 tokens, counted from 0; got 11; write pad_id=0"),
        (lambda: GPT2Config(norm="mid"), "norm is one of pre, post; got 'mid'; write norm=pre"),
        (lambda: GPT2Config(tie_embeddings="foo"), "tie_embeddings is true or false; got 'foo'"),
    ],
)
def test_impossible_values_are_named(make, text):
    with pytest.raises(ValueError, match=text) as caught:
        make()
    assert "\n" not in str(caught.value)
