"""The numbers in a picture: what is kept as JSON beside every figure of a lesson.

They are read off the finished matplotlib figure, so that no lesson has to list them and none can list others than it
has drawn.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

DIGITS = 6  # significant ones: enough to draw the figure again
MOST = 20_000  # numbers of one array that are kept; a picture needs no more


def plotted_values(figure: Any) -> dict[str, Any]:
    """Return the name of a figure and, panel by panel, its titles, lines, points, bars, images and words."""
    return {"figure": figure.get_label(), "panels": [_panel(axes) for axes in figure.axes]}


def _panel(axes: Any) -> dict[str, Any]:
    panel: dict[str, Any] = {
        "title": axes.get_title(),
        "x": axes.get_xlabel(),
        "y": axes.get_ylabel(),
        "lines": [
            {"label": line.get_label(), "x": _numbers(line.get_xdata()), "y": _numbers(line.get_ydata())}
            for line in axes.lines
        ],
        "points": [_numbers(points.get_offsets()) for points in axes.collections if len(points.get_offsets()) > 1],
        "bars": [
            _numbers([bar.get_x(), bar.get_y(), bar.get_width(), bar.get_height()])
            for bar in axes.patches
            if hasattr(bar, "get_width") and hasattr(bar, "get_x")
        ],
        "images": [_numbers(image.get_array()) for image in axes.images],
        "words": [{"text": t.get_text(), "at": _numbers(t.get_position())} for t in axes.texts if t.get_text()],
    }
    return {key: value for key, value in panel.items() if value}


def _numbers(values: Any) -> Any:
    """Return an array as lists, rounded; masked elements and NaN become null, which JSON has."""
    array = np.ma.filled(np.ma.asarray(values).astype(float), np.nan) if _is_numeric(values) else np.asarray(values)
    if array.size > MOST:
        return f"{array.size} numbers, shape {array.shape}"
    return _rounded(array.tolist())


def _is_numeric(values: Any) -> bool:
    return np.asarray(values).dtype.kind in "biuf"


def _rounded(value: Any) -> Any:
    if isinstance(value, list):
        return [_rounded(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if np.isfinite(value) else None
    return value if isinstance(value, int) else str(value)


def prepare_kernel() -> None:
    """Inside the kernel that runs a lesson: make warnings errors, and let each figure come with its numbers."""
    from IPython.core.getipython import get_ipython

    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", module=r"(ipykernel|IPython|zmq|tornado|traitlets|jupyter_client)\b")
    shell: Any = get_ipython()
    formatter = shell.display_formatter.formatters["application/json"]
    formatter.for_type_by_name("matplotlib.figure", "Figure", plotted_values)
