"""From text to numbers and back: symbols, characters, byte pairs."""

from __future__ import annotations

import heapq
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, Self

PAD, BOS, EOS, UNK = 0, 1, 2, 3
SPECIALS = ("<pad>", "<bos>", "<eos>", "<unk>")


def printable(token: str) -> str:
    """Return a token as a label for a figure: a space becomes ␣, other invisible characters their names in Python."""
    return "".join("␣" if c == " " else c if c.isprintable() else repr(c)[1:-1] for c in token)


class Tokenizer:
    """A list of tokens after the four specials, and a way to cut text into them.

    encode gives ids without BOS and EOS; decode skips PAD and BOS and stops at EOS.
    """

    kind = ""
    glue = ""

    def __init__(self, tokens: Sequence[str]):
        self.vocabulary = [*SPECIALS, *tokens]
        self.ids = {token: i for i, token in enumerate(self.vocabulary)}
        if len(self.ids) != len(self.vocabulary):
            raise ValueError("a tokenizer's tokens differ from one another; got some twice; train it again")

    def __len__(self) -> int:
        return len(self.vocabulary)

    def split(self, text: str) -> list[str]:
        """Cut text into tokens; each kind does it in its own way."""
        raise NotImplementedError

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text; what the vocabulary does not have becomes UNK."""
        return [self.ids.get(token, UNK) for token in self.split(text)]

    def _kept(self, ids: Iterable[int]) -> list[int]:
        kept = []
        for i in ids:
            if i == EOS:
                break
            if i not in (PAD, BOS):
                kept.append(int(i))
        return kept

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ids; UNK becomes �."""
        return self.glue.join("�" if i == UNK else self.vocabulary[i] for i in self._kept(ids))

    def tokens(self, ids: Iterable[int]) -> list[str]:
        """Return one printable label for each id, the specials included."""
        return [printable(self.vocabulary[i]) for i in ids]

    def to_json(self) -> dict[str, Any]:
        """Return what `tokenizer_from_json` needs to build this tokenizer again."""
        return {"kind": self.kind, "tokens": self.vocabulary[len(SPECIALS) :]}


class SymbolTokenizer(Tokenizer):
    """Tokens are what stands between blanks: "3 1 4" → 3, 1, 4."""

    kind, glue = "symbol", " "

    def split(self, text: str) -> list[str]:
        return text.split()


class CharTokenizer(Tokenizer):
    """Tokens are the characters of Unicode that the training text has."""

    kind = "char"

    @classmethod
    def train(cls, texts: Iterable[str]) -> Self:
        """Collect the characters of the texts, in order of code point."""
        return cls(sorted(set().union(*texts)))

    def split(self, text: str) -> list[str]:
        return list(text)


def _byte_symbols() -> list[str]:
    """Name each of the 256 bytes by one character, so that a piece of text is a string even amid a character."""
    return [chr(b) if 33 <= b < 127 else chr(0x100 + b) for b in range(256)]


BYTE_SYMBOLS = _byte_symbols()
BYTE_OF = {symbol: b for b, symbol in enumerate(BYTE_SYMBOLS)}
WORDS = re.compile(r" ?[^\W\d_]+| ?\d+| ?[^\s\w]+|_+|\s+(?!\S)|\s")


