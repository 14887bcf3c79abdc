"""Checkpoints on disk: a folder of one safetensors file and one JSON file, complete or not there at all.

Nothing in it is a pickle, so loading runs no code. The JSON holds the sha256 of the tensors.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from jepamba.errors import UserError
from jepamba.io import read_untrusted, sha256_of, sync

TENSORS = "tensors.safetensors"
STATE = "state.json"
VERSION = 2
"""Of the format: of the names of tensors and of the state's keys."""
_PREFIX, _BUILDING = "step-", ".building-"
_MOST_STATE = 1 << 20
"""Bytes of the JSON, which has some hundred."""
_WHAT = "a checkpoint's tensors"


def save_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any], keep: int
) -> Path:
    """Write `folder/step-…` and keep the newest `keep`. A crash at any moment leaves the ones before it whole.

    `state` must be JSON. The new folder appears by one rename, after its bytes are on disk. Raises `UserError` if it
    cannot be written (a full disk, a folder that may not be written to); what was written of it is removed.
    """
    final = folder / f"{_PREFIX}{step:09d}"
    building = folder / f"{_BUILDING}{step:09d}"
    try:
        _clear(folder)
        building.mkdir(parents=True)
        _write(building, tensors, state)
        if final.exists():
            # Never the work of a run, which writes no step twice: a hand that replaces one by another.
            final.rename(folder / f"{_BUILDING}{step:09d}-before")
        building.rename(final)
        sync(folder)
        for old in checkpoints(folder)[:-keep]:
            # Renamed first: what is half deleted must not look like a checkpoint.
            shutil.rmtree(old.rename(folder / f"{_BUILDING}{old.name}"))
    except (OSError, SafetensorError) as error:
        reason = _reason(error)
        shutil.rmtree(building, ignore_errors=True)
        raise UserError(f"{final}: cannot write the checkpoint ({reason})") from error
    return final


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints in `folder`, oldest first."""
    return sorted(path for path in folder.glob(f"{_PREFIX}*") if path.is_dir())


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, state) of one checkpoint. Raises `UserError` if it is damaged; nothing is half loaded."""
    try:
        state = json.loads(read_untrusted(path / STATE, "a checkpoint's state", _MOST_STATE).decode("utf-8"))
        if not isinstance(state, dict) or state.get("sha256") != sha256_of(path / TENSORS, _WHAT):
            raise UserError(f"{path / TENSORS}: its checksum is not the one in {STATE}")
        tensors = load_file(path / TENSORS)
    except (UserError, OSError, ValueError, RecursionError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{path}: not a complete checkpoint ({reason}); delete it to resume from the one before it"
        ) from None
    version = state.get("version", 1)
    if version != VERSION:
        raise UserError(
            f"{path}: checkpoint format version {str(version)[:20]!r}; this program reads version {VERSION}"
        )
    return tensors, state


def _write(building: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Both files, down to the disk."""
    save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, building / TENSORS)
    complete = {**state, "version": VERSION, "sha256": sha256_of(building / TENSORS, _WHAT)}
    (building / STATE).write_text(json.dumps(complete, indent=1))
    for path in (building / TENSORS, building / STATE, building):
        sync(path)


def _reason(error: OSError | SafetensorError) -> str:
    """What the system said, in its own words."""
    number = error.errno if isinstance(error, OSError) else re.search(r"\(os error (\d+)\)", str(error))
    number = int(number[1]) if isinstance(number, re.Match) else number
    return os.strerror(number) if number else " ".join(str(error).split())[:300]


def _clear(folder: Path) -> None:
    """Remove what a crash left of checkpoints that were being written or deleted."""
    for stale in folder.glob(f"{_BUILDING}*"):
        shutil.rmtree(stale)
