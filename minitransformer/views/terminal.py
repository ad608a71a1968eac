"""A record as plain text, for a terminal: one block for each step, forwards and then backwards."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from .arrays import NAN, ZERO, Panel, Picture

MOST_ROWS = 12  # of the one matrix that is drawn of a large array
SHADES = " .:-=+*#%@"  # from nothing to the largest size, for what is too large for numbers


def pages(record: dict[str, Any], pictures: Sequence[Picture], width: int) -> list[str]:
    """Return the blocks: what it is, each step forwards, each backwards, and what has reached the leaves."""
    steps, order = record["steps"], record["order"]
    blocks = [f"{record['title']}: {len(steps)} steps forwards, {len(order)} backwards\n{record['begins']}"]
    blocks += [_forwards(record, step, pictures, width) for step in steps]
    blocks += [_backwards(record, steps[n], pictures, width) for n in order]
    leaves = [leaf for leaf in record["leaves"] if leaf["gradient"] is not None]
    if leaves:
        lines = [f"{'─' * width}\nwhat has reached the leaves"]
        lines += [_array(f"gradient of {leaf['name']}", pictures[leaf["gradient"]]) for leaf in leaves]
        blocks.append("\n".join(lines))
    return blocks


def _head(record: dict[str, Any], step: dict[str, Any], way: str, at: int, count: int, width: int) -> list[str]:
    left = f"{way} {at}/{count}  {step['label']}"
    right = step["op"].lstrip("_") + (f"({step['settings']})" if step["settings"] else "")
    lines = ["─" * width, f"{left}{right:>{max(width - len(left), len(right) + 2)}}"]
    for number in step["lines"]:
        line = record["lines"][number]
        first, *rest = line["text"].splitlines() or [""]
        lines.append(f"  {line['file']}:{line['number']}  {first}" + (" …" if rest else ""))
    return lines


def _formula(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width - 4, initial_indent="    ", subsequent_indent="      ", break_long_words=False)


def _forwards(record: dict[str, Any], step: dict[str, Any], pictures: Sequence[Picture], width: int) -> str:
    lines = _head(record, step, "forward", step["number"] + 1, len(record["steps"]), width)
    lines += [f"  {step['about']}"] if step["about"] else []
    lines += _formula(step["formula"], width)
    lines += [_array(_place(value), pictures[value["array"]]) for value in step["inputs"]]
    lines.append(_array(f"→ y = {step['label']}", pictures[step["output"]]))
    return "\n".join(lines)


def _backwards(record: dict[str, Any], step: dict[str, Any], pictures: Sequence[Picture], width: int) -> str:
    lines = _head(record, step, "backward", step["turn"] + 1, len(record["order"]), width)
    for formula in step["derivative"]:
        lines += _formula(formula, width)
    lines.append(_array(f"g arrives, for {step['label']}", pictures[step["arriving"]]))
    for value in step["inputs"]:
        if value["gradient"] is not None:
            if value["slope"] is not None:
                lines.append(_array(f"derivative by {value['role']}", pictures[value["slope"]]))
            lines.append(_array(f"→ g_{value['role']}, for {value['name']}", pictures[value["gradient"]]))
    return "\n".join(lines)


def _place(value: dict[str, Any]) -> str:
    return value["role"] + ("" if value["name"] == value["role"] else f" = {value['name']}")


def _array(name: str, picture: Picture) -> str:
    note = f"({picture.note})" if picture.note else ""
    lines = ["  " + "   ".join(part for part in (name, picture.about, picture.extent, note) if part)]
    drawn = any(panel.text is None for panel in picture.panels)
    small = picture.shrunk(MOST_ROWS).panels[:1] if drawn else picture.panels
    for panel in small:
        lines += [f"      {panel.at}"] if panel.at else []
        lines += _numbers(panel) if panel.text else _shades(panel)
    return "\n".join(lines)


def _numbers(panel: Panel) -> list[str]:
    rows, columns = panel.cells.shape
    text = panel.text or []
    wide = max(map(len, text), default=0)
    return ["      " + "  ".join(f"{t:>{wide}}" for t in text[r * columns : (r + 1) * columns]) for r in range(rows)]


def _shades(panel: Panel) -> list[str]:
    def shade(code: int) -> str:
        return "?" if code >= NAN else SHADES[round(abs(code - ZERO) / ZERO * (len(SHADES) - 1))]

    return ["      " + "".join(shade(code) * 2 for code in row) for row in panel.cells.tolist()]
