"""Draw attention weights and loss curves, and keep the plotted numbers beside every picture.

Each function returns a matplotlib Figure. Given a `path`, it also saves three files of one stem: a PNG to
look at, an SVG to zoom into, and a JSON with the plotted values, so that a figure can be checked or redrawn
without the run it came from. The same input gives the same bytes.

Only `matplotlib.figure.Figure` is used, never pyplot: no global list of figures to leak, no display needed,
any thread may draw. matplotlib is imported inside the functions, so that importing this costs nothing.
"""

from __future__ import annotations

import functools
import io
import itertools
import json
import math
import os
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from warnings import catch_warnings, filterwarnings

import numpy as np

from .views.heads import shown_token

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

COLOURS = "viridis"  # perceptually uniform: equal steps of weight look like equal steps of colour
MOST_PRINTED = 12  # up to 12 × 12 cells also show their number
CURVES = ("#08519c", "#d95f02", "#1b9e77", "#7570b3", "#e7298a", "#66a61e", "#a6761d", "#666666")  # colours of lines
ROOM_FOR_NUMBER = 0.24  # inches of a cell: two decimals of 6 points
MOST_GRIDDED = 40  # up to here thin lines between the cells help to follow a row; beyond, they would hide it

# matplotlib's settings and Python's warning filters belong to the whole process: one drawing at a time.
_drawing = threading.RLock()


def attention_heatmap(
    weights: Any,
    rows: Sequence[Any],
    columns: Sequence[Any],
    path: str | os.PathLike[str] | None = None,
    title: str | None = None,
    allowed: Any = None,
    lengths: tuple[int, int] | None = None,
) -> Figure:
    """Draw the attention weights of one head: who looks (rows) at what (columns).

    weights: (T, S) in 0..1    rows: T query labels    columns: S key labels    allowed: (T, S), True = may look

    The colour scale is always 0..1, so that two pictures can be compared. Cells where `allowed` is False are
    left blank and hatched; a weight there raises, because the picture would hide a leak in the mask.
    lengths: how many rows and columns are no padding; the others are cropped, and a weight on them raises, too.
    Raises ValueError for shapes that do not fit, NaN or a weight outside 0..1; TypeError for what is no number;
    RuntimeError without matplotlib.
    """
    shown, rows, columns = _checked_weights(weights, rows, columns, allowed, "(T, S)", lengths)
    return _attention("attention_heatmap", shown, rows, columns, path, title)


def attention_grid(
    weights: Any,
    rows: Sequence[Any],
    columns: Sequence[Any],
    path: str | os.PathLike[str] | None = None,
    title: str | None = None,
    allowed: Any = None,
    first: tuple[int, int] = (1, 1),
    lengths: tuple[int, int] | None = None,
) -> Figure:
    """Draw every head of every layer as a small heatmap, all on one colour scale.

    weights: (L, H, T, S) in 0..1    rows: T query labels    columns: S key labels    allowed: (T, S)

    One line of panels per layer, one panel per head; token labels stand on the left and top panels only.
    first: the numbers of the first layer and head given, where they are a part of a model.
    lengths: how many rows and columns are no padding, see `attention_heatmap`. Raises as it does.
    """
    shown, rows, columns = _checked_weights(weights, rows, columns, allowed, "(L, H, T, S)", lengths)
    return _attention("attention_grid", shown, rows, columns, path, title, first)


