"""Tests of `hf://owner/name` text against a fake hub server."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hub_server import HubServer
from hub_server import commit as hub_commit
from jepamba.config import Data
from jepamba.data import corpus
from jepamba.data.hub_text import HubText, hub_text, pinned
from jepamba.data.shared_files import trained_on
from jepamba.data.source import Source
from jepamba.errors import UserError
from processes import ended
from tiny import preset, tiny


def parquet(texts: list[str], column: str = "text") -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({column: texts, "id": list(range(len(texts)))}), buffer)
    return buffer.getvalue()


def jsonl(texts: list[str], column: str = "text") -> bytes:
    return "".join(json.dumps({column: text}) + "\n" for text in texts).encode()


def texts(name: str, count: int = 4) -> list[str]:
    return [f"{name}, document {i}: nothing more to say" for i in range(count)]


DATA_SETS = {
    "some/books": {
        "main": {
            "README.md": b"# Books",
            "data/train-00000-of-00002.parquet": parquet(texts("first")),
            "data/train-00001-of-00002.parquet": parquet(texts("second")),
            "data/validation-00000-of-00001.parquet": parquet(texts("held")),
            "data/test-00000-of-00001.parquet": parquet(texts("tested")),
        }
    },
    "some/pages": {
        "main": {
            "english/train.jsonl": jsonl(texts("english"), "body"),
            "english/dev.jsonl.gz": gzip.compress(jsonl(texts("english dev"), "body")),
            "german/train.jsonl": jsonl(texts("german"), "body"),
            "german/empty/train.jsonl": b"",
        }
    },
    "some/dump": {"main": {"part-1.jsonl": jsonl(texts("one")), "part-2.jsonl": jsonl(texts("two")), "x.txt": b"x"}},
    "some/images": {"main": {"cat.png": b"png"}},
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    from huggingface_hub import constants

    hub_text.cache_clear()
    with HubServer({name: {**revisions} for name, revisions in DATA_SETS.items()}) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
        yield server
    hub_text.cache_clear()


@pytest.mark.parametrize(
    ("name", "column", "expected"),
    [
        ("hf://some/books", "text", texts("first") + texts("second")),
        ("hf://some/books@main", "text", texts("first") + texts("second")),
        ("hf://some/books/data:validation", "text", texts("held")),
        ("hf://some/books:val", "text", texts("held")),
        ("hf://some/books:test", "text", texts("tested")),
        ("hf://some/pages/english", "body", texts("english")),
        ("hf://some/pages/english:validation", "body", texts("english dev")),
        ("hf://some/pages/german/", "body", texts("german")),
        ("hf://some/dump", "text", texts("one") + texts("two")),
        ("hf://some/dump:part", "text", texts("one") + texts("two")),
    ],
)
def test_names_choose_files(hub: HubServer, name: str, column: str, expected: list[str]) -> None:
    assert [text for _, text in Source((name,), column).documents()] == expected


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("hf://books", "not the name of a data set; give hf://owner/name"),
        ("hf://some/books:a b", "not the name of a data set"),
        ("hf://some/books:dutch", "no file of the split 'dutch'; splits are test, train, validation"),
        ("hf://some/books/nowhere", "no parquet or JSONL file found; folders are data"),
        ("hf://some/images", "no parquet or JSONL file found; folders are none"),
        ("hf://some/pages", "as in hf://some/pages/english; folders are english, german, german/empty"),
        ("hf://some/thing", "there is no such data set"),
        ("hf://some/books@v2", "revision 'v2': there is no such revision"),
    ],
)
def test_invalid_names_are_refused(hub: HubServer, name: str, complaint: str) -> None:
    with pytest.raises(UserError) as caught:
        HubText(name)
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_left_out_of_a_data_set_is_listed(hub: HubServer) -> None:
    hub.data_sets["some/c4"] = {
        "main": {"README.md": b"# C4", "c4-train.0.json.gz": gzip.compress(jsonl(texts("one")))}
    }
    source = Source(("hf://some/c4",), "text")
    assert [text for _, text in source.documents()] == texts("one")
    assert source.inventory().left_out == (("README.md", "not in the data read"),)
    books = Source(("hf://some/books",), "text").inventory()
    assert [name for name, _ in books.read] == [f"data/train-0000{i}-of-00002.parquet" for i in range(2)]
    assert dict(books.left_out) == {
        "README.md": "not in the data read",
        "data/test-00000-of-00001.parquet": "split test",
        "data/validation-00000-of-00001.parquet": "split validation",
    }


def test_the_split_of_a_data_set_is_that_of_its_purpose(hub: HubServer) -> None:
    assert [text for _, text in Source(("hf://some/books",), "text", "val").documents()] == texts("held")
    assert [text for _, text in Source(("hf://some/books",), "text", "test").documents()] == texts("tested")
    assert len(Source(("hf://some/dump",), "text", "val").inventory().read) == 2
    for name, split, complaint in (
        ("hf://some/pages/german", "val", "no file of the split 'validation'; splits are train"),
        ("hf://some/dump", "test", "no file of the split 'test'; splits are none"),
    ):
        with pytest.raises(UserError, match=complaint):
            Source((name,), "body", split).inventory()


@pytest.mark.parametrize(
    ("val", "count"), [("books:train", 2), ("books@main/data:train", 2), ("books", 0), ("dump", 0)]
)
def test_validation_files_of_a_data_set_among_the_training_files_are_found(
    hub: HubServer, val: str, count: int
) -> None:
    found = trained_on(Data(train="hf://some/books", val=f"hf://some/{val}"))
    assert len(found) == count
    assert all(name.startswith(f"hf://some/{val}: data/train-") for name in found)


def test_files_are_downloaded_on_demand_and_once(hub: HubServer) -> None:
    """The first document is yielded before the second file is downloaded. The second pass reads the cache."""
    files = hub.data_sets["some/books"]["main"]
    first, second = (f"data/train-0000{i}-of-00002.parquet" for i in range(2))
    source = Source(("hf://some/books",), "text")
    documents = source.documents()
    next(documents)
    assert set(hub.sent) == {first}
    assert len(list(documents)) == 7
    assert hub.sent == {first: len(files[first]), second: len(files[second])}
    assert len(list(source.documents())) == 8
    assert hub.sent == {first: len(files[first]), second: len(files[second])}


def test_download_errors_are_reported(hub: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = Source(("hf://some/books",), "body")
    with pytest.raises(UserError, match=r"train-00000-of-00002\.parquet: .*body"):
        list(source.documents())
    hub.gone.add("data/train-00001-of-00002.parquet")
    with pytest.raises(UserError, match=r"train-00001-of-00002\.parquet: there is no such file"):
        list(Source(("hf://some/books",), "text").documents())
    disk = type(shutil.disk_usage(tmp_path))
    monkeypatch.setattr("shutil.disk_usage", lambda path: disk(10**12, 10**12, 10))
    with pytest.raises(UserError, match=r"1 files of .*some/books need 0\.00 GB"):
        list(Source(("hf://some/books",), "text").documents())


def test_a_corpus_of_the_hub_is_cached_by_its_commit(hub: HubServer, tmp_path: Path) -> None:
    data = Data(train="hf://some/books", val="hf://some/books:validation", tokenizer="bytes", cache=str(tmp_path / "c"))
    found = corpus(data)
    assert found.train.text() == "".join(texts("first") + texts("second")).encode()
    assert found.val.text() == "".join(texts("held")).encode()
    assert len(list((tmp_path / "c" / "tokens").iterdir())) == 2
    hub_text.cache_clear()
    hub.sent.clear()
    corpus(data)
    assert not hub.sent
    name = "data/train-00000-of-00002.parquet"
    hub.data_sets["some/books"] = {"main": {**hub.data_sets["some/books"]["main"], name: parquet(["newer text"])}}
    hub_text.cache_clear()
    assert corpus(data).train.text() == "".join(["newer text", *texts("second")]).encode()


def test_the_command_builds_shards_of_it(tmp_path: Path) -> None:
    out = tmp_path / "shards"
    with HubServer(DATA_SETS) as hub:
        environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "NO_PROXY": "*"}
        words = ["data", "build", "hf://some/pages/english", "--column", "body", "--tokenizer", "bytes", "--json"]
        code, printed = ended([*words, "--out", str(out)], tmp_path / "process", environment)
    assert code == 0, printed
    splits = json.loads(printed.splitlines()[-1])["splits"]
    assert splits["train"]["documents"] + splits["val"]["documents"] == 4


@pytest.mark.parametrize("rest", ["", "/english", ":train", "/english:validation"])
def test_a_pinned_name_has_the_commit(hub: HubServer, rest: str) -> None:
    main = hub_commit(DATA_SETS["some/pages"]["main"])
    for revision in ("", "@main", f"@{main}"):
        name = f"hf://some/pages{revision}{rest}"
        if rest.startswith("/") or revision == f"@{main}":
            assert pinned(name) == f"hf://some/pages@{main}{rest}"
        else:
            with pytest.raises(UserError, match="several folders"):
                pinned(name)
    hub.requests.clear()
    pinned(f"hf://some/pages@{main}{rest}")
    assert not hub.requests


def test_a_run_keeps_its_commit(tmp_path: Path) -> None:
    """The server is gone: the run resumes and is submitted with its first text."""
    sets = {"some/books": {"main": {"train.jsonl": jsonl(texts("a", 30))}}}
    name = f"hf://some/books@{hub_commit(sets['some/books']['main'])}"
    settings = preset(tmp_path, tiny(tmp_path / "x", data__train="hf://some/books"))
    out, made = tmp_path / "run", tmp_path / "submission"
    with HubServer(sets) as hub:
        environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "NO_PROXY": "*"}
        assert ended(["train", settings, "--out", str(out)], tmp_path / "1", environment)[0] == 0
        assert tomllib.loads((out / "config.toml").read_text())["data"]["train"] == name
    before = json.loads((out / "summary.json").read_text())["bpb_plain"]["bytes"]
    offline = {**environment, "HF_HUB_OFFLINE": "1"}
    assert ended(["resume", str(out)], tmp_path / "3", offline)[0] == 0
    assert json.loads((out / "summary.json").read_text())["bpb_plain"]["bytes"] == before
    assert ended(["submission", str(out), "-o", str(made), "--validation"], tmp_path / "4", environment)[0] == 0
    assert tomllib.loads((made / "config.toml").read_text())["data"]["train"] == name
