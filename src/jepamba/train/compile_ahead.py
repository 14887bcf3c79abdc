"""Compiles the kernels of a run before its first step, in parallel: one pass through all that will launch them."""

from __future__ import annotations

from itertools import islice

import torch
from torch import Tensor

from jepamba.distributed import local_world_size
from jepamba.evaluate.likelihood import target_nats
from jepamba.evaluate.score import scored_targets
from jepamba.evaluate.stored import stored
from jepamba.evaluate.windowed import windowed_latents
from jepamba.evaluate.windows import batch_tokens, plain_windows
from jepamba.jepa import LatentWeights, sigreg_sums
from jepamba.ops.compile_only import compile_only
from jepamba.optim import Muon
from jepamba.quant import CachedWeights
from jepamba.train.microbatch import MicroBatch, MicroBatches, loss_terms
from jepamba.train.state import TrainState


def compile_kernels(
    state: TrainState,
    weight_cache: CachedWeights,
    latent: LatentWeights | None,
    sigreg_sums_SK2M: Tensor | None,
) -> None:
    """Compile what the steps and validations of `state` launch. All ranks must call it.

    The passes of a step run on the windows of the next step, without running the kernels (`compile_only`), so what they
    compute is arbitrary. Weights, gradients, optimizers, data position, counters, buffers and random numbers stay as
    they are. `weight_cache` must be computed again.

    Arguments: as in `Trainer`; `latent`: the weights of the latent terms at the first step.
    """
    model, fake_quantized = state.model, state.model.fake_quantized
    buffers = [value.clone() for value in state.modules.buffers()]
    micro_batches = MicroBatches(state, state.peek_windows(), latent)
    # The sizes are part of what is compiled.
    sizes = {micro.windows: micro for micro in micro_batches}.values()
    with compile_only(local_world_size()):
        # Fake quantization may begin late in the run.
        for quantized in {fake_quantized, state.run.quant.qat_fraction > 0}:
            model.set_fake_quantization(quantized)
            weight_cache.compute()
        model.set_fake_quantization(fake_quantized)
        with weight_cache:
            trained = [
                _forward_backward(state, micro.to(state.device), weight_cache, sigreg_sums_SK2M) for micro in sizes
            ]
        _update(state.optimizers.muon, trained[0])
        if state.run.train.val_every > 0:
            _validate(state)
    for value, before in zip(state.modules.buffers(), buffers, strict=True):
        value.copy_(before)
    if state.device.type == "cuda":
        # The graphs use another stream, which cannot reuse this memory.
        torch.cuda.empty_cache()


def _forward_backward(
    state: TrainState, micro: MicroBatch, weight_cache: CachedWeights, sigreg_sums_SK2M: Tensor | None
) -> set[Tensor]:
    """As in `Trainer`, but no gradient is kept. Returns the parameters with a gradient."""
    if sigreg_sums_SK2M is not None and state.heads is not None and micro.projections is not None:
        with torch.no_grad(), state.device_config.autocast():
            found, _ = state.model.activations(micro.tokens_BT, micro.reset_BT)
            sigreg_sums(state.heads.latents(found), state.run.jepa, micro.projections)
    terms = loss_terms(state, micro, sigreg_sums_SK2M)
    heads = [] if state.heads is None else list(state.heads.parameters())
    parameters = [*weight_cache.masters, *heads]
    trained = [i for i, p in enumerate(parameters) if p.requires_grad]
    leaves = [*weight_cache.leaves, *heads]
    grads = torch.autograd.grad(terms.total, [leaves[i] for i in trained], allow_unused=True)
    return {parameters[i] for i, grad in zip(trained, grads, strict=True) if grad is not None}


def _update(muon: Muon, trained: set[Tensor]) -> None:
    """A step of Muon on tensors like its parameters. AdamW has no kernel in Triton."""
    parameters = list[Tensor]()
    for p in muon.param_groups[0]["params"]:
        parameters.append(torch.empty_like(p))
        parameters[-1].grad = torch.empty_like(p) if p in trained else None
    Muon(parameters, **muon.defaults, compute_dtype=muon.compute_dtype, world=muon.world).step()


def _validate(state: TrainState) -> None:
    """Score the first batch of the validation text, without counting its bytes."""
    run, text = state.run, state.corpus.val
    batch = batch_tokens(run.eval.tokens_per_batch, next(state.model.parameters()).device)
    rows = max(1, batch // run.data.seq_len)
    targets = scored_targets(state.model, text, run.data.seq_len, run.train.val_tokens)
    windows = islice(plain_windows(targets, run.data.seq_len), state.world.rank, None, state.world.world_size)
    with stored(state.model):
        for h_ND, targets_N in windowed_latents(state.model, text, islice(windows, rows), batch, run.data.reset):
            target_nats(state.model, h_ND, targets_N, (1.0,))
