"""The program of a submission's `score.py`: score the artifact in its folder and compare the score with the claim.

`bundle.py` makes one file of it, so it may import only modules that need PyTorch, NumPy, SentencePiece and codecs.
"""

from __future__ import annotations

import argparse
import json
import lzma
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from jepamba.artifact.store import load_artifact
from jepamba.data.shards import open_shard
from jepamba.data.tokens import Tokens
from jepamba.errors import UserError
from jepamba.evaluate.score import Score
from jepamba.evaluate.windowed import score_plain, score_sliding
from jepamba.text.protocol import Tokenizer, join_documents, utf8

TOLERANCE = 1e-4
"""Maximum difference from the claim in bits per byte, because rounding differs between machines."""


def main(script: str, stride: int) -> int:
    """Score the artifact in the folder of `script` on `--data`, in sliding windows with `stride` (0: plain windows).

    Prints one JSON object with the score and the bytes of model and code. Returns the exit code. 0: the score equals
    the claim in submission.json, or there is no claim; 1: it differs; 2: a user error, with one line that names it.
    """
    folder = Path(script).parent
    parser = argparse.ArgumentParser(description="Bits per byte of the artifact beside this script.")
    parser.add_argument("--data", required=True, nargs="+", type=Path, help="*_val_*.bin shards, their folder, or text")
    parser.add_argument("--artifact", type=Path, default=folder / "artifact.jepa")
    parser.add_argument("--sliding", type=int, default=stride, help=f"stride; 0: plain windows (default: {stride})")
    parser.add_argument("--batch", type=int, default=0, help="tokens of a forward pass (default: by the device)")
    args = parser.parse_args()
    try:
        score = score_data(args.artifact, args.data, args.sliding, args.batch)
    except UserError as error:
        print(f"score.py: {error}", file=sys.stderr)
        return 2
    code, model = Path(script).stat().st_size, args.artifact.stat().st_size
    print(json.dumps({**asdict(score), "bytes_model": model, "bytes_code": code, "bytes_total": model + code}))
    return _compared(folder / "submission.json", score)


def score_data(artifact: Path, data: list[Path], stride: int, batch: int = 0) -> Score:
    """Return the score of `artifact` on `data` at its temperature, on a GPU if available. Raises `UserError`."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    loaded = load_artifact(artifact, device=device)
    tokens = read_tokens(data, loaded.tokenizer)
    seq_len, reset, temperature = loaded.run.data.seq_len, loaded.run.data.reset, loaded.temperature
    batch = batch or (1 << 18 if device == "cuda" else 1 << 14)
    if stride == 0:
        return score_plain(loaded.model, tokens, seq_len, temperature=temperature, reset=reset, tokens_per_batch=batch)
    return score_sliding(
        loaded.model, tokens, seq_len, stride=stride, temperature=temperature, reset=reset, tokens_per_batch=batch
    )


def read_tokens(paths: list[Path], tokenizer: Tokenizer) -> Tokens:
    """Return the tokens of shards (files, or `*_val_*.bin` of a folder), or of UTF-8 text, possibly as .xz.

    A NUL separates the documents of a text. Raises `UserError` for files that cannot be read.
    """
    files = [file for path in paths for file in (sorted(path.glob("*_val_*.bin")) if path.is_dir() else [path])]
    if not files:
        raise UserError(f"{paths[0]}: no *_val_*.bin shard in it")
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


def _compared(claims: Path, score: Score) -> int:
    """Compare the score with the claim, print the result, and return the exit code."""
    if not claims.exists():
        return 0
    claim = json.loads(claims.read_text(encoding="utf-8"))
    if (claim["mode"], claim["val_tokens"], claim["val_bytes"]) != (score.mode, score.tokens, score.decoded_bytes):
        print(
            f"score.py: claimed for {claim['mode']}, {claim['val_tokens']:,} targets, {claim['val_bytes']:,} bytes; "
            f"scored here: {score.mode}, {score.tokens:,} targets, {score.decoded_bytes:,} bytes",
            file=sys.stderr,
        )
        return 1
    off = abs(score.bpb_decoded - claim["val_bpb"])
    print(f"score.py: {score.bpb_decoded:.6f} BPB, claimed {claim['val_bpb']:.6f}, off by {off:.1e}", file=sys.stderr)
    return int(off > TOLERANCE)
