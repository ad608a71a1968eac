"""Number words: by rule, against words that were looked up, and through the tokenizers."""

import pytest

from minitransformer import data
from minitransformer.data.number_words import english_pieces, german_pieces

KNOWN = {
    0: ("zero", "null"),
    1: ("one", "eins"),
    11: ("eleven", "elf"),
    16: ("sixteen", "sechzehn"),
    17: ("seventeen", "siebzehn"),
    21: ("twenty-one", "einundzwanzig"),
    30: ("thirty", "dreißig"),
    66: ("sixty-six", "sechsundsechzig"),
    87: ("eighty-seven", "siebenundachtzig"),
    100: ("one hundred", "einhundert"),
    101: ("one hundred one", "einhunderteins"),
    312: ("three hundred twelve", "dreihundertzwölf"),
    721: ("seven hundred twenty-one", "siebenhunderteinundzwanzig"),
    1001: ("one thousand one", "eintausendeins"),
    77_077: ("seventy-seven thousand seventy-seven", "siebenundsiebzigtausendsiebenundsiebzig"),
}


@pytest.mark.parametrize("n", KNOWN)
def test_known_words(n):
    assert (data.english(n), data.german(n)) == KNOWN[n]


def test_every_word_goes_through_its_tokenizer_and_back():
    en, de = data.NumberWordTokenizer("numbers-en"), data.NumberWordTokenizer("numbers-de")
    for n in [*range(2000), 21_021, 100_100, 999_999, 101_101]:
        for tokenizer, text, pieces in (
            (en, data.english(n), english_pieces(n)),
            (de, data.german(n), german_pieces(n)),
        ):
            assert tokenizer.split(text) == pieces
            assert tokenizer.decode(tokenizer.encode(text)) == text


def test_no_two_numbers_share_a_word():
    for side in zip(*data.number_pairs(5000), strict=True):
        assert len(set(side)) == 5000


def test_out_of_range_is_named():
    with pytest.raises(ValueError, match="0 … 999999; got 1000000"):
        data.english(1_000_000)
    with pytest.raises(ValueError, match="got -1"):
        data.german(-1)
