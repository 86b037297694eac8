"""The options of grading, and the grader that each kind of row has by them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from trd_cli.config.grading import GraderConfig
from trd_cli.errors import InputError, counted, flag
from trd_cli.graders import code, episodes, evalplus, gym, math
from trd_cli.graders.base import READ
from trd_cli.graders.code import CodeOptions
from trd_cli.graders.own import OwnGrader, chosen, own_graders
from trd_cli.graders.sandbox import Level
from trd_cli.records import EPISODE, Task

# Added to the time of all tests for a busy machine.
_CODE_GRACE = 60.0


@dataclass(frozen=True)
class Grader:
    """Name the grader of a row. Options that can change a verdict change the version.

    A row's worker is killed after `seconds`. Rows that are graded faster than they are sent go to a worker `together`.
    `own` is the user's.
    """

    name: str
    version: str
    seconds: float
    together: bool = False
    own: OwnGrader | None = None

    @property
    def is_environment(self) -> bool:
        """Return True if the verdict is what an episode's environment said."""
        return self.own is None and self.name == episodes.NAME

    @property
    def in_sandbox(self) -> bool:
        """Return True if it runs programs of models."""
        return self.own is None and self.name in (code.NAME, evalplus.NAME)


@dataclass(frozen=True)
class GraderOptions:
    """Options of grading: `timeout` in seconds for a row but one of code, the limits of programs in `code`.

    `own` are the user's graders by task; that of None is for tasks that trd does not know.
    """

    lenient: bool = False
    timeout: float = 10.0
    workers: int | None = None
    sandbox: Level | Literal["auto"] = "auto"
    code: CodeOptions = field(default_factory=CodeOptions)
    own: Mapping[Task | None, OwnGrader] = field(default_factory=dict)

    @classmethod
    def of(cls, config: GraderConfig) -> GraderOptions:
        """Return the options that a configuration asks for. Raises InputError for a `--grader` that is not there."""
        limits = CodeOptions(
            test_timeout=config.test_timeout, code_timeout=config.code_timeout, memory=int(config.memory * (1 << 30))
        )
        own = own_graders(config.grader)
        return cls(config.lenient, config.timeout, config.workers, config.sandbox, limits, own)

    def grader(self, task: Task, tests: str | None, environment: str = "") -> Grader | None:
        """Return the grader of such a row, or None for a task that has none. `environment` is an episode's version.

        Raises InputError for a row of reasoning-gym if the package is not installed.
        """
        known = task in KNOWN
        own = chosen(self.own, task, known)
        if own is not None:
            return Grader(str(own.code), own.version, self.timeout, own=own)
        if task == "math":
            return Grader(math.NAME, math.version(self.lenient), self.timeout, together=True)
        if task == gym.NAME:
            return Grader(gym.NAME, gym.version(self.lenient), self.timeout)
        if task == EPISODE:
            return Grader(episodes.NAME, environment, self.timeout)
        if not known:
            return None
        name = code.name_of(tests)
        seconds = evalplus.SECONDS if name == evalplus.NAME else self.code.code_timeout + _CODE_GRACE
        return Grader(name, code.version(name, self.code), seconds)


# Tasks that trd has a grader for.
KNOWN: tuple[Task, ...] = (*READ, EPISODE)


def no_grader(tasks: Mapping[Task, int], of: str) -> InputError:
    """Return the error for rows (or questions) of tasks that have no grader, by their numbers."""
    told = ", ".join(f"{counted(count, of)} of the task {task}" for task, count in sorted(tasks.items()))
    return InputError(
        f"{told}: trd has no grader for that",
        f"the task {', '.join(KNOWN)}, or a grader of your own",
        f"name one with {flag('grader')} MODULE:FUNCTION",
    )
