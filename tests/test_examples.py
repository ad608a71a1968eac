"""Each example gives one number, and its gradient, held against differences, reaches everything that it takes."""

import inspect

import numpy as np
import pytest

import minitransformer as mt
from minitransformer.examples import EXAMPLES


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_a_trace_to_read(name):
    trace = mt.trace(EXAMPLES[name])
    assert (
        trace.output.size == 1
        and trace.begins == "The backward pass begins with g = 1."
        and len(trace) == len(trace.order)
    )
    found = {leaf.name: trace.pictures.kept[leaf.gradient] for leaf in trace.leaves}
    assert set(inspect.signature(EXAMPLES[name]).parameters) <= set(found)
    assert all(max(abs(p.low), abs(p.high)) > 1e-3 for n, p in found.items() if not n.endswith("k_proj.bias"))
    assert EXAMPLES[name].__doc__ and "→ a number" in EXAMPLES[name].__doc__
    assert not [n for n in found if n.startswith("leaf")]  # each has the name that it has in the program


@pytest.mark.parametrize("name", [n for n in EXAMPLES if n != "layer"])
def test_an_example_has_the_derivative_it_shows(name):
    defaults = [p.default.astype("float64") for p in inspect.signature(EXAMPLES[name]).parameters.values()]
    moved = [x + 0.01 * np.arange(x.size).reshape(x.shape) for x in defaults]  # nobody is bothered by a tie
    assert mt.gradcheck(EXAMPLES[name], *moved).points > 0


def test_the_numbers_can_be_replaced():
    mine = mt.trace(EXAMPLES["neuron"], mt.tensor([1.0, 1.0]))
    assert mine.output.item() == pytest.approx((np.tanh(0.8 + 0.3 + 0.1) - 0.5) ** 2)
