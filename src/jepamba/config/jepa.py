"""The section `[jepa]`: the latent objective and the weights of the loss terms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jepamba.config.checks import require


@dataclass(frozen=True)
class Jepa:
    """The training-only objective on latents, and the weights of every loss term."""

    ce_weight: float = 1.0
    """Weight of cross-entropy plus z-loss."""
    z_loss: float = 1e-4
    """Weight of logsumexp² beside the cross-entropy."""
    weight: float = 1.0
    """Weight of the latent prediction error; with 0 and `sigreg_weight` 0 no latent part is built."""
    rollout_steps: int = 3
    """Roll-out steps of the predictor."""
    projector: Literal["linear", "mlp-layernorm", "mlp-batchnorm"] = "linear"
    """Kind of projector h→z, and of the predictor's output projection."""
    predictor_mult: int = 4
    """Hidden width of the predictor as a multiple of the latent width."""
    detach_targets: bool = False
    """Stop gradients through the prediction's targets."""
    sigreg_weight: float = 0.09
    """λ, the weight of SIGReg."""
    sigreg_ramp: float = 0.0
    """λ rises linearly from 0 over this share of training."""
    sigreg_pool: Literal["timestep", "positions", "centered"] = "positions"
    """What sample is tested: each timestep across the batch; all positions pooled; or all positions of z minus its
    sequence mean, pooled."""
    sigreg_t_min: float = 0.0
    """First knot of the Epps-Pulley integral."""
    sigreg_t_max: float = 3.0
    """Last knot."""
    sigreg_knots: int = 17
    """Number of knots K."""
    sigreg_projections: int = 1024
    """Random unit-norm directions."""
    sigreg_fixed: bool = False
    """Draw the directions once, rather than anew each step."""
    sigreg_scale_n: bool = True
    """Multiply the statistic by the sample size N."""
    sigreg_sample: Literal["micro", "step"] = "micro"
    """What is one sample: the micro-batches that all processes have at once; or the whole step, for one more pass
    without gradients: then the statistic depends neither on `train.tokens_per_micro` nor on the number of processes."""
    sigreg_timesteps: int = 0
    """At most this many timesteps are tested, sampled anew each step; 0: all."""
    sigreg_samples: int = 0
    """Pooled modes: about this many positions of a sample are tested, sampled anew each step; 0: all."""

    @property
    def active(self) -> bool:
        """Whether any latent term is in the loss, that is, whether projector and predictor exist."""
        return self.weight > 0 or self.sigreg_weight > 0

    def __post_init__(self) -> None:
        for name in ("ce_weight", "z_loss", "weight", "sigreg_weight"):
            require(getattr(self, name) >= 0, f"jepa.{name} = {getattr(self, name)}: must not be negative")
        require(
            self.ce_weight > 0 or self.active,
            "jepa.ce_weight, jepa.weight and jepa.sigreg_weight are all 0.0: nothing to train on; set one of them",
        )
        require(
            self.rollout_steps >= 1,
            f"jepa.rollout_steps = {self.rollout_steps}: must be at least 1; jepa.weight = 0 takes it away",
        )
        require(0 <= self.sigreg_ramp <= 1, f"jepa.sigreg_ramp = {self.sigreg_ramp}: must lie between 0 and 1")
        require(
            0 <= self.sigreg_t_min < self.sigreg_t_max,
            f"jepa.sigreg_t_min = {self.sigreg_t_min}, t_max = {self.sigreg_t_max}: need 0 <= t_min < t_max",
        )
        require(self.sigreg_knots >= 2, f"jepa.sigreg_knots = {self.sigreg_knots}: the integral needs at least 2")
        for name in ("sigreg_projections", "predictor_mult"):
            require(getattr(self, name) >= 1, f"jepa.{name} = {getattr(self, name)}: must be at least 1")
        for name in ("sigreg_timesteps", "sigreg_samples"):
            require(getattr(self, name) >= 0, f"jepa.{name} = {getattr(self, name)}: must be 0 (all) or more")
        require(
            self.sigreg_samples == 0 or self.sigreg_pool != "timestep",
            f"jepa.sigreg_samples = {self.sigreg_samples} is for pooled SIGReg; per timestep use jepa.sigreg_timesteps",
        )
        require(
            self.sigreg_timesteps == 0 or self.sigreg_pool == "timestep",
            f"jepa.sigreg_timesteps = {self.sigreg_timesteps} is for SIGReg per timestep; pooled use "
            "jepa.sigreg_samples",
        )
