"""A run from first step to finished folder: budget, validation, checkpoints, and a resume that repeats it exactly."""

from __future__ import annotations

import copy
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from jepamba.config import ConfigError, Run
from jepamba.data import Corpus, corpus
from jepamba.errors import UserError
from jepamba.evaluate import score_plain
from jepamba.presets import dump_toml, load_preset
from jepamba.progress import Progress, Report
from jepamba.train import widths
from jepamba.train.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from jepamba.train.device import place
from jepamba.train.finish import ARTIFACT, finish
from jepamba.train.metrics import MetricsLog
from jepamba.train.micro import MicroPass
from jepamba.train.session import Session
from jepamba.train.step import term_gradients, training_step
from jepamba.train.stop import StopRequest

CONFIG, METRICS, SUMMARY, CHECKPOINTS = "config.toml", "metrics.jsonl", "summary.json", "checkpoints"


def train(run: Run, out: Path, *, preset: str = "") -> dict[str, Any]:
    """Train `run` into the folder `out`, pack and score the result; the summary that summary.json holds.

    Raises `UserError` if `out` already holds a run, if the data is bad, or if the loss stops being a number.
    """
    if (out / CONFIG).exists():
        raise UserError(f"{out} already holds a run; `jepamba resume {out}` continues it, or choose another --out")
    text = _read(run)
    run = resolve(run, text)
    out.mkdir(parents=True, exist_ok=True)
    # By a rename: a run is there from the moment that its config is whole.
    building = out / f".{CONFIG}"
    building.write_text((f"# preset: {preset}\n" if preset else "") + dump_toml(run), encoding="utf-8")
    building.replace(out / CONFIG)
    return _Trainer(run, out, text, preset).run_to_end()


def resume(out: Path) -> dict[str, Any]:
    """Continue the run in `out` from its newest checkpoint, or from the start if it has none.

    Under a budget in steps, on a CPU, the losses that follow equal those of the uninterrupted run to the bit.
    """
    if not (out / CONFIG).is_file():
        raise UserError(f"{out}: no run here (no {CONFIG}); start one with `jepamba train PRESET --out {out}`")
    run = load_preset(str(out / CONFIG))
    first = (out / CONFIG).read_text(encoding="utf-8").partition("\n")[0]
    preset = first.removeprefix("# preset: ") if first.startswith("# preset: ") else ""
    trainer = _Trainer(run, out, _read(run), preset)
    trainer.restore()
    return trainer.run_to_end()


def resolve(run: Run, text: Corpus) -> Run:
    """`run` with what only the data can tell: the vocabulary's size. Raises `ConfigError` if it is too small."""
    size = text.tokenizer.vocab_size
    if run.model.vocab_size not in (0, size):
        if run.model.vocab_size < size:
            raise ConfigError(
                f"model.vocab_size = {run.model.vocab_size}: the tokenizer has {size} symbols; set it to 0 or {size}"
            )
        return run
    return replace(run, model=replace(run.model, vocab_size=size))


def _read(run: Run) -> Corpus:
    with Progress("reading the text") as report:
        return corpus(run.data, progress=report)


