"""Mixed widths: measuring what each tensor's bits are worth, choosing them for a budget, and keeping to it.

The damage of a width is ½ Σ F·(w − ŵ)²: the second-order rise of the loss in nats per token, with the empirical Fisher
information F in place of the Hessian's diagonal (LeCun et al. 1990 has the expansion, Dong et al. 2020 the use for
choosing widths). F is the mean square of a token's gradient, found as N times that of the mean over N tokens: at a
minimum the tokens' gradients add up like independent numbers of mean 0.
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
from jepamba.model.layers import Gridded
from jepamba.progress import Progress
from jepamba.quant import MAX_WIDTH, MIN_WIDTH, IntGrid
from jepamba.quant.budget import Option, choose_widths
from jepamba.quant.entropy import entropy_bits
from jepamba.train.state import TrainState

BATCHES = 8
"""Micro-batches of training text on which the gradients are measured."""


def due(session: TrainState, progress: float) -> bool:
    """Whether the widths are to be chosen now, at this share of the budget."""
    quant = session.run.quant
    trained_on = quant.qat_fraction > 0 and progress >= max(quant.budget_after, 1.0 - quant.qat_fraction)
    return quant.budget_bytes > 0 and not session.model.quant.widths and trained_on


def check(session: TrainState) -> None:
    """Raise `UserError` if not even the fewest bits can keep to the budget, as far as fresh weights can tell, and
    `ConfigError` if there is nothing whose bits could be chosen."""
    budget, places = session.run.quant.budget_bytes, adjustable(session)
    if budget > 0 and not places:
        raise ConfigError(
            f"quant.budget_bytes = {budget:,}: there are no bits to choose, since no parameter on an integer grid has "
            f"quant.large = {session.run.quant.large:,} values; lower quant.large, or set quant.budget_bytes = 0"
        )
    if budget > 0:
        matrices = sum(_cost(place, MIN_WIDTH)[0] for place in places.values())
        least = matrices + len(lzma.compress(session.corpus.tokenizer.serialize(), preset=9))
        if least > budget:
            raise UserError(
                f"quant.budget_bytes = {budget:,}: with {MIN_WIDTH} bits for every matrix, these and the tokenizer "
                f"alone take about {least:,.0f} bytes; give it more, or make the model smaller"
            )


def choose(session: TrainState, progress: float) -> str:
    """Choose the widths for the budget and put them into the model; one sentence for the log.

    Entropy says what a width adds or saves; what the artifact takes beside that, the codec's own gains included, is
    found by packing it as it is now.
    """
    budget, options = session.run.quant.budget_bytes, measure(session, progress)
    with tempfile.TemporaryDirectory() as folder:
        size = _pack(session, Path(folder, "artifact.jepa"))
    now = _widths(session)
    spent = sum(option.bytes for name, given in options.items() for option in given if option.width == now[name])
    widths = choose_widths(options, budget - (size - spent))
    session.model.set_widths(widths)
    return f"bits chosen for {budget:,} bytes: {_listed(widths)}"


def fit(session: TrainState, path: Path) -> list[str]:
    """Write the artifact to `path`, with fewer bits than were trained where it would exceed the budget otherwise.

    Sentences for the log, where there is something to say. Without a budget nothing is done.
    """
    budget, said = session.run.quant.budget_bytes, list[str]()
    if budget == 0:
        return said
    if not session.model.quant.widths:
        said.append(choose(session, 1.0))
    trained = now = _widths(session)
    options: dict[str, list[Option]] = {}
    while (size := _pack(session, path)) > budget:
        options = options or measure(session, 1.0)
        fewer = {name: [option for option in options[name] if option.width <= width] for name, width in now.items()}
        spent = sum(given[-1].bytes for given in fewer.values())
        widths = choose_widths(fewer, spent - 1.05 * (size - budget))
        if widths == now:
            said.append(f"no fewer bits are left to take: the artifact has {size:,} bytes, more than {budget:,}")
            break
        session.model.set_widths(widths)
        now = widths
    lowered = {name: width for name, width in now.items() if width < trained[name]}
    if lowered:
        said.append(f"to keep to {budget:,} bytes, bits were lowered after training: {_listed(lowered)}")
    return said


Place = tuple[Gridded, str]
"""The module that holds a parameter, and its name there."""


def adjustable(session: TrainState) -> dict[str, Place]:
    """The parameters whose widths can be chosen: those on an integer grid with at least `quant.large` values."""
    return {
        path: (module, name)
        for path, module, name in session.model.places()
        if isinstance(module.grids[name], IntGrid) and module.get_parameter(name).numel() >= session.run.quant.large
    }


def measure(session: TrainState, progress: float) -> dict[str, list[Option]]:
    """What every width, in rising order, would cost every adjustable parameter at the present weights."""
    places = adjustable(session)
    options: dict[str, list[Option]] = {path: [] for path in places}
    for path, information in fisher(session, progress, list(places)).items():
        for width in range(MIN_WIDTH, MAX_WIDTH + 1):
            size, error = _cost(places[path], width)
            options[path].append(Option(width, size, 0.5 * float((information * error.square()).sum())))
    return options


def fisher(session: TrainState, progress: float, names: Sequence[str]) -> dict[str, Tensor]:
    """The empirical Fisher information of the cross-entropy of a token, for every value of the named parameters, from
    `BATCHES` micro-batches. The data position is put back, and no gradient is kept.
    """
    run, device, position = session.run, session.device, session.loader.state()
    session.set_training_mode(progress)
    values = dict(session.model.named_parameters())
    sums = {name: torch.zeros_like(values[name], dtype=torch.float32) for name in names}
    for _ in range(BATCHES):
        batch = session.loader.next(run.train.tokens_per_micro // run.data.seq_len)
        with session.device_config.autocast():
            reset_BT = batch.reset_BT.to(device) if run.data.reset else None
            h_BTD, _ = session.model(batch.inputs_BT.to(device), reset_BT)
            loss = session.model.loss(h_BTD, batch.targets_BT.to(device), run.jepa.z_loss).total
        grads = torch.autograd.grad(loss, [values[name] for name in names])
        for total, grad in zip(sums.values(), grads, strict=True):
            total.add_(grad.float().square(), alpha=batch.targets_BT.numel() / BATCHES)
    session.loader.restore(position)
    return sums


def _cost(place: Place, width: int) -> tuple[float, Tensor]:
    """Bytes of a parameter on the grid of `width` bits, about, and the error of each of its values there."""
    module, name = place
    value, grid = module.get_parameter(name).detach().float(), module.grids[name]
    assert isinstance(grid, IntGrid)
    grid = replace(grid, width=width)
    streams = grid.encode(value, module.importance(name))
    return entropy_bits(streams) / 8, grid.decode(streams, tuple(value.shape)) - value


def _widths(session: TrainState) -> dict[str, int]:
    grids = {path: module.grids[name] for path, (module, name) in adjustable(session).items()}
    return {path: grid.width for path, grid in grids.items() if isinstance(grid, IntGrid)}


def _pack(session: TrainState, path: Path) -> int:
    with Progress("packing, for the budget"):
        return save_artifact(path, session.model, session.run, session.corpus.tokenizer)


def _listed(widths: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {width}" for name, width in widths.items())
