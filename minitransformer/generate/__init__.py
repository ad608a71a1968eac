"""From a trained model to text: one token at a time."""

from .beam import Hypothesis, beam_texts, beam_translate
from .choose import greedy, likeliest, penalise, sampler
from .options import Options
from .write import continue_text, continue_texts, translate

__all__ = [
    "Hypothesis", "Options", "beam_texts", "beam_translate", "continue_text", "continue_texts", "greedy", "likeliest",
    "penalise", "sampler", "translate",
]  # fmt: skip
