"""One optimizer step: micro-batches, their gradients, the clip, the update."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from jepamba.data import Batch
from jepamba.errors import UserError
from jepamba.jepa import Terms, sigreg_lambda
from jepamba.optim import learning_rate_scale, muon_momentum
from jepamba.train.inputs import StepInputs, sent
from jepamba.train.micro import MicroPass, terms_of
from jepamba.train.session import Session

WATCH_EVERY = 50
"""Steps between looks at how large each matrix's inputs are, where the grids weigh by it; each costs a forward pass."""


class NotFiniteError(UserError):
    """A step whose loss or gradient is not a number: its data is behind the run, its update was left out."""


def training_step(micro: MicroPass, progress: float) -> dict[str, float]:
    """Train on the next `tokens_per_step` tokens, at this share of the budget; the record of what happened.

    Losses are means over the step, on all ranks, `ce` in nats per token. Moves the loader, the weights, the optimizers
    and the counters (but not the clock), and is to be called by all ranks. Raises `NotFiniteError`, on all ranks, if
    the loss or its gradient is not finite: the step then counts, and all but the counters and the loader is as before.
    """
    session = micro.session
    run, ranks = session.run, session.ranks
    scale = learning_rate_scale(run.optim, progress)
    momentum = muon_momentum(run.optim, session.progress.step)
    lam = sigreg_lambda(run.jepa, progress)
    set_mode(session, progress)
    if run.quant.scale == "hessian" and session.progress.step % WATCH_EVERY == 0:
        watch(session)
    micro.sums.zero_()
    micro.settle()
    leave_piles_to_the_chief(session)
    # What a bad step does to these would outlive it.
    kept, position = {name: value.clone() for name, value in outliving(session).items()}, session.loader.state()
    batch = session.next_windows()
    with session.model.settled():
        micro(StepInputs(session, batch, lam))
    ranks.all_reduce_each_([p.grad for p in session.parameters() if p.grad is not None])
    # Clipped before anything is read: a GPU's host must not wait with work still to hand out.
    micro.clip()
    means, grad_norm, text = reduced(micro, text_bytes(session, batch))
    session.progress.tokens += session.batch_layout.windows * run.data.seq_len
    session.progress.bytes += text
    total = run.jepa.ce_weight * means["token"] + run.jepa.weight * means["jepa"] + lam * means["sigreg"]
    session.progress.step += 1
    if not math.isfinite(total + grad_norm):
        session.progress.skipped += 1
        undo(session, kept)
        raise NotFiniteError(
            f"step {session.progress.step}: the loss is {total} and its gradient's norm {grad_norm}, on the "
            f"{session.batch_layout.windows} windows from window {position['position']} of epoch {position['epoch']} "
            "on; no update was made"
        )
    session.optimizers.schedule(scale, momentum)
    micro.update()
    return {
        "loss": total,
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


def reduced(micro: MicroPass, text: int) -> tuple[dict[str, float], float, int]:
    """The step's loss terms by name, over all ranks; the gradient's norm; the bytes of all ranks' `text`."""
    ranks, wide = micro.session.ranks, micro.sums.double()
    # The statistic of a sample is known to every rank that has a part of it.
    wide[Terms._fields.index("sigreg")] /= ranks.world_size
    summed = ranks.all_reduce_(torch.cat([wide, wide.new_full((1,), float(text))]))
    *means, everything, norm = torch.cat([summed, micro.norm.double()]).tolist()
    return dict(zip(Terms._fields, means, strict=True)), norm, int(everything)


def outliving(session: Session) -> dict[str, Tensor]:
    """What a step's passes change and the next step starts from: batch norm's statistics, where there are any, and the
    gradients that nothing clears (`optim.train_conv` off)."""
    untrained = session.optimizers.groups.untrained
    piles = {f"grad/{name}": p.grad for name, p in untrained.items() if p.grad is not None}
    return dict(session.modules.named_buffers()) | piles


def undo(session: Session, kept: dict[str, Tensor]) -> None:
    """Leave nothing of a step that is not finite: what is `outliving` as it was `kept`, no other gradient, carried
    states empty."""
    session.modules.zero_grad(set_to_none=False)
    for name, value in outliving(session).items():
        # Not a pile that the first step began.
        if name in kept:
            value.copy_(kept[name])
    session.carry(None)


def leave_piles_to_the_chief(session: Session) -> None:
    """Gradients that nothing clears (`optim.train_conv` off) are summed over the ranks again with every step: what is
    there already must be there once."""
    if not session.ranks.is_rank_zero:
        for p in session.optimizers.groups.untrained.values():
            if p.grad is not None:
                p.grad.zero_()


@torch.no_grad()
def watch(session: Session) -> None:
    """Let every matrix note how large its inputs are, on the windows that come next; nothing else moves.

    On rank 0, and on as many windows as its micro-batches have when it is alone.
    """
    model, device = session.model, session.place.device
    if session.ranks.is_rank_zero:
        position = session.loader.state()
        batch = session.loader.next(session.run.train.tokens_per_micro // session.run.data.seq_len)
        session.loader.restore(position)
        model.watch_inputs(True)
        with session.place.autocast():
            model(sent(batch.inputs_BT, device), sent(batch.reset_BT, device) if session.run.data.reset else None)
        model.watch_inputs(False)
    session.ranks.broadcast_(model.buffers())


def text_bytes(session: Session, batch: Batch) -> int:
    """Bytes of text that the targets of a batch are."""
    previous, targets = batch.inputs_BT.flatten().numpy(), batch.targets_BT.flatten().numpy()
    return int(session.corpus.tokenizer.target_bytes(previous, targets).sum())


def term_gradients(session: Session, progress: float) -> dict[str, float]:
    """The gradient norm of each weighted loss term alone, over the kept parameters, on the first pass of the next step
    (a micro-batch on each rank).

    The data position stays, and no gradient is kept: the run goes on as if nothing had been measured.
    """
    run = session.run
    set_mode(session, progress)
    lam = sigreg_lambda(run.jepa, progress)
    buffers = {name: value.clone() for name, value in session.modules.named_buffers()}
    (inputs,) = StepInputs(session, session.peek_windows(), lam, passes=1)
    terms, _ = terms_of(session, inputs.mapped(lambda value: sent(value, session.place.device)))
    weighted = {
        "grad_ce": run.jepa.ce_weight * terms.token,
        "grad_jepa": run.jepa.weight * terms.jepa,
        "grad_sigreg": lam * terms.sigreg,
    }
    norms = {name: _norm(session, term) for name, term in weighted.items()}
    for name, value in session.modules.named_buffers():
        value.copy_(buffers[name])
    return norms


def _norm(session: Session, term: Tensor) -> float:
    """The norm of the term's gradient by the kept parameters, added up over the ranks."""
    if not term.requires_grad:
        return 0.0
    grads = torch.autograd.grad(term, list(session.model.parameters()), retain_graph=True, allow_unused=True)
    found = [grad for grad in grads if grad is not None]
    session.ranks.all_reduce_each_(found)
    return float(sum(grad.double().square().sum().item() for grad in found) ** 0.5)
