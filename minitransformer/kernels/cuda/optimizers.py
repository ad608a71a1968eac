"""Steps of optimizers for all parameters at once, and the norm of all gradients, which stays on the device.

Bytes: Adam reads θ, g, m, v and writes θ, m, v, 7·N; SGD with momentum and Lion 5·N; the norm reads N, and clipping,
where it has to, reads and writes N more. None of it could move less.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ...backend import Array, keep, to_numpy
from .many import CHUNK, CODE, addresses, pieces, pointers
from .source import arrived, changing, source

THREADS = 256

SOURCE = source(
    "optimizers",
    "adam sgd lion accumulate square_norm clip bound",
    CODE
    + r"""
#define PIECE                                                                       \
    const int own = owner[blockIdx.x];                                              \
    const integer from = begin[blockIdx.x] + threadIdx.x;                           \
    const integer to = min(begin[blockIdx.x] + CHUNK, sizes[own]);                  \
    T* g = far ? far[own] : (T*)near.at[own];

template <typename T>
__global__ void adam(T** xs, Pointers near, T** far, T** ms, T** vs, const integer* sizes, const int* owner,
                     const integer* begin, Changing<double> n) {
    typedef typename Wide<T>::type W;
    const W beta1 = n[0], beta2 = n[1], rate = n[2], eps = n[3], shrink = n[4], l2 = n[5];
    PIECE
    T *x = xs[own], *m = ms[own], *v = vs[own];
    for (integer i = from; i < to; i += blockDim.x) {
        const W theta = (W)x[i] * (W)shrink, g_i = (W)g[i] + (W)l2 * (W)x[i];
        const W m_i = (W)m[i] + ((W)1 - (W)beta1) * (g_i - (W)m[i]);
        const W v_i = (W)v[i] + ((W)1 - (W)beta2) * (g_i * g_i - (W)v[i]);
        m[i] = T(m_i);
        v[i] = T(v_i);
        x[i] = T(theta - (W)rate * m_i / (sqrt(v_i) + (W)eps));
    }
}

template <typename T>
__global__ void sgd(T** xs, Pointers near, T** far, T** bs, const integer* sizes, const int* owner,
                    const integer* begin, Changing<double> n) {
    typedef typename Wide<T>::type W;
    const W lr = n[0], momentum = n[1], dampening = n[2], l2 = n[3];
    const bool nesterov = n[4] != 0, first = n[5] != 0;
    PIECE
    T* x = xs[own];
    for (integer i = from; i < to; i += blockDim.x) {
        W u = (W)g[i] + (W)l2 * (W)x[i];
        if (bs) {
            const W b = first ? u : (W)momentum * (W)bs[own][i] + ((W)1 - (W)dampening) * u;
            bs[own][i] = T(b);
            u = nesterov ? u + (W)momentum * b : b;
        }
        x[i] = T((W)x[i] - (W)lr * u);
    }
}

template <typename T>
__global__ void lion(T** xs, Pointers near, T** far, T** ms, const integer* sizes, const int* owner,
                     const integer* begin, Changing<double> n) {
    typedef typename Wide<T>::type W;
    const W beta1 = n[0], beta2 = n[1], lr = n[2], shrink = n[3];
    PIECE
    T *x = xs[own], *m = ms[own];
    for (integer i = from; i < to; i += blockDim.x) {
        const W g_i = (W)g[i], m_i = (W)m[i], c = (W)beta1 * m_i + ((W)1 - (W)beta1) * g_i;
        const W sign = c > 0 ? W(1) : c < 0 ? W(-1) : c;  // 0 stays 0, and what is not a number stays that
        x[i] = T((W)x[i] * (W)shrink - (W)lr * sign);
        m[i] = T((W)beta2 * m_i + ((W)1 - (W)beta2) * g_i);
    }
}

