"""The text of a run, which every rank reads from its own disk and which must be the same on all of them."""

from __future__ import annotations

import hashlib
from typing import Any

from jepamba.config import Run
from jepamba.data import Corpus, Tokens, corpus
from jepamba.errors import UserError
from jepamba.progress import Progress
from jepamba.ranks import Ranks

WINDOWS, LENGTH = 64, 4096
"""How many windows of a stream are compared, spread over it, and the tokens of each; a shorter stream is whole."""


def read_alike(run: Run, ranks: Ranks) -> Corpus:
    """The text that `run` names, the same on all `ranks`; to be called by all of them.

    Ranks on one machine read one after another, so that all but the first find its cache. Raises `UserError`, on all
    ranks, for bad data, and for a rank whose tokenizer or text differs from rank 0's, as far as a sample tells.
    """
    text = ranks.machine_by_machine(lambda: _read(run))
    if ranks.size > 1:
        _compare(ranks.told(ranks.machine_by_machine(lambda: _marks(text))))
    return text


def _read(run: Run) -> Corpus:
    with Progress("reading the text") as report:
        return corpus(run.data, progress=report)


def _marks(text: Corpus) -> dict[str, Any]:
    """What must not differ, by the name that a message gives it."""
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
    for rank, marks in enumerate(everyone):
        for name, there in everyone[0].items():
            if marks[name] != there:
                figures = f" ({marks[name]:,}, there {there:,})" if isinstance(there, int) else ""
                raise UserError(
                    f"rank {rank} has another {name} than rank 0{figures}: every process must read the same text; "
                    "put the same files on each machine, or name them by a full path"
                )


def _digest(tokens: Tokens) -> str:
    """A hash of `WINDOWS` windows of `tokens`, the first and the last among them."""
    found, last = hashlib.sha256(), max(0, len(tokens) - LENGTH)
    for start in sorted({last * index // (WINDOWS - 1) for index in range(WINDOWS)}):
        found.update(tokens.read(start, min(start + LENGTH, len(tokens))).astype("<u2").tobytes())
    return found.hexdigest()
