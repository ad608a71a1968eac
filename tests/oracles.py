"""PyTorch's weights under our names, for tests that compare whole layers and models."""

import numpy as np


def attention_state(theirs, prefix):
    """Return the state dict of our attention with the weights of PyTorch's, whose q, k and v are one matrix."""
    weights = np.split(theirs.in_proj_weight.detach().numpy(), 3)
    biases = np.split(theirs.in_proj_bias.detach().numpy(), 3)
    state = {}
    for i, name in enumerate(("q_proj", "k_proj", "v_proj")):
        state[f"{prefix}.{name}.weight"] = weights[i]
        state[f"{prefix}.{name}.bias"] = biases[i]
    state[f"{prefix}.out_proj.weight"] = theirs.out_proj.weight.detach().numpy()
    state[f"{prefix}.out_proj.bias"] = theirs.out_proj.bias.detach().numpy()
    return state


def layer_state(theirs):
    """Return the state dict of our layer with the weights of PyTorch's."""
    state = attention_state(theirs.self_attn, "self_attention")
    if hasattr(theirs, "multihead_attn"):
        state |= attention_state(theirs.multihead_attn, "cross_attention")
    pairs = [("feed_forward.up", theirs.linear1), ("feed_forward.down", theirs.linear2)]
    pairs += [(f"norm{i}", getattr(theirs, f"norm{i}")) for i in (1, 2, 3) if hasattr(theirs, f"norm{i}")]
    for name, module in pairs:
        state[f"{name}.weight"], state[f"{name}.bias"] = module.weight.detach().numpy(), module.bias.detach().numpy()
    return state


def shaken(module, torch):
    """Move every parameter of a PyTorch module to a generic place."""
    with torch.no_grad():
        for p in module.parameters():
            p += 0.2 * torch.randn_like(p)
    return module
