"""Every op, module and model has a check, and passes it; something new without one fails here."""

import inspect

import numpy as np
import pytest

import minitransformer as mt
from minitransformer import gradcases, nn, ops

CASES = {**gradcases.OPS, **gradcases.MODULES, **gradcases.MODELS}
# Not ops of floats: a mask of booleans, and sums that broadcasting asks for (held by the ops that broadcast).
NO_GRADIENT = {"causal_mask", "sum_to"}
NO_NODES = {"matmul", "einsum", "concatenate", "stack", "dropout_factors"}  # made of others, or without a gradient
NO_PARAMETERS = {"Module", "ModuleList", "Parameter"}


@pytest.mark.parametrize("name", CASES)
def test_first_and_second_derivatives_agree_with_differences(name, backend):
    fewer = {"points": 1} if name in gradcases.MODELS else {}  # `minitransformer gradcheck` takes two
    if backend == "cupy":  # the host mock takes its time; at order 1 both ways go through the kernels
        fewer = {"points": 1, "directions": 1}
        fewer |= {"order": 1} if name in gradcases.MODELS else {"max_coordinates": 9 if name in gradcases.OPS else 5}
    row = gradcases.check(name, CASES[name], **fewer)
    assert row["ok"], row["message"]
    assert row["first"] <= 1e-7 and row["second"] <= 1e-5 and row["points"] > 0


def base(name):
    return name.split(" ")[0]


def test_every_public_op_has_a_case():
    public = {name for name in ops.__all__ if callable(getattr(ops, name))} - NO_GRADIENT
    missing = public - {base(name) for name in gradcases.OPS}
    assert not missing, f"no gradient check in gradcases.py for: {sorted(missing)}"


def test_every_registered_primitive_is_run_by_a_case(rng):
    used, seen = set(), set()

    def watch(nodes):
        for node in nodes:
            if node is not None and node.op not in ("leaf",) and node not in seen:
                seen.add(node)
                used.add(node.op)
                watch(node.parents)

    for case in CASES.values():
        f, arrays, _ = case(rng)
        y = f(*[mt.tensor(a, requires_grad=True) for a in arrays])
        watch([y.node])
        y.backward(np.ones(y.shape))
    missing = {op.__name__ for op in mt.PRIMITIVES.values()} - used - NO_NODES
    assert not missing, f"registered, and run by no case: {sorted(missing)}"


def test_every_module_has_a_case():
    public = {name for name, value in vars(nn).items() if inspect.isclass(value) and issubclass(value, nn.Module)}
    missing = public - NO_PARAMETERS - {base(name) for name in gradcases.MODULES}
    assert not missing, f"no gradient check in gradcases.py for: {sorted(missing)}"
    assert {"Transformer", "GPT2"} <= {base(name) for name in gradcases.MODELS}


def test_an_op_without_a_check_would_be_found():
    @mt.primitive
    def newcomer(xp, x):
        return x * 2, lambda g: (g * 2,)

    try:
        with pytest.raises(AssertionError, match="newcomer"):
            test_every_registered_primitive_is_run_by_a_case(np.random.default_rng(0))
    finally:
        del mt.PRIMITIVES["newcomer"]


def test_points_are_generic(rng):
    """No square matrix and no repeated size may hide a transpose."""
    for name, case in gradcases.OPS.items():
        _, arrays, _ = case(rng)
        for a in arrays:
            sizes = [n for n in a.shape if n > 1]
            assert len(set(sizes)) == len(sizes), f"{name} is checked on an array of shape {a.shape}"
            assert not name.startswith("matmul") or (a < 0).any() and (a > 0).any()


def test_an_unknown_name_is_answered_in_one_line():
    with pytest.raises(ValueError, match="'batchnorm', which none contains"):
        list(gradcases.run("batchnorm"))