template <typename T>
__global__ void accumulate(T** sums, Pointers near, T** far, const integer* sizes, const int* owner,
                           const integer* begin, double weight, int first) {
    typedef typename Wide<T>::type W;
    PIECE
    T* sum = sums[own];
    for (integer i = from; i < to; i += blockDim.x) {
        const W part = (W)weight * (W)g[i];
        sum[i] = T(first ? part : (W)sum[i] + part);
    }
}

// result: ‖g‖; the factor that brings it down to `limit`, 1 where it is below, or not a number; and then, the first
// array with a sum that is not one, and how many such arrays there are.
template <typename T>
__global__ void square_norm(Pointers near, T** far, const integer* sizes, const int* owner, const integer* begin,
                            typename Wide<T>::type* partial, int* arrived, typename Wide<T>::type* result,
                            double limit) {
    typedef typename Wide<T>::type W;
    PIECE
    W sum = 0;
    for (integer i = from; i < to; i += blockDim.x) sum += (W)g[i] * (W)g[i];
    sum = block_sum(sum);
    __shared__ int is_last;
    if (threadIdx.x == 0) {
        partial[blockIdx.x] = sum;
        __threadfence();
        is_last = atomicAdd(arrived, 1) == gridDim.x - 1;
    }
    __syncthreads();
    if (!is_last) return;
    __threadfence();
    W total = 0;
    for (int b = threadIdx.x; b < gridDim.x; b += blockDim.x) total += partial[b];
    const W norm = sqrt(block_sum(total));
    if (threadIdx.x == 0) {
        const W factor = (W)limit / (norm + (W)1e-6);
        result[0] = norm;
        result[1] = isfinite(norm) && factor < 1 ? factor : W(1);
        int first = -1, last = -1, count = 0;
        for (int b = 0; !isfinite(norm) && b < gridDim.x; b++)
            if (!isfinite(partial[b]) && owner[b] != last) {
                last = owner[b];
                if (!count++) first = last;
            }
        result[2] = first;
        result[3] = count;
        *arrived = 0;
    }
}

template <typename T>
__global__ void clip(Pointers near, T** far, const integer* sizes, const int* owner, const integer* begin,
                     const typename Wide<T>::type* result) {
    typedef typename Wide<T>::type W;
    const W factor = result[1];
    if (factor == 1) return;
    PIECE
    for (integer i = from; i < to; i += blockDim.x) g[i] = T((W)g[i] * factor);
}

