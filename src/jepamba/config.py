"""Every setting of a run, as frozen dataclasses: one per room of the package, and `Run`, which holds them all.

A field is also a command-line flag (`--model.d_model 640`) and a key of a preset (`[model] d_model = 640`). Each class checks
what it can check alone in `__post_init__`; `Run` checks what needs two rooms. A setting that makes no sense is refused
with a `ConfigError` that names the field, its value and the remedy.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_type_hints

from jepamba.errors import UserError

OF_A_MACHINE = ("data.train", "data.val", "data.tokenizer", "data.cache", "train.threads")
"""Settings that may differ from machine to machine, and when a run is resumed. Each machine has its disks where it
likes: not the names of text and tokenizer count but what they hold. And it has as many cores as it has, which changes
no result but by rounding."""


class ConfigError(UserError):
    """A setting, or a combination of settings, that is refused; the message is one line for the user."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


@dataclass(frozen=True)
class Data:
    """What text is read, how it becomes tokens, and how tokens become windows."""

    train: str = "stdlib"
    """Training text: a file, a folder, a folder of shards, a data set of the Hugging Face hub (`hf://owner/name`), or
    `stdlib` (the English inside Python itself)."""
    val: str = ""
    """Validation text, same forms; empty: `holdout` of the training documents are kept out for it."""
    holdout: float = 0.1
    """Share of the training documents kept for validation when `val` is empty."""
    column: str = "text"
    """The column of JSONL and parquet input that holds the text."""
    tokenizer: str = "bpe"
    """`bytes`, `bpe` (trained on the training text), or the path of a SentencePiece `.model`."""
    vocab: int = 8192
    """Pieces of a tokenizer that is trained here (`tokenizer = "bpe"`)."""
    byte_separator: Literal["auto", "yes", "no"] = "auto"
    """Byte mode: whether the symbol 0 separates documents (0 bytes of text) or is text itself. `auto`: our own data
    says so in its `meta.json`; shards without one are scored as published, every symbol one byte."""
    seq_len: int = 1024
    """Window length in tokens."""
    shuffle: bool = True
    """Visit the windows of an epoch in a seeded random order; off: in order."""
    reset: bool = True
    """Reset the recurrent state where a document starts."""
    cache: str = ""
    """Folder for tokenized shards; empty: `$XDG_CACHE_HOME/jepamba` or `~/.cache/jepamba`."""

    def __post_init__(self) -> None:
        _require(0.0 < self.holdout < 1.0, f"data.holdout = {self.holdout}: must lie between 0 and 1")
        _require(self.seq_len >= 2, f"data.seq_len = {self.seq_len}: a window needs at least 2 tokens")
        _require(
            self.tokenizer in ("bytes", "bpe") or self.tokenizer.endswith(".model"),
            f"data.tokenizer = {self.tokenizer!r}: use bytes, bpe or the path of a SentencePiece .model",
        )
        _require(
            264 <= self.vocab <= 65536,
            f"data.vocab = {self.vocab}: a trained tokenizer has 264 (bytes and controls) to 65,536 pieces",
        )


