"""Score the artifact of a submission, and compare the score with the claim; part of `program.py`."""

from __future__ import annotations

import json
import lzma
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jepamba.artifact.store import load_artifact
from jepamba.config.train import Train
from jepamba.data.shards import open_shard
from jepamba.data.tokens import Tokens
from jepamba.distributed.collectives import SINGLE_PROCESS, World
from jepamba.errors import UserError
from jepamba.evaluate.windowed import score_plain, score_sliding
from jepamba.text.protocol import Tokenizer, join_documents, utf8
from jepamba.train.device import choose_device

TOLERANCE = 1e-4
"""Maximum difference from the claim in bits per byte, because rounding differs between machines."""


def score_artifact_at(
    artifact: Path, data: list[Path], stride: int, batch: int = 0, world: World = SINGLE_PROCESS
) -> dict[str, Any]:
    """Score `artifact` on `data` at its temperature, on a GPU if available. All ranks must call it.

    Arguments: `stride`: of sliding windows; 0: plain windows. `batch`: tokens of a forward pass; 0: by the device.
    Returns: the `Score` as a dictionary. Raises `UserError`.
    """
    device = choose_device(Train(steps=1)).device
    loaded = load_artifact(artifact, device=device)
    tokens = read_tokens(data, loaded.tokenizer)
    seq_len, options = loaded.run.data.seq_len, dict[str, Any](temperature=loaded.temperature, world=world)
    options |= {"reset": loaded.run.data.reset, "tokens_per_batch": batch}
    if stride == 0:
        return asdict(score_plain(loaded.model, tokens, seq_len, **options))
    return asdict(score_sliding(loaded.model, tokens, seq_len, stride=stride, **options))


def read_tokens(paths: list[Path], tokenizer: Tokenizer, split: str = "val") -> Tokens:
    """Return the tokens of shards (files, or `*_{split}_*.bin` of a folder), or of UTF-8 text, possibly as .xz.

    A NUL separates the documents of a text. Raises `UserError` for files that cannot be read.
    """
    files = [file for path in paths for file in (sorted(path.glob(f"*_{split}_*.bin")) if path.is_dir() else [path])]
    if not files:
        raise UserError(f"{paths[0]}: no *_{split}_*.bin shard in it")
    if all(file.suffix == ".bin" for file in files):
        return Tokens([open_shard(file, tokenizer.vocab_size) for file in files], tokenizer)
    documents: list[str] = []
    for file in files:
        try:
            raw = lzma.decompress(file.read_bytes()) if file.suffix == ".xz" else file.read_bytes()
            documents += filter(None, raw.decode("utf-8-sig").split("\0"))
        except (OSError, lzma.LZMAError, UnicodeDecodeError) as error:
            raise UserError(f"{file}: cannot be read as text ({error})") from None
    tokens = join_documents(tokenizer, tokenizer.encode_batch(documents))
    return Tokens([tokens], tokenizer, sum(len(utf8(text)) for text in documents))


def compare(claims: Path, score: Mapping[str, Any]) -> int:
    """Compare the score with the claim in the file `claims`, if there is one, and print the result.

    Returns the exit code: 0 if they are equal to `TOLERANCE`, else 1.
    """
    if not claims.exists():
        return 0
    claim = json.loads(claims.read_text(encoding="utf-8"))
    if (claim["mode"], claim["val_tokens"], claim["val_bytes"]) != (
        score["mode"],
        score["tokens"],
        score["decoded_bytes"],
    ):
        print(
            f"train_gpt.py: claimed for {claim['mode']}, {claim['val_tokens']:,} targets, {claim['val_bytes']:,} bytes"
            f"; scored here: {score['mode']}, {score['tokens']:,} targets, {score['decoded_bytes']:,} bytes",
            file=sys.stderr,
        )
        return 1
    off = abs(score["bpb_decoded"] - claim["val_bpb"])
    print(
        f"train_gpt.py: {score['bpb_decoded']:.6f} BPB, claimed {claim['val_bpb']:.6f}, off by {off:.1e}",
        file=sys.stderr,
    )
    return int(off > TOLERANCE)
