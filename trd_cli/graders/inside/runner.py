"""Serve inside the sandbox: call or feed a program as its judge asks. Standard library only.

The judge sits outside, at the other end of two pipes of messages (see codec). It sends the program, then one message
for each call or test, and gets a reply to each. No expected result ever comes in here. Requests and replies:

    {"load": source, "prelude": bool}            → {"ok": true} | {"raised": text}
        defines the names that are called later
    {"script": source}                           → {"ok": true}
        names the program that runs once for each test
    {"target": name, "args": …, "kwargs": …}     → {"done": true}, then {"value": …} | {"raised": text}
        calls a function or a method of Solution; two replies, as sending a large value is not the program's time
    {"calls": name, "inputs": [args, …]}         → {"value": …} | {"raised": text} for each of the inputs
    {"stdin": text, "limit": seconds}            → {"stdout": text, "status": int, "flooded": bool, "late": bool}
    {"check": source, "names": […], "limit": seconds} → {"ok": true} | {"raised": text} | {"fault": text}
        runs a test program (see checking), whose calls go to another runner through the two pipes named at the start
    {"op": name, "args": …, "kwargs": …}         → a reply to that test program (see objects)
"""

from __future__ import annotations

import atexit
import builtins
import contextlib
import os
import select
import signal
import sys
import time
import types
from collections.abc import Callable
from typing import Any

import checking
import codec
import names
import nodes
import objects
from exceptions import message_of

MAX_OUTPUT = 32 << 20
_NODES = {"ListNode": nodes.ListNode, "TreeNode": nodes.TreeNode}
_RECURSION = 50_000
_OURS = ("runner", "checking", "objects", "stand_ins", "exceptions", "containers", "names", "nodes", "forgeries")
_HELD, _HELD_SECONDS = 1 << 15, 0.002


class Pipes:
    """Messages in and out through file descriptors."""

    def __init__(self, source: int, target: int) -> None:
        self._in, self._out, self._buffer = source, target, bytearray()

    def receive(
        self, limit: float | None = None, resolve: Callable[..., Any] | None = None, is_suspect: bool = True
    ) -> Any:
        """Return the next message, None at the end; raises TimeoutError if it is incomplete after `limit` seconds."""
        deadline = None if limit is None else time.monotonic() + limit
        header = self._read(codec.HEADER, deadline)
        data = None if header is None else self._read(codec.length(header), deadline)
        return None if data is None else codec.loads(data, resolve, is_suspect)

    def _read(self, size: int, deadline: float | None) -> bytes | None:
        while len(self._buffer) < size:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not select.select([self._in], [], [], left)[0]:
                raise TimeoutError("not ended in time")
            part = os.read(self._in, 1 << 20)
            if not part:
                return None
            self._buffer += part
        data = bytes(memoryview(self._buffer)[:size])
        del self._buffer[:size]
        return data

    def send(self, message: Any, refer: Callable[[Any], tuple[Any, ...]] | None = None) -> None:
        """Write one message."""
        self.write(codec.dumps(message, refer))

    def write(self, data: bytes | bytearray) -> None:
        """Write messages that are encoded already."""
        view = memoryview(data)
        while view:
            view = view[os.write(self._out, view) :]


def prepare() -> None:
    """Load what every sandbox needs, once for all sandboxes that are forked from this process."""
    names.load_modules()


def serve(pipes: Pipes, other: Pipes | None) -> None:
    """Answer requests until the judge hangs up."""
    codec.allow_long_integers()
    # Programs call these, but the module `site`, which defines them, is not loaded here.
    builtins.exit = builtins.quit = sys.exit
    sys.setrecursionlimit(_RECURSION)
    sys.argv = ["solution.py"]
    _hide_ourselves()
    program = _Program(other)
    peer = objects.Peer(pipes, extra={"names": program.own, "name": program.get, "functions": program.functions})
    while (request := pipes.receive(resolve=peer.resolve, is_suspect=False)) is not None:
        if "op" in request:
            peer.serve(request)
            continue
        if "calls" in request:
            program.answer_all(request, pipes)
            continue
        reply = program.answer(request)
        if "target" in request:
            pipes.send({"done": True})
        try:
            pipes.send(reply)
        except BaseException as error:
            pipes.send({"raised": message_of(error)})


def _hide_ourselves() -> None:
    """Remove our modules from those that a program or a test program could find or import."""
    codec.hide()
    for name in _OURS:
        sys.modules.pop(name, None)
    sys.modules["__main__"] = types.ModuleType("__main__")