@dataclass(frozen=True)
class Model:
    """The language model that is kept in the artifact (spec section 1)."""

    vocab_size: int = 0
    """Rows of the embedding; 0: as many as the tokenizer has symbols."""
    embed_dim: int = 336
    """Width e of the embedding; projected to `d_model` where they differ."""
    tie: Literal[0, 1, 2, 3] = 1
    """Head: 0 separate; 1 tied; 2 tied plus a learned correction; 3 tied after Linear, GELU."""
    d_model: int = 640
    """Width d of the residual stream."""
    n_layer: int = 10
    """Number of blocks."""
    expand: int = 1
    """Inner width of the mixer as a multiple of `d_model`."""
    d_state: int = 64
    """State size N of each head channel."""
    headdim: int = 64
    """Channels P of a head."""
    ngroups: int = 1
    """Groups that share B and C."""
    d_conv: int = 4
    """Taps of the depthwise causal convolution."""
    mlp: Literal["relu2", "swiglu"] = "relu2"
    """Kind of MLP."""
    mlp_mult: float = 4.0
    """Hidden width of the MLP as a multiple of `d_model`."""
    mlp_every: int = 2
    """A block i has an MLP where i % mlp_every == 0."""
    unet: bool = True
    """U-Net skips from the first half of the blocks to the second."""
    self_skip: bool = False
    """Keep the submission's first decoder skip, which adds the last encoder block's output to itself."""
    softcap: Literal["poly", "tanh", "off"] = "poly"
    """How logits are capped."""
    cap: float = 15.0
    """The cap on the logits' absolute value."""
    chunk_size: int = 64
    """Chunk length of the state-space operator; changes speed, not results (up to rounding)."""

    @property
    def d_inner(self) -> int:
        """Inner width of the mixer, heads × headdim."""
        return self.expand * self.d_model

    @property
    def heads(self) -> int:
        """Heads of the mixer."""
        return self.d_inner // self.headdim

    @property
    def d_intermediate(self) -> int:
        """Hidden width of the MLP."""
        return round(self.mlp_mult * self.d_model)

    def __post_init__(self) -> None:
        for name in (
            "embed_dim",
            "d_model",
            "n_layer",
            "expand",
            "d_state",
            "headdim",
            "ngroups",
            "d_conv",
            "mlp_every",
            "chunk_size",
        ):
            _require(getattr(self, name) >= 1, f"model.{name} = {getattr(self, name)}: must be at least 1")
        _require(self.vocab_size >= 0, f"model.vocab_size = {self.vocab_size}: must be 0 (from the tokenizer) or more")
        _require(self.vocab_size <= 65536, f"model.vocab_size = {self.vocab_size}: tokens are 16 bit, at most 65,536")
        _require(
            self.d_inner % self.headdim == 0,
            f"model.expand * model.d_model = {self.d_inner} is no multiple of model.headdim = {self.headdim}",
        )
        _require(
            self.heads % self.ngroups == 0,
            f"model.ngroups = {self.ngroups} does not divide the {self.heads} heads",
        )
        _require(
            math.isfinite(self.mlp_mult) and self.d_intermediate >= 1,
            f"model.mlp_mult = {self.mlp_mult}: the MLP would have no hidden units; give it a positive number",
        )
        _require(self.cap > 0, f"model.cap = {self.cap}: must be positive; model.softcap = off takes the cap away")
        _require(
            self.unet or not self.self_skip,
            "model.self_skip needs model.unet: without U-Net skips there is no first decoder skip",
        )


@dataclass(frozen=True)
class Jepa:
    """The training-only objective on latents (spec section 2), and the weights of every loss term."""

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
            _require(getattr(self, name) >= 0, f"jepa.{name} = {getattr(self, name)}: must not be negative")
        _require(
            self.ce_weight > 0 or self.active,
            "jepa.ce_weight, jepa.weight and jepa.sigreg_weight are all 0.0: nothing to train on; set one of them",
        )
        _require(
            self.rollout_steps >= 1,
            f"jepa.rollout_steps = {self.rollout_steps}: must be at least 1; jepa.weight = 0 takes it away",
        )
        _require(0 <= self.sigreg_ramp <= 1, f"jepa.sigreg_ramp = {self.sigreg_ramp}: must lie between 0 and 1")
        _require(
            0 <= self.sigreg_t_min < self.sigreg_t_max,
            f"jepa.sigreg_t_min = {self.sigreg_t_min}, t_max = {self.sigreg_t_max}: need 0 <= t_min < t_max",
        )
        _require(self.sigreg_knots >= 2, f"jepa.sigreg_knots = {self.sigreg_knots}: the integral needs at least 2")
        for name in ("sigreg_projections", "predictor_mult"):
            _require(getattr(self, name) >= 1, f"jepa.{name} = {getattr(self, name)}: must be at least 1")
        for name in ("sigreg_timesteps", "sigreg_samples"):
            _require(getattr(self, name) >= 0, f"jepa.{name} = {getattr(self, name)}: must be 0 (all) or more")
        _require(
            self.sigreg_samples == 0 or self.sigreg_pool != "timestep",
            f"jepa.sigreg_samples = {self.sigreg_samples} is for pooled SIGReg; per timestep use jepa.sigreg_timesteps",
        )
        _require(
            self.sigreg_timesteps == 0 or self.sigreg_pool == "timestep",
            f"jepa.sigreg_timesteps = {self.sigreg_timesteps} is for SIGReg per timestep; pooled use "
            "jepa.sigreg_samples",
        )


