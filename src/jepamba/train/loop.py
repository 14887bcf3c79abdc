"""The loop of a run, from the first step to the finished folder: budget, validation, checkpoints, skipped steps."""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from jepamba.artifact.locate import ARTIFACT
from jepamba.config import Run
from jepamba.data import Corpus
from jepamba.distributed import SINGLE_PROCESS, World
from jepamba.errors import UserError
from jepamba.evaluate import StoppedError, score_plain
from jepamba.gpu_turn import gpu_turn
from jepamba.jepa.objective import latent_weights
from jepamba.program import program_version
from jepamba.progress import Progress
from jepamba.report.records import STOPPED
from jepamba.text.unrestored import bpb_unit
from jepamba.train import bit_allocation
from jepamba.train.checkpoint import checkpoints, load_checkpoint
from jepamba.train.device import choose_device
from jepamba.train.export import export_and_evaluate
from jepamba.train.init_from import initialize, origins
from jepamba.train.measure import term_gradients
from jepamba.train.metrics import MetricsLog, NoLog
from jepamba.train.pauses import PauseDetector
from jepamba.train.samples import compiling_samples, training_sample
from jepamba.train.shared_cores import SharedCores
from jepamba.train.state import TrainState
from jepamba.train.step import NotFiniteError, Trainer, ghost_warmup
from jepamba.train.stop import StopRequest, leave
from jepamba.train.tracking import CLOSE_TIMEOUT, track
from jepamba.train.writer import CheckpointWriter

METRICS, CHECKPOINTS = "metrics.jsonl", "checkpoints"
VAL_FIELDS = ("bpb", "bpb_decoded", "nats_per_token", "tokens", "bytes", "counted", "mode")


