"""How arrays are called where a function was written."""

import functools

import numpy as np

import minitransformer as mt
from minitransformer.views.names import names_around, weak

TABLE = [mt.tensor([1.0]), mt.tensor([2.0])]


class Task:
    def __init__(self):
        self.model, self.scale, self.note = mt.nn.Linear(2, 1, bias=False), mt.tensor([3.0]), "text"

    def loss(self, x):
        return self.model(x) * self.scale + TABLE[1]


def called(fn, **given):
    return {name: array() for array, name in names_around(fn, given).values()}


def test_arguments_owners_and_what_is_referred_to():
    task, x = Task(), np.ones((1, 2))
    found = called(task.loss, x=x)
    assert set(found) == {"x", "model.weight", "scale", "TABLE[0]", "TABLE[1]"}
    assert found["x"] is x and found["model.weight"] is task.model.weight.data
    assert set(called(lambda: task.loss(x))) >= {"task.model.weight", "task.scale", "x"}


def test_one_array_has_the_first_of_its_names():
    layer = mt.nn.Linear(2, 2)
    assert set(called(layer, weight_too=layer.weight)) == {"weight_too", "bias"}


def test_functions_without_source_have_names_for_their_arguments_alone():
    x = mt.tensor([1.0])
    assert set(called(functools.partial(mt.ops.exp), x=x)) == {"x"} and set(called(len)) == set()


def test_names_hold_nothing_alive():
    array = np.ones(3)
    found = names_around(len, {"x": array})
    ((reference, _),) = found.values()
    del array
    assert reference() is None and weak(np.float64(1.0))() is None