@dataclass(frozen=True)
class Quant:
    """The grids that weights are trained on and stored on (spec section 3)."""

    bits: Literal[2, 3, 4, 5, 6, 7, 8, 32] = 4
    """Bits of the integer grid for large matrices; 32: nothing at all is rounded, to compare with."""
    scale: Literal["absmax", "clip", "hessian"] = "absmax"
    """Scale of the integer grids: the largest magnitude fits; the one with the least squared error, the largest values
    clipped; or that error weighted by the mean square of each input."""
    group: int = 0
    """Columns of a row that share a scale on the integer grids; 0: the whole row."""
    budget_bytes: int = 0
    """Largest artifact, in bytes: each integer tensor's bits are chosen for it, 2 to 8, where they matter most; 0: all
    have `bits`."""
    budget_after: float = 0.5
    """Share of training after which the bits are chosen; training goes on with them."""
    widths: tuple[str, ...] = ()
    """Bits of single tensors, as `blocks.0.mixer.in_proj.weight=5`; what `budget_bytes` chose is kept here."""
    large: int = 4096
    """A matrix with at least this many values goes on the integer grid, a smaller one on FP8."""
    fp8_scale: Literal["row", "none"] = "row"
    """FP8 with a BF16 scale per row, or unscaled as in the submission."""
    embedding: Literal["fp8", "int4", "int5", "int6", "int7", "int8"] = "fp8"
    """Format of the embedding and the tie correction: FP8, or integers with `scale` and `group`."""
    vectors: Literal["bf16", "fp8", "fp8-row", "int8"] = "bf16"
    """Format of per-channel vectors: BF16, or scaled FP8 or INT8 by row; `fp8` is the submission's, unscaled, of skips
    and mixes alone."""
    qat_fraction: float = 1.0
    """Share of training, at its end, that sees the grids; 1: from the first step, 0: never (rounded after training)."""

    def __post_init__(self) -> None:
        _require(0 <= self.qat_fraction <= 1, f"quant.qat_fraction = {self.qat_fraction}: must lie between 0 and 1")
        _require(self.large >= 1, f"quant.large = {self.large}: must be at least 1")
        _require(0 <= self.group <= 65536, f"quant.group = {self.group}: 0 (a scale a row) to 65,536 columns")
        _require(self.budget_bytes >= 0, f"quant.budget_bytes = {self.budget_bytes}: must be 0 (none) or more")
        _require(0 <= self.budget_after <= 1, f"quant.budget_after = {self.budget_after}: must lie between 0 and 1")
        for item in self.widths:
            _require(
                re.fullmatch(r"[\w.]{1,200}=[2-8]", item) is not None,
                f"quant.widths: {item[:80]!r} is not of the form blocks.0.mixer.in_proj.weight=5, with 2 to 8 bits",
            )
        for name, count in Counter(item.rpartition("=")[0] for item in self.widths).items():
            _require(count == 1, f"quant.widths names the tensor {name!r} twice")
        for name in ("scale", "group", "budget_bytes", "widths", "fp8_scale", "embedding", "vectors"):
            value = getattr(self, name)
            _require(
                not self.exact or value == type(self).__dataclass_fields__[name].default,
                f"quant.bits = 32 rounds nothing, and quant.{name} = {value!r} has nothing to act on: leave it out",
            )

    @property
    def exact(self) -> bool:
        """Whether nothing is rounded."""
        return self.bits == 32

    @property
    def width_of(self) -> dict[str, int]:
        """`widths` as bits by the tensor's name."""
        return {name: int(bits) for name, _, bits in (item.rpartition("=") for item in self.widths)}


