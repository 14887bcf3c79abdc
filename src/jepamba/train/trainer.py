"""A run as a folder: started in a new one, resumed in the one it left."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from jepamba.config import ConfigError, Run
from jepamba.data import Corpus, corpus
from jepamba.errors import UserError
from jepamba.presets import dump_toml, load_preset
from jepamba.progress import Progress
from jepamba.train.loop import Loop

CONFIG = "config.toml"


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
    return Loop(run, out, text, preset).run_to_end()


def resume(out: Path) -> dict[str, Any]:
    """Continue the run in `out` from its newest checkpoint, or from the start if it has none.

    Under a budget in steps, on a CPU, the losses that follow equal those of the uninterrupted run to the bit.
    """
    if not (out / CONFIG).is_file():
        raise UserError(f"{out}: no run here (no {CONFIG}); start one with `jepamba train PRESET --out {out}`")
    run = load_preset(str(out / CONFIG))
    first = (out / CONFIG).read_text(encoding="utf-8").partition("\n")[0]
    preset = first.removeprefix("# preset: ") if first.startswith("# preset: ") else ""
    loop = Loop(run, out, _read(run), preset)
    loop.restore()
    return loop.run_to_end()


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
