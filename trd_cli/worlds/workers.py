"""Play many episodes in a few worker processes, each of which can be killed.

An episode stays in its worker, which takes one call after the other. A worker is killed when a call takes too long; it
may also crash, or run out of memory. That costs the episode whose call it was; a crash or a lack of memory only if it
comes again in a fresh worker, where the episode is alone. The other episodes of that worker are played again by the
same actions.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections.abc import Hashable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import wait

from trd_cli import keeper
from trd_cli.children import Child
from trd_cli.records import Environment
from trd_cli.worlds import process
from trd_cli.worlds.base import Failure, Observation, Result
from trd_cli.worlds.process import NO_MEMORY, Call
from trd_cli.worlds.scratch import Scratch

_log = logging.getLogger(__name__)
# Seconds.
_START, _END = 60.0, 1.0
# Of the directory, where it is kept.
_NAME = "worlds"


@dataclass(frozen=True)
class Limits:
    """The limits of a call: `seconds` until its worker is killed, and `memory`, the worker's bytes of address space."""

    seconds: float = 120.0
    memory: int = 4 << 30


@dataclass
class _Episode:
    """An episode that is played: where, by which actions so far, and to which last observation."""

    number: int
    environment: Environment
    actions: list[str] = field(default_factory=list)
    last: Observation | None = None


class _Files:
    """Make the workers' directory for temporary files with the first worker.

    In a process that keeps things (see `keeper`) it stays for the next command, with the games that were made.
    """

    def __init__(self) -> None:
        self._scratch: Scratch | None = None
        self._lock = threading.Lock()

    def made(self) -> Scratch:
        """Return the directory; any thread may ask for it."""
        with self._lock:
            self._scratch = self._scratch or Scratch.made()
            return self._scratch

    def rest(self) -> None:
        """Do nothing while GPUs are for others: files have none."""

    def close(self) -> None:
        """Remove the directory."""
        if self._scratch is not None:
            self._scratch.remove()


class Workers:
    """Start episodes and take actions in them; use as a context manager, which ends all processes.

    `start`, `step` and `oracle` return at once; each leads to one result of `ready`. The caller waits for it before the
    episode's next call. After a `Failure` the episode is gone.
    """

    def __init__(self, count: int | None = None, limits: Limits = Limits()) -> None:
        """Prepare for `count` worker processes, by default one a core; each starts with its first episode."""
        at = keeper.current()
        self._files: _Files = (at.take(_NAME) if at is not None else None) or _Files()
        self._threads = [_Thread(limits, self._files) for _ in range(count or os.cpu_count() or 1)]
        self._place: dict[Hashable, _Thread] = {}
        self._results: queue.SimpleQueue[tuple[Hashable, Result]] = queue.SimpleQueue()

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *exception: object) -> None:
        for thread in self._threads:
            thread.close()
        for thread in self._threads:
            thread.join()
        at = keeper.current()
        if at is not None:
            at.put(_NAME, self._files, self._files.close)
        else:
            self._files.close()

    @property
    def room(self) -> int:
        """Return how many open episodes keep all workers busy; more of them only take memory."""
        return 2 * len(self._threads)

    def start(self, key: Hashable, environment: Environment) -> None:
        """Begin an episode, or begin it anew; leads to an `Observation`, what the player reads first."""
        if key not in self._place:
            self._place[key] = min(self._threads, key=lambda each: each.load)
            self._place[key].load += 1
        self._place[key].put("start", key, environment, self._results)

    def step(self, key: Hashable, action: str) -> None:
        """Take an action, one line of text; leads to an `Observation`."""
        self._place[key].put("step", key, action, self._results)

    def oracle(self, key: Hashable) -> None:
        """Ask for the commands from the present state to the goal; leads to an `Oracle`."""
        self._place[key].put("oracle", key, None, self._results)

    def end(self, key: Hashable) -> None:
        """Forget an episode; leads to no result, and may be called after a failure too."""
        if (thread := self._place.pop(key, None)) is not None:
            thread.load -= 1
            thread.put("end", key, None, self._results)

    def ready(self, timeout: float | None = None) -> list[tuple[Hashable, Result]]:
        """Wait so many seconds for a result, None for ever, and return all that are there, with their keys."""
        found: list[tuple[Hashable, Result]] = []
        with suppress(queue.Empty):
            found.append(self._results.get(timeout=timeout))
            while True:
                found.append(self._results.get_nowait())
        for key, result in found:
            if isinstance(result, Failure):
                self.end(key)
        return found


