"""One optimizer step: accumulate gradients, all-reduce, clip, check, update.

Legend: S samples that SIGReg tests separately, K its knots, M its directions.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from jepamba.config.jepa import BALANCE_EVERY
from jepamba.data import Batch
from jepamba.distributed import wait_time_limit
from jepamba.errors import UserError
from jepamba.jepa import NO_LATENT_WEIGHTS, LatentWeights, LossTerms, latent_weights, sigreg_sums, weighted_terms
from jepamba.ops.compile_only import can_compile_ahead
from jepamba.ops.cuda_graph import CUDAGraph
from jepamba.ops.dispatch import use_triton
from jepamba.optim import learning_rate_scale, muon_momentum
from jepamba.train.compile_ahead import compile_kernels
from jepamba.train.cuda_graph import GraphedMicrobatch
from jepamba.train.measure import balance_latent_terms
from jepamba.train.microbatch import MicroBatch, MicroBatches, loss_terms
from jepamba.train.state import TrainState


class NotFiniteError(UserError):
    """The loss or the gradient of a step was not finite, and its update was skipped."""


class Trainer:
    """Takes training steps on `state`.

    `_forward_backward`, `_add_sigreg_sums` and `_clip_gradients` do the work. The attributes of the same names without
    the underscore, and `update`, run it, on a GPU as CUDA graphs. Steps with and without latent terms have graphs of
    their own.
    """

    def __init__(self, state: TrainState) -> None:
        self.state = state
        run, device = state.run, state.device
        self.loss_sums = torch.zeros(len(LossTerms._fields), device=device)
        """The sums of the step's loss terms so far, in the order of `LossTerms`."""
        self.grad_norm = torch.zeros(1, device=device)
        """The norm of all gradients before clipping."""
        self.sigreg_sums_SK2M: Tensor | None = None
        """With `sigreg_sample = "step"`: SIGReg's sums of cosines and sines over the whole step."""
        jepa = run.jepa
        if state.heads is not None and jepa.sigreg_weight > 0 and jepa.sigreg_sample == "step":
            seq_len = run.data.seq_len
            samples = min(jepa.sigreg_timesteps or seq_len, seq_len) if jepa.sigreg_pool == "timestep" else 1
            shape = (samples, jepa.sigreg_knots, 2, jepa.sigreg_projections)
            self.sigreg_sums_SK2M = torch.zeros(shape, device=device)

        # Walking the modules for them in each step would take time in which a GPU waits.
        self.parameters, self.buffers = state.parameters(), list(state.modules.buffers())
        self.graphs = device.type == "cuda" and run.train.graph
        pool = torch.cuda.graph_pool_handle() if self.graphs else None
        self.forward_backward = GraphedMicrobatch(self._forward_backward, device, self.graphs, pool)
        self.add_sigreg_sums = GraphedMicrobatch(self._add_sigreg_sums, device, self.graphs, pool)
        self.clip_gradients = CUDAGraph(self._clip_gradients, self.graphs)
        self.update = CUDAGraph(state.optimizers.step, self.graphs)
        self.weight_cache = state.model.cached_weights(state.device_config.dtype)
        """The weights that the passes of a step use, computed once a step."""
        self._compute_weights = CUDAGraph(self.weight_cache.compute, self.graphs)
        trained = [
            leaf for p, leaf in zip(state.model.parameters(), self.weight_cache.leaves, strict=True) if p.requires_grad
        ]
        self.leaves = [*trained, *(state.heads.parameters() if state.heads is not None else [])]
        """The tensors with respect to which the passes take gradients."""
        self._compiled = False
        self._prepared: MicroBatches | None = None
        """The micro-batches of the next step."""

    def train_step(self, budget_fraction: float) -> dict[str, float]:
        """Train on the next `tokens_per_step` tokens. All ranks must call it.

        Arguments:
            budget_fraction: the fraction of the budget that is spent, from 0 to 1.

        Returns:
            The record for the log. Losses are means over the step on all ranks, `ce` in nats per token.

        Raises:
            NotFiniteError: on all ranks, if the loss or its gradient is not finite. Then only the counters and the data
                position have changed.
        """
        state, run, world = self.state, self.state.run, self.state.world
        lr_scale = learning_rate_scale(run.optim, budget_fraction)
        momentum = muon_momentum(run.optim, state.counters.step)
        state.set_training_mode(budget_fraction)
        self._compile_kernels(budget_fraction)
        # Forward passes change buffers (batch norm's statistics), which a skipped step must put back.
        buffers, position = [value.clone() for value in self.buffers], state.loader.state()
        if run.jepa.balance > 0 and state.counters.step % BALANCE_EVERY == 0:
            balance_latent_terms(state, budget_fraction)
        latent = latent_weights(run.jepa, budget_fraction, state.latent_factor)

        self.compute_weights()
        batch = state.next_windows()
        self.accumulate_gradients(self._micro_batches(batch, latent))
        world.all_reduce_each_([p.grad for p in self.parameters if p.grad is not None])
        # Queued before the host reads a result: it waits for the GPU only when nothing is left to queue before it.
        self.clip_gradients(latent is not None)
        if self.graphs:
            # The host has time now. After the result is read, the GPU waits for it.
            self._prepared = MicroBatches(state, state.peek_windows(), latent, step=state.counters.step + 1)
        losses, grad_norm, decoded_bytes = self._reduce(count_text_bytes(state, batch))
        weights = latent or NO_LATENT_WEIGHTS
        terms = losses["token"], losses["jepa"], losses["sigreg"], losses["vicreg"]
        loss = sum(weighted_terms(run.jepa, weights, *terms).values())

        state.counters.step += 1
        state.counters.tokens += state.layout.windows * run.data.seq_len
        state.counters.bytes += round(decoded_bytes * state.corpus.train.original_per_decoded)
        if not math.isfinite(loss + grad_norm):
            self._skip(buffers)
            raise NotFiniteError(
                f"step {state.counters.step}: the loss is {loss} and its gradient's norm {grad_norm}, on the "
                f"{state.layout.windows} windows from window {position['position']} of epoch {position['epoch']} on; "
                "the update was skipped"
            )
        state.optimizers.schedule(lr_scale, momentum)
        self.update(latent is not None)
        if state.target_encoder is not None and state.heads is not None and latent is not None:
            state.target_encoder.update(state.model, state.heads, run.jepa.target_ema)
        return {
            "loss": loss,
            "ce": losses["ce"],
            "z_loss": losses["z_loss"],
            "jepa": losses["jepa"],
            "sigreg": losses["sigreg"],
            "vicreg": losses["vicreg"],
            "jepa_weight": weights.jepa,
            "lambda": weights.sigreg,
            "grad_norm": grad_norm,
            "lr_scale": lr_scale,
            "muon_lr": run.optim.muon_lr * lr_scale,
            "adam_lr": run.optim.adam_lr * lr_scale,
            "muon_momentum": momentum,
        }

    def _compile_kernels(self, budget_fraction: float) -> None:
        """Before the first step on a GPU, compile its kernels in parallel."""
        if not self._compiled and use_triton(self.loss_sums) and can_compile_ahead():
            latent = latent_weights(self.state.run.jepa, budget_fraction)
            compile_kernels(self.state, self.weight_cache, latent, self.sigreg_sums_SK2M)
        self._compiled = True

    def compute_weights(self) -> None:
        """Compute the weights of the step's passes: cast them, and fake-quantize them if this is switched on.

        The computation depends on whether they are fake-quantized and to how many bits.
        """
        self._compute_weights((self.state.model.fake_quantized, self.state.model.quant.bit_allocation))

    def _micro_batches(self, batch: Batch, latent: LatentWeights | None) -> MicroBatches:
        """The micro-batches of `batch`, which the step before may have prepared."""
        prepared = self._prepared
        if prepared is None or prepared.batch is not batch or (prepared.latent is None) != (latent is None):
            return MicroBatches(self.state, batch, latent)
        prepared.latent = latent
        return prepared

    def accumulate_gradients(self, micro_batches: MicroBatches) -> None:
        """Run every micro-batch of this rank's windows forward and backward.

        Without latent terms the heads have no gradients, not zeros, so that the optimizers leave them as they are.
        """
        self.loss_sums.zero_()
        if micro_batches.latent is None and self.state.heads is not None:
            self.state.heads.zero_grad(set_to_none=True)
        with self.weight_cache:
            if micro_batches.latent is not None and self.sigreg_sums_SK2M is not None:
                self._sum_sigreg_sample(micro_batches, self.sigreg_sums_SK2M)
            for micro in micro_batches:
                self.forward_backward(micro)

    def _forward_backward(self, micro: MicroBatch) -> None:
        terms = loss_terms(self.state, micro, self.sigreg_sums_SK2M)
        add_gradients(terms.total, self.leaves)
        self.loss_sums += torch.stack([term.detach().float() for term in terms])

    def _clip_gradients(self) -> None:
        """Scale all gradients so that their norm is at most `optim.grad_clip`."""
        limit = self.state.run.optim.grad_clip
        self.grad_norm.copy_(torch.nn.utils.clip_grad_norm_(self.parameters, limit if limit > 0 else float("inf")))

    def _reduce(self, decoded_bytes: int) -> tuple[dict[str, float], float, int]:
        """The step's loss terms over all ranks by name, the gradient norm, and the decoded bytes of all ranks.

        The host waits here for the device.
        """
        world, sums = self.state.world, self.loss_sums.double()
        # Every rank has SIGReg and VICReg of the sample of all ranks, so the sum counts them `world_size` times.
        for name in ("sigreg", "vicreg"):
            sums[LossTerms._fields.index(name)] /= world.world_size
        summed = world.all_reduce_(torch.cat([sums, sums.new_full((1,), float(decoded_bytes))]))
        with wait_time_limit(self.graphs and world.world_size > 1):
            *losses, all_bytes, grad_norm = torch.cat([summed, self.grad_norm.double()]).tolist()
        return dict(zip(LossTerms._fields, losses, strict=True)), grad_norm, int(all_bytes)

    def _skip(self, buffers: Sequence[Tensor]) -> None:
        """Count a skipped step and restore the buffers."""
        state = self.state
        state.counters.skipped += 1
        state.modules.zero_grad(set_to_none=False)
        for value, before in zip(self.buffers, buffers, strict=True):
            value.copy_(before)

    def _sum_sigreg_sample(self, micro_batches: MicroBatches, sums_SK2M: Tensor) -> None:
        """Sum SIGReg's cosines and sines over all micro-batches of all ranks, in forward passes without gradients."""
        sums_SK2M.zero_()
        for micro in micro_batches:
            self.add_sigreg_sums(micro)
        self.state.world.all_reduce_(sums_SK2M)

    @torch.no_grad()
    def _add_sigreg_sums(self, micro: MicroBatch) -> None:
        state = self.state
        assert self.sigreg_sums_SK2M is not None
        assert state.heads is not None
        assert micro.projections is not None
        with state.device_config.autocast():
            found, _ = state.model.activations(micro.tokens_BT, micro.reset_BT)
            z_BTE = state.heads.latents(found)
        self.sigreg_sums_SK2M += sigreg_sums(z_BTE, state.run.jepa, micro.projections)

    def release(self) -> None:
        """Free all graphs and their memory after the last step."""
        self._prepared = None
        for graph in (self.clip_gradients, self.update, self._compute_weights):
            graph.release()
        self.forward_backward.release()
        self.add_sigreg_sums.release()


