"""Pictures within a budget, and settings in a line."""

import numpy as np

from minitransformer.views.record import Pictures, settings_text, size_of


def test_one_content_is_kept_once():
    kept = Pictures(10**6)
    a = np.arange(6.0).reshape(2, 3)
    assert kept.add(a) == kept.add(a.copy()) == kept.add(a.T.copy().T) == 0
    assert kept.add(a.reshape(3, 2)) == 1 and kept.add(a.astype("float32")) == 2 and kept.add(a + 1) == 3


def test_all_pictures_shrink_together_when_they_outgrow_the_budget(rng):
    kept = Pictures(40_000)
    sides = []
    for _ in range(60):
        kept.add(rng.standard_normal((24, 24)))
        assert kept.bytes == sum(size_of(p.to_json()) for p in kept.kept)
        sides.append({p.panels[0].cells.shape[0] if p.panels else 0 for p in kept.kept})
    assert all(len(s) == 1 for s in sides) and kept.bytes <= 40_000
    assert [min(s) for s in sides][::10] == sorted([min(s) for s in sides][::10], reverse=True)
    assert min(sides[0]) == 24 and min(sides[-1]) < 24


def test_settings_are_written_as_a_program_would(rng):
    index = (slice(None), slice(1, 4), slice(None, None, 2), np.arange(3), None, Ellipsis, 5)
    assert settings_text({"index": index}) == "index=(:, 1:4, ::2, int64[3], None, …, 5)"
    assert (
        settings_text({"axis": (0,), "eps": 1e-05, "draw": object(), "flag": True}) == "axis=(0,), eps=1e-05, flag=True"
    )
    assert len(settings_text({"x": "y" * 100})) < 70
