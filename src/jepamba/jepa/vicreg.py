"""VICReg's variance and covariance terms (Bardes, Ponce & LeCun 2022, arXiv 2105.04906), as a control to SIGReg.

They set a lower bound on the standard deviation of each latent dimension and push the correlations to 0. Unlike SIGReg
they use second moments alone, and no random directions:

    V = mean_j max(0, 1 − (C_jj + ε)^½),   K = Σ_{i≠j} C_ij² / E,   VICReg = V + K / 25,

with the covariance C of the latents of one pass over all ranks (unbiased), and the paper's ratio of the weights.

Legend: B batch, T time, N = B·T positions, E latent dimension.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from jepamba.distributed import SINGLE_PROCESS, World

EPSILON = 1e-4
"""Added to variances before the square root (the paper's value)."""
COVARIANCE_SHARE = 1 / 25
"""Weight of K relative to V (the paper: 1 and 25)."""


def vicreg(z_BTE: Float[Tensor, "B T E"], *, world: World = SINGLE_PROCESS) -> Float[Tensor, ""]:
    """Return V + K / 25 of all latents of all ranks, in fp32.

    The value is that of the whole sample on every rank. The gradient with respect to z is the gradient of that value,
    so the caller must sum, not average, the gradients of the weights over the ranks.
    """
    with torch.autocast(z_BTE.device.type, enabled=False):
        z_NE = z_BTE.flatten(0, 1).to(torch.promote_types(z_BTE.dtype, torch.float32))
        sums = world.all_reduce_(torch.cat([z_NE.detach().sum(0), z_NE.new_full((1,), len(z_NE))]))
        # The mean needs no gradient: the deviations from it sum to 0.
        centred_NE = z_NE - sums[:-1] / sums[-1]
        own_EE = centred_NE.T @ centred_NE
        # The value of all ranks, with the gradient of this rank's part.
        products_EE = world.all_reduce_(own_EE.detach().clone()) + (own_EE - own_EE.detach())
        covariance_EE = products_EE / (sums[-1] - 1)
        variance_E = covariance_EE.diagonal()
        spread = torch.relu(1 - (variance_E + EPSILON).sqrt()).mean()
        correlation = (covariance_EE.square().sum() - variance_E.square().sum()) / len(variance_E)
        return spread + COVARIANCE_SHARE * correlation