class _Program:
    def __init__(self, other: Pipes | None) -> None:
        self._other = other
        self._source = ""
        self._globals: dict[str, Any] = {}
        self._before: dict[str, Any] = {}
        self._targets: dict[str, Any] = {}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            if "load" in request:
                return self._load(request["load"], request["prelude"])
            if "script" in request:
                self._source = request["script"]
                return {"ok": True}
            if "stdin" in request:
                return _run(self._source, request["stdin"], request["limit"])
            if "check" in request:
                return _checked(self._other, request)
            return self._call(request)
        except BaseException as error:
            return {"raised": message_of(error)}

    def _load(self, source: str, prelude: bool) -> dict[str, Any]:
        code = compile(source, "<string>", "exec", dont_inherit=True)
        module = sys.modules["solution"] = types.ModuleType("solution")
        self._globals, self._targets = module.__dict__, {}
        if prelude:
            self._globals.update(names.given_names(source, _NODES))
        self._before = dict(self._globals)
        exec(code, self._globals)
        return {"ok": True}

    def _call(self, request: dict[str, Any]) -> dict[str, Any]:
        name = request["target"]
        if name not in self._targets:
            self._targets[name] = self._target(name)
        return {"value": self._targets[name](*request["args"], **request["kwargs"])}

    def answer_all(self, request: dict[str, Any], pipes: Pipes) -> None:
        """Reply to each of many calls; hold replies back for a moment, as each costs more to send than a usual call."""
        held, sent = bytearray(), time.monotonic()
        for args in request["inputs"]:
            try:
                data = codec.dumps(self._call({"target": request["calls"], "args": args, "kwargs": {}}))
            except BaseException as error:
                data = codec.dumps({"raised": message_of(error)})
            held += data
            if len(held) > _HELD or time.monotonic() - sent > _HELD_SECONDS:
                pipes.write(held)
                held, sent = bytearray(), time.monotonic()
        pipes.write(held)

    def _target(self, name: str) -> Any:
        # A given name does not count: `merge` is one of heapq's functions and of LeetCode's problems.
        return self.get(name) if self._defines(name) else getattr(self._globals["Solution"](), name)

    def own(self) -> list[str]:
        """Return the names that the program defines."""
        return [name for name in self._globals if name != "__builtins__" and self._defines(name)]

    def _defines(self, name: str) -> bool:
        return name in self._globals and not (name in self._before and self._before[name] is self._globals[name])

    def get(self, name: str) -> Any:
        return self._globals[name]

    def functions(self) -> list[str]:
        """Return the names of the functions that the program defines, in order."""
        return [
            name
            for name in self.own()
            if isinstance(self._globals[name], types.FunctionType) and self._globals[name].__module__ == "solution"
        ]


def _checked(other: Pipes | None, request: dict[str, Any]) -> dict[str, Any]:
    return checking.run(other, request["check"], request["names"], request["limit"])


def _run(source: str, text: str, limit: float) -> dict[str, Any]:
    """Run the program once as a script, with `text` on its standard input."""
    stdin = os.memfd_create("stdin") if hasattr(os, "memfd_create") else _temporary()
    _write_all(stdin, text.encode("utf-8", "surrogatepass"))
    os.lseek(stdin, 0, os.SEEK_SET)
    end, stdout = os.pipe()
    child = os.fork()
    if child == 0:
        _become(source, stdin, stdout)
    os.close(stdin)
    os.close(stdout)
    try:
        output, late = _drain(end, child, limit)
    finally:
        os.close(end)
        _end_group(child)
    status = _reap(child)
    return {
        "stdout": output[:MAX_OUTPUT].decode("utf-8", "replace"),
        "status": status,
        "flooded": len(output) > MAX_OUTPUT,
        "late": late,
    }


def _temporary() -> int:
    import tempfile

    descriptor, path = tempfile.mkstemp()
    os.unlink(path)
    return descriptor


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _become(source: str, stdin: int, stdout: int) -> None:
    """In the child, run the script; never return."""
    code = 1
    try:
        os.setsid()
        os.dup2(stdin, 0)
        os.dup2(stdout, 1)
        _run_as_main(source)
        code = 0
    except SystemExit:  # any exit code: the output decides, as in LiveCodeBench
        code = 0
    except BaseException:
        pass
    finally:
        os._exit(code)


def _run_as_main(source: str) -> None:
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout = stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        main.__dict__.update(names.given_names(source))
        exec(compile(source, "solution.py", "exec", dont_inherit=True), main.__dict__)
    finally:
        # Python ends in this order: threads, with them executors, then registered functions.
        if "threading" in sys.modules:
            with contextlib.suppress(BaseException):
                sys.modules["threading"]._shutdown()
        atexit._run_exitfuncs()
        for stream in (sys.stdout, stdout):
            if not getattr(stream, "closed", False):
                stream.flush()


def _drain(descriptor: int, child: int, limit: float) -> tuple[bytes, bool]:
    """Return what the program writes, up to a bound, and whether its time ended before it did."""
    parts, size, clock = [], 0, codec.Clock(child, limit)
    while size <= MAX_OUTPUT:
        left = clock.left()
        if left <= 0:
            return b"".join(parts), True
        if not select.select([descriptor], [], [], left)[0]:
            continue
        part = os.read(descriptor, 1 << 16)
        if not part:
            break
        parts.append(part)
        size += len(part)
    return b"".join(parts), False


def _end_group(child: int) -> None:
    for _ in range(2):
        try:
            os.killpg(child, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            return


def _reap(child: int) -> int:
    """Return the exit code of the child, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
