"""The same models in PyTorch, as its users write them: Linear, LayerNorm, scaled_dot_product_attention, Adam."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..nn.position import sinusoids
from ..parallel import cores
from .configs import LEARNING_RATE, BenchConfig


class Attention(nn.Module):
    """Multi-head attention with four projections."""

    def __init__(self, d: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(d, d) for _ in range(4))

    def forward(self, x: torch.Tensor, memory: torch.Tensor, causal: bool) -> torch.Tensor:
        """x: (B, T, D), memory: (B, S, D) → (B, T, D)."""

        def split(y: torch.Tensor) -> torch.Tensor:
            return y.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        q, k, v = split(self.q_proj(x)), split(self.k_proj(memory)), split(self.v_proj(memory))
        return self.out_proj(F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Widen, bend, narrow."""

    def __init__(self, c: BenchConfig):
        super().__init__()
        self.up, self.down, self.gelu = nn.Linear(c.d_model, c.d_ff), nn.Linear(c.d_ff, c.d_model), c.kind == "gpt"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (B, T, D) → (B, T, D)."""
        h = self.up(x)
        return self.down(F.gelu(h, approximate="tanh") if self.gelu else F.relu(h))


class Layer(nn.Module):
    """A pre-norm layer, with cross-attention in a decoder."""

    norm1: nn.LayerNorm
    norm2: nn.LayerNorm
    norm3: nn.LayerNorm

    def __init__(self, c: BenchConfig, cross: bool):
        super().__init__()
        self.self_attention = Attention(c.d_model, c.heads)
        if cross:
            self.cross_attention = Attention(c.d_model, c.heads)
        self.feed_forward = FeedForward(c)
        for i in range(3 if cross else 2):
            self.add_module(f"norm{i + 1}", nn.LayerNorm(c.d_model))

    def forward(self, x: torch.Tensor, memory: torch.Tensor | None, causal: bool) -> torch.Tensor:
        """x: (B, T, D) → (B, T, D)."""
        h = self.norm1(x)
        x = x + self.self_attention(h, h, causal)
        if memory is None:
            return x + self.feed_forward(self.norm2(x))
        x = x + self.cross_attention(self.norm2(x), memory, False)
        return x + self.feed_forward(self.norm3(x))


class Stack(nn.Module):
    """Layers and a last LayerNorm."""

    def __init__(self, c: BenchConfig, cross: bool):
        super().__init__()
        self.layers = nn.ModuleList([Layer(c, cross) for _ in range(c.layers)])
        self.norm = nn.LayerNorm(c.d_model)

    def forward(self, x: torch.Tensor, memory: torch.Tensor | None, causal: bool) -> torch.Tensor:
        """x: (B, T, D) → (B, T, D)."""
        for layer in self.layers:
            x = layer(x, memory, causal)
        return self.norm(x)


class GPT(nn.Module):
    """A decoder-only language model with tied embeddings."""

    def __init__(self, c: BenchConfig):
        super().__init__()
        self.embedding, self.positions = nn.Embedding(c.vocab, c.d_model), nn.Embedding(c.length, c.d_model)
        self.decoder = Stack(c, cross=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """ids: (B, T) → logits (B, T, V)."""
        x = self.embedding(ids) + self.positions.weight[: ids.shape[1]]
        return F.linear(self.decoder(x, None, True), self.embedding.weight)


class Seq2Seq(nn.Module):
    """An encoder-decoder."""

    def __init__(self, c: BenchConfig):
        super().__init__()
        self.source_embedding, self.target_embedding = (nn.Embedding(c.vocab, c.d_model) for _ in range(2))
        self.register_buffer("table", torch.tensor(sinusoids(c.length, c.d_model), dtype=torch.float32), False)
        self.encoder, self.decoder = Stack(c, cross=False), Stack(c, cross=True)
        self.output = nn.Linear(c.d_model, c.vocab, bias=False)
        self.root = math.sqrt(c.d_model)

    def forward(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """source, target: (B, T) → logits (B, T, V)."""
        memory = self.encoder(self.source_embedding(source) * self.root + self.table, None, False)
        return self.output(self.decoder(self.target_embedding(target) * self.root + self.table, memory, True))


def train(model: Any, optimizer: Any, *arrays: torch.Tensor) -> torch.Tensor:
    """Train a model on one batch and return its loss."""
    *inputs, target = arrays
    loss = F.cross_entropy(model(*inputs).flatten(0, 1), target.flatten())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


class PyTorch:
    """A step of PyTorch on all cores. fused: Adam as one kernel; compiled: the model through torch.compile."""

    children: tuple[int, ...] = ()

    def __init__(self, c: BenchConfig, weights: dict[str, Any], fused: bool = True, compiled: bool = False):
        torch.set_num_threads(cores())
        self.model: Any = GPT(c) if c.kind == "gpt" else Seq2Seq(c)
        self.model.load_state_dict({name: torch.tensor(value) for name, value in weights.items()})
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=LEARNING_RATE, fused=fused)
        self.run = torch.compile(self.model) if compiled else self.model

    def step(self, *arrays: Any) -> float:
        """Train on one batch and return its loss."""
        return train(self.run, self.optimizer, *[torch.from_numpy(a) for a in arrays]).item()


class PyTorchOnGpu:
    """A step of PyTorch on a GPU, in full float32. recorded: as a CUDA graph, with the batch copied into its place."""

    def __init__(self, c: BenchConfig, weights: dict[str, Any], recorded: bool = False, compiled: bool = False):
        self.model: Any = (GPT(c) if c.kind == "gpt" else Seq2Seq(c)).cuda()
        self.weights = {name: torch.tensor(value) for name, value in weights.items()}
        self.model.load_state_dict(self.weights)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=LEARNING_RATE, fused=True, capturable=recorded)
        self.run = torch.compile(self.model) if compiled else self.model
        self.recorded = recorded
        self.graph: Any = None

    def _record(self, batch: list[torch.Tensor]) -> None:
        """Record a step, after some on a stream of their own, as PyTorch asks for, which are undone."""
        self.batch, stream = [t.clone() for t in batch], torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                train(self.run, self.optimizer, *self.batch)
        torch.cuda.current_stream().wait_stream(stream)
        self.model.load_state_dict(self.weights)
        for state in self.optimizer.state.values():
            for value in state.values():
                value.zero_()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.loss = train(self.run, self.optimizer, *self.batch)

    def step(self, *arrays: Any) -> torch.Tensor:
        """Train on one batch and return its loss, which nobody has waited for."""
        batch = [torch.from_numpy(a).pin_memory().to("cuda", non_blocking=True) for a in arrays]
        if not self.recorded:
            return train(self.run, self.optimizer, *batch)
        if self.graph is None:
            self._record(batch)
        for place, new in zip(self.batch, batch, strict=True):
            place.copy_(new)
        self.graph.replay()
        return self.loss.clone()

    def wait(self) -> None:
        """Wait until the GPU has done all that was asked of it."""
        torch.cuda.synchronize()

    def memory(self) -> int:
        """Return the most bytes that were kept on the device."""
        return torch.cuda.max_memory_reserved()
