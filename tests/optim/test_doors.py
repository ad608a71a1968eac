"""What a setting may be, and what is said of one that it may not."""

import math

import pytest

from minitransformer.optim.doors import check_betas, check_count, check_flag, check_range


def test_what_lies_within_passes():
    check_range("lr", 0, 0, math.inf)
    check_range("eps", 1e-8, 0, 1, low_is_allowed=False)
    check_count("steps", 3, 1)
    check_flag("nesterov", False)
    check_betas((0.0, 0.999))


@pytest.mark.parametrize("value", [-1, 1, math.nan, math.inf, -math.inf])
def test_a_range_has_ends(value):
    with pytest.raises(ValueError, match=r"^beta lies in \[0, 1\); got .*; write beta=0.1$"):
        check_range("beta", value, 0, 1)


def test_a_low_end_may_be_left_out():
    with pytest.raises(ValueError, match=r"^eps lies in \(0, ∞\); got 0; write eps=0.1$"):
        check_range("eps", 0, 0, math.inf, low_is_allowed=False)


@pytest.mark.parametrize("value", [True, "0.1", None])
def test_true_and_texts_are_no_numbers(value):
    with pytest.raises(TypeError, match="^lr is a number; got"):
        check_range("lr", value, 0, 1)


@pytest.mark.parametrize("value", [0, -1, 2.0, True, "3"])
def test_a_count_is_whole(value):
    with pytest.raises(ValueError, match="^steps is a whole number from 1 up; got"):
        check_count("steps", value, 1)


@pytest.mark.parametrize("value", [0, 1, "false", None])
def test_a_flag_is_true_or_false(value):
    with pytest.raises(TypeError, match="^nesterov is True or False; got"):
        check_flag("nesterov", value)


@pytest.mark.parametrize(
    "betas, text", [([0.9, 0.999], "two numbers"), ((0.9,), "two numbers"), ((0.9, 1), r"betas\[1\]")]
)
def test_betas_are_two_numbers_below_one(betas, text):
    with pytest.raises(ValueError, match=text):
        check_betas(betas)
