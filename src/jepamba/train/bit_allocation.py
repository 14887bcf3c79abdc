"""Bit allocation: measure what each number of bits costs in loss, choose bits for a budget in bytes, and keep it.

The loss increase by rounding a weight is ½ Σ F·(w − ŵ)²: the second-order rise of the loss in nats per token, with the
empirical Fisher information F in place of the Hessian's diagonal (LeCun et al. 1990 has the expansion, Dong et al. 2020
the use for choosing bits). F is the mean square of a token's gradient. It is estimated as N times the square of the
mean gradient over N tokens: at a minimum, the tokens' gradients are like independent numbers of mean 0.
"""

from __future__ import annotations

import lzma
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from jepamba.artifact import save_artifact
from jepamba.config import ConfigError
from jepamba.errors import UserError
from jepamba.gpu_turn import without_gpu_turn
from jepamba.progress import Progress
from jepamba.quant import MAX_BITS, MIN_BITS, IntQuantizer, QuantWeight
from jepamba.quant.budget import Option, allocate_bits
from jepamba.quant.entropy import entropy_bits
from jepamba.train.state import TrainState

BATCHES = 8
"""Micro-batches of training text on which the gradients are measured."""
SECOND_CHOICE = 2 / 3
"""Share of quantized training after which the bits are chosen again. The entropy of the weights falls with the learning
rate: with one choice, a run of 540 s ended 264 kB below its budget (docs/results/best-540s.md)."""
TEMPERATURE_BYTES = 16
"""Bytes kept free for the temperature, which is calibrated after the bits are chosen and is part of the header."""


def is_due(state: TrainState, budget_fraction: float) -> bool:
    """Whether the run must choose its bits now, when `budget_fraction` of its budget is spent.

    Bits are chosen when quantized training begins, and again after `SECOND_CHOICE` of it. Given bits are kept.
    """
    quant, choices = state.run.quant, state.counters.bit_choices
    if quant.budget_bytes == 0 or quant.qat_fraction == 0 or choices == 2:
        return False
    if choices == 0 and state.model.quant.bit_allocation:
        return False
    first = max(quant.budget_after, 1.0 - quant.qat_fraction)
    return budget_fraction >= first + choices * SECOND_CHOICE * (1.0 - first)


def check_budget(state: TrainState) -> None:
    """Check before training that `quant.budget_bytes` can be kept.

    Raises:
        UserError: if the fresh weights exceed the budget even with the fewest bits.
        ConfigError: if there is no weight whose bits could be chosen.
    """
    budget, weights = state.run.quant.budget_bytes, adjustable_weights(state)
    if budget > 0 and not weights:
        raise ConfigError(
            f"quant.budget_bytes = {budget:,}: there are no bits to choose, since no weight with an integer quantizer "
            f"has quant.large = {state.run.quant.large:,} values; lower quant.large, or set quant.budget_bytes = 0"
        )
    if budget > 0:
        smallest = 0.0
        for name, weight in state.model.quant_weights().items():
            quantizer = _with_bits(weight, MIN_BITS) if name in weights else weight.quantizer
            smallest += entropy_bits(quantizer.encode(weight.master.detach().float())) / 8
        smallest += len(lzma.compress(state.corpus.tokenizer.serialize(), preset=9))
        if smallest > budget:
            raise UserError(
                f"quant.budget_bytes = {budget:,}: with {MIN_BITS} bits for every weight whose bits can be chosen, "
                f"weights and tokenizer take about {smallest:,.0f} bytes; raise the budget, or make the model smaller"
            )


def choose_bits(state: TrainState, budget_fraction: float) -> str:
    """Choose the bits for the budget and set them in the model. Returns one sentence for the log.

    Entropy predicts what a bit adds or saves. The size of everything else, including what the codec saves beyond the
    entropy, is found by packing the present model.
    """
    budget, options = state.run.quant.budget_bytes, measure_options(state, budget_fraction)
    with tempfile.TemporaryDirectory() as folder:
        size = _pack(state, Path(folder, "artifact.jepa"))
    now = _bits(state)
    spent = sum(option.bytes for name, given in options.items() for option in given if option.bits == now[name])
    bits = allocate_bits(options, budget - (size - spent))
    state.model.set_bit_allocation(bits)
    return f"bits chosen for {budget:,} bytes: {_listed(bits)}"


def choose_same_bits(state: TrainState, budget_fraction: float) -> str:
    """Do `choose_bits` on rank 0, set the same bits on all ranks, and count the choice. All ranks must call it."""
    model = state.model
    message, chosen = state.world.on_rank_zero(lambda: (choose_bits(state, budget_fraction), model.quant.bits_by_name))
    if not state.world.is_rank_zero:
        model.set_bit_allocation(chosen)
    state.counters.bit_choices += 1
    return message


