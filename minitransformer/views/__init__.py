"""Pages, pictures and texts that show what was computed; each stands in one file and asks no network.

They read plain records (lists, numbers, texts) and arrays; only `Tensor._repr_html_`, which this file adds, knows more.
"""

from __future__ import annotations

from ..tensor import Tensor
from .arrays import array_html, picture
from .heads import head_view
from .page import Page

__all__ = ["Page", "array_html", "head_view", "picture"]


def _tensor_html(tensor: Tensor) -> str:
    """Return a small heatmap with shape and dtype, for a notebook."""
    made = tensor.node.op.lstrip("_") if tensor.node and tensor.node.vjp else ""
    return array_html(tensor.data, f"made by {made}" if made else "requires_grad" if tensor.node else "")


setattr(Tensor, "_repr_html_", _tensor_html)  # noqa: B010  (a method that mypy is not to check for)
