"""Every exercise: its solution passes, and each usual mistake is told apart from all others."""

import numpy as np
import pytest

import minitransformer as mt
from minitransformer.lessons.exercise import EXERCISES, exercise, gradients
from minitransformer.lessons.solutions import solution

ALL = {e.number: e for e in mt.lessons.declared()}
MISTAKES = [(e.number, m.name) for e in ALL.values() for m in e.mistakes]


@pytest.mark.parametrize("number", ALL)
def test_the_solution_passes(number):
    verdict = mt.lessons.check(number, solution(number))
    assert verdict.passed, verdict


@pytest.mark.parametrize("number, name", MISTAKES, ids=[f"{n} {m}" for n, m in MISTAKES])
def test_each_mistake_gets_its_own_hint(number, name):
    (mistake,) = [m for m in ALL[number].mistakes if m.name == name]
    verdict = mt.lessons.check(number, mistake.function)
    assert verdict.state == "wrong" and verdict.mistake == name, verdict
    assert verdict.lines[-1] == f"Hint: {mistake.hint}"


@pytest.mark.parametrize("number", ALL)
def test_an_exercise_says_what_to_write(number):
    asked = ALL[number]
    text = repr(mt.lessons.check(number))
    assert asked.signature in text and asked.task in text and asked.title in text
    assert len(asked.mistakes) >= 3, "three usual mistakes at least; what do people get wrong here?"
    assert solution(number).__name__ == asked.answer.__name__, "the solution has the name that is asked for"
    assert solution(number).__doc__, "a solution says in one line what it does"


def test_an_answer_is_the_librarys_and_not_the_solution():
    for number, asked in ALL.items():
        assert asked.answer.__code__.co_code != solution(number).__code__.co_code, f"{number} is compared with itself"


def test_a_number_is_taken_once():
    with pytest.raises(ValueError, match="01.1 is taken"):
        exercise("01.1", "again", task="", inputs=lambda rng: ())(lambda: 0)
    assert EXERCISES["01.1"] is ALL["01.1"]


def test_a_solution_that_is_not_there():
    with pytest.raises(ValueError, match="got '01.99'"):
        solution("01.99")


def test_gradients_are_those_of_the_engine():
    a, b, g = np.array([1.0, 2.0]), np.array([3.0, 5.0]), np.array([1.0, 10.0])
    g_a, g_b = gradients(mt.ops.multiply, a, b, g=g)
    np.testing.assert_array_equal(g_a, g * b)
    np.testing.assert_array_equal(g_b, g * a)
