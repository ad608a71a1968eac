"""The doors of this room: what is asked for is looked at before anything is read or written."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Collection
from typing import Any

import numpy as np


def is_whole(value: Any, least: int = 0) -> bool:
    """Tell whether a value is an integer, Python's or NumPy's, of at least `least`."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and int(value) >= least


def is_number(value: Any) -> bool:
    """Tell whether a value is a finite number."""
    real = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    return real and math.isfinite(value)


def vocabulary(model: Any, source: bool = False) -> float:
    """Return how many tokens a model reads and writes, of a translator its source or its target has; ∞ if unsaid."""
    names = ("source_vocab",) if source else ("vocab_size", "target_vocab")
    return next((getattr(model.config, name) for name in names if hasattr(model.config, name)), math.inf)


def _is_token(value: Any, vocab: float) -> bool:
    return is_whole(value) and value < vocab


def _upto(vocab: float) -> str:
    return "from 0" if vocab == math.inf else f"from 0 to {vocab - 1}"


def require_count(name: str, value: Any) -> None:
    """Raise ValueError unless a value is a number of tokens, 0 among them."""
    if not is_whole(value):
        raise ValueError(f"{name} is an integer of at least 0; got {value!r}; write {name}=20")


def require_chunk(chunk: Any) -> None:
    """Raise ValueError unless a value says how much is read at once."""
    if not is_whole(chunk):
        raise ValueError(f"a chunk has at least one token, or is 0 for all at once; got {chunk!r}; write chunk=64")


def require_rows(rows: Any, vocab: float, name: str) -> None:
    """Raise ValueError unless rows are lists of a model's token ids; empty ones are left to the readers."""
    if not isinstance(rows, Collection) or isinstance(rows, str):
        raise ValueError(f"{name} are lists of token ids; got {reprlib.repr(rows)}; write {name}=[[4, 2, 7]]")
    for row in rows:
        try:
            ids = np.asarray(row)
        except (TypeError, ValueError):  # lists in a list; an array on a GPU
            ids = np.asarray(None)
        fits = ids.ndim == 1 and (not ids.size or (ids.dtype.kind in "iu" and ids.min() >= 0 and ids.max() < vocab))
        if not fits:
            raise ValueError(
                f"{name} are lists of token ids, integers {_upto(vocab)}; got {reprlib.repr(row)}; "
                f"write {name}=[[4, 2, 7]]"
            )


def require_tokens(vocab: float, **tokens: Any) -> None:
    """Raise ValueError unless each value is the id of a token."""
    for name, token in tokens.items():
        if not _is_token(token, vocab):
            raise ValueError(f"{name} is a token id, an integer {_upto(vocab)}; got {token!r}; write {name}=2")


def stops(stop: Any, vocab: float) -> set[int]:
    """Return the tokens that end a text. Raises ValueError unless all are token ids."""
    if not isinstance(stop, Collection) or isinstance(stop, str):
        raise ValueError(f"stop is a set of token ids; got {stop!r}; write stop={{2}}")
    for token in stop:
        if not _is_token(token, vocab):
            raise ValueError(f"stop has token ids, integers {_upto(vocab)}; got {token!r}; write stop={{2}}")
    return {int(token) for token in stop}


def require_choice(choose: Any) -> None:
    """Raise ValueError unless a token can be chosen by calling what is given."""
    if not callable(choose):
        raise ValueError(
            f"choose is a function of scores (B, V) that gives tokens (B,); got {choose!r}; "
            "write choose=generate.sampler(0.8)"
        )
