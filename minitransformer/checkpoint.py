"""Files that are whole or not there: arrays as safetensors, the rest as JSON, each written aside and renamed.

Nothing is ever unpickled, so opening a stranger's file runs no code of his.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from .backend import to_numpy
from .tensor import as_array

KEPT = 2  # checkpoints kept: the newest, and the one before it in case a disk lies


def require_safetensors() -> Any:
    """Return the package safetensors. Raises RuntimeError that says how to install it."""
    try:
        import safetensors.numpy
    except ImportError as error:
        raise RuntimeError(
            "saving and loading need the package safetensors; it is not installed here; "
            "write pip install 'minitransformer[train]'"
        ) from error
    return safetensors


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomically(path: Path | str, data: bytes) -> None:
    """Write bytes so that after a crash, a full disk or a power cut the file is the old one or the new one, whole."""
    path = Path(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(aside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def write_json(path: Path | str, value: Any) -> None:
    """Write a value as indented JSON, atomically. Raises ValueError for NaN and infinity, which JSON does not have."""
    write_atomically(path, (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def read_json(path: Path | str) -> Any:
    """Read a JSON file. Raises ValueError that names the file when it is missing, cut short or not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"expected a JSON file; {path} does not exist; check the path") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"expected a JSON file; {path} is damaged ({error}); write it again, or use another") from None


def save(path: Path | str, tensors: dict[str, Any]) -> None:
    """Write named arrays or Tensors to a safetensors file, atomically.

    Each is made C-contiguous first: the format stores bytes in that order, and the writer does not check.
    Raises TypeError for a name that is not a string or a value that is no array.
    """
    arrays = {}
    for name, value in tensors.items():
        array = as_array(value)
        if not isinstance(name, str) or not hasattr(array, "dtype"):
            raise TypeError(
                f"save takes a dict of names to arrays; got {name!r}: {type(value).__name__}; convert it first"
            )
        arrays[name] = np.ascontiguousarray(to_numpy(array)).reshape(array.shape)
    write_atomically(path, require_safetensors().numpy.save(arrays))


def load(path: Path | str) -> dict[str, np.ndarray]:
    """Read a safetensors file into a dict of NumPy arrays.

    Raises ValueError, in one line, for a file that is missing, cut short or of another format.
    """
    safetensors = require_safetensors()
    try:
        return safetensors.numpy.load(Path(path).read_bytes())
    except FileNotFoundError:
        raise ValueError(f"expected a safetensors file; {path} does not exist; check the path") from None
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise ValueError(
            f"expected a safetensors file; {path} is cut short or of another format ({error}); use another"
        ) from None


# -- checkpoints of a run: checkpoint/step-00001500/{model,optimizer}.safetensors and state.json ------------------
def save_checkpoint(
    folder: Path, step: int, model: dict[str, Any], optimizer: dict[str, Any], state: dict[str, Any]
) -> Path:
    """Write a checkpoint aside, then rename its folder into place: it is there whole, or not at all.    → its folder"""
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"step-{step:08d}"
    aside = folder / f".step-{step:08d}.{os.getpid()}.tmp"
    try:
        aside.mkdir()
        save(aside / "model.safetensors", model)
        save(aside / "optimizer.safetensors", optimizer)
        write_json(aside / "state.json", {"step": step, **state})
        _sync(aside)
        if final.exists():  # a resumed run that writes the same step again writes the same bytes
            shutil.rmtree(final)
        os.rename(aside, final)
        _sync(folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    for old in checkpoints(folder)[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    for left in folder.glob(".step-*.tmp"):  # left by a run that was killed while writing
        with contextlib.suppress(OSError):
            shutil.rmtree(left)
    return final


def checkpoints(folder: Path) -> list[Path]:
    """Return the complete checkpoints in a folder, oldest first."""
    return sorted(folder.glob("step-*"))


def load_checkpoint(folder: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Read the newest checkpoint: the model's arrays, the optimizer's, the state.

    Raises ValueError where there is none, or where it is damaged.
    """
    found = checkpoints(folder)
    if not found:
        raise ValueError(f"a run has a checkpoint to load; {folder} holds none; train first, or name another run")
    newest = found[-1]
    return load(newest / "model.safetensors"), load(newest / "optimizer.safetensors"), read_json(newest / "state.json")
