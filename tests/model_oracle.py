"""The model written down once more: straight lines, float64, one token at a time, no shared code.

Every function reads the parameters of a `LanguageModel` by name and computes with them alone. Legend: T time, D model
width, I inner width, H heads, P head width, G groups, N state, W taps.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from jepamba.config import Model

Weights = dict[str, Tensor]
VARIANTS: list[dict[str, Any]] = [
    {},
    {"tie": 0},
    {"tie": 2},
    {"tie": 3},
    {"tie": 3, "embed_dim": 16},
    {"tie": 1, "embed_dim": 16},
    {"mlp": "swiglu", "mlp_every": 1},
    {"mlp_every": 3, "n_layer": 5},
    {"n_layer": 5, "self_skip": True},
    {"n_layer": 1},
    {"n_layer": 2, "unet": False},
    {"n_layer": 6, "self_skip": True, "expand": 2, "ngroups": 2, "headdim": 8, "d_conv": 3},
    {"ngroups": 4, "d_state": 3, "d_conv": 1},
    {"softcap": "tanh", "cap": 0.7},
    {"softcap": "off"},
    {"cap": 0.5},
    {"attention_every": 2, "attention_window": 5},
    {"attention_every": 1, "attention_window": 64, "headdim": 8, "expand": 2},
    {"attention_every": 1, "attention_window": 1},
    {"attention_every": 3, "n_layer": 5, "attention_window": 21},
]
"""Changes of a small model that reach every part of the network."""


def weights_of(module: torch.nn.Module) -> Weights:
    return {name.removesuffix(".master"): value.detach().double() for name, value in module.named_parameters()}


def under(weights: Weights, prefix: str) -> Weights:
    return {name[len(prefix) :]: value for name, value in weights.items() if name.startswith(prefix)}


def rms(x: Tensor, eps: float = 1e-6) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.special.erf(x / math.sqrt(2)))


def mamba2(u_TD: Tensor, w: Weights, config: Model, reset_T: list[bool]) -> Tensor:
    """One sequence through a mixer: in_proj → [z, x, B, C, dt], convolution, recurrence, gated norm, out_proj."""
    inner, N, G, P, W = config.expand * config.d_model, config.d_state, config.ngroups, config.headdim, config.d_conv
    H = inner // P
    channels = inner + 2 * G * N
    A = -torch.exp(w["A_log"])
    seen: list[Tensor] = []  # the convolution's inputs of this document
    state = torch.zeros(H, P, N, dtype=torch.float64)
    outputs = []
    for t in range(len(u_TD)):
        if reset_T[t]:
            seen, state = [], torch.zeros_like(state)
        projected = w["in_proj.weight"] @ u_TD[t]
        z, raw, dt_raw = projected[:inner], projected[inner : inner + channels], projected[inner + channels :]
        assert len(dt_raw) == H
        seen.append(raw)
        convolved = w["conv_bias"].clone()
        for k in range(min(W, len(seen))):
            convolved = convolved + w["conv_weight"][:, W - 1 - k] * seen[-1 - k]
        active = silu(convolved)
        x = active[:inner].reshape(H, P)
        B, C = active[inner : inner + G * N].reshape(G, N), active[inner + G * N :].reshape(G, N)
        y = torch.zeros(H, P, dtype=torch.float64)
        for h in range(H):
            dt = torch.log1p(torch.exp(dt_raw[h] + w["dt_bias"][h]))
            group = h // (H // G)
            state[h] = torch.exp(dt * A[h]) * state[h] + dt * torch.outer(x[h], B[group])
            y[h] = state[h] @ C[group] + w["D"][h] * x[h]
        gated = y.reshape(-1) * silu(z)
        outputs.append(w["out_proj.weight"] @ (w["norm_weight"] * rms(gated, 1e-5)))
    return torch.stack(outputs)


def attention(u_TD: Tensor, w: Weights, config: Model, reset_T: list[bool]) -> Tensor:
    """One sequence through sliding-window attention, one query and one head at a time."""
    inner, P = config.expand * config.d_model, config.headdim
    rates = [10_000.0 ** (-2 * i / P) for i in range(P // 2)]

    def at(vector: Tensor, position: int) -> Tensor:
        turned = vector.clone()
        for i, rate in enumerate(rates):
            a, b = vector[i], vector[i + P // 2]
            turned[i] = a * math.cos(position * rate) - b * math.sin(position * rate)
            turned[i + P // 2] = b * math.cos(position * rate) + a * math.sin(position * rate)
        return turned

    projected = u_TD @ w["in_proj.weight"].T
    outputs, start = [], 0
    for t in range(len(u_TD)):
        if reset_T[t]:
            start = t
        heads = []
        for h in range(inner // P):
            own = slice(h * P, (h + 1) * P)
            query = at(rms(projected[t, :inner][own]), t)
            seen = range(max(start, t - config.attention_window + 1), t + 1)
            scores = torch.stack([query @ at(rms(projected[s, inner : 2 * inner][own]), s) / P**0.5 for s in seen])
            values = torch.stack([projected[s, 2 * inner :][own] for s in seen])
            heads.append(torch.exp(scores) / torch.exp(scores).sum() @ values)
        outputs.append(w["out_proj.weight"] @ torch.cat(heads))
    return torch.stack(outputs)


def mlp(x: Tensor, w: Weights, config: Model) -> Tensor:
    if config.mlp == "relu2":
        hidden = torch.maximum(x @ w["up.weight"].T, torch.zeros(1, dtype=torch.float64)) ** 2
    else:
        hidden = silu(x @ w["gate.weight"].T) * (x @ w["up.weight"].T)
    return rms(hidden) @ w["down.weight"].T


def block(x: Tensor, x0: Tensor, w: Weights, config: Model, index: int, reset_T: list[bool]) -> Tensor:
    x = w["mix"][0] * x + w["mix"][1] * x0
    every = config.attention_every
    mixer = attention if every and index % every == every // 2 else mamba2
    x = x + w["ssm_scale"] * mixer(rms(x), under(w, "mixer."), config, reset_T)
    if index % config.mlp_every == 0:
        x = x + w["mlp_scale"] * mlp(rms(x), under(w, "mlp."), config)
    return x


def latents(tokens_T: Tensor, w: Weights, config: Model, reset_T: list[bool], layer: int = 0) -> Tensor:
    """h of one sequence: the U-Net as a stack, as the spec tells it; after `layer` blocks, or after all (0)."""
    x = w["token_embed"][tokens_T]
    if config.embed_dim != config.d_model:
        x = x @ w["embed_proj.weight"].T
    x0 = x = rms(x)
    stack: list[Tensor] = []
    used = 0
    for i in range(layer or config.n_layer):
        half = config.n_layer // 2
        if i >= half and config.unet and stack:
            partner = stack.pop()
            # The first pop is the last encoder block's own output: added only with `self_skip`.
            if i > half or config.self_skip:
                x = x + w["skips.skip_weight"][used] * partner
                used += 1
        x = block(x, x0, under(w, f"blocks.{i}."), config, i, reset_T)
        if i < half:
            stack.append(x)
    assert layer or not config.unet or not stack
    return rms(x)


def logits(h: Tensor, w: Weights, config: Model) -> Tensor:
    """Capped logits of the latents `h` (… D)."""
    features = h
    if "head.embed_proj_rev.weight" in w:
        features = features @ w["head.embed_proj_rev.weight"].T
    if config.tie == 3:
        features = gelu(features)
    matrix = w["head.separate.weight"] if config.tie == 0 else w["token_embed"]
    if config.tie == 2:
        matrix = matrix + w["head.correction"]
    raw = features @ matrix.T + w["head.vocab_bias"]
    if config.softcap == "off":
        return raw
    if config.softcap == "tanh":
        return config.cap * torch.tanh(raw / config.cap)
    u = (raw / config.cap).clamp(-2, 2)
    return config.cap * (u * (1 - u**2 / 3 + u**4 / 15)).clamp(-1, 1)
