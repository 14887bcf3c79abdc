"""The readers under test: for each, sound files, mutations that know the format, and what a result must be like.

A case is the files of one input, by name. Most mutations of what lies behind a checksum put the checksum right again,
so that the code behind it meets what they changed.
"""

from __future__ import annotations

import hashlib
import io
import json
import struct
import zlib
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any, Protocol

import numpy as np
import sentencepiece
import torch

from jepamba.artifact import load_artifact, save_artifact
from jepamba.artifact.codecs import CODECS
from jepamba.artifact.container import MAGIC, PREAMBLE, VERSION
from jepamba.artifact.heads import HEADS, load_heads, save_heads
from jepamba.compress import Compressor
from jepamba.compress.file_format import MAX_FILE_BYTES, CompressedFile
from jepamba.compress.tokens import to_ids
from jepamba.config import Jepa, Run, from_dict
from jepamba.data import Corpus, Tokens, open_folder, open_shard
from jepamba.data.folder import META
from jepamba.data.writer import FolderWriter
from jepamba.io import read_untrusted
from jepamba.jepa import JepaHeads
from jepamba.model import LanguageModel
from jepamba.text import ByteTokenizer, Tokenizer, read_tokenizer, train_bpe
from jepamba.train.checkpoint import STATE, TENSORS, load_checkpoint, save_checkpoint
from jepamba.train.device import choose_device
from jepamba.train.state import TrainState

from .mutate import edge, mutate_bytes, mutate_fields, mutate_json

Case = dict[str, bytes]
TEXT = "The quick brown fox jumps over the lazy dog.\n\nNaïve 日本語, and so on. "
SMALL: dict[str, Any] = {"embed_dim": 4, "d_model": 8, "n_layer": 1, "d_state": 2, "headdim": 8, "mlp_mult": 1.0}


class Reader(Protocol):
    """One format: how files of it are made, damaged and read."""

    name: str
    seeds: list[Case]

    def mutate(self, random: Random, case: Case, other: Case) -> Case:
        """`case` with something wrong; `other` is there to splice from."""
        ...

    def read(self, folder: Path) -> None:
        """Read the case in `folder` as the program does. Returns if the result is a valid one; an `AssertionError`
        says that it is not."""
        ...


def tiny_run(tokenizer: Tokenizer, **model: Any) -> Run:
    """The smallest run that has every part."""
    settings = {
        "data": {"tokenizer": "bytes" if tokenizer.kind == "bytes" else "bpe", "seq_len": 8},
        "model": SMALL | {"vocab_size": tokenizer.vocab_size} | model,
        "quant": {"large": 64},
        "train": {"steps": 1, "tokens_per_step": 8, "tokens_per_micro": 8},
        "jepa": {"sigreg_projections": 4, "sigreg_samples": 8},
    }
    return from_dict(settings)


