"""PyTorch's and transformers' weights under our names, for tests that compare whole layers and models."""

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


def gpt2_state(theirs):
    """Return the state dict of our GPT2 with the weights of transformers' GPT2LMHeadModel."""
    state = _gpt_layers(theirs, embeddings=("wte", "wpe"))
    for kind in ("weight", "bias"):
        state[f"decoder.norm.{kind}"] = getattr(theirs.transformer.ln_f, kind).detach().numpy()
    return state


def gpt_state(theirs):
    """Return the state dict of our GPT2 in post-norm with the weights of transformers' OpenAIGPTLMHeadModel."""
    return _gpt_layers(theirs, embeddings=("tokens_embed", "positions_embed"))


def _gpt_layers(theirs, embeddings):
    w = {name: p.detach().numpy() for name, p in theirs.named_parameters()}
    tokens, places = (w[f"transformer.{name}.weight"] for name in embeddings)
    state = {"embedding.weight": tokens, "positions.weight": places}
    for i in range(theirs.config.n_layer):
        ours, his = f"decoder.layers.{i}", f"transformer.h.{i}"
        for kind in ("weight", "bias"):
            joint = np.split(w[f"{his}.attn.c_attn.{kind}"], 3, axis=-1)  # theirs is (in, out)
            for name, part in zip("qkv", joint, strict=True):
                state[f"{ours}.self_attention.{name}_proj.{kind}"] = part.T
            state[f"{ours}.self_attention.out_proj.{kind}"] = w[f"{his}.attn.c_proj.{kind}"].T
            state[f"{ours}.feed_forward.up.{kind}"] = w[f"{his}.mlp.c_fc.{kind}"].T
            state[f"{ours}.feed_forward.down.{kind}"] = w[f"{his}.mlp.c_proj.{kind}"].T
            for a, b in (("norm1", "ln_1"), ("norm2", "ln_2")):
                state[f"{ours}.{a}.{kind}"] = w[f"{his}.{b}.{kind}"]
    return state


def shaken(module, torch):
    """Move every parameter of a PyTorch module to a generic place."""
    with torch.no_grad():
        for p in module.parameters():
            p += 0.2 * torch.randn_like(p)
    return module
