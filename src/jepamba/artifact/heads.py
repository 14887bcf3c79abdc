"""The file of the JEPA heads beside an artifact: projector and predictor, which the artifact does not contain.

It is a safetensors file of the state of `JepaHeads`. The key `jepamba_heads` of its metadata holds a JSON object: the
settings that the modules are built from, and the sha256 of the artifact of the same run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args, get_type_hints

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from jepamba.artifact.strict_json import parse_object, read_count, read_field
from jepamba.config import Jepa
from jepamba.errors import UserError, one_line
from jepamba.io import atomic_write, read_untrusted
from jepamba.jepa import JepaHeads

HEADS = "heads.safetensors"
"""Name of the file in the folder of the artifact."""
_KEY, _VERSION = "jepamba_heads", 2
HEAD_SETTINGS = ("projector", "predictor_mult", "layer", "action", "target_tokens")
"""Settings of `[jepa]` on which the weights of the heads depend."""
_LATER_SETTINGS = {"layer": 0, "action": False, "target_tokens": 1}
"""Settings that files of version 1 lack, with what their heads did."""
_PROJECTORS = get_args(get_type_hints(Jepa)["projector"])
_MAX_BYTES = 1 << 31
_MAX_COUNT = 1 << 16
"""Limit of the settings that are counts."""


def save_heads(path: Path, heads: JepaHeads, config: Jepa, artifact_sha256: str) -> None:
    """Write the weights of `heads`, which are built from `config`, to `path` atomically.

    `artifact_sha256` is the sha256 (hex) of the artifact of the same model.
    """
    settings = {name: getattr(config, name) for name in (*HEAD_SETTINGS, "rollout_steps")}
    header = {"version": _VERSION, "artifact_sha256": artifact_sha256, **settings}
    tensors = {name: value.detach().cpu().contiguous() for name, value in heads.state_dict().items()}
    atomic_write(path, save(tensors, {_KEY: json.dumps(header)}))


def load_heads(path: Path, d_model: int, artifact_sha256: str, device: torch.device | str = "cpu") -> JepaHeads:
    """Load the heads at `path`, in evaluation mode and without gradients. Nothing in the file is executed.

    Arguments:
        d_model: Size of the latents of the artifact's model.
        artifact_sha256: The sha256 (hex) of the artifact.

    Raises:
        UserError: One line that names the file, if it is not a valid file of heads or belongs to another artifact.
    """
    data = read_untrusted(path, "the heads", _MAX_BYTES)
    try:
        try:
            tensors = load(data)
        except (SafetensorError, KeyError) as error:  # a KeyError for a type that PyTorch lacks
            raise UserError(f"safetensors cannot read it ({error})") from None
        header = _header(data)
        if read_field(header, "artifact_sha256", str) != artifact_sha256:
            raise UserError("it belongs to another artifact than the one beside it")
        heads = _build(header, d_model)
        _check(tensors, heads.state_dict())
    except (UserError, ValueError) as error:
        reason = one_line(error)
        raise UserError(f"{path}: not a valid file of JEPA heads: {reason}") from None
    heads.load_state_dict(tensors, assign=True)
    return heads.requires_grad_(False).to(device).eval()


def _header(data: bytes) -> dict[str, object]:
    """Return our entry of the metadata of the valid safetensors file `data`."""
    start = 8
    stop = start + int.from_bytes(data[:start], "little")
    metadata = parse_object(data[start:stop]).get("__metadata__") or {}
    if _KEY not in metadata:
        raise UserError(f"its metadata has no {_KEY!r}")
    header = parse_object(metadata[_KEY].encode())
    version = read_count(header, "version", _MAX_COUNT)
    if not 1 <= version <= _VERSION:
        raise UserError(f"it has version {version}; this program reads versions 1 to {_VERSION}")
    return header if version > 1 else _LATER_SETTINGS | header


def _build(header: dict[str, object], d_model: int) -> JepaHeads:
    """Build the heads of `header` without memory for their weights."""
    projector = read_field(header, "projector", str)
    if projector not in _PROJECTORS:
        raise UserError(f"its projector is none of {', '.join(_PROJECTORS)}")
    config = Jepa(
        projector=projector,  # type: ignore[arg-type]  # checked above
        predictor_mult=read_count(header, "predictor_mult", _MAX_COUNT),
        rollout_steps=read_count(header, "rollout_steps", _MAX_COUNT),
        layer=read_count(header, "layer", _MAX_COUNT),
        action=read_field(header, "action", bool),
        target_tokens=read_count(header, "target_tokens", _MAX_COUNT),
    )
    with torch.device("meta"):
        return JepaHeads(config, d_model)


def _check(tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Raise `UserError` unless `tensors` have the names, shapes and types of `expected`, and usable values."""
    if tensors.keys() != expected.keys():
        raise UserError(f"its tensors are not those of its settings: {sorted(tensors.keys() ^ expected.keys())[:3]}")
    for name, right in expected.items():
        value = tensors[name]
        if (value.shape, value.dtype) != (right.shape, right.dtype):
            raise UserError(
                f"{name} is {value.dtype} of shape {tuple(value.shape)}, not {right.dtype} of shape "
                f"{tuple(right.shape)}"
            )
        if not bool(value.isfinite().all()):
            raise UserError(f"{name} has values that are not finite")
        if name.endswith("running_var") and bool((value < 0).any()):
            raise UserError(f"{name} has negative variances")
