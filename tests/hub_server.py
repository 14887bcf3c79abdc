"""A server on this machine that speaks as much of the Hugging Face hub's protocol as fetching a data set or a model,
and pushing a model, takes.

Written after https://huggingface.co/docs/hub/api and what huggingface_hub asks for: `/api/datasets/NAME/revision/REV`,
`/api/datasets/NAME/tree/REV` in pages with a `Link` header, and `/datasets/NAME/resolve/REV/PATH` with `ETag`,
`X-Repo-Commit`, `X-Linked-Size`, and a redirect to another path for the content of large files, which `Range` cuts. A
model has `models` in place of the first `datasets`, and nothing in place of the second. A push is a POST to
`/api/validate-yaml`, `/api/repos/create`, `/api/models/NAME/preupload/REV`, the batch endpoint of Git LFS, which names
an address for each large file to PUT, and `/api/models/NAME/commit/REV` with a JSON object a line.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

PAGE = 3
LARGE = 64
LICENSES = {"cc-by-4.0", "mit", "other"}


class HubServer:
    """A context that serves `data_sets`: by name and revision ("main"), the content of each path. All are models too.

    `sent` counts the bytes of content that went out, by path; `requests` lists the requests, `resumed`
    those for a part, with its first byte. Faults: `cut[path]`, how many
    bytes go out before the connection breaks, once for each number in the list; `swapped[path]`, content that goes out
    in place of what is listed; `broken`, paths that are answered with 403; `gone`, paths that are listed but not there;
    `stalled`, paths of which one half goes out, and the rest when the event is set. `accounts`: who may write, by
    token. `private`: the models that were created so.
    """

    def __init__(self, data_sets: dict[str, dict[str, dict[str, bytes]]]) -> None:
        self.data_sets = data_sets
        self.sent: Counter[str] = Counter()
        self.requests: list[tuple[str, str]] = []
        self.resumed: list[tuple[str, int]] = []
        self.cut: dict[str, list[int]] = {}
        self.swapped: dict[str, bytes] = {}
        self.broken: set[str] = set()
        self.gone: set[str] = set()
        self.stalled: dict[str, threading.Event] = {}
        self.accounts: dict[str, str] = {}
        self.private: set[str] = set()
        self.uploaded: dict[str, bytes] = {}

    def __enter__(self) -> HubServer:
        hub = self

        class Handler(_Handler):
            server_of = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def find(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | str:
        """Commit and files, or what the hub says is missing."""
        revisions = self.data_sets.get(name)
        if revisions is None:
            return "RepoNotFound"
        for known, files in revisions.items():
            if revision in (known, commit(files)):
                return commit(files), files
        return "RevisionNotFound"


def commit(files: dict[str, bytes]) -> str:
    """The name of the commit that holds `files`."""
    return hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_of: HubServer

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        oid = self.path.rpartition("/")[2]
        if _digest(content) == oid:
            self.server_of.uploaded[oid] = content
        self._send(200 if _digest(content) == oid else 400, b"", {}, with_body=False)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server_of.requests.append(("POST", self.path))
        if self.path == "/api/validate-yaml":
            license = re.search(r"^license: (.*)$", json.loads(body)["content"], re.MULTILINE)
            known = license is not None and license[1] in LICENSES
            errors = [] if known else [{"message": '"license" must be one of [apache-2.0, mit, …]'}]
            if errors and self.headers.get("Accept") == "text/plain":
                return self._send(400, f"- Error: {errors[0]['message']}".encode(), {}, True)
            return self._json({"warnings": [], "errors": errors}, status=400 if errors else 200)
        account = self.server_of.accounts.get(self.headers.get("Authorization", "").removeprefix("Bearer "))
        if account is None:
            return self._json({"error": "Invalid username or password."}, status=401)
        if self.path == "/api/repos/create":
            return self._create(account, json.loads(body))
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", self.path):
            return self._json({"files": [_upload_mode(file) for file in json.loads(body)["files"]]})
        if match := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", self.path):
            objects = [
                {**of, "actions": {"upload": {"href": f"{self.server_of.url}/upload/{of['oid']}"}}}
                for of in json.loads(body)["objects"]
            ]
            return self._json({"transfer": "basic", "objects": objects})
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", self.path):
            return self._commit(match[1], body)
        return self._missing("unknown")

    def _create(self, account: str, wanted: dict[str, Any]) -> None:
        name = f"{wanted['organization']}/{wanted['name']}"
        if wanted["organization"] != account:
            return self._json({"error": "You don't have the rights to create a model here"}, status=403)
        url = f"{self.server_of.url}/{name}"
        if name in self.server_of.data_sets:
            return self._json({"error": "You already created this model repo", "url": url}, status=409)
        self.server_of.data_sets[name] = {"main": {}}
        if wanted.get("visibility") == "private":
            self.server_of.private.add(name)
        return self._json({"url": url})

    def _commit(self, name: str, body: bytes) -> None:
        files = self.server_of.data_sets[name]["main"]
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.server_of.uploaded[value["oid"]]
        sha = commit(files)
        self._json({"commitUrl": f"{self.server_of.url}/{name}/commit/{sha}", "commitOid": sha})

    def _answer(self, with_body: bool) -> None:
        parts = urlsplit(self.path)
        path = unquote(parts.path)
        self.server_of.requests.append((self.command, path))
        if match := re.fullmatch(r"/api/((?:datasets|models)/[^/]+/[^/]+)/(revision|tree)/([^/]+)", path):
            self._describe(*match.groups(), parse_qs(parts.query))
        elif match := re.fullmatch(r"(?:/datasets)?/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._resolve(*match.groups(), with_body)
        elif match := re.fullmatch(r"/content/([^/]+/[^/]+)/([^/]+)/(.+)", path):
            self._content(*match.groups(), with_body, {})
        else:
            self._missing("unknown")

    def _describe(self, kind_and_name: str, what: str, revision: str, query: dict[str, list[str]]) -> None:
        name = kind_and_name.partition("/")[2]
        found = self.server_of.find(name, revision)
        if isinstance(found, str):
            return self._missing(found)
        sha, files = found
        if what == "revision":
            siblings = [{"rfilename": path} for path in files]
            return self._json({"id": name, "sha": sha, "private": False, "tags": [], "siblings": siblings})
        entries: list[dict[str, Any]] = [
            {"type": "directory", "path": folder, "oid": "0" * 40, "size": 0}
            for folder in sorted({path.rpartition("/")[0] for path in files} - {""})
        ]
        for path, content in files.items():
            entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": _digest(content)[:40]}
            if len(content) > LARGE:
                entry["lfs"] = {"oid": _digest(content), "size": len(content), "pointerSize": 130}
            entries.append(entry)
        start = int(query.get("cursor", ["0"])[0])
        headers = {}
        if start + PAGE < len(entries):
            url = f"{self.server_of.url}/api/{kind_and_name}/tree/{revision}?recursive=True&cursor={start + PAGE}"
            headers["Link"] = f'<{url}>; rel="next"'
        return self._json(entries[start : start + PAGE], headers)

    def _resolve(self, name: str, revision: str, path: str, with_body: bool) -> None:
        found = self.server_of.find(name, revision)
        if isinstance(found, str):
            return self._missing(found)
        sha, files = found
        if path in self.server_of.broken:
            return self._send(403, b"{}", {"X-Repo-Commit": sha}, with_body)
        if path not in files or path in self.server_of.gone:
            return self._missing("EntryNotFound", {"X-Repo-Commit": sha})
        content = files[path]
        headers = {"X-Repo-Commit": sha, "X-Linked-Size": str(len(content)), "X-Linked-Etag": f'"{_digest(content)}"'}
        if len(content) > LARGE:
            # To another host, as the hub does: the content lies with its CDN.
            elsewhere = self.server_of.url.replace("127.0.0.1", "localhost")
            headers["Location"] = f"{elsewhere}/content/{name}/{revision}/{path}"
            return self._send(302, b"", headers, with_body)
        return self._content(name, revision, path, with_body, headers)

    def _content(self, name: str, revision: str, path: str, with_body: bool, headers: dict[str, str]) -> None:
        found = self.server_of.find(name, revision)
        assert not isinstance(found, str)
        content = self.server_of.swapped.get(path, found[1][path])
        whole, status, start = content, 200, 0
        if match := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start, status = int(match[1]), 206
            self.server_of.resumed.append((path, start))
            content = content[start:]
            headers = {**headers, "Content-Range": f"bytes {start}-{len(whole) - 1}/{len(whole)}"}
        headers = {**headers, "ETag": f'"{_digest(whole)}"', "Accept-Ranges": "bytes"}
        if not with_body:
            return self._send(status, content, headers, with_body)
        cuts = self.server_of.cut.get(path, [])
        stop = max(cuts.pop(0) - start, 0) if cuts else len(content)
        self.server_of.sent[path] += len(content[:stop])
        if event := self.server_of.stalled.get(path):
            half = len(content) // 2
            self._send(status, content, headers, with_body=True, stop=half)
            event.wait()
            with contextlib.suppress(OSError):
                self.wfile.write(content[half:])
            return
        self._send(status, content, headers, with_body=True, stop=stop)
        if stop < len(content):
            self.close_connection = True

    def _missing(self, code: str, headers: dict[str, str] | None = None) -> None:
        self._send(404, b"{}", {"X-Error-Code": code, "X-Error-Message": code, **(headers or {})}, True)

    def _json(self, value: Any, headers: dict[str, str] | None = None, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})}, True)

    def _send(
        self, status: int, body: bytes, headers: dict[str, str], with_body: bool, stop: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body and self.command in ("GET", "POST"):
            self.wfile.write(body[:stop])
            self.wfile.flush()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _upload_mode(file: dict[str, Any]) -> dict[str, Any]:
    mode = "lfs" if file["size"] > LARGE and not file["path"].endswith(".md") else "regular"
    return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": None}
