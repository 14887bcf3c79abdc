"""Tests of `jepamba data fineweb` against a fake hub server: downloads, failures, and resumed downloads."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from folder_holder import held
from hub_server import HubServer, commit
from jepamba.cli import main
from jepamba.config import Data
from jepamba.data import corpus, open_folder
from jepamba.data.fineweb import VARIANTS, fetch_fineweb
from jepamba.data.shards import MAGIC
from jepamba.errors import UserError
from jepamba.text import train_bpe
from processes import Running, ended

TOKENIZER = train_bpe(["the tokenizer of these shards, for as long as the test lasts"], 300)
BPE, BYTES = VARIANTS["sp8192"].repository, VARIANTS["bytes"].repository
FOLDER = "datasets/datasets/fineweb10B_sp8192"


def shard(seed: int, vocab: int, count: int = 40_000) -> bytes:
    header = np.zeros(256, dtype="<i4")
    header[:3] = MAGIC, 1, count
    return header.tobytes() + np.random.default_rng(seed).integers(vocab, size=count).astype("<u2").tobytes()


def published() -> dict[str, dict[str, dict[str, bytes]]]:
    """A fake hub with the two repositories in their published layout, small shards, and other vocabularies."""
    pieces = {f"{FOLDER}/fineweb_train_{i:06d}.bin": shard(i, 300) for i in range(3)}
    others = {f"datasets/datasets/fineweb10B_sp1024/fineweb_train_{i:06d}.bin": shard(9, 256) for i in range(2)}
    return {
        BPE: {
            "main": {
                "README.md": b"# FineWeb",
                "datasets/manifest.json": b"{}",
                **others,
                **pieces,
                f"{FOLDER}/fineweb_val_000000.bin": shard(7, 300),
                "datasets/tokenizers/fineweb_1024_bpe.model": b"another",
                "datasets/tokenizers/fineweb_8192_bpe.model": TOKENIZER.serialize(),
            }
        },
        BYTES: {
            "main": {
                **{f"fineweb_train_{i:06d}.bin": shard(20 + i, 256) for i in range(2)},
                "fineweb_val_000000.bin": shard(27, 256),
            }
        },
    }


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    from huggingface_hub import constants

    with HubServer(published()) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
        yield server


def refusal(*args: object, **kwargs: object) -> str:
    with pytest.raises(UserError) as caught:
        fetch_fineweb(*args, **kwargs)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_shards_and_their_tokenizer_come_and_are_data(hub: HubServer, tmp_path: Path) -> None:
    out, heard = tmp_path / "fineweb", []
    folder = fetch_fineweb("sp8192", 2, out, progress=lambda done, total, note="": heard.append((done, total)))
    files = hub.data_sets[BPE]["main"]
    assert sorted(file.name for file in out.iterdir()) == [
        "fineweb_train_000000.bin",
        "fineweb_train_000001.bin",
        "fineweb_val_000000.bin",
        "meta.json",
        "source.json",
        "tokenizer.model",
    ]
    for split in ("train", "val"):
        for name in folder.splits[split].shards:
            assert (out / name).read_bytes() == files[f"{FOLDER}/{name}"]
    assert (out / "tokenizer.model").read_bytes() == TOKENIZER.serialize()
    assert json.loads((out / "source.json").read_text()) == {
        "repository": BPE,
        "commit": commit(files),
        "variant": "sp8192",
        "endpoint": hub.url,
    }
    # Everything was requested at the one commit, and nothing came twice.
    assert {path.split("/")[5] for _, path in hub.requests if "/resolve/" in path} == {commit(files)}
    size = sum(len(files[path]) for path in hub.sent)
    assert (sum(hub.sent.values()), heard[-1]) == (size, (size, size))
    found = corpus(Data(train=str(out)))
    assert (len(found.train), len(found.val)) == (80_000, 40_000)
    assert found.tokenizer.fingerprint == TOKENIZER.fingerprint
    assert found.val_text_bytes == found.val.decoded_bytes
    before = dict(hub.sent)
    # More shards are added, fewer take none away, and what is there does not come again.
    assert len(fetch_fineweb("sp8192", 3, out).splits["train"].shards) == 3
    assert len(fetch_fineweb("sp8192", 1, out).splits["train"].shards) == 3
    assert hub.sent == {**before, f"{FOLDER}/fineweb_train_000002.bin": 81_024}


def test_byte_shards_are_downloaded_unchanged(hub: HubServer, tmp_path: Path) -> None:
    folder = fetch_fineweb("bytes", 2, tmp_path / "bytes")
    assert (folder.tokenizer.kind, folder.tokenizer.separator) == ("bytes", False)
    found = corpus(Data(train=str(tmp_path / "bytes"), tokenizer="bytes"))
    assert (len(found.train), found.val_text_bytes) == (80_000, 40_000)
    hub.data_sets["mine/bytes"] = {"main": {**hub.data_sets[BYTES]["main"], "other/fineweb_val_000000.bin": b""}}
    assert "'bytes'; found other, the top folder" in refusal("bytes", 1, tmp_path / "two", "mine/bytes")


def test_a_repository_may_have_no_validation(hub: HubServer, tmp_path: Path) -> None:
    del hub.data_sets[BYTES]["main"]["fineweb_val_000000.bin"]
    assert set(fetch_fineweb("bytes", 1, tmp_path / "out").splits) == {"train"}
    with pytest.raises(UserError, match="no 'val' split; its splits are train"):
        corpus(Data(train=str(tmp_path / "out"), tokenizer="bytes"))
    shards = str(tmp_path / "out" / "fineweb_train_000000.bin")
    assert len(corpus(Data(train=str(tmp_path / "out"), val=shards, tokenizer="bytes")).val) == 40_000


def test_a_broken_download_is_resumed(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What has come is written in pieces of so many bytes; the library's are of 10 MB.
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 4096)
    path = f"{FOLDER}/fineweb_train_000001.bin"
    hub.cut[path] = [40_000]
    folder = fetch_fineweb("sp8192", 2, tmp_path / "out")
    assert (tmp_path / "out" / folder.splits["train"].shards[1]).read_bytes() == hub.data_sets[BPE]["main"][path]
    whole = 40_000 // 4096 * 4096
    assert hub.resumed == [(path, whole)]
    assert hub.sent[path] == 40_000 + 81_024 - whole


def test_a_repeated_call_downloads_only_missing_files(hub: HubServer, tmp_path: Path) -> None:
    """A repeated call also keeps the recorded commit, even if a newer commit exists."""
    out, second = tmp_path / "out", f"{FOLDER}/fineweb_train_000001.bin"
    hub.broken.add(second)
    message = refusal("sp8192", 2, out)
    assert second in message
    assert "answered 403" in message
    assert not (out / "meta.json").exists()
    came = dict(hub.sent)
    hub.broken.clear()
    old = hub.data_sets[BPE]["main"]
    hub.data_sets[BPE] = {"main": {**old, second: shard(99, 300)}, "before": old}
    with pytest.raises(UserError, match="choose another folder for main"):
        fetch_fineweb("sp8192", 2, out, revision="main")
    fetch_fineweb("sp8192", 2, out)
    assert hub.sent == {**came, second: 81_024}
    assert (out / "fineweb_train_000001.bin").read_bytes() == old[second]


def test_two_downloads_into_one_folder(hub: HubServer, tmp_path: Path) -> None:
    fetch_fineweb("sp8192", 1, tmp_path / "out")
    with held(tmp_path / "out"):
        assert "another process writes to it" in refusal("sp8192", 2, tmp_path / "out")
    assert fetch_fineweb("sp8192", 2, tmp_path / "out").splits["train"].tokens == 80_000


def test_errors_name_missing_files(hub: HubServer, tmp_path: Path) -> None:
    out = tmp_path / "new"
    files = hub.data_sets[BPE]["main"]
    message = refusal("sp8192", 4, out)
    assert f"{BPE}: {FOLDER}/fineweb_train_000003.bin: there is no such file; the repository has 3 shards" in message
    second = files.pop(f"{FOLDER}/fineweb_train_000001.bin")
    assert "fineweb_train_000001.bin: there is no such file" in refusal("sp8192", 2, out)
    files[f"{FOLDER}/fineweb_train_000001.bin"] = second
    hub.gone.add(f"{FOLDER}/fineweb_val_000000.bin")
    assert "fineweb_val_000000.bin: there is no such file" in refusal("sp8192", 1, tmp_path / "begun")
    files.pop("datasets/tokenizers/fineweb_8192_bpe.model")
    assert "no file named fineweb_8192_bpe.model" in refusal("sp8192", 1, out)
    assert "there is no such data set" in refusal("sp8192", 1, out, "no/body")
    assert "'nobody': not the name of a data set" in refusal("sp8192", 1, out, "nobody")
    assert "revision 'old': there is no such revision" in refusal("sp8192", 1, out, revision="old")
    assert "found datasets/datasets/fineweb10B_sp1024" in refusal("bytes", 1, out, BPE)
    assert "at least one" in refusal("sp8192", 0, out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (shard(1, 300)[:-2], "the header says 40000 tokens, that is 81024 bytes, but the file has 81022"),
        (b"\0" + shard(1, 300)[1:], "not a shard: it starts with"),
        (shard(1, 300)[:8] + bytes(4) + shard(1, 300)[12:], "the header says 0 tokens"),
        (shard(1, 300)[:-2] + b"\x2c\x01", "token 300 at position 39999, but the tokenizer has 300 symbols"),
    ],
)
def test_a_damaged_shard_is_refused_by_name_and_not_kept(
    hub: HubServer, tmp_path: Path, content: bytes, complaint: str
) -> None:
    path = f"{FOLDER}/fineweb_train_000001.bin"
    hub.data_sets[BPE]["main"][path] = content
    message = refusal("sp8192", 2, tmp_path / "out")
    assert f"{BPE}: {path} is damaged in the repository: {complaint}" in message
    assert not list((tmp_path / "out").rglob("*000001.bin"))
    assert len(list((tmp_path / "out").glob("*.bin"))) == 2
    assert not (tmp_path / "out" / "meta.json").exists()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (shard(1, 300)[:-100], "another length than the hub says"),
        (shard(2, 300), "SHA-256 differs"),
    ],
)
def test_content_that_is_not_what_the_hub_lists_is_refused(
    hub: HubServer, tmp_path: Path, content: bytes, complaint: str
) -> None:
    path = f"{FOLDER}/fineweb_train_000001.bin"
    hub.swapped[path] = content
    message = refusal("sp8192", 2, tmp_path / "out")
    assert path in message
    assert complaint in message
    assert not list((tmp_path / "out").rglob("*000001.bin"))
    hub.swapped.clear()
    assert fetch_fineweb("sp8192", 2, tmp_path / "out").splits["train"].tokens == 80_000


def test_shards_that_were_damaged_here_come_again(hub: HubServer, tmp_path: Path) -> None:
    fetch_fineweb("sp8192", 2, tmp_path / "out")
    files = [tmp_path / "out" / f"fineweb_train_{i:06d}.bin" for i in range(2)]
    good = [file.read_bytes() for file in files]
    files[0].write_bytes(good[0][:-2])
    files[1].write_bytes(bytes(8) + good[1][8:])
    fetch_fineweb("sp8192", 2, tmp_path / "out")
    assert [file.read_bytes() for file in files] == good


def test_room_on_the_disk_is_asked_for_first(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = sum(len(hub.data_sets[BYTES]["main"][f"fineweb_{name}.bin"]) for name in ("train_000000", "val_000000"))
    disk = type(shutil.disk_usage(tmp_path))
    monkeypatch.setattr("shutil.disk_usage", lambda path: disk(10**12, 10**12, size - 1))
    assert "2 files of" in (message := refusal("bytes", 1, tmp_path / "a" / "b"))
    assert f"{tmp_path} has 0.00 GB free" in message
    assert not (tmp_path / "a").exists()
    assert not hub.sent
    # What huggingface_hub asks of each file's own disk is not this limit's business.
    free = iter([disk(10**12, 10**12, size)])
    monkeypatch.setattr("shutil.disk_usage", lambda path: next(free, disk(10**12, 0, 10**12)))
    assert fetch_fineweb("bytes", 1, tmp_path / "a" / "b").splits["train"].tokens == 40_000


def test_a_folder_of_something_else_is_left_alone(hub: HubServer, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("words")
    assert "exists and is not a folder of FineWeb" in refusal("bytes", 1, tmp_path / "mine")
    fetch_fineweb("bytes", 1, tmp_path / "bytes")
    assert "holds the variant 'bytes'" in refusal("sp8192", 1, tmp_path / "bytes")
    assert f"its files are of {BYTES}" in refusal("bytes", 1, tmp_path / "bytes", "a/b")
    for text in ("{", "[]", '{"repository": 1, "commit": "c", "variant": "bytes"}'):
        (tmp_path / "bytes" / "source.json").write_text(text)
        assert "source.json: damaged" in refusal("bytes", 1, tmp_path / "bytes")


def environment(tmp_path: Path, endpoint: str) -> dict[str, str]:
    home = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "*"}
    return {"HF_ENDPOINT": endpoint, **home}


def test_a_killed_process_is_repeated_without_what_had_come(tmp_path: Path) -> None:
    words = ["data", "fineweb", "--variant", "bytes", "--shards", "2", "--out", str(tmp_path / "out"), "--json"]
    first, second = (f"fineweb_train_{i:06d}.bin" for i in range(2))
    with HubServer(published()) as hub:
        hub.stalled[second] = threading.Event()
        with Running(words, tmp_path / "killed", environment=environment(tmp_path, hub.url)):
            end = time.monotonic() + 60
            while second not in hub.sent:
                assert time.monotonic() < end
                time.sleep(0.02)
        hub.stalled.pop(second).set()
        assert (tmp_path / "out" / first).exists()
        assert not (tmp_path / "out" / "meta.json").exists()
        code, printed = ended(words, tmp_path / "again", environment(tmp_path, hub.url))
        assert code == 0, printed
        assert json.loads(printed.splitlines()[-1])["splits"]["train"]["tokens"] == 80_000
        assert hub.sent[first] == 81_024
        assert hub.sent[second] == 2 * 81_024
    assert not (tmp_path / "out" / ".incoming").exists()


def test_the_command_goes_to_the_mirror_that_is_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["data", "fineweb", "--variant", "bytes", "--shards", "2", "--out", str(tmp_path / "out"), "--json"]
    with HubServer(published()) as hub:
        code, printed = ended(words, tmp_path / "process", environment(tmp_path, hub.url))
        assert code == 0, printed
        assert json.loads(printed.splitlines()[-1])["splits"]["train"]["tokens"] == 80_000
        assert hub.sent
    assert open_folder(tmp_path / "out").splits["val"].text_bytes is None
    assert main(["data", "info", str(tmp_path / "out")]) == 0
    assert "80,000" in capsys.readouterr().out


def test_without_a_network_there_is_one_line(tmp_path: Path) -> None:
    words = ["data", "fineweb", "--out", str(tmp_path / "out")]
    code, printed = ended(words, tmp_path / "process", environment(tmp_path, "http://127.0.0.1:9"))
    assert code == 2
    assert len(printed.splitlines()) == 1, printed
    assert f"http://127.0.0.1:9/datasets/{BPE}: revision 'main': the hub cannot be reached" in printed
    assert not (tmp_path / "out").exists()