class Loop:
    """The loop around `Trainer.train_step`. All ranks must call its methods together."""

    def __init__(self, run: Run, out: Path, text: Corpus, preset: str, world: World = SINGLE_PROCESS) -> None:
        self.run, self.out, self.preset, self.world = run, out, preset, world
        self.state = TrainState(run, text, choose_device(run.train), world)
        self.state.notes = origins(run)
        self.trainer = Trainer(self.state)
        self.metrics = MetricsLog(out / METRICS, track(run, out)) if world.is_rank_zero else NoLog(out / METRICS)
        self.writer = CheckpointWriter(out / CHECKPOINTS, run.train.keep_checkpoints, self.state.device)
        self.pauses, self.restored, self.last_validation = PauseDetector(), False, ""
        self.cores = SharedCores() if self.state.device.type == "cpu" else None
        self.saved = -1
        """The step of the newest checkpoint, which may still be being written."""

    def restore(self) -> list[str]:
        """Load the newest checkpoint, or the initial weights. Changes no file. Returns what `continue_log` must log."""
        tensors: dict[str, Tensor] = {}

        def newest() -> dict[str, Any]:
            nonlocal tensors
            found, metadata = checkpoints(self.out / CHECKPOINTS), dict[str, Any]()
            if found:
                tensors, metadata = load_checkpoint(found[-1])
            return metadata

        metadata = self.world.on_rank_zero(newest)
        if metadata:
            self.state.restore(self.world.broadcast_tensors(tensors), metadata)
            self.restored, self.saved = True, self.state.counters.step
        return [f"resumed at step {self.state.counters.step}", *([] if self.restored else initialize(self.state))]

    def continue_log(self, events: list[str]) -> None:
        """Drop the records that were logged after the restored step, and log `events`."""
        self.metrics.rewind(self.state.counters.step)
        for what in events:
            self._event(what)

    def run_to_end(self) -> dict[str, Any]:
        """Train until the budget is spent, then pack and score. Returns the content of summary.json."""
        try:
            self._train()
            return self._export()
        except BaseException:  # with several ranks, the process ends without Python's exit handlers
            self.metrics.close(within=CLOSE_TIMEOUT)
            raise

    def _train(self) -> None:
        self._event(self.state.device_config.why)
        self.world.on_rank_zero(lambda: bit_allocation.check_budget(self.state))
        self.world.check_equal(dict(self.state.modules.state_dict()))
        self.world.on_rank_zero(program_version)  # kept for summary.json: the source may change while training runs
        compiling = compiling_samples(self.state)
        with gpu_turn(begins=True), StopRequest() as stop, self.writer, compiling, Progress("training") as report:
            if not self.restored and self.run.optim.ghost_steps > 0:
                ghost_warmup(self.trainer, lambda problem: self._note_skip(report, problem))
                self._event(f"ghost warm-up of {self.run.optim.ghost_steps} steps")
            self._loop(stop, report)
            # Scoring takes long: a run that is stopped there resumes from here.
            self._checkpoint()
            self._stop_on(self._synchronized(0.0, stop)[1])
            self.world.on_rank_zero(lambda: self._note_failure(report, wait=True))

    def _export(self) -> dict[str, Any]:
        self.world.check_equal(dict(self.state.modules.state_dict()))
        self.trainer.release()
        self.world.on_rank_zero(self.metrics.flush)
        artifact = self.out / ARTIFACT
        for message in self.world.on_rank_zero(lambda: bit_allocation.pack_within_budget(self.state, artifact)):
            self._event(message)
        initial = self.world.on_rank_zero(self._initial_score)
        summary = export_and_evaluate(self.state, self.out, self.preset, initial["bpb"] if initial else None)
        # All ranks wait here, however long the dashboard takes to send the last records.
        self.world.on_rank_zero(lambda: self._log_score(summary["bpb_plain"], final=True))
        return summary

    def _log_score(self, score: Mapping[str, Any], final: bool) -> None:
        counters, fields = self.state.counters, {key: score[key] for key in VAL_FIELDS}
        self.metrics.append("val", counters.step, seconds=counters.seconds, **fields, final=final)

    def _initial_score(self) -> dict[str, Any] | None:
        """The score before the first step, on rank 0. None without `train.init_from`."""
        return self.metrics.find("val", 0) if self.run.train.init_from else None

    def _loop(self, stop: StopRequest, report: Progress) -> None:
        counters, budget = self.state.counters, self.run.train
        if budget.init_from and counters.step == 0 and not self.world.on_rank_zero(self._initial_score):
            self._stop_on(self._validate(stop, report, limit=0))
            self._tell(report, f"before training{self.last_validation}")
        if self._validation_was_missed():
            self._stop_on(self._validate(stop, report, budget.val_tokens))
        clock = saved = time.perf_counter()
        while (fraction := self.state.budget_fraction()) < 1.0:
            if budget.terms_every > 0 and counters.step % budget.terms_every == 0:
                self.metrics.append("terms", counters.step, **term_gradients(self.state, fraction))
            if bit_allocation.is_due(self.state, fraction):
                self._event(bit_allocation.choose_same_bits(self.state, fraction))
                self._stop_on(self._synchronized(0.0, stop)[1])
                clock = time.perf_counter()
            before, record, problem = counters.tokens, dict[str, float](), ""
            try:
                record = self.trainer.train_step(fraction)
            except NotFiniteError as error:
                problem = str(error)
            now = time.perf_counter()
            elapsed, stop_signal = self._synchronized(now - clock, stop)
            clock = now
            self._count_seconds(report, elapsed, fraction)
            if problem:
                self._note_skip(report, problem)
            else:
                self._note_step(report, record, elapsed, counters.tokens - before)
                if self.cores is not None and (busy := self.cores.message()) is not None:
                    self._tell(report, busy)
                if self.world.is_rank_zero and not self.writer.prepared:
                    # After the first step, which creates the optimizers' state.
                    self.writer.prepare(self.state.tensors())
                    clock = time.perf_counter()
            # After a stop signal the validation is left to the resumed run.
            if stop_signal is None and self._validation_due():
                stop_signal = self._validate(stop, report, budget.val_tokens)
                clock = time.perf_counter()
            # After the validation, so that a resumed run does not repeat it. Not after a skipped step: the weights may
            # be its cause, and this checkpoint would replace a better one.
            if not problem and self._checkpoint_due(now - saved):
                self._checkpoint()
                saved = time.perf_counter()
            self._note_failure(report)
            self._stop_on(stop_signal)

    def _synchronized(self, seconds: float, stop: StopRequest) -> tuple[float, signal.Signals | None]:
        """Rank 0's `seconds`, and the stop signal that any rank received: all ranks use one clock and stop together."""
        everyone = self.world.all_gather_object([seconds, stop.signal])
        return everyone[0][0], next((signal.Signals(number) for _, number in everyone if number is not None), None)

    def _count_seconds(self, report: Progress, elapsed: float, fraction: float) -> None:
        """Add the duration of a step to the budget, unless the machine paused."""
        model, has_latent_terms = self.state.model, latent_weights(self.run.jepa, fraction) is not None
        usual = self.pauses.usual(elapsed, (model.fake_quantized, model.quant.bit_allocation, has_latent_terms))
        if usual is None:
            self.state.counters.seconds += elapsed
        else:
            self._tell(report, f"a step took {elapsed:.1f} s, the others {usual:.2f} s: a pause, not training time")

    def _note_step(self, report: Progress, record: dict[str, float], elapsed: float, tokens: int) -> None:
        counters = self.state.counters
        self.metrics.append(
            "step",
            counters.step,
            **record,
            tokens=counters.tokens,
            bytes=counters.bytes,
            skipped=counters.skipped,
            epoch=self.state.loader.epoch_float,
            seconds=counters.seconds,
            tokens_per_s=tokens / elapsed,
            memory_mb=self.state.device_config.memory_mb(),
        )
        report(self.state.budget_fraction(), 1.0, self._caption(record))

    def _note_skip(self, report: Progress, problem: str) -> None:
        """Log a skipped step. Raises `UserError` if there are more than `train.skip_limit` in the run."""
        skipped, limit = self.state.counters.skipped, self.run.train.skip_limit
        self._tell(report, problem, f" ({skipped} skipped steps, train.skip_limit = {limit})")
        if skipped > limit:
            raise UserError(
                f"{problem}; {skipped} skipped steps are more than train.skip_limit = {limit}: lower optim.muon_lr or "
                "optim.adam_lr, or check the data of these steps, and start again"
            )

    def _caption(self, record: dict[str, float]) -> str:
        counters = self.state.counters
        bpb = record["ce"] / math.log(2) * counters.tokens / max(counters.bytes, 1)
        unit = bpb_unit("decoded" if self.state.corpus.train.text_bytes is None else "original")
        about = f"about {bpb:.3f} {unit} of training text"
        terms = f"jepa {record['jepa']:.3f}, sigreg {record['sigreg']:.4f}"
        return f"step {counters.step}, ce {record['ce']:.3f} nats/token ({about}), {terms}{self.last_validation}"

    def _checkpoint_due(self, since: float) -> bool:
        every, seconds = self.run.train.checkpoint_every, self.run.train.checkpoint_seconds
        return (every > 0 and self.state.counters.step % every == 0) or (seconds > 0 and since >= seconds)

    def _checkpoint(self) -> None:
        """Start writing a checkpoint of this step on rank 0, unless it exists."""
        step = self.state.counters.step
        if self.saved != step and self.world.is_rank_zero:
            self.writer.save(step, self.state.tensors(), self.state.metadata())
            self.saved = step

    def _note_failure(self, report: Progress, wait: bool = False) -> None:
        """Report a checkpoint that could not be written. The run continues; the earlier checkpoints are intact."""
        failure = self.writer.failure(wait)
        if failure is not None:
            self.saved = -1
            self._tell(report, f"{failure}; training continues, {self._newest()}")

    def _stop_on(self, stop_signal: signal.Signals | None) -> None:
        """After a signal, write a checkpoint and leave. Raises `UserError` if that checkpoint cannot be written."""
        if stop_signal is not None:
            self.world.on_rank_zero(lambda: self._last_checkpoint(stop_signal.name))
            leave(stop_signal)

    def _last_checkpoint(self, signal_name: str) -> None:
        self._checkpoint()
        failure = self.writer.failure(wait=True)
        if failure is not None:
            raise UserError(f"{failure}; the run stops on {signal_name}, {self._newest()}")
        self._event(f"{STOPPED}{signal_name}")
        # With several ranks the process ends without Python's exit handlers, which a dashboard may rely on.
        self.metrics.close()

    def _newest(self) -> str:
        found = checkpoints(self.out / CHECKPOINTS)
        return f"{found[-1].name} is the newest checkpoint" if found else "there is no checkpoint yet"

    def _validation_due(self) -> bool:
        return self.state.validations_due() > self.state.counters.validations and self.state.budget_fraction() < 1.0

    def _validation_was_missed(self) -> bool:
        """Whether the run was stopped before the end of the validation that was due at its present step."""
        step = self.state.counters.step
        if not (self.restored and self._validation_due()):
            return False
        if self.world.on_rank_zero(lambda: self.metrics.find("val", step) is None):
            return True
        self.state.counters.validations = self.state.validations_due()
        return False

    def _validate(self, stop: StopRequest, report: Progress, limit: int) -> signal.Signals | None:
        """Score `limit` validation targets (0: all), unless a stop signal interrupts it. Returns that signal."""

        def progress(done: float, total: float, note: str = "") -> None:
            report(self.state.budget_fraction(), 1.0, f"validation: {done / total:.0%}")

        with contextlib.suppress(StoppedError):
            score = asdict(
                score_plain(
                    self.state.model,
                    self.state.corpus.val,
                    self.run.data.seq_len,
                    reset=self.run.data.reset,
                    limit=limit,
                    tokens_per_batch=self.run.eval.tokens_per_batch,
                    progress=progress,
                    world=self.world,
                    stopped=lambda: stop.signal is not None,
                )
            )
            self._log_score(score, final=False)
            self.state.counters.validations = self.state.validations_due()
            unit = bpb_unit(score["counted"])
            self.last_validation = f", validation {score['bpb']:.4f} {unit} at step {self.state.counters.step}"
            if self.state.counters.step > 0:
                self._sample()
        return self._synchronized(0.0, stop)[1]

    def _sample(self) -> None:
        """Log what the model writes, after validation 1, 2, 4, 8 and so on."""
        count = self.state.counters.validations
        if count & (count - 1) == 0 and self.run.eval.prompts and self.run.eval.sample_tokens > 0:
            step = self.state.counters.step
            self.world.on_rank_zero(lambda: self.metrics.append("sample", step, **training_sample(self.state)))

    def _tell(self, report: Progress, what: str, more: str = "") -> None:
        self._event(what)
        report.say(f"jepamba: {what}{more}")

    def _event(self, what: str) -> None:
        self.metrics.append("event", self.state.counters.step, what=what)