def loss_curve(
    steps: Any,
    losses: Any,
    path: str | os.PathLike[str] | None = None,
    validation: tuple[Any, Any] | None = None,
    title: str | None = None,
) -> Figure:
    """Draw the loss, in nats per token, against the training step.

    steps, losses: (N,)    validation: a pair (steps, losses), each (M,)

    The pale line is every value given, the strong one a running mean. The y axis turns logarithmic when the
    losses span more than 1.5 decades. Raises ValueError for shapes that do not fit, NaN, infinity, or steps
    that do not increase; TypeError for what is no number; RuntimeError without matplotlib.
    """
    x, y = _checked_curve("", steps, losses)
    window = len(x) // 30
    mean = _running_mean(y, window)
    values: dict[str, Any] = {"figure": "loss_curve", "title": title, "unit": "nats per token"}
    values |= {"steps": _rounded(x), "losses": _rounded(y), "running_mean": _rounded(mean), "validation": None}
    seen = y
    with _style() as new_figure:
        figure = new_figure(figsize=(8, 4.8), layout="constrained")
        axes = figure.add_subplot()
        smooth = f"mean of {2 * window + 1} values, " if window else ""
        if window:
            axes.plot(x, y, color="#a6c8e8", linewidth=1, label="training, every value")
        dot = "o" if len(x) == 1 else ""  # a line through a single point would be invisible
        axes.plot(x, mean, dot + "-", color="#08519c", lw=2.5, label=f"training, {smooth}last {mean[-1]:.3g}")
        if validation is not None:
            if len(validation) != 2:
                raise ValueError(
                    f"validation must be one pair; got {len(validation)} items; write validation=(steps, losses)"
                )
            at, held_out = _checked_curve("validation ", *validation)
            values["validation"] = {"steps": _rounded(at), "losses": _rounded(held_out)}
            seen = np.concatenate([y, held_out])
            look: dict[str, Any] = {"color": "#d95f02", "markersize": 7, "markeredgecolor": "white"}
            axes.plot(at, held_out, "o", label=f"validation, last {held_out[-1]:.3g}", zorder=3, **look)
        _dress_curve(axes, seen)
        if title:
            axes.set_title(str(title), fontsize=14, parse_math=False)
        if path is not None:
            _save(figure, path, values)
    return figure


def bars(
    groups: dict[str, dict[str, tuple[float, float, float]]],
    path: str | os.PathLike[str] | None = None,
    title: str | None = None,
    unit: str = "",
    mark: float | None = 1.0,
) -> Figure:
    """Draw labelled horizontal bars, with their spread, in one panel for each group: shorter is better.

    groups: panel → bar → (value, least, greatest)

    A dotted line stands at `mark`: 1 is what ratios are measured against. Raises RuntimeError without matplotlib.
    """
    with _style() as new_figure:
        height = 0.9 + 0.34 * max(len(rows) for rows in groups.values())
        figure = new_figure(figsize=(3 + 3 * len(groups), height), layout="constrained")
        panels = figure.subplots(1, len(groups), sharey=True, squeeze=False)[0]
        for axes, (name, rows) in zip(panels, groups.items(), strict=True):
            labels, y = list(rows), range(len(rows))
            value = np.array([rows[label][0] for label in labels])
            spread = [value - [rows[n][1] for n in labels], [rows[n][2] for n in labels] - value]
            own = ["#08519c" if "minitransformer" in label else "#a6c8e8" for label in labels]
            axes.barh(y, value, xerr=spread, color=own, ecolor="#555555", height=0.7, error_kw={"elinewidth": 1})
            for at, v, high in zip(y, value, spread[1], strict=True):
                axes.text(v + high, at, f" {v:.2f}", va="center", fontsize=9)
            if mark is not None:
                axes.axvline(mark, color="#555555", linestyle=":", linewidth=1)
            axes.set_xlim(0, 1.3 * float((value + spread[1]).max()))
            axes.set_yticks(list(y), labels, parse_math=False)
            axes.set_title(name, fontsize=12, parse_math=False)
            axes.set_xlabel(unit)
        panels[0].invert_yaxis()
        if title:
            figure.suptitle(str(title), fontsize=13)
        if path is not None:
            _save(figure, path, {"figure": "bars", "title": title, "unit": unit, "groups": groups})
    return figure


def log_log(
    panels: dict[str, dict[str, tuple[Any, Any]]], path: str | os.PathLike[str] | None = None, title: str | None = None
) -> Figure:
    """Draw curves of seconds on logarithmic axes, one panel for each quantity that was varied.

    panels: name of the x axis → label → (x, seconds), each (N,)

    Raises RuntimeError without matplotlib.
    """
    with _style() as new_figure:
        figure = new_figure(figsize=(3.6 * len(panels), 3.6), layout="constrained")
        for axes, (name, curves) in zip(
            figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels.items(), strict=True
        ):
            for colour, (label, (x, y)) in zip(CURVES, curves.items(), strict=False):
                axes.loglog(x, y, "o-", color=colour, label=label, linewidth=1.8, markersize=4)
            ticks = next(iter(curves.values()))[0]
            axes.set_xticks(ticks, [str(t) for t in ticks], fontsize=8)
            axes.minorticks_off()
            axes.set_xlabel(name)
            axes.legend(fontsize=8)
        figure.axes[0].set_ylabel("seconds a step")
        if title:
            figure.suptitle(str(title), fontsize=13)
        if path is not None:
            values = {name: {k: [list(x), list(y)] for k, (x, y) in curves.items()} for name, curves in panels.items()}
            _save(figure, path, {"figure": "log_log", "title": title, "unit": "seconds a step", "panels": values})
    return figure


