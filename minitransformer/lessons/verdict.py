"""What a check says: one object that reads well in a terminal and in a notebook."""

from __future__ import annotations

import html
from dataclasses import dataclass

MARKS = {"right": "✓", "wrong": "✗", "open": "○"}
COLOURS = {"right": "#1a7f37", "wrong": "#b35900", "open": "#57606a"}


@dataclass(frozen=True)
class Verdict:
    """The answer to one attempt: what is right or wrong, where, and perhaps why."""

    number: str
    state: str  # "right", "wrong", or "open" where there is nothing to judge yet
    lines: tuple[str, ...]  # the first is a headline
    mistake: str = ""  # the name of the usual mistake that was recognised

    @property
    def passed(self) -> bool:
        """Tell whether the exercise is solved."""
        return self.state == "right"

    def __bool__(self) -> bool:
        return self.passed

    def __repr__(self) -> str:
        return f"{MARKS[self.state]} " + "\n  ".join(self.lines)

    def _repr_html_(self) -> str:
        head, *rest = (html.escape(line) for line in self.lines)
        colour = COLOURS[self.state]
        body = "".join(f"<div>{line}</div>" for line in rest)
        return (
            f'<div style="border-left:4px solid {colour};padding:4px 12px;white-space:pre-wrap">'
            f'<div style="color:{colour};font-weight:bold">{MARKS[self.state]} {head}</div>{body}</div>'
        )
