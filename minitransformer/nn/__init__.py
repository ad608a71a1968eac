"""What owns parameters, from one linear layer up to the stacks of a Transformer."""

from . import init
from .activation import GELU, Dropout, ReLU, SiLU
from .attention import MultiHeadAttention
from .block import Decoder, DecoderLayer, Encoder, EncoderLayer, FeedForward
from .cache import KVCache, LayerCache
from .linear import Embedding, Linear
from .module import Module, ModuleList, Parameter, Sequential
from .norm import LayerNorm, RMSNorm
from .position import (
    AlibiBias,
    LearnedPositions,
    NoPositions,
    RelativeBias,
    RotaryPositions,
    SinusoidalPositions,
)
from .recompute import Recompute

__all__ = [
    "AlibiBias", "Decoder", "DecoderLayer", "Dropout", "Embedding", "Encoder", "EncoderLayer", "FeedForward", "GELU",
    "KVCache", "LayerCache", "LayerNorm", "LearnedPositions", "Linear", "Module", "ModuleList", "MultiHeadAttention",
    "NoPositions", "Parameter", "RMSNorm", "ReLU", "Recompute", "RelativeBias", "RotaryPositions", "Sequential", "SiLU",
    "SinusoidalPositions", "init",
]  # fmt: skip
