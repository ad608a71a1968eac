"""Draw attention weights and loss curves, and keep the plotted numbers beside every picture.

Each function returns a matplotlib Figure. Given a `path`, it also saves three files of one stem: a PNG to
look at, an SVG to zoom into, and a JSON with the plotted values, so that a figure can be checked or redrawn
without the run it came from. The same input gives the same bytes.

Only `matplotlib.figure.Figure` is used, never pyplot: no global figure list to leak, no display needed,
and threads may draw at once. matplotlib is imported inside the functions, so that importing this costs nothing.
"""

from __future__ import annotations

import functools
import io
import json
import os
import threading
import unicodedata
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from warnings import catch_warnings, filterwarnings

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

COLOURS = "viridis"  # perceptually uniform: equal steps of weight look like equal steps of colour
LONGEST_LABEL = 24  # characters shown of one token label; the JSON keeps all of them
MOST_PRINTED = 12  # up to 12 × 12 cells also show their number
MOST_GRIDDED = 40  # up to here thin lines between cells help to follow a row; beyond, they would hide it
LABEL_INCHES = 0.16  # room one line of tick label needs
INK, MASKED = "#333333", "#c4c4c4"

# Styles, fonts and warning filters are process-wide in matplotlib and Python: one drawing at a time touches them.
_drawing = threading.RLock()


def attention_heatmap(
    weights: Any,
    rows: Sequence[Any],
    columns: Sequence[Any],
    path: str | os.PathLike[str] | None = None,
    title: str | None = None,
    allowed: Any = None,
) -> Figure:
    """Draw the attention weights of one head: who looks (rows) at what (columns).

    weights: (T, S) in 0..1    rows: T query labels    columns: S key labels    allowed: (T, S) boolean, True = may look

    The colour scale is always 0..1, so that two pictures can be compared. Cells where `allowed` is False are left
    blank and hatched; a weight there raises, because the picture would hide a leak in the mask.
    Raises ValueError for shapes that do not fit, NaN or a weight outside 0..1; RuntimeError without matplotlib.
    """
    shown = _checked_weights(weights, rows, columns, allowed, "(T, S)")
    with _style() as new_figure:
        height, width = shown.shape
        cell = min(0.62, 8.5 / max(height, width))
        size = (max(width * cell, 2.0), max(height * cell, 2.0))  # inches that the cells take
        margin = 0.085 * max(len(_label(label)) for label in [*rows, *columns])
        figure = new_figure(figsize=(size[0] + margin + 2.0, size[1] + margin + (1.4 if title else 1.0)))
        axes = figure.add_subplot()
        image = _cells(axes, shown)
        _label_ticks(axes, rows, columns, size)
        axes.set_xlabel("keys (looked at)")
        axes.set_ylabel("queries (looking)")
        if max(shown.shape) <= MOST_PRINTED:
            _print_numbers(axes, image, shown)
        figure.colorbar(image, ax=axes, label="attention weight", ticks=[0, 0.25, 0.5, 0.75, 1], fraction=0.05)
        _set_title(figure, title)
        if path is not None:
            _save(figure, path, _attention_values("attention_heatmap", shown, rows, columns, title))
    return figure