def pack_within_budget(state: TrainState, path: Path) -> list[str]:
    """Write the artifact to `path`, with fewer bits than in training if it would otherwise exceed the budget.

    Without a budget it does nothing. Returns sentences for the log.
    """
    budget, messages = state.run.quant.budget_bytes, list[str]()
    if budget == 0:
        return messages
    if not state.model.quant.bit_allocation:
        messages.append(choose_bits(state, 1.0))
    trained = now = _bits(state)
    options: dict[str, list[Option]] = {}
    while (size := _pack(state, path)) > budget:
        options = options or measure_options(state, 1.0)
        fewer = {name: [option for option in options[name] if option.bits <= bits] for name, bits in now.items()}
        spent = sum(given[-1].bytes for given in fewer.values())
        allocated = allocate_bits(fewer, spent - 1.05 * (size - budget))
        if allocated == now:
            messages.append(f"bits cannot be lowered further: the artifact has {size:,} bytes, more than {budget:,}")
            break
        state.model.set_bit_allocation(allocated)
        now = allocated
    lowered = {name: bits for name, bits in now.items() if bits < trained[name]}
    if lowered:
        messages.append(f"to keep to {budget:,} bytes, bits were lowered after training: {_listed(lowered)}")
    return messages


def adjustable_weights(state: TrainState) -> dict[str, QuantWeight]:
    """The weights whose bits can be chosen: those with an integer quantizer and at least `quant.large` values."""
    return {
        name: weight
        for name, weight in state.model.quant_weights().items()
        if isinstance(weight.quantizer, IntQuantizer) and weight.master.numel() >= state.run.quant.large
    }


def measure_options(state: TrainState, budget_fraction: float) -> dict[str, list[Option]]:
    """For every adjustable weight, the size and the loss increase of each number of bits, fewest bits first."""
    weights = adjustable_weights(state)
    options: dict[str, list[Option]] = {name: [] for name in weights}
    for name, information in fisher_information(state, budget_fraction, list(weights)).items():
        for bits in range(MIN_BITS, MAX_BITS + 1):
            size, error = _size_and_error(weights[name], bits)
            options[name].append(Option(bits, size, 0.5 * float((information * error.square()).sum())))
    return options


def fisher_information(state: TrainState, budget_fraction: float, names: Sequence[str]) -> dict[str, Tensor]:
    """The empirical Fisher information of a token's cross-entropy, for every value of the named weights.

    It is measured on the next `BATCHES` micro-batches. The data position is restored and no gradient is kept.
    """
    run, device, position = state.run, state.device, state.loader.state()
    state.set_training_mode(budget_fraction)
    weights = state.model.quant_weights()
    masters = {name: weights[name].master for name in names}
    sums = {name: torch.zeros_like(master, dtype=torch.float32) for name, master in masters.items()}
    for _ in range(BATCHES):
        batch = state.loader.next(run.train.tokens_per_micro // run.data.seq_len)
        with state.device_config.autocast():
            reset_BT = batch.reset_BT.to(device) if run.data.reset else None
            h_BTD, _ = state.model(batch.inputs_BT.to(device), reset_BT)
            loss = state.model.loss(h_BTD, batch.targets_BT.to(device), run.jepa.z_loss).total
        grads = torch.autograd.grad(loss, list(masters.values()))
        for total, grad in zip(sums.values(), grads, strict=True):
            total.add_(grad.float().square(), alpha=batch.targets_BT.numel() / BATCHES)
    state.loader.restore(position)
    return sums


def _size_and_error(weight: QuantWeight, bits: int) -> tuple[float, Tensor]:
    """The entropy of a weight in bytes when it has `bits` bits, and the rounding error of each value."""
    value, quantizer = weight.master.detach().float(), _with_bits(weight, bits)
    streams = quantizer.encode(value)
    return entropy_bits(streams) / 8, quantizer.decode(streams, tuple(value.shape)) - value


def _with_bits(weight: QuantWeight, bits: int) -> IntQuantizer:
    """The integer quantizer of `weight` with `bits` bits."""
    assert isinstance(weight.quantizer, IntQuantizer)
    return replace(weight.quantizer, bits=bits)


def _bits(state: TrainState) -> dict[str, int]:
    """The present bits of every adjustable weight."""
    quantizers = {name: weight.quantizer for name, weight in adjustable_weights(state).items()}
    return {name: quantizer.bits for name, quantizer in quantizers.items() if isinstance(quantizer, IntQuantizer)}


def _pack(state: TrainState, path: Path) -> int:
    """Write the artifact of the present model to `path`. Returns the bytes that it needs with any temperature."""
    with without_gpu_turn(), Progress("packing, for the budget"):
        return (
            save_artifact(path, state.model, state.run, state.corpus.tokenizer, extra=state.notes) + TEMPERATURE_BYTES
        )


def _listed(bits: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {number}" for name, number in bits.items())
