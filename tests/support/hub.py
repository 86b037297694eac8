"""Run a small Hugging Face Hub on this machine, with the part of its HTTP interface that downloads of data sets use.

    with Hub() as hub:
        hub.add("owner/name", COMMIT, {"test.jsonl": b"..."})
        run(..., env={**os.environ, **hub.environment(cache)})

huggingface_hub reads its variables when it is imported, so a user of this Hub runs in a process of its own.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

_RESOLVE = re.compile(r"/datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
_API = re.compile(r"/api/datasets/([^/]+/[^/]+?)(?:/(revision|tree)/([^/]+)(?:/(.*))?)?")
Files = Mapping[str, bytes]


class Hub:
    """Dataset repositories with one commit each; the branch main points to it. `requests` are the requested paths."""

    def __init__(self) -> None:
        self.repositories: dict[str, tuple[str, Files]] = {}
        self.requests: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._thread = Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> Hub:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def add(self, repository: str, commit: str, files: Files) -> None:
        self.repositories[repository] = (commit, files)

    def environment(self, cache: Path) -> dict[str, str]:
        """Return the variables that send huggingface_hub here, with a cache of its own."""
        url = f"http://127.0.0.1:{self._server.server_port}"
        return {"HF_ENDPOINT": url, "HF_HOME": str(cache), "HF_HUB_DISABLE_TELEMETRY": "1"}

    def find(self, repository: str, revision: str) -> tuple[str, Files]:
        """Return commit and files; raise LookupError with the Hub's own error code."""
        if repository not in self.repositories:
            raise LookupError("RepoNotFound")
        commit, files = self.repositories[repository]
        if revision not in (commit, "main"):
            raise LookupError("RevisionNotFound")
        return commit, files


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None: ...

    def _answer(self) -> None:
        url = urlsplit(self.path)
        path, self.deep = unquote(url.path), "recursive=true" in url.query.lower()
        self.hub.requests.append(f"{self.command} {path}")
        try:
            if match := _RESOLVE.fullmatch(path):
                self._file(*match.groups())
            elif match := _API.fullmatch(path):
                repository, what, revision, inside = match.groups()
                self._json(repository, what or "revision", revision or "main", inside or "")
            else:
                raise LookupError("EntryNotFound")
        except LookupError as error:
            self._send(404, b'{"error": "not found"}', {"X-Error-Code": str(error), "X-Error-Message": "not found"})

    def _file(self, repository: str, revision: str, path: str) -> None:
        commit, files = self.hub.find(repository, revision)
        if path not in files:
            raise LookupError("EntryNotFound")
        etag = hashlib.sha256(files[path]).hexdigest()
        self._send(200, files[path], {"X-Repo-Commit": commit, "ETag": f'"{etag}"'})

    def _json(self, repository: str, what: str, revision: str, inside: str) -> None:
        commit, files = self.hub.find(repository, revision)
        answer: Any
        if what == "revision":
            siblings = [{"rfilename": name} for name in files]
            about = {"id": repository, "sha": commit, "siblings": siblings, "private": False}
            answer = {**about, "tags": [], "downloads": 0, "likes": 0}
        else:
            answer = [entry for entry in _entries(files) if self._is_in(inside, entry["path"])]
        self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _is_in(self, folder: str, path: str) -> bool:
        parents = [str(parent) for parent in PurePosixPath(path).parents]
        return (folder or ".") in (parents if self.deep else parents[:1])

    def _send(self, status: int, content: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _entries(files: Files) -> list[dict[str, Any]]:
    """Return every directory and file in the form of a repository's tree."""
    folders = sorted({str(parent) for name in files for parent in PurePosixPath(name).parents} - {"."})
    listed = [{"type": "directory", "path": name, "size": 0, "oid": _oid(name.encode())} for name in folders]
    return listed + [{"type": "file", "path": n, "size": len(c), "oid": _oid(c)} for n, c in files.items()]


def _oid(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
