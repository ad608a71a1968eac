"""Which line of a program is running: its file, number and text, the part of it, and the name it gives its value.

Python keeps, for each instruction of a function, from which columns of which lines it was made; the syntax tree of the
file then tells whether those columns are the whole right side of `name = ...`, or of a `return`.
"""

from __future__ import annotations

import ast
import functools
import linecache
import os
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple

PACKAGE = str(Path(__file__).parent.parent)
ENGINE = tuple(os.path.join(PACKAGE, part) for part in ("tensor.py", "recompute.py", "trace.py", "kernels" + os.sep))
EXAMPLES = os.path.join(PACKAGE, "examples.py")  # written as a reader would write them
BOOK = os.path.join(PACKAGE, "ops") + os.sep
MOST_LINES = 6  # shown of one expression
LONGEST_NAME = 28  # of an expression that names its own value


class Line(NamedTuple):
    """A line of source: where it stands, its text, and which columns of it were at work."""

    file: str
    number: int
    function: str
    text: str
    start: int
    end: int

    def to_json(self) -> dict[str, Any]:
        """Return it as what JSON can hold."""
        return self._asdict()

    @property
    def where(self) -> str:
        """Say file and line, as editors do."""
        return f"{self.file}:{self.number}"


def kind_of(code: CodeType) -> str:
    """Tell whose code runs: the "engine"'s, the "book"'s of ops, the "package"'s, or the "user"'s."""
    name = code.co_filename
    if not name.startswith(PACKAGE + os.sep) or name == EXAMPLES:
        return "user"
    if name.startswith(ENGINE) or name == BOOK + "__init__.py":
        return "engine"
    return "book" if name.startswith(BOOK) else "package"


class Call(NamedTuple):
    """How an op came to be called: a line each of the user, the package and the book, and what its value is called.

    key tells one expression of a program from another: of several ops that share it, the last makes its value.
    """

    lines: list[Line]
    name: str | None
    key: Any


def calling(frame: FrameType | None, last: CodeType) -> Call:
    """Return how an op was called, looking from its frame outwards, no further than the code `last`.

    The name is that of the variable which gets the value (through any number of `return`s), else the expression
    itself where it is the user's own and short.
    """
    lines: dict[str, Line] = {}
    name, key, searching = None, None, True
    while frame is not None and frame.f_code is not last:
        code, at = frame.f_code, frame.f_lasti
        kind = kind_of(code)
        if kind != "engine":
            line, use, target = _describe(code, at)
            lines.setdefault(kind, line)
            if kind != "book" and searching:
                if key is None or use == "name":
                    key = code, at
                if use == "name":
                    name = target
                elif kind == "user" and "package" not in lines and 0 < line.end - line.start <= LONGEST_NAME:
                    name = name or line.text[line.start : line.end]
                searching = use == "return"
        frame = frame.f_back
    return Call([lines[kind] for kind in ("user", "package", "book") if kind in lines], name, key)


@functools.lru_cache(maxsize=4096)
def _describe(code: CodeType, at: int) -> tuple[Line, str | None, str | None]:
    """Return the line of an instruction, what its value is used for ("name", "return"), and the name."""
    place = _positions(code)[at // 2]
    first, last, start, end = (p or 0 for p in place)
    first = first or code.co_firstlineno
    text = [linecache.getline(code.co_filename, n).rstrip("\n") for n in range(first, max(first, last) + 1)]
    start, end = _characters(text[0], start), _characters(text[-1], end)
    indent = min((len(t) - len(t.lstrip()) for t in text if t.strip()), default=0)
    whole = len(text) == 1
    shown = "\n".join(t[indent:] for t in text[:MOST_LINES]) + ("\n…" if len(text) > MOST_LINES else "")
    columns = (max(start - indent, 0), max(end - indent, 0)) if whole and end > start else (0, 0)
    line = Line(short_path(code.co_filename), first, code.co_qualname, shown, *columns)
    return line, *_uses(code.co_filename, _source(code.co_filename)).get(place, (None, None))


@functools.lru_cache(maxsize=1024)
def _positions(code: CodeType) -> list[tuple[int | None, int | None, int | None, int | None]]:
    return list(code.co_positions())


def _characters(text: str, column: int) -> int:
    """Turn a column in bytes, as Python counts them, into one in characters."""
    return len(text.encode()[:column].decode(errors="ignore"))


def _source(file: str) -> str:
    return "".join(linecache.getlines(file))


@functools.lru_cache(maxsize=64)
def _uses(file: str, source: str) -> dict[tuple, tuple[str, str | None]]:
    """Return, for each expression that is the whole value of an assignment or a return, which of them and the name."""
    found: dict[tuple, tuple[str, str | None]] = {}
    try:
        tree = ast.parse(source)
    except SyntaxError:  # a cell with a notebook's own commands, say
        return found

    def add(node: ast.expr, use: str, name: str | None = None) -> None:
        found[node.lineno, node.end_lineno, node.col_offset, node.end_col_offset] = use, name

    for node in ast.walk(tree):
        if isinstance(node, ast.Return) and node.value is not None:
            add(node.value, "return")
        elif isinstance(node, ast.Lambda):
            add(node.body, "return")
        elif isinstance(node, ast.Assign) and len(node.targets) == 1:
            target, value = node.targets[0], node.value
            pairs = [(target, value)]
            if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
                pairs = list(zip(target.elts, value.elts, strict=False))
            for t, v in pairs:
                if isinstance(t, ast.Name | ast.Attribute | ast.Subscript):
                    add(v, "name", ast.unparse(t))
    return found


def short_path(file: str) -> str:
    """Return a path to be shown: from the package's or the current folder on, else the name alone.

    A notebook's cells are files of a scratch folder, named by numbers that say nothing to the reader.
    """
    if os.path.basename(os.path.dirname(file)).startswith("ipykernel_"):
        return "cell"
    for base in (str(Path(PACKAGE).parent), os.getcwd()):
        if file.startswith(base + os.sep):
            return Path(file).relative_to(base).as_posix()
    return os.path.basename(file)
