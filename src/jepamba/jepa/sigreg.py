"""SIGReg (Balestriero & LeCun 2025; Maes et al. 2026): latents should be standard normal in every direction.

Each random direction gives a one-dimensional sample, and the Epps–Pulley statistic says how far its empirical
characteristic function lies from that of N(0, 1):

    ∫ |mean_n e^{i t x_n} − e^{−t²/2}|² e^{−t²/2} dt ≈ Σ_k w_k [(mean_n cos t_k x_n − φ_k)² + (mean_n sin t_k x_n)²],

with φ_k = e^{−t_k²/2} and w_k = φ_k times the trapezoid weight of the knot, doubled because the integrand is even and
the knots cover one side. For a perfect Gaussian its mean is Σ_k w_k (1 − φ_k²) / N, not zero: the sampling floor.

Legend: B batch, T time, E latent width, S samples that are tested apart, N draws of a sample, M directions, K knots,
n rows that are tested.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from jepamba.config import Jepa
from jepamba.fused.epps_pulley import epps_pulley


def knots(config: Jepa, device: torch.device) -> tuple[Float[Tensor, " K"], Float[Tensor, " K"]]:
    """(t_K, w_K): the knots of the integral and their weights, e^{−t²/2} and the doubled trapezoid rule included."""
    t_K = torch.linspace(config.sigreg_t_min, config.sigreg_t_max, config.sigreg_knots, device=device)
    trapezoid_K = torch.full_like(t_K, 2 * (config.sigreg_t_max - config.sigreg_t_min) / (config.sigreg_knots - 1))
    trapezoid_K[:1] /= 2
    trapezoid_K[-1:] /= 2
    return t_K, trapezoid_K * torch.exp(-(t_K**2) / 2)


class Draw(NamedTuple):
    """All that is random in one evaluation, drawn on the CPU; on z's device, `sigreg` copies nothing to it."""

    directions_EM: Float[Tensor, "E M"]
    """Unit-norm columns."""
    chosen: Int[Tensor, " n"] | None
    """The timesteps (or the positions) that are tested, rising; None: all."""

    def to(self, device: torch.device) -> Draw:
        """The same on another device."""
        return Draw(self.directions_EM.to(device), None if self.chosen is None else self.chosen.to(device))


def rows_of(config: Jepa, batch: int, length: int) -> int:
    """How many rows there are to choose from: timesteps, or positions where they are pooled."""
    return length if config.sigreg_pool == "timestep" else batch * length


def draw(config: Jepa, width: int, rows: int, seed: int, step: int) -> Draw:
    """What `seed` and `step` decide for latents of `width`, with so many `rows` (see `rows_of`) to choose from.

    A run that is resumed at `step` draws the same again; the global generator has no part in it.
    """
    count = config.sigreg_timesteps if config.sigreg_pool == "timestep" else config.sigreg_samples
    chosen = None
    if 0 < count < rows:
        generator = torch.Generator().manual_seed(_seed_of(seed, step + 1, 1))
        chosen = torch.randperm(rows, generator=generator)[:count].sort().values
    return Draw(directions(config, width, seed, step), chosen)


def directions(config: Jepa, width: int, seed: int, step: int) -> Float[Tensor, "E M"]:
    """Random unit-norm columns: the same for every step if `sigreg_fixed`, else drawn from a generator seeded by it."""
    generator = torch.Generator().manual_seed(_seed_of(seed, 0 if config.sigreg_fixed else step + 1, 0))
    return torch.nn.functional.normalize(torch.randn(width, config.sigreg_projections, generator=generator), dim=0)


def samples(z_BTE: Float[Tensor, "B T E"], config: Jepa, chosen: Int[Tensor, " n"] | None) -> Float[Tensor, "S N E"]:
    """The fp32 samples that are tested, as `sigreg_pool` says: per timestep across the batch, or pooled."""
    if config.sigreg_pool == "timestep":
        return _rows(z_BTE.transpose(0, 1), chosen).float()
    if config.sigreg_pool == "centered":
        z_BTE = z_BTE.float()
        z_BTE = z_BTE - z_BTE.mean(1, keepdim=True)
    return _rows(z_BTE.flatten(0, 1), chosen).float().unsqueeze(0)


def sigreg(z_BTE: Float[Tensor, "B T E"], config: Jepa, draw: Draw) -> Float[Tensor, ""]:
    """The mean statistic over samples and directions, times N with `sigreg_scale_n`; fp32 whatever z's dtype.

    Work of z's device alone, without waiting for it, if the draw is there.
    """
    directions_EM, chosen = draw.to(z_BTE.device)
    with torch.autocast(z_BTE.device.type, enabled=False):
        z_SNE = samples(z_BTE, config, chosen)
        statistic = epps_pulley(z_SNE @ directions_EM, *knots(config, z_BTE.device)).mean()
        return statistic * z_SNE.shape[1] if config.sigreg_scale_n else statistic


def _rows(rows: Tensor, chosen: Tensor | None) -> Tensor:
    return rows if chosen is None else rows.index_select(0, chosen)


def _seed_of(seed: int, step: int, stream: int) -> int:
    """One 63-bit seed from three numbers; odd multipliers keep neighbours apart."""
    return (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + stream * 0x94D049BB133111EB) % (1 << 63)
