"""The loop of a run, from its first step to its finished folder: budget, validation, checkpoints, what goes wrong."""

from __future__ import annotations

import contextlib
import copy
import math
import signal
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from jepamba.config import Run
from jepamba.data import Corpus
from jepamba.distributed import SINGLE_PROCESS, World
from jepamba.errors import UserError
from jepamba.evaluate import StoppedError, score_plain
from jepamba.progress import Progress
from jepamba.train import widths
from jepamba.train.checkpoint import checkpoints, load_checkpoint
from jepamba.train.device import choose_device
from jepamba.train.finish import ARTIFACT, finish
from jepamba.train.measure import term_gradients
from jepamba.train.metrics import MetricsLog, NoLog
from jepamba.train.state import TrainState
from jepamba.train.step import NotFiniteError, Trainer
from jepamba.train.stop import StopRequest, leave
from jepamba.train.tracking import HURRY, track
from jepamba.train.writer import CheckpointWriter

METRICS, CHECKPOINTS = "metrics.jsonl", "checkpoints"
VAL_FIELDS = ("bpb", "bpb_decoded", "nats_per_token", "tokens", "bytes", "mode")


class Loop:
    """The loop around `Trainer.train_step`."""

    def __init__(self, run: Run, out: Path, text: Corpus, preset: str, ranks: World = SINGLE_PROCESS) -> None:
        self.run, self.out, self.preset, self.ranks = run, out, preset, ranks
        self.state = TrainState(run, text, choose_device(run.train), ranks)
        self.trainer = Trainer(self.state)
        self.metrics = MetricsLog(out / METRICS, track(run, out)) if ranks.is_rank_zero else NoLog(out / METRICS)
        self.writer = CheckpointWriter(out / CHECKPOINTS, run.train.keep_checkpoints, self.state.device)
        self.restored = False
        self.saved = -1
        """The step of the newest checkpoint, be it still being written."""
        self.validated = ""

    def restore(self) -> None:
        """Go back to the newest checkpoint and forget what was logged after it."""
        tensors: dict[str, Tensor] = {}

        def newest() -> dict[str, Any]:
            nonlocal tensors
            found, metadata = checkpoints(self.out / CHECKPOINTS), dict[str, Any]()
            if found:
                tensors, metadata = load_checkpoint(found[-1])
            return metadata

        metadata = self.ranks.on_rank_zero(newest)
        if metadata:
            self.state.restore(self.ranks.broadcast_tensors(tensors), metadata)
            self.restored, self.saved = True, self.state.counters.step
        self.metrics.rewind(self.state.counters.step)
        self._event(f"resumed at step {self.state.counters.step}")

    def run_to_end(self) -> dict[str, Any]:
        """Train until the budget is spent, then pack, score and report."""
        try:
            self._train()
            return self._finish()
        except BaseException:
            # Not left to Python's end, which several ranks do not wait for.
            self.metrics.close(within=HURRY)
            raise

    def _train(self) -> None:
        self._event(self.state.device_config.why)
        self.ranks.on_rank_zero(lambda: widths.check(self.state))
        self.ranks.check_equal(dict(self.state.modules.state_dict()))
        with StopRequest() as stop, self.writer, Progress("training") as report:
            if not self.restored and self.run.optim.ghost_steps > 0:
                self._ghost_warmup(report)
            self._loop(stop, report)
            # Scoring takes a while too: a run that is stopped in it resumes here, not at the last checkpoint.
            self._checkpoint()
            self._answer(self._agreed(0.0, stop)[1])
            self._note_failure(report, wait=True)

    def _finish(self) -> dict[str, Any]:
        self.ranks.check_equal(dict(self.state.modules.state_dict()))
        self.trainer.release()
        self.ranks.on_rank_zero(self.metrics.flush)
        for said in self.ranks.on_rank_zero(lambda: widths.fit(self.state, self.out / ARTIFACT)):
            self._event(said)
        summary = finish(self.state, self.out, self.preset)
        # All ranks part together, however long a dashboard takes to send the rest.
        self.ranks.on_rank_zero(lambda: self._log_final(summary["bpb_plain"]))
        return summary

    def _log_final(self, score: Mapping[str, Any]) -> None:
        done, kept = self.state.counters, {key: score[key] for key in VAL_FIELDS}
        self.metrics.append("val", done.step, seconds=done.seconds, **kept, final=True)

    def share(self) -> float:
        """Share of the budget that is spent: of the steps or of the seconds, whichever is further."""
        budget, done = self.run.train, self.state.counters
        by_steps = done.step / budget.steps if budget.steps > 0 else 0.0
        by_time = done.seconds / budget.seconds if budget.seconds > 0 else 0.0
        return max(by_steps, by_time)

    def _loop(self, stop: StopRequest, report: Progress) -> None:
        done, budget = self.state.counters, self.run.train
        if self._missed_validation():
            self._answer(self._validate(stop))
        clock = saved = time.perf_counter()
        while (share := self.share()) < 1.0:
            if budget.terms_every > 0 and done.step % budget.terms_every == 0:
                self.metrics.append("terms", done.step, **term_gradients(self.state, share))
            if widths.due(self.state, share):
                self._choose_widths(share)
                self._answer(self._agreed(0.0, stop)[1])
            before = done.tokens
            record, problem = dict[str, float](), ""
            try:
                record = self.trainer.train_step(share)
            except NotFiniteError as error:
                problem = str(error)
            now = time.perf_counter()
            elapsed, asked = self._agreed(now - clock, stop)
            clock = now
            done.seconds += elapsed
            if problem:
                self._note_skip(report, problem)
            else:
                self._note_step(report, record, elapsed, done.tokens - before)
                if self.ranks.is_rank_zero and not self.writer.prepared:
                    # Not before the first step, which makes the optimizers' state.
                    self.writer.prepare(self.state.tensors())
                    clock = time.perf_counter()
            # Once a signal came, the end is near; the resumed run makes up for the validation.
            if asked is None and self._validation_due():
                asked = self._validate(stop)
                clock = time.perf_counter()
            # After the validation: a run resumed from here would not repeat it. Not after a bad step, whose reason may
            # be in the weights: it would take the place of a better one.
            if not problem and self._checkpoint_due(now - saved):
                self._checkpoint()
                saved = time.perf_counter()
            self._note_failure(report)
            self._answer(asked)

    def _agreed(self, seconds: float, stop: StopRequest) -> tuple[float, signal.Signals | None]:
        """Rank 0's `seconds`, and the signal that any rank was sent: one clock for all, and one end."""
        told = self.ranks.all_gather_object([seconds, stop.signal])
        return told[0][0], next((signal.Signals(number) for _, number in told if number is not None), None)

    def _note_step(self, report: Progress, record: dict[str, float], elapsed: float, tokens: int) -> None:
        done = self.state.counters
        self.metrics.append(
            "step",
            done.step,
            **record,
            tokens=done.tokens,
            bytes=done.bytes,
            skipped=done.skipped,
            epoch=self.state.loader.epoch_float,
            seconds=done.seconds,
            tokens_per_s=tokens / elapsed,
            memory_mb=self.state.device_config.memory_mb(),
        )
        report(self.share(), 1.0, self._caption(record))

    def _note_skip(self, report: Progress, problem: str) -> None:
        """Log a skipped step. Raises `UserError` if there are more than `train.skip_limit`."""
        skipped, limit = self.state.counters.skipped, self.run.train.skip_limit
        self._event(problem)
        report.say(f"jepamba: {problem} ({skipped} such steps, train.skip_limit = {limit})")
        if skipped > limit:
            raise UserError(
                f"{problem}; {skipped} such steps are more than train.skip_limit = {limit}: lower optim.muon_lr or "
                "optim.adam_lr, or look at that data, and start again"
            )

    def _choose_widths(self, share: float) -> None:
        """Rank 0 chooses the bits of each tensor, all take them."""
        model = self.state.model
        said, chosen = self.ranks.on_rank_zero(lambda: (widths.choose(self.state, share), model.quant.bits_by_name))
        if not self.ranks.is_rank_zero:
            model.set_bit_allocation(chosen)
        self._event(said)

    def _caption(self, record: dict[str, float]) -> str:
        done = self.state.counters
        bpb = record["ce"] / math.log(2) * done.tokens / max(done.bytes, 1)
        return (
            f"step {done.step}, ce {record['ce']:.3f} nats/token (about {bpb:.3f} BPB), jepa {record['jepa']:.3f}, "
            f"sigreg {record['sigreg']:.4f}{self.validated}"
        )

    def _checkpoint_due(self, since: float) -> bool:
        every, seconds = self.run.train.checkpoint_every, self.run.train.checkpoint_seconds
        by_steps = every > 0 and self.state.counters.step % every == 0
        return by_steps or (seconds > 0 and since >= seconds)

    def _checkpoint(self) -> None:
        """Start writing a checkpoint of this moment, if there is none: rank 0 has all that is to be kept."""
        step = self.state.counters.step
        if self.saved != step and self.ranks.is_rank_zero:
            self.writer.save(step, self.state.tensors(), self.state.metadata())
            self.saved = step

    def _note_failure(self, report: Progress, wait: bool = False) -> None:
        """Say it if a checkpoint could not be written; the ones before it are whole, and the run goes on."""
        failure = self.writer.failure(wait)
        if failure is not None:
            self.saved = -1
            said = f"{failure}; training goes on, {self._newest()}"
            report.say(f"jepamba: {said}")
            self._event(said)

    def _answer(self, asked: signal.Signals | None) -> None:
        """If a signal came: a checkpoint, and the end. Raises `UserError` if that checkpoint cannot be written."""
        if asked is not None:
            self.ranks.on_rank_zero(lambda: self._last_checkpoint(asked.name))
            leave(asked)

    def _last_checkpoint(self, why: str) -> None:
        self._checkpoint()
        failure = self.writer.failure(wait=True)
        if failure is not None:
            raise UserError(f"{failure}; stopped by {why} nevertheless, {self._newest()}")
        # Several ranks do not end as Python would, with what a library keeps for the end.
        self.metrics.close()

    def _newest(self) -> str:
        found = checkpoints(self.out / CHECKPOINTS)
        return f"{found[-1].name} is the newest checkpoint" if found else "there is no checkpoint yet"

    def _validation_due(self) -> bool:
        every, step = self.run.train.val_every, self.state.counters.step
        return every > 0 and step > 0 and step % every == 0 and self.share() < 1.0

    def _missed_validation(self) -> bool:
        """Whether the run was stopped before or in the validation that was due at the step where it goes on."""
        step = self.state.counters.step
        due = self.restored and self._validation_due()
        return due and not self.ranks.on_rank_zero(lambda: self.metrics.holds("val", step))

    def _validate(self, stop: StopRequest) -> signal.Signals | None:
        """Score the validation text, unless a signal comes; the signal that came."""
        with contextlib.suppress(StoppedError):
            score = asdict(
                score_plain(
                    self.state.model,
                    self.state.corpus.val,
                    self.run.data.seq_len,
                    reset=self.run.data.reset,
                    limit=self.run.train.val_tokens,
                    tokens_per_batch=self.run.eval.tokens_per_batch,
                    ranks=self.ranks,
                    stopped=lambda: stop.signal is not None,
                )
            )
            done = self.state.counters
            kept = {key: score[key] for key in VAL_FIELDS}
            self.metrics.append("val", done.step, seconds=done.seconds, **kept, final=False)
            self.validated = f", validation {score['bpb']:.4f} BPB at step {done.step}"
        return self._agreed(0.0, stop)[1]

    def _ghost_warmup(self, report: Progress) -> None:
        """Take steps that prime the optimizers' moments (and compile what is compiled), then put back all else but the
        number of skipped steps."""
        state, count = self.state, self.run.optim.ghost_steps
        tensors = {name: value.clone() for name, value in state.tensors().items()}
        metadata = copy.deepcopy(state.metadata())
        for _ in range(count):
            try:
                self.trainer.train_step(0.0)
            except NotFiniteError as error:
                self._note_skip(report, f"ghost {error}")
        moments = {name: value.clone() for name, value in state.optimizers.state().items()}
        metadata["progress"]["skipped"] = state.counters.skipped
        state.modules.zero_grad(set_to_none=False)
        state.restore(tensors, metadata)
        if self.run.optim.ghost_keep_moments:
            state.optimizers.restore(moments)
            state.optimizers.reset_adam_steps()
        self._event(f"ghost warm-up of {count} steps")

    def _event(self, what: str) -> None:
        self.metrics.append("event", self.state.counters.step, what=what)
