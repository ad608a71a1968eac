"""Choosing a token: what is kept is what transformers keeps, what is drawn is what softmax says."""

import warnings

import numpy as np
import pytest

from minitransformer import generate

ROWS, DRAWS = 40, 40_000
SHARES = np.array([0.5, 0.3, 0.15, 0.05])


def frequencies(choose, shares=SHARES):
    """Return how often each is drawn, by several rows that draw many times."""
    scores = np.tile(np.log(shares), (ROWS, 1))
    drawn = np.concatenate([choose(scores) for _ in range(DRAWS // ROWS)])
    return np.bincount(drawn, minlength=len(shares)) / DRAWS


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({}, SHARES),
        ({"temperature": 0.5}, SHARES**2 / (SHARES**2).sum()),
        ({"top_k": 2}, [0.625, 0.375, 0, 0]),
        ({"top_p": 0.75}, [0.625, 0.375, 0, 0]),
        ({"top_p": 0.85}, np.array([0.5, 0.3, 0.15, 0]) / 0.95),
        ({"top_k": 3, "top_p": 0.84}, [0.625, 0.375, 0, 0]),  # of the three, two have 0.8/0.95
        ({"temperature": 0.5, "top_p": 0.7}, [0.25 / 0.34, 0.09 / 0.34, 0, 0]),  # the shares after the temperature
        ({"top_p": 0.01}, [1, 0, 0, 0]),
    ],
    ids=str,
)
def test_sampling_draws_what_softmax_says(settings, expected):
    """Within five standard errors: a right sampler fails here once in a million seeds, a wrong one always."""
    expected = np.asarray(expected)
    error = 5 * np.sqrt(expected * (1 - expected) / DRAWS)
    seen = frequencies(generate.sampler(**settings, seed=1))
    assert (np.abs(seen - expected) <= error).all(), seen
    assert (seen[expected == 0] == 0).all()


def test_a_seed_names_the_draws(rng):
    scores = rng.standard_normal((5, 50))
    first, second, other = (generate.sampler(seed=seed) for seed in (3, 3, 4))
    draws = [[choose(scores).tolist() for _ in range(4)] for choose in (first, second, other)]
    assert draws[0] == draws[1] != draws[2]
    assert draws[0][0] != draws[0][1], "a chooser goes on in its stream"


def test_a_row_draws_what_it_draws_alone_under_its_number(rng):
    """Whoever else is there, in whatever order, and whoever has left."""
    scores = rng.standard_normal((6, 4, 50))
    together = generate.sampler(seed=3)
    drawn = np.array([together(step) for step in scores])
    for row in range(4):
        alone = generate.sampler(seed=3, rows=[row])
        assert [int(alone(step[row : row + 1])[0]) for step in scores] == drawn[:, row].tolist()
    some = generate.sampler(seed=3)
    for step, wanted, rows in zip(scores, drawn, [[0, 1, 2, 3], [3, 1], [1, 3], [3, 1], [1], [1]], strict=True):
        np.testing.assert_array_equal(some(step[rows], rows), wanted[rows])
    numbered = generate.sampler(seed=3, rows=[2, 0])
    np.testing.assert_array_equal(numbered(scores[0, [2, 0]]), drawn[0, [2, 0]])


def test_rows_with_the_same_scores_draw_each_for_itself():
    drawn = generate.sampler(seed=1)(np.zeros((200, 50)))
    assert len(set(drawn.tolist())) > 40
    assert generate.sampler()(np.zeros((0, 50))).shape == (0,)


def processed(torch, processors, scores, ids=None):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ids = torch.zeros((len(scores), 1), dtype=torch.long) if ids is None else torch.tensor(ids)
        scores = torch.tensor(scores)
        for processor in processors:
            scores = processor(ids, scores)
    return scores.numpy()


@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.7])
@pytest.mark.parametrize("top_k", [0, 1, 7, 30, 99])
@pytest.mark.parametrize("top_p", [1e-3, 0.3, 0.9, 0.999, 1.0])
def test_the_kept_tokens_are_those_of_transformers(temperature, top_k, top_p, torch, transformers, rng):
    g = transformers.generation
    scores = 2 * rng.standard_normal((64, 30))
    processors = [g.TemperatureLogitsWarper(temperature)]
    processors += [g.TopKLogitsWarper(top_k)] if top_k else []
    processors += [g.TopPLogitsWarper(top_p)]
    theirs = processed(torch, processors, scores)
    ours = generate.likeliest(scores / temperature, top_k, top_p)
    np.testing.assert_array_equal(np.isfinite(ours), np.isfinite(theirs))
    np.testing.assert_allclose(ours[np.isfinite(ours)], theirs[np.isfinite(theirs)], rtol=1e-14)
    assert np.isfinite(ours).any(axis=-1).all() and np.isfinite(ours[np.arange(64), scores.argmax(axis=-1)]).all()


