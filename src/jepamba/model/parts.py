"""Which part of the model a parameter belongs to: the rows of every table of counts and bytes."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

PARTS = {
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
"""Part by a component of the parameter's name."""


def part_of(name: str) -> str:
    """The part of the parameter `name`, as in `blocks.3.mixer.in_proj.weight`. Raises `KeyError` if it has none."""
    for component in name.split("."):
        if component in PARTS:
            return PARTS[component]
    raise KeyError(name)


def parts(named: Iterable[tuple[str, Tensor]]) -> dict[str, int]:
    """Number of parameters in each part, in order of appearance."""
    counts: dict[str, int] = {}
    for name, value in named:
        part = part_of(name)
        counts[part] = counts.get(part, 0) + value.numel()
    return counts
