"""Play many episodes in a few worker processes, each of which can be killed.

An episode stays in its worker, which takes one call after the other. A worker is killed when a call takes too long; it
may also crash, or run out of memory. That costs the episode whose call it was, a crash if it comes twice. The other
episodes of that worker are played again in a fresh one, by the same actions.
"""

from __future__ import annotations

import logging
import os
import queue
import random
import resource
import shutil
import signal
import tempfile
import threading
from collections.abc import Hashable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Literal

from trd_cli import keeper
from trd_cli.children import Child, end_group, pipe_to_parent
from trd_cli.records import Environment
from trd_cli.worlds.base import Failure, Observation, Oracle, Result, World, WorldError
from trd_cli.worlds.registry import make

_log = logging.getLogger(__name__)
# Seconds. A call that outlives its owner ends by itself after `_GRACE` more than the owner would have waited.
_START, _END, _GRACE = 60.0, 1.0, 5.0
# Of the directory, where it is kept.
_NAME = "worlds"
Call = Literal["start", "step", "oracle", "end"]


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


class _Scratch:
    """The workers' directory for temporary files.

    In a process that keeps things (see `keeper`) it stays for the next command, with the games that were made.
    """

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="trd-worlds-"))

    def rest(self) -> None:
        """Do nothing while GPUs are for others: files have none."""

    def close(self) -> None:
        """Remove the directory."""
        shutil.rmtree(self.path, ignore_errors=True)


class Workers:
    """Start episodes and take actions in them; use as a context manager, which ends all processes.

    `start`, `step` and `oracle` return at once; each leads to one result of `ready`. The caller waits for it before the
    episode's next call. After a `Failure` the episode is gone.
    """

    def __init__(self, count: int | None = None, limits: Limits = Limits()) -> None:
        """Prepare for `count` worker processes, by default one a core; each starts with its first episode."""
        at = keeper.current()
        self._scratch: _Scratch = (at.take(_NAME) if at is not None else None) or _Scratch()
        self._threads = [_Thread(limits, self._scratch.path) for _ in range(count or os.cpu_count() or 1)]
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
            at.put(_NAME, self._scratch, self._scratch.close)
        else:
            self._scratch.close()

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

    def __init__(self, limits: Limits, scratch: Path) -> None:
        self.load = 0
        self._limits, self._scratch = limits, scratch
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

        The episode may not be to blame: the system ends processes when memory is short.
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
            self._worker = _Worker(self._limits, self._scratch)
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
    """A worker has gone by itself, or something else ended it."""


class _Worker:
    """A worker process, for one thread."""

    def __init__(self, limits: Limits, scratch: Path) -> None:
        """Start the process and wait until it takes calls; raises _Lost. Its temporary files lie in `scratch`."""
        self._limits = limits
        self._episodes: set[int] = set()
        # The order of a set of texts must not differ between processes.
        fixed = {"PYTHONHASHSEED": "0", "TMPDIR": str(scratch)}
        variables = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", **os.environ, **fixed}
        self._child = Child(__name__, variables, lambda line: _log.debug("environment: %s", line))
        self._exchange((limits, scratch), _START, "did not start")

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
        """Return the result of a call; raises _Lost."""
        if message[0] == "start":
            self._episodes.add(message[1])
        return self._exchange(message, self._limits.seconds, "gave no answer")

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


# In the worker's process


@dataclass
class _Held:
    """An episode's world, and the state of Python's generator of random numbers, which each has for itself."""

    world: World
    chance: object


def _call(held: dict[int, _Held], name: Call, number: int, value: object) -> Result:
    """Make a call; an episode whose world raises is forgotten."""
    try:
        if name == "start":
            return _started(held, number, value)
        episode = held[number]
        random.setstate(episode.chance)
        if name == "oracle":
            commands = episode.world.oracle() if hasattr(episode.world, "oracle") else None
            return Oracle(None if commands is None else tuple(commands))
        step = episode.world.step(value)
        episode.chance = random.getstate()
        return _observation(episode.world, step.text, step.valid, step.done)
    except MemoryError:
        failure = Failure("the environment took more memory than it may")
    except WorldError as error:
        failure = Failure(str(error), refused=True)
    except Exception as error:
        failure = Failure(f"the environment raised {type(error).__name__}: {error}"[:500])
    held.pop(number, None)
    return failure


def _started(held: dict[int, _Held], number: int, environment: Environment) -> Observation:
    random.seed(environment.seed)
    world = make(environment)
    text = world.reset(environment.seed)
    held[number] = _Held(world, random.getstate())
    return _observation(world, text, valid=True, done=False)


def _observation(world: World, text: str, valid: bool, done: bool) -> Observation:
    score = world.score()
    if not isinstance(text, str):
        raise WorldError(f"the environment's text is of type {type(text).__name__}; expected str")
    return Observation(text, bool(valid), bool(done), bool(score.solved), float(score.reward))


def _listen(pipe: Connection, calls: queue.SimpleQueue, scratch: Path) -> None:
    """Hand on what arrives; end this process, its children and the owner's temporary files when the owner is gone."""
    try:
        while True:
            calls.put(pipe.recv())
    except (EOFError, OSError):
        # The path that the owner made and told. Where it is gone already, gettempdir() would name /tmp itself.
        shutil.rmtree(scratch, ignore_errors=True)
        end_group()


def main() -> None:
    """Work for the owner at the other end of the pipe whose descriptor is the only argument."""
    pipe, held, calls = pipe_to_parent(), {}, queue.SimpleQueue()
    limits, scratch = pipe.recv()
    threading.Thread(target=_listen, args=(pipe, calls, scratch), daemon=True).start()
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (limits.memory, resource.getrlimit(resource.RLIMIT_AS)[1]))
    pipe.send(None)
    while True:
        name, number, value = calls.get()
        if name == "end":
            held.pop(number, None)
            continue
        # The thread that listens does not run while a call holds the interpreter; this ends it all the same.
        signal.setitimer(signal.ITIMER_REAL, limits.seconds + _GRACE)
        pipe.send(_call(held, name, number, value))
        signal.setitimer(signal.ITIMER_REAL, 0)


if __name__ == "__main__":
    main()
