"""The record as text: forwards and then backwards, no line too long, nothing but text."""

import numpy as np

import minitransformer as mt


def make(rng, shape=(2, 3)):
    x = mt.tensor(rng.standard_normal(shape).astype("float32"))

    def squash(x):
        small = x * 0.1
        return small.tanh()

    return x, mt.trace(squash, x)


def test_a_block_for_each_step_forwards_then_backwards(rng):
    x, trace = make(rng)
    first, *blocks = trace.pages(80)
    assert first == f"squash: 2 steps forwards, 2 backwards\n{trace.begins}"
    heads = [block.splitlines()[1].split("  ")[0] for block in blocks]
    assert heads == ["forward 1/2", "forward 2/2", "backward 1/2", "backward 2/2", "what has reached the leaves"]
    assert "    y = tanh(x)" in blocks[1] and "    g_x = g·(1 − y²)" in blocks[2]
    assert "tests/views/test_terminal.py:" in blocks[0] and "small = x * 0.1" in blocks[0]
    assert "derivative by x" in blocks[2] and "→ g_x, for small" in blocks[2]


def test_numbers_stand_in_columns(rng):
    x, trace = make(rng)
    (line,) = [n for n, text in enumerate(trace.pages()[1].splitlines()) if text.startswith("  x   ")]
    rows = [list(map(float, t.replace("−", "-").split())) for t in trace.pages()[1].splitlines()[line + 1 : line + 3]]
    np.testing.assert_allclose(rows, x.numpy(), atol=5.1e-3)


def test_what_is_large_is_shaded_and_nothing_is_wider_than_asked(rng):
    _, trace = make(rng, (5, 40, 60))
    text = trace.text(90)
    assert "4 of 5 matrices, a cell is the mean of 2×3 numbers" in text and "@" in text
    assert max(len(line) for line in text.splitlines() if "numbers)" not in line) <= 90


def test_what_is_not_finite_is_a_question_in_a_shade():
    x = mt.tensor(np.full((30, 30), np.nan, "float32"))
    assert "??" in mt.trace(lambda x: x + 1, x).text() and "900 NaN or ±∞" in mt.trace(lambda x: x + 1, x).text()
