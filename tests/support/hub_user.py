"""Use the Hub of these tests from a process of its own, which runs one command after the other.

with Hub() as hub, HubUser(hub, tmp_path / "cache", "hf_token") as user:
    user.trd("push", "runs/y_o", "owner/y_o")
    user.load("owner/y_o")
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.children import start_child
from support.hub import Hub


@dataclass(frozen=True)
class Ended:
    """Hold how a command ended."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """Return the last line of standard error."""
        return self.err.splitlines()[-1]


class HubUser:
    """A process that has huggingface_hub with the Hub's variables; `token` is in HF_TOKEN."""

    def __init__(self, hub: Hub, cache: Path, token: str, directory: Path, **environment: str) -> None:
        self._cwd, self._env = directory, {**hub.environment(cache), "HF_TOKEN": token, **environment}

    def __enter__(self) -> HubUser:
        self._process = start_child(
            [sys.executable, __file__],
            cwd=self._cwd,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **self._env},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def trd(self, *words: object, **environment: str) -> Ended:
        """Run a command; `environment` changes variables for it."""
        return Ended(**self._ask({"words": [str(word) for word in words], "environment": environment}))

    def ok(self, *words: object) -> str:
        """Run a command that must succeed, and return what it prints."""
        ended = self.trd(*words)
        assert ended.code == 0, (words, ended.out, ended.err)
        return ended.out

    def load(self, *arguments: str, revision: str | None = None) -> dict[str, list[Any]]:
        """Return columns of what `datasets.load_dataset` reads."""
        return self._ask({"load": arguments, "revision": revision})

    def _ask(self, request: Mapping[str, Any]) -> Any:
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    if "load" in request:
        from datasets import load_dataset

        rows = load_dataset(*request["load"], split="train", revision=request["revision"])
        names = [name for name in ("trajectory_id", "problem_id", "response", "verdict") if name in rows.column_names]
        return {name: list(rows[name]) for name in names}
    from typer.testing import CliRunner

    from trd_cli.cli import app

    before = dict(os.environ)
    os.environ.update(request["environment"])
    try:
        result = CliRunner().invoke(app, request["words"])
    finally:
        os.environ.clear()
        os.environ.update(before)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        return {"code": -1, "out": result.stdout, "err": "".join(traceback.format_exception(result.exception))}
    return {"code": result.exit_code, "out": result.stdout, "err": result.stderr}


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints is no answer
    for line in sys.stdin:
        answers.write(json.dumps(_answer(json.loads(line))) + "\n")
        answers.flush()
