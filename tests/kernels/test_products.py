"""Products cut up: the same numbers, by small products, and never more of them at a time than BLAS takes unpacked."""

import subprocess
import sys

import numpy as np
import pytest

from minitransformer.kernels import attention, blas, products

LIMIT = 4_096


@pytest.fixture(autouse=True)
def limit(monkeypatch):
    products._rows_at_once.cache_clear()
    products.most_parts.cache_clear()
    monkeypatch.setattr(products, "unpacked", lambda: LIMIT)
    monkeypatch.setattr(products, "blas_threads", lambda: 1)
    yield
    products._rows_at_once.cache_clear()
    products.most_parts.cache_clear()


@pytest.mark.parametrize("rows", [1, 16, 17, 64, 96, 100, 960, 1_009])
@pytest.mark.parametrize("each", [1, 15, 64, 200, 257, 5_000])
def test_rows_are_cut_evenly_and_small_enough(rows, each):
    many = products.rows_at_once(rows, each)
    if many:
        assert rows % many == 0 and many >= products.FEWEST and many * each <= LIMIT < rows * each
    else:
        fitting = [n for n in range(products.FEWEST, rows) if rows % n == 0 and n * each <= LIMIT]
        assert rows * each <= LIMIT or not fitting


def test_nothing_is_cut_where_blas_packs_everything(monkeypatch):
    monkeypatch.setattr(products, "unpacked", lambda: 0)
    assert products.rows_at_once(4_096, 64) == 0


def test_several_threads_of_blas_are_left_their_work(monkeypatch):
    assert products.rows_at_once(4_096, 64)
    monkeypatch.setattr(products, "blas_threads", lambda: 2)
    assert products.rows_at_once(4_096, 64) == 0


@pytest.fixture
def multiplied(monkeypatch):
    """The sizes (N, K, M) of the products that are made."""
    sizes, matmul = [], np.matmul

    def spy(a, b, out=None):
        sizes.append((a.shape[-2] if a.ndim > 1 else 1, a.shape[-1], b.shape[-1]))
        return matmul(a, b, out=out)

    monkeypatch.setattr(np, "matmul", spy)
    return sizes


@pytest.mark.parametrize("stack", [(), (2,), (2, 3)])
@pytest.mark.parametrize("n", [48, 53])
def test_rows_by_a_matrix(stack, n, rng, multiplied):
    a, out = rng.standard_normal((*stack, n, 16)), np.empty((*stack, n, 10))
    product = products.by_rows(np, a, out)
    for _ in range(2):
        b = rng.standard_normal((*stack, 16, 10))
        product(b)
        np.testing.assert_allclose(out, a @ b, rtol=0, atol=1e-12)
    assert {size[0] for size in multiplied} == ({24} if n == 48 else {53})


@pytest.mark.parametrize("stack", [(), (2,)])
@pytest.mark.parametrize("n", [48, 53])
def test_a_transpose_by_a_matrix(stack, n, rng, multiplied):
    a, b, out = rng.standard_normal((*stack, n, 16)), rng.standard_normal((*stack, n, 10)), np.empty((*stack, 16, 10))
    room = np.empty(8 * out.size)
    assert products.most_parts(48, 16, 10) == 2 and products.most_parts(51, 16, 10) == 3  # 51 are 3 times 17
    assert products.of_transposed(np, a, b, out, room)() is out or n == 53
    np.testing.assert_allclose(out, a.swapaxes(-1, -2) @ b, rtol=0, atol=1e-12)
    assert multiplied[0] == (16, 24 if n == 48 else 53, 10)


@pytest.mark.parametrize("columns", [64, 61])
def test_a_transpose_a_few_columns_at_a_time(columns, rng, multiplied):
    a, b = rng.standard_normal((12, columns)), rng.standard_normal((12, 10))
    np.testing.assert_allclose(products.by_columns(np, a, b), a.T @ b, rtol=0, atol=1e-12)
    assert multiplied[0] == (32 if columns == 64 else 61, 12, 10)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("keys", [128, 192, 130])
def test_attention_over_tiles_of_keys(keys, causal, rng, monkeypatch, multiplied):
    monkeypatch.setattr(attention, "unpacked", lambda: 64**3)
    monkeypatch.setattr(attention, "blas_threads", lambda: 1)
    mixed = [rng.standard_normal((2, n, 3, 8)).swapaxes(1, 2) for n in (100, keys, keys)]
    g = rng.standard_normal((2, 3, 100, 8))
    y, vjp = attention.attention(np, *mixed, None, None, None, scale=0.3, causal=causal)
    made = [y, *vjp(g)[:3]]
    tiles = {size[2] for size in multiplied if size[1] == 8}
    assert (64 in tiles) == (keys % 64 == 0)
    y, vjp = attention.book(attention._attention)(np, *mixed, None, None, None, scale=0.3, causal=causal)
    for ours, book in zip(made, [y, *vjp(g)[:3]], strict=True):
        np.testing.assert_allclose(ours, book, rtol=0, atol=1e-12)


def test_what_blas_takes_unpacked_is_known_by_its_name_for_the_processor():
    code = "from minitransformer.kernels.blas import unpacked; print(unpacked())"
    found = {}
    for core in ("Haswell", "SkylakeX"):
        env = {"OPENBLAS_CORETYPE": core, "PATH": ""}
        run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
        found[core] = run.stdout.strip() if run.returncode == 0 else None
    assert blas.unpacked() in (0, 100**3)
    if blas.unpacked():  # OpenBLAS, and a processor that knows both
        assert found == {"Haswell": "0", "SkylakeX": str(100**3)}
