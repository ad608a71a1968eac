"""What is shown of an array: every number of a small one, a shrunken picture of a large one, and its extent.

A picture keeps one byte a cell, its place on a scale from −m to m, where m is the largest size of any finite number:
0 is white, what is below it blue, what is above it red. NaN and infinities have colours of their own, and a block of
cells drawn as one shows them if it has any. The views (terminal, pages, notebook) draw from these bytes alone.
"""

from __future__ import annotations

import base64
import dataclasses
import html
import struct
import zlib
from typing import Any

import numpy as np

from ..backend import to_numpy

MOST_PRINTED = 12  # rows and columns up to which every number is shown
MOST_CELLS = 24  # rows and columns of a picture
MOST_PANELS = 4  # matrices shown of an array with more than two axes
LARGEST = 250  # the byte of m; 0 is that of −m
ZERO = LARGEST // 2
NAN, PLUS_INF, MINUS_INF = 253, 254, 255
SPECIAL = {NAN: (170, 0, 170), PLUS_INF: (255, 190, 0), MINUS_INF: (0, 170, 160)}
BELOW, MIDDLE, ABOVE = (33, 102, 172), (250, 250, 250), (178, 24, 43)


@dataclasses.dataclass
class Panel:
    """One matrix of an array: its place, a byte for each cell (R, C), and the numbers where all are shown."""

    at: str
    cells: np.ndarray
    text: list[str] | None
    block: tuple[int, int] = (1, 1)  # rows and columns of the array in one cell


@dataclasses.dataclass
class Picture:
    """What is shown of one array: shape, dtype, extent of its finite numbers, and up to four of its matrices."""

    shape: tuple[int, ...]
    dtype: str
    low: float | None
    high: float | None
    mean: float | None
    strange: int  # NaN and infinities
    panels: list[Panel]

    @property
    def about(self) -> str:
        """What it is, in one line: dtype and shape."""
        return f"{self.dtype} {shape_text(self.shape)}"

    @property
    def extent(self) -> str:
        """The smallest, mean and largest of its finite numbers, and how many are not finite; nothing of one number."""
        if np.prod(self.shape) == 1:
            return ""
        if self.low is None or self.high is None or self.mean is None:
            text = "empty" if not self.strange else ""
        else:
            text = f"min {self.low:.3g} · mean {self.mean:.3g} · max {self.high:.3g}".replace("-", "−")
        return text + (f"{' · ' if text else ''}{self.strange} NaN or ±∞" if self.strange else "")

    @property
    def note(self) -> str:
        """What is left out of the picture, or an empty text."""
        shown, total = len(self.panels), count_of_matrices(self.shape)
        parts = [f"{shown} of {total} matrices"] if 0 < shown < total else []
        blocks = {p.block for p in self.panels if p.block != (1, 1)}
        parts += [f"a cell is the mean of {r}×{c} numbers" for r, c in sorted(blocks)[-1:]]
        return ", ".join(parts)

    def to_json(self) -> dict[str, Any]:
        """Return it as what JSON can hold; the cells as base64 of their bytes, row by row."""
        panels = [
            {"at": p.at, "rows": p.cells.shape[0], "columns": p.cells.shape[1],
             "cells": base64.b64encode(p.cells.tobytes()).decode(), **({"text": p.text} if p.text else {})}
            for p in self.panels
        ]  # fmt: skip
        return {"about": self.about, "shape": list(self.shape), "dtype": self.dtype, "extent": self.extent,
                "note": self.note, "panels": panels}  # fmt: skip

    def shrunk(self, most: int) -> Picture:
        """Return a picture of at most so many rows and columns; without any, its extent alone."""
        if not most:
            return dataclasses.replace(self, panels=[])
        return dataclasses.replace(self, panels=[_shrink_panel(p, most) for p in self.panels])


def shape_text(shape: tuple[int, ...]) -> str:
    """Write a shape: (3, 5), (3,), or "number" for an array without axes."""
    return "(" + ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "") + ")" if shape else "number"


def count_of_matrices(shape: tuple[int, ...]) -> int:
    """Return how many matrices an array of some shape consists of."""
    return int(np.prod(shape[:-2], dtype=np.int64)) if 0 not in shape else 0


def picture(array: Any, most: int = MOST_CELLS) -> Picture:
    """Return what is shown of an array (NumPy or CuPy, any dtype that holds real numbers or booleans).

    array: (...) → a Picture of up to `most` rows and columns of its first four matrices
    """
    array = to_numpy(array)
    numbers = array.astype(np.float64, copy=False)
    finite = numbers if array.dtype.kind != "f" else numbers[np.isfinite(numbers)]
    low, high, mean = (float(f(finite)) if finite.size else None for f in (np.min, np.max, np.mean))
    size = max(abs(low or 0), abs(high or 0))  # m
    panels = []
    rows, columns = ((1, 1) + array.shape)[-2:]
    leading = array.shape[:-2]
    if array.size:
        for i in range(min(count_of_matrices(array.shape), MOST_PANELS)):
            place = np.unravel_index(i, leading) if leading else ()
            at = f"[{', '.join(map(str, place))}]" if leading else ""
            own = array[place].reshape(rows, columns)
            text = _texts(own, size) if max(rows, columns) <= MOST_PRINTED else None
            panels.append(_shrink_panel(Panel(at, _codes(own, size), text), most, own, size))
    return Picture(array.shape, str(array.dtype), low, high, mean, array.size - finite.size, panels)


def _codes(matrix: np.ndarray, size: float) -> np.ndarray:
    """Turn numbers into bytes: −m … m into 0 … 250, and NaN and infinities into their own."""
    numbers = matrix.astype(np.float64)
    known = np.isfinite(numbers)
    level = np.where(known, numbers, 0) / (size or 1)
    codes = np.round(ZERO + level * ZERO).astype(np.uint8)
    codes[np.isnan(numbers)] = NAN
    codes[numbers == np.inf] = PLUS_INF
    codes[numbers == -np.inf] = MINUS_INF
    return codes


