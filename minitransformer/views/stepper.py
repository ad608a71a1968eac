"""The page that steps through a record, forwards and backwards, by keys or buttons."""

from __future__ import annotations

from typing import Any

from .page import fill, in_frame

HEIGHT = 720  # pixels, inside a notebook


def page(record: dict[str, Any]) -> str:
    """Return the whole page for a record."""
    return fill("stepper.html", f"Step through {record['title']}", record)


def frame(page: str, title: str) -> str:
    """Return a page as a notebook shows it."""
    return in_frame(page, title, HEIGHT)
