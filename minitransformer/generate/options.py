"""How a text is to be written, said once for language models and translators."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from ..draws import check_seed
from . import doors
from .beam import beam_texts, beam_translate, require_search
from .choose import greedy, require_kept, require_penalty, sampler
from .write import Choose, Until, continue_texts, translate


@dataclasses.dataclass(frozen=True)
class Options:
    """All that can be asked for; by default the likeliest token each time.

    temperature, top_k, top_p, seed: above temperature 0 tokens are drawn, see `sampler`. beams, length_penalty: above
    one beam texts are searched for, see `beam_translate`. repetition_penalty: see `penalise`. chunk: how much of the
    prompts is read at once, 0 for all; sources are read whole.

    A search draws nothing, a drawn text has no length penalty: Raises ValueError for options that exclude one another
    or would do nothing, and for one out of its range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    beams: int = 1
    length_penalty: float = 1.0
    repetition_penalty: float = 1.0
    chunk: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if not doors.is_number(self.temperature) or self.temperature < 0:
            raise ValueError(
                f"a temperature is >= 0, 0 for the likeliest token; got {self.temperature!r}; write temperature=0.8"
            )
        require_kept(self.top_k, self.top_p)
        require_search(self.beams, self.length_penalty)
        require_penalty(self.repetition_penalty)
        doors.require_chunk(self.chunk)
        check_seed(self.seed)
        if self.beams > 1 and self.temperature > 0:
            raise ValueError(
                f"beams search and draw nothing; got beams={self.beams} and temperature={self.temperature}; "
                "write one of the two"
            )
        if self.temperature == 0 and (self.top_k or self.top_p < 1):
            raise ValueError(
                f"top_k and top_p say from what is drawn; got top_k={self.top_k} and top_p={self.top_p} at temperature "
                "0, where nothing is; write temperature=0.8, too"
            )
        if self.beams == 1 and self.length_penalty != 1:
            raise ValueError(
                f"a length penalty compares beams; got length_penalty={self.length_penalty} and one beam; "
                "write beams=4, too"
            )

    def _choose(self, rows: Sequence[int] | None) -> Choose:
        return sampler(self.temperature, self.top_k, self.top_p, self.seed, rows) if self.temperature else greedy

    def texts(self, model: Any, prompts: Sequence[Sequence[int]], count: int, until: Until = None) -> list[list[int]]:
        """Continue prompts with a language model: `continue_texts`, or the best of `beam_texts`."""
        penalty = self.repetition_penalty
        if self.beams == 1:
            choose = self._choose(None)
            return continue_texts(
                model, prompts, count, choose, repetition_penalty=penalty, chunk=self.chunk, until=until
            )
        found = beam_texts(
            model, prompts, count, self.beams, self.length_penalty, repetition_penalty=penalty, chunk=self.chunk,
            until=until,
        )  # fmt: skip
        return [best[0].ids for best in found]

    def translations(
        self, model: Any, sources: Sequence[Sequence[int]], bos: int, eos: int, max_length: int,
        rows: Sequence[int] | None = None,
    ) -> list[list[int]]:  # fmt: skip
        """Translate sources: `translate`, or the best of `beam_translate`.    rows: their numbers, see `sampler`."""
        what, penalty = (model, sources, bos, eos, max_length), self.repetition_penalty
        if self.beams == 1:
            return translate(*what, self._choose(rows), repetition_penalty=penalty)
        found = beam_translate(*what, self.beams, self.length_penalty, repetition_penalty=penalty)
        return [best[0].ids for best in found]