@dataclass(frozen=True)
class Optim:
    """Muon on matrices, AdamW on the rest, and the schedule (spec section 4)."""

    muon_lr: float = 0.02
    """Learning rate of Muon."""
    muon_momentum: float = 0.95
    """Momentum after its warm-up."""
    muon_momentum_start: float = 0.85
    """Momentum at the first step."""
    muon_momentum_steps: int = 500
    """Steps of the linear momentum warm-up."""
    newton_schulz_steps: int = 3
    """Newton-Schulz iterations."""
    muon_row_norm: bool = True
    """RMS-normalise each row of the Nesterov update before the iteration."""
    muon_weight_decay: float = 0.04
    """Decoupled weight decay of Muon."""
    adam_lr: float = 0.01
    """Learning rate of AdamW."""
    adam_beta1: float = 0.9
    """First-moment decay."""
    adam_beta2: float = 0.95
    """Second-moment decay."""
    adam_eps: float = 1e-8
    """Added to the root of the second moment."""
    adam_weight_decay: float = 0.05
    """Decoupled weight decay of AdamW; A_log, dt_bias and D never decay unless `decay_ssm`."""
    grad_clip: float = 1.0
    """Largest global gradient norm; 0: no clipping."""
    warmdown: float = 0.15
    """Share of the budget, at its end, over which the learning rate falls linearly to 0."""
    ghost_steps: int = 0
    """Ghost warm-up: this many steps prime the moments, then weights and data position go back."""
    ghost_keep_moments: bool = True
    """As published: the moments stay and Adam's step counters return to 0. Off: everything goes back."""
    decay_ssm: bool = False
    """The submission's defect 3, to measure it: decay A_log, dt_bias and D too."""
    train_conv: bool = True
    """Off is the submission's defect 1, to measure it: the convolutions are never trained and their gradients pile up
    in the clipping norm."""

    def __post_init__(self) -> None:
        for name in ("muon_lr", "adam_lr", "muon_weight_decay", "adam_weight_decay", "grad_clip"):
            _require(getattr(self, name) >= 0, f"optim.{name} = {getattr(self, name)}: must not be negative")
        for name in ("muon_momentum", "muon_momentum_start", "adam_beta1", "adam_beta2"):
            _require(0 <= getattr(self, name) < 1, f"optim.{name} = {getattr(self, name)}: must lie in [0, 1)")
        _require(0 <= self.warmdown <= 1, f"optim.warmdown = {self.warmdown}: must lie between 0 and 1")
        _require(self.adam_eps > 0, f"optim.adam_eps = {self.adam_eps}: must be positive")
        _require(
            self.newton_schulz_steps >= 1, f"optim.newton_schulz_steps = {self.newton_schulz_steps}: must be at least 1"
        )
        for name in ("ghost_steps", "muon_momentum_steps"):
            _require(getattr(self, name) >= 0, f"optim.{name} = {getattr(self, name)}: must not be negative")


