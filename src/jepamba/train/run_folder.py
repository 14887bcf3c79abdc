"""Start a run in a new folder, or resume it from its folder."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from jepamba.artifact.locate import pinned_model
from jepamba.config import BUDGET_SETTINGS, MACHINE_SETTINGS, ConfigError, Run, flatten, to_dict, with_settings
from jepamba.data import Corpus
from jepamba.data.hub_text import pinned
from jepamba.distributed import World, process_group, reported_failures
from jepamba.errors import UserError
from jepamba.folder_lock import locked
from jepamba.hub_names import HUB
from jepamba.io import atomic_write, check_utf8_name
from jepamba.optim import learning_rate_scale
from jepamba.presets import dump_toml, load_preset
from jepamba.progress import Progress, print_line, silence
from jepamba.train.consistency import check_same_command, check_same_settings, read_same_corpus
from jepamba.train.dial import Choice, resolve_dial, resolve_vocabulary
from jepamba.train.export import SUMMARY
from jepamba.train.init_from import initialize, run_corpus
from jepamba.train.loop import Loop

CONFIG = "config.toml"
_FILES = {
    "data.train": ("stdlib",),
    "data.val": ("", "stdlib"),
    "data.tokenizer": ("bytes", "bpe"),
    "train.init_from": ("",),
}
"""The settings that name files, each with the values that name none."""


def train(run: Run, out: Path, *, preset: str = "", choices: Sequence[Choice] = ()) -> dict[str, Any]:
    """Train `run` into the folder `out`, then pack and score the model.

    Under torchrun, every process must call it; only rank 0 reads and writes `out`.

    Arguments:
        run: the settings.
        out: a folder that does not hold a run yet; it is created if missing.
        preset: the name to record in config.toml and the summary.
        choices: settings of `run` that were chosen for the user, to print and to log.

    Returns:
        The content of summary.json.

    Raises:
        UserError: if `out` already holds a run, if another process writes to it, if settings or data are bad or differ
            between ranks, or if more than `train.skip_limit` steps have a loss or gradient that is not finite.
    """
    with _world() as world, contextlib.ExitStack() as stack:
        check_same_command("train", world)
        check_same_settings(run, world)
        world.on_rank_zero(lambda: stack.enter_context(locked(out)))
        world.on_rank_zero(lambda: _refuse_existing_run(out))
        run = _pinned(run, world)
        for choice in choices:
            print_line(str(choice))
        run, vocabulary = resolve_vocabulary(run, world, print_line)
        text = read_same_corpus(run, world)
        run, others = resolve_dial(resolve(run, text), text, world, print_line)
        loop = Loop(run, out, text, preset, world)
        loaded = initialize(loop.state)
        # After all that can be refused: from here on the folder holds a run.
        world.on_rank_zero(lambda: _create_run(run, out, preset))
        command = shlex.join([Path(sys.argv[0]).name.replace("__main__.py", "jepamba"), *sys.argv[1:]])
        loop.metrics.append("start", 0, time=datetime.now().astimezone().isoformat(timespec="seconds"), command=command)
        for what in (*loaded, *choices, *vocabulary, *others):
            loop.metrics.append("event", 0, what=str(what))
        return loop.run_to_end()


def resume(out: Path, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Continue the run in `out` from its newest checkpoint, or from the start if it has none.

    On a CPU, with a budget in steps, the losses equal those of the uninterrupted run bit for bit. The number of
    processes may differ from before: every step trains on the same windows.

    Arguments:
        out: the run's folder.
        changes: settings by their dotted names, as in `{"data.train": "elsewhere.txt"}`. Those in `MACHINE_SETTINGS`
            apply to this process only and are not written to config.toml. A new budget (`train.steps`,
            `train.seconds` or `train.tokens`) replaces the old one for good; other settings cannot change.

    Returns:
        The content of summary.json.

    Raises:
        ConfigError: for a change of another setting.
        UserError: if there is no run in `out`, if another process writes to it, if the text differs from that of the
            run, or if a new budget is already spent.
    """
    with _world() as world, contextlib.ExitStack() as stack:
        check_same_command("resume", world)
        # Only rank 0 has the folder. `changes` say where this machine has its files.
        before, preset = world.on_rank_zero(lambda: read_run(out))
        run = _with_changes(before, changes or {})
        check_same_settings(run, world)
        world.local_rank_zero_first(lambda: _refuse_lost_file(run, changes or {}, out))
        world.on_rank_zero(lambda: stack.enter_context(locked(out)))
        loop = Loop(run, out, read_same_corpus(run, world), preset, world)
        events = loop.restore()
        budget = {name: value for name, value in (changes or {}).items() if name in BUDGET_SETTINGS}
        if budget:
            events.append(_start_new_budget(loop, budget))
        # After all that can be refused: a refused command loses nothing.
        loop.continue_log(events)
        if budget:
            world.on_rank_zero(lambda: (out / SUMMARY).unlink(missing_ok=True))
            world.on_rank_zero(lambda: _create_run(with_settings(before, budget), out, preset))
        return loop.run_to_end()


