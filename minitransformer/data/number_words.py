"""English and German number words, by rule.

German says the units before the tens: eighty-seven → sieben-und-achtzig.
"""

from __future__ import annotations

from typing import Any

from .tokenizer import Tokenizer

ENGLISH_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
ENGLISH_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
GERMAN_SMALL = (
    "null ein zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn vierzehn fünfzehn sechzehn siebzehn "
    "achtzehn neunzehn"
).split()
GERMAN_TENS = "zwanzig dreißig vierzig fünfzig sechzig siebzig achtzig neunzig".split()
LARGEST = 1_000_000


def _check(n: int) -> None:
    if not 0 <= n < LARGEST:
        raise ValueError(f"number words are known for 0 … {LARGEST - 1}; got {n}; choose a smaller limit")


def english_pieces(n: int) -> list[str]:
    """Return the words of n: 87 → eighty, seven. Raises ValueError outside 0 … 999,999."""
    _check(n)
    if n < 20:
        return [ENGLISH_SMALL[n]]
    for size, name in ((1000, "thousand"), (100, "hundred")):
        if n >= size:
            return [*english_pieces(n // size), name, *(english_pieces(n % size) if n % size else [])]
    return [ENGLISH_TENS[n // 10 - 2], *([ENGLISH_SMALL[n % 10]] if n % 10 else [])]


def german_pieces(n: int, final: bool = True) -> list[str]:
    """Return the morphemes of n: 87 → sieben, und, achtzig. A one at the end is eins, before a word it is ein."""
    _check(n)
    if n == 1:
        return ["eins" if final else "ein"]
    if n < 20:
        return [GERMAN_SMALL[n]]
    for size, name in ((1000, "tausend"), (100, "hundert")):
        if n >= size:
            return [*german_pieces(n // size, False), name, *(german_pieces(n % size, final) if n % size else [])]
    return [*([GERMAN_SMALL[n % 10], "und"] if n % 10 else []), GERMAN_TENS[n // 10 - 2]]


def _join_english(pieces: list[str]) -> str:
    text = ""
    for before, piece in zip(["", *pieces], pieces, strict=False):
        hyphen = before in ENGLISH_TENS and piece in ENGLISH_SMALL[1:10]
        text += ("-" if hyphen else " " if before else "") + piece
    return text


def english(n: int) -> str:
    """Say n in English, without "and": 101 → one hundred one."""
    return _join_english(english_pieces(n))


def german(n: int) -> str:
    """Say n in German: 101 → einhunderteins."""
    return "".join(german_pieces(n))


def number_pairs(limit: int = 1000) -> list[tuple[str, str]]:
    """Return the pairs (English, German) of 0 … limit − 1."""
    return [(english(n), german(n)) for n in range(limit)]


class NumberWordTokenizer(Tokenizer):
    """Tokens are the words of English numbers, or the morphemes of German ones, longest first."""

    LANGUAGES: dict[str, Any] = {
        "numbers-en": [*ENGLISH_SMALL, *ENGLISH_TENS, "hundred", "thousand"],
        "numbers-de": [*GERMAN_SMALL, "eins", *GERMAN_TENS, "und", "hundert", "tausend"],
    }

    def __init__(self, kind: str):
        self.kind = kind
        super().__init__(self.LANGUAGES[kind])
        self._longest_first = sorted(self.LANGUAGES[kind], key=len, reverse=True)

    def split(self, text: str) -> list[str]:
        if self.kind == "numbers-en":
            return text.replace("-", " ").split()
        pieces: list[str] = []
        while text:
            # "eins" before "ein", but not in "einsechzig...": no number word has ein directly before sechs.
            piece = next((p for p in self._longest_first if text.startswith(p)), text[0])
            pieces.append(piece)
            text = text[len(piece) :]
        return pieces

    def decode(self, ids: Any) -> str:
        """Join the pieces as the language writes them."""
        pieces = ["�" if i == 3 else self.vocabulary[i] for i in self._kept(ids)]
        return _join_english(pieces) if self.kind == "numbers-en" else "".join(pieces)

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind}
