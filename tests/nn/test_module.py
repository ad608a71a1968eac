"""Module: parameters in the order of assignment, state by name, modes, moving."""

import numpy as np
import pytest

import minitransformer as mt
from minitransformer import nn


class Two(nn.Module):
    def __init__(self):
        self.second = nn.Linear(2, 3)
        self.first = nn.Linear(3, 2, bias=False)
        self.tied = self.second
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        return self.first(self.drop(self.second(x)))


def test_parameters_come_in_the_order_of_assignment_and_each_once():
    names = [name for name, _ in Two().named_parameters()]
    assert names == ["second.weight", "second.bias", "first.weight"]


def test_state_goes_out_and_in_by_name():
    a, b = Two(), Two()
    assert (a.first.weight.numpy() != b.first.weight.numpy()).any()
    b.load_state_dict(a.state_dict())
    x = np.ones((4, 2), "float32")
    np.testing.assert_array_equal(a.eval()(x).numpy(), b.eval()(x).numpy())


@pytest.mark.parametrize(
    "change, text",
    [
        (lambda s: s.pop("first.weight"), "missing .*first.weight"),
        (lambda s: s.update(third=np.ones(2)), "unknown .*third"),
        (lambda s: s.update({"first.weight": np.ones((2, 2))}), r"got \(2, 2\) for first.weight \(2, 3\)"),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing(change, text):
    model = Two()
    before = {name: value.copy() for name, value in model.state_dict().items()}
    state = {name: value + 1 for name, value in before.items()}
    change(state)
    with pytest.raises(ValueError, match=text):
        model.load_state_dict(state)
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


def test_train_and_eval_reach_everything_below():
    model = nn.Sequential(Two(), nn.ModuleList([nn.Dropout(0.3)]))
    assert all(m.training for m in model.modules())
    assert not any(m.training for m in model.eval().modules())
    assert all(m.training for m in model.train().modules())


def test_to_converts_in_place_and_training_goes_on():
    model = Two().to("float64").eval()
    model(np.ones((4, 2))).sum().backward()
    assert all(p.dtype == p.grad.dtype == np.float64 for p in model.parameters())
    model.zero_grad()
    assert all(p.grad is None for p in model.parameters())


def test_one_seed_gives_the_same_weights():
    def weights():
        mt.manual_seed(5)
        return Two().first.weight.numpy()

    np.testing.assert_array_equal(weights(), weights())


def test_repr_shows_the_tree():
    assert "(second): Linear(weight [3, 2], bias [3])" in repr(Two())


def test_a_module_without_forward_says_what_to_write():
    with pytest.raises(NotImplementedError, match="def forward"):
        nn.Module()(1)


def test_sequential_and_lists_can_be_indexed():
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    assert len(model) == 3 and isinstance(model[1], nn.ReLU)
    assert [name for name, _ in model.named_parameters()] == ["0.weight", "0.bias", "2.weight", "2.bias"]


def test_what_is_frozen_stays_frozen_where_it_goes():
    model = mt.models.GPT2(mt.models.GPT2Config(11, 8, 12, 3, 1, 20))
    model.embedding.weight.requires_grad = False
    for where in ("float64", mt.get_backend(), "float32"):
        model.to(where)
        frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
        assert frozen == ["embedding.weight"]
    mt.ops.cross_entropy(model(mt.tensor([[1, 2, 3]]).data), mt.tensor([[2, 3, 4]]).data).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == ["embedding.weight"]
