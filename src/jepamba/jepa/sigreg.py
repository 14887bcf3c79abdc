"""SIGReg (Balestriero & LeCun 2025, arXiv 2511.08544; Maes et al. 2026): pulls latents towards a standard normal.

Each random direction gives a one-dimensional sample. The Epps–Pulley statistic measures how far the empirical
characteristic function of that sample is from that of N(0, 1):

    ∫ |mean_n e^{i t x_n} − e^{−t²/2}|² e^{−t²/2} dt ≈ Σ_k w_k [(mean_n cos t_k x_n − φ_k)² + (mean_n sin t_k x_n)²],

with φ_k = e^{−t_k²/2} and w_k = φ_k times the trapezoid weight of the knot, doubled because the integrand is even and
the knots cover one side. The mean for a perfect Gaussian is Σ_k w_k (1 − φ_k²) / N, not zero.

The statistic is not linear in its sample, so the choice of the sample matters. By default the sample is one
micro-batch of every rank, and the sums of cosines and sines are all-reduced. With `sigreg_sample = "step"` the sample
is the whole step: a pass without gradients computes the sums, and a second pass accumulates the gradients.

Legend: B batch, T time, E latent dimension, S separate samples, N points of a sample, M directions, K knots.
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
    """Return the knots t_K of the integral and their weights w_K, which include e^{−t²/2} and the factor 2."""
    t_K = torch.linspace(config.sigreg_t_min, config.sigreg_t_max, config.sigreg_knots, device=device)
    trapezoid_K = torch.full_like(t_K, 2 * (config.sigreg_t_max - config.sigreg_t_min) / (config.sigreg_knots - 1))
    trapezoid_K[0] /= 2
    trapezoid_K[-1] /= 2
    return t_K, trapezoid_K * torch.exp(-(t_K**2) / 2)


class Projections(NamedTuple):
    """The random choices of one evaluation. `sample_projections` makes them on the CPU; the caller moves them to z's
    device."""

    directions_EM: Tensor
    """Random directions: columns of unit norm."""
    indices: Tensor | None
    """Timesteps or positions that enter the statistic. None: all of them."""


def sample_projections(
    config: Jepa,
    dim: int,
    shape: tuple[int, int],
    seed: int,
    step: int,
    *,
    total_windows: float = 0.0,
    rank: int = 0,
) -> Projections:
    """Draw directions and a random subset for latents of shape (B, T, dim).

    The result depends only on the arguments, so that a resumed run repeats it. With `sigreg_fixed` the directions
    do not depend on `step`. Directions and timesteps are the same on all ranks.

    Arguments:
        shape: (B, T).
        total_windows: Windows of the whole sample, of which this rank holds B. 0: B.
        rank: Rank that holds the latents.
    """
    directions_seed = _seed_of(seed, 0 if config.sigreg_fixed else step + 1, 0)
    directions_EM = _directions(dim, config.sigreg_projections, directions_seed)
    windows, seq_len = shape
    count = num_samples(config, windows, seq_len, total_windows or windows)
    if config.sigreg_pool == "timestep":
        indices = _subset(seq_len, config.sigreg_timesteps or seq_len, _seed_of(seed, step + 1, 1))
    elif config.sigreg_sample == "micro":
        indices = _subset(windows * seq_len, count, _seed_of(seed, step + 1, 1 + rank))
    else:
        # The timesteps must not depend on how the windows are distributed over the ranks.
        indices = _subset(seq_len, count // windows, _seed_of(seed, step + 1, 1))
        if indices is not None:
            indices = (seq_len * torch.arange(windows).unsqueeze(1) + indices).flatten()
    return Projections(directions_EM, indices)


def num_samples(config: Jepa, windows: int, seq_len: int, total_windows: float) -> int:
    """Return how many points `windows` windows contribute to a sample of `total_windows` windows."""
    if config.sigreg_pool == "timestep":
        return windows
    if not 0 < config.sigreg_samples < total_windows * seq_len:
        return windows * seq_len
    if config.sigreg_sample == "step":
        return windows * math.ceil(config.sigreg_samples / total_windows)
    return max(1, round(config.sigreg_samples * windows / total_windows))


def _subset(size: int, count: int, seed: int) -> Tensor | None:
    """Draw `count` distinct indices below `size`, sorted; None if that is all of them."""
    if count >= size:
        return None
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed))[:count].sort().values


@lru_cache(1)
def _directions(dim: int, count: int, seed: int) -> Tensor:
    """Draw `count` directions. The cache serves runs with `sigreg_fixed`."""
    directions_EM = torch.randn(dim, count, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(directions_EM, dim=0)


def samples(z_BTE: Float[Tensor, "B T E"], config: Jepa, indices: Tensor | None) -> Float[Tensor, "S N E"]:
    """Arrange latents into samples by `sigreg_pool`: one for each timestep, or one of all positions."""
    if config.sigreg_pool == "timestep":
        return (z_BTE if indices is None else z_BTE.index_select(1, indices)).transpose(0, 1)
    if config.sigreg_pool == "centered":
        z_BTE = z_BTE.float()
        z_BTE = z_BTE - z_BTE.mean(1, keepdim=True)
    z_NE = z_BTE.flatten(0, 1)
    return (z_NE if indices is None else z_NE.index_select(0, indices)).unsqueeze(0)


def sigreg(
    z_BTE: Float[Tensor, "B T E"],
    config: Jepa,
    projections: Projections,
    *,
    world: World = SINGLE_PROCESS,
    sample_size: Tensor | None = None,
    sums_SK2M: Float[Tensor, "S K 2 M"] | None = None,
) -> Float[Tensor, ""]:
    """Return the mean statistic over samples and directions, times N with `sigreg_scale_n`, in fp32.

    z may be one portion of the sample, because there are other ranks or micro-batches. The value is still the statistic
    of the whole sample, and the gradient with respect to z is the gradient of that value. Hence the caller must sum,
    not average, the gradients of the weights over ranks and micro-batches.

    Arguments:
        sample_size: Points N of the whole sample. None: z is the whole sample.
        sums_SK2M: `sigreg_sums` of the whole sample, for a sample that spans several micro-batches. None: the sums of z
            over the ranks.
    """
    with torch.autocast(z_BTE.device.type, enabled=False):
        x_SNM = projected(samples(z_BTE, config, projections.indices), projections.directions_EM)
        t_K, w_K = knots(config, z_BTE.device)
        if sums_SK2M is None and world.world_size > 1:
            sums_SK2M = world.all_reduce_(characteristic_sums(x_SNM.detach(), t_K))
        size = x_SNM.shape[1] if sample_size is None else sample_size
        statistic = epps_pulley(x_SNM, t_K, w_K, sums_SK2M, size).mean()
        return statistic * size if config.sigreg_scale_n else statistic


@torch.no_grad()
def sigreg_sums(z_BTE: Float[Tensor, "B T E"], config: Jepa, projections: Projections) -> Float[Tensor, "S K 2 M"]:
    """Return the sums of cosines and sines over z, to be added over the portions of a sample."""
    with torch.autocast(z_BTE.device.type, enabled=False):
        x_SNM = projected(samples(z_BTE, config, projections.indices), projections.directions_EM)
        return characteristic_sums(x_SNM, knots(config, z_BTE.device)[0])


def _seed_of(seed: int, step: int, stream: int) -> int:
    """Mix three numbers into a 63-bit seed."""
    return (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + stream * 0x94D049BB133111EB) % (1 << 63)
