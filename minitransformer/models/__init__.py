"""Whole models: configs and wiring only."""

from .gpt2 import GPT2, GPT2Config
from .transformer import Transformer, TransformerConfig

__all__ = ["GPT2", "GPT2Config", "Transformer", "TransformerConfig"]
