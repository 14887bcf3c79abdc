"""SIGReg (Balestriero & LeCun 2025; Maes et al. 2026): latents should be standard normal in every direction.

Each random direction gives a one-dimensional sample, and the Epps–Pulley statistic says how far its empirical
characteristic function lies from that of N(0, 1):

    ∫ |mean_n e^{i t x_n} − e^{−t²/2}|² e^{−t²/2} dt ≈ Σ_k w_k [(mean_n cos t_k x_n − φ_k)² + (mean_n sin t_k x_n)²],

with φ_k = e^{−t_k²/2} and w_k = φ_k times the trapezoid weight of the knot, doubled because the integrand is even and
the knots cover one side. For a perfect Gaussian its mean is Σ_k w_k (1 − φ_k²) / N, not zero: the sampling floor.

Legend: B batch, T time, E latent width, S samples that are tested apart, N draws of a sample, M directions, K knots.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from jepamba.config import Jepa
from jepamba.fused.epps_pulley import epps_pulley


def knots(config: Jepa, device: torch.device) -> tuple[Float[Tensor, " K"], Float[Tensor, " K"]]:
    """(t_K, w_K): the knots of the integral and their weights, e^{−t²/2} and the doubled trapezoid rule included."""
    t_K = torch.linspace(config.sigreg_t_min, config.sigreg_t_max, config.sigreg_knots, device=device)
    trapezoid_K = torch.full_like(t_K, 2 * (config.sigreg_t_max - config.sigreg_t_min) / (config.sigreg_knots - 1))
    trapezoid_K[0] /= 2
    trapezoid_K[-1] /= 2
    return t_K, trapezoid_K * torch.exp(-(t_K**2) / 2)


class Draw(NamedTuple):
    """What chance decides of one evaluation; drawn on the CPU, moved to where z lies by the caller."""

    directions_EM: Tensor
    """Random unit-norm columns."""
    chosen: Tensor | None
    """Indices of the timesteps or positions that are tested; None: all of them."""


def draw(config: Jepa, width: int, shape: tuple[int, int], seed: int, step: int) -> Draw:
    """Directions and subset for latents of `shape` (B, T) and `width`.

    `seed` and `step` decide them, so a run resumed at `step` repeats them; with `sigreg_fixed` the directions are the
    same at every step.
    """
    seed_now = _seed_of(seed, 0 if config.sigreg_fixed else step + 1, 0)
    directions_EM = _directions(width, config.sigreg_projections, seed_now)
    per_timestep = config.sigreg_pool == "timestep"
    rows = shape[1] if per_timestep else shape[0] * shape[1]
    count = config.sigreg_timesteps if per_timestep else config.sigreg_samples
    chosen = None
    if 0 < count < rows:
        of_subset = torch.Generator().manual_seed(_seed_of(seed, step + 1, 1))
        chosen = torch.randperm(rows, generator=of_subset)[:count].sort().values
    return Draw(directions_EM, chosen)


@lru_cache(1)
def _directions(width: int, count: int, seed: int) -> Tensor:
    """Kept from one call to the next for runs whose directions are fixed."""
    directions_EM = torch.randn(width, count, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(directions_EM, dim=0)


def samples(z_BTE: Float[Tensor, "B T E"], config: Jepa, chosen: Tensor | None) -> Float[Tensor, "S N E"]:
    """The fp32 samples that are tested, as `sigreg_pool` says: per timestep across the batch, or pooled."""
    if config.sigreg_pool == "timestep":
        # Chosen before it is transposed: the gradient then lies in memory as z does.
        return (z_BTE if chosen is None else z_BTE.index_select(1, chosen)).float().transpose(0, 1)
    if config.sigreg_pool == "centered":
        z_BTE = z_BTE.float()
        z_BTE = z_BTE - z_BTE.mean(1, keepdim=True)
    z_NE = z_BTE.flatten(0, 1)
    return (z_NE if chosen is None else z_NE.index_select(0, chosen)).float().unsqueeze(0)


def sigreg(z_BTE: Float[Tensor, "B T E"], config: Jepa, drawn: Draw) -> Float[Tensor, ""]:
    """The mean statistic over samples and directions, times N with `sigreg_scale_n`; fp32 whatever z's dtype."""
    with torch.autocast(z_BTE.device.type, enabled=False):
        z_SNE = samples(z_BTE, config, drawn.chosen)
        x_SNM = z_SNE @ drawn.directions_EM
        statistic = epps_pulley(x_SNM, *knots(config, z_BTE.device)).mean()
        return statistic * z_SNE.shape[1] if config.sigreg_scale_n else statistic


def _seed_of(seed: int, step: int, stream: int) -> int:
    """One 63-bit seed from three numbers; odd multipliers keep neighbours apart."""
    return (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + stream * 0x94D049BB133111EB) % (1 << 63)
