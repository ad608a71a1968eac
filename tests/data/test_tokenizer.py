"""Tokenizers: there and back for any text, the merges worked out by hand, what cannot be known."""

import json
import random

import pytest

from minitransformer import data
from minitransformer.data import BOS, EOS, PAD, UNK
from minitransformer.data.tokenizer import WORDS, printable

TEXT = "low low low low low lower lower newest newest newest newest newest newest widest widest widest"


def random_text(rng):
    alphabet = "aab  \t\n_,.!'ß日本é🙂\u0301\u00a009" + chr(0) + "\ufeff"
    return "".join(rng.choice(alphabet) for _ in range(rng.randrange(60)))


def test_bpe_gives_back_any_text():
    rng = random.Random(0)
    tokenizer = data.BPETokenizer.train([TEXT, "日本語 ß"], 300)
    for text in [random_text(rng) for _ in range(500)] + ["", " ", "\n\n a", "a  b", "'s _x_ 12a"]:
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert "".join(WORDS.findall(text)) == text


def test_bpe_merges_the_most_frequent_pair_first():
    merges = data.BPETokenizer.train([TEXT], 4 + 256 + 5).merges
    # counts: "es" and "st" 9 (newest 6, widest 3), "lo" and "ow" 7, "we" 8 (lower 2, newest 6)
    assert merges[0] == ("e", "s") and merges[1] == ("es", "t")
    tokenizer = data.BPETokenizer.train([TEXT], 400)
    assert len(tokenizer.encode("newest")) < len("newest")
    assert all(a + b in tokenizer.vocabulary for a, b in tokenizer.merges)


def brute_force_merges(texts, count):
    """Byte-pair encoding as one would write it first: count all pairs anew before each merge."""
    words = [[chr(b) if 33 <= b < 127 else chr(0x100 + b) for b in w.encode()] for t in texts for w in WORDS.findall(t)]
    merges = []
    for _ in range(count):
        pairs = {}
        for word in words:
            for pair in zip(word, word[1:], strict=False):
                pairs[pair] = pairs.get(pair, 0) + 1
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        if pairs[best] < 2:
            break
        merges.append(best)
        for w, word in enumerate(words):
            out, i = [], 0
            while i < len(word):
                joined = tuple(word[i : i + 2]) == best
                out.append("".join(word[i : i + 2]) if joined else word[i])
                i += 2 if joined else 1
            words[w] = out
    return merges


@pytest.mark.parametrize("seed", range(8))
def test_the_fast_training_finds_what_counting_anew_finds(seed):
    rng = random.Random(seed)
    text = " ".join("".join(rng.choice("abc") for _ in range(rng.randrange(1, 9))) for _ in range(60))
    merges = data.BPETokenizer.train([text], 4 + 256 + 40).merges
    assert merges == brute_force_merges([text], len(merges)) and len(merges) > 20


def test_tokenizers_are_the_same_in_every_run_and_go_through_json():
    ids = {}
    for tokenizer in (
        data.BPETokenizer.train([TEXT], 300), data.CharTokenizer.train([TEXT]), data.SymbolTokenizer(list("0123")),
        data.NumberWordTokenizer("numbers-de"),
    ):  # fmt: skip
        again = data.tokenizer_from_json(json.loads(json.dumps(tokenizer.to_json())))
        assert again.vocabulary == tokenizer.vocabulary and type(again) is type(tokenizer)
        ids[tokenizer.kind] = again.encode("lower 1 2")
    assert len(ids) == 4


def test_the_specials_come_first_and_decode_stops_at_the_end():
    tokenizer = data.CharTokenizer.train(["abc"])
    assert [PAD, BOS, EOS, UNK] == [0, 1, 2, 3]
    a, b, c = tokenizer.encode("abc")
    assert tokenizer.decode([BOS, a, PAD, b, EOS, c]) == "ab"
    assert tokenizer.encode("abz") == [a, b, UNK] and tokenizer.decode([UNK]) == "�"
    assert tokenizer.tokens([BOS, a, EOS]) == ["<bos>", "a", "<eos>"]


def test_labels_show_what_is_invisible():
    assert printable(" a") == "␣a" and printable("\n") == "\\n"
    tokenizer = data.BPETokenizer.train(["日"], 260)
    assert tokenizer.tokens(tokenizer.encode("日"))[0] == "\\xe6"


@pytest.mark.parametrize(
    "value", [{}, {"kind": "word", "tokens": []}, {"kind": "char"}, [], {"kind": "bpe", "merges": [1]}]
)
def test_a_damaged_file_is_refused(value):
    with pytest.raises(ValueError, match="kind and tokens"):
        data.tokenizer_from_json(value)


def test_too_small_a_vocabulary_is_refused():
    with pytest.raises(ValueError, match="260 tokens before any merge; got 259"):
        data.BPETokenizer.train([TEXT], 259)
