"""Norm modules: the ops with their parameters."""

import numpy as np
import pytest

from minitransformer import nn


@pytest.mark.parametrize("name", ["LayerNorm", "RMSNorm"])
def test_norms_agree_with_torch(name, torch, rng):
    ours = getattr(nn, name)(7, eps=1e-5)
    theirs = getattr(torch.nn, name)(7, eps=1e-5)
    x = (2 + rng.standard_normal((3, 4, 7))).astype("float32")
    with torch.no_grad():
        for p in theirs.parameters():
            p += torch.randn_like(p)
    ours.load_state_dict({n: p.detach().numpy() for n, p in theirs.named_parameters()})
    np.testing.assert_allclose(ours(x).numpy(), theirs(torch.tensor(x)).detach().numpy(), atol=1e-5)


@pytest.mark.parametrize("name", ["LayerNorm", "RMSNorm"])
def test_another_width_is_refused(name):
    with pytest.raises(ValueError, match=r"rows of 7; got \(2, 6\)"):
        getattr(nn, name)(7)(np.ones((2, 6), "float32"))
