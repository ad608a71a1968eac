"""Tasks made on the spot, text and pair files, tokenizers, batches."""

from .batching import Batch, PairBatches, pad_batch
from .number_words import NumberWordTokenizer, english, german, number_pairs
from .pairs import TextWindows, read_pairs, read_text, split_pairs
from .reversal import Reversal, is_held_out
from .tokenizer import (
    BOS,
    EOS,
    PAD,
    SPECIALS,
    UNK,
    BPETokenizer,
    CharTokenizer,
    SymbolTokenizer,
    Tokenizer,
    tokenizer_from_json,
)

__all__ = [
    "BOS", "BPETokenizer", "Batch", "CharTokenizer", "EOS", "NumberWordTokenizer", "PAD", "PairBatches", "Reversal",
    "SPECIALS", "SymbolTokenizer", "TextWindows", "Tokenizer", "UNK", "english", "german", "is_held_out",
    "number_pairs", "pad_batch", "read_pairs", "read_text", "split_pairs", "tokenizer_from_json",
]  # fmt: skip
