"""The engine: what is recorded, in which order it is walked, what is freed, what is refused."""

import gc
import threading
import weakref

import numpy as np
import pytest

import minitransformer as mt
from minitransformer import ops
from minitransformer.tensor import Node


def test_gradient_of_a_sum_of_uses_adds_up(backend):
    x = mt.tensor([1.0, 2.0, 3.0], requires_grad=True)
    y = (x * x + x * 3 + 1).sum()
    y.backward()
    np.testing.assert_allclose(x.grad.numpy(), [5, 7, 9])
    assert x.grad.dtype == np.float32


def test_backward_adds_to_what_is_there_and_zeroing_forgets():
    x = mt.tensor([2.0], requires_grad=True)
    for expected in (4.0, 8.0):
        (x * x).sum().backward()
        assert x.grad.item() == expected
    x.grad = None
    assert x.grad is None


def test_a_leaf_copies_a_borrowed_gradient():
    x, y = (mt.tensor(np.ones(3), requires_grad=True) for _ in range(2))
    (x + y).backward(np.ones(3))
    x.grad.data[:] = 7
    np.testing.assert_array_equal(y.grad.numpy(), 1)


def test_a_vjp_never_writes_into_the_gradient_it_was_given():
    g = np.ones((3, 4))
    x = mt.tensor(np.ones((3, 4)), requires_grad=True)
    y = x * 2 + x * 3 + x
    y.backward(g)
    np.testing.assert_array_equal(g, 1)
    np.testing.assert_array_equal(x.grad.numpy(), 6)


def test_python_numbers_keep_float32():
    x = mt.tensor(np.ones(3, "float32"), requires_grad=True)
    y = (2 * x + 1.5 - x / 3 + 1 / x - (1 - x) + x**2 + np.float64(2) * x).sum()
    y.backward()
    assert y.dtype == np.float32 and x.grad.dtype == np.float32


def test_every_op_and_module_keeps_float32(rng):
    from minitransformer import gradcases

    for name, case in {**gradcases.OPS, **gradcases.MODULES}.items():
        if name == "_move":
            continue
        f, arrays, _ = case(rng)
        inputs = [mt.tensor(a.astype("float32"), requires_grad=True) for a in arrays]
        y = f(*inputs)
        y.backward(np.ones(y.shape, "float32"))
        assert y.dtype == np.float32, name
        assert all(t.grad is None or t.grad.dtype == np.float32 for t in inputs), name


def test_array_operands_on_either_side_give_a_tensor():
    x, a = mt.tensor([1.0, 2.0]), np.array([3.0, 4.0], "float32")
    for y in (a + x, x + a, a - x, a * x, a / x, a @ x):
        assert isinstance(y, mt.Tensor)
    np.testing.assert_allclose((a - x).numpy(), [2, 2])
    np.testing.assert_allclose((a @ x).numpy(), 11)


def test_a_chain_of_100_000_ops_goes_forward_backward_and_away():
    x = mt.tensor(np.ones(2), requires_grad=True)
    y = x
    for _ in range(100_000):
        y = y * 1.00001
    y.sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), 1.00001**100_000, rtol=1e-9)
    for _ in range(100_000):
        x = x + 1.0
    del x, y  # freed without a recursion, whether walked or not


def test_nothing_waits_for_the_garbage_collector(rng):
    model = mt.models.Transformer(mt.models.TransformerConfig(9, 9, 8, 2, 1, 16, 0.1, 16))
    ids = rng.integers(1, 9, (2, 5))
    while gc.collect():  # what tests before have left: a figure with a logarithmic axis takes two rounds
        pass
    gc.disable()
    try:
        for _ in range(3):
            loss = ops.cross_entropy(model(ids, ids), ids)
            watch = weakref.ref(loss.node)
            loss.backward()
            model.zero_grad()
            del loss
            assert watch() is None
        mt.grad(lambda x: mt.grad(lambda x: (x * x * x).sum())(x).sum())(np.ones(3))
        assert gc.collect() == 0
    finally:
        gc.enable()


def test_a_thousand_training_steps_hold_no_more_than_ten(rng):
    import tracemalloc

    layer = mt.nn.Linear(8, 8)
    optimizer = mt.optim.AdamW(layer.parameters())
    x = rng.standard_normal((4, 8)).astype("float32")

    def steps(count):
        for _ in range(count):
            optimizer.zero_grad()
            (layer(mt.tensor(x)) ** 2).mean().backward()
            optimizer.step()
        gc.collect()  # what other tests have left; that a step leaves none is held above
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        few = steps(3000)  # NumPy keeps a bounded store of small scalars: let it fill
        many = steps(1000)
    finally:
        tracemalloc.stop()
    # one object of Python's kept a step would be 16,000 bytes and more; a table that grows once is 1 or 2 thousand
    assert many - few < 8192, f"{many - few} bytes more after 1000 steps"


def test_graph_is_freed_as_it_is_walked_and_refuses_a_second_walk():
    x = mt.tensor([1.0, 2.0], requires_grad=True)
    y = x.exp()
    z = y.sum()
    z.backward()
    assert y.node.parents == ()
    with pytest.raises(RuntimeError, match="keep_graph=True"):
        z.backward()
    z = x.exp().sum()
    z.backward(keep_graph=True)
    z.backward()
    np.testing.assert_allclose(x.grad.numpy(), 3 * np.exp([1, 2]), rtol=1e-6)


