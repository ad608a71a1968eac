"""The figures of the README and of the lessons: made by one command from one seed, with their numbers beside them.

    figures/reversal/, figures/numbers/     where a model looks that was trained for it on the spot
    figures/step/                           the page that steps through a computation, as Chromium shows it
    figures/lessons/NN/                     the pictures of the lessons, which are run for it

Timings are not among them: they depend on the machine, and `minitransformer bench` makes them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import backend, draw, tasks
from .examples import EXAMPLES
from .lessons import notebook
from .trace import trace
from .train import train

SHOWN = {"reversal": "0 1 2 3 4 5 6 7", "numbers": "eighty-seven"}  # task → the source that the model reads
LAYER = 2  # of the decoder: the one that the README shows
STEP = "attention", 4  # an example, and the step of it that is shown: the softmax
NAMES = (*SHOWN, "step", "lessons")
BROWSERS = "chromium", "chromium-browser", "google-chrome"


def make(
    names: Sequence[str],
    folder: Path,
    lessons: Path,
    seed: int = 0,
    settings: dict[str, Any] | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> list[Path]:
    """Make the figures of these names (all of NAMES when there are none) and return the folders they lie in.

    settings: fields of the config of what is trained. Raises ValueError for another name, and for "step" where
    there is no Chromium to draw it, before anything is made.
    """
    for name in names:
        if name not in NAMES:
            raise ValueError(f"figures are {', '.join(NAMES)}; got {name!r}; write minitransformer figures reversal")
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None and (not names or "step" in names):
        others = " ".join(name for name in NAMES if name != "step")
        raise ValueError(f"Chromium draws step; found none; install it, or write minitransformer figures {others}")
    made = []
    for name in names or NAMES:
        if name == "lessons":
            for path in notebook.sources(lessons):
                progress(f"running {path.name}")
                notebook.write(path, notebook.execute(path), folder / "lessons")
        elif name == "step":
            progress("stepping through attention")
            shown_step(str(browser), folder / name)
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


def shown_step(browser: str, folder: Path) -> None:
    """Draw the page of one step of an example, as a browser shows it; the whole record lies beside the picture."""
    example, number = STEP
    record = trace(EXAMPLES[example])
    with tempfile.TemporaryDirectory() as scratch:
        page, shot = Path(scratch, "page.html"), Path(scratch, "shot.png")
        record.html(page)
        where = f"--user-data-dir={Path(scratch, 'profile')}", f"--screenshot={shot}", f"{page.as_uri()}#{number}"
        size = "--window-size=1180,700", "--force-device-scale-factor=1.5", "--hide-scrollbars"
        alone = ("--no-sandbox",) if hasattr(os, "geteuid") and os.geteuid() == 0 else ()  # root may have no sandbox
        command = [browser, "--headless=new", "--disable-gpu", *alone, *size, *where]
        run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        if not shot.is_file():
            raise RuntimeError(f"{browser} made no picture; it said: {run.stderr.strip()[-300:] or 'nothing'}")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(shot, folder / f"{example}.png")
    text = json.dumps(record.to_json(), ensure_ascii=False)
    (folder / f"{example}.json").write_text(text + "\n", encoding="utf-8")
