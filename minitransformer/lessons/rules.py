"""What every lesson keeps to: each rule returns its complaints, which name the cell and what to write instead."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import notebook
from .exercise import declared

MOST_LINES = 12  # of a code cell: what can be projected and read at once
WIDEST = 100  # characters of a line of code
MOST_BYTES = 1_000_000  # of a notebook
PACKAGES = {"numpy", "matplotlib", "minitransformer"}  # beside Python's own
RETURNED = re.compile(r"[(\[]?(Text\(|<matplotlib|<Axes|<Figure)")  # by the last call of a cell that draws
LINK = re.compile(r"\]\(([^)\s]+)\)")


def complaints(path: Path) -> list[str]:
    """Return all that is wrong with a lesson and its notebook; an empty list when nothing is."""
    source = notebook.parse(path)
    try:
        built = notebook.read(path)
    except ValueError as missing:
        return [str(missing), *_of_source(path, source)]
    found = [*_of_source(path, source), *drift(source, built), *outputs(built)]
    size = path.with_suffix(".ipynb").stat().st_size
    if size > MOST_BYTES:
        found.append(f"a notebook has at most {MOST_BYTES} bytes; got {size}; make fewer or smaller pictures")
    return [f"{path.name}: {line}" for line in found]


def _of_source(path: Path, source: Any) -> list[str]:
    every = sorted(path.parent.glob("[0-9][0-9]_*.py"))
    rules = (beginning(path.name[:2], source), ending(source), lengths(source), formulas(source), packages(source))
    return [line for rule in (*rules, links(path, source, every), graded(path.name[:2], source)) for line in rule]


def _named(index: int, cell: Any) -> str:
    return f"cell {index + 1}, “{(cell.source.splitlines() or [''])[0][:60]}”"


def drift(source: Any, built: Any) -> Iterator[str]:
    """The notebook has the cells of its source, in order, with the same ids and nothing else but outputs."""

    def cells(of: Any) -> list[tuple[str, str, str, Any]]:
        return [(cell.get("id", ""), cell.cell_type, cell.source, dict(cell.metadata)) for cell in of.cells]

    ours, theirs = cells(source), cells(built)
    for i in range(max(len(ours), len(theirs))):
        if ours[i : i + 1] != theirs[i : i + 1]:
            cell = source.cells[i] if i < len(ours) else built.cells[i]
            yield f"{_named(i, cell)} differs from the notebook; write minitransformer lessons build"
            return
    if dict(built.metadata) != notebook.METADATA:
        yield "the notebook's metadata are not those of a build; write minitransformer lessons build"


def outputs(built: Any) -> Iterator[str]:
    """Every code cell was run, in order, without an error, and shows something that is the same in every run."""
    counts = 0
    for i, cell in enumerate(built.cells):
        if cell.cell_type != "code":
            continue
        counts += 1
        if cell.execution_count != counts:
            yield f"{_named(i, cell)} was not run in order; write minitransformer lessons build"
        if not cell.outputs:
            yield f"{_named(i, cell)} shows nothing; end it with an expression, a picture or a print"
        for output in cell.outputs:
            text = str(output.get("text", "")) + str(output.get("data", {}).get("text/plain", ""))
            if output.output_type == "error":
                yield f"{_named(i, cell)} holds an error, {output.ename}; mend it"
            if output.get("name") == "stderr":
                yield f"{_named(i, cell)} writes to standard error: {text[:80]!r}; mend it"
            if not output.get("data", {}).get("image/png") and RETURNED.match(text):
                yield f"{_named(i, cell)} shows what matplotlib returned, {text[:40]!r}; end it with plt.show()"
            if re.search(r" at 0x[0-9a-f]{6,}|/(tmp|home|root|Users)/", text):
                yield f"{_named(i, cell)} shows an address or a path, which differs in every run; show something else"


def beginning(number: str, source: Any) -> Iterator[str]:
    """A lesson begins with "# NN · Title" and a question."""
    first = source.cells[0] if source.cells else None
    if first is None or first.cell_type != "markdown" or not re.match(rf"# {number} · \S", first.source):
        yield f'a lesson begins with a cell of text, "# {number} · Title"; write that first'
        return
    paragraphs = [p for p in first.source.split("\n\n")[1:] if p.strip()]
    if not paragraphs or not paragraphs[0].rstrip(" *_").endswith("?"):
        yield "below its title a lesson asks a question, and the paragraph ends with “?”; write the question"


def ending(source: Any) -> Iterator[str]:
    """A lesson ends with a section "## Exercises", each of which is checked by a cell."""
    texts = [(i, c.source) for i, c in enumerate(source.cells) if c.cell_type == "markdown"]
    heads = [(i, line) for i, text in texts for line in text.splitlines() if line.startswith("## ")]
    if not heads or heads[-1][1] != "## Exercises":
        yield 'the last section of a lesson is "## Exercises"; move the others before it'
        return
    after = [c for c in source.cells[heads[-1][0] :] if c.cell_type == "code"]
    if not after or "lessons.check(" not in after[-1].source:
        yield 'the last code cell of a lesson calls mt.lessons.check("NN.k", function); add it'


def lengths(source: Any) -> Iterator[str]:
    """A code cell has at most a dozen lines, none of which runs off the screen."""
    for i, cell in enumerate(source.cells):
        if cell.cell_type != "code":
            continue
        lines = [line for line in cell.source.splitlines() if line.strip()]
        if len(lines) > MOST_LINES:
            yield f"{_named(i, cell)} has {len(lines)} lines; at most {MOST_LINES} can be read at once; split it"
        if max(map(len, lines), default=0) > WIDEST:
            yield f"{_named(i, cell)} has a line of {max(map(len, lines))} characters; at most {WIDEST}; break it"


def formulas(source: Any) -> Iterator[str]:
    """A displayed formula is followed by a cell that checks it on numbers."""
    for i, cell in enumerate(source.cells):
        if cell.cell_type != "markdown" or "$$" not in cell.source:
            continue
        after = source.cells[i + 1] if i + 1 < len(source.cells) else None
        if after is None or after.cell_type != "code" or not _asserts(after.source):
            yield f"{_named(i, cell)} displays a formula; let the next cell check it on numbers with an assert"


def _asserts(code: str) -> bool:
    """Tell whether a cell asserts something that is computed, or calls NumPy's assert functions."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Assert) and any(isinstance(n, ast.Name | ast.Call) for n in ast.walk(node.test)):
            return True
        if isinstance(node, ast.Call) and "assert_" in ast.unparse(node.func):
            return True
    return False