class _Thread:
    """A thread that has a worker process and waits for it; a lost worker is replaced with its next call."""

    def __init__(self, limits: Limits, files: _Files) -> None:
        self.load = 0
        self._limits, self._files = limits, files
        self._calls: queue.SimpleQueue = queue.SimpleQueue()
        self._episodes: dict[Hashable, _Episode] = {}
        self._worker: _Worker | None = None
        self._numbers = 0
        self._is_closing = False
        self._thread: threading.Thread | None = None

    def put(self, call: Call, key: Hashable, value: object, results: queue.SimpleQueue) -> None:
        """Have a call made after those before it; its result goes to `results`."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="trd-world", daemon=True)
            self._thread.start()
        self._calls.put((call, key, value, results))

    def close(self) -> None:
        """Kill the worker and drop what waits."""
        self._is_closing = True
        if (worker := self._worker) is not None:
            worker.kill()
        self._calls.put(None)

    def join(self) -> None:
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while (call := self._calls.get()) is not None and not self._is_closing:
            name, key, value, results = call
            if name == "end":
                self._forget(key)
                continue
            try:
                result = self._answer(name, key, value)
            except _Lost as loss:
                result = Failure(str(loss))
            except Exception as error:
                result = Failure(f"{type(error).__name__}: {error}")
            if isinstance(result, Failure):
                self._forget(key)
            results.put((key, result))
        self._drop()

    def _forget(self, key: Hashable) -> None:
        episode = self._episodes.pop(key, None)
        if episode is not None and self._worker is not None:
            self._worker.tell(("end", episode.number, None))

    def _answer(self, name: Call, key: Hashable, value: object) -> Result:
        """Make a call in the worker; raises _Lost. If the worker dies of it, the call is made once more in a fresh one.

        The episode, which is alone there, may not be to blame: the system ends processes when memory is short, and the
        worker's memory is that of all its episodes.
        """
        if name == "start":
            self._forget(key)
            self._numbers += 1
            self._episodes[key] = _Episode(self._numbers, value)
        episode = self._episodes[key]
        try:
            result = self._made(name, episode, value)
        except _Died:
            if self._is_closing:
                raise
            result = self._made(name, episode, value)
        if isinstance(result, Observation):
            episode.last = result
            if name == "step":
                episode.actions.append(value)
        return result

    def _made(self, name: Call, episode: _Episode, value: object) -> Result:
        """Make a call in a live worker that has the episode; raises _Lost."""
        if self._worker is not None and not self._worker.is_alive():
            self._drop()
        if name != "start":
            self._bring_back(episode)
        return self._ask(name, episode, value)

    def _bring_back(self, episode: _Episode) -> None:
        """Play an episode again if the worker does not have it; raises _Lost where that comes to another end."""
        if self._worker is not None and self._worker.has(episode.number):
            return
        result = self._ask("start", episode, episode.environment)
        for action in episode.actions:
            if isinstance(result, Failure):
                break
            result = self._ask("step", episode, action)
        if result != episode.last:
            what = result.message if isinstance(result, Failure) else "its observations differ"
            raise _Lost(f"the episode could not be played again in another process: {what}")

    def _ask(self, name: Call, episode: _Episode, value: object) -> Result:
        if self._worker is None:
            self._worker = _Worker(self._limits, self._files)
            if self._is_closing:
                raise _Lost("the command is ending")
        try:
            return self._worker.ask((name, episode.number, value))
        except _Lost:
            self._drop()
            raise

    def _drop(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.end()


class _Lost(Exception):
    """A worker has gone, or was killed because it took too long; the message is for people."""


class _Died(_Lost):
    """A worker has gone by itself, or something else ended it, or its memory is full."""


class _Worker:
    """A worker process, for one thread."""

    def __init__(self, limits: Limits, files: _Files) -> None:
        """Start the process and wait until it takes calls; raises _Lost. Its temporary files lie in `files`."""
        self._limits = limits
        self._episodes: set[int] = set()
        # The order of a set of texts must not differ between processes.
        variables = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", **os.environ, "PYTHONHASHSEED": "0"}
        self._child = Child(process.__name__, variables, lambda line: _log.debug("environment: %s", line))
        try:
            # The directory is made when there is a process that removes it if this one is killed.
            scratch = files.made()
        except OSError:
            self.end()
            raise
        self._exchange((limits.seconds, limits.memory, scratch), _START, "did not start")

    def kill(self) -> None:
        """End the process now; may be called from any thread."""
        self._child.kill()

    def is_alive(self) -> bool:
        """Return whether the process can take a call, as far as is known."""
        return not self._child.pipe.poll()

    def has(self, number: int) -> bool:
        """Return whether an episode was started in this process."""
        return number in self._episodes

    def ask(self, message: tuple[Call, int, object]) -> Result:
        """Return the result of a call; raises _Lost, also where the process has no memory left."""
        if message[0] == "start":
            self._episodes.add(message[1])
        result = self._exchange(message, self._limits.seconds, "gave no answer")
        if result == NO_MEMORY:
            raise _Died(NO_MEMORY.message)
        return result

    def _exchange(self, message: object, seconds: float, what: str) -> Result:
        pipe = self._child.pipe
        try:
            pipe.send(message)
            if wait([pipe], seconds):
                return pipe.recv()
        except (EOFError, OSError):
            raise _Died(f"the environment's process {self._child.end(_END)}") from None
        self.end()
        raise _Lost(f"the environment {what} within {seconds:g} s")

    def tell(self, message: tuple[Call, int, object]) -> None:
        """Make a call without a result."""
        with suppress(OSError):
            self._child.pipe.send(message)

    def end(self) -> None:
        """Kill the process and wait until it has ended."""
        with suppress(OSError):
            self._child.end()
