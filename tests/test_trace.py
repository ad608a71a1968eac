"""The record of a computation: true to the bit, with nothing left behind, named as the program names things."""

import gc
import hashlib
import json
import threading
import time

import numpy as np
import pytest

import minitransformer as mt
from minitransformer import ops
from minitransformer.backend import to_numpy
from minitransformer.ops.formulas import FORMULAS
from minitransformer.tensor import PRIMITIVES, Node, _mode, _observers


@pytest.fixture
def qkv(rng):
    return [mt.tensor(rng.standard_normal((3, 2)), requires_grad=True) for _ in range(3)]


def attention(q, k, v):
    scores = q @ k.T * 0.5
    weights = ops.softmax(scores)
    return weights @ v


def picture_of(trace, array):
    """Return the number under which the record keeps exactly these bits, or None."""
    array = to_numpy(array)
    content = hashlib.blake2b(array.tobytes(), digest_size=16).digest()
    return trace.pictures.numbers.get((array.shape, array.dtype.char, content))


def numbers(trace, number):
    """Return the numbers of a small array, as they are shown."""
    return [float(t.replace("−", "-")) for panel in trace.pictures.kept[number].panels for t in panel.text]


def gpt():
    mt.manual_seed(3)
    return mt.models.GPT2(mt.models.GPT2Config(11, 7, 8, 2, 2, 12, 0.1))


def loss(model, ids):
    mt.manual_seed(5)  # the same dropout each time
    return ops.cross_entropy(model(ids[:, :-1]), ids[:, 1:])


def test_values_and_gradients_are_those_of_an_untraced_run_to_the_bit(rng):
    model, ids = gpt(), mt.tensor(rng.integers(0, 11, (3, 7))).data
    plain = loss(model, ids)
    plain.backward()
    wanted = {name: p.grad.data.copy() for name, p in model.named_parameters()}
    model.zero_grad()
    trace = mt.trace(loss, model, ids)
    assert trace.output.item() == plain.item() and trace.output.node is None
    assert all(p.grad is None for p in model.parameters())
    found = {leaf.name.removeprefix("model."): leaf for leaf in trace.leaves}
    assert set(found) == set(wanted)
    for name, g in wanted.items():
        assert picture_of(trace, g) == found[name].gradient is not None, name
    loss(model, ids).backward()
    for name, p in model.named_parameters():
        np.testing.assert_array_equal(p.grad.numpy(), to_numpy(wanted[name]))


def test_each_step_tells_what_came_what_left_and_who_called(qkv):
    trace = mt.trace(attention, *qkv)
    assert [step.op for step in trace.steps] == ["transpose", "_matmul", "scale", "_softmax", "_matmul"]
    assert [step.label for step in trace.steps] == ["k.T", "q @ k.T", "scores", "weights", "weights @ v"]
    assert [leaf.name for leaf in trace.leaves] == ["k", "q", "v"] and trace.order == [4, 3, 2, 1, 0]
    softmax = trace.steps[3]
    assert softmax.settings == "axis=-1" and [(i.role, i.name, i.step) for i in softmax.inputs] == [("x", "scores", 2)]
    user, book = (trace.lines[n] for n in softmax.lines)
    assert user.file == "tests/test_trace.py" and user.text == "weights = ops.softmax(scores)"
    assert user.text[user.start : user.end] == "ops.softmax(scores)" and user.function == "attention"
    assert book.file == "minitransformer/ops/softmax.py"
    with mt.no_grad():
        scores = qkv[0] @ qkv[1].T * 0.5
        weights = ops.softmax(scores)
    g = np.ones((3, 2)) @ qkv[2].numpy().T
    w = weights.numpy()
    assert softmax.output == picture_of(trace, weights.data)
    np.testing.assert_allclose(numbers(trace, softmax.arriving), g.ravel(), atol=5e-3)
    leaving = w * (g - (g * w).sum(-1, keepdims=True))
    np.testing.assert_allclose(numbers(trace, softmax.inputs[0].gradient), leaving.ravel(), atol=5e-4)
    assert trace.pictures.kept[trace.steps[2].inputs[0].slope].low == 0.5  # elementwise: the derivative itself
    assert softmax.inputs[0].slope is None