def ghost_warmup(trainer: Trainer, note_skip: Callable[[str], None]) -> None:
    """Take `optim.ghost_steps` steps that initialize the optimizers' moments; restore all else but the count of skipped
    steps. `note_skip` receives a sentence for each skipped step.
    """
    state = trainer.state
    tensors = {name: value.clone() for name, value in state.tensors().items()}
    metadata = copy.deepcopy(state.metadata())
    for _ in range(state.run.optim.ghost_steps):
        try:
            trainer.train_step(0.0)
        except NotFiniteError as error:
            note_skip(f"ghost {error}")
    moments = {name: value.clone() for name, value in state.optimizers.state().items()}
    metadata["counters"]["skipped"] = state.counters.skipped
    state.modules.zero_grad(set_to_none=False)
    state.restore(tensors, metadata)
    if state.run.optim.ghost_keep_moments:
        state.optimizers.restore(moments)
        state.optimizers.reset_adam_steps()


def add_gradients(loss: Tensor, leaves: list[Tensor]) -> None:
    """Add the gradients of `loss` to the `leaves`' `.grad`, as `backward` does, but in few kernel launches."""
    sums, grads = list[Tensor](), list[Tensor]()
    for leaf, grad in zip(leaves, torch.autograd.grad(loss, leaves, allow_unused=True), strict=True):
        if grad is None:
            continue
        if leaf.grad is None:
            leaf.grad = grad.to(leaf.grad_dtype or grad.dtype, copy=True, memory_format=torch.contiguous_format)
        else:
            if grad.stride() != leaf.grad.stride():
                # A single pair of unequal strides makes _foreach_add_ add all pairs one by one.
                grad = torch.empty_like(leaf.grad, dtype=grad.dtype).copy_(grad)
            sums.append(leaf.grad)
            grads.append(grad)
    if sums:
        torch._foreach_add_(sums, grads)


def count_text_bytes(state: TrainState, batch: Batch) -> int:
    """The bytes of text that a batch's targets decode to."""
    previous, targets = batch.inputs_BT.flatten().numpy(), batch.targets_BT.flatten().numpy()
    return int(state.corpus.tokenizer.target_bytes(previous, targets).sum())
