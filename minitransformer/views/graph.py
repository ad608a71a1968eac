"""The tape as a graph, in layers: each op below everything that it was made from.

The layout is the usual one in four steps (Sugiyama, Tagawa & Toda 1981, IEEE Transactions on Systems, Man, and
Cybernetics 11): give each box a layer; let an edge that passes layers pass by a point in each; order the layers so that
few edges cross, by putting a box at the mean place of its neighbours, up and down a few times; give them room.
"""

from __future__ import annotations

import dataclasses
import html
from typing import Any

SWEEPS = 6
HIGH, GAP, LAYER = 42, 16, 84  # pixels: of a box, between two of them, from layer to layer
LETTER = 7.2  # pixels of a letter
TIP = ' marker-end="url(#tip)"'
STYLE = """
text{font:12px system-ui,"DejaVu Sans",sans-serif;fill:#1b1b1f}.small{font-size:10.5px;fill:#55555e}
rect{fill:#fff;stroke:#6b6b76;stroke-width:1.2}.leaf rect{fill:#e6f0fb;stroke:#2f6db3}
.still rect{stroke-dasharray:4 3}path{fill:none;stroke:#8a8a95;stroke-width:1.2}
svg{background:#fff}
@media (prefers-color-scheme:dark){svg{background:#17171b}text{fill:#ececf1}.small{fill:#b0b0bb}
rect{fill:#24242a;stroke:#8d8d99}.leaf rect{fill:#1d3148;stroke:#6fa8e0}path{stroke:#8d8d99}}
"""


@dataclasses.dataclass
class Box:
    """A leaf, an op, or a point at which an edge passes a layer."""

    name: str = ""
    under: str = ""
    about: str = ""
    kind: str = "point"
    layer: int = 0
    x: float = 0.0
    above: list[int] = dataclasses.field(default_factory=list)
    below: list[int] = dataclasses.field(default_factory=list)

    @property
    def width(self) -> float:
        """Its width in pixels: that of its longer line."""
        return 8.0 if self.kind == "point" else max(60.0, 20 + LETTER * max(len(self.name), len(self.under)))


def _short(text: str) -> str:
    return text if len(text) <= 32 else "…" + text[-31:]


def _tape(record: dict[str, Any]) -> tuple[list[Box], list[tuple[int, int, str]]]:
    """Return the boxes of a record, leaves first, and its edges (from, to, place in the op), each pair once."""
    arrays, leaves = record["arrays"], {leaf["name"]: i for i, leaf in enumerate(record["leaves"])}
    boxes = [Box(_short(name), arrays[record["leaves"][i]["array"]]["about"], name, "leaf")
             for name, i in leaves.items()]  # fmt: skip
    first, edges = len(boxes), {}  # type: ignore[var-annotated]
    for step in record["steps"]:
        own = len(boxes)
        back = "" if step["turn"] is None else f" · back {step['turn'] + 1}"
        op = step["op"].lstrip("_")
        head = f"{_short(step['label'])}: {op}" if step["name"] else f"{step['number'] + 1}: {op}"
        kind = "op" if step["recorded"] else "still"
        about = f"{step['formula']}\n{'; '.join(step['derivative'])}".strip()
        boxes.append(Box(head, arrays[step["output"]]["about"] + back, about, kind))
        for value in step["inputs"]:
            source = value["step"]
            start = leaves.get(value["name"]) if source is None else first + source
            if start is not None and (source is not None or value["differentiable"]):
                edges.setdefault((start, own), []).append(value["role"])
    return boxes, [(a, b, ", ".join(roles)) for (a, b), roles in edges.items()]


def _layered(boxes: list[Box], edges: list[tuple[int, int, str]]) -> tuple[list[list[int]], list[tuple[int, int]]]:
    """Give each box its layer and each edge its points; return the layers, and what is linked from one to the next."""
    into: dict[int, list[int]] = {}
    for a, b, _ in edges:
        into.setdefault(b, []).append(a)
    for i, box in enumerate(boxes):  # an op comes after what it was made from
        if box.kind != "leaf":
            box.layer = 1 + max((boxes[a].layer for a in into.get(i, [])), default=0)
    for i, box in enumerate(boxes):  # a leaf stands right above the first op that takes it
        if box.kind == "leaf":
            box.layer = min((boxes[b].layer for a, b, _ in edges if a == i), default=1) - 1
    passing: dict[tuple[int, int], int] = {}  # (from, layer) → the point there, shared by all edges from one box
    links: dict[tuple[int, int], None] = {}
    for a, b, _ in edges:
        upper = a
        for layer in range(boxes[a].layer + 1, boxes[b].layer):
            if (a, layer) not in passing:
                passing[a, layer] = len(boxes)
                boxes.append(Box(layer=layer))
            links[upper, passing[a, layer]] = None
            upper = passing[a, layer]
        links[upper, b] = None
    for upper, lower in links:
        boxes[upper].below.append(lower)
        boxes[lower].above.append(upper)
    layers: list[list[int]] = [[] for _ in range(1 + max((box.layer for box in boxes), default=0))]
    for i, box in enumerate(boxes):
        layers[box.layer].append(i)
    return layers, list(links)


