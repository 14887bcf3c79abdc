"""Components of the model, for tables of counts and bytes."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

COMPONENTS = {
    "token_embed": "embedding",
    "embed_proj": "embedding projection",
    "embed_proj_rev": "head projection",
    "separate": "head matrix",
    "correction": "tie correction",
    "vocab_bias": "vocabulary bias",
    "in_proj": "mixer input",
    "out_proj": "mixer output",
    "conv_weight": "convolution",
    "conv_bias": "convolution",
    "dt_bias": "state-space scalars",
    "A_log": "state-space scalars",
    "D": "state-space scalars",
    "norm_weight": "gated norm",
    "mlp": "MLP",
    "mix": "residual mixes and scales",
    "ssm_scale": "residual mixes and scales",
    "mlp_scale": "residual mixes and scales",
    "skip_weight": "U-Net skips",
    "projector": "projector",
    "predictor": "predictor",
    "pred_proj": "predictor projection",
}
"""Component of the model by a segment of the parameter's name."""


def component_of(name: str) -> str:
    """Return the component of the parameter `name`. Raises `KeyError` for an unknown name."""
    for segment in name.split("."):
        if segment in COMPONENTS:
            return COMPONENTS[segment]
    raise KeyError(name)


def count_by_component(named: Iterable[tuple[str, Tensor]]) -> dict[str, int]:
    """Count the parameters of each component, in order of appearance."""
    counts: dict[str, int] = {}
    for name, value in named:
        component = component_of(name)
        counts[component] = counts.get(component, 0) + value.numel()
    return counts
