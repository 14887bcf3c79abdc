"""The state of training: weights, optimizers, data position, counters."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from jepamba.config import BUDGETS, ConfigError, Run
from jepamba.data import Batch, BatchLayout, Corpus, Loader, Prefetcher
from jepamba.distributed import SINGLE_PROCESS, World
from jepamba.errors import UserError, one_line
from jepamba.jepa import JepaHeads, TargetEncoder
from jepamba.model import LanguageModel
from jepamba.optim import Optimizers
from jepamba.train.consistency import corpus_fingerprint
from jepamba.train.device import DeviceConfig


@dataclass
class Counters:
    """How far a run has got."""

    step: int = 0
    """Steps taken, skipped ones included."""
    seconds: float = 0.0
    """Seconds of training, without validations and the choice of bits."""
    tokens: int = 0
    """Target tokens trained on."""
    bytes: int = 0
    """Bytes of the original text of those targets; see `Tokens.original_per_decoded`."""
    skipped: int = 0
    """Steps whose update was skipped because the loss or the gradient was not finite, ghost steps included."""
    bit_choices: int = 0
    """How often the bits were chosen for `quant.budget_bytes`."""

    validations: int = 0
    """Validations that were due so far and are done."""

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Counters:
        """Read the counters of a checkpoint. Raises `TypeError` or `ValueError` for impossible values."""
        counters = cls(**values)
        for name, start in asdict(cls()).items():
            value = getattr(counters, name)
            if type(value) is not type(start) or not 0 <= value < 2**63:
                raise ValueError(f"counters.{name} = {str(value)[:40]}")
        return counters


class TrainState:
    """Model, training-only heads, optimizers, loader and counters of one run, equal on all ranks.

    Raises:
        ConfigError: for settings that the dial has not chosen.
        UserError: if a step has fewer windows than there are ranks.
    """

    def __init__(self, run: Run, corpus: Corpus, device_config: DeviceConfig, world: World = SINGLE_PROCESS) -> None:
        self.run, self.corpus, self.world = run, corpus, world
        self.device_config, self.device = device_config, device_config.device
        self.corpus_fingerprint = corpus_fingerprint(corpus)
        """A resumed run must have the same."""
        if run.train.dial:
            raise ConfigError(
                f"train.dial: {', '.join(run.train.dial)} are not chosen yet; `jepamba train` chooses them"
            )
        seq_len = run.data.seq_len
        self.layout = BatchLayout.of(
            run.train.tokens_per_step // seq_len, run.train.tokens_per_micro // seq_len, world.world_size
        )
        """Which windows of a step belong to which micro-batch of which rank."""
        # Initialized on the CPU: the same seed gives the same weights on every device.
        torch.manual_seed(run.train.seed)
        self.model = LanguageModel(run.model, run.quant)
        self.heads = JepaHeads(run.jepa, run.model.d_model, world) if run.jepa.active else None
        self.modules = nn.ModuleDict({"model": self.model})
        if self.heads is not None:
            self.modules["heads"] = self.heads
        self.modules.to(self.device)
        # The heads stay in fp32: they are plain modules without master weights.
        self.model.to(torch.bfloat16 if run.train.masters == "bf16" else torch.float32)
        self.target_encoder: TargetEncoder | None = None
        """With `jepa.target_ema`, what computes the prediction targets."""
        if self.heads is not None and run.jepa.target_ema > 0:
            self.target_encoder = TargetEncoder(run.jepa, self.model, self.heads)
        self.optimizers = Optimizers.build(
            self.modules.named_parameters(), run.optim, self.device, world, device_config.dtype
        )
        data = run.data
        loader = Loader(corpus.train, data.seq_len, run.train.seed, data.shuffle, data.reset)
        self.loader = Prefetcher(loader, pin=self.device.type == "cuda")
        self.counters = Counters()
        self.notes: dict[str, Any] = {}
        """JSON-ready notes for the artifact."""
        self.latent_factor = 1.0
        """Common factor of the weights of the latent terms, which `jepa.balance` sets."""

    def budget_fraction(self) -> float:
        """The fraction of the budget that is spent: the largest of the fractions of steps, seconds and tokens."""
        limits: dict[str, float] = {counter: getattr(self.run.train, name) for name, counter in BUDGETS.items()}
        return max(float(getattr(self.counters, counter) / limit) for counter, limit in limits.items() if limit > 0)

    def validations_due(self) -> int:
        """The number of validations that `train.val_every` asks for up to now."""
        every = self.run.train.val_every
        if every >= 1:
            return int(self.counters.step // every)
        # The summand: ten times a tenth is ten tenths, also when rounded.
        return int(self.budget_fraction() / every + 1e-9) if every > 0 else 0

    def set_training_mode(self, budget_fraction: float) -> None:
        """Set training mode, and fake-quantize the weights over the last `quant.qat_fraction` of the budget."""
        fraction = self.run.quant.qat_fraction
        fake_quantized = fraction > 0 and budget_fraction >= 1.0 - fraction
        # Walking the modules takes half a millisecond, in which a GPU waits.
        if not self.model.training:
            self.model.train()
        if self.model.fake_quantized != fake_quantized:
            self.model.set_fake_quantization(fake_quantized)

    def next_windows(self) -> Batch:
        """This rank's windows of the next step, those of its first micro-batch first."""
        return self.loader.next(self.layout.windows, self.layout.of_rank(self.world.rank))

    def peek_windows(self) -> Batch:
        """The windows that `next_windows` will return."""
        return self.loader.peek(self.layout.windows, self.layout.of_rank(self.world.rank))

    def parameters(self) -> list[nn.Parameter]:
        """Every parameter, kept and training-only."""
        return list(self.modules.parameters())

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of a checkpoint, by name."""
        weights = {f"weights/{name}": value for name, value in self.modules.state_dict().items()}
        optimizers = {f"optim/{name}": value for name, value in self.optimizers.state().items()}
        average = {} if self.target_encoder is None else self.target_encoder.state_dict()
        target = {f"target/{name}": value for name, value in average.items()}
        return weights | optimizers | target | {"rng/cpu": torch.get_rng_state()}

    def metadata(self) -> dict[str, Any]:
        """The rest of a checkpoint, as JSON: counters, data position, corpus fingerprint, bits, latent factor."""
        return {
            "counters": asdict(self.counters),
            "loader": self.loader.state(),
            "data": self.corpus_fingerprint,
            "bit_allocation": self.model.quant.bits_by_name,
            "latent_factor": self.latent_factor,
        }

    def restore(self, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        """Continue from a checkpoint. Raises `UserError` if its data or its shapes differ from this run's."""
        self._check_data(metadata)
        sections: dict[str, dict[str, Tensor]] = {name: {} for name in ("weights", "optim", "target", "rng")}
        try:
            for name, value in tensors.items():
                section, _, rest = name.partition("/")
                sections[section][rest] = value
            counters = Counters.from_json(metadata["counters"])
            # A checkpoint of earlier code lacks it.
            latent_factor = metadata.get("latent_factor", 1.0)
            if type(latent_factor) is not float or not 0 < latent_factor < math.inf:
                raise ValueError(f"latent_factor = {str(latent_factor)[:40]}")
            self.model.set_bit_allocation(metadata["bit_allocation"])
            self._check_shapes(sections["weights"])
            self.modules.load_state_dict(sections["weights"])
            self.optimizers.restore(sections["optim"])
            if self.target_encoder is not None:
                self.target_encoder.load_state_dict(sections["target"])
            torch.set_rng_state(sections["rng"]["cpu"])
            self.loader.restore(metadata["loader"])
        except (KeyError, TypeError, RuntimeError, ValueError) as error:
            reason = one_line(error)
            raise UserError(f"the checkpoint does not fit this run's config: {reason}") from None
        self.counters, self.latent_factor = counters, latent_factor

    def _check_shapes(self, weights: dict[str, Tensor]) -> None:
        """Raise `ValueError` if the settings give other weights than a checkpoint has."""
        expected = self.modules.state_dict()
        for name in sorted(expected.keys() | weights.keys()):
            here, there = (tuple(found[name].shape) if name in found else "not there" for found in (expected, weights))
            if here != there:
                raise ValueError(
                    f"{name} is {there} in the checkpoint and {here} by config.toml; put back the [model] and [jepa] "
                    "that the run began with"
                )

    def _check_data(self, metadata: dict[str, Any]) -> None:
        """Raise `UserError` if the corpus fingerprint differs from the checkpoint's."""
        before = metadata.get("data")
        if not isinstance(before, dict) or "counters" not in metadata:
            raise UserError("the checkpoint has no corpus fingerprint or no counters; an older version wrote it")
        for name, here in self.corpus_fingerprint.items():
            there = before.get(name)
            if there != here:
                figures = f" ({here:,}, then {there:,})" if isinstance(here, int) and isinstance(there, int) else ""
                raise UserError(
                    f"the {name} is not what this run started with{figures}: put the files back, or say where they are "
                    "(data.train, data.val, data.tokenizer)"
                )
