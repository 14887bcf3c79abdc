"""Start a run in a new folder, or resume it from its folder."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from jepamba.config import MACHINE_SETTINGS, ConfigError, Run, build, flatten, merge, to_dict, with_settings
from jepamba.data import Corpus, corpus
from jepamba.data.hub_text import HUB, pinned
from jepamba.distributed import World, process_group, reported_failures
from jepamba.errors import UserError
from jepamba.folder_lock import locked
from jepamba.io import atomic_write, check_utf8_name
from jepamba.presets import dump_toml, load_preset
from jepamba.progress import Progress, print_line, silence
from jepamba.train.consistency import check_same_command, check_same_settings, read_same_corpus
from jepamba.train.dial import Choice, resolve_dial, resolve_vocabulary
from jepamba.train.loop import Loop

CONFIG = "config.toml"


def train(run: Run, out: Path, *, preset: str = "") -> dict[str, Any]:
    """Train `run` into the folder `out`, then pack and score the model.

    Under torchrun, every process must call it; only rank 0 reads and writes `out`.

    Arguments:
        run: the settings.
        out: a folder that does not hold a run yet; it is created if missing.
        preset: the name to record in config.toml and the summary.

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
        run, choices = resolve_vocabulary(run, world, print_line)
        text = read_same_corpus(run, world)
        run, others = resolve_dial(resolve(run, text), text, world, print_line)
        world.on_rank_zero(lambda: _create_run(run, out, preset))
        loop = Loop(run, out, text, preset, world)
        for choice in (*choices, *others):
            loop.metrics.append("event", 0, what=str(choice))
        return loop.run_to_end()


def resume(out: Path, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Continue the run in `out` from its newest checkpoint, or from the start if it has none.

    On a CPU, with a budget in steps, the losses equal those of the uninterrupted run bit for bit. The number of
    processes may differ from before: every step trains on the same windows.

    Arguments:
        out: the run's folder.
        changes: settings of this machine by their dotted names, as in `{"data.train": "elsewhere.txt"}`. Only those
            in `MACHINE_SETTINGS` may change. They apply to this process only and are not written to config.toml.

    Returns:
        The content of summary.json.

    Raises:
        ConfigError: for a change of another setting.
        UserError: if there is no run in `out`, if another process writes to it, or if the text differs from that of
            the run.
    """
    with _world() as world, contextlib.ExitStack() as stack:
        check_same_command("resume", world)
        # Only rank 0 has the folder. `changes` say where this machine has its files.
        settings, preset = world.on_rank_zero(lambda: _read_run(out))
        run = _with_changes(settings, changes or {})
        check_same_settings(run, world)
        world.on_rank_zero(lambda: stack.enter_context(locked(out)))
        loop = Loop(run, out, read_same_corpus(run, world), preset, world)
        loop.restore()
        return loop.run_to_end()


@contextlib.contextmanager
def _world() -> Iterator[World]:
    """The process group of this run. Only rank 0 reports progress; a failure is reported to torchrun."""
    with process_group() as world, reported_failures(world.world_size):
        if not world.is_rank_zero:
            silence()
        yield world


def _pinned(run: Run, world: World) -> Run:
    """`run` with the data sets of the hub at their present commits, those of rank 0 on every rank."""
    texts = {"data.train": run.data.train, "data.val": run.data.val}
    names = [name for name in texts.values() if name.startswith(HUB)]
    commits = world.on_rank_zero(lambda: {name: pinned(name) for name in names})
    return with_settings(run, {setting: commits.get(name, name) for setting, name in texts.items()})


def _refuse_existing_run(out: Path) -> None:
    check_utf8_name(out)
    if (out / CONFIG).exists():
        raise UserError(f"{out} already holds a run; `jepamba resume {out}` continues it, or choose another --out")


def _create_run(run: Run, out: Path, preset: str) -> None:
    # The folder holds a run once its config exists.
    content = (f"# preset: {preset}\n" if preset else "") + dump_toml(run)
    atomic_write(out / CONFIG, content.encode(errors="replace"))


def _read_run(out: Path) -> tuple[dict[str, Any], str]:
    """The dotted settings of the run in `out`, and the name of its preset."""
    if not (out / CONFIG).is_file():
        raise UserError(f"{out}: no run here (no {CONFIG}); start one with `jepamba train PRESET --out {out}`")
    run = load_preset(str(out / CONFIG))
    first = (out / CONFIG).read_text(encoding="utf-8").partition("\n")[0]
    return flatten(to_dict(run)), first.removeprefix("# preset: ") if first.startswith("# preset: ") else ""


def _with_changes(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> Run:
    """The run of `settings` with `changes`. Raises `ConfigError` for a change that is not `MACHINE_SETTINGS`."""
    for name in changes:
        if name not in MACHINE_SETTINGS:
            raise ConfigError(
                f"{name} cannot change in a resumed run; these settings can: {', '.join(MACHINE_SETTINGS)}"
            )
    return build(merge(settings, changes))


def read_and_resolve(run: Run, say: Callable[[str], None]) -> tuple[Run, list[Choice]]:
    """Read the text of `run`, set the vocabulary, and resolve the dial, as `train` does, in this process alone."""
    run, choices = resolve_vocabulary(run, say=say)
    with Progress("reading the text") as report:
        text = corpus(run.data, progress=report)
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