def gradient_norms(
    panels: dict[str, dict[str, tuple[Any, Any]]], path: str | os.PathLike[str] | None = None, title: str | None = None,
    across: dict[str, str] | None = None, wide: int = 3,
) -> Figure:  # fmt: skip
    """Draw norms of gradients on a logarithmic axis, against the layer or the training step.

    panels: title → curve → (x, norms), each (N,)    across: title → what x is, where it is not the layer
    wide: panels in a row, at most

    A line that falls towards the first layer vanishes, one that rises towards it explodes. Panels have scales of their
    own. A norm of 0 has no place on the axis: the line has a gap there, and the JSON has the 0.
    Raises ValueError for shapes that do not fit, x that does not increase, NaN, infinity or a norm below 0;
    TypeError for what is no number; RuntimeError without matplotlib.
    """
    checked = {
        panel: {name: _checked_norms(f"{panel}, {name}: ", *curve) for name, curve in curves.items()}
        for panel, curves in panels.items()
    }
    wide = min(wide, len(panels))
    high = -(-len(panels) // wide)
    with _style() as new_figure:
        figure = new_figure(figsize=(4.9 * wide, 5.2 * high), layout="constrained")
        grid = figure.subplots(high, wide, squeeze=False).ravel()
        for axes, (panel, curves) in zip(grid, checked.items(), strict=False):
            widths = np.linspace(3.4, 1.2, len(curves))  # where lines lie upon one another, the lower one looks out
            for colour, width, (name, (x, y)) in zip(itertools.cycle(CURVES), widths, curves.items(), strict=False):
                shown = np.where(y > 0, y, np.nan)
                axes.plot(x, shown, "o-", color=colour, label=name, linewidth=width, markersize=width + 1.4)
            _dress_norms(axes, np.concatenate([y for _, y in curves.values()]))
            axes.set_title(panel, fontsize=12, parse_math=False)
            axes.set_xlabel((across or {}).get(panel, "layer (1 is next to the input)"), fontsize=10)
        for axes in grid[len(checked) :]:
            axes.set_visible(False)
        for axes in grid[::wide]:
            axes.set_ylabel("norm of the gradient", fontsize=10)
        if title:
            figure.suptitle(str(title), fontsize=14, parse_math=False)
        if path is not None:
            values = {
                panel: {name: [_significant(x), _significant(y)] for name, (x, y) in curves.items()}
                for panel, curves in checked.items()
            }
            _save(figure, path, {"figure": "gradient_norms", "title": title, "across": across, "panels": values})
    return figure


def attention_effects(
    rows: list[dict[str, Any]],
    lengths: dict[str, tuple[list[int], list[float | None]]],
    trained_length: int,
    sequences: dict[str, list[dict[str, Any]]],
    path: str | os.PathLike[str] | None = None,
) -> Figure:
    """Draw what changes to attention do: time, memory and loss of models, longer texts, long sequences.

    rows: name, group, parameters, ratio, least, greatest, peak, loss of each model, the plain one first; lengths:
    label → (lengths (N,), losses (N,)); sequences: label → rows of length, seconds, memory.
    Raises RuntimeError without matplotlib.
    """
    with _style() as new_figure:
        figure = new_figure(figsize=(13.5, 11.5), layout="constrained")
        grid = figure.add_gridspec(2, 12, height_ratios=(1.55, 1))
        columns = [figure.add_subplot(grid[0, i * 3 : i * 3 + 3]) for i in range(4)]
        places, labels, heads = _grouped(rows)
        shown = [("parameters", "parameters, as a fraction"), ("ratio", "time of a step"), ("peak", "memory of a step"),
                 ("loss", "loss, nats per character")]  # fmt: skip
        for axes, (field, title) in zip(columns, shown, strict=True):
            scale = 1.0 if field in ("ratio", "loss") else rows[0][field]
            value = np.array([row[field] / scale for row in rows])
            axes.barh(places, value, color=["#08519c" if not row["group"] else "#a6c8e8" for row in rows], height=0.75)
            if field == "ratio":
                spread = [value - [row["least"] for row in rows], [row["greatest"] for row in rows] - value]
                axes.errorbar(value, places, xerr=np.maximum(spread, 0), fmt="none", ecolor="#555555", elinewidth=0.8)
            axes.axvline(value[0], color="#555555", linestyle=":", linewidth=1)
            for at, v, row in zip(places, value, rows, strict=True):
                colour = "#222222" if row["group"] else "white"
                axes.text(0.02 * value.max(), at, f"{v:.2f}", va="center", fontsize=7.5, color=colour)
            axes.set_ylim(max(places) + 0.7, min([*places, *heads.values()]) - 0.7)
            axes.set_yticks(places, labels if axes is columns[0] else [""] * len(labels), fontsize=9, parse_math=False)
            axes.set_title(title, fontsize=11)
        for name, at in heads.items():
            columns[0].text(-0.02, at, name, transform=columns[0].get_yaxis_transform(), ha="right", va="center",
                            fontsize=9, style="italic", color="#555555")  # fmt: skip
        _longer_texts(figure.add_subplot(grid[1, 0:4]), lengths, trained_length)
        for at, (field, scale, title) in enumerate((("seconds", 1.0, "seconds, forward and backward"),
                                                    ("memory", 2**20, "resident memory, MiB"))):  # fmt: skip
            _over_lengths(figure.add_subplot(grid[1, 4 + 4 * at : 8 + 4 * at]), sequences, field, scale, title)
        figure.suptitle("What changes to attention do", fontsize=14)
        if path is not None:
            values = {"catalogue": rows, "extrapolation": {k: list(v) for k, v in lengths.items()}, "long": sequences}
            _save(figure, path, {"figure": "attention_effects", **values})
    return figure


def _grouped(rows: list[dict[str, Any]]) -> tuple[list[float], list[str], dict[str, float]]:
    """Return where the bar of each row stands, its label, and where the name of each group does."""
    places: list[float] = []
    heads: dict[str, float] = {}
    at = 0.0
    for row in rows:
        if row["group"] and row["group"] not in heads:
            heads[row["group"]] = at
            at += 1
        places.append(at)
        at += 1
    return places, [row["name"] for row in rows], heads


def _longer_texts(axes: Axes, lengths: dict[str, tuple[list[int], list[float | None]]], trained: int) -> None:
    for colour, (label, (x, y)) in zip(CURVES, lengths.items(), strict=False):
        known = [(a, b) for a, b in zip(x, y, strict=True) if b is not None]
        axes.plot(*zip(*known, strict=True), "o-", color=colour, label=label, linewidth=1.6, markersize=4)
    axes.axvline(trained, color="#555555", linestyle=":", linewidth=1)
    axes.set_xscale("log")
    ticks = next(iter(lengths.values()))[0]
    axes.set_xticks(ticks, [str(t) for t in ticks])
    axes.minorticks_off()
    axes.set_xlabel("characters read (trained: dotted)")
    axes.set_title("loss on longer texts", fontsize=11)
    axes.legend(fontsize=7.5)


def _over_lengths(axes: Axes, sequences: dict[str, Any], field: str, scale: float, title: str) -> None:
    for colour, (label, rows) in zip(CURVES, sequences.items(), strict=False):
        style = "o--" if "PyTorch" in label else "o-"
        axes.loglog([r["length"] for r in rows], [r[field] / scale for r in rows], style, color=colour, label=label,
                    linewidth=1.6, markersize=4)  # fmt: skip
    values = [r[field] / scale for rows in sequences.values() for r in rows]
    ticks = sorted({r["length"] for rows in sequences.values() for r in rows})
    axes.set_xticks(ticks, [f"{t:,}" for t in ticks])
    axes.minorticks_off()
    low, high = min(values), max(values)
    powers = [10.0**p for p in range(math.floor(math.log10(low)), math.floor(math.log10(high)) + 1)]
    shown = [n * power for power in powers for n in (1, 2, 5) if low <= n * power <= high] or [low, high]
    axes.set_yticks(shown, [f"{value:.3g}" for value in shown])
    axes.set_xlabel("length")
    axes.set_title(title, fontsize=11)
    axes.legend(fontsize=7.5)


# ---- the doors: what comes in is checked before anything is drawn


def _numbers(name: str, given: Any) -> np.ndarray:
    """Return what was given (list, array, Tensor, GPU array) as float64 on the CPU."""
    to_cpu = getattr(given, "numpy", None) or getattr(given, "get", None)  # Tensor.numpy(), cupy.ndarray.get()
    try:
        array = np.asarray(to_cpu() if to_cpu else given)
    except ValueError as error:
        raise ValueError(f"{name} must be a full array; got rows of several lengths; write one length") from error
    if array.dtype.kind not in "fiu":
        raise TypeError(f"{name} must be real numbers; got {array.dtype}; write an array of floats")
    wrong = np.argwhere(~np.isfinite(array))
    if len(wrong):
        raise ValueError(
            f"{name} must be finite; got {len(wrong)} NaN or infinite in shape {array.shape}, the first at "
            f"{tuple(wrong[0].tolist())}; write numbers only, and look for where the first NaN was born"
        )
    return array.astype(np.float64)


def _checked_weights(
    weights: Any,
    rows: Sequence[Any],
    columns: Sequence[Any],
    allowed: Any,
    axes: str,
    lengths: tuple[int, int] | None,
) -> tuple[np.ma.MaskedArray[Any, Any], Sequence[Any], Sequence[Any]]:
    """Return the weights in 0..1 with the cells that are not allowed masked, and the labels, or raise; no padding."""
    array = _numbers("weights", weights)
    shape, cells = array.shape, array.shape[-2:]
    if len(shape) != len(axes.split(",")) or array.size == 0:
        other = "attention_grid for all heads" if axes == "(T, S)" else "attention_heatmap for one head"
        raise ValueError(f"weights must be {axes}, no axis empty; got shape {shape}; write weights[i], or {other}")
    if cells != (len(rows), len(columns)):
        raise ValueError(
            f"weights {axes} need T row labels and S column labels; got shape {shape} with {len(rows)} rows and "
            f"{len(columns)} columns; write {cells[0]} rows (queries) and {cells[1]} columns (keys)"
        )
    if array.min() < -1e-6 or array.max() > 1 + 1e-6:
        raise ValueError(
            f"weights must lie in 0..1; got {array.min():.7g} to {array.max():.7g} in shape {shape}; "
            "write the weights after the softmax, not the scores"
        )
    may_look = np.ones(cells, bool) if allowed is None else np.asarray(allowed)
    if may_look.dtype != bool or may_look.shape != cells:
        raise ValueError(
            f"allowed must be boolean of shape (T, S) = {cells}; got {may_look.dtype} of shape {may_look.shape}; "
            "write True where a query may look"
        )
    masked = np.broadcast_to(~may_look, shape)
    leak = array[masked].max(initial=0)
    if leak > 1e-6:
        raise ValueError(
            f"weights must be 0 where allowed is False; got {leak:.7g} in shape {shape}; "
            "write allowed with True = may look, or look for the leak in the mask"
        )
    shown: np.ma.MaskedArray[Any, Any] = np.ma.MaskedArray(np.clip(array, 0, 1), mask=masked)
    if lengths is None:
        return shown, rows, columns
    t, s = lengths
    if not (1 <= t <= cells[0] and 1 <= s <= cells[1]):
        raise ValueError(f"lengths count rows and columns without padding; got {lengths} of {cells}; write (T, S)")
    leak = array[..., :t, s:].max(initial=0)
    if leak > 1e-6:
        raise ValueError(
            f"weights must be 0 on padding; got {leak:.7g} behind column {s} of shape {shape}; "
            "look for the leak in the key mask, or write the lengths without padding"
        )
    return shown[..., :t, :s], list(rows)[:t], list(columns)[:s]


def _checked_curve(which: str, steps: Any, losses: Any) -> tuple[np.ndarray, np.ndarray]:
    x, y = _numbers(f"{which}steps", steps), _numbers(f"{which}losses", losses)
    if x.ndim != 1 or x.shape != y.shape or x.size == 0:
        raise ValueError(
            f"{which}steps and losses must be two lists of one length N ≥ 1; got shapes {x.shape} and {y.shape}; "
            "write one loss for each step"
        )
    back = np.flatnonzero(np.diff(x) <= 0)
    if len(back):
        raise ValueError(
            f"{which}steps must increase; got {x[back[0]]:g} then {x[back[0] + 1]:g} in shape {x.shape}; "
            "write each step once, in order (after a resume, keep the last record of a step)"
        )
    return x, y


def _checked_norms(which: str, x: Any, norms: Any) -> tuple[np.ndarray, np.ndarray]:
    at, y = _numbers(f"{which}x", np.asarray(x)), _numbers(f"{which}norms", norms)
    if at.ndim != 1 or at.shape != y.shape or at.size == 0:
        raise ValueError(
            f"{which}x and norms must be two lists of one length N ≥ 1; got shapes {at.shape} and {y.shape}; "
            "write one norm for each layer or step"
        )
    if (np.diff(at) <= 0).any() or y.min() < 0:
        raise ValueError(
            f"{which}x must increase and norms be at least 0; got x from {at.min():g} to {at.max():g} and a least norm "
            f"of {y.min():g}; write each layer or step once, in order"
        )
    return at, y


# ---- the pieces of a picture


@contextmanager
def _style() -> Iterator[Callable[..., Figure]]:
    """Lend a maker of figures under matplotlib's own defaults, whatever style the caller's program has set."""
    try:
        from matplotlib import font_manager, style
    except ImportError as error:
        raise RuntimeError("drawing needs matplotlib; none is installed; write: pip install matplotlib") from error
    installed = {font.name for font in font_manager.fontManager.ttflist}
    other_scripts = ["Noto Sans CJK JP", "Noto Sans CJK SC", "Hiragino Sans", "Microsoft YaHei", "Noto Emoji"]
    settings = {
        "font.family": ["DejaVu Sans", *(name for name in other_scripts if name in installed)],
        "font.size": 12,
        "svg.hashsalt": "minitransformer",  # element ids from the content, not from chance
        "svg.fonttype": "none",  # text stays text: it can be searched, and a browser finds fonts we lack
    }
    with _drawing, style.context(["default", settings]), catch_warnings():
        # A token of a script that no font here has is drawn as a box, and stays whole in the SVG and the JSON.
        filterwarnings("ignore", message=r"Glyph \d+ .*missing from", category=UserWarning)
        yield _new_figure


def _new_figure(**settings: Any) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(dpi=100, **settings)
    # What a notebook shows when a cell ends in this figure; pyplot would have to be loaded otherwise.
    figure._repr_png_ = functools.partial(_render, figure, "png")  # type: ignore[attr-defined]
    return figure


def _attention(
    kind: str,
    shown: np.ma.MaskedArray[Any, Any],
    rows: Sequence[Any],
    columns: Sequence[Any],
    path: str | os.PathLike[str] | None,
    title: str | None,
    first: tuple[int, int] = (1, 1),
) -> Figure:
    """Lay out one panel (T, S), or layers × heads of them (L, H, T, S); all lengths are in inches."""
    layers, heads, height, width = (1, 1, *shown.shape)[-4:]
    single, longest = shown.ndim == 2, max(height, width)
    largest = _panel_size(single, heads, longest)
    cell = min(largest / longest, max(0.62, 2 / longest))
    size = (width * cell, height * cell)
    across, down = size[0] + 0.15, size[1] + 0.35  # from one panel to the next
    margin = 0.8 + 0.1 * max(len(shown_token(token)) for token in [*rows, *columns])
    page = (margin + heads * across + 1.3, margin + layers * down + 0.5)
    with _style() as new_figure:
        figure = new_figure(figsize=page)

        def place(left: float, top: float, wide: float, high: float) -> Axes:
            return figure.add_axes((left / page[0], 1 - (top + high) / page[1], wide / page[0], high / page[1]))

        for layer, head in np.ndindex(layers, heads):
            axes = place(margin + head * across, margin + layer * down, *size)
            image = _cells(axes, shown if single else shown[layer, head])
            _label_ticks(axes, rows if head == 0 else [], columns if layer == 0 else [], size)
            if not single:
                axes.set_title(
                    f"layer {layer + first[0]} · head {head + first[1]}", fontsize=10 if largest > 1.5 else 8.5
                )
        if single:
            axes.set_xlabel("keys (looked at)", labelpad=8)
            axes.set_ylabel("queries (looking)", labelpad=8)
        middle = (margin + (heads * across - 0.15) / 2) / page[0]
        if not single:
            caption = "rows: queries (looking)  ·  columns: keys (looked at)"
            figure.text(middle, 0.45 / page[1], caption, ha="center", fontsize=11)
        tall = min(layers * down - 0.35, 8.5)
        bar = place(margin + heads * across + 0.05, margin, 0.2, tall)
        ticks = [0, 0.25, 0.5, 0.75, 1] if tall > 1.5 else [0, 1]
        figure.colorbar(image, cax=bar, ticks=ticks, label="attention weight" if tall > 1.5 else "weight")
        if title:  # above the key labels, however long they turned out
            boxes = [axes.get_tightbbox() for axes in figure.axes[:heads]]
            top = max(box.y1 for box in boxes if box) / figure.dpi + 0.15
            figure.suptitle(str(title), x=middle, y=top / page[1], va="bottom", fontsize=14, parse_math=False)
        if path is not None:
            _save(figure, path, _attention_values(kind, shown, rows, columns, title))
    return figure


def _panel_size(single: bool, heads: int, longest: int) -> float:
    """Return the inches of a panel's longer side: fewer heads leave more, labels and numbers need some."""
    size = 8.5 if single else float(np.clip(15 / heads, 1.3, 2.6))
    size = max(size, min(longest, 24) * 0.15)  # up to 24 tokens each has room for its label
    return max(size, longest * ROOM_FOR_NUMBER) if longest <= MOST_PRINTED else size


def _cells(axes: Axes, shown: np.ma.MaskedArray[Any, Any]) -> AxesImage:
    """Draw the weights (T, S) as square cells; masked ones stay clear, and the hatched ground shows through."""
    axes.patch.set(hatch="////", edgecolor="#c4c4c4", linewidth=0)
    image = axes.imshow(shown, cmap=COLOURS, vmin=0, vmax=1, aspect="equal")
    height, width = shown.shape
    few = max(height, width) <= MOST_PRINTED
    if max(height, width) <= MOST_GRIDDED:
        axes.set_xticks(np.arange(1, width) - 0.5, minor=True)
        axes.set_yticks(np.arange(1, height) - 0.5, minor=True)
        axes.grid(which="minor", color="white", linewidth=0.8 if few else 0.4)
    axes.spines[:].set_color("#999999")
    axes.tick_params(which="minor", length=0)
    if few:
        _print_numbers(axes, image, shown, size=min(11.0, axes.bbox.width / axes.figure.dpi / width * 72 * 0.36))
    return image


def _print_numbers(axes: Axes, image: AxesImage, shown: np.ma.MaskedArray[Any, Any], size: float) -> None:
    for (row, column), weight in np.ndenumerate(shown.filled(np.nan)):
        if np.isnan(weight):  # masked
            continue
        rgb = np.asarray(image.cmap(float(weight))[:3])
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        luminance = float(linear @ [0.2126, 0.7152, 0.0722])  # from 0.18 on black contrasts more than white
        ink = "black" if luminance > 0.18 else "white"
        axes.text(column, row, f"{weight:.2f}", ha="center", va="center", fontsize=size, color=ink)


def _label_ticks(axes: Axes, rows: Sequence[Any], columns: Sequence[Any], size: tuple[float, float]) -> None:
    """Write key labels on top and query labels on the left, as many as `size` (inches) leaves room for."""

    def kept(labels: Sequence[Any], inches: float) -> list[int]:
        fewest = len(labels) * 0.14 / inches  # a line of small print is 0.14 inches high
        every = next(k for k in (1, 2, 5, *range(10, 10**6, 10)) if k >= fewest)
        return list(range(0, len(labels), every))

    across, down = kept(columns, size[0]), kept(rows, size[1])
    words = [shown_token(columns[i]) for i in across]
    flat = max(map(len, words), default=0) * len(words) * 0.11 < size[0]  # do they fit side by side?
    # Labels are tokens, not formulas: without parse_math=False "$x_1$" would be typeset as mathematics.
    crowded = max(len(across) / size[0], len(down) / size[1]) > 4
    look: dict[str, Any] = {"parse_math": False, "fontsize": 8.5 if crowded else 11, "color": "#333333"}
    axes.set_xticks(across, words, rotation=0 if flat else 90, **look)
    axes.set_yticks(down, [shown_token(rows[i]) for i in down], **look)
    axes.xaxis.set_label_position("top")
    axes.tick_params(which="major", length=0, labeltop=True, labelbottom=False)


def _running_mean(y: np.ndarray, window: int) -> np.ndarray:
    """Average `window` values to each side; fewer near the ends, so that the line starts where y starts."""
    i = np.arange(len(y))
    before = np.minimum(i, window)
    after = np.minimum(before, len(y) - 1 - i)
    total = np.concatenate([[0.0], np.cumsum(y)])
    return np.asarray((total[i + after + 1] - total[i - before]) / (after + before + 1))


def _dress_curve(axes: Axes, losses: np.ndarray) -> None:
    """Set the scale, the names with their units, and the legend."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    positive = losses[losses > 0]
    decades = np.log10(positive.max() / positive.min()) if len(positive) and losses.min() >= 0 else 0
    if decades > 1.5:
        axes.set_yscale("log")
        axes.set_ylim(positive.min() / 1.3, positive.max() * 1.3)  # a loss of exactly 0 falls through the floor
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 3 else (1,)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 2.5, 5, 10], integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    axes.set_xlabel("training step")
    axes.set_ylabel("loss (nats per token)")
    axes.grid(color="#e3e3e3", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=11)


def _dress_norms(axes: Axes, norms: np.ndarray) -> None:
    """Set a logarithmic scale with few labels, and the legend below, where it hides no line."""
    from matplotlib.ticker import LogLocator, NullLocator
    from matplotlib.transforms import ScaledTranslation

    axes.set_yscale("log")
    positive = norms[norms > 0]
    if len(positive):  # at least two decades, so that what is flat looks flat
        middle, half = np.log10(positive.min() * positive.max()) / 2, np.log10(positive.max() / positive.min()) / 2
        half = max(1.1, 1.08 * half)
        axes.set_ylim(10 ** (middle - half), 10 ** (middle + half))
    axes.yaxis.set_major_locator(LogLocator(numticks=9))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.tick_params(labelsize=9)
    axes.grid(color="#e3e3e3", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    below = axes.transAxes + ScaledTranslation(0, -0.55, axes.figure.dpi_scale_trans)  # inches: ticks and the name of x
    place: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, 0), "bbox_transform": below}
    axes.legend(frameon=False, fontsize=9, borderaxespad=0, **place)


# ---- what is kept


def _significant(array: np.ndarray) -> list[float]:
    return [float(f"{value:.6g}") for value in array]


def _rounded(array: np.ndarray) -> Any:
    return (np.round(array, 6) + 0.0).tolist()  # + 0.0 turns -0.0 into 0.0


def _attention_values(
    kind: str, shown: np.ma.MaskedArray[Any, Any], rows: Sequence[Any], columns: Sequence[Any], title: str | None
) -> dict[str, Any]:
    values: dict[str, Any] = {"figure": kind, "title": title}
    values |= {"rows": [str(token) for token in rows], "columns": [str(token) for token in columns]}
    allowed = ~np.ma.getmaskarray(shown).reshape(-1, *shown.shape[-2:])[0]
    return values | {"weights": _rounded(shown.data), "allowed": None if allowed.all() else allowed.tolist()}


def _render(figure: Figure, kind: str) -> bytes:
    """Return the picture as the bytes of a file, with nothing in them of date or program."""
    nothing = {"Software": None} if kind == "png" else {"Date": None, "Creator": None}
    dpi = 150 if kind == "png" else 300  # an SVG holds the cells as an image: sharp when zoomed
    buffer = io.BytesIO()
    with _style():
        figure.savefig(buffer, format=kind, dpi=dpi, metadata=nothing, bbox_inches="tight", pad_inches=0.15)
    return buffer.getvalue()


def _save(figure: Figure, path: str | os.PathLike[str], values: dict[str, Any]) -> None:
    """Write stem.png, stem.svg and stem.json: all made in memory, then written aside, then moved into place."""
    asked = Path(path)
    if asked.is_dir():
        raise ValueError(f"path must name a file; got the folder '{asked}'; write '{asked / 'figure.png'}'")
    # Only our own endings are taken off: "step-0.5" is a stem, not a file of kind ".5".
    stem = asked.with_suffix("") if asked.suffix.lower() in {".png", ".svg", ".json"} else asked
    lines = [f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    contents = {".png": _render(figure, "png"), ".svg": _render(figure, "svg")}
    contents[".json"] = text.encode("utf-8", "backslashreplace")  # half a surrogate pair: as JSON escapes it
    stem.parent.mkdir(parents=True, exist_ok=True)
    aside = {ending: stem.with_name(f".{stem.name}-{uuid.uuid4().hex}{ending}") for ending in contents}
    try:
        for ending, content in contents.items():
            aside[ending].write_bytes(content)
        for ending, temporary in aside.items():
            os.replace(temporary, stem.with_name(stem.name + ending))
    finally:
        for temporary in aside.values():
            temporary.unlink(missing_ok=True)
