"""Bit allocation: measuring what each tensor's bits are worth, choosing them for a budget, and keeping to it.

The damage of rounding a weight is ½ Σ F·(w − ŵ)²: the second-order rise of the loss in nats per token, with the
empirical Fisher information F in place of the Hessian's diagonal (LeCun et al. 1990 has the expansion, Dong et al. 2020
the use for choosing bits). F is the mean square of a token's gradient, found as N times that of the mean over N tokens:
at a minimum the tokens' gradients add up like independent numbers of mean 0.
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
from jepamba.progress import Progress
from jepamba.quant import MAX_BITS, MIN_BITS, IntQuantizer, QuantWeight
from jepamba.quant.budget import Option, allocate_bits
from jepamba.quant.entropy import entropy_bits
from jepamba.train.state import TrainState

BATCHES = 8
"""Micro-batches of training text on which the gradients are measured."""


def due(state: TrainState, progress: float) -> bool:
    """Whether the bits are to be chosen now, at this share of the budget."""
    quant = state.run.quant
    trained_on = quant.qat_fraction > 0 and progress >= max(quant.budget_after, 1.0 - quant.qat_fraction)
    return quant.budget_bytes > 0 and not state.model.quant.bit_allocation and trained_on


def check(state: TrainState) -> None:
    """Raise `UserError` if not even the fewest bits can keep to the budget, as far as fresh weights can tell, and
    `ConfigError` if there is nothing whose bits could be chosen."""
    budget, weights = state.run.quant.budget_bytes, adjustable(state)
    if budget > 0 and not weights:
        raise ConfigError(
            f"quant.budget_bytes = {budget:,}: there are no bits to choose, since no weight with an integer quantizer "
            f"has quant.large = {state.run.quant.large:,} values; lower quant.large, or set quant.budget_bytes = 0"
        )
    if budget > 0:
        matrices = sum(_cost(weight, MIN_BITS)[0] for weight in weights.values())
        least = matrices + len(lzma.compress(state.corpus.tokenizer.serialize(), preset=9))
        if least > budget:
            raise UserError(
                f"quant.budget_bytes = {budget:,}: with {MIN_BITS} bits for every matrix, these and the tokenizer "
                f"alone take about {least:,.0f} bytes; give it more, or make the model smaller"
            )


def choose(state: TrainState, progress: float) -> str:
    """Choose the bits for the budget and put them into the model; one sentence for the log.

    Entropy says what a bit adds or saves; what the artifact takes beside that, the codec's own gains included, is
    found by packing it as it is now.
    """
    budget, options = state.run.quant.budget_bytes, measure(state, progress)
    with tempfile.TemporaryDirectory() as folder:
        size = _pack(state, Path(folder, "artifact.jepa"))
    now = _bits(state)
    spent = sum(option.bytes for name, given in options.items() for option in given if option.bits == now[name])
    bits = allocate_bits(options, budget - (size - spent))
    state.model.set_bit_allocation(bits)
    return f"bits chosen for {budget:,} bytes: {_listed(bits)}"


def fit(state: TrainState, path: Path) -> list[str]:
    """Write the artifact to `path`, with fewer bits than were trained where it would exceed the budget otherwise.

    Sentences for the log, where there is something to say. Without a budget nothing is done.
    """
    budget, said = state.run.quant.budget_bytes, list[str]()
    if budget == 0:
        return said
    if not state.model.quant.bit_allocation:
        said.append(choose(state, 1.0))
    trained = now = _bits(state)
    options: dict[str, list[Option]] = {}
    while (size := _pack(state, path)) > budget:
        options = options or measure(state, 1.0)
        fewer = {name: [option for option in options[name] if option.bits <= most] for name, most in now.items()}
        spent = sum(given[-1].bytes for given in fewer.values())
        bits = allocate_bits(fewer, spent - 1.05 * (size - budget))
        if bits == now:
            said.append(f"no fewer bits are left to take: the artifact has {size:,} bytes, more than {budget:,}")
            break
        state.model.set_bit_allocation(bits)
        now = bits
    lowered = {name: number for name, number in now.items() if number < trained[name]}
    if lowered:
        said.append(f"to keep to {budget:,} bytes, bits were lowered after training: {_listed(lowered)}")
    return said


def adjustable(state: TrainState) -> dict[str, QuantWeight]:
    """The weights whose bits can be chosen: those with an integer quantizer and at least `quant.large` values."""
    return {
        name: weight
        for name, weight in state.model.weights().items()
        if isinstance(weight.quantizer, IntQuantizer) and weight.master.numel() >= state.run.quant.large
    }


def measure(state: TrainState, progress: float) -> dict[str, list[Option]]:
    """What every number of bits, in rising order, would cost every adjustable weight as it is now."""
    weights = adjustable(state)
    options: dict[str, list[Option]] = {name: [] for name in weights}
    for name, information in fisher(state, progress, list(weights)).items():
        for bits in range(MIN_BITS, MAX_BITS + 1):
            size, error = _cost(weights[name], bits)
            options[name].append(Option(bits, size, 0.5 * float((information * error.square()).sum())))
    return options


def fisher(state: TrainState, progress: float, names: Sequence[str]) -> dict[str, Tensor]:
    """The empirical Fisher information of the cross-entropy of a token, for every value of the named weights, from
    `BATCHES` micro-batches. The data position is put back, and no gradient is kept.
    """
    run, device, position = state.run, state.device, state.loader.state()
    state.set_training_mode(progress)
    weights = state.model.weights()
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


def _cost(weight: QuantWeight, bits: int) -> tuple[float, Tensor]:
    """Bytes of a weight with so many bits, about, and the error of each of its values then."""
    value, quantizer = weight.master.detach().float(), weight.quantizer
    assert isinstance(quantizer, IntQuantizer)
    quantizer = replace(quantizer, bits=bits)
    streams = quantizer.encode(value, weight.input_power)
    return entropy_bits(streams) / 8, quantizer.decode(streams, tuple(value.shape)) - value


def _bits(state: TrainState) -> dict[str, int]:
    quantizers = {name: weight.quantizer for name, weight in adjustable(state).items()}
    return {name: quantizer.bits for name, quantizer in quantizers.items() if isinstance(quantizer, IntQuantizer)}


def _pack(state: TrainState, path: Path) -> int:
    with Progress("packing, for the budget"):
        return save_artifact(path, state.model, state.run, state.corpus.tokenizer)


def _listed(bits: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {number}" for name, number in bits.items())