@dataclass(frozen=True)
class Train:
    """Budget, batch, precision and logging."""

    steps: int = 0
    """Budget in optimizer steps; 0: no limit by steps."""
    seconds: float = 0.0
    """Budget in seconds of training; 0: no limit by time. With both, the first to be reached ends the run."""
    tokens_per_step: int = 524288
    """Tokens of one optimizer step, on all processes together."""
    tokens_per_micro: int = 65536
    """Tokens of one forward and backward pass on one process, at most; gradients accumulate until the step is done."""
    seed: int = 42
    """Seed of the weights, the data order and SIGReg's directions."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto: the GPU if there is one."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of activations and matrix products; auto: bf16 on GPU, fp32 on CPU."""
    masters: Literal["fp32", "bf16"] = "fp32"
    """Precision of the kept parts' master weights; bf16 is the submission's defect 2, to measure it."""
    carry_state: bool = False
    """Start each window with the state, detached, that the window before it in the text left (truncated
    back-propagation through time). Each row of a micro-batch then walks along its own stretch of the text; needs
    `data.shuffle` off."""
    compile: bool = False
    """Compile the model's blocks with torch.compile; on a CPU alone. (On a GPU their kernels are fused as it is.)"""
    graph: bool = True
    """On a GPU: capture the work of a micro-batch, and the grids, clip and update of a step, as CUDA graphs."""
    threads: int = 0
    """CPU threads; 0: PyTorch's choice."""
    skip_limit: int = 10
    """Steps whose loss or gradient is not a number that a run leaves out; one more ends it."""
    terms_every: int = 0
    """Steps between measurements of each loss term's own gradient norm; 0: never."""
    val_every: int = 0
    """Steps between validations; 0: only at the end."""
    val_tokens: int = 0
    """Targets of a periodic validation; 0: all (the final one is always whole)."""
    checkpoint_every: int = 0
    """Steps between checkpoints; 0: by time alone."""
    checkpoint_seconds: float = 300.0
    """Seconds between checkpoints; 0: by steps alone."""
    keep_checkpoints: int = 2
    """Newest checkpoints kept."""
    track: Literal["", "trackio", "wandb"] = ""
    """A dashboard that is shown the metrics beside metrics.jsonl; empty: none."""

    def __post_init__(self) -> None:
        _require(0 <= self.seed < 1 << 63, f"train.seed = {self.seed}: must lie in 0 … 2^63 − 1")
        for name in (
            "steps",
            "seconds",
            "threads",
            "skip_limit",
            "terms_every",
            "val_every",
            "val_tokens",
            "checkpoint_every",
            "checkpoint_seconds",
        ):
            _require(getattr(self, name) >= 0, f"train.{name} = {getattr(self, name)}: must not be negative")
        _require(
            self.steps > 0 or self.seconds > 0,
            f"train.steps = {self.steps} and train.seconds = {self.seconds}: no budget; set train.steps or "
            "train.seconds",
        )
        for name in ("tokens_per_micro", "tokens_per_step", "keep_checkpoints"):
            _require(getattr(self, name) >= 1, f"train.{name} = {getattr(self, name)}: must be at least 1")
        _require(
            self.tokens_per_step % self.tokens_per_micro == 0,
            f"train.tokens_per_step = {self.tokens_per_step} is no multiple of train.tokens_per_micro = "
            f"{self.tokens_per_micro}",
        )


@dataclass(frozen=True)
class Eval:
    """How the finished artifact is scored."""

    stride: int = 0
    """Stride of the sliding evaluation at the end of a run; 0: plain windows only."""
    sliding_tokens: int = 0
    """Targets of the sliding evaluation, which costs sequence / stride times the plain one; 0: all."""
    calibrate_tokens: int = 65536
    """Training tokens on which the temperature is found; 0: temperature 1."""
    tokens_per_batch: int = 16384
    """Tokens of one forward pass of an evaluation."""
    diagnostics_tokens: int = 65536
    """Validation tokens for the latent diagnostics; 0: none."""
    sample_tokens: int = 128
    """Tokens of each sample in the report."""
    prompts: tuple[str, ...] = ("The ", "In the beginning", "It is known that")
    """Prompts of the samples in the report."""

    def __post_init__(self) -> None:
        _require(self.stride >= 0, f"eval.stride = {self.stride}: 0 (plain windows only) or more")
        _require(self.tokens_per_batch >= 1, f"eval.tokens_per_batch = {self.tokens_per_batch}: must be at least 1")
        for name in ("sliding_tokens", "calibrate_tokens", "diagnostics_tokens", "sample_tokens"):
            _require(getattr(self, name) >= 0, f"eval.{name} = {getattr(self, name)}: must not be negative")


