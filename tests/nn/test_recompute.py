"""A layer that is computed again: the same training, less kept, the same names."""

import numpy as np
import pytest

import minitransformer as mt
from minitransformer import nn, ops
from minitransformer.gradcases import functional
from minitransformer.models import GPT2, GPT2Config, Transformer, TransformerConfig

SIZES = {"d_model": 12, "heads": 2, "layers": 3, "d_ff": 24, "dropout": 0.2, "max_length": 16}


def language_model(**options):
    mt.manual_seed(0)
    return GPT2(GPT2Config(vocab_size=11, **SIZES, **options))


def loss_and_gradients(model, rng_seed=0):
    ids = np.random.default_rng(rng_seed).integers(1, 11, (2, 9))
    mt.manual_seed(7)
    x = model.features(ids) if isinstance(model, GPT2) else model.features(ids, *model.encode(ids))
    loss = ops.cross_entropy(ops.linear(x, model.output_weight), ids)
    loss.backward()
    return loss.item(), [p.grad.numpy() for p in model.parameters()]


def encoder_decoder(**options):
    mt.manual_seed(0)
    return Transformer(TransformerConfig(11, 11, **SIZES, **options))


@pytest.mark.parametrize("make", [language_model, encoder_decoder])
@pytest.mark.parametrize("options", [{}, {"distinct_layers": 1}])
def test_training_is_the_same_to_the_bit(make, options):
    plain, again = make(**options), make(recompute=True, **options)
    assert list(plain.state_dict()) == list(again.state_dict())
    again.load_state_dict(plain.state_dict())
    (loss, gradients), (loss2, gradients2) = loss_and_gradients(plain), loss_and_gradients(again)
    assert loss == loss2
    for a, b in zip(gradients, gradients2, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)  # shared ones add up in another order


def test_half_precision_is_half_again(rng):
    layer, x = (
        nn.Recompute(nn.Linear(3, 5)),
        mt.tensor(rng.standard_normal((2, 3)), requires_grad=True, dtype="float32"),
    )
    with mt.autocast():
        y = layer(x)
    assert y.dtype == np.float16
    y.backward(np.ones((2, 5), "float16"))  # outside autocast, as the training loop does
    assert x.grad is not None and layer.weight.grad is not None


def kept_bytes(root):
    """Return the bytes of all arrays that a graph holds on to, each memory once."""
    seen, nodes, todo = {}, set(), [root]
    while todo:
        node = todo.pop()
        if node is None or node in nodes:
            continue
        nodes.add(node)
        todo += node.parents
        cells = list(node.vjp.__closure__ or ()) if node.vjp else []
        while cells:
            value = cells.pop().cell_contents
            for item in value if isinstance(value, list | tuple) else [value]:
                if hasattr(item, "nbytes"):
                    base = item if item.base is None else item.base
                    seen[id(base)] = base.nbytes
    return sum(seen.values())


def test_a_stack_keeps_the_inputs_of_its_layers_alone(rng):
    ids = rng.integers(0, 11, (4, 16))
    plain, again = (
        kept_bytes(model.features(ids).node) for model in (language_model(), language_model(recompute=True))
    )
    assert again < plain / 3


def test_it_stands_for_its_module_and_looks_on_as_it_does(rng):
    layer = nn.Recompute(nn.EncoderLayer(6, 2, 8))
    assert layer.norm == "pre" and layer.self_attention.heads == 2
    seen = []
    layer(mt.tensor(rng.standard_normal((1, 4, 6)).astype("float32")), seen=seen)
    assert seen[0].shape == (1, 2, 4, 4)
    with pytest.raises(AttributeError, match="cross"):
        layer.cross  # noqa: B018


def test_tensors_in_the_place_of_parameters_are_there_again_on_the_way_back(rng):
    """A module as a function of its parameters: what stood there in the forward pass, and not what stands there now."""
    results, point = [], rng.standard_normal((2, 5, 6))
    for wrap in (nn.Recompute, nn.Sequential):  # the one computes again, the other does not
        mt.manual_seed(0)
        layer = wrap(nn.EncoderLayer(6, 2, 7, 0.3, "pre", "gelu", tie_output=True))
        f, parameters, _ = functional(layer)
        x, *leaves = (mt.tensor(a, requires_grad=True) for a in (point, *parameters))
        mt.manual_seed(7)
        y = f([t * t for t in leaves], x)  # and they need not be leaves
        (y * y).sum().backward()
        assert all(p.grad is None for p in layer.parameters())
        results.append([y.numpy(), x.grad.numpy(), *[t.grad.numpy() for t in leaves]])
    for again, plain in zip(*results, strict=True):
        np.testing.assert_allclose(again, plain, rtol=0, atol=1e-12 * max(np.abs(plain).max(), 1))


def test_a_parameter_that_was_replaced_before_the_way_back_is_the_one_that_gets_the_gradient(rng):
    layer, x = nn.Recompute(nn.Linear(3, 2)), mt.tensor(np.ones((1, 3), "float32"))
    used = layer.module.weight
    y = layer(x)
    layer.module.weight = nn.Parameter(np.zeros((2, 3), "float32"))
    y.sum().backward()
    np.testing.assert_array_equal(used.grad.numpy(), 1)
    assert layer.module.weight.grad is None and layer.module.weight is not used