class ArtifactReader:
    """`artifact.jepa`: preamble, packed JSON, compressed blocks, sha256."""

    name = "artifact"
    file = "a.jepa"

    def __init__(self, work: Path) -> None:
        torch.manual_seed(0)
        self.seeds = []
        for tokenizer, changes in (
            (ByteTokenizer(), {}),
            (train_bpe([TEXT] * 9, 290), {"tie": 2, "n_layer": 2, "mlp": "swiglu"}),
        ):
            run = tiny_run(tokenizer, **changes)
            save_artifact(work / self.file, LanguageModel(run.model, run.quant), run, tokenizer)
            self.seeds.append({self.file: (work / self.file).read_bytes()})

    def mutate(self, random: Random, case: Case, other: Case) -> Case:
        """See `Reader`."""
        content, way = case[self.file], random.random()
        if way < 0.25:
            return {self.file: mutate_bytes(random, content, [other[self.file]])}
        header, payload = self._split(content)
        text = json.dumps(header).encode()
        if way < 0.65:
            text = json.dumps(mutate_json(random, header)).encode()
        elif way < 0.75:
            text = mutate_bytes(random, text, [json.dumps(self._split(other[self.file])[0]).encode()])
        elif way < 0.85:
            payload = mutate_bytes(random, payload, [other[self.file]])
        else:
            header, payload = self._another_block(random, header, payload)
            text = json.dumps(header).encode()
        return {self.file: self._sealed(random, text, payload)}

    def read(self, folder: Path) -> None:
        """See `Reader`."""
        artifact = load_artifact(folder / self.file)
        assert all(bool(value.isfinite().all()) for value in artifact.model.parameters())
        ids = torch.from_numpy(artifact.tokenizer.encode("a b").astype(np.int64))[None]
        with torch.inference_mode():
            h, _ = artifact.model(ids)
            assert artifact.model.logits(h).shape == (1, ids.shape[1], artifact.model.config.vocab_size)

    @staticmethod
    def _split(content: bytes) -> tuple[dict[str, Any], bytes]:
        start = PREAMBLE.size + PREAMBLE.unpack_from(content)[2]
        header: dict[str, Any] = json.loads(zlib.decompress(content[PREAMBLE.size : start]))
        return header, content[start:-32]

    @staticmethod
    def _sealed(random: Random, text: bytes, payload: bytes) -> bytes:
        packed = zlib.compress(text, 1)
        if random.random() < 0.05:
            packed = mutate_bytes(random, packed, [payload])
        content = PREAMBLE.pack(MAGIC, VERSION, len(packed), len(payload)) + packed + payload
        return content + hashlib.sha256(content).digest()

    @staticmethod
    def _another_block(random: Random, header: dict[str, Any], payload: bytes) -> tuple[dict[str, Any], bytes]:
        """One block in another codec, or of other bytes, with the length right."""
        index, codec = random.randrange(len(header["blocks"])), random.choice(list(CODECS))
        start = sum(block["length"] for block in header["blocks"][:index])
        old = payload[start : start + header["blocks"][index]["length"]]
        size = sum(8 * s["bits"] * int(np.prod(s["shape"])) // 64 + 1 for s in header["streams"] if s["block"] == index)
        raw = random.choice(
            (bytes(size), random.randbytes(size), b"\x11" * size, bytes(random.choice((0, 1, 1 << 22))))
        )
        compress = getattr(CODECS[codec], "compress", lambda data: data)
        new = random.choice((compress(raw), mutate_bytes(random, old, [raw])))
        header["blocks"][index] = {
            "codec": random.choice((codec, header["blocks"][index]["codec"])),
            "length": len(new),
        }
        return header, payload[:start] + new + payload[start + len(old) :]


class CompressedReader:
    """What `jepamba compress` writes: a fixed head, sections, CRC-32. The artifact is `model`, a sound one."""

    name = "compressed"
    file = "a.jpc"
    texts = (b"abc " * 20, b"ab\0c\n\n\xff\xfe " * 6, TEXT.encode(), b"")

    def __init__(self, model: Path) -> None:
        self.compressor = Compressor.open(model)
        tokenizer = self.compressor.artifact.tokenizer
        self.seeds = []
        for text, lanes in zip(self.texts, (16, 5, 40, 0), strict=True):
            ids = to_ids(tokenizer, text)
            coded = self.compressor.code(text, ids, min(lanes, ids.size)) if lanes else None
            self.seeds.append({self.file: (coded or self.compressor.compress(text)).content})

    def mutate(self, random: Random, case: Case, other: Case) -> Case:
        """See `Reader`."""
        content, way = case[self.file], random.random()
        if way < 0.3:
            return {self.file: mutate_bytes(random, content, [other[self.file]])}
        if way < 0.6:
            content = mutate_bytes(random, content[:-4], [other[self.file]])
            return {self.file: content + struct.pack("<I", zlib.crc32(content))}
        packed, theirs = CompressedFile.from_bytes(content), CompressedFile.from_bytes(other[self.file])
        sections = list(packed.sections)
        which = random.randrange(len(sections) + 1)
        if which < len(sections):
            sections[which] = mutate_bytes(random, sections[which], theirs.sections)
            sections[which] = sections[which].ljust(-(-len(sections[which]) // 4) * 4, b"\0")
        changes: dict[str, Any] = {
            "tokens": edge(random, 32) if random.random() < 0.5 else max(0, packed.tokens + random.randrange(-3, 4)),
            "lanes": edge(random, 16) if random.random() < 0.5 else max(0, packed.lanes + random.randrange(-3, 4)),
            "size": edge(random, 64),
            "original": theirs.original,
            "corrections": mutate_bytes(random, packed.corrections, [theirs.corrections, random.randbytes(64)]),
            "sections": tuple(sections),
            "probe": theirs.probe,
        }
        names = random.sample(list(changes), random.choice((1, 1, 2)))
        return {self.file: replace(packed, **{name: changes[name] for name in names}).to_bytes()}

    def read(self, folder: Path) -> None:
        """See `Reader`."""
        content = read_untrusted(folder / self.file, "a compressed file", MAX_FILE_BYTES)
        assert self.compressor.decompress(content) in self.texts


class ShardReader:
    """A shard, and the folder of shards with its description and its tokenizer."""

    name = "shard"
    shard, model = "text_train_000000.bin", "tokenizer.model"

    def __init__(self, work: Path) -> None:
        tokenizer = train_bpe([TEXT] * 9, 290)
        with FolderWriter(work / "shards", tokenizer, limit=300) as writer:
            writer.write([("train", TEXT), ("val", TEXT), ("train", TEXT * 9)])
        self.seeds = [{path.name: path.read_bytes() for path in (work / "shards").iterdir()}]
        self.seeds.append({self.shard: self.seeds[0][self.shard]})

    def mutate(self, random: Random, case: Case, other: Case) -> Case:
        """See `Reader`."""
        name = random.choice([*[file for file in case if file.endswith(".bin")], *case])
        content = case[name]
        if name == META and random.random() < 0.8:
            return case | {name: json.dumps(mutate_json(random, json.loads(content))).encode()}
        if name.endswith(".bin") and random.random() < 0.5:
            head = bytearray(content[:1024])
            struct.pack_into("<I", head, 4 * random.choice((0, 1, 2, 2, 2, 3)), edge(random, 32))
            return case | {name: bytes(head) + content[1024:]}
        return case | {name: mutate_bytes(random, content, list(other.values()))}

    def read(self, folder: Path) -> None:
        """See `Reader`."""
        if not (folder / META).exists():
            assert int(open_shard(folder / self.shard, 290, whole=True)[:].max()) < 290
            return
        opened = open_folder(folder)
        for split in opened.splits:
            tokens = opened.tokens(split)
            assert tokens.decoded_bytes == len(tokens.text())
            assert int(tokens.read(0, len(tokens)).max(initial=0)) < opened.tokenizer.vocab_size


class TokenizerReader:
    """A SentencePiece model, given as a file: BPE with byte pieces, and unigram without."""

    name = "tokenizer"
    file = "a.model"

    def __init__(self, work: Path) -> None:
        bare = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([TEXT] * 9), model_writer=bare, model_type="unigram", vocab_size=80, minloglevel=2,
            hard_vocab_limit=False, pad_id=0, bos_id=1, eos_id=2, unk_id=3,
        )  # fmt: skip
        self.seeds = [{self.file: blob} for blob in (train_bpe([TEXT] * 9, 290).serialize(), bare.getvalue())]

    def mutate(self, random: Random, case: Case, other: Case) -> Case:
        """See `Reader`."""
        change = mutate_bytes if random.random() < 0.2 else mutate_fields
        return {self.file: change(random, case[self.file], [other[self.file]])}

    def read(self, folder: Path) -> None:
        """See `Reader`."""
        tokenizer = read_tokenizer(folder / self.file)
        ids = tokenizer.encode(TEXT)
        before = np.concatenate(([tokenizer.bos_id], ids[:-1]))
        assert int(ids.max(initial=0)) < tokenizer.vocab_size
        assert len(tokenizer.decode(ids, tokenizer.bos_id)) == int(tokenizer.target_bytes(before, ids).sum())


class CheckpointReader:
    """A checkpoint's tensors and state, and the training state that they are put into."""

    name = "checkpoint"

    def __init__(self, work: Path) -> None:
        tokenizer = ByteTokenizer()
        ids = np.frombuffer(TEXT.encode() * 9, dtype=np.uint8).astype(np.uint16)
        tokens = Tokens([ids], tokenizer)
        run = tiny_run(tokenizer)
        self.state = TrainState(run, Corpus(tokens, tokens, tokenizer, len(ids)), choose_device(run.train))
        saved = save_checkpoint(work, 1, self.state.tensors(), self.state.metadata(), 1)
        self.seeds = [{name: (saved / name).read_bytes() for name in (TENSORS, STATE)}]

    def mutate(self, random: Random, case: Case, other: Case) -> Case:
        """See `Reader`."""
        tensors, state, way = case[TENSORS], case[STATE], random.random()
        if way < 0.2:
            name = random.choice((TENSORS, STATE))
            return case | {name: mutate_bytes(random, case[name], list(other.values()))}
        if way < 0.5:
            return case | {STATE: json.dumps(mutate_json(random, json.loads(state))).encode()}
        start = 8 + int.from_bytes(tensors[:8], "little")
        header, data = tensors[8:start], tensors[start:]
        if way < 0.75:
            header = json.dumps(mutate_json(random, json.loads(header))).encode()
        elif way < 0.85:
            header = mutate_bytes(random, header, [state])
        else:
            data = mutate_bytes(random, data, [tensors])
        size = len(header) if random.random() < 0.95 else edge(random, 64)
        tensors = size.to_bytes(8, "little") + header + data
        known = json.loads(state) | {"sha256": hashlib.sha256(tensors).hexdigest()}
        return {TENSORS: tensors, STATE: json.dumps(known).encode()}

    def read(self, folder: Path) -> None:
        """See `Reader`."""
        self.state.restore(*load_checkpoint(folder))
        done = self.state.counters
        assert all(type(value) is int and value >= 0 for value in (done.step, done.tokens, done.bytes))
        assert type(done.seconds) is float
        assert 0 <= done.seconds < float("inf")
        self.state.loader.next(1)
        for parameter in self.state.parameters():
            assert parameter.dtype == torch.float32


class HeadsReader:
    """`heads.safetensors`: JEPA heads, with their settings in the metadata."""

    name = "heads"
    file = HEADS

    def __init__(self, work: Path) -> None:
        torch.manual_seed(0)
        self.seeds = []
        for projector in ("linear", "mlp-batchnorm"):
            config = Jepa(projector=projector, predictor_mult=2, action=projector == "linear")  # type: ignore[arg-type]
            save_heads(work / self.file, JepaHeads(config, 8), config, "0" * 64)
            self.seeds.append({self.file: (work / self.file).read_bytes()})

    def mutate(self, random: Random, case: Case, other: Case) -> Case:
        """See `Reader`."""
        content, way = case[self.file], random.random()
        if way < 0.2:
            return {self.file: mutate_bytes(random, content, [other[self.file]])}
        start = 8 + int.from_bytes(content[:8], "little")
        header, data = json.loads(content[8:start]), content[start:]
        if way < 0.5:
            settings = mutate_json(random, json.loads(header["__metadata__"]["jepamba_heads"]))
            header["__metadata__"]["jepamba_heads"] = json.dumps(settings)
        elif way < 0.8:
            header = mutate_json(random, header)
        else:
            data = mutate_bytes(random, data, [content])
        text = json.dumps(header).encode()
        return {self.file: len(text).to_bytes(8, "little") + text + data}

    def read(self, folder: Path) -> None:
        """See `Reader`."""
        heads = load_heads(folder / self.file, 8, "0" * 64)
        with torch.inference_mode():
            z_BTE = heads.project(torch.ones(1, 2, 8))
            assert heads.step(z_BTE, z_BTE if heads.config.action else None).shape == (1, 2, 8)
        assert heads.config.rollout_steps >= 1


def make_reader(name: str, work: Path, model: Path) -> Reader:
    """The reader called `name`; its sound files are made in `work`, `model` is the artifact of the compressed ones."""
    if name == CompressedReader.name:
        return CompressedReader(model)
    return {kind.name: kind for kind in _KINDS}[name](work)


_KINDS = (ArtifactReader, ShardReader, TokenizerReader, CheckpointReader, HeadsReader)
READERS = (*(kind.name for kind in _KINDS), CompressedReader.name)
