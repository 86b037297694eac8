"""Run a small Hugging Face Hub on this machine, with the part of its HTTP interface that downloads and pushes use.

    with Hub() as hub:
        hub.add("owner/name", COMMIT, {"test.jsonl": b"..."})
        run(..., env={**os.environ, **hub.environment(cache)})

huggingface_hub reads its variables when it is imported, so a user of this Hub runs in a process of its own. Large files
go by git's LFS, which huggingface_hub uses where Xet is switched off.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from threading import Event, Lock, Thread
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

_RESOLVE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
_API = re.compile(r"/api/(dataset|model)s/([^/]+/[^/]+?)(?:/(revision|tree)/([^/]+)(?:/(.*))?)?")
_WRITE = re.compile(r"/api/(dataset|model)s/([^/]+/[^/]+)/(preupload|commit|branch)/([^/]+)")
_LFS = re.compile(r"/(datasets/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch")
_LARGE = (".parquet", ".safetensors")
Files = Mapping[str, bytes]
Kind = Literal["dataset", "model"]


class Repository:
    """A repository: the files of each commit, and the commit of each branch."""

    def __init__(self) -> None:
        self.commits: dict[str, Files] = {}
        self.branches: dict[str, str] = {}
        self.is_private = False

    def put(self, branch: str, files: Files, commit: str | None = None) -> str:
        """Make a commit the head of a branch, and return it."""
        named = f"{len(self.commits)}\0" + "\0".join(f"{path} {_digest(files[path])}" for path in sorted(files))
        commit = commit or hashlib.sha1(named.encode()).hexdigest()
        self.commits[commit] = dict(files)
        self.branches[branch] = commit
        return commit

    def files(self, branch: str = "main") -> Files:
        return self.commits[self.branches[branch]]


class Hub:
    """Repositories of datasets and models.

    `requests` are the requested paths, `uploads` the paths of contents that were sent as large files, by their hashes.
    `token` is the one that may write, None: any. After `good_uploads` uploads each further one fails, hangs, or
    waits until `resume`, by `fault`; `faulty` is set then.
    """

    def __init__(self) -> None:
        self.repositories: dict[tuple[Kind, str], Repository] = {}
        self.requests: list[str] = []
        self.uploads: list[str] = []
        self.stored: dict[str, bytes] = {}
        self.token: str | None = None
        self.good_uploads: int | None = None
        self.fault: Literal["error", "hang", "wait"] = "error"
        self.faulty, self._resumed, self._closed, self._lock = Event(), Event(), Event(), Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._thread = Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Hub:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def add(self, repository: str, commit: str, files: Files, kind: Kind = "dataset", branch: str = "main") -> None:
        self.repositories.setdefault((kind, repository), Repository()).put(branch, files, commit)

    def of(self, repository: str, kind: Kind = "dataset") -> Repository:
        return self.repositories[kind, repository]

    def environment(self, cache: Path) -> dict[str, str]:
        """Return the variables that send huggingface_hub here, with a cache of its own and without Xet."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(cache),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1",
        }

    def find(self, kind: Kind, repository: str, revision: str) -> tuple[str, Files]:
        """Return commit and files; raise LookupError with the Hub's own error code."""
        if (kind, repository) not in self.repositories:
            raise LookupError("RepoNotFound")
        found = self.repositories[kind, repository]
        commit = found.branches.get(revision, revision)
        if commit not in found.commits:
            raise LookupError("RevisionNotFound")
        return commit, found.commits[commit]

    def takes(self, digest: str) -> bool:
        """Count an upload, and return whether it is to succeed."""
        with self._lock:
            if self.good_uploads is None or len(self.uploads) < self.good_uploads:
                self.uploads.append(digest)
                return True
        self.faulty.set()
        if self.fault == "hang":
            self._closed.wait()
        elif self.fault == "wait":
            self._resumed.wait()
            self.uploads.append(digest)
        return self.fault == "wait"

    def resume(self) -> None:
        """Let the uploads that wait, and those that come, arrive."""
        self.good_uploads = None
        self._resumed.set()
        self.faulty.clear()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(self._read)

    def do_GET(self) -> None:
        self._answer(self._read)

    def do_POST(self) -> None:
        self._answer(self._write)

    def do_PUT(self) -> None:
        self._answer(self._store)

    def log_message(self, *_: object) -> None: ...

    def _answer(self, how: Callable[[str], None]) -> None:
        url = urlsplit(self.path)
        self.deep = "recursive=true" in url.query.lower()
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.requests.append(f"{self.command} {unquote(url.path)}")
        try:
            how(url.path)
        except LookupError as error:
            self._send(404, b'{"error": "not found"}', {"X-Error-Code": str(error), "X-Error-Message": "not found"})

    def _read(self, path: str) -> None:
        if match := _RESOLVE.fullmatch(path):
            self._file("dataset" if match[1] else "model", match[2], unquote(match[3]), unquote(match[4]))
        elif match := _API.fullmatch(path):
            kind, repository, what, revision, inside = match.groups()
            self._about(kind, repository, what or "revision", unquote(revision or "main"), unquote(inside or ""))
        else:
            raise LookupError("EntryNotFound")

    def _file(self, kind: Kind, repository: str, revision: str, path: str) -> None:
        commit, files = self.hub.find(kind, repository, revision)
        if path not in files:
            raise LookupError("EntryNotFound")
        self._send(200, files[path], {"X-Repo-Commit": commit, "ETag": f'"{_digest(files[path])}"'})

    def _about(self, kind: Kind, repository: str, what: str, revision: str, inside: str) -> None:
        commit, files = self.hub.find(kind, repository, revision)
        if what == "revision":
            siblings = [{"rfilename": name} for name in files]
            about = {
                "id": repository,
                "sha": commit,
                "siblings": siblings,
                "private": self.hub.of(repository, kind).is_private,
            }
            self._json({**about, "tags": [], "downloads": 0, "likes": 0})
        else:
            self._json([entry for entry in _entries(files) if self._is_in(inside, entry["path"])])

    def _is_in(self, folder: str, path: str) -> bool:
        parents = [str(parent) for parent in PurePosixPath(path).parents]
        return (folder or ".") in (parents if self.deep else parents[:1])

    def _write(self, path: str) -> None:
        if self.hub.token is not None and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            self._json({"error": "Forbidden: you don't have the required permissions"}, 403)
        elif path == "/api/repos/create":
            about = json.loads(self.body)
            key = (about["type"], f"{about['organization']}/{about['name']}")
            is_new = key not in self.hub.repositories
            self.hub.repositories.setdefault(key, Repository())
            if is_new:
                self.hub.repositories[key].is_private = about.get("visibility") == "private"
                self.hub.repositories[key].put("main", {".gitattributes": b"*.parquet filter=lfs\n"})
            self._json({"url": f"{self.hub.url}/{key[1]}"}, 200 if is_new else 409)
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif match := _LFS.fullmatch(path):
            self._json(
                {"transfer": "basic", "objects": [self._place(each) for each in json.loads(self.body)["objects"]]}
            )
        elif match := _WRITE.fullmatch(path):
            kind, repository, what, revision = match.groups()
            self.hub.find(kind, repository, "main")
            self.place = f"{self.hub.url}/{'datasets/' * (kind == 'dataset')}{repository}"
            getattr(self, f"_{what}")(self.hub.of(repository, kind), unquote(revision))
        else:
            raise LookupError("EntryNotFound")

    def _place(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Return where to send a large file; nowhere if it is here."""
        is_here = wanted["oid"] in self.hub.stored
        return wanted if is_here else {**wanted, "actions": {"upload": {"href": f"{self.hub.url}/lfs/{wanted['oid']}"}}}

    def _store(self, path: str) -> None:
        digest = path.rpartition("/")[2]
        if not self.hub.takes(digest):
            self.close_connection = self.hub.fault == "hang"
            if not self.close_connection:
                self._json({"error": "no room is left"}, 507)
            return
        assert _digest(self.body) == digest
        self.hub.stored[digest] = self.body
        self._send(200, b"", {})

    def _preupload(self, of: Repository, branch: str) -> None:
        files = of.files(branch)
        self._json(
            {
                "files": [
                    {
                        "path": each["path"],
                        "uploadMode": "lfs" if each["path"].endswith(_LARGE) else "regular",
                        "shouldIgnore": False,
                        "oid": _oid(files[each["path"]]) if each["path"] in files else None,
                    }
                    for each in json.loads(self.body)["files"]
                ]
            }
        )

    def _branch(self, of: Repository, branch: str) -> None:
        is_new = branch not in of.branches
        of.branches.setdefault(branch, of.branches["main"])
        self._json({}, 200 if is_new else 409)

    def _commit(self, of: Repository, branch: str) -> None:
        files = dict(of.files(branch))
        for line in self.body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "deletedFile":
                del files[value["path"]]
            elif operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                files[value["path"]] = self.hub.stored[value["oid"]]
        commit = of.put(branch, files)
        self._json({"commitUrl": f"{self.place}/commit/{commit}", "commitOid": commit})

    def _json(self, answer: Any, status: int = 200) -> None:
        self._send(status, json.dumps(answer).encode(), {"Content-Type": "application/json"})

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
    return listed + [
        {"type": "file", "path": n, "size": len(c), "oid": _oid(c), **_large(n, c)} for n, c in files.items()
    ]


def _large(path: str, content: bytes) -> dict[str, Any]:
    if not path.endswith(_LARGE):
        return {}
    return {"lfs": {"oid": _digest(content), "size": len(content), "pointerSize": 134}}


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _oid(content: bytes) -> str:
    """Return the name that git has for the content of a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
