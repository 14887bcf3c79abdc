"""One optimizer step: micro-batches, their gradients, the clip, the update."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from jepamba.data import Batch
from jepamba.errors import UserError
from jepamba.jepa import Terms, sigreg_lambda
from jepamba.optim import learning_rate_scale, muon_momentum
from jepamba.train.micro import MicroPass, inputs_of, terms_of
from jepamba.train.session import Session

WATCH_EVERY = 50
"""Steps between looks at how large each matrix's inputs are, where the grids weigh by it; each costs a forward pass."""


def training_step(micro: MicroPass, progress: float) -> dict[str, float]:
    """Train on the next `tokens_per_step` tokens, at this share of the budget; the record of what happened.

    Losses are means over the micro-batches, `ce` in nats per token. Moves the loader, the weights, the optimizers and
    the counters (but not the clock). Raises `UserError` before the update if the loss or its gradient is not finite.
    """
    session = micro.session
    run = session.run
    micro_batches = run.train.tokens_per_step // run.train.tokens_per_micro
    scale = learning_rate_scale(run.optim, progress)
    momentum = muon_momentum(run.optim, session.progress.step)
    lam = sigreg_lambda(run.jepa, progress)
    set_mode(session, progress)
    if run.quant.scale == "hessian" and session.progress.step % WATCH_EVERY == 0:
        watch(session)
    micro.sums.zero_()
    micro.settle()
    with session.model.settled():
        for index in range(micro_batches):
            batch = next_batch(session)
            micro(inputs_of(session, batch, lam, session.progress.step * micro_batches + index))
            session.progress.tokens += batch.targets_BT.numel()
            session.progress.bytes += text_bytes(session, batch)
    # Clipped before anything is read: a GPU's host must not wait with work still to hand out.
    micro.clip()
    *sums, grad_norm = torch.cat([micro.sums, micro.norm]).tolist()
    means = dict(zip(Terms._fields, sums, strict=True))
    if not math.isfinite(means["total"] + grad_norm):
        raise UserError(
            f"step {session.progress.step + 1}: the loss is {means['total']} and its gradient's norm {grad_norm}, the "
            "weights are as they were; lower optim.muon_lr or optim.adam_lr and start again"
        )
    session.optimizers.schedule(scale, momentum)
    micro.update()
    session.progress.step += 1
    return {
        "loss": means["total"],
        "ce": means["ce"],
        "z_loss": means["z_loss"],
        "jepa": means["jepa"],
        "sigreg": means["sigreg"],
        "lambda": lam,
        "grad_norm": grad_norm,
        "lr_scale": scale,
        "muon_lr": run.optim.muon_lr * scale,
        "adam_lr": run.optim.adam_lr * scale,
        "muon_momentum": momentum,
    }


def set_mode(session: Session, progress: float) -> None:
    """Training mode; the grids are seen over the last `qat_fraction` of the budget."""
    fraction = session.run.quant.qat_fraction
    session.model.train()
    session.model.set_quantized(fraction > 0 and progress >= 1.0 - fraction)


def next_batch(session: Session) -> Batch:
    """The next micro-batch of windows; what is carried into it is emptied where it continues nothing."""
    batch = session.loader.next(session.run.train.tokens_per_micro // session.run.data.sequence)
    if not batch.continues:
        session.carry(None)
    return batch


@torch.no_grad()
def watch(session: Session) -> None:
    """Let every matrix note how large its inputs are, on the batch that comes next; nothing else moves."""
    position, model = session.loader.state(), session.model
    inputs = inputs_of(session, next_batch(session), 0.0, 0).moved(session.place.device)
    session.loader.restore(position)
    model.watch_inputs(True)
    with session.place.autocast():
        model(inputs.tokens_BT, inputs.reset_BT)
    model.watch_inputs(False)


def text_bytes(session: Session, batch: Batch) -> int:
    """Bytes of text that the targets of a batch are."""
    previous, targets = batch.inputs_BT.flatten().numpy(), batch.targets_BT.flatten().numpy()
    return int(session.corpus.tokenizer.target_bytes(previous, targets).sum())


def term_gradients(session: Session, progress: float) -> dict[str, float]:
    """The gradient norm of each weighted loss term alone, over the kept parameters, on the batch that comes next.

    The data position is put back, and no gradient is kept: the run goes on as if nothing had been measured.
    """
    run, position = session.run, session.loader.state()
    set_mode(session, progress)
    lam = sigreg_lambda(run.jepa, progress)
    micro_batches = run.train.tokens_per_step // run.train.tokens_per_micro
    buffers = {name: value.clone() for name, value in session.modules.named_buffers()}
    inputs = inputs_of(session, next_batch(session), lam, session.progress.step * micro_batches)
    terms, _ = terms_of(session, inputs.moved(session.place.device))
    session.loader.restore(position)
    weighted = {
        "grad_ce": run.jepa.ce_weight * terms.token,
        "grad_jepa": run.jepa.weight * terms.jepa,
        "grad_sigreg": lam * terms.sigreg,
    }
    norms = {name: _norm(term, list(session.model.parameters())) for name, term in weighted.items()}
    for name, value in session.modules.named_buffers():
        value.copy_(buffers[name])
    return norms


def _norm(term: Tensor, parameters: list[Tensor]) -> float:
    if not term.requires_grad:
        return 0.0
    grads = torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True)
    return float(sum(grad.double().square().sum().item() for grad in grads if grad is not None) ** 0.5)
