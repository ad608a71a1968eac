"""Greedy decoding in PyTorch eager: the language model of `pytorch.py`, with its keys and values kept."""

from __future__ import annotations

import itertools
import time
from typing import Any

import torch
import torch.nn.functional as F

from ..parallel import cores
from .configs import BenchConfig
from .pytorch import GPT, Attention


class PyTorchDecoder:
    """Write token by token under torch.inference_mode.

    joined: q, k and v as one product instead of three Linears. Whether the cache is a preallocated array or grows by
    torch.cat, and how many threads there are, is whatever `tune` finds fastest here.
    """

    def __init__(self, c: BenchConfig, weights: dict[str, Any], joined: bool = False):
        self.c, self.preallocated, self.threads = c, False, 1
        self.model = GPT(c).eval()
        self.model.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()}, assign=True)
        self.layers: list[Any] = list(self.model.decoder.layers)
        self.k: list[Any] = []
        self.v: list[Any] = []
        parts = [(a.q_proj, a.k_proj, a.v_proj) for a in (layer.self_attention for layer in self.layers)]
        self.joined = joined and [(torch.cat([p.weight for p in ps]), torch.cat([p.bias for p in ps])) for ps in parts]

    def tune(self, prompt: list[int], count: int) -> str:
        """Try every setting on a short text and keep the fastest; return what it is."""
        taken = {}
        for threads, preallocated in itertools.product(sorted({1, cores()}), (False, True)):
            self.threads, self.preallocated = threads, preallocated
            taken[threads, preallocated] = min(self.write(prompt, count)[1][-1] for _ in range(2))
        self.threads, self.preallocated = min(taken, key=lambda setting: taken[setting])
        return f"threads {self.threads}, cache {'preallocated' if self.preallocated else 'by torch.cat'}"

    def attend(self, i: int, attention: Attention, x: torch.Tensor, past: int) -> torch.Tensor:
        """x: (1, T, D) → (1, T, D), with the keys and values of layer i behind those that are here."""
        if self.joined:
            q, k, v = F.linear(x, *self.joined[i]).unflatten(-1, (3, self.c.heads, -1)).permute(2, 0, 3, 1, 4)
        else:
            projections = attention.q_proj, attention.k_proj, attention.v_proj
            q, k, v = (p(x).unflatten(-1, (self.c.heads, -1)).transpose(1, 2) for p in projections)
        end = past + x.shape[1]
        if self.preallocated:
            self.k[i][:, :, past:end], self.v[i][:, :, past:end] = k, v
            k, v = self.k[i][:, :, :end], self.v[i][:, :, :end]
        else:
            k, v = torch.cat([self.k[i][:, :, :past], k], dim=2), torch.cat([self.v[i][:, :, :past], v], dim=2)
            self.k[i], self.v[i] = k, v
        y = F.scaled_dot_product_attention(q, k, v, is_causal=x.shape[1] > 1)
        return attention.out_proj(y.transpose(1, 2).flatten(2))

    def write(self, prompt: list[int], count: int) -> tuple[list[int], list[float]]:
        """Write the likeliest tokens; return them, and the seconds at which each was there."""
        torch.set_num_threads(self.threads)
        shape = (1, self.c.heads, self.c.length if self.preallocated else 0, self.c.d_model // self.c.heads)
        written: list[int] = []
        began, times, past = time.perf_counter(), [], 0
        with torch.inference_mode():
            self.k, self.v = ([torch.empty(shape) for _ in self.layers] for _ in range(2))
            ids = torch.tensor([prompt])
            while len(written) < count:
                x = self.model.embedding(ids) + self.model.positions.weight[past : past + ids.shape[1]]
                for i, layer in enumerate(self.layers):
                    x = x + self.attend(i, layer.self_attention, layer.norm1(x), past)
                    x = x + layer.feed_forward(layer.norm2(x))
                past += ids.shape[1]
                last = self.model.decoder.norm(x[:, -1:])
                ids = F.linear(last, self.model.embedding.weight)[:, 0].argmax(dim=-1, keepdim=True)
                written.append(int(ids))
                times.append(time.perf_counter() - began)
        return written, times