@pytest.mark.parametrize("penalty", [0.7, 1.0, 1.3])
def test_the_repetition_penalty_is_that_of_transformers(penalty, torch, transformers, rng):
    scores, ids = rng.standard_normal((6, 11)), rng.integers(0, 11, (6, 5))
    theirs = processed(torch, [transformers.generation.RepetitionPenaltyLogitsProcessor(penalty)], scores, ids)
    before = scores.copy()
    np.testing.assert_allclose(generate.penalise(scores, ids.tolist(), penalty), theirs, rtol=1e-14)
    np.testing.assert_array_equal(scores, before)


def test_a_repeated_token_becomes_less_likely_whatever_its_sign():
    ours = generate.penalise(np.array([[2.0, -2.0, 1.0, -1.0]]), [[0, 1, 1]], 2.0)
    np.testing.assert_array_equal(ours, [[1.0, -4.0, 1.0, -1.0]])


def test_ties_at_the_edge_of_top_k_stay():
    kept = np.isfinite(generate.likeliest(np.array([[3.0, 2.0, 2.0, 1.0]]), top_k=2))
    np.testing.assert_array_equal(kept, [[True, True, True, False]])


@pytest.mark.parametrize("scale", [1e4, 1e-4])
def test_large_and_small_scores_are_no_trouble(scale, rng):
    scores = (scale * rng.standard_normal((3, 40))).astype("float32")
    kept = np.isfinite(generate.likeliest(scores, 0, 0.5)).sum(axis=-1)
    assert (kept == 1).all() if scale > 1 else ((kept > 18) & (kept < 22)).all()
    assert ((generate.sampler(top_p=0.5, seed=2)(scores) == scores.argmax(axis=-1)) | (scale < 1)).all()


@pytest.mark.parametrize(
    "act, text",
    [
        (lambda: generate.sampler(0.0), "temperature > 0; got 0.0; write temperature=0.8"),
        (lambda: generate.sampler(float("inf")), "temperature > 0; got inf"),
        (lambda: generate.sampler(top_k=-1), "top_k >= 0 .* got -1 and 1.0; write top_k=40"),
        (lambda: generate.sampler(top_p=0.0), "0 < top_p <= 1; got 0 and 0.0"),
        (lambda: generate.sampler("a"), "temperature > 0; got 'a'"),
        (lambda: generate.sampler(top_k=1.5), "got 1.5 and 1.0"),
        (lambda: generate.sampler(top_p="a"), "got 0 and 'a'"),
        (lambda: generate.sampler(top_p=float("nan")), "got 0 and nan"),
        (
            lambda: generate.sampler(seed=-1),
            "a seed is a whole number from 0 up, or a tuple of such; got -1; write seed=0",
        ),
        (lambda: generate.sampler(seed=0.5), "got 0.5; write seed=0"),
        (lambda: generate.sampler(rows=[1, 1]), "rows are different integers >= 0.*got .1, 1.; write rows="),
        (lambda: generate.sampler(rows=[-1]), "rows are different integers"),
        (
            lambda: generate.sampler(rows=[7])(np.zeros((3, 5))),
            "a number for each row of the batch; got 1 for at least 3",
        ),
        (lambda: generate.likeliest(np.zeros((1, 3)), top_p=1.5), "0 < top_p <= 1; got 0 and 1.5"),
        (lambda: generate.penalise(np.zeros((1, 3)), [[0]], 0.0), "positive, 1 for none; got 0.0"),
        (lambda: generate.penalise(np.zeros((1, 3)), [[0]], float("nan")), "got nan"),
        (lambda: generate.penalise(np.zeros((1, 3)), [[0]], "a"), "got 'a'; write repetition_penalty=1.2"),
    ],
)
def test_misuse_is_named(act, text):
    with pytest.raises(ValueError, match=text):
        act()
