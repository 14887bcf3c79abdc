"""The section `[train]`: budget, batch, precision, checkpoints and logging."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jepamba.config.checks import require

BUDGETS = {"steps": "step", "seconds": "seconds", "tokens": "tokens"}
"""The budgets of a run, each with the counter that it limits; 0: no limit."""
DIALLED = (
    "data.vocab",
    "data.seq_len",
    "model.embed_dim",
    "model.d_model",
    "model.n_layer",
    "model.d_state",
    "model.headdim",
    "model.mlp_mult",
    "model.mlp_every",
    "model.softcap",
    "model.chunk_size",
    "quant.bits",
    "quant.budget_bytes",
    "quant.embedding",
    "quant.qat_fraction",
    "optim.muon_lr",
    "optim.muon_weight_decay",
    "optim.adam_weight_decay",
    "optim.adam_lr",
    "optim.warmdown",
    "train.tokens",
    "train.tokens_per_step",
    "train.tokens_per_micro",
)
"""The settings that the dial can choose."""
BATCH_SETTINGS = ("data.seq_len", "train.tokens_per_step", "train.tokens_per_micro")
"""Settings that must divide each other, once the dial has chosen them."""


@dataclass(frozen=True)
class Train:
    """Budget, batch, precision, checkpoints and logging."""

    steps: int = 0
    """Budget in optimizer steps; 0: none."""
    seconds: float = 0.0
    """Budget in seconds of training; 0: none. With several budgets, the first reached ends training."""
    tokens: int = 0
    """Budget in target tokens, over all processes; 0: none."""
    tokens_per_step: int = 524288
    """Tokens per optimizer step, over all processes."""
    tokens_per_micro: int = 65536
    """Maximum tokens per forward and backward pass of one process."""
    init_from: str = ""
    """Artifact, folder of a run or `hf://owner/name` whose weights, tokenizer and JEPA heads (if kept) training starts
    from; empty: random weights. The settings of `model` are then those of that artifact, and the learning rates a
    twentieth of the preset's unless an overlay or a flag gives them."""
    seed: int = 42
    """Seed of the weights, the data order and SIGReg's directions."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device; `auto`: a GPU if present."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of activations and matrix products; `auto`: bf16 on a GPU and on a CPU with AVX512-BF16, else fp32."""
    masters: Literal["fp32", "bf16"] = "fp32"
    """Precision of the language model's master weights. `bf16`: defect 2 of the published script."""
    graph: bool = True
    """Replay the work of a step (weights, micro-batches, clipping, update) as CUDA graphs; GPU only."""
    threads: int = 0
    """CPU threads; 0: PyTorch's default."""
    skip_limit: int = 10
    """Maximum updates skipped for a non-finite loss or gradient, ghost steps included; one more ends the run."""
    terms_every: int = 0
    """Steps between measurements of each loss term's own gradient norm; 0: never."""
    val_every: float = 0.0
    """Steps between validations, or, below 1, the share of the budget between them; 0: only at the end."""
    val_tokens: int = 0
    """Targets of a periodic validation; 0: all. The final one uses all."""
    checkpoint_every: int = 0
    """Steps between checkpoints; 0: by time only."""
    checkpoint_seconds: float = 300.0
    """Seconds between checkpoints; 0: by steps only."""
    keep_checkpoints: int = 2
    """Number of checkpoints kept."""
    keep_heads: bool = False
    """Write the JEPA heads (projector and predictor) to `heads.safetensors` beside the artifact."""
    track: Literal["", "trackio", "wandb"] = ""
    """Dashboard for the metrics, in addition to `metrics.jsonl`; empty: none."""

    dial: tuple[str, ...] = ()
    """Settings that the dial chooses before the first step, as `model.d_model`; a later layer that gives one of them
    removes it here."""

    def __post_init__(self) -> None:
        for name in self.dial:
            require(name in DIALLED, f"train.dial: {name[:80]!r} is not one of {', '.join(DIALLED)}")
        require(0 <= self.seed < 1 << 63, f"train.seed = {self.seed}: must lie in 0 … 2^63 − 1")
        for name in (
            "steps",
            "seconds",
            "tokens",
            "threads",
            "skip_limit",
            "terms_every",
            "val_every",
            "val_tokens",
            "checkpoint_every",
            "checkpoint_seconds",
        ):
            require(getattr(self, name) >= 0, f"train.{name} = {getattr(self, name)}: must not be negative")
        require(
            any(getattr(self, name) > 0 for name in BUDGETS),
            f"train.steps = {self.steps}, train.seconds = {self.seconds} and train.tokens = {self.tokens}: no budget; "
            "set train.steps, train.seconds or train.tokens",
        )
        require(
            self.val_every < 1 or self.val_every % 1 == 0,
            f"train.val_every = {self.val_every}: must be a whole number of steps, or a share below 1 of the budget",
        )
        for name in ("tokens_per_micro", "tokens_per_step", "keep_checkpoints"):
            require(getattr(self, name) >= 1, f"train.{name} = {getattr(self, name)}: must be at least 1")
        require(
            self.tokens_per_step % self.tokens_per_micro == 0 or not {*self.dial}.isdisjoint(BATCH_SETTINGS),
            f"train.tokens_per_step = {self.tokens_per_step} is not a multiple of train.tokens_per_micro = "
            f"{self.tokens_per_micro}",
        )