@contextlib.contextmanager
def _world() -> Iterator[World]:
    """The process group of this run. Only rank 0 reports progress; a failure is reported to torchrun."""
    with process_group() as world, reported_failures(world.world_size):
        if not world.is_rank_zero:
            silence()
        yield world


def _pinned(run: Run, world: World) -> Run:
    """`run` with the data sets and the model of the hub at their present commits, those of rank 0 on every rank."""
    texts = {("data.train", "train"): run.data.train, ("data.val", "val"): run.data.val}
    # Each rank may have local paths of its own.
    names = {(setting, split): name for (setting, split), name in texts.items() if name.startswith(HUB)}
    commits = world.on_rank_zero(lambda: {setting: pinned(name, split) for (setting, split), name in names.items()})
    start = run.train.init_from
    if start.startswith(HUB):
        start = world.on_rank_zero(lambda: pinned_model(start))
    return with_settings(run, {**commits, "train.init_from": start})


def _refuse_existing_run(out: Path) -> None:
    check_utf8_name(out)
    if (out / CONFIG).exists():
        raise UserError(f"{out} already holds a run; `jepamba resume {out}` continues it, or choose another folder")


def _create_run(run: Run, out: Path, preset: str) -> None:
    # The folder holds a run once its config exists.
    content = (f"# preset: {preset}\n" if preset else "") + dump_toml(run)
    atomic_write(out / CONFIG, content.encode(errors="replace"))


def read_run(out: Path) -> tuple[Run, str]:
    """Return the settings of the run in `out`, and the name of its preset. Raises `UserError` if there is no run."""
    if not (out / CONFIG).is_file():
        raise UserError(f"{out}: no run here (no {CONFIG}); start one with `jepamba train PRESET --out {out}`")
    run = load_preset(str(out / CONFIG))
    first = (out / CONFIG).read_text(encoding="utf-8").partition("\n")[0]
    return run, first.removeprefix("# preset: ") if first.startswith("# preset: ") else ""


def lost_file(run: Run, given: Container[str] = ()) -> tuple[str, str] | None:
    """Return a setting of a started run whose file is not on this machine, but for those in `given`, and say so."""
    settings = flatten(to_dict(run))
    for name, words in _FILES.items():
        path = settings[name]
        if name not in given and path not in words and not path.startswith(HUB) and not os.path.exists(path):
            place = "" if os.path.isabs(path) else ", relative to the folder in which the run was started"
            return name, f"{path}: no such file or folder; the run names it as {name}{place}"
    return None


def _refuse_lost_file(run: Run, given: Container[str], out: Path) -> None:
    lost = lost_file(run, given)
    if lost:
        raise UserError(f"{lost[1]}; say where it is now: `jepamba resume {out} --{lost[0]} PATH`")


def _with_changes(run: Run, changes: Mapping[str, Any]) -> Run:
    """`run` with `changes`. Raises `ConfigError` for a change of a setting that a run keeps."""
    changeable = (*MACHINE_SETTINGS, *BUDGET_SETTINGS)
    for name in changes:
        if name not in changeable:
            raise ConfigError(f"{name} cannot change in a resumed run; these settings can: {', '.join(changeable)}")
    return with_settings(run, changes)


def _start_new_budget(loop: Loop, budget: Mapping[str, Any]) -> str:
    """Say how the run goes on under its new `budget`, and return it. Raises `UserError` if that is spent already."""
    spent, named = loop.state.budget_fraction(), ", ".join(f"{name} = {value:,}" for name, value in budget.items())
    if spent >= 1:
        raise UserError(f"{named}: this run has already trained that long; give a larger budget")
    scale = learning_rate_scale(loop.run.optim, spent)
    message = f"new budget, {named}: {spent:.0%} of it is spent; the learning rate is {scale:.0%} of its peak from here"
    print_line(f"jepamba: {message}")
    loop.state.counters.validations = loop.state.validations_due()
    # The learning rate rises again and with it the entropy of the weights, so the bits are due once more.
    loop.state.counters.bit_choices = min(loop.state.counters.bit_choices, 1)
    return message


def read_and_resolve(run: Run, say: Callable[[str], None]) -> tuple[Run, list[Choice]]:
    """Read the text of `run`, set the vocabulary, and resolve the dial, as `train` does, in this process alone."""
    run, choices = resolve_vocabulary(run, say=say)
    with Progress("reading the text") as report:
        text = run_corpus(run, report)
    run, others = resolve_dial(resolve(run, text), text, say=say)
    return run, [*choices, *others]


def resolve(run: Run, text: Corpus) -> Run:
    """Set `model.vocab_size` of `run` from the tokenizer, if it is 0. Raises `ConfigError` if it is set too small."""
    size = text.tokenizer.vocab_size
    if run.model.vocab_size not in (0, size):
        if run.model.vocab_size < size:
            raise ConfigError(
                f"model.vocab_size = {run.model.vocab_size}: the tokenizer has {size} symbols; set it to 0 or {size}"
            )
        return run
    return replace(run, model=replace(run.model, vocab_size=size))
