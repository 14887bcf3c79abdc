"""SIGReg (Balestriero & LeCun 2025; Maes et al. 2026): latents should be standard normal in every direction.

Each random direction gives a one-dimensional sample, and the Epps–Pulley statistic says how far its empirical
characteristic function lies from that of N(0, 1):

    ∫ |mean_n e^{i t x_n} − e^{−t²/2}|² e^{−t²/2} dt ≈ Σ_k w_k [(mean_n cos t_k x_n − φ_k)² + (mean_n sin t_k x_n)²],

with φ_k = e^{−t_k²/2} and w_k = φ_k times the trapezoid weight of the knot, doubled because the integrand is even and
the knots cover one side. For a perfect Gaussian its mean is Σ_k w_k (1 − φ_k²) / N, not zero: the sampling floor.

The statistic is not linear in its sample, so what the sample is matters. By default it is a *pass*, the micro-batches
that all ranks have at once: the sums of cosines and sines go over the ranks. With `sigreg_sample = "step"` it is the
whole step: a pass without gradients finds the sums, and the passes that follow add up the gradients.

Legend: B batch, T time, E latent width, S samples that are tested apart, N draws of a sample, M directions, K knots.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from jepamba.config import Jepa
from jepamba.distributed import SINGLE_PROCESS, World
from jepamba.ops.epps_pulley import characteristic_sums, epps_pulley
from jepamba.ops.linear.products import projected


def knots(config: Jepa, device: torch.device) -> tuple[Float[Tensor, " K"], Float[Tensor, " K"]]:
    """(t_K, w_K): the knots of the integral and their weights, e^{−t²/2} and the doubled trapezoid rule included."""
    t_K = torch.linspace(config.sigreg_t_min, config.sigreg_t_max, config.sigreg_knots, device=device)
    trapezoid_K = torch.full_like(t_K, 2 * (config.sigreg_t_max - config.sigreg_t_min) / (config.sigreg_knots - 1))
    trapezoid_K[0] /= 2
    trapezoid_K[-1] /= 2
    return t_K, trapezoid_K * torch.exp(-(t_K**2) / 2)


class Projections(NamedTuple):
    """What chance decides of one evaluation; drawn on the CPU, moved to where z lies by the caller."""

    directions_EM: Tensor
    """Random unit-norm columns."""
    chosen: Tensor | None
    """Indices of the timesteps or positions that are tested; None: all of them."""


def sample_projections(
    config: Jepa, width: int, shape: tuple[int, int], seed: int, step: int, *, of: float = 0.0, rank: int = 0
) -> Projections:
    """Directions and subset for latents of `shape` (B, T) and `width`.

    `seed` and `step` decide them, so a run resumed at `step` repeats them; with `sigreg_fixed` the directions are the
    same at every step. `of`: the B windows are a part of a sample of so many (0: they are all of it), that of `rank`.
    Directions and timesteps are the same for all parts.
    """
    seed_now = _seed_of(seed, 0 if config.sigreg_fixed else step + 1, 0)
    directions_EM = _directions(width, config.sigreg_projections, seed_now)
    windows, seq_len = shape
    count = num_samples(config, windows, seq_len, of or windows)
    if config.sigreg_pool == "timestep":
        chosen = _subset(seq_len, config.sigreg_timesteps or seq_len, _seed_of(seed, step + 1, 1))
    elif config.sigreg_sample == "micro":
        chosen = _subset(windows * seq_len, count, _seed_of(seed, step + 1, 1 + rank))
    else:
        # Whoever has a window tests the same timesteps of it.
        chosen = _subset(seq_len, count // windows, _seed_of(seed, step + 1, 1))
        if chosen is not None:
            chosen = (seq_len * torch.arange(windows).unsqueeze(1) + chosen).flatten()
    return Projections(directions_EM, chosen)


def num_samples(config: Jepa, windows: int, seq_len: int, of: float) -> int:
    """How many draws `windows` of `sequence` tokens bring into a sample that has `of` windows in all."""
    if config.sigreg_pool == "timestep":
        return windows
    if not 0 < config.sigreg_samples < of * seq_len:
        return windows * seq_len
    if config.sigreg_sample == "step":
        return windows * math.ceil(config.sigreg_samples / of)
    return max(1, round(config.sigreg_samples * windows / of))


def _subset(of: int, count: int, seed: int) -> Tensor | None:
    """`count` of the numbers below `of`, in order; None for all of them."""
    if count >= of:
        return None
    return torch.randperm(of, generator=torch.Generator().manual_seed(seed))[:count].sort().values


@lru_cache(1)
def _directions(width: int, count: int, seed: int) -> Tensor:
    """Kept from one call to the next for runs whose directions are fixed."""
    directions_EM = torch.randn(width, count, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(directions_EM, dim=0)


def samples(z_BTE: Float[Tensor, "B T E"], config: Jepa, chosen: Tensor | None) -> Float[Tensor, "S N E"]:
    """The samples that are tested, as `sigreg_pool` says: per timestep across the batch, or pooled."""
    if config.sigreg_pool == "timestep":
        return (z_BTE if chosen is None else z_BTE.index_select(1, chosen)).transpose(0, 1)
    if config.sigreg_pool == "centered":
        z_BTE = z_BTE.float()
        z_BTE = z_BTE - z_BTE.mean(1, keepdim=True)
    z_NE = z_BTE.flatten(0, 1)
    return (z_NE if chosen is None else z_NE.index_select(0, chosen)).unsqueeze(0)


def sigreg(
    z_BTE: Float[Tensor, "B T E"],
    config: Jepa,
    projections: Projections,
    *,
    world: World = SINGLE_PROCESS,
    draws: Tensor | None = None,
    sums_SK2M: Float[Tensor, "S K 2 M"] | None = None,
) -> Float[Tensor, ""]:
    """The mean statistic over samples and directions, times N with `sigreg_scale_n`; fp32 whatever z's dtype.

    With several ranks, or with `sums_SK2M` (the `sigreg_sums` of the whole sample, where it is more than this pass),
    z is a part of a sample of `draws` in all. Every part's value is then the whole's; the gradient by z is that of the
    whole's statistic, so no rank has to send it on: gradients of the weights are to be added over the parts.
    """
    with torch.autocast(z_BTE.device.type, enabled=False):
        x_SNM = projected(samples(z_BTE, config, projections.chosen), projections.directions_EM)
        t_K, w_K = knots(config, z_BTE.device)
        if sums_SK2M is None and world.world_size > 1:
            sums_SK2M = world.all_reduce_(characteristic_sums(x_SNM.detach(), t_K))
        of = x_SNM.shape[1] if draws is None else draws
        statistic = epps_pulley(x_SNM, t_K, w_K, sums_SK2M, of).mean()
        return statistic * of if config.sigreg_scale_n else statistic


@torch.no_grad()
def sigreg_sums(z_BTE: Float[Tensor, "B T E"], config: Jepa, projections: Projections) -> Float[Tensor, "S K 2 M"]:
    """What z adds to the sums of cosines and sines of the sample that it is a part of."""
    with torch.autocast(z_BTE.device.type, enabled=False):
        x_SNM = projected(samples(z_BTE, config, projections.chosen), projections.directions_EM)
        return characteristic_sums(x_SNM, knots(config, z_BTE.device)[0])


def _seed_of(seed: int, step: int, stream: int) -> int:
    """One 63-bit seed from three numbers; odd multipliers keep neighbours apart."""
    return (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + stream * 0x94D049BB133111EB) % (1 << 63)
