"""What the lessons in lessons/ stand on: exercises that grade themselves, and notebooks built from their sources.

A student meets one function, `mt.lessons.check("02.1", my_function)`. The notebooks themselves are no part of the
package; `minitransformer lessons build` makes them from lessons/NN_name.py.
"""

from .exercise import Exercise, declared, exercise, find, gradients
from .grade import check
from .verdict import Verdict

__all__ = ["Exercise", "Verdict", "check", "declared", "exercise", "find", "gradients"]
