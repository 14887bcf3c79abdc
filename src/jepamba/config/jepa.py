"""The section `[jepa]`: the latent objective and the loss weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jepamba.config.checks import require

BALANCE_EVERY = 50
"""Steps between measurements for `jepa.balance`; each costs a forward and two backward passes of a micro-batch."""


@dataclass(frozen=True)
class Jepa:
    """The training-only latent objective, and the weights of all loss terms."""

    ce_weight: float = 1.0
    """Weight of cross-entropy plus z-loss."""
    z_loss: float = 1e-4
    """Weight of the z-loss, logsumexp², relative to the cross-entropy."""
    weight: float = 1.0
    """Weight of the latent prediction loss. If all weights of latent terms are 0, no JEPA heads are built."""
    layer: int = 0
    """Number of blocks below the latents: z is of the residual stream after that many blocks, RMS-normalized.
    `model.n_layer` / 2: the U-Net's bottleneck. 0: all blocks, so that z is of the h that the head reads."""
    rollout_steps: int = 3
    """Steps of the predictor's roll-out."""
    stride: int = 1
    """Predict from every `stride`-th position only, which makes the predictor that much cheaper."""
    target_tokens: int = 1
    """Tokens n of a target: step k of the roll-out predicts the mean latent of the n tokens from t + (k − 1)·n + 1."""
    action: bool = False
    """Give every step of the predictor the embedding of the token that it predicts the latent of, or the mean over the
    `target_tokens`."""
    projector: Literal["linear", "mlp-layernorm", "mlp-batchnorm", "batchnorm", "none"] = "linear"
    """Projector of the latents to z, and the predictor's output projection. `batchnorm`: z is the latents, each channel
    standardized over the positions of a pass; `none`: the latents themselves. Both have no output projection."""
    predictor_mult: int = 4
    """Hidden width of the predictor as a multiple of the latent width. 0: no predictor; the latent itself is the
    prediction."""
    until: float = 1.0
    """Share of training after which the latent terms are off: they are not computed, and the heads stay as they are."""
    anneal: bool = False
    """Lower the weights of the latent terms linearly to 0, which they reach at `until`."""
    balance: float = 0.0
    """Gradient norm of the sum of the latent terms over the kept parameters, relative to that of the cross-entropy.
    Every 50 steps a common factor of the latent weights is set so that it has this value. 0: no such factor."""
    detach_targets: bool = False
    """Stop gradients through the prediction targets."""
    target_ema: float = 0.0
    """Decay of the exponential moving average of model and projector that computes the prediction targets. 0: the model
    itself computes them."""
    sigreg_weight: float = 0.09
    """λ, the weight of SIGReg."""
    sigreg_ramp: float = 0.0
    """Share of training over which λ rises linearly from 0."""
    sigreg_pool: Literal["timestep", "positions", "centered"] = "positions"
    """The sample: each timestep across the batch; all positions; or all positions of z minus its sequence mean."""
    sigreg_t_min: float = 0.0
    """First knot of the Epps-Pulley integral."""
    sigreg_t_max: float = 3.0
    """Last knot."""
    sigreg_knots: int = 17
    """Number of knots K."""
    sigreg_projections: int = 1024
    """Number of random unit-norm directions."""
    sigreg_fixed: bool = False
    """Draw the directions once, not for each sample."""
    sigreg_scale_n: bool = True
    """Multiply the statistic by the sample size N."""
    sigreg_sample: Literal["micro", "step"] = "micro"
    """SIGReg's sample. `micro`: one pass, that is one micro-batch of each process. `step`: the whole step; it costs one
    more forward pass and does not depend on `train.tokens_per_micro` or the number of processes."""
    sigreg_timesteps: int = 0
    """Maximum timesteps of a sample (`timestep`), drawn anew for each; 0: all."""
    sigreg_samples: int = 0
    """Approximate positions of a sample (pooled modes), drawn anew for each; 0: all."""
    vicreg_weight: float = 0.0
    """Weight of VICReg's variance and covariance terms, of all positions of one pass; a control to SIGReg."""

    @property
    def active(self) -> bool:
        """Whether the loss has a latent term. If not, projector and predictor are not built."""
        return self.weight > 0 or self.sigreg_weight > 0 or self.vicreg_weight > 0

    def __post_init__(self) -> None:
        for name in ("ce_weight", "z_loss", "weight", "sigreg_weight", "vicreg_weight", "balance"):
            require(getattr(self, name) >= 0, f"jepa.{name} = {getattr(self, name)}: must not be negative")
        require(
            self.ce_weight > 0 or self.active,
            "jepa.ce_weight, jepa.weight and jepa.sigreg_weight are all 0.0: nothing to train on; set one of them",
        )
        require(
            self.rollout_steps >= 1,
            f"jepa.rollout_steps = {self.rollout_steps}: must be at least 1; jepa.weight = 0 turns it off",
        )
        for name in ("target_tokens", "stride"):
            value = getattr(self, name)
            require(value >= 1, f"jepa.{name} = {value}: must be at least 1")
            require(
                value == 1 or self.weight > 0,
                f"jepa.{name} = {value}, but jepa.weight = 0: nothing is predicted; set jepa.weight",
            )
        require(
            0 < self.until <= 1,
            f"jepa.until = {self.until}: must lie above 0 and at most 1; jepa.weight = 0 and jepa.sigreg_weight = 0 "
            "turn the latent terms off from the start",
        )
        require(
            self.until == 1 or self.ce_weight > 0,
            f"jepa.until = {self.until}, but jepa.ce_weight = 0: nothing is trained after that; set jepa.ce_weight",
        )
        require(
            self.balance == 0 or self.ce_weight > 0,
            f"jepa.balance = {self.balance}, but jepa.ce_weight = 0: there is no gradient to compare with; set "
            "jepa.ce_weight",
        )
        for name, used in (("anneal", self.anneal), ("until", self.until < 1), ("balance", self.balance > 0)):
            require(
                not used or self.active,
                f"jepa.{name} = {getattr(self, name)}, but jepa.weight and jepa.sigreg_weight are 0: there is no "
                "latent term; set one of the weights",
            )
        require(self.layer >= 0, f"jepa.layer = {self.layer}: must be 0 (all blocks) or more")
        require(
            self.layer == 0 or self.active,
            f"jepa.layer = {self.layer}, but jepa.weight and jepa.sigreg_weight are 0: there are no latents; "
            "set one of the weights",
        )
        require(
            not self.action or self.weight > 0,
            "jepa.action = true, but jepa.weight = 0: there is no predictor to give it to; set jepa.weight",
        )
        require(0 <= self.target_ema < 1, f"jepa.target_ema = {self.target_ema}: must be 0 (no average) or below 1")
        require(
            self.target_ema == 0 or self.weight > 0,
            f"jepa.target_ema = {self.target_ema}, but jepa.weight = 0: nothing is predicted; set jepa.weight",
        )
        require(0 <= self.sigreg_ramp <= 1, f"jepa.sigreg_ramp = {self.sigreg_ramp}: must lie between 0 and 1")
        require(
            self.sigreg_ramp <= self.until,
            f"jepa.sigreg_ramp = {self.sigreg_ramp} is more than jepa.until = {self.until}: λ would not reach "
            "its value",
        )
        require(
            0 <= self.sigreg_t_min < self.sigreg_t_max,
            f"jepa.sigreg_t_min = {self.sigreg_t_min}, t_max = {self.sigreg_t_max}: need 0 <= t_min < t_max",
        )
        require(self.sigreg_knots >= 2, f"jepa.sigreg_knots = {self.sigreg_knots}: the integral needs at least 2")
        require(
            self.sigreg_projections >= 1, f"jepa.sigreg_projections = {self.sigreg_projections}: must be at least 1"
        )
        require(self.predictor_mult >= 0, f"jepa.predictor_mult = {self.predictor_mult}: must not be negative")
        require(
            self.predictor_mult > 0 or not self.action,
            "jepa.action = true, but jepa.predictor_mult = 0: there is no predictor to give it to; set "
            "jepa.predictor_mult",
        )
        for name in ("sigreg_timesteps", "sigreg_samples"):
            require(getattr(self, name) >= 0, f"jepa.{name} = {getattr(self, name)}: must be 0 (all) or more")
        require(
            self.sigreg_samples == 0 or self.sigreg_pool != "timestep",
            f"jepa.sigreg_samples = {self.sigreg_samples} is for pooled SIGReg; per timestep, use "
            "jepa.sigreg_timesteps",
        )
        require(
            self.sigreg_timesteps == 0 or self.sigreg_pool == "timestep",
            f"jepa.sigreg_timesteps = {self.sigreg_timesteps} is for SIGReg per timestep; pooled, use "
            "jepa.sigreg_samples",
        )
