"""A worker process of environments: it makes one call after the other for its owner (see `workers`)."""

from __future__ import annotations

import errno
import math
import os
import queue
import random
import resource
import signal
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from numbers import Real
from typing import Literal, TypeVar

from trd_cli.children import adopt_orphans, end_group, pipe_to_parent
from trd_cli.records import Environment
from trd_cli.worlds.base import Failure, Observation, Oracle, Result, Score, Step, World, WorldError
from trd_cli.worlds.registry import make
from trd_cli.worlds.scratch import Scratch

Call = Literal["start", "step", "oracle", "end"]
NO_MEMORY = Failure("the environment took more memory than it may")
# Seconds. A call that outlives its owner ends by itself after so many more than the owner would have waited.
_GRACE = 5.0
_METHODS = ("reset", "step", "score")
Kind = TypeVar("Kind")


@dataclass
class _Held:
    """An episode's world, and the state of Python's generator of random numbers, which each has for itself."""

    world: World
    chance: object


class _Unfit(Exception):
    """A value that an environment may not return; the message is for people."""


def _call(held: dict[int, _Held], name: Call, number: int, value: object) -> Result:
    """Make a call; an episode whose world raises is forgotten."""
    try:
        if name == "start":
            return _started(held, number, value)
        episode = held[number]
        random.setstate(episode.chance)
        if name == "oracle":
            return _commands(episode.world)
        step = _checked("step()", episode.world.step(value), Step)
        episode.chance = random.getstate()
        return _observation(episode.world, step)
    except MemoryError:
        failure = NO_MEMORY
    except WorldError as error:
        failure = Failure(str(error), refused=True)
    except _Unfit as error:
        failure = Failure(f"the environment's {error}")
    except Exception as error:
        lacks_memory = isinstance(error, OSError) and error.errno == errno.ENOMEM
        failure = (
            NO_MEMORY if lacks_memory else Failure(f"the environment raised {type(error).__name__}: {error}"[:500])
        )
    held.pop(number, None)
    return failure


def _started(held: dict[int, _Held], number: int, environment: Environment) -> Observation:
    random.seed(environment.seed)
    world = make(environment)
    lacking = next((name for name in _METHODS if not callable(getattr(world, name, None))), None)
    if lacking:
        raise WorldError(f"its {_named(world)} has no method {lacking}; expected {', '.join(_METHODS)}")
    text = world.reset(environment.seed)
    held[number] = _Held(world, random.getstate())
    return _observation(world, Step(_checked("reset()", text, str)))


def _observation(world: World, step: Step) -> Observation:
    """Return what a step and the score after it come to; raises _Unfit where a part is not what it must be."""
    score = _checked("score()", world.score(), Score)
    text = _checked("text", step.text, str)
    valid, done = _checked("valid", step.valid, bool), _checked("done", step.done, bool)
    solved, reward = _checked("solved", score.solved, bool), _checked("reward", score.reward, Real)
    if not math.isfinite(reward):
        raise _Unfit(f"reward is {reward}; expected a finite number")
    return Observation(text, valid, done, solved, float(reward))


def _commands(world: World) -> Oracle:
    """Return the oracle's commands, where the world has an oracle and it knows some; raises _Unfit for other values."""
    found = world.oracle() if hasattr(world, "oracle") else None
    if found is None:
        return Oracle(None)
    if isinstance(found, str):
        raise _Unfit("oracle() is a text; expected a list of texts")
    commands = tuple(_checked("oracle's command", each, str) for each in _checked("oracle()", found, Sequence))
    for command in commands:
        if not command.strip() or command.splitlines() != [command]:
            raise _Unfit(f"oracle has the command {command!r:.80}; expected one line of text")
    return Oracle(commands)


def _checked(what: str, value: object, kind: type[Kind]) -> Kind:
    """Return a value that has this type; raises _Unfit for another. A number or boolean of numpy becomes Python's."""
    plain = value.item() if getattr(value, "shape", None) == () else value
    if not isinstance(plain, kind):
        wanted = _WANTED.get(kind, kind.__name__)
        raise _Unfit(f"{what} is of type {_named(plain)}; expected {wanted}")
    # A type that derives from str may be one that the owner cannot read.
    return str.__str__(plain) if kind is str else plain


_WANTED: Mapping[type, str] = {
    Step: "trd_cli.worlds.base.Step",
    Score: "trd_cli.worlds.base.Score",
    Real: "a number",
    Sequence: "a list of texts",
}


def _named(value: object) -> str:
    return type(value).__name__


def _listen(pipe: Connection, calls: queue.SimpleQueue, scratch: Scratch) -> None:
    """Hand on what arrives; end this process, its children and the owner's temporary files when the owner is gone."""
    try:
        while True:
            calls.put(pipe.recv())
    except (EOFError, OSError):
        scratch.remove()
        end_group()


def main() -> None:
    """Work for the owner at the other end of the pipe whose descriptor is the only argument."""
    pipe, held, calls = pipe_to_parent(), {}, queue.SimpleQueue()
    adopt_orphans()
    seconds, memory, scratch = pipe.recv()
    threading.Thread(target=_listen, args=(pipe, calls, scratch), daemon=True).start()
    os.environ["TMPDIR"] = tempfile.tempdir = str(scratch.path)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (memory, resource.getrlimit(resource.RLIMIT_AS)[1]))
    pipe.send(None)
    while True:
        name, number, value = calls.get()
        if name == "end":
            held.pop(number, None)
            continue
        # The thread that listens does not run while a call holds the interpreter; this ends it all the same.
        signal.setitimer(signal.ITIMER_REAL, seconds + _GRACE)
        pipe.send(_call(held, name, number, value))
        signal.setitimer(signal.ITIMER_REAL, 0)


if __name__ == "__main__":
    main()
