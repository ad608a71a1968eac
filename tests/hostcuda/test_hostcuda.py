"""The mock itself: it counts what happens, and finds the mistakes it is there for."""

import numpy as np
import pytest

from tests import hostcuda

pytestmark = pytest.mark.skipif("not config.where.startswith('cupy on the host')", reason="for the host mock alone")

REVERSED = r"""
extern "C" __global__ void reversed(const float* x, float* y, int n) {
    __shared__ float row[256];
    row[threadIdx.x] = x[threadIdx.x];
    BARRIER
    y[threadIdx.x] = row[n - 1 - threadIdx.x];
}
"""


@pytest.fixture
def cupy():
    import cupy

    return cupy


@pytest.mark.parametrize("order", hostcuda.THREAD_ORDERS)
@pytest.mark.parametrize("barrier", [True, False])
def test_a_missing_barrier_shows(order, barrier, cupy):
    code = REVERSED.replace("BARRIER", "__syncthreads();" if barrier else "")
    numbers = np.random.default_rng([hostcuda.THREAD_ORDERS.index(order), barrier]).random(64)
    x, y = cupy.asarray(numbers, dtype="f4"), cupy.zeros(64, dtype="f4")  # others than an earlier block has left
    hostcuda.set_thread_order(order)
    try:
        cupy.RawKernel(code, "reversed")((1,), (64,), (x, y, np.int32(64)))
    finally:
        hostcuda.set_thread_order(hostcuda.THREAD_ORDERS[0])
    right = (y.get() == x.get()[::-1]).all()
    assert right == barrier


def test_a_template_is_found_by_its_expression(cupy):
    code = "template <typename T> __global__ void twice(T* x) { x[threadIdx.x] *= 2; }"
    module = cupy.RawModule(code=code, options=("-std=c++17",), name_expressions=["twice<float>", "twice<long long>"])
    for expression, dtype in (("twice<float>", "f4"), ("twice<long long>", "i8")):
        x = cupy.arange(5, dtype=dtype)
        module.get_function(expression)((1,), (5,), (x,))
        np.testing.assert_array_equal(x.get(), 2 * np.arange(5))


def test_nvrtc_refuses_what_is_no_cuda(cupy):
    with pytest.raises(cupy.cuda.compiler.CompileException):
        hostcuda.nvrtc('extern "C" __global__ void f(float* x) { x[0] = INFINITI; }', "80")


def test_what_happens_is_counted(cupy):
    x = cupy.ones((3, 4), dtype="f4")
    (x @ x.T + 1).get()
    hostcuda.reset()
    y = cupy.asarray(np.ones((3, 4), "f4")) @ x.T  # a copy in, a product
    y += 1  # a launch
    float(y[0, 0])  # a copy out, and waiting
    c = hostcuda.counts()
    assert (c["to_device"], c["product"], c["launch"], c["to_host"]) == (1, 1, 1, 1) and c["sync"] >= 1
    assert sum(hostcuda.kernels().values()) == 1


@pytest.mark.parametrize("dtype, tolerance", [("f2", 2e-3), ("f4", 1e-6), ("f8", 1e-14)])
def test_products_in_every_type_and_layout(dtype, tolerance, cupy):
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 3, 5)), rng.standard_normal((2, 5, 7))
    for turn in (lambda m: m, lambda m: m.swapaxes(-1, -2).copy().swapaxes(-1, -2)):
        got = cupy.matmul(cupy.asarray(turn(a), dtype=dtype), cupy.asarray(turn(b), dtype=dtype))
        np.testing.assert_allclose(got.get(), a @ b, rtol=0, atol=tolerance * 10)
    whole = cupy.arange(6).reshape(2, 3)
    np.testing.assert_array_equal((whole @ whole.T).get(), whole.get() @ whole.get().T)


def test_fresh_memory_is_not_a_number(cupy):
    with cupy.cuda.using_allocator(cupy.cuda.MemoryPool().malloc):  # what others have used is not fresh
        assert np.isnan(cupy.empty(1 << 16, dtype="f4").get()).all()


def test_a_graph_does_its_work_at_each_launch(cupy):
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        x = cupy.ones(5, dtype="f4")
        cupy.multiply(x, 2, out=x)
        stream.begin_capture()
        cupy.multiply(x, 3, out=x)
        graph = stream.end_capture()
        assert x.get().tolist() == [2] * 5
        graph.launch(stream)
        graph.launch(stream)
        assert x.get().tolist() == [18] * 5