def attention_grid(
    weights: Any,
    rows: Sequence[Any],
    columns: Sequence[Any],
    path: str | os.PathLike[str] | None = None,
    title: str | None = None,
    allowed: Any = None,
) -> Figure:
    """Draw every head of every layer as a small heatmap, all on one colour scale.

    weights: (L, H, T, S) in 0..1    rows: T query labels    columns: S key labels    allowed: (T, S) boolean

    One line of panels per layer, one panel per head; token labels stand on the left and top panels only.
    Raises as `attention_heatmap` does.
    """
    shown = _checked_weights(weights, rows, columns, allowed, "(L, H, T, S)")
    layers, heads, height, width = shown.shape
    panel = float(np.clip(15.0 / heads, 1.2, 2.6))
    size = (panel * min(1, width / height), panel * min(1, height / width))
    with _style() as new_figure:
        margin = 0.075 * max(len(_label(label)) for label in [*rows, *columns])
        figure = new_figure(
            figsize=(heads * (size[0] + 0.15) + margin + 1.6, layers * (size[1] + 0.4) + margin + 1.0)
        )
        panels = figure.subplots(layers, heads, squeeze=False)
        for (layer, head), axes in np.ndenumerate(panels):
            image = _cells(axes, shown[layer, head])
            _label_ticks(axes, rows, columns, size, left=head == 0, top=layer == 0)
            axes.set_title(f"layer {layer + 1} · head {head + 1}", fontsize=10)
        figure.supxlabel("rows: queries (looking)   ·   columns: keys (looked at)", fontsize=11)
        figure.colorbar(
            image, ax=panels, label="attention weight", ticks=[0, 0.25, 0.5, 0.75, 1], aspect=30, fraction=0.05
        )
        _set_title(figure, title)
        if path is not None:
            _save(figure, path, _attention_values("attention_grid", shown, rows, columns, title))
    return figure


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
    losses span more than 1.5 decades. Raises ValueError for shapes that do not fit, NaN, infinity, or steps that
    do not increase; RuntimeError without matplotlib.
    """
    x, y = _checked_curve("", steps, losses)
    if validation is not None and len(validation) != 2:
        raise ValueError(
            f"validation must be one pair (steps, losses); got {len(validation)} items; "
            "write validation=(steps, losses)"
        )
    valid = None if validation is None else _checked_curve("validation ", *validation)
    window = max(1, len(x) // 30)
    mean = _running_mean(y, window)
    values: dict[str, Any] = {"figure": "loss_curve", "title": title, "unit": "nats per token"}
    values |= {"steps": _rounded(x), "losses": _rounded(y), "running_mean": _rounded(mean), "validation": None}
    with _style() as new_figure:
        figure = new_figure(figsize=(8, 4.8))
        axes = figure.add_subplot()
        marker = "o" if len(x) == 1 else ""  # a line through one point would be invisible
        if window > 1:
            axes.plot(x, y, color="#a6c8e8", linewidth=1, label="training, each value")
            axes.plot(x, mean, color="#08519c", linewidth=2.5, label=f"training, mean of ±{window} (last {mean[-1]:.3g})")
        else:
            axes.plot(x, y, color="#08519c", linewidth=2.5, marker=marker, label=f"training (last {y[-1]:.3g})")
        if valid is not None:
            values["validation"] = {"steps": _rounded(valid[0]), "losses": _rounded(valid[1])}
            axes.plot(
                *valid, "o", color="#d95f02", markersize=7, markeredgecolor="white",
                label=f"validation (last {valid[1][-1]:.3g})", clip_on=False, zorder=3,
            )
        _dress_curve(axes, y if valid is None else np.concatenate([y, valid[1]]))
        _set_title(figure, title)
        if path is not None:
            _save(figure, path, values)
    return figure


# ---- the doors: what comes in is checked before anything is drawn


def _numbers(name: str, given: Any) -> np.ndarray:
    """Return what was given (list, array, Tensor, GPU array) as float64 on the CPU."""
    for method in ("numpy", "get"):  # Tensor.numpy(), cupy.ndarray.get()
        if hasattr(given, method):
            given = getattr(given, method)()
            break
    try:
        array = np.asarray(given)
    except ValueError as error:
        raise ValueError(f"{name} must be a full array; got rows of unequal length; write one length for all") from error
    if array.dtype.kind not in "fiu":
        raise TypeError(f"{name} must be real numbers; got {array.dtype}; write an array of floats")
    numbers = array.astype(np.float64)
    if not np.isfinite(numbers).all():
        wrong = np.argwhere(~np.isfinite(numbers))
        raise ValueError(
            f"{name} must be finite; got {len(wrong)} NaN or infinite of shape {numbers.shape}, the first at "
            f"{tuple(wrong[0].tolist())}; write numbers only, and look for where the first NaN was born"
        )
    return numbers


def _checked_weights(
    weights: Any, rows: Sequence[Any], columns: Sequence[Any], allowed: Any, axes: str
) -> np.ma.MaskedArray[Any, Any]:
    """Return the weights in 0..1 with the cells that are not allowed masked, or raise."""
    array = _numbers("weights", weights)
    other = "attention_grid(weights, ...)" if axes == "(T, S)" else "attention_heatmap(weights, ...)"
    if array.ndim != axes.count(",") + 1 or array.size == 0:
        raise ValueError(
            f"weights must have shape {axes}, no axis empty; got {array.shape}; "
            f"write weights[i] to pick from a longer one, or {other}"
        )
    if array.shape[-2:] != (len(rows), len(columns)):
        raise ValueError(
            f"weights {axes} need T row labels and S column labels; got {array.shape} with {len(rows)} rows and "
            f"{len(columns)} columns; write {array.shape[-2]} rows (queries) and {array.shape[-1]} columns (keys)"
        )
    if array.min() < -1e-6 or array.max() > 1 + 1e-6:
        raise ValueError(
            f"weights must lie in 0..1; got {array.min():.6g} to {array.max():.6g} in shape {array.shape}; "
            "write the weights after the softmax, not the scores"
        )
    may_look = np.ones(array.shape[-2:], bool) if allowed is None else np.asarray(allowed)
    if may_look.dtype != bool or may_look.shape != array.shape[-2:]:
        raise ValueError(
            f"allowed must be boolean of shape (T, S) = {array.shape[-2:]}; got {may_look.dtype} of shape "
            f"{may_look.shape}; write True where a query may look"
        )
    masked = np.broadcast_to(~may_look, array.shape)
    if np.abs(array[masked]).max(initial=0) > 1e-6:
        leak = array[masked].max()
        raise ValueError(
            f"weights must be 0 where allowed is False; got {leak:.6g} in shape {array.shape}; "
            "write allowed=True = may look (not inverted), or look for a leak in the mask"
        )
    return np.ma.MaskedArray(np.clip(array, 0, 1), mask=masked)


def _checked_curve(which: str, steps: Any, losses: Any) -> tuple[np.ndarray, np.ndarray]:
    x, y = _numbers(f"{which}steps", steps), _numbers(f"{which}losses", losses)
    if x.ndim != 1 or x.shape != y.shape or x.size == 0:
        raise ValueError(
            f"{which}steps and losses must be two lists of one length N ≥ 1; got shapes {x.shape} and {y.shape}; "
            "write one loss for each step"
        )
    if (np.diff(x) <= 0).any():
        at = int(np.argmax(np.diff(x) <= 0))
        raise ValueError(
            f"{which}steps must increase; got {x[at]:g} followed by {x[at + 1]:g} at index {at + 1} of {x.size}; "
            "write each step once, in order (after a resume, keep the last record of a step)"
        )
    return x, y


# ---- the pieces of a picture


@contextmanager
def _style() -> Iterator[Any]:
    """Lend a maker of figures under matplotlib's own defaults, whatever style the caller's program has set."""
    try:
        from matplotlib import font_manager, style
        from matplotlib.figure import Figure
    except ImportError as error:
        raise RuntimeError("drawing needs matplotlib; it is not installed; write: pip install matplotlib") from error
    installed = {font.name for font in font_manager.fontManager.ttflist}
    more_scripts = ["Noto Sans CJK JP", "Noto Sans CJK SC", "Hiragino Sans", "Microsoft YaHei", "Noto Emoji", "Symbola"]
    settings = {
        "font.family": ["DejaVu Sans", *(name for name in more_scripts if name in installed)],
        "font.size": 12,
        "svg.hashsalt": "minitransformer",  # element ids from the content, not from chance
        "svg.fonttype": "none",  # text stays text: searchable, and a browser finds the fonts we lack
    }
    with _drawing, style.context(["default", settings]), catch_warnings():
        # A token may be in a script that no font here has. It is drawn as a box, and kept whole in the SVG and JSON:
        # a warning for every such token would tell the reader nothing to act on.
        filterwarnings("ignore", message=r"Glyph \d+ .*missing from", category=UserWarning)
        yield functools.partial(_new_figure, Figure)


def _new_figure(kind: type[Figure], figsize: tuple[float, float]) -> Figure:
    figure = kind(figsize=figsize, dpi=100, layout="compressed")
    # What a notebook shows for a figure that is the last line of a cell; pyplot would install this globally.
    figure._repr_png_ = functools.partial(_render, figure, "png")  # type: ignore[attr-defined]
    return figure


def _cells(axes: Axes, shown: np.ma.MaskedArray[Any, Any]) -> AxesImage:
    """Draw the weights (T, S) as square cells; masked ones stay clear, and the hatched ground shows through."""
    axes.patch.set(hatch="////", edgecolor=MASKED, linewidth=0)
    image = axes.imshow(shown, cmap=COLOURS, vmin=0, vmax=1, aspect="equal")
    height, width = shown.shape
    if max(height, width) <= MOST_GRIDDED:
        axes.set_xticks(np.arange(1, width) - 0.5, minor=True)
        axes.set_yticks(np.arange(1, height) - 0.5, minor=True)
        axes.grid(which="minor", color="white", linewidth=0.8 if max(height, width) <= MOST_PRINTED else 0.4)
    axes.spines[:].set_color("#999999")
    axes.tick_params(which="minor", length=0)
    return image


def _label(token: Any) -> str:
    """Return the label to draw: the token as it is, but for what cannot be seen or would break the line."""
    text = str(token)
    if text and not text.strip(" "):
        return "␣" * len(text)
    text = "".join(repr(c)[1:-1] if unicodedata.category(c) in {"Cc", "Cn", "Cs", "Zl", "Zp"} else c for c in text)
    return text if len(text) <= LONGEST_LABEL else text[: LONGEST_LABEL - 1] + "…"


def _label_ticks(
    axes: Axes,
    rows: Sequence[Any],
    columns: Sequence[Any],
    size: tuple[float, float],
    left: bool = True,
    top: bool = True,
) -> None:
    """Write key labels on top and query labels on the left, as many as `size` (inches) leaves room for."""

    def kept(labels: Sequence[Any], inches: float) -> range:
        fewest = len(labels) * LABEL_INCHES / inches
        return range(0, len(labels), next(k for k in (*range(1, 6), *range(10, 10**6, 10)) if k >= fewest))

    across, down = kept(columns, size[0]), kept(rows, size[1])
    words = [_label(columns[i]) for i in across]
    flat = max(map(len, words)) * 0.11 < size[0] / len(words)  # do they fit side by side?
    fontsize = 11 if max(len(words) / size[0], len(down) / size[1]) < 4 else 8.5
    # Labels are tokens, not formulas: without parse_math=False "$x_1$" would be typeset as mathematics.
    look: dict[str, Any] = {"parse_math": False, "fontsize": fontsize, "color": INK}
    axes.set_xticks(across if top else [], words if top else [], rotation=0 if flat else 90, **look)
    axes.set_yticks(down if left else [], [_label(rows[i]) for i in down] if left else [], **look)
    axes.xaxis.set_label_position("top")
    axes.tick_params(which="major", top=False, bottom=False, left=False, labeltop=True, labelbottom=False)


def _print_numbers(axes: Axes, image: AxesImage, shown: np.ma.MaskedArray[Any, Any]) -> None:
    for (row, column), weight in np.ndenumerate(shown):
        if np.ma.getmaskarray(shown)[row, column]:
            continue
        rgb = np.asarray(image.cmap(float(weight))[:3])
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        luminance = float(linear @ [0.2126, 0.7152, 0.0722])  # WCAG's; black reads better than white from 0.18 on
        axes.text(column, row, f"{weight:.2f}", ha="center", va="center", fontsize=11,
                  color="black" if luminance > 0.18 else "white")  # fmt: skip


def _running_mean(y: np.ndarray, window: int) -> np.ndarray:
    """Average `window` values to each side; fewer at the ends, so that the line starts where the losses start."""
    i = np.arange(len(y))
    before = np.minimum(i, window)
    after = np.minimum(before, len(y) - 1 - i)
    total = np.concatenate([[0.0], np.cumsum(y)])
    return (total[i + after + 1] - total[i - before]) / (after + before + 1)


def _dress_curve(axes: Axes, losses: np.ndarray) -> None:
    """Set scale, names, units, and the legend."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    positive = losses[losses > 0]
    if losses.min() >= 0 and len(positive) and np.log10(positive.max() / positive.min()) > 1.5:
        axes.set_yscale("log")  # a loss of exactly 0 falls through the floor of the picture
        axes.set_ylim(positive.min() / 1.3, positive.max() * 1.3)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if positive.max() / positive.min() < 1e3 else (1,)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    axes.set_xlabel("training step")
    axes.set_ylabel("loss (nats per token)")
    axes.grid(color="#e3e3e3", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=11)