class _Trainer:
    """The loop around `training_step`."""

    def __init__(self, run: Run, out: Path, text: Corpus, preset: str) -> None:
        self.run, self.out, self.preset = run, out, preset
        self.session = Session(run, text, place(run.train))
        self.micro = MicroPass(self.session)
        self.metrics = MetricsLog(out / METRICS)
        self.restored = False
        self.validated = ""

    def restore(self) -> None:
        """Go back to the newest checkpoint and forget what was logged after it."""
        found = checkpoints(self.out / CHECKPOINTS)
        if found:
            self.session.restore(*load_checkpoint(found[-1]))
            self.restored = True
        self.metrics.rewind(self.session.progress.step)
        self._event(f"resumed at step {self.session.progress.step}")

    def run_to_end(self) -> dict[str, Any]:
        """Train until the budget is spent, then pack, score and report."""
        self._event(self.session.place.why)
        widths.check(self.session)
        with StopRequest() as stop:
            if not self.restored and self.run.optim.ghost_steps > 0:
                self._ghost_warmup()
            with Progress("training") as report:
                self._loop(stop, report)
            # Scoring takes a while too: a run that is stopped in it resumes here, not at the last checkpoint.
            self._checkpoint()
            stop.raise_if_asked()
        for said in widths.fit(self.session, self.out / ARTIFACT):
            self._event(said)
        summary = finish(self.session, self.out, self.preset)
        final = summary["bpb_plain"]
        self.metrics.append(
            "val",
            self.session.progress.step,
            seconds=self.session.progress.seconds,
            **{key: final[key] for key in ("bpb", "bpb_decoded", "nats_per_token", "tokens", "bytes", "mode")},
            final=True,
        )
        return summary

    def share(self) -> float:
        """Share of the budget that is spent: of the steps or of the seconds, whichever is further."""
        budget, done = self.run.train, self.session.progress
        by_steps = done.step / budget.steps if budget.steps > 0 else 0.0
        by_time = done.seconds / budget.seconds if budget.seconds > 0 else 0.0
        return max(by_steps, by_time)

    def _loop(self, stop: StopRequest, report: Report) -> None:
        done, budget = self.session.progress, self.run.train
        clock = saved = time.perf_counter()
        while (share := self.share()) < 1.0:
            if budget.terms_every > 0 and done.step % budget.terms_every == 0:
                self.metrics.append("terms", done.step, **term_gradients(self.session, share))
            if widths.due(self.session, share):
                self._event(widths.choose(self.session, share))
            before = done.tokens
            record = training_step(self.micro, share)
            now = time.perf_counter()
            elapsed, clock = now - clock, now
            done.seconds += elapsed
            self.metrics.append(
                "step",
                done.step,
                **record,
                tokens=done.tokens,
                bytes=done.bytes,
                epoch=self.session.loader.epoch_float,
                seconds=done.seconds,
                tokens_per_s=(done.tokens - before) / elapsed,
                memory_mb=self.session.place.memory_mb(),
            )
            report(self.share(), 1.0, self._caption(record))
            if budget.val_every > 0 and done.step % budget.val_every == 0 and self.share() < 1.0:
                self._validate()
                clock = time.perf_counter()
            # After the validation: a run resumed from here would not repeat it.
            if stop.signal is not None or self._checkpoint_due(now - saved):
                self._checkpoint()
                saved = time.perf_counter()
            stop.raise_if_asked()

    def _caption(self, record: dict[str, float]) -> str:
        done = self.session.progress
        bpb = record["ce"] / math.log(2) * done.tokens / max(done.bytes, 1)
        return (
            f"step {done.step}, ce {record['ce']:.3f} nats/token (about {bpb:.3f} BPB), jepa {record['jepa']:.3f}, "
            f"sigreg {record['sigreg']:.4f}{self.validated}"
        )

    def _checkpoint_due(self, since: float) -> bool:
        every, seconds = self.run.train.checkpoint_every, self.run.train.checkpoint_seconds
        by_steps = every > 0 and self.session.progress.step % every == 0
        return by_steps or (seconds > 0 and since >= seconds)

    def _checkpoint(self) -> None:
        save_checkpoint(
            self.out / CHECKPOINTS,
            self.session.progress.step,
            self.session.tensors(),
            self.session.state(),
            self.run.train.keep_checkpoints,
        )

    def _validate(self) -> None:
        score = score_plain(
            self.session.model,
            self.session.corpus.val,
            self.run.data.sequence,
            reset=self.run.data.reset,
            limit=self.run.train.val_tokens,
            tokens_per_batch=self.run.eval.tokens_per_batch,
        )
        done = self.session.progress
        self.metrics.append(
            "val",
            done.step,
            seconds=done.seconds,
            bpb=score.bpb,
            bpb_decoded=score.bpb_decoded,
            nats_per_token=score.nats_per_token,
            tokens=score.tokens,
            bytes=score.bytes,
            mode=score.mode,
            final=False,
        )
        self.validated = f", validation {score.bpb:.4f} BPB at step {done.step}"

    def _ghost_warmup(self) -> None:
        """Steps that prime the optimizers' moments (and compile what is compiled); then all else goes back."""
        session = self.session
        tensors = {name: value.clone() for name, value in session.tensors().items()}
        state = copy.deepcopy(session.state())
        for _ in range(self.run.optim.ghost_steps):
            training_step(self.micro, 0.0)
        moments = {name: value.clone() for name, value in session.optimizers.state().items()}
        for parameter in session.parameters():
            if parameter.grad is not None:
                parameter.grad.zero_()
        session.restore(tensors, state)
        if self.run.optim.ghost_keep_moments:
            session.optimizers.restore(moments)
            session.optimizers.reset_adam_steps()
        self._event(f"ghost warm-up of {self.run.optim.ghost_steps} steps")

    def _event(self, what: str) -> None:
        self.metrics.append("event", self.session.progress.step, what=what)
