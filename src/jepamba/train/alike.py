"""What must be the same on all ranks: the command, the settings, and the text that each reads from its own disk."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch

from jepamba import __version__
from jepamba.config import MACHINE_SETTINGS, Run, to_dict
from jepamba.data import Corpus, Tokens, corpus
from jepamba.distributed import World
from jepamba.errors import UserError
from jepamba.progress import Progress

WINDOWS, LENGTH = 64, 4096
"""How many windows of a stream are compared, spread over it, and the tokens of each; a shorter stream is whole."""


def check_command(command: str, ranks: World) -> None:
    """Raise `UserError`, on all `ranks`, for one that runs another command than rank 0, or another jepamba.

    Another PyTorch is let pass: its sums may round in another way, which is no worse than another GPU's.
    """
    found = _first_difference(ranks.all_gather_object({"jepamba": __version__, "the command": command}))
    if found is not None:
        rank, name, here, there = found
        raise UserError(
            f"rank {rank} has {name} {here} where rank 0 has {there}; start all with the same command, of one version "
            "of jepamba"
        )


def check_settings(run: Run, ranks: World) -> None:
    """Raise `UserError`, on all `ranks`, for one whose settings are not rank 0's, but for those `MACHINE_SETTINGS`."""
    found = _first_difference(ranks.all_gather_object(_settings(run)))
    if found is not None:
        rank, name, here, there = found
        here, there = (json.dumps(value, ensure_ascii=False)[:80] for value in (here, there))
        cause = "start all with the same flags"
        if name == "train.device" and run.train.device == "auto":
            cause = "PyTorch must see a GPU for each process, or train.device be cpu on all"
        raise UserError(f"rank {rank} has {name} = {here} where rank 0 has {there}; {cause}")


def read_alike(run: Run, ranks: World) -> Corpus:
    """The text that `run` names, the same on all `ranks`; to be called by all of them.

    World on one machine read one after another, so that all but the first find its cache. Raises `UserError`, on all
    ranks, for bad data, and for a rank whose tokenizer or text differs from rank 0's, as far as a sample tells.
    """
    text = ranks.local_rank_zero_first(lambda: _read(run))
    if ranks.world_size > 1:
        _compare(ranks.all_gather_object(ranks.local_rank_zero_first(lambda: marks(text))))
    return text


def _settings(run: Run) -> dict[str, Any]:
    """What must not differ, by its dotted name, the device as it was found."""
    nested = to_dict(run)
    flat = {f"{room}.{name}": value for room, values in nested.items() for name, value in values.items()}
    if run.train.device == "auto":
        flat["train.device"] = "cuda" if torch.cuda.is_available() else "cpu"
    return {name: value for name, value in flat.items() if name not in MACHINE_SETTINGS}


def _read(run: Run) -> Corpus:
    with Progress("reading the text") as report:
        return corpus(run.data, progress=report)


def marks(text: Corpus) -> dict[str, Any]:
    """What must not differ between ranks, nor when a run is resumed, by the name that a message gives it: JSON."""
    return {
        "tokenizer": text.tokenizer.fingerprint,
        "number of training tokens": len(text.train),
        "training text": _digest(text.train),
        "number of validation tokens": len(text.val),
        "validation text": _digest(text.val),
        "number of bytes of validation text": text.val_text_bytes,
    }


def _compare(everyone: list[dict[str, Any]]) -> None:
    """Raise `UserError` for the first rank, and the first mark, that is not as on rank 0."""
    found = _first_difference(everyone)
    if found is not None:
        rank, name, here, there = found
        figures = f" ({here:,}, there {there:,})" if isinstance(there, int) else ""
        raise UserError(
            f"rank {rank} has another {name} than rank 0{figures}: every process must read the same text; "
            "put the same files on each machine, or name them by a full path"
        )


def _first_difference(everyone: list[dict[str, Any]]) -> tuple[int, str, Any, Any] | None:
    """The first rank with a mark that is not as on rank 0, the mark's name, and its values here and there."""
    for rank, marks in enumerate(everyone):
        for name, there in everyone[0].items():
            if marks.get(name) != there:
                return rank, name, marks.get(name), there
    return None


def _digest(tokens: Tokens) -> str:
    """A hash of `WINDOWS` windows of `tokens`, the first and the last among them."""
    found, last = hashlib.sha256(), max(0, len(tokens) - LENGTH)
    for start in sorted({last * index // (WINDOWS - 1) for index in range(WINDOWS)}):
        found.update(tokens.read(start, min(start + LENGTH, len(tokens))).astype("<u2").tobytes())
    return found.hexdigest()
