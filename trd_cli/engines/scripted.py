"""A deterministic engine without a model, for tests, dry runs and first tries of the commands.

A reply depends on the request's seed alone. In a turn of an episode the right reply is the next command of the
environment's oracle, in its refinement all of them. Arguments (`--engine-arg`): `accuracy` share of replies that give
the reference answer (0.5); `delay` seconds a reply takes (0); `length` filler words (8); `faults` share of requests
that fail (0); `crash_after` replies after which the engine itself fails (never); `dies_on` a reference answer whose
requests kill the engine's process (none); `log` a file that gets a line with the id of each request as its reply is
made (none).
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterable, Iterator
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trd_cli import __version__
from trd_cli.config.generating import EngineOptions
from trd_cli.errors import EngineError, flag
from trd_cli.prompting.tokens import Tokenizer
from trd_cli.records import Completion, Request

_WORDS = [
    "first",
    "we",
    "add",
    "then",
    "take",
    "the",
    "total",
    "and",
    "check",
    "each",
    "step",
    "once",
    "more",
    "so",
    "that",
    "it",
    "holds",
]


class Script(BaseModel):
    """Hold the engine's arguments."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    accuracy: Annotated[float, Field(ge=0, le=1)] = 0.5
    delay: Annotated[float, Field(ge=0)] = 0.0
    length: Annotated[int, Field(ge=0)] = 8
    faults: Annotated[float, Field(ge=0, le=1)] = 0.0
    crash_after: int | None = None
    dies_on: str | int | float | None = None
    log: str | None = None


def read_script(given: dict[str, Any]) -> Script:
    """Return the keys of `--engine-arg`; raise EngineError for an unknown key or a value of another type."""
    try:
        return Script(**given)
    except ValidationError as error:
        first = error.errors()[0]
        known = ", ".join(Script.model_fields)
        raise EngineError(
            f"{flag('engine_arg')} {first['loc'][0]}={first['input']}: {first['msg'].lower()}",
            f"one of {known}",
            f"change {flag('engine_arg')}",
        ) from None


class ScriptedEngine:
    """See the module."""

    name = "scripted"
    version = __version__
    rows_at_once = 1

    def __init__(self, tokenizer: Tokenizer, options: EngineOptions) -> None:
        self._script = read_script(options.engine_arg)
        self._tokenizer = tokenizer

    def close(self) -> None: ...

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """See `Engine.generate`."""
        for count, request in enumerate(requests):
            if self._script.crash_after is not None and count >= self._script.crash_after:
                raise EngineError("the scripted engine crashed", "no crash_after", "run again without it")
            if self._script.delay:
                time.sleep(self._script.delay)
            if self._script.log is not None:
                with open(self._script.log, "a", encoding="utf-8") as file:
                    file.write(f"{request.request_id}\n")
            if str(self._script.dies_on) == request.hints.get("reference_answer"):
                signal.raise_signal(signal.SIGKILL)
            yield self._reply(request)

    def _reply(self, request: Request) -> Completion:
        chance = random.Random(request.seed)
        if chance.random() < self._script.faults:
            return Completion(request.request_id, error="scripted fault")
        right = chance.random() < self._script.accuracy
        write = {"turn": self._turn, "commands": self._commands}.get(request.hints.get("wanted", ""), self._text)
        text = write(request, right, chance)
        ids = [*self._tokenizer.encode(text), self._tokenizer.end_of_turn_id]
        cut = len(ids) > request.sampling.max_tokens
        ids = ids[: request.sampling.max_tokens]
        logprobs = [-chance.random() for _ in ids]
        return Completion(request.request_id, self._tokenizer.decode(ids), ids, logprobs, "length" if cut else "stop")

    @staticmethod
    def _turn(request: Request, right: bool, chance: random.Random) -> str:
        """Return the next command of the oracle, or a word that is none."""
        command, _, _ = request.hints["oracle"].partition("\n")
        return command if right and command else chance.choice(_WORDS)

    @staticmethod
    def _commands(request: Request, right: bool, chance: random.Random) -> str:
        """Return the commands of the oracle, or some of them and a word that is none."""
        commands = request.hints.get("oracle", "").split("\n")
        if right:
            return "\n".join(commands)
        return "\n".join([*commands[: chance.randrange(len(commands))], chance.choice(_WORDS)])

    def _text(self, request: Request, right: bool, chance: random.Random) -> str:
        filler = " ".join(chance.choices(_WORDS, k=self._script.length))
        return f"{filler}\n{self._ending(request, right, chance)}"

    @staticmethod
    def _ending(request: Request, right: bool, chance: random.Random) -> str:
        answer = request.hints.get("reference_answer", "") if right else str(chance.randrange(10**6, 10**7))
        if request.hints.get("task") == "code":
            return f"```python\nprint({answer!r})\n```"
        return f"\\boxed{{{answer}}}"
