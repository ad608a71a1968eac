"""Gradients that vanish and explode in a small stack, and that each remedy is really the one it is called."""

import numpy as np
import pytest

import minitransformer as mt
from minitransformer import cli
from minitransformer.bench import stability

LAYERS = 10


@pytest.fixture(scope="module")
def panels():
    return stability.at_initialisation(LAYERS)


def test_every_curve_has_a_norm_for_each_layer(panels):
    for curves in panels.values():
        for name, norms in curves.items():
            assert len(norms) == LAYERS and np.isfinite(norms).all() and min(norms) > 0, name


def test_without_residuals_and_norms_gradients_vanish_or_explode(panels):
    bare = panels["no residuals, no norms"]
    assert bare["weights × 0.5"][0] < 1e-9 * bare["weights × 0.5"][-1]
    assert bare["weights × 1"][0] < 0.05 * bare["weights × 1"][-1]
    assert bare["weights × 1.4"][0] > 1e3 * bare["weights × 1"][0]
    steps = np.diff(np.log(bare["weights × 0.5"]))
    assert (steps > 1).all()  # layer by layer, by more than the factor e


def test_each_remedy_keeps_gradients_alike(panels):
    remedies = panels["one remedy each"]
    spread = {name: max(norms) / min(norms) for name, norms in remedies.items()}
    assert remedies["residuals"][0] > 1e3 * remedies["none"][0]  # they do not vanish; the sum grows without a bound
    assert max(remedies["residuals"]) > 20 * max(remedies["residuals and pre-norm"])
    for name in ("residuals, outputs × 1/√(2·layers)", "residuals and post-norm", "residuals and pre-norm"):
        assert spread[name] < 10 and 0.1 < remedies[name][0] < 10, name
    for name, norms in panels["initial scale, with residuals and norms"].items():
        assert max(norms) / min(norms) < 30, name


def test_activations_and_logits(panels):
    activations, logits = panels["activations"], panels["large logits, pre-norm"]
    assert activations["gelu, bare"][0] < 0.1 * activations["relu, bare"][0]  # its slope is about ½ near 0
    assert activations["relu, bare"][0] < 0.1 * activations["relu, bare, He's scale"][0]
    assert max(activations["gelu, pre-norm"]) < 10 * min(activations["gelu, pre-norm"])
    assert logits["logits × 64"][0] > 30 * logits["weights as drawn"][0]
    assert max(activations["swiglu, pre-norm"]) < 10 * min(activations["swiglu, pre-norm"])
    assert logits["logits × 64, QK-norm"][0] < 3 * logits["weights as drawn"][0]


def test_the_norms_are_those_of_the_whole_gradient_of_each_layer():
    """Against a sum over all parameters, and a difference of the loss along the gradient of one layer."""
    made = []

    def make():
        made.append(stability.whole("pre"))
        return made[-1]

    norms = stability.layer_norms(make, 3)
    assert norms == pytest.approx(
        [np.sqrt(sum((p.grad.numpy() ** 2).sum() for p in layer.parameters())) for layer in made], rel=1e-12
    )


def test_a_bare_layer_is_its_sublayers_and_nothing_else(rng):
    x = mt.tensor(rng.standard_normal((2, 5, stability.WIDTH)).astype("float32"))
    bare = stability.Bare()
    mixed = bare.self_attention(x, causal=True)
    np.testing.assert_allclose(bare(x, causal=True).numpy(), bare.feed_forward(mixed).numpy(), rtol=1e-6)
    summed = stability.Bare(residuals=True)
    middle = x + summed.self_attention(x, causal=True)
    np.testing.assert_allclose(
        summed(x, causal=True).numpy(), (middle + summed.feed_forward(middle)).numpy(), rtol=1e-5
    )
    flat = stability.Bare(attends=False)
    np.testing.assert_allclose(flat(x, causal=True).numpy(), flat.feed_forward(x).numpy(), rtol=1e-6)


def test_each_training_run_has_its_remedy_and_nothing_else():
    """The first loss knows of none of them (but of the model and the batches); the norm is that before clipping."""
    runs = {name: stability.training_run(s, 3, 0) for name, s in stability.TRAININGS[stability.FIRST].items()}
    first = runs["none"]
    for name in ("warm-up", "clipping by norm", "clipping by value"):
        assert runs[name].losses[0] == first.losses[0] and runs[name].norms[0] == first.norms[0] > 1, name
        assert abs(runs[name].losses[1] - first.losses[1]) > 0.01, name
    assert runs["4 batches a step"].losses[0] != first.losses[0] != runs["pre-norm"].losses[0]
    assert all(len(run.losses) == len(run.norms) == 3 and len(run.layers) == 8 for run in runs.values())


@pytest.mark.parametrize("panel", [stability.REGULARISED, stability.SCHEDULED])
def test_whatever_is_added_changes_the_run(panel):
    runs = [
        tuple(stability.training_run({**s, "warmup_steps": 2, "lr_decay_every": 4}, 12, 0).losses)
        for s in stability.TRAININGS[panel].values()
    ]
    assert len(set(runs)) == len(runs) and np.isfinite(runs).all()


def test_wrong_targets_leap_and_the_guard_leaves_them_out():
    settings = {**stability.CALM, "warmup_steps": 10, "spike": 6.0}
    plain, hurt = (stability.training_run({**settings, "spike": 0.0}, 130, 0, bad) for bad in (0, 120))
    assert hurt.losses[:119] == plain.losses[:119] and hurt.losses[119] > plain.losses[119] + 2
    assert hurt.losses[120] != plain.losses[120]
    guarded = stability.training_run(settings, 130, 0, 120)
    assert guarded.losses[:119] == plain.losses[:119] and guarded.losses[119] == hurt.losses[119]
    assert guarded.losses[120] < hurt.losses[120] - 0.1


@pytest.fixture
def tiny(monkeypatch):
    some = {panel: dict(list(runs.items())[:2]) for panel, runs in stability.TRAININGS.items()}
    monkeypatch.setattr(stability, "TRAININGS", some)


def test_the_command_prints_a_table_and_draws(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["bench", "stability", "--quick", "--out", "s"]) == 0
    out = capsys.readouterr().out
    for text in ("8 layers of width 32", "residuals and pre-norm", "largest norm", "warm-up", "run: s (result.json"):
        assert text in out
    figures = [f"figures/stability{kind}.{form}" for kind in ("", "-training") for form in ("png", "svg", "json")]
    for name in ("result.json", *figures):
        assert (tmp_path / "s" / name).stat().st_size > 100


def test_other_options_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["bench", "stability", "--peers", "ours"]) == 2
    assert "bench stability has models of its own" in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_every_remedy_beats_none_over_three_seeds():
    """But more batches a step: less noise is no remedy for a step that is too long."""
    result = stability.in_training(300, 3, lambda text: None)
    final, regularised = (
        {name: np.mean(run["final_loss"]) for name, run in result[panel].items()}
        for panel in (stability.FIRST, stability.REGULARISED)
    )
    after = {name: run["next_loss"] for name, run in result[stability.SPOILED].items()}
    for name in ("warm-up", "clipping by norm", "clipping by value", "pre-norm", "warm-up, clipping, pre-norm"):
        assert final[name] < final["none"] - 0.2, final
    assert after["spike guard"] < after["no wrong targets"] + 0.1, after
    assert after["nothing done"] > after["no wrong targets"] + 0.15, after
    assert regularised["AdamW, decoupled decay 0.1"] < regularised["Adam, L2 penalty 0.1"] - 0.5, regularised
