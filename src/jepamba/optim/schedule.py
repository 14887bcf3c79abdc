"""Schedules of the learning rate and of Muon's momentum."""

from __future__ import annotations

from jepamba.config import Optim


def learning_rate_scale(config: Optim, budget_fraction: float) -> float:
    """Return the factor on both learning rates when `budget_fraction` of the budget is spent.

    It is 1, then falls linearly to 0 over the last `warmdown` of the budget.
    """
    if config.warmdown == 0:
        return 1.0
    return min(1.0, max(0.0, (1.0 - budget_fraction) / config.warmdown))


def muon_momentum(config: Optim, step: int) -> float:
    """Return Muon's momentum at 0-based `step`: linear over the first `muon_momentum_steps`, then constant."""
    if step >= config.muon_momentum_steps:
        return config.muon_momentum
    fraction = step / config.muon_momentum_steps
    return config.muon_momentum_start + fraction * (config.muon_momentum - config.muon_momentum_start)
