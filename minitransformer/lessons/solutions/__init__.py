"""The solutions, apart from the exercises: try first, then look.

lesson_06.py has SOLUTIONS = {"06.1": function, ...}, each as a student would write it in NumPy.
"""

import importlib
from collections.abc import Callable


def solution(number: str) -> Callable:
    """Return the function that solves the exercise of a number. Raises ValueError when there is none."""
    try:
        found: Callable = importlib.import_module(f"{__name__}.lesson_{number.split('.')[0]}").SOLUTIONS[number]
    except (ImportError, KeyError):
        raise ValueError(
            f'a solution has the number of an exercise, such as "01.1"; got {number!r}; correct it'
        ) from None
    return found