def _shrink_panel(panel: Panel, most: int, numbers: np.ndarray | None = None, size: float = 0.0) -> Panel:
    """Return the panel with blocks of cells drawn as one, so that it has at most `most` rows and columns."""
    rows, columns = panel.cells.shape
    if max(rows, columns) <= most:
        return panel
    down, across = -(-rows // most), -(-columns // most)
    starts = np.arange(0, rows, down), np.arange(0, columns, across)
    strange = np.where(panel.cells >= NAN, panel.cells, 0)
    if numbers is not None:
        plain = np.where(panel.cells >= NAN, 0, numbers.astype(np.float64, copy=False))
    else:
        plain = np.where(panel.cells >= NAN, ZERO, panel.cells).astype(np.float64)
    total = np.add.reduceat(np.add.reduceat(plain, starts[0], axis=0), starts[1], axis=1)
    heights, widths = np.diff([*starts[0], rows]), np.diff([*starts[1], columns])
    mean = total / np.outer(heights, widths)
    cells = _codes(mean, size) if numbers is not None else np.round(mean).astype(np.uint8)
    worst = np.maximum.reduceat(np.maximum.reduceat(strange, starts[0], axis=0), starts[1], axis=1)
    block = panel.block[0] * down, panel.block[1] * across
    return Panel(panel.at, np.where(worst > 0, worst, cells), None, block)


def _texts(matrix: np.ndarray, size: float) -> list[str]:
    return [number_text(x, size, matrix.size == 1) for x in matrix.ravel().tolist()]


def number_text(x: Any, size: float, alone: bool = False) -> str:
    """Write a number with as many decimals as give the largest beside it three digits; what is not finite by name."""
    if isinstance(x, bool):
        return "T" if x else "F"
    if isinstance(x, int):
        return str(x)
    if x != x:
        return "NaN"
    if x in (np.inf, -np.inf):
        return "∞" if x > 0 else "−∞"
    if alone:
        return f"{x:.6g}".replace("-", "−")
    if not size or 1e-3 <= size < 1e4:
        digits = 2 if not size else int(np.clip(2 - np.floor(np.log10(size)), 0, 5))
        text = f"{x:.{digits}f}"
        return (text if float(text) else text.lstrip("-")).replace("-", "−")  # no −0.00
    return f"{x:.1e}".replace("-", "−") if x else "0"


def colour(code: int) -> tuple[int, int, int]:
    """Return the red, green and blue of a cell's byte."""
    if code in SPECIAL:
        return SPECIAL[code]
    share = (code - ZERO) / ZERO
    end = ABOVE if share > 0 else BELOW
    r, g, b = (round(m + (e - m) * abs(share) ** 0.8) for m, e in zip(MIDDLE, end, strict=True))
    return r, g, b


PALETTE = np.array([colour(code) for code in range(256)], dtype=np.uint8)


def ink(code: int) -> str:
    """Return black or white: what reads better on a cell."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in colour(code))]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#000" if luminance > 0.18 else "#fff"


def png(cells: np.ndarray) -> bytes:
    """Return the cells as a PNG of one pixel each: three chunks, no library needed.    (R, C) bytes → bytes"""
    rows, columns = cells.shape
    pixels = PALETTE[cells].reshape(rows, -1)
    lines = np.concatenate([np.zeros((rows, 1), np.uint8), pixels], axis=1)  # 0: no filter on this line

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", columns, rows, 8, 2, 0, 0, 0)  # 8 bits of red, green and blue
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(lines.tobytes(), 9)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def array_html(array: Any, extra: str = "") -> str:
    """Return a small heatmap of an array as HTML that stands by itself: no script, no style but its own.

    array: (...) → a table with the numbers up to 12×12, beyond that a picture; extra: said beside dtype and shape
    """
    shown = picture(array)
    head = html.escape(" · ".join(part for part in (shown.about, extra, shown.extent, shown.note) if part))
    body = "".join(_panel_html(panel, f"{shown.about} {panel.at}") for panel in shown.panels)
    look = "font:12px/1.5 system-ui,sans-serif;margin:4px 0"
    return (
        f'<div style="{look}"><div>{head}</div>'
        f'<div style="display:flex;flex-wrap:wrap;gap:12px;align-items:flex-start">{body}</div></div>'
    )


def _panel_html(panel: Panel, about: str) -> str:
    rows, columns = panel.cells.shape
    title = f"<div>{html.escape(panel.at)}</div>" if panel.at else ""
    if panel.text is None:
        scale = max(1, min(12, 240 // max(rows, columns)))
        data = base64.b64encode(png(panel.cells)).decode()
        size = f"width:{columns * scale}px;height:{rows * scale}px"
        look = f"{size};image-rendering:pixelated;border:1px solid #999"
        source = f'style="{look}" src="data:image/png;base64,{data}"'
        return f'<div>{title}<img alt="heatmap of {html.escape(about)}" {source}></div>'
    lines = []
    for r in range(rows):
        cells = []
        for c in range(columns):
            code = int(panel.cells[r, c])
            red, green, blue = colour(code)
            ground = f"background:#{red:02x}{green:02x}{blue:02x};color:{ink(code)};padding:2px 5px;text-align:right"
            cells.append(f'<td style="{ground}">{html.escape(panel.text[r * columns + c])}</td>')
        lines.append("<tr>" + "".join(cells) + "</tr>")
    return f'<div>{title}<table style="border-collapse:collapse;font:11px monospace">{"".join(lines)}</table></div>'