def test_no_grad_records_nothing_in_this_thread_only():
    x = mt.tensor([1.0], requires_grad=True)
    seen = {}

    def other():
        seen["other"] = (x * 2).requires_grad

    with mt.no_grad():
        assert not (x * 2).requires_grad
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        with mt.enable_grad():
            assert (x * 2).requires_grad
    assert seen["other"] and (x * 2).requires_grad

    @mt.no_grad()
    def double(t):
        return t * 2

    assert not double(x).requires_grad


def test_threads_share_parameters_and_keep_their_gradients_apart(rng):
    w = mt.tensor(rng.standard_normal((5, 3)), requires_grad=True)
    parts = [rng.standard_normal((7, 5)) for _ in range(4)]
    found = [None] * 4

    def work(i):
        for _ in range(50):
            found[i] = mt.gradients(((mt.tensor(parts[i]) @ w) ** 2).sum(), [w])[0]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for part, g in zip(parts, found, strict=True):
        np.testing.assert_allclose(g, 2 * part.T @ part @ w.numpy(), rtol=1e-12)
    assert w.grad is None


def test_gradients_by_what_lies_in_between(rng):
    x, apart = mt.tensor(rng.standard_normal(5), requires_grad=True), mt.tensor(np.ones(2), requires_grad=True)
    y = x * x
    g_x, g_y, g_apart, g_number = mt.gradients((y * y).sum(), [x, y, apart, mt.tensor(1.0)], keep_graph=True)
    np.testing.assert_allclose(g_y, 2 * x.numpy() ** 2, rtol=1e-14)
    np.testing.assert_allclose(g_x, 4 * x.numpy() ** 3, rtol=1e-14)
    assert not g_apart.any() and not g_number.any()
    y.sum().backward()
    assert y.grad is None and x.grad is not None  # y was not asked to keep what arrives


def test_grad_of_any_order():
    f = lambda x: (x**4).sum()  # noqa: E731
    g1, g2 = mt.grad(f), mt.grad(lambda x: mt.grad(f)(x).sum())
    g3 = mt.grad(lambda x: mt.grad(lambda x: mt.grad(f)(x).sum())(x).sum())
    x = np.array([1.5, -2.0])
    np.testing.assert_allclose(g1(x).numpy(), 4 * x**3)
    np.testing.assert_allclose(g2(x).numpy(), 12 * x**2)
    np.testing.assert_allclose(g3(x).numpy(), 24 * x)


def test_grad_sees_outer_variables_that_a_closure_carries_in():
    outer = mt.grad(lambda x: mt.grad(lambda y: (x * x * y).sum())(np.ones(2)).sum())
    np.testing.assert_allclose(outer(np.array([3.0, 5.0])).numpy(), [6, 10])


def test_create_graph_lets_a_penalty_on_gradients_reach_the_weights():
    w = mt.tensor(np.array([2.0]), requires_grad=True)
    slope = mt.grad(lambda x: (w * x * x).sum(), create_graph=True)(np.array([3.0]))
    (slope * slope).sum().backward()
    np.testing.assert_allclose(w.grad.numpy(), 2 * 12 * 6)  # d(2wx)²/dw


def test_grad_argnums_zeros_and_values():
    value, (g0, g2) = mt.value_and_grad(lambda a, b, c: (a * b).sum(), (0, 2))(np.ones(2), np.full(2, 3.0), np.ones(4))
    assert value.item() == 6
    np.testing.assert_array_equal(g0.numpy(), 3)
    np.testing.assert_array_equal(g2.numpy(), np.zeros(4))


def test_retain_grad_shows_what_passes_through_the_middle():
    x = mt.tensor([1.0, 2.0], requires_grad=True)
    y = (x * 3).retain_grad()
    (y * y).sum().backward()
    np.testing.assert_allclose(y.grad.numpy(), [6, 12])


@pytest.mark.parametrize(
    "act, error, text",
    [
        (lambda x: x.backward(), ValueError, "one element"),
        (lambda x: mt.tensor([1.0]).backward(), RuntimeError, "requires_grad=True"),
        (lambda x: x.backward(np.ones(5, "float32")), ValueError, r"\(5,\)"),
        (lambda x: mt.tensor([1, 2], requires_grad=True), TypeError, "floating"),
        (lambda x: mt.Tensor(x), TypeError, "from an array"),
        (lambda x: mt.grad(lambda t: 3.0)(np.ones(2)), TypeError, "float"),
        (lambda x: mt.tensor([[1.0], [1.0, 2.0]]), TypeError, "ragged"),
        (lambda x: (x * 2).__class__.requires_grad.fset(x * 2, False), RuntimeError, "leaf"),
        (lambda x: __import__("pickle").dumps(x), TypeError, "mt.save"),
    ],
)
def test_misuse_is_answered_in_one_line(act, error, text):
    x = mt.tensor([1.0, 2.0], requires_grad=True)
    with pytest.raises(error, match=text) as caught:
        act(x)
    assert "\n" not in str(caught.value)


def test_an_error_inside_an_op_names_the_op_and_the_shapes():
    with pytest.raises(ValueError) as caught:
        mt.tensor(np.ones((2, 3))) + mt.tensor(np.ones((4, 5)))
    assert "in op add(float64[2, 3], float64[4, 5])" in caught.value.__notes__


def test_a_node_is_not_a_tensor_and_points_only_backwards():
    x = mt.tensor([1.0], requires_grad=True)
    y = x.exp()
    assert isinstance(y.node, Node) and y.node.parents == (x.node,) and y.node.birth > x.node.birth
    cells = [c.cell_contents for c in y.node.vjp.__closure__]
    assert not any(isinstance(c, mt.Tensor) for c in cells)
