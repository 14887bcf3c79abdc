"""Tokenizers, artifacts and texts that the tests of compression share."""

from __future__ import annotations

import functools
import io
from pathlib import Path

import numpy as np
import sentencepiece
import torch

from jepamba.artifact import save_artifact
from jepamba.compress import Compressor
from jepamba.compress.tokens import to_ids
from jepamba.config import Data, Model, Quant, Run, Train
from jepamba.model import LanguageModel
from jepamba.text import ByteTokenizer, SentencePieceTokenizer, Tokenizer, train_bpe
from tiny import TOPICS

LONG = "\0".join(TOPICS[60:]).encode()[:175_000]
TEXT = LONG[:20_000]


@functools.cache
def sentences(**changes: object) -> SentencePieceTokenizer:
    """A tokenizer as the published one is: spaces and line ends run together, characters replaced (NFKC)."""
    model = io.BytesIO()
    given_settings: dict[str, object] = {
        "model_type": "bpe", "vocab_size": 400, "byte_fallback": True, "pad_id": 0, "bos_id": 1, "eos_id": 2,
        "unk_id": 3, "minloglevel": 3, "hard_vocab_limit": False, "add_dummy_prefix": False,
    }  # fmt: skip
    lines = [line for text in TOPICS[:20] for line in text.splitlines() if line]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, **(given_settings | changes)
    )
    return SentencePieceTokenizer(model.getvalue())


@functools.cache
def tokenizer_named(name: str) -> Tokenizer:
    if name == "trained":
        return train_bpe(TOPICS[:40], 500)
    made: dict[str, Tokenizer] = {"bytes": ByteTokenizer(), "shards": ByteTokenizer(False)}
    if name in made:
        return made[name]
    return sentences(**({"byte_fallback": False, "add_dummy_prefix": True} if name == "no bytes" else {}))


KINDS = ["bytes", "shards", "trained", "normalising", "no bytes"]


def artifact_at(path: Path, tokenizer: Tokenizer, sample: bytes, reset: bool = True) -> Path:
    """An artifact whose model knows how often the tokens of `sample` occur, and a little of what it has read."""
    torch.manual_seed(0)
    run = Run(
        data=Data(tokenizer="bytes" if tokenizer.kind == "bytes" else "bpe", seq_len=8, reset=reset),
        model=Model(
            vocab_size=tokenizer.vocab_size, embed_dim=8, d_model=8, n_layer=2, d_state=4, headdim=8, mlp_mult=1.0,
            softcap="off",
        ),
        quant=Quant(large=64),
        train=Train(steps=1, tokens_per_step=8, tokens_per_micro=8),
    )  # fmt: skip
    model = LanguageModel(run.model, run.quant)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    counts = np.bincount(to_ids(tokenizer, sample), minlength=tokenizer.vocab_size) + 0.05
    model.head.vocab_bias.master.data = torch.from_numpy(np.log(counts / counts.sum())).float()
    save_artifact(path, model, run, tokenizer, temperature=0.9)
    return path


def coded(model: Compressor, data: bytes, lanes: int = 32) -> bytes:
    """`data` compressed by the model, however large that is."""
    ids = to_ids(model.artifact.tokenizer, data)
    return model.code(data, ids, min(lanes, ids.size)).content


ODD = [
    b"\0",
    b"\0\0a\0",
    b" a\n\n\nb\r\n  c\t",
    "…ﬁ e\u0301 \ufeff ｆｕｌｌ 漢字😀 ▁ ▁▁<s>".encode(),
    b"text \xff\xfe and \x80 more" * 3,
    b"\n" * 600 + b"x",
]
