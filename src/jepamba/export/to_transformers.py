"""Writes an artifact as a folder for Hugging Face transformers: weights, configuration, tokenizer, code of the model.

The folder needs no jepamba. It contains the code of the model (`modeling_jepamba.py`, `layers_jepamba.py`), which
transformers runs only if the user asks for it with `trust_remote_code=True`.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from jepamba.artifact import Artifact
from jepamba.errors import DivergedError, UserError
from jepamba.export.tokenizer import TokenizerFiles, tokenizer_files
from jepamba.io import atomic_write, check_writable_folder, resolved

CODE = ("modeling_jepamba.py", "layers_jepamba.py")
"""Files of this package that are copied into the folder."""
_OUTSIDE_BACKBONE = "head."
"""Prefix of the weights that `JepambaForCausalLM` has beside those of `JepambaModel`."""


def export_transformers(artifact: Artifact, folder: Path) -> dict[str, int]:
    """Write `artifact` into the new or empty `folder`. Returns the names of its files with their bytes.

    The weights are the decoded ones in fp32, which the artifact computes with.

    Raises `UserError` if the folder has files or cannot be written, and `DivergedError` if a weight is not finite.
    """
    check_writable_folder(folder)
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder}: exists and is not an empty folder; choose another")
    tokenizer = tokenizer_files(artifact.tokenizer)
    files = {
        "model.safetensors": save(_weights(artifact), {"format": "pt"}),
        **tokenizer.files,
        **{name: Path(__file__).with_name(name).read_bytes() for name in CODE},
        "generation_config.json": _as_json(_generation_config(artifact, tokenizer)),
        "config.json": _as_json(_config(artifact, tokenizer)),
    }
    place = resolved(folder)  # a link may lead to a folder that does not exist yet
    for name, content in files.items():
        atomic_write(place / name, content)
    return {name: len(content) for name, content in files.items()}


def _weights(artifact: Artifact) -> dict[str, Tensor]:
    """Return the weights in fp32 by their names in `JepambaForCausalLM`."""
    weights = {}
    with torch.no_grad():
        for name, weight in artifact.model.quant_weights().items():
            target = name if name.startswith(_OUTSIDE_BACKBONE) else f"model.{name}"
            value = weight.effective_weight().cpu().contiguous().clone()
            if not bool(value.isfinite().all()):
                raise DivergedError
            weights[f"{target}.weight" if name == "token_embed" else target] = value
    return weights


def _config(artifact: Artifact, tokenizer: TokenizerFiles) -> dict[str, Any]:
    return {
        "model_type": "jepamba",
        "architectures": ["JepambaForCausalLM"],
        "auto_map": {
            "AutoConfig": "modeling_jepamba.JepambaConfig",
            "AutoModel": "modeling_jepamba.JepambaModel",
            "AutoModelForCausalLM": "modeling_jepamba.JepambaForCausalLM",
        },
        "dtype": "float32",
        **asdict(artifact.model.config),
        "reset_at_bos": artifact.run.data.reset,
        **_special_ids(tokenizer),
    }


def _generation_config(artifact: Artifact, files: TokenizerFiles) -> dict[str, Any]:
    """Return what makes `generate` sample as `jepamba generate` does: the same distribution, and the same end."""
    tokenizer = artifact.tokenizer
    never = sorted(tokenizer.control_ids - {tokenizer.bos_id})
    never += range(tokenizer.vocab_size, artifact.model.config.vocab_size)
    sampling = {"do_sample": True, "temperature": artifact.temperature, "top_k": 0}
    return {**sampling, **_special_ids(files), **({"suppress_tokens": never} if never else {})}


def _special_ids(files: TokenizerFiles) -> dict[str, int | None]:
    """Return the ids of BOS, of EOS, which is the BOS of the next document, and of padding."""
    return {"bos_token_id": files.bos_id, "eos_token_id": files.bos_id, "pad_token_id": files.pad_id}


def _as_json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