def _set_title(figure: Figure, title: str | None) -> None:
    if title:
        figure.suptitle(str(title), fontsize=14, parse_math=False)


# ---- what is kept


def _rounded(array: np.ndarray) -> Any:
    return (np.round(array, 6) + 0.0).tolist()  # + 0.0 turns -0.0 into 0.0


def _attention_values(
    kind: str, shown: np.ma.MaskedArray[Any, Any], rows: Sequence[Any], columns: Sequence[Any], title: str | None
) -> dict[str, Any]:
    allowed = ~np.ma.getmaskarray(shown).reshape(-1, *shown.shape[-2:])[0]
    return {
        "figure": kind,
        "title": title,
        "rows": [str(token) for token in rows],
        "columns": [str(token) for token in columns],
        "weights": _rounded(shown.data),
        "allowed": None if allowed.all() else allowed.tolist(),
    }


def _render(figure: Figure, kind: str) -> bytes:
    """Return the picture as the bytes of a file, with nothing in them of date or program."""
    nothing = {"Software": None} if kind == "png" else {"Date": None, "Creator": None}
    buffer = io.BytesIO()
    with _style():
        # An SVG holds the cells as an image: twice the resolution keeps it sharp when zoomed.
        figure.savefig(
            buffer, format=kind, dpi=150 if kind == "png" else 300, metadata=nothing,
            bbox_inches="tight", pad_inches=0.12,
        )  # fmt: skip
    return buffer.getvalue()


def _save(figure: Figure, path: str | os.PathLike[str], values: dict[str, Any]) -> None:
    """Write stem.png, stem.svg and stem.json: all made in memory, then written aside, then moved into place."""
    asked = Path(path)
    if asked.is_dir():
        raise ValueError(f"path must name a picture; got the folder {str(path)!r}; write {str(asked / 'figure.png')!r}")
    # Only our own endings are taken off: "step-0.5" is a stem, not a file of kind ".5".
    stem = asked.with_suffix("") if asked.suffix.lower() in {".png", ".svg", ".json"} else asked
    lines = [f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    contents = {
        ".png": _render(figure, "png"),
        ".svg": _render(figure, "svg"),
        ".json": text.encode("utf-8", "backslashreplace"),  # half a surrogate pair becomes its JSON escape
    }
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
