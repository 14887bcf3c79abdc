"""Checks that all ranks run the same command with the same settings and read the same text, each from its own disk."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch

from jepamba import __version__
from jepamba.config import MACHINE_SETTINGS, Run, flatten, to_dict
from jepamba.data import Corpus, Tokens
from jepamba.data.build import text_inventory
from jepamba.data.shared_files import shared_in_words, trained_on
from jepamba.distributed import World
from jepamba.errors import UserError
from jepamba.evaluate import check_scorable
from jepamba.generate import prompt_ids
from jepamba.progress import Progress, print_line
from jepamba.text.inventory import table
from jepamba.text.near_duplicates import overlap_in_words
from jepamba.text.tokenizers import Tokenizer
from jepamba.train.device import choose_device
from jepamba.train.init_from import run_corpus
from jepamba.train.tracking import check_tracker

WINDOWS, WINDOW_TOKENS = 64, 4096
"""Number and length of the windows of a token stream that its fingerprint samples. A shorter stream is hashed whole."""


def check_same_command(command: str, world: World) -> None:
    """Raise `UserError`, on all ranks, if a rank runs another command or another version of jepamba than rank 0.

    The version of PyTorch may differ: its sums may round differently, as those of another GPU do.
    """
    difference = world.first_difference({"jepamba": __version__, "the command": command})
    if difference is not None:
        rank, name, here, there = difference
        raise UserError(
            f"rank {rank} has {name} {here} where rank 0 has {there}; start all with the same command, of one version "
            "of jepamba"
        )


def check_same_settings(run: Run, world: World) -> None:
    """Raise `UserError`, on all ranks, if a setting outside `MACHINE_SETTINGS` differs from rank 0."""
    difference = world.first_difference(_settings(run))
    if difference is not None:
        rank, name, here, there = difference
        here, there = (json.dumps(value, ensure_ascii=False)[:80] for value in (here, there))
        cause = "start all with the same flags"
        if name == "train.device" and run.train.device == "auto":
            cause = "PyTorch must see a GPU for each process, or train.device be cpu on all"
        raise UserError(f"rank {rank} has {name} = {here} where rank 0 has {there}; {cause}")


def read_same_corpus(run: Run, world: World) -> Corpus:
    """Read the text that `run` names. All ranks must call it.

    The first rank of each machine reads first, so that the others find its cache.

    Raises:
        UserError: on all ranks, if the data is bad, or if the fingerprint of a rank's corpus differs from rank 0's.
    """
    # What these refuse is known before the text is read, which may take long.
    choose_device(run.train)
    world.on_rank_zero(lambda: check_tracker(run))
    text = world.local_rank_zero_first(lambda: _read(run))
    if world.world_size == 1:
        return text
    difference = world.first_difference(world.local_rank_zero_first(lambda: corpus_fingerprint(text)))
    if difference is not None:
        rank, name, here, there = difference
        figures = f" ({here:,}, there {there:,})" if isinstance(there, int) else ""
        raise UserError(
            f"rank {rank} has another {name} than rank 0{figures}: every process must read the same text; "
            "put the same files on each machine, or name them by a full path"
        )
    return text


def corpus_fingerprint(text: Corpus) -> dict[str, Any]:
    """What must be equal on all ranks and after a resume, as JSON values by the names that error messages use."""
    return {
        "tokenizer": text.tokenizer.fingerprint,
        "number of training tokens": len(text.train),
        "training text": _sampled_hash(text.train),
        "number of validation tokens": len(text.val),
        "validation text": _sampled_hash(text.val),
        "number of bytes of validation text": text.val_text_bytes,
    }


def _settings(run: Run) -> dict[str, Any]:
    """The settings that must not differ, by dotted name. `train.device = auto` is resolved to the device found."""
    flat = flatten(to_dict(run))
    if run.train.device == "auto":
        flat["train.device"] = "cuda" if torch.cuda.is_available() else "cpu"
    return {name: value for name, value in flat.items() if name not in MACHINE_SETTINGS}


def _read(run: Run) -> Corpus:
    files = table(text_inventory(run.data))
    if files:
        print_line(files)
    with Progress("reading the text") as report:
        text = run_corpus(run, report)
        if text.overlap is not None:
            held_out = f"{text.val_text_bytes:,} bytes" + " at the end of the only document" * text.is_end
            report.say(f"jepamba: {held_out} are held out, {overlap_in_words(text.overlap)}")
        shared = trained_on(run.data)
        if shared:
            report.say(f"jepamba: {shared_in_words(shared)}")
        for name, tokens in (("training", text.train), ("validation", text.val)):
            if tokens.bad_rows:
                report.say(f"jepamba: {name} text: bad rows left out: {tokens.bad_rows:,} (data.skip_bad)")
            if tokens.loss:
                report.say(f"jepamba: {name} text: {tokens.loss}")
        for prompt in run.eval.prompts:
            _check_prompt(prompt, text.tokenizer)
        for limit in (0, run.train.val_tokens, run.eval.sliding_tokens):
            check_scorable(text.val, limit)
        return text


def _check_prompt(prompt: str, tokenizer: Tokenizer) -> None:
    """Raise `UserError` if `generate` would refuse `prompt`, which it does only at the end of the run."""
    try:
        ids = prompt_ids(prompt, tokenizer)
    except UserError as error:
        raise UserError(f"eval.prompts: {prompt[:40]!r}: {error}") from None
    if not ids:
        raise UserError("eval.prompts: an empty prompt needs a tokenizer with a token that starts a document")


def _sampled_hash(tokens: Tokens) -> str:
    """A hash of `WINDOWS` evenly spaced windows of `tokens`, including the first and the last."""
    digest, last = hashlib.sha256(), max(0, len(tokens) - WINDOW_TOKENS)
    for start in sorted({last * index // (WINDOWS - 1) for index in range(WINDOWS)}):
        digest.update(tokens.read(start, min(start + WINDOW_TOKENS, len(tokens))).astype("<u2").tobytes())
    return digest.hexdigest()
