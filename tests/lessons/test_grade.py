"""What a student sees: right, wrong where and why, or one clear line; never an exception."""

import numpy as np
import pytest

import minitransformer as mt
from minitransformer.lessons.exercise import EXERCISES, exercise


@pytest.fixture
def scaled(monkeypatch):
    """An exercise made up for these tests: two results of x (2, 3) and w (3,)."""
    for known in mt.lessons.declared():
        monkeypatch.setitem(EXERCISES, known.number, known)

    @exercise(
        "99.1",
        "A scaled row",
        task="Return x·w and the sum of it over rows.",
        inputs=lambda rng: (rng.standard_normal((2, 3)), rng.standard_normal(3)),
        returns=("y", "total"),
    )
    def scaled(x, w):
        return mt.ops.multiply(x, w), mt.ops.sum(mt.ops.multiply(x, w), axis=0)

    @scaled.mistake("lost sum", "sum over the rows.")
    def _(x, w):
        return x * w, x * w

    @scaled.mistake("sum for product", "multiply.")
    def _(x, w):
        return x + w, (x + w).sum(0)

    yield lambda function: mt.lessons.check("99.1", function)
    del EXERCISES["99.1"]


def right(x, w):
    return x * w, (x * w).sum(0)


def test_right(scaled):
    verdict = scaled(right)
    assert verdict.passed and repr(verdict) == "✓ 99.1 A scaled row: right, on 3 different inputs"
    assert scaled(lambda x, w: [mt.tensor(x * w), (x * w).sum(0).tolist()]).mistake == ""


def test_tensors_are_taken_too(scaled):
    assert scaled(lambda x, w: (mt.tensor(x * w), mt.tensor((x * w).sum(0)))).passed


def test_which_element_expected_and_got(scaled):
    def wrong(x, w):
        y, total = right(x, w)
        y[1, 2] = 7
        return y, total

    x, w = (np.random.default_rng(0).standard_normal(s) for s in ((2, 3), 3))
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((2, 3)), rng.standard_normal(3)
    verdict = scaled(wrong)
    assert verdict.lines == (
        "99.1 A scaled row: not right yet",
        f"y[1, 2]: expected {(x * w)[1, 2]:.6g}, got 7 (1 of 6 elements differ)",
        "total is right",
    )


def test_a_known_mistake_gets_its_hint(scaled):
    verdict = scaled(lambda x, w: (x * w, x * w))
    assert verdict.mistake == "lost sum" and verdict.lines[-1] == "Hint: sum over the rows."
    assert "total: expected the shape (3,), got (2, 3)" in verdict.lines


def test_a_mistake_in_one_of_two_results_is_known_too(scaled):
    verdict = scaled(lambda x, w: (x + w, (x * w).sum(0)))
    assert verdict.mistake == "sum for product" and "total is right" in verdict.lines
    verdict = scaled(lambda x, w: (x + w, x * w))
    assert verdict.mistake == "sum for product, lost sum" and verdict.lines[-1] == "Hint: sum over the rows."


def _in_place(x, w):
    x *= w
    return x, x.sum(0)


def _wrong_and_in_place(x, w):
    x += 1
    return x, x


def _raises(x, w):
    y = x * w
    return y, y @ y


CASES = {
    "in place": (_in_place, "changes its input", "changes its input x"),
    "wrong and in place": (_wrong_and_in_place, "changes its input", "y[0, 0]: expected"),
    "an exception": (_raises, "", "the function raised ValueError at line"),
    "float64": (lambda x, w: (x * w, np.zeros(3) + (x * w).sum(0)), "float64", "float32 went in, float64 came out"),
    "sign": (lambda x, w: (-x * w, -(x * w).sum(0)), "sign", "wrong sign"),
    "factor": (lambda x, w: (2 * x * w, 2 * (x * w).sum(0)), "factor", "every element is 2 times"),
    "varying factor": (lambda x, w: tuple(x.max() * v for v in right(x, w)), "factor", "depend on a size"),
    "nan": (lambda x, w: (np.sqrt(-np.abs(x)), w), "not finite", "NaN or infinity"),
    "one result": (lambda x, w: x * w, "", "the function returns y, total; got one ndarray; write return y, total"),
    "three": (lambda x, w: (1, 2, 3), "", "got 3 values"),
    "half None": (lambda x, w: (x * w, None), "", "total is an array or a number; got None"),
    "ragged": (lambda x, w: ([[1], [2, 3]], w), "", "y is an array of one shape; got a ragged list"),
    "object": (lambda x, w: ({}, w), "", "y is an array or a number; got dict"),
    "arguments": (lambda x: x, "", "the function takes x, w; got <lambda>(x); change its arguments"),
    "a result": (np.ones(3), "", "check takes the function itself; got ndarray"),
    "recursion": (lambda x, w: CASES["recursion"][0](x, w), "", "the function raised RecursionError"),
    "exit": (lambda x, w: exit(), "", "the function raised"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_wrong_is_said(case, scaled):
    function, mistake, said = CASES[case]
    verdict = scaled(function)
    assert verdict.state == "wrong" and verdict.mistake == mistake and said in repr(verdict), verdict
    assert not any("\n" in line for line in verdict.lines)


def test_the_line_that_raised_is_shown(scaled):
    assert "“return y, y @ y”" in repr(scaled(_raises))


def test_nothing_returned_yet(scaled):
    def empty(x, w): ...

    verdict = scaled(empty)
    assert verdict.state == "open" and "nothing is returned yet" in repr(verdict)
    assert verdict.lines[1] == "Return x·w and the sum of it over rows."


def test_a_transpose_is_seen(monkeypatch):
    @exercise("99.2", "As it is", task="", inputs=lambda rng: (rng.standard_normal((2, 3)),))
    def same(x):
        return x

    try:
        assert mt.lessons.check("99.2", lambda x: x.T).mistake == "transposed"
        assert "axes are the other way round" in repr(mt.lessons.check("99.2", lambda x: x.T + 1))
    finally:
        del EXERCISES["99.2"]


def test_masks_are_boolean():
    @exercise("99.3", "A mask", task="", inputs=lambda rng: (rng.standard_normal((2, 3)),))
    def positive(x):
        return x > 0

    try:
        assert mt.lessons.check("99.3", lambda x: x > 0).passed
        assert "expected True and False, got float64" in repr(mt.lessons.check("99.3", lambda x: (x > 0) * 1.0))
        turned = mt.lessons.check("99.3", lambda x: x <= 0)
        assert turned.mistake == "polarity" and "expected True, got False (6 of 6" in repr(turned)
    finally:
        del EXERCISES["99.3"]


def test_unknown_numbers_get_one_line():
    for number, said in (("01.9", "lesson 01 has 01.1, 01.2, 01.3"), ("77", "there are 01.1"), ("", "got ''")):
        verdict = mt.lessons.check(number, right)
        assert len(verdict.lines) == 1 and said in verdict.lines[0] and verdict.state == "open"
    assert mt.lessons.check(1, right).state == "open"


def test_a_check_leaves_no_trace(scaled):
    before = np.random.get_state()[1].copy(), np.geterr()
    scaled(right)
    assert (np.random.get_state()[1] == before[0]).all() and np.geterr() == before[1]
