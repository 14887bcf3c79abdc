"""A run as a folder: started in a new one, resumed in the one it left."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from jepamba.config import MACHINE_SETTINGS, ConfigError, Run, from_dict, to_dict, with_settings
from jepamba.data import Corpus
from jepamba.distributed import World, process_group, reported_failures
from jepamba.errors import UserError
from jepamba.io import atomic_write
from jepamba.presets import dump_toml, load_preset
from jepamba.progress import silence
from jepamba.train.alike import check_command, check_settings, read_alike
from jepamba.train.loop import Loop

CONFIG = "config.toml"


def train(run: Run, out: Path, *, preset: str = "") -> dict[str, Any]:
    """Train `run` into the folder `out`, pack and score the result; the summary that summary.json holds.

    In a process that torchrun started, together with the others that it started; `out` is rank 0's alone. Raises
    `UserError` if `out` already holds a run, if settings or data are bad or not the same on all of them, or if the loss
    stops being a number.
    """
    with _ranks() as ranks:
        check_command("train", ranks)
        check_settings(run, ranks)
        ranks.on_rank_zero(lambda: _refuse_another(out))
        text = read_alike(run, ranks)
        run = resolve(run, text)
        ranks.on_rank_zero(lambda: _begin(run, out, preset))
        return Loop(run, out, text, preset, ranks).run_to_end()


def resume(out: Path, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Continue the run in `out` from its newest checkpoint, or from the start if it has none.

    `changes` are settings of this process alone, by their dotted names, of those in `MACHINE_SETTINGS`: where its text
    is, as in `{"data.train": "elsewhere.txt"}`. config.toml stays unchanged. Raises `ConfigError` for
    another setting, and `UserError` for text that is not what the run started with.

    Under a budget in steps, on a CPU, the losses that follow equal those of the uninterrupted run to the bit.
    On another number of processes than before it goes on with the same windows, step by step.
    """
    with _ranks() as ranks:
        check_command("resume", ranks)
        # Rank 0 has the folder, and so the settings of all, but for where this machine has its files.
        settings, preset = ranks.on_rank_zero(lambda: _begun(out))
        run = _changed(settings, changes or {})
        check_settings(run, ranks)
        loop = Loop(run, out, read_alike(run, ranks), preset, ranks)
        loop.restore()
        return loop.run_to_end()


@contextlib.contextmanager
def _ranks() -> Iterator[World]:
    """The ranks of this run, of which rank 0 speaks."""
    with process_group() as ranks, reported_failures(ranks.world_size):
        if not ranks.is_rank_zero:
            silence()
        yield ranks


def _refuse_another(out: Path) -> None:
    if (out / CONFIG).exists():
        raise UserError(f"{out} already holds a run; `jepamba resume {out}` continues it, or choose another --out")


def _begin(run: Run, out: Path, preset: str) -> None:
    out.mkdir(parents=True, exist_ok=True)
    # A run is there from the moment that its config is.
    atomic_write(out / CONFIG, ((f"# preset: {preset}\n" if preset else "") + dump_toml(run)).encode())


def _begun(out: Path) -> tuple[dict[str, dict[str, Any]], str]:
    """The settings of the run in `out`, and the preset that it was started from."""
    if not (out / CONFIG).is_file():
        raise UserError(f"{out}: no run here (no {CONFIG}); start one with `jepamba train PRESET --out {out}`")
    run = load_preset(str(out / CONFIG))
    first = (out / CONFIG).read_text(encoding="utf-8").partition("\n")[0]
    return to_dict(run), first.removeprefix("# preset: ") if first.startswith("# preset: ") else ""


def _changed(settings: Mapping[str, Mapping[str, Any]], changes: Mapping[str, Any]) -> Run:
    """The run of `settings` with `changes`, all of them `MACHINE_SETTINGS`."""
    for name in changes:
        if name not in MACHINE_SETTINGS:
            raise ConfigError(f"{name} stays as the run began with it; what may change: {', '.join(MACHINE_SETTINGS)}")
    return with_settings(from_dict(settings), changes)


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