def test_every_leaving_gradient_is_what_arrives_where_it_goes(qkv):
    trace = mt.trace(attention, *qkv)
    for step in trace.steps:
        for value in step.inputs:
            goal = trace.steps[value.step].arriving if value.step is not None else None
            goal = next(x.gradient for x in trace.leaves if x.name == value.name) if goal is None else goal
            assert value.gradient == goal  # each is used once here


def test_a_tensor_that_is_used_twice_gets_the_sum(rng):
    x = mt.tensor([2.0, 3.0], requires_grad=True)
    trace = mt.trace(lambda: x * x + x)
    assert numbers(trace, trace.leaves[0].gradient) == [5.0, 7.0] and trace.leaves[0].name == "x"
    assert [i.name for i in trace.steps[0].inputs] == ["x", "x"]


def test_names_come_from_arguments_modules_and_what_the_function_refers_to(rng):
    layer, table = mt.nn.Linear(3, 2), {"a": mt.tensor([[1.0, 2.0, 3.0]], requires_grad=True)}
    trace = mt.trace(lambda x, extra: layer(x + table["a"]) * extra[0], mt.tensor(np.ones((1, 3), "float32")),
                     [mt.tensor([2.0], requires_grad=True)])  # fmt: skip
    assert {leaf.name for leaf in trace.leaves} == {"x", "table['a']", "layer.weight", "layer.bias", "extra[0]"}
    own = mt.trace(layer, mt.tensor(np.ones((1, 3), "float32")))
    assert {leaf.name for leaf in own.leaves} == {"x", "weight", "bias"} and own.title == "Linear"
    assert {leaf.name for leaf in mt.trace(layer.forward, np.ones((1, 3), "float32")).leaves} == {"x", "weight", "bias"}


def test_what_is_made_inside_is_called_by_its_variable_and_its_place_in_a_module():
    def inside():
        extra = mt.tensor(np.ones((1, 2, 4), "float32"), requires_grad=True)
        deep = mt.nn.Encoder([mt.nn.EncoderLayer(4, 2, 8) for _ in range(2)], 4)
        return deep(extra) * mt.tensor([2.0], requires_grad=True)

    names = [leaf.name for leaf in mt.trace(inside).leaves]
    assert "extra" in names and "deep.layers.1.self_attention.q_proj.weight" in names
    assert [n for n in names if not n.startswith("deep.")] == ["extra", f"leaf {len(names)}"]  # nobody names the last


def test_two_leaves_of_one_name_are_told_apart():
    def twice(x):
        def inner():
            x = mt.tensor([3.0], requires_grad=True)
            return x * 2

        return x * inner() * inner()

    trace = mt.trace(twice, mt.tensor([1.0]))
    assert [leaf.name for leaf in trace.leaves] == ["x", "x (2)", "x (3)"]
    assert trace.svg().count('class="leaf"') == 3


def test_constants_are_called_by_their_variables(rng):
    layer, x = mt.nn.MultiHeadAttention(4, 2), mt.tensor(rng.standard_normal((1, 3, 4)).astype("float32"))

    def masked(x):
        past = mt.tensor(np.tri(3, dtype=bool)).data
        return layer(x, mask=past) * mt.tensor(2.0)

    named = {i.role: i.name for step in mt.trace(masked, x).steps for i in step.inputs if not i.differentiable}
    assert named == {"mask": "past", "b": "constant"}


def scaled(x=np.array([1.0, 2.0], "float32"), *more, factor=np.array(3.0, "float32"), **others):  # noqa: B008
    return x * factor


def test_arrays_become_leaves_and_defaults_count_as_given():
    trace = mt.trace(scaled)
    assert [(leaf.name, numbers(trace, leaf.gradient)) for leaf in trace.leaves] == [("x", [3, 3]), ("factor", [3])]
    ids = mt.tensor(np.array([0, 2])).data
    trace = mt.trace(lambda ids, w: ops.embedding(ids, w), ids, mt.tensor(np.ones((3, 2), "float32")))
    assert [(i.name, i.differentiable) for i in trace.steps[0].inputs] == [("ids", False), ("w", True)]


