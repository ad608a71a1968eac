"""The figures of the README and of the lessons: made by one command from one seed, with their numbers beside them.

    figures/reversal/, figures/numbers/     where a model looks that was trained for it on the spot
    figures/lessons/NN/                     the pictures of the lessons, which are run for it

Timings are not among them: they depend on the machine, and `minitransformer bench` makes them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import backend, draw, tasks
from .lessons import notebook
from .train import train

SHOWN = {"reversal": "0 1 2 3 4 5 6 7", "numbers": "eighty-seven"}  # task → the source that the model reads
LAYER = 2  # of the decoder: the one that the README shows
NAMES = (*SHOWN, "lessons")


def make(
    names: Sequence[str],
    folder: Path,
    lessons: Path,
    seed: int = 0,
    settings: dict[str, Any] | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> list[Path]:
    """Make the figures of these names (all of NAMES when there are none) and return the folders they lie in.

    settings: fields of the config of what is trained. Raises ValueError for another name, before anything is made.
    """
    for name in names:
        if name not in NAMES:
            raise ValueError(f"figures are {', '.join(NAMES)}; got {name!r}; write minitransformer figures reversal")
    made = []
    for name in names or NAMES:
        if name == "lessons":
            for path in notebook.sources(lessons):
                progress(f"running {path.name}")
                notebook.write(path, notebook.execute(path), folder / "lessons")
        else:
            progress(f"training {name}")
            cross_attention(name, folder / name, seed, settings or {})
        made.append(folder / name)
    return made


def cross_attention(name: str, folder: Path, seed: int, settings: dict[str, Any]) -> None:
    """Train a task from a seed, and draw the cross-attention of one layer, all heads, for the source of SHOWN."""
    config = tasks.make_config(name, {"seed": seed, **settings})
    backend.set_backend(config.backend)
    task = tasks.make_task(config)
    with tempfile.TemporaryDirectory() as run:
        train(task, config, Path(run), quiet=True)
    weights, columns, rows = task.attention(SHOWN[name])
    layer = min(LAYER, len(weights["cross"]))
    shown = np.stack(weights["cross"])[layer - 1 : layer]
    path = folder / f"attend-cross-layer{layer}.png"
    draw.attention_grid(shown, rows, columns, path, "cross attention", first=(layer, 1))
