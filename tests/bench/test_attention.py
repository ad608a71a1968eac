"""The catalogue on models that take no time: every variant trains, every figure is there, the picture is drawn."""

import numpy as np
import pytest

from minitransformer import cli
from minitransformer.bench import attention, long
from minitransformer.bench.run import Peer


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(attention, "LENGTH", 12)
    monkeypatch.setattr(attention, "BATCH", 2)
    monkeypatch.setattr(attention, "HELD_OUT", 2)
    monkeypatch.setattr(attention, "TURN", 1)
    monkeypatch.setattr(attention, "READ", (6, 12, 24))
    monkeypatch.setattr(
        attention, "SIZES", {**attention.SIZES, "d_model": 16, "layers": 2, "d_ff": 32, "max_length": 24}
    )
    monkeypatch.setitem(
        attention.VARIANTS, "SwiGLU, ⅔ of the width", ("stability", {"activation": "swiglu", "d_ff": 21})
    )
    monkeypatch.setattr(attention, "LENGTHS", (32, 64))


def test_every_variant_is_measured(tiny):
    rows = {row["name"]: row for row in attention.catalogue(2, lambda text: None)}
    assert set(rows) == set(attention.VARIANTS)
    plain = next(iter(rows.values()))
    assert plain["ratio"] == 1.0
    assert all(
        r["products"] > 0 and r["peak"] > 0 and np.isfinite(r["loss"]) and r["seconds"] > 0 for r in rows.values()
    )
    fewer = ("multi-query", "one projection for q and k", "one projection for all heads", "one layer, four times")
    assert all(rows[name]["parameters"] < plain["parameters"] for name in fewer)
    assert rows["embedding not tied"]["parameters"] > plain["parameters"]
    assert rows["layers recomputed"]["products"] > 1.2 * plain["products"]
    assert rows["layers recomputed"]["peak"] < plain["peak"]
    for name in ("blockwise", "layers recomputed", "loss in chunks of 128"):  # the same model, computed otherwise
        assert rows[name]["loss"] == pytest.approx(plain["loss"], abs=1e-4)


def test_products_are_counted_as_they_are_called():
    a, b = np.ones((3, 5, 7)), np.ones((7, 2))
    with attention.counted_products() as count:
        np.matmul(a, b)
    np.matmul(a, b)
    assert count[0] == 2 * 3 * 5 * 7 * 2


def test_texts_are_lines_of_numbers_and_the_held_out_ones_are_others():
    texts = attention.Texts()
    text = texts.tokenizer.decode(texts.batch(1, 1, 60)[0].tolist())
    number = int(text.split()[0])
    assert text.startswith(f"{number} {attention.data.english(number)} {attention.data.german(number)}\n")
    assert not set(texts.known) & set(texts.unseen)
    np.testing.assert_array_equal(texts.batch(5, 3, 20), texts.batch(5, 3, 20))


def test_learned_positions_end_where_training_did(tiny):
    curves = attention.extrapolation(1, lambda text: None)
    assert set(curves) == {*attention.EXTRAPOLATED, "rotary, scaled"}
    assert curves["learned"]["losses"][2] is None
    assert all(np.isfinite(loss) for name, c in curves.items() if name != "learned" for loss in c["losses"])
    assert curves["rotary"]["losses"][:2] == curves["rotary, scaled"]["losses"][:2]
    assert curves["rotary"]["losses"][2] != curves["rotary, scaled"]["losses"][2]


def test_the_command_prints_the_table_and_draws_it(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(long, "TORCH", {})
    assert cli.main(["bench", "attention", "--quick", "--out", "a"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("of what it takes without the mask") == 2  # dense and blockwise
    for text in ("sharing:", "long sequences:", "multi-query", "T = 32: blockwise, causal", "rotary, scaled"):
        assert text in printed
    for name in ("result.json", "figures/attention.png", "figures/attention.svg", "figures/attention.json"):
        assert (tmp_path / "a" / name).stat().st_size > 100
    assert cli.main(["bench", "attention", "--peers", "ours"]) == 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["blockwise", "blockwise-causal", "window-causal", "linear-causal"])
def test_sixteen_thousand_tokens_fit_into_700_mb_resident(kind):
    """Forward and backward, 1 × 4 heads × 64; the scores alone would take 4.3 GB."""
    peer = Peer(kind, "16384", module="minitransformer.bench.long")
    try:
        assert peer.run(1)["memory"] < 700e6
    finally:
        peer.close()
