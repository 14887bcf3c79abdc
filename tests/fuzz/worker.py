"""One process's share of the work: a range of inputs of every reader, or the kept ones, and what came of them."""

from __future__ import annotations

import json
import os
import re
import tempfile
import traceback
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import torch

from .guard import End, Guard
from .readers import Case, Reader, make_reader

HERE = Path(__file__).parent
CORPUS = HERE / "corpus"
MODEL = CORPUS / "model.jepa"
"""The artifact that compressed files are read with: the kept ones hold its sha256."""
KEPT_BYTES = 60_000
"""Of the inputs that are kept for a reader, about."""


def make_case(reader: Reader, seed: int, number: int) -> tuple[Case, int]:
    """(input READER/SEED/NUMBER, the number of the sound file that it was made from)."""
    random = Random(f"{reader.name}/{seed}/{number}")
    which = random.randrange(len(reader.seeds))
    return reader.mutate(random, reader.seeds[which], random.choice(reader.seeds)), which


def kept_cases(reader: str) -> list[tuple[str, Case]]:
    """(name, case) of every kept input of `reader`."""
    folders = sorted(path for path in (CORPUS / reader).glob("*") if path.is_dir())
    return [(folder.name, {file.name: file.read_bytes() for file in folder.iterdir()}) for folder in folders]


class Tally:
    """What came of the inputs of one reader."""

    def __init__(self) -> None:
        self.kinds: Counter[str] = Counter()
        self.whats: Counter[str] = Counter()
        self.slowest: tuple[float, str] = (0.0, "")
        self.largest: tuple[float, int, str] = (0.0, 0, "")
        self.failures: list[str] = []

    def add(self, name: str, end: End) -> None:
        """Count one input."""
        self.kinds[end.kind] += 1
        if end.kind == "refused":
            self.whats[end.what] += 1
        self.slowest = max(self.slowest, (end.seconds, name))
        self.largest = max(self.largest, (end.ratio, end.bytes, name))
        if end.kind not in ("refused", "read"):
            self.failures.append(f"{name}: {end.kind}: {end.what}")

    def merge(self, other: Tally) -> None:
        """Add another process's counts."""
        self.kinds += other.kinds
        self.whats += other.whats
        self.slowest, self.largest = max(self.slowest, other.slowest), max(self.largest, other.largest)
        self.failures += other.failures

    def as_json(self) -> dict[str, Any]:
        """For `from_json`."""
        return {**vars(self)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Tally:
        """What `as_json` gave."""
        tally = cls()
        tally.kinds, tally.whats = Counter(values["kinds"]), Counter(values["whats"])
        seconds, largest = values["slowest"], values["largest"]
        tally.slowest, tally.largest = (seconds[0], seconds[1]), (largest[0], largest[1], largest[2])
        tally.failures = values["failures"]
        return tally


def work(readers: list[str], seed: int, start: int, stop: int, keep: bool, replay: bool, position: int) -> None:
    """Run inputs `start` to `stop` of each reader, and the kept ones (`replay`); print a JSON object of tallies.

    `position` is a file descriptor to which the name of each input is written before it is read.
    """
    torch.set_num_threads(1)
    tallies: dict[str, Tally] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in readers:
            work_folder = Path(folder, name)
            work_folder.mkdir()
            reader = make_reader(name, work_folder, MODEL)
            guard, tally = Guard(reader, work_folder), tallies.setdefault(name, Tally())
            if replay:
                for kept, case in kept_cases(name):
                    os.pwrite(position, f"{name}/{kept}".encode().ljust(200), 0)
                    tally.add(f"{name}/{kept}", guard.run(case))
            known = {kept for kept, _ in kept_cases(name)}
            for number in range(start, stop):
                label = f"{name}/{seed}/{number}"
                os.pwrite(position, label.encode().ljust(200), 0)
                case, which = make_case(reader, seed, number)
                end = guard.run(case, which)
                tally.add(label, end)
                if keep:
                    _keep(name, known, case, end)
    print(json.dumps({name: tally.as_json() for name, tally in tallies.items()}), flush=True)


def _keep(reader: str, known: set[str], case: Case, end: End) -> None:
    """Put `case` into the corpus if none there ended alike."""
    slug = re.sub(r"[^a-z]+", "-", f"{end.kind} {end.what}".lower())[-60:].strip("-")
    size = sum(file.stat().st_size for file in (CORPUS / reader).rglob("*") if file.is_file())
    if slug in known or size > KEPT_BYTES or sum(map(len, case.values())) > KEPT_BYTES // 3:
        return
    known.add(slug)
    folder = CORPUS / reader / slug
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in case.items():
        (folder / name).write_bytes(content)


def show(name: str) -> int:
    """Read one input, READER/SEED/NUMBER or READER/KEPT, and let its error through."""
    reader_name, _, rest = name.partition("/")
    with tempfile.TemporaryDirectory() as folder:
        reader = make_reader(reader_name, Path(folder), MODEL)
        if rest.count("/") == 1:
            case, _ = make_case(reader, *map(int, rest.split("/")))
        else:
            case = dict(kept_cases(reader_name))[rest]
        target = Path(folder, "case")
        target.mkdir()
        for file, content in case.items():
            (target / file).write_bytes(content)
        try:
            reader.read(target)
        except Exception:
            traceback.print_exc()
            return 1
    print("read")
    return 0
