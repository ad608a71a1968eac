"""Reading a user's text. Files are checked line by line, and a complaint names the line."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np


def read_text(path: Path | str) -> str:
    """Read a UTF-8 file, normalised to NFC, with any byte order mark dropped.

    Raises ValueError, in one line, for a file that is missing, a folder, empty or not UTF-8.
    """
    try:
        raw = Path(path).read_bytes()
    except FileNotFoundError:
        raise ValueError(f"expected a text file; {path} does not exist; check the path") from None
    except IsADirectoryError:
        raise ValueError(f"expected a text file; {path} is a folder; name a file in it") from None
    except PermissionError:
        raise ValueError(f"expected a text file; {path} may not be read; check its permissions") from None
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ValueError(
            f"text files are UTF-8; {path} is not, at line {line} (byte {error.start}); convert it with iconv"
        ) from None
    if not text.strip():
        raise ValueError(f"expected a text file; {path} is empty; name a file with text")
    return unicodedata.normalize("NFC", text)


def read_pairs(path: Path | str) -> list[tuple[str, str]]:
    """Read pairs: source TAB target, one a line; blank lines are passed over.

    Raises ValueError, in one line with file and line number, as `read_text` does and for a line that is no pair.
    """
    pairs = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        sides = [side.strip() for side in line.rstrip("\r").split("\t")]
        if len(sides) != 2:
            raise ValueError(
                f"a line holds source TAB target; {path} line {number} has {len(sides) - 1} TABs; write one TAB in it"
            )
        if not all(sides):
            raise ValueError(
                f"a line holds source TAB target; {path} line {number} has an empty side; fill it or delete the line"
            )
        pairs.append((sides[0], sides[1]))
    return pairs


def split_pairs(
    pairs: list[tuple[str, str]], validation: float = 0.1, seed: int = 0
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Hold out a share of the pairs, by source, so that no source is on both sides.    → (training, validation)

    Raises ValueError for fewer than two different sources.
    """
    sources = list(dict.fromkeys(source for source, _ in pairs))
    if len(sources) < 2:
        raise ValueError(f"a validation split needs two different sources; got {len(sources)}; add pairs")
    count = min(max(round(len(sources) * validation), 1), len(sources) - 1)
    chosen = np.random.default_rng(seed).permutation(len(sources))[:count]
    held = {sources[i] for i in chosen}
    return [p for p in pairs if p[0] not in held], [p for p in pairs if p[0] in held]


class TextWindows:
    """Windows of a long text at random places, each with the same window one token later as its target.

    Raises ValueError for a text of fewer than context + 2 tokens.
    """

    def __init__(self, ids: list[int], context: int, batch_size: int, seed: int = 0):
        if len(ids) < context + 2:
            raise ValueError(
                f"a text is longer than the context; got {len(ids)} tokens for max_length={context}; "
                "write --set max_length=32"
            )
        self.ids, self.context, self.batch_size, self.seed = np.array(ids), context, batch_size, seed

    def at(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Return batch number `step`, a function of (seed, step).    → inputs (B, T), targets (B, T)"""
        rng = np.random.default_rng([self.seed, step])
        starts = rng.integers(0, len(self.ids) - self.context, self.batch_size)
        windows = self.ids[starts[:, None] + np.arange(self.context + 1)]
        return windows[:, :-1], windows[:, 1:]
