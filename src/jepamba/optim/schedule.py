"""Learning rate and momentum over a run."""

from __future__ import annotations

from jepamba.config import Optim


def learning_rate_scale(config: Optim, progress: float) -> float:
    """Factor on both learning rates at this share of the budget: 1, then linearly to 0 over the last `warmdown`."""
    if config.warmdown == 0:
        return 1.0
    return min(1.0, max(0.0, (1.0 - progress) / config.warmdown))


def muon_momentum(config: Optim, step: int) -> float:
    """Muon's momentum at 0-based `step`: linear from its start over `muon_momentum_steps`, then constant."""
    if step >= config.muon_momentum_steps:
        return config.muon_momentum
    share = step / config.muon_momentum_steps
    return config.muon_momentum_start + share * (config.muon_momentum - config.muon_momentum_start)
