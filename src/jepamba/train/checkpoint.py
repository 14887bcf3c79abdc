"""Checkpoints on disk: a folder of one safetensors file and one JSON file, which appears atomically.

There is no pickle, so loading runs no code. The JSON holds the sha256 of the tensor file.
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

from jepamba.errors import UserError, one_line
from jepamba.io import check_utf8_name, read_untrusted, sha256_of, sync

TENSORS = "tensors.safetensors"
STATE = "state.json"
VERSION = 2
"""Version of the format: the names of the tensors and the keys of the JSON."""
_PREFIX, _BUILDING = "step-", ".building-"
_MAX_STATE_BYTES = 1 << 20
"""Limit of the JSON, which normally has a few hundred bytes."""
_WHAT = "a checkpoint's tensors"


def save_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any], keep: int
) -> Path:
    """Write the checkpoint `folder/step-…` and delete all but the newest `keep`.

    A crash at any moment leaves the earlier checkpoints intact: the new folder appears by one rename, after its bytes
    are on disk.

    Arguments:
        state: JSON values.

    Returns:
        The new checkpoint's folder.

    Raises:
        UserError: if it cannot be written, as on a full disk. The partial checkpoint is removed.
    """
    final = folder / f"{_PREFIX}{step:09d}"
    building = folder / f"{_BUILDING}{step:09d}"
    try:
        # Without its parents: where the folder of the run was moved or deleted, nothing is made in its place.
        if not folder.exists():
            folder.mkdir()
        _clear(folder)
        building.mkdir()
        _write(building, tensors, state)
        if final.exists():
            # A run writes no step twice, but other callers may replace a checkpoint.
            final.rename(folder / f"{_BUILDING}{step:09d}-before")
        building.rename(final)
        sync(folder)
        for old in checkpoints(folder)[:-keep]:
            # Renamed first: a partly deleted folder must not look like a checkpoint.
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
    """Read the tensors and the state of a checkpoint. Raises `UserError` if it is damaged."""
    check_utf8_name(path)
    try:
        state = json.loads(read_untrusted(path / STATE, "a checkpoint's state", _MAX_STATE_BYTES).decode("utf-8"))
        if not isinstance(state, dict) or state.get("sha256") != sha256_of(path / TENSORS, _WHAT):
            raise UserError(f"{path / TENSORS}: its checksum is not the one in {STATE}")
        tensors = load_file(path / TENSORS)
    except (UserError, OSError, ValueError, RecursionError, SafetensorError) as error:
        reason = one_line(error)
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
    """Write both files and wait until they are on disk."""
    save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, building / TENSORS)
    complete = {**state, "version": VERSION, "sha256": sha256_of(building / TENSORS, _WHAT)}
    (building / STATE).write_text(json.dumps(complete, indent=1))
    # safetensors makes its file private, whatever the umask.
    shutil.copymode(building / STATE, building / TENSORS)
    for path in (building / TENSORS, building / STATE, building):
        sync(path)


def _reason(error: OSError | SafetensorError) -> str:
    """The operating system's message for `error`."""
    number = error.errno if isinstance(error, OSError) else re.search(r"\(os error (\d+)\)", str(error))
    number = int(number[1]) if isinstance(number, re.Match) else number
    return os.strerror(number) if number else one_line(error)


def _clear(folder: Path) -> None:
    """Remove partial checkpoints that a crash left."""
    for stale in folder.glob(f"{_BUILDING}*"):
        shutil.rmtree(stale)
