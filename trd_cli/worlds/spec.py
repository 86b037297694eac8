"""Read what `--env` names, such as `textworld:level=1,n=20,seed=0`, and make its problems."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from trd_cli.errors import InputError, flag
from trd_cli.own_code import OwnCode
from trd_cli.records import EPISODE, Environment, Problem, content_hash, well_formed
from trd_cli.worlds.base import Failure, Observation, Result
from trd_cli.worlds.registry import KINDS, Config, Value, version_of
from trd_cli.worlds.workers import Workers

_N, _SEED = 20, 0
# The list of episodes is held in memory; a seed is a column of 64 bits.
_MOST, _SEEDS = 1_000_000, 2**63
_GAME = "game"
_SHAPE = "NAME or NAME:key=value,…, as textworld:level=1,n=20,seed=0"


@dataclass(frozen=True)
class Spec:
    """Name episodes: an environment with its options, the number of episodes, and the seed of the first.

    Episode i has the seed `seed` + i. `config` holds every option, also those at their defaults; of an environment of
    one's own, those that were given.
    """

    text: str
    name: str
    config: Config
    n: int
    seed: int

    def __post_init__(self) -> None:
        if not 1 <= self.n <= _MOST:
            raise _refused(self.text, f"n={self.n}", f"a number from 1 to {_MOST}")
        if not 0 <= self.seed <= _SEEDS - self.n:
            raise _refused(self.text, f"seed={self.seed}", f"a number from 0 to {_SEEDS - self.n}")

    @classmethod
    def parse(cls, text: str) -> Spec:
        """Read a specification; raises InputError for an unknown name or option, and for a value that cannot be."""
        name, _, rest = text.strip().partition(":")
        if name not in KINDS:
            function, _, rest = rest.partition(":")
            name = f"{name}:{function}"
            if OwnCode.parse(name) is None:
                known = ", ".join(KINDS)
                raise _refused(text, "unknown environment", f"one of {known}, or MODULE:FUNCTION of your own")
        # The game may stand first by its name alone.
        if name in KINDS and _GAME in KINDS[name].options and "=" not in rest.partition(",")[0] and rest:
            rest = f"{_GAME}={rest}"
        given = _pairs(text, rest)
        n, seed = (_typed(text, key, given.pop(key, str(value)), value) for key, value in (("n", _N), ("seed", _SEED)))
        return cls(text, name, _config(text, name, given), n, seed)

    def label(self) -> str:
        """Return the specification in one spelling: options at their defaults are left out, but for n and seed."""
        defaults = KINDS[self.name].options if self.name in KINDS else {}
        chosen = {key: value for key, value in self.config.items() if key not in defaults or value != defaults[key]}
        pairs = {**chosen, "n": self.n, "seed": self.seed}
        return f"{self.name}:{','.join(f'{key}={value}' for key, value in pairs.items())}"

    def environments(self) -> list[Environment]:
        """Return the environment of every episode; raises InputError where its package or module is missing."""
        version, config = version_of(self.name), json.dumps(dict(self.config), sort_keys=True)
        return [Environment(self.name, version, config, self.seed + i) for i in range(self.n)]


def _refused(text: str, got: str, expected: str) -> InputError:
    return InputError(f"{flag('env')} {text.strip() or repr(text)}: {got}", expected, f"change {flag('env')}")


def _pairs(text: str, rest: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for part in rest.split(",") if rest else ():
        key, equals, value = (word.strip() for word in part.partition("="))
        if not (key and equals) or key in pairs:
            raise _refused(text, f"{part!r}{' a second time' if key in pairs else ''}", _SHAPE)
        pairs[key] = value
    return pairs


def _config(text: str, name: str, given: Mapping[str, str]) -> Config:
    if name not in KINDS:
        return {key: _value(value) for key, value in given.items()}
    defaults = KINDS[name].options
    unknown = next((key for key in given if key not in defaults), None)
    if unknown:
        has = ", ".join(f"{key}={value}" for key, value in {**defaults, "n": _N, "seed": _SEED}.items())
        raise _refused(text, f"unknown option {unknown}", f"options of {name} with their defaults: {has}")
    return {key: _typed(text, key, given.get(key, str(value)), value) for key, value in defaults.items()}


_EXPECTED = {int: "a whole number", float: "a number", bool: "true or false"}


def _typed(text: str, key: str, value: str, default: Value) -> Value:
    """Return an option's value with the type of its default."""
    kind = type(default)
    if kind is str:
        return value
    found = _value(value)
    if type(found) is kind or (kind is float and type(found) is int):
        return kind(found)
    raise _refused(text, f"{key}={value}", _EXPECTED[kind])


def _value(text: str) -> Value:
    """Return a number or a boolean where the text is one, else the text."""
    try:
        found = json.loads(text.lower())
    except ValueError:
        return text
    return found if isinstance(found, (int, float)) else text


@dataclass(frozen=True)
class Made:
    """Hold an episode's environment and problem; one that could not be made has no problem, and `failure` says why."""

    environment: Environment
    problem: Problem | None
    failure: str | None = None


def problems(environments: Sequence[Environment], workers: Workers) -> list[Made]:
    """Begin an episode in each environment and return its problem, in order; few of them are open at a time.

    The reference solution is the oracle's commands from the start, one a line. Raises InputError if an environment
    cannot be made as it is named: an option's value that it does not take, for example.
    """
    waiting = iter(range(len(environments)))
    made: dict[int, Made] = {}
    texts: dict[int, str] = {}
    for i in islice(waiting, workers.room):
        workers.start(i, environments[i])
    while len(made) < len(environments):
        for i, result in workers.ready():
            if isinstance(result, Observation):
                texts[i] = result.text
                workers.oracle(i)
            elif isinstance(result, Failure) and result.refused:
                got, _, wanted = result.message.partition("; expected ")
                raise InputError(
                    f"{flag('env')} {environments[i].name}: {got}",
                    wanted or "an environment that can be made",
                    f"change {flag('env')}",
                )
            else:
                made[i] = _made(environments[i], texts.pop(i, None), result)
                workers.end(i)
                for following in islice(waiting, 1):
                    workers.start(following, environments[following])
    return [made[i] for i in range(len(environments))]


def _made(environment: Environment, text: str | None, result: Result) -> Made:
    if isinstance(result, Failure):
        return Made(environment, None, well_formed(result.message))
    return Made(environment, problem_of(environment, text, result.commands))


def problem_of(environment: Environment, text: str, commands: Sequence[str] | None) -> Problem:
    """Return the problem of an episode that begins with this text; `commands` are the oracle's."""
    digest = content_hash([environment.name, environment.version, environment.config, environment.seed])
    solution = None if commands is None else "\n".join(commands)
    return Problem(
        f"{environment.name}-{digest}", environment.name, EPISODE, text, reference_solution=solution
    ).well_formed()