class BPETokenizer(Tokenizer):
    """Byte-pair encoding: start from bytes, merge the pair seen most often, again and again.

    Sennrich, Haddow & Birch 2016, arXiv:1508.07909; over bytes, so that no text is unknown. Pairs never cross the
    border of a word; a word carries the blank before it. Of pairs that are equally frequent the first in order of
    characters wins, so that the same texts give the same tokens in every run.
    """

    kind = "bpe"

    def __init__(self, merges: Sequence[Sequence[str]]):
        self.merges = [(left, right) for left, right in merges]
        self.rank = {pair: i for i, pair in enumerate(self.merges)}
        made = dict.fromkeys(left + right for left, right in self.merges)
        super().__init__([*BYTE_SYMBOLS, *made])
        self._cache: dict[str, list[str]] = {}

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int = 1000) -> Self:
        """Learn merges until the vocabulary has vocab_size tokens, or no pair comes twice.

        Raises ValueError below 260, the specials and the bytes.
        """
        least = len(SPECIALS) + 256
        if vocab_size < least:
            raise ValueError(
                f"a byte-pair vocabulary holds {least} tokens before any merge; got {vocab_size}; write vocab_size=1000"
            )
        counts = Counter(word for text in texts for word in WORDS.findall(text))
        words = [_symbols(word) for word in counts]
        times = list(counts.values())
        pairs: Counter[tuple[str, str]] = Counter()
        homes: dict[tuple[str, str], set[int]] = defaultdict(set)  # the words in which a pair occurs
        for w, word in enumerate(words):
            for pair in zip(word, word[1:], strict=False):
                pairs[pair] += times[w]
                homes[pair].add(w)
        queue = [(-n, pair) for pair, n in pairs.items()]
        heapq.heapify(queue)
        merges: list[tuple[str, str]] = []
        tokens = set(BYTE_SYMBOLS)
        while queue and len(tokens) < vocab_size - len(SPECIALS):
            n, best = heapq.heappop(queue)
            if -n != pairs[best]:  # an old count: the true one is in the queue too
                continue
            if -n < 2:
                break
            merges.append(best)
            tokens.add(best[0] + best[1])
            changed: set[tuple[str, str]] = set()
            for w in homes.pop(best):
                before, words[w] = words[w], _merge(words[w], best)
                for pair in zip(before, before[1:], strict=False):
                    pairs[pair] -= times[w]
                    changed.add(pair)
                for pair in zip(words[w], words[w][1:], strict=False):
                    pairs[pair] += times[w]
                    homes[pair].add(w)
                    changed.add(pair)
            for pair in sorted(changed):
                if pairs[pair] > 0:
                    heapq.heappush(queue, (-pairs[pair], pair))
        return cls(merges)

    def split(self, text: str) -> list[str]:
        pieces = []
        for word in WORDS.findall(text):
            if word not in self._cache:
                self._cache[word] = self._apply(_symbols(word))
            pieces += self._cache[word]
        return pieces

    def _apply(self, word: list[str]) -> list[str]:
        while len(word) > 1:
            best = min(zip(word, word[1:], strict=False), key=lambda pair: self.rank.get(pair, len(self.rank)))
            if best not in self.rank:
                break
            word = _merge(word, best)
        return word

    def _bytes(self, token: str) -> bytes:
        return bytes(BYTE_OF[c] for c in token)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ids; bytes that are no UTF-8 become �."""
        parts = ["�".encode() if i == UNK else self._bytes(self.vocabulary[i]) for i in self._kept(ids)]
        return b"".join(parts).decode("utf-8", errors="replace")

    def tokens(self, ids: Iterable[int]) -> list[str]:
        labels = []
        for i in ids:
            token = self.vocabulary[i]
            if i < len(SPECIALS):
                labels.append(token)
                continue
            try:
                labels.append(printable(self._bytes(token).decode("utf-8")))
            except UnicodeDecodeError:
                labels.append(repr(self._bytes(token))[2:-1])
        return labels

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "merges": [list(pair) for pair in self.merges]}


def _symbols(word: str) -> list[str]:
    return [BYTE_SYMBOLS[b] for b in word.encode("utf-8", errors="replace")]


def _merge(word: list[str], pair: tuple[str, str]) -> list[str]:
    """Join each occurrence of a pair, from the left."""
    merged, i = [], 0
    while i < len(word):
        if i + 1 < len(word) and (word[i], word[i + 1]) == pair:
            merged.append(word[i] + word[i + 1])
            i += 2
        else:
            merged.append(word[i])
            i += 1
    return merged


def tokenizer_from_json(value: Any) -> Tokenizer:
    """Build a tokenizer from what `to_json` gave. Raises ValueError for anything else."""
    from .number_words import NumberWordTokenizer

    kinds = {"symbol": SymbolTokenizer, "char": CharTokenizer}
    try:
        if value["kind"] == "bpe":
            return BPETokenizer([(str(left), str(right)) for left, right in value["merges"]])
        if value["kind"] in NumberWordTokenizer.LANGUAGES:
            return NumberWordTokenizer(value["kind"])
        return kinds[value["kind"]]([str(token) for token in value["tokens"]])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"a tokenizer file names its kind and tokens; got one without ({error!r}); use the run's own tokenizer.json"
        ) from None