def test_the_backward_pass_begins_with_what_is_given_and_says_so(qkv):
    assert "g = ones: what is differentiated is the sum" in mt.trace(attention, *qkv).begins
    assert mt.trace(lambda: attention(*qkv).sum()).begins.endswith("g = 1.")
    g = np.array([[1.0, 0.0], [0.0, 0.0], [0.0, 2.0]])
    trace = mt.trace(attention, *qkv, cotangent=mt.tensor(g))
    assert "that was given" in trace.begins and numbers(trace, trace.steps[-1].arriving) == g.ravel().tolist()
    with pytest.raises(ValueError, match=r"the shape of its tensor; got \(2, 2\)"):
        mt.trace(attention, *qkv, cotangent=mt.tensor(np.ones((2, 2))))


def test_what_needs_no_gradient_is_recorded_forwards_alone():
    x = mt.tensor([1, 2])
    trace = mt.trace(lambda: ops.reshape(x, shape=(2, 1)))
    assert len(trace) == 1 and not trace.order and "no way back" in trace.begins and not trace.steps[0].recorded
    w = mt.tensor([1.0, 2.0], requires_grad=True)

    def partly():
        with mt.no_grad():
            fixed = w.exp()
        return w * fixed

    trace = mt.trace(partly)
    exp, product = trace.steps
    assert not exp.recorded and exp.turn is None and product.inputs[1].step == 0 and product.inputs[1].gradient is None


def test_nothing_is_left_switched_on(qkv):
    def breaks():
        attention(*qkv)
        raise KeyError("here")

    with pytest.raises(KeyError):
        mt.trace(breaks)
    assert _mode.observer is None and not _observers.count
    with pytest.raises(TypeError, match="returns a Tensor; got float; use the ops"):
        mt.trace(lambda: 1.0)
    assert _mode.observer is None and not _observers.count
    trace = mt.trace(attention, *qkv)
    attention(*qkv).sum().backward()
    assert len(trace) == 5 and len(trace.order) == 5 and _mode.observer is None


def test_an_error_in_a_vjp_leaves_nothing_on_either():
    @mt.primitive
    def one_way(xp, x):
        """Go forwards only.    x: (...) → (...)"""

        def vjp(g):
            raise FloatingPointError("no way back")

        return x + 1, vjp

    try:
        x = mt.tensor([1.0], requires_grad=True)
        with pytest.raises(FloatingPointError):
            mt.trace(lambda: one_way(x))
        assert _mode.observer is None and not _observers.count
    finally:
        del PRIMITIVES["one_way"]


def test_the_callers_own_graph_can_still_be_used():
    w = mt.tensor([2.0, 3.0], requires_grad=True)
    squared = w * w
    trace = mt.trace(lambda: (squared * 5).sum())
    assert trace.steps[0].inputs[0].name == "squared" and trace.steps[0].inputs[0].differentiable
    squared.sum().backward()
    np.testing.assert_array_equal(w.grad.numpy(), [4, 6])


def reachable(*begin):
    """Return everything that can be reached from some objects, but for classes, modules and functions."""
    seen, todo = {}, list(begin)
    while todo:
        value = todo.pop()
        if id(value) not in seen and not isinstance(value, type | type(gc) | type(reachable)):
            seen[id(value)] = value
            todo += gc.get_referents(value)
    return seen.values()


def test_no_cycle_and_no_node_stays_behind(qkv):
    mt.trace(attention, *qkv)  # kernels that CuPy compiles now leave cycles of its own
    gc.collect()
    gc.disable()
    try:
        trace = mt.trace(attention, *qkv)
        assert gc.collect() == 0
        held = list(reachable(trace))
        assert trace.output in [x for x in held if isinstance(x, mt.Tensor)] and len(held) > 100
        assert not [x for x in held if isinstance(x, Node)]
        del trace, held
        assert gc.collect() == 0
    finally:
        gc.enable()


def test_a_node_that_outlives_the_record_still_has_its_vjp(qkv):
    inside = []

    def keeps():
        inside.append(qkv[0].exp())
        return inside[0].sum()

    trace = mt.trace(keeps)
    inside[0].sum().backward()
    np.testing.assert_array_equal(qkv[0].grad.numpy(), inside[0].numpy())
    assert len(trace.order) == 2  # the record is closed