@dataclass(frozen=True)
class Run:
    """Everything that decides a run's result."""

    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    jepa: Jepa = field(default_factory=Jepa)
    quant: Quant = field(default_factory=Quant)
    optim: Optim = field(default_factory=Optim)
    train: Train = field(default_factory=lambda: Train(steps=100))
    eval: Eval = field(default_factory=Eval)

    def __post_init__(self) -> None:
        for room in dataclasses.fields(self):
            for name, value in vars(getattr(self, room.name)).items():
                _require(
                    not isinstance(value, float) or math.isfinite(value) or name == "seconds",
                    f"{room.name}.{name} = {value}: must be a finite number",
                )
        _require(
            self.train.tokens_per_micro % self.data.seq_len == 0,
            f"train.tokens_per_micro = {self.train.tokens_per_micro} is no multiple of data.seq_len = "
            f"{self.data.seq_len}",
        )
        _require(
            not (self.train.carry_state and self.data.shuffle),
            "train.carry_state = true with data.shuffle = true: windows in random order do not continue each other; "
            "set data.shuffle = false",
        )
        _require(
            self.eval.stride <= self.data.seq_len,
            f"eval.stride = {self.eval.stride} is longer than the window, data.seq_len = {self.data.seq_len}",
        )
        _require(
            self.data.tokenizer != "bytes" or self.model.vocab_size in (0, 256),
            f"model.vocab_size = {self.model.vocab_size}: byte mode has exactly 256 symbols",
        )
        _require(
            not (self.jepa.sigreg_weight > 0 and self.jepa.sigreg_pool == "timestep")
            or (self.jepa.sigreg_sample == "step" and self.train.tokens_per_step >= 2 * self.data.seq_len)
            or self.train.tokens_per_micro >= 2 * self.data.seq_len,
            f"train.tokens_per_micro = {self.train.tokens_per_micro}: SIGReg per timestep tests a sample across the "
            "windows of a micro-batch, and here that is one; give it more windows, or set jepa.sigreg_pool = positions",
        )
        _require(
            not (self.jepa.weight > 0 and self.jepa.rollout_steps >= self.data.seq_len),
            f"jepa.rollout_steps = {self.jepa.rollout_steps}: no target lies so far ahead in a window of {self.data.seq_len}",
        )


def to_dict(run: Run) -> dict[str, dict[str, Any]]:
    """`run` as plain nested dictionaries (tuples as lists), ready for TOML or JSON."""
    nested = dataclasses.asdict(run)
    return {
        room: {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
        for room, values in nested.items()
    }


def from_dict(values: Mapping[str, Any]) -> Run:
    """The `Run` that `values` describe; absent keys take their defaults.

    Raises `ConfigError` naming an unknown room or key, or a value of the wrong type.
    """
    rooms = _hints(Run)
    built: dict[str, Any] = {}
    for room, section in values.items():
        _require(room in rooms, f"unknown section [{room}]; there are {', '.join(rooms)}")
        _require(isinstance(section, Mapping), f"[{room}] must be a table of settings")
        built[room] = _build(rooms[room], room, section)
    return Run(**built)


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    """The types of the fields, evaluated once: a file is then read without anything being compiled."""
    return get_type_hints(cls)


def _build(cls: type, room: str, section: Mapping[str, Any]) -> Any:
    hints = _hints(cls)
    converted: dict[str, Any] = {}
    for key, value in section.items():
        _require(key in hints, f"unknown setting {room}.{' '.join(key.split())[:60]}")
        converted[key] = _convert(f"{room}.{key}", hints[key], value)
    return cls(**converted)


def _convert(name: str, hint: Any, value: Any) -> Any:
    """`value` as the type `hint`, or a `ConfigError`: a config file is data, never trusted to have the right types."""
    choices = getattr(hint, "__args__", ())
    if getattr(hint, "__origin__", None) is Literal:
        _require(
            any(value == choice and type(value) is type(choice) for choice in choices),
            f"{name} = {value!r}: use one of {', '.join(map(repr, choices))}",
        )
        return value
    if getattr(hint, "__origin__", None) is tuple:
        _require(
            isinstance(value, list | tuple) and all(isinstance(item, str) for item in value),
            f"{name} = {value!r}: must be a list of strings",
        )
        return tuple(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    _require(type(value) is hint, f"{name} = {value!r}: must be of type {hint.__name__}")
    return value


def with_settings(run: Run, settings: Mapping[str, Any]) -> Run:
    """`run` with dotted settings replaced, as in `{"jepa.weight": 0.0}`.

    Raises `ConfigError` for an unknown setting or a wrong value.
    """
    nested = to_dict(run)
    for dotted, value in settings.items():
        room, _, key = dotted.partition(".")
        _require(room in nested and key in nested[room], f"unknown setting {dotted}")
        nested[room][key] = value
    return from_dict(nested)
