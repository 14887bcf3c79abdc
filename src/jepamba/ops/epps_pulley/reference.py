"""The Epps–Pulley statistic by its definition, in float64: the reference.

Legend: S samples, N values of a sample, M directions, K knots.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Float64
from torch import Tensor


def epps_pulley_reference(
    x_SNM: Float[Tensor, "S N M"], t_K: Float[Tensor, " K"], w_K: Float[Tensor, " K"]
) -> Float64[Tensor, "S M"]:
    """Return Σ_k w_k [(mean_n cos t_k x_n − e^{−t_k²/2})² + (mean_n sin t_k x_n)²]. Differentiable in x."""
    angles_SNMK = x_SNM.double().unsqueeze(-1) * t_K.double()
    gap_SMK = angles_SNMK.cos().mean(1) - torch.exp(-(t_K.double() ** 2) / 2)
    return (w_K.double() * (gap_SMK**2 + angles_SNMK.sin().mean(1) ** 2)).sum(-1)