def _placed(boxes: list[Box], layers: list[list[int]]) -> None:
    """Order every layer by the mean places of the neighbours, down and up in turn, and give each box its x."""
    for layer in layers:
        _spread(boxes, layer, [0.0] * len(layer))
    for sweep in range(2 * SWEEPS):
        down = sweep % 2 == 0
        for layer in layers if down else layers[::-1]:
            wanted = []
            for i in layer:
                near = boxes[i].above if down else boxes[i].below
                near = near if near else boxes[i].below if down else boxes[i].above
                wanted.append(sum(boxes[j].x for j in near) / len(near) if near else boxes[i].x)
            order = sorted(range(len(layer)), key=lambda k: wanted[k])
            layer[:] = [layer[k] for k in order]
            _spread(boxes, layer, [wanted[k] for k in order])


def _spread(boxes: list[Box], layer: list[int], wanted: list[float]) -> None:
    """Put the boxes of a layer as near to where they want to be as their widths allow, in the order they have."""
    rooms = [(boxes[a].width + boxes[b].width) / 2 + GAP for a, b in zip(layer, layer[1:], strict=False)]
    from_left, from_right = list(wanted), list(wanted)
    for k, room in enumerate(rooms):
        from_left[k + 1] = max(wanted[k + 1], from_left[k] + room)
    for k in range(len(rooms) - 1, -1, -1):
        from_right[k] = min(wanted[k], from_right[k + 1] - rooms[k])
    for i, a, b in zip(layer, from_left, from_right, strict=True):
        boxes[i].x = (a + b) / 2


def svg(record: dict[str, Any]) -> str:
    """Return the picture: values flow down along the edges, gradients up; hovering over a box shows its formulas."""
    boxes, edges = _tape(record)
    layers, links = _layered(boxes, edges)
    _placed(boxes, layers)
    left = min((b.x - b.width / 2 for b in boxes), default=0) - 20
    right = max((b.x + b.width / 2 for b in boxes), default=0) + 20
    caption = f"{record['title']}: values flow down, gradients up"
    wide, high = max(right - left, LETTER * len(caption) + 40), 60 + LAYER * len(layers)

    def y(i: int) -> float:
        return 44 + LAYER * boxes[i].layer

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide:.0f} {high:.0f}" width="{wide:.0f}" '
        f'height="{high:.0f}" role="img" aria-label="{html.escape(caption)}"><style>{STYLE}</style>'
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8" /></marker></defs>',
        f'<text x="20" y="24">{html.escape(caption)}</text>',
    ]
    for a, b in links:
        point = boxes[b].kind == "point"
        x0, x1 = boxes[a].x - left, boxes[b].x - left
        corners = [(x0, y(a) + HIGH), (x1, y(b)), *([(x1, y(b) + HIGH)] if point else [])]  # past a layer: straight
        parts.append(f'<path d="{_curve(corners)}"{"" if point else TIP}/>')
    for i, box in enumerate(boxes):
        if box.kind != "point":
            x, wide_box = box.x - left, box.width
            parts.append(
                f'<g class="{box.kind}"><title>{html.escape(box.about)}</title><rect x="{x - wide_box / 2:.1f}" '
                f'y="{y(i):.0f}" width="{wide_box:.1f}" height="{HIGH}" rx="{18 if box.kind == "leaf" else 4}"/>'
                f'<text x="{x:.1f}" y="{y(i) + 18:.0f}" text-anchor="middle">{html.escape(box.name)}</text>'
                f'<text class="small" x="{x:.1f}" y="{y(i) + 33:.0f}" text-anchor="middle">{html.escape(box.under)}'
                "</text></g>"
            )
    return "\n".join([*parts, "</svg>"]) + "\n"


def _curve(points: list[tuple[float, float]]) -> str:
    """Return a path that leaves and reaches each point straight down."""
    text = f"M{points[0][0]:.1f} {points[0][1]:.1f}"
    for (x0, y0), (x1, y1) in zip(points, points[1:], strict=False):
        middle = (y0 + y1) / 2
        text += f"C{x0:.1f} {middle:.1f} {x1:.1f} {middle:.1f} {x1:.1f} {y1:.1f}"
    return text


def dot(record: dict[str, Any]) -> str:
    """Return the graph in the language of Graphviz."""
    boxes, edges = _tape(record)
    looks = {"leaf": "style=rounded", "op": "style=solid", "still": "style=dashed"}
    lines = [f"digraph {_quoted(record['title'])} {{", '  node [shape=box fontname="sans-serif"];']
    for i, box in enumerate(boxes):
        label = _quoted(f"{box.name}\n{box.under}")
        lines.append(f"  n{i} [label={label} tooltip={_quoted(box.about)} {looks[box.kind]}];")
    lines += [f"  n{a} -> n{b} [label={_quoted(role)}];" for a, b, role in edges]
    return "\n".join([*lines, "}"]) + "\n"


def _quoted(text: str) -> str:
    """Return a text as a quoted name of that language, where a quote, a backslash and a line end are escaped."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
