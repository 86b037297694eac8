"""The process that sandboxes are forked from: it has loaded what they need, so that a row pays for no start of Python.

It never meets a program, an input or a result: it is sent how to close a sandbox and the descriptors of its pipes,
forks, and goes on. One belongs to each process that grades, ends with it, and is started again where something ended
it.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

_SECONDS = 60.0


class ParentGone(Exception):
    """The parent has ended or does not answer."""


class Parent:
    """A parent of sandboxes (`inside/jail.py`)."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                command,
                stdin=theirs,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=dict(environment),
                cwd="/",
                start_new_session=True,
            )
        self._channel, self._lock = ours, threading.Lock()
        ours.settimeout(_SECONDS)

    def fork(self, options: Mapping[str, Any], descriptors: Sequence[int]) -> int:
        """Return the number of a new process that is closed in as the options say; raises ParentGone."""
        answer = self._exchange(options, descriptors)
        if not answer.isdigit():
            raise ParentGone("the sandboxes' parent does not answer")
        return int(answer)

    def end(self, child: int) -> None:
        """End a process that was forked and wait for that; with the parent its children end too."""
        with suppress(ParentGone):
            self._exchange({"end": child})

    def _exchange(self, message: Mapping[str, Any], descriptors: Sequence[int] = ()) -> bytes:
        data, answer = json.dumps(message).encode() + b"\n", b""
        try:
            with self._lock:
                # The descriptors travel with the first byte.
                sent = socket.send_fds(self._channel, [data], list(descriptors))
                self._channel.sendall(data[sent:])
                while not answer.endswith(b"\n"):
                    part = self._channel.recv(100)
                    if not part:
                        raise ParentGone("the sandboxes' parent has ended")
                    answer += part
        except OSError as error:
            raise ParentGone(f"the sandboxes' parent does not answer ({error})") from None
        return answer.strip()

    def close(self) -> None:
        """Let the process end."""
        self._channel.close()
        self._process.kill()
        self._process.wait()


_known: dict[int, Parent] = {}


def forked(
    command: Sequence[str], environment: Mapping[str, str], options: Mapping[str, Any], fds: Sequence[int]
) -> tuple[Parent, int]:
    """Return the parent of this process's sandboxes and the number of a new one;

    raises ParentGone where a fresh one is gone too.
    """
    parent = _known.get(os.getpid())
    if parent is not None:
        try:
            return parent, parent.fork(options, fds)
        except ParentGone:
            parent.close()
    # Those of a process that this one was forked from are not ours.
    _known.clear()
    parent = _known[os.getpid()] = Parent(command, environment)
    return parent, parent.fork(options, fds)
