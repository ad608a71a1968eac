"""The tape as a graph: each op below what made it, no box on another, and text that Graphviz reads."""

import itertools
import re
import shutil
import subprocess
import time
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

import minitransformer as mt
from minitransformer.views import graph

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def block(rng):
    layer = mt.nn.EncoderLayer(8, 2, 16)
    return mt.trace(layer, mt.tensor(rng.standard_normal((1, 3, 8)).astype("float32")))


def boxes(svg):
    """Return (name, left, top, right, bottom) of each box."""
    found = []
    for group in ElementTree.fromstring(svg).iter(f"{SVG}g"):
        rect, name = group.find(f"{SVG}rect").attrib, group.find(f"{SVG}text").text
        x, y, w, h = (float(rect[k]) for k in ("x", "y", "width", "height"))
        found.append((name, x, y, x + w, y + h))
    return found


def test_an_op_stands_below_all_that_it_was_made_from(block):
    record = block.to_json()
    made, edges = graph._tape(record)
    graph._layered(made, edges)
    assert len(edges) >= len(record["steps"]) and all(made[a].layer < made[b].layer for a, b, _ in edges)
    assert {made[a].name for a, b, _ in edges if made[a].kind == "leaf"} == {leaf["name"] for leaf in record["leaves"]}


def test_no_box_lies_on_another_and_all_lie_inside(block):
    svg = block.svg()
    found = boxes(svg)
    assert len(found) == len(block.steps) + len(block.leaves)
    for (a, l0, t0, r0, b0), (b, l1, t1, r1, b1) in itertools.combinations(found, 2):
        assert r0 < l1 or r1 < l0 or b0 < t1 or b1 < t0, (a, b)
    wide, high = (float(ElementTree.fromstring(svg).attrib[k]) for k in ("width", "height"))
    assert (
        min(min(f[1:3]) for f in found) >= 0 and max(f[3] for f in found) <= wide and max(f[4] for f in found) <= high
    )


def test_no_edge_passes_through_a_box(block):
    svg = block.svg()
    found = boxes(svg)
    for path in ElementTree.fromstring(svg).iter(f"{SVG}path"):
        if path.attrib["d"].startswith("M0 0"):  # the tip of an arrow
            continue
        points = [float(n) for n in re.findall(r"-?\d+\.?\d*", path.attrib["d"])]
        curve = [tuple(points[:2])]
        for i in range(2, len(points), 6):  # Bézier curves, sampled
            p0, (p1, p2, p3) = curve[-1], [tuple(points[i + k : i + k + 2]) for k in (0, 2, 4)]
            for t in np.linspace(0, 1, 21)[1:]:
                weights = (1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3
                curve.append(tuple(np.dot(weights, [q[k] for q in (p0, p1, p2, p3)]) for k in (0, 1)))
        for x, y in curve[1:-1]:
            inside = [name for name, left, top, right, bottom in found if left < x < right and top + 1 < y < bottom - 1]
            assert not inside, inside


def test_what_is_not_recorded_is_dashed_and_names_are_escaped(tmp_path):
    table = {"<&\"'>": mt.tensor(np.ones(2, "float32"), requires_grad=True)}

    def partly():
        with mt.no_grad():
            fixed = table["<&\"'>"].exp()
        return table["<&\"'>"] * fixed

    trace = mt.trace(partly)
    svg = trace.svg(tmp_path / "tape.svg")
    assert (tmp_path / "tape.svg").read_text(encoding="utf-8") == svg
    assert 'class="still"' in svg and "<&" not in svg
    ElementTree.fromstring(svg)


def test_a_long_tape_is_laid_out_in_time():
    x = mt.tensor([1.0], requires_grad=True)

    def chain():
        y = x
        for _ in range(1000):
            y = y * x
        return y

    start = time.perf_counter()
    svg = mt.trace(chain).svg()
    assert len(boxes(svg)) == 1001 and time.perf_counter() - start < 20
    assert svg.count("<path") < 3100 and svg.count("marker-end") == 1000 + 999  # x goes down once, with branches


STRING = r'"(?:[^"\\]|\\.)*"'


def test_the_dot_text_is_of_its_language(block, tmp_path):
    """The grammar of the statements that occur: node, attributes; edge, attributes."""
    text = block.dot(tmp_path / "tape.dot")
    attributes = rf"\[(?:\w+=(?:{STRING}|\w+) ?)+\]"
    statement = rf"  (?:node|n\d+(?: -> n\d+)?) {attributes};\n"
    assert re.fullmatch(rf"digraph {STRING} \{{\n(?:{statement})+\}}\n", text)
    declared = set(re.findall(r"^  (n\d+) \[", text, re.MULTILINE))
    used = set(itertools.chain(*re.findall(r"(n\d+) -> (n\d+)", text)))
    assert used <= declared and len(declared) == len(block.steps) + len(block.leaves)
    assert graph._quoted('a "b" \\ c\nd') == '"a \\"b\\" \\\\ c\\nd"'


@pytest.mark.skipif(shutil.which("dot") is None, reason="Graphviz is not installed")
def test_graphviz_reads_it(block):
    done = subprocess.run(["dot", "-Tsvg"], input=block.dot(), capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr and "<svg" in done.stdout
