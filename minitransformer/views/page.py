"""A page that stands by itself: a template of this folder with data in it, and nothing that is fetched."""

from __future__ import annotations

import functools
import html
import json
import os
import uuid
from importlib import resources
from pathlib import Path
from typing import Any

from .arrays import LARGEST, PALETTE, ink


@functools.cache
def _template(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def embedded(value: Any) -> str:
    """Write data as JSON inside a page: nothing in it can end the script, or begin a comment."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


@functools.cache
def _palette() -> dict[str, Any]:
    """Return the colours of the 256 bytes of a cell, and what ink reads well on each."""
    return {"rgb": PALETTE.ravel().tolist(), "ink": [ink(code) for code in range(256)], "largest": LARGEST}


def fill(template: str, title: str, data: Any) -> str:
    """Put a title and data into a template."""
    page = _template(template).replace("@TITLE@", html.escape(title))
    return page.replace("@PALETTE@", embedded(_palette())).replace("@DATA@", embedded(data))


def in_frame(page: str, title: str, height: int) -> str:
    """Return a page as a part of another one, such as a notebook; two of them do not know of each other."""
    look = f"width:100%;height:{height}px;border:1px solid #8888;border-radius:6px"
    return f'<iframe title="{html.escape(title)}" style="{look}" srcdoc="{html.escape(page)}"></iframe>'


class Page(str):
    """A page as text, which a notebook shows in a frame of its own."""

    name = "a page"  # read aloud in place of the frame
    height = 640  # pixels, in a notebook

    def _repr_html_(self) -> str:
        return in_frame(self, self.name, self.height)


def save(text: str, path: str | os.PathLike[str] | None) -> str:
    """Write a text to a file, if one is named: aside first, then moved into place. Return the text.

    Raises ValueError for a folder.
    """
    if path is None:
        return text
    asked = Path(path)
    if asked.is_dir():
        raise ValueError(f"path must name a file; got the folder '{asked}'; write '{asked / 'trace.html'}'")
    asked.parent.mkdir(parents=True, exist_ok=True)
    aside = asked.with_name(f".{asked.name}-{uuid.uuid4().hex}")
    try:
        aside.write_text(text, encoding="utf-8")
        os.replace(aside, asked)
    finally:
        aside.unlink(missing_ok=True)
    return text