def test_other_threads_are_not_looked_at(qkv):
    def with_company():
        thread = threading.Thread(target=attention, args=qkv)
        thread.start()
        thread.join()
        return qkv[0].sum()

    assert [step.op for step in mt.trace(with_company).steps] == ["sum"]


def test_a_trace_within_a_trace_is_its_own(qkv):
    inner = []

    def outer():
        inner.append(mt.trace(attention, *qkv))
        return qkv[0].sum()

    trace = mt.trace(outer)
    assert [step.op for step in trace.steps] == ["sum"] and len(inner[0]) == 5 and len(inner[0].order) == 5


def test_a_gradient_inside_the_function_is_recorded_as_the_computation_it_is():
    w = mt.tensor(np.array([2.0]), requires_grad=True)

    def penalty():
        slope = mt.grad(lambda x: (w * x * x).sum(), create_graph=True)(mt.tensor(np.array([3.0])))
        return (slope * slope).sum()

    trace = mt.trace(penalty)
    assert trace.output.item() == 144 and numbers(trace, trace.leaves[0].gradient) == [144]  # d(2wx)²/dw = 8wx²


def test_what_is_forgotten_and_computed_again_is_one_step_with_its_gradients(rng):
    layer, x = mt.nn.Linear(3, 2), mt.tensor(rng.standard_normal((2, 3)).astype("float32"), requires_grad=True)
    trace = mt.trace(lambda: mt.recompute(layer, x, parameters=layer.parameters()))
    layer(x).backward(mt.tensor(np.ones((2, 2), "float32")))
    (again,) = [step for step in trace.steps if step.op == "recompute"]
    assert [i.name for i in again.inputs] == ["x", "layer.weight", "layer.bias"]
    for leaf, tensor in zip(trace.leaves, (x, layer.weight, layer.bias), strict=True):
        assert picture_of(trace, tensor.grad.data) == leaf.gradient


def test_a_record_of_thousands_of_ops_fits_its_budget():
    x = mt.tensor(np.linspace(-1, 1, 400).reshape(20, 20).astype("float32"), requires_grad=True)

    def chain():
        y = x
        for i in range(1500):
            y = (y + 0.01 * i).tanh()
        return y

    budget, start = 5 << 19, time.perf_counter()
    trace = mt.trace(chain, budget=budget)
    assert time.perf_counter() - start < 60
    text = json.dumps(trace.to_json(), ensure_ascii=False)
    assert len(trace) == 3000 and len(trace.order) == 3000
    assert 0.3 * budget < len(text.encode()) < 1.15 * budget and trace.pictures.level > 0
    assert len(mt.trace(chain, budget=0).pictures.kept[-1].panels) == 0  # the extent alone is left


def test_large_arrays_are_pictures(rng):
    x = mt.tensor(rng.standard_normal((1000, 700)).astype("float32"))
    trace = mt.trace(lambda x: x.tanh(), x)
    assert len(json.dumps(trace.to_json())) < 30_000
    assert "a cell is the mean of 42×30 numbers" in trace.text()


def test_an_op_of_ones_own_shows_what_its_docstring_says():
    @mt.primitive
    def softer(xp, x):
        """Bend.

            y = ln(1 + eˣ)

        x: (...) → (...)
        """
        return xp.log(1 + xp.exp(x)), lambda g: (g / (1 + xp.exp(-x)),)

    try:
        step = mt.trace(softer, mt.tensor([1.0])).to_json()["steps"][0]
        assert (step["formula"], step["about"]) == ("y = ln(1 + eˣ)", "Bend.")
    finally:
        del PRIMITIVES["softer"]


def test_every_formula_and_derivative_is_in_the_record(qkv):
    steps = mt.trace(attention, *qkv).to_json()["steps"]
    for step in steps:
        assert (step["formula"], *step["derivative"]) == FORMULAS[step["op"]]
    assert steps[3]["about"] == "Turn scores into shares that are positive and sum to 1 along an axis."


def test_it_prints_and_shows_itself(qkv):
    trace = mt.trace(attention, *qkv)
    assert repr(trace) == "Trace(attention: 5 steps forwards, 5 backwards)" and "forward 4/5  weights" in str(trace)
    assert trace._repr_html_().startswith("<iframe") and len(trace.pages()) == 1 + 5 + 5 + 1