template <typename T>
__global__ void bound(Pointers near, T** far, const integer* sizes, const int* owner, const integer* begin,
                      double limit) {
    typedef typename Wide<T>::type W;
    const W most = limit;
    PIECE
    for (integer i = from; i < to; i += blockDim.x) {
        const W g_i = g[i];
        g[i] = T(g_i > most ? most : g_i < -most ? -most : g_i);  // what is not a number stays that
    }
}
""".replace("CHUNK", str(CHUNK)),
)

Arrays = tuple[Array, ...]


def _launch(xp: Any, name: str, like: Arrays, before: tuple, after: tuple) -> None:
    sizes, owner, begin, blocks = keep(pieces(like[0].device.id, tuple([a.size for a in like])))
    if blocks:
        SOURCE(name, like[0].dtype, blocks, THREADS, (*before, sizes, owner, begin, *after))


def adam(xp: Any, xs: Arrays, gs: Arrays, states: list[dict], group: dict[str, Any], decoupled: bool) -> None:
    """Do what `optim.Adam` says to arrays that have had the same number of steps, in one launch."""

    def numbers() -> tuple[float, ...]:
        (beta1, beta2), t, decay = group["betas"], states[0]["step"], group["weight_decay"]
        root = math.sqrt(1 - beta2**t)
        shrink, l2 = (1 - group["lr"] * decay, 0.0) if decoupled else (1.0, decay)
        return beta1, beta2, group["lr"] * root / (1 - beta1**t), group["eps"] * root, shrink, l2

    moments = [tuple([s[name] for s in states]) for name in ("exp_avg", "exp_avg_sq")]
    lists = [addresses(xp, xs), *pointers(xp, gs), *[addresses(xp, arrays) for arrays in moments]]
    _launch(xp, "adam", xs, tuple(lists), (changing("f8", 6, numbers),))


def sgd(xp: Any, xs: Arrays, gs: Arrays, states: list[dict], group: dict[str, Any]) -> None:
    """Do what `optim.SGD` says to arrays that have had the same number of steps, in one launch."""

    def numbers() -> tuple[float, ...]:
        names = ("lr", "momentum", "dampening", "weight_decay", "nesterov")
        return *[float(group[name]) for name in names], float(states[0]["step"] == 1)

    buffers = addresses(xp, tuple([s["momentum_buffer"] for s in states])) if group["momentum"] else np.uintp(0)
    _launch(xp, "sgd", xs, (addresses(xp, xs), *pointers(xp, gs), buffers), (changing("f8", 6, numbers),))


def lion(xp: Any, xs: Arrays, gs: Arrays, states: list[dict], group: dict[str, Any]) -> None:
    """Do what `optim.Lion` says to arrays that have had the same number of steps, in one launch."""

    def numbers() -> tuple[float, ...]:
        return *group["betas"], group["lr"], 1 - group["lr"] * group["weight_decay"]

    moments = addresses(xp, tuple([s["exp_avg"] for s in states]))
    _launch(xp, "lion", xs, (addresses(xp, xs), *pointers(xp, gs), moments), (changing("f8", 4, numbers),))


def accumulate(xp: Any, sums: Arrays, gs: Arrays, weight: float, first: bool) -> None:
    """Add weight·g to each sum, or begin it with that, in one launch.

    The gradients stay as they are.
    """
    _launch(xp, "accumulate", gs, (addresses(xp, sums), *pointers(xp, gs)), (np.float64(weight), np.int32(first)))


def _square_norm(xp: Any, gs: Arrays, lists: tuple[Any, Any], limit: float) -> tuple[Array, Array]:
    """Return the sums of squares of all blocks, and what the kernel makes of them."""
    wide = np.dtype("f8" if gs[0].dtype.char == "d" else "f4")
    blocks = pieces(gs[0].device.id, tuple([g.size for g in gs]))[-1]
    partial, result = xp.empty(blocks, dtype=wide), xp.empty(4, dtype=wide)
    _launch(xp, "square_norm", gs, lists, (partial, arrived(gs[0].device.id), result, np.float64(limit)))
    return partial, result


def clip_norm(xp: Any, gs: Arrays, limit: float) -> Array:
    """Return ‖g‖ as it was, a scalar on the device, and bring the gradients down to `limit`, in two launches."""
    lists = pointers(xp, gs)
    _, result = _square_norm(xp, gs, lists, limit)
    if limit != math.inf:
        _launch(xp, "clip", gs, lists, (result,))
    return result[0]


def squares(xp: Any, gs: Arrays) -> np.ndarray:
    """Return Σg² of each array, on the host, which waits for it.    → (len(gs),)"""
    partial, _ = _square_norm(xp, gs, pointers(xp, gs), math.inf)
    owner = np.repeat(np.arange(len(gs)), [-(-g.size // CHUNK) for g in gs])
    return np.bincount(owner, weights=to_numpy(partial), minlength=len(gs))


def clip_value(xp: Any, gs: Arrays, limit: float) -> None:
    """Bring every element of all arrays into −limit … limit, in one launch."""
    _launch(xp, "bound", gs, pointers(xp, gs), (np.float64(limit),))


def multiply(xp: Any, gs: Arrays, factor: float) -> None:
    """Multiply all arrays by a number, in one launch."""
    result = xp.full(3, factor, dtype="f8" if gs[0].dtype.char == "d" else "f4")
    _launch(xp, "clip", gs, pointers(xp, gs), (result,))


def at_fault(norm: Array) -> tuple[int, int]:
    """Return the first of the arrays given to `clip_norm` whose norm is not finite, and how many there are.

    The host waits for the answer.
    """
    first, count = to_numpy(norm.base[2:])
    return int(first), int(count)
