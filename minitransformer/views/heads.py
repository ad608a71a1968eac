"""Who looks at whom: a page of attention heads, with lines between tokens, in one file.

A weight travels as one byte, its share of the largest weight of its row, and each row's largest as a float32: the
error is at most 1/510 of that largest. All of them are deflated; the browser inflates them. So 512 tokens, eight heads
and six layers are 12.6 million bytes before, and much less after, where heads look at few tokens.
"""

from __future__ import annotations

import base64
import os
import unicodedata
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..backend import to_numpy
from ..tensor import as_array
from .page import Page, fill, save

LONGEST_LABEL = 24  # characters shown of one token
LEVELS = 255  # steps of a weight, from 0 to the largest of its row

Attention = tuple[Any, Sequence[Any], Sequence[Any]]


def head_view(
    attention: dict[str, Attention], path: str | os.PathLike[str] | None = None, title: str = "attention"
) -> Page:
    """Return a page on which lines lead from each query to the keys it looks at; written if a path is given.

    attention: kind → (weights (L, H, T, S) in 0..1, T labels of queries, S labels of keys)

    Any kind, layer and head can be chosen, or all heads of a layer; a token is selected by pointer or keys. Tokens are
    text, whatever is in them. A notebook shows the page when a cell ends with it.
    Raises ValueError for shapes that do not fit, NaN or a weight outside 0..1.
    """
    if not attention:
        raise ValueError("a head view shows at least one kind of attention; got none; write {'cross': (w, rows, cols)}")
    kinds = []
    for kind, (weights, rows, columns) in attention.items():
        packed = packed_weights(kind, weights, rows, columns)
        kinds.append({"kind": kind, "rows": labels(rows), "columns": labels(columns), **packed})
    page = Page(save(fill("heads.html", title, {"kinds": kinds}), path))
    page.name = title
    return page


def packed_weights(kind: str, weights: Any, rows: Sequence[Any], columns: Sequence[Any]) -> dict[str, Any]:
    """Return the weights (L, H, T, S) in bytes, deflated, and what the browser needs to read them."""
    array = np.asarray(to_numpy(as_array(weights)), dtype=np.float32)
    if array.ndim != 4 or 0 in array.shape or array.shape[2:] != (len(rows), len(columns)):
        raise ValueError(
            f"weights of {kind} must be (L, H, T, S) with T rows and S columns, none of them 0; got {array.shape} with "
            f"{len(rows)} rows and {len(columns)} columns; write np.stack(layers), and a label for each token"
        )
    if not np.isfinite(array).all() or array.min() < -1e-6 or array.max() > 1 + 1e-6:
        raise ValueError(
            f"weights of {kind} must lie in 0..1; got {array.min():.7g} to {array.max():.7g}; "
            "write the weights after the softmax, not the scores"
        )
    array = np.clip(array, 0, 1)
    largest = array.max(axis=-1)
    shares = array / np.where(largest == 0, 1, largest)[..., None]
    levels = np.round(shares * LEVELS).astype(np.uint8)
    layers, heads = array.shape[:2]
    return {
        "layers": layers, "heads": heads,
        "largest": _deflated(largest.astype("<f4").tobytes()), "levels": _deflated(levels.tobytes()),
    }  # fmt: skip


def _deflated(content: bytes) -> str:
    return base64.b64encode(zlib.compress(content, 9)).decode()


def labels(tokens: Sequence[Any]) -> list[list[str]]:
    """Return, for each token, what is shown of it, and the whole of it where that is something else."""
    return [
        [short] if short == whole else [short, whole] for short, whole in ((shown_token(t), str(t)) for t in tokens)
    ]


def shown_token(token: Any) -> str:
    """Return what to draw of a token: the token as it is, but for what cannot be seen or would break the line."""
    text = str(token)
    if not text.strip(" "):
        return "␣" * len(text)
    hidden = {"Cc", "Cn", "Cs", "Zl", "Zp"}  # control characters, line ends, half characters: shown as "\n" is
    text = "".join(repr(c)[1:-1] if unicodedata.category(c) in hidden else c for c in text)
    return text if len(text) <= LONGEST_LABEL else text[: LONGEST_LABEL - 1] + "…"