def packages(source: Any) -> Iterator[str]:
    """A lesson needs NumPy and matplotlib, and nothing else to be installed."""
    for i, cell in enumerate(source.cells):
        if cell.cell_type != "code":
            continue
        for node in ast.walk(ast.parse(cell.source)):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in (n.split(".")[0] for n in names):
                if name not in PACKAGES and name not in sys.stdlib_module_names:
                    yield f"{_named(i, cell)} imports {name}; lessons use {', '.join(sorted(PACKAGES))}; do without"


def links(path: Path, source: Any, every: list[Path]) -> Iterator[str]:
    """Links lead somewhere; among them are the lessons before and after, and a file of the library."""
    text = "\n".join(cell.source for cell in source.cells if cell.cell_type == "markdown")
    targets = [target.split("#")[0] for target in LINK.findall(text) if not target.startswith(("http", "#"))]
    for target in targets:
        to_be_built = target.endswith(".ipynb") and (path.parent / target).with_suffix(".py").exists()
        if not to_be_built and not (path.parent / target).exists():
            yield f"the link {target} leads nowhere; correct it"
    at = every.index(path)
    for other in (*every[max(at - 1, 0) : at], *every[at + 1 : at + 2]):
        if f"{other.stem}.ipynb" not in targets:
            yield f"a lesson links to those before and after it; {other.stem}.ipynb is not linked; add it"
    if not any(target.startswith("../minitransformer/") for target in targets):
        yield "a lesson links to the file where the real thing lives; none is linked; write ../minitransformer/..."


def graded(number: str, source: Any) -> Iterator[str]:
    """The exercises declared for a lesson are those it asks for, under the same titles."""
    text = "\n".join(cell.source for cell in source.cells)
    asked = set(re.findall(r"lessons\.check\(\s*[\"']([\d.]+)[\"']", text))
    known = {exercise.number: exercise for exercise in declared(number)}
    for missing in sorted(asked ^ set(known)):
        have = "declared but not asked for" if missing in known else "asked for but not declared"
        yield f"exercise {missing} is {have}; write both, or neither"
    for exercise in known.values():
        if f"**{exercise.number} {exercise.title}**" not in text:
            yield f"exercise {exercise.number} is introduced by “**{exercise.number} {exercise.title}**”; write that"
        if f"def {exercise.answer.__name__}({', '.join(exercise.arguments)})" not in text:
            yield f"exercise {exercise.number} begins with def {exercise.signature}; write that"
