"""The same models as plain functions of a dict of weights, for libraries that differentiate functions.

JAX jit: the whole step compiled, with its buffers given away. HIPS autograd: NumPy with a tape, as it comes.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from ..nn.position import sinusoids
from .configs import LEARNING_RATE, BenchConfig

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8


def logits(xp: Any, c: BenchConfig, w: dict[str, Any], inputs: tuple[Any, ...]) -> Any:
    """Compute the scores of the next tokens with NumPy's namespace `xp`.    (B, T) → (B, T, V)"""

    def linear(x: Any, name: str) -> Any:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(x: Any, name: str) -> Any:
        centred = x - xp.mean(x, axis=-1, keepdims=True)
        variance = xp.mean(centred * centred, axis=-1, keepdims=True)
        return centred / xp.sqrt(variance + 1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"]

    def split(x: Any) -> Any:
        return xp.swapaxes(xp.reshape(x, (*x.shape[:2], c.heads, -1)), 1, 2)

    def attend(x: Any, memory: Any, name: str, causal: bool) -> Any:
        q, k, v = (split(linear(y, f"{name}.{p}_proj")) for y, p in ((x, "q"), (memory, "k"), (memory, "v")))
        scores = q @ xp.swapaxes(k, -1, -2) * (1 / math.sqrt(c.d_model // c.heads))
        if causal:
            scores = scores + np.triu(np.full(scores.shape[-2:], -1e30, dtype="float32"), 1)
        e = xp.exp(scores - xp.max(scores, axis=-1, keepdims=True))
        mixed = (e / xp.sum(e, axis=-1, keepdims=True)) @ v
        return linear(xp.reshape(xp.swapaxes(mixed, 1, 2), x.shape), f"{name}.out_proj")

    def feed_forward(x: Any, name: str) -> Any:
        h = linear(x, f"{name}.up")
        if c.kind == "gpt":
            h = 0.5 * h * (1 + xp.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h * h * h)))
        else:
            h = xp.maximum(h, 0)
        return linear(h, f"{name}.down")

    def stack(x: Any, memory: Any, name: str, causal: bool) -> Any:
        for i in range(c.layers):
            at = f"{name}.layers.{i}"
            h = norm(x, f"{at}.norm1")
            x = x + attend(h, h, f"{at}.self_attention", causal)
            if memory is not None:
                x = x + attend(norm(x, f"{at}.norm2"), memory, f"{at}.cross_attention", False)
            x = x + feed_forward(norm(x, f"{at}.norm{2 if memory is None else 3}"), f"{at}.feed_forward")
        return norm(x, f"{name}.norm")

    if c.kind == "gpt":
        x = w["embedding.weight"][inputs[0]] + w["positions.weight"][: c.length]
        return stack(x, None, "decoder", True) @ w["embedding.weight"].T
    table, root = sinusoids(c.length, c.d_model).astype("float32"), math.sqrt(c.d_model)
    memory = stack(w["source_embedding.weight"][inputs[0]] * root + table, None, "encoder", False)
    return stack(w["target_embedding.weight"][inputs[1]] * root + table, memory, "decoder", True) @ w["output.weight"].T


def mean_loss(xp: Any, c: BenchConfig, w: dict[str, Any], arrays: tuple[Any, ...]) -> Any:
    """Return the mean loss of a batch, in nats per token."""
    scores = xp.reshape(logits(xp, c, w, arrays[:-1]), (-1, c.vocab))
    scores = scores - xp.max(scores, axis=-1, keepdims=True)
    log_p = scores - xp.log(xp.sum(xp.exp(scores), axis=-1, keepdims=True))
    return -xp.mean(log_p[np.arange(c.tokens), xp.reshape(arrays[-1], (-1,))])


def adam(xp: Any, x: Any, g: Any, m: Any, v: Any, t: Any) -> tuple[Any, Any, Any]:
    """Return a parameter and its moments after one step of Adam."""
    m, v = BETA1 * m + (1 - BETA1) * g, BETA2 * v + (1 - BETA2) * g * g
    step = LEARNING_RATE * m / (1 - BETA1**t) / (xp.sqrt(v / (1 - BETA2**t)) + EPS)
    return (x - step).astype(x.dtype), m.astype(x.dtype), v.astype(x.dtype)


class Jax:
    """A step of JAX: loss, gradients and Adam compiled as one function."""

    children: tuple[int, ...] = ()

    def __init__(self, c: BenchConfig, weights: dict[str, Any]):
        import jax
        import jax.numpy as jnp

        self.state = [{k: jnp.asarray(a) for k, a in weights.items()}]
        self.state += [{k: jnp.zeros_like(a) for k, a in self.state[0].items()} for _ in range(2)]
        self.t = 0

        @functools.partial(jax.jit, donate_argnums=(0,))
        def run(state: Any, t: Any, arrays: Any) -> Any:
            value, grads = jax.value_and_grad(lambda w: mean_loss(jnp, c, w, arrays))(state[0])
            new = {k: adam(jnp, state[0][k], grads[k], state[1][k], state[2][k], t) for k in grads}
            return value, [{k: new[k][i] for k in new} for i in range(3)]

        self.run = run

    def launch(self, *arrays: Any) -> Any:
        """Train on one batch and return its loss, which may still be on its way."""
        self.t += 1
        value, self.state = self.run(self.state, float(self.t), tuple(a.astype("int32") for a in arrays))
        return value

    def step(self, *arrays: Any) -> float:
        """Train on one batch and return its loss."""
        return float(self.launch(*arrays))


class JaxOnGpu(Jax):
    """The same on a GPU, in full float32, as the other peers there."""

    def __init__(self, c: BenchConfig, weights: dict[str, Any]):
        import jax

        jax.config.update("jax_default_matmul_precision", "highest")  # else TensorFloat-32
        self.device = jax.devices("gpu")[0]
        super().__init__(c, weights)

    step = Jax.launch

    def wait(self) -> None:
        """Wait until the last step is done."""
        import jax

        jax.block_until_ready(self.state)

    def memory(self) -> int:
        """Return the most bytes that arrays took on the device."""
        return int((self.device.memory_stats() or {}).get("peak_bytes_in_use", 0))


class Hips:
    """A step of HIPS autograd."""

    children: tuple[int, ...] = ()

    def __init__(self, c: BenchConfig, weights: dict[str, Any]):
        import autograd.numpy as anp
        from autograd import value_and_grad

        self.state = [dict(weights), *[{k: np.zeros_like(a) for k, a in weights.items()} for _ in range(2)]]
        self.t = 0
        self.run = value_and_grad(lambda w, arrays: mean_loss(anp, c, w, arrays))

    def step(self, *arrays: Any) -> float:
        """Train on one batch and return its loss."""
        self.t += 1
        value, grads = self.run(self.state[0], arrays)
        x, m, v = self.state
        for k, g in grads.items():
            x[k], m[k], v[k] = adam(np, x[k], g, m[k], v[k], self.t)
        return float(value)
