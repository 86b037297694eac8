"""trd status: how far sets, evaluations, checkpoints and runs are, from their directories. Writes nothing.

An output is complete, unfinished, running (a process holds it) or damaged. A part of a job array can also be never
started. A stage of a run is done, failed, running, skipped or waiting, as status.json has it, but for one that claims
to be done or running and is not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from trd_cli.errors import InputError, counted
from trd_cli.evaluation.results import FILE as RESULTS
from trd_cli.evaluation.results import read_results
from trd_cli.hub.fetching import local_path
from trd_cli.locks import is_held
from trd_cli.recipes.nodes import GRAPH_FILE
from trd_cli.recipes.sections import PROBLEMS_FILE
from trd_cli.report.rounds import are_many
from trd_cli.report.run_directory import Node, read_run
from trd_cli.training import LOG
from trd_cli.trajectories.parts import LOCK, expression, named
from trd_cli.trajectories.rates import tokens_per_second
from trd_cli.trajectories.run_json import read_run_json
from trd_cli.trajectories.stage_dir import SESSIONS
from trd_cli.trajectories.state import State, state_of

TITLES = ("output", "what", "state", "done", "missing", "errors", "ungraded", "tokens/s", "")
_WELL = ("complete", "done")
# States that need no line for each stage.
_TOGETHER = {"done", "waiting", "skipped"}


@dataclass(frozen=True)
class Line:
    """Hold a line of the table: an output, a group of parts or a stage. A figure that is unknown is None.

    `done` and `missing` count rows; for a checkpoint they count steps, for a run stages. `errors` counts rows without a
    response, `ungraded` those without a verdict. `rate` is in response tokens a second of one task.
    """

    output: str
    what: str
    state: str
    done: int | None = None
    missing: int | None = None
    errors: int | None = None
    ungraded: int | None = None
    rate: float | None = None
    note: str = ""

    def cells(self) -> tuple[str, ...]:
        """Return the fields as text."""
        counts = (self.done, self.missing, self.errors, self.ungraded, None if self.rate is None else round(self.rate))
        return self.output, self.what, self.state, *("" if n is None else str(n) for n in counts), self.note


def status(directories: Sequence[str]) -> tuple[list[Line], bool]:
    """Return the lines of all outputs, and whether each of them is complete.

    Raises InputError for a directory that holds none, and for one whose run.json or graph.json cannot be read.
    """
    outputs = [list(_lines(local_path(name), name)) for name in directories]
    return [line for lines in outputs for line in lines], all(lines[0].state in _WELL for lines in outputs)


def _lines(directory: Path, name: str) -> Iterator[Line]:
    """Yield the line of an output, then those of its parts or stages."""
    if not directory.is_dir():
        got = f"{name} is no directory" if directory.exists() else f"no such directory: {name}"
        raise InputError(got, "an output of trd", "check the path")
    if (directory / GRAPH_FILE).is_file():
        yield from _of_run(directory, name)
        return
    state = state_of(directory)
    if state.record is None and not state.shards:
        raise InputError(f"{name} has neither run.json nor shards", "an output of trd", "check the path")
    if state.parts:
        yield from _of_array(state, name)
    else:
        yield _of_output(state, name, state.command or "set")


def _of_output(state: State, output: str, what: str) -> Line:
    return (_of_checkpoint if state.command == "distill" else _of_set)(state, output, what)


def _of_checkpoint(state: State, output: str, what: str) -> Line:
    log = state.directory / LOG
    steps = log.read_text(encoding="utf-8").count("\n") if log.is_file() else 0
    missing = 0 if state.is_finished else None
    found = "complete" if state.is_finished else _running(state) or "unfinished"
    return Line(output, what, found, steps, missing, rate=tokens_per_second([log], "response_tokens", "seconds"))


def _of_set(state: State, output: str, what: str) -> Line:
    """Return the line of a set, an evaluation, or a part of one."""
    try:
        rows, expected = state.rows, state.expected
        # The rows of a diagnosis have figures and no verdict of their own.
        ungraded = None if state.command == "diagnose" else state.without("verdict")
        counts = rows, None if expected is None else max(0, expected - rows), _failed(state), ungraded
        lacks = _lacks(state, ungraded)
    except InputError as error:
        return Line(output, what, _running(state) or "damaged", note=error.got)
    found = (
        "complete" if lacks is None else _running(state) or ("unfinished" if _has_started(state) else "never started")
    )
    rate = tokens_per_second([state.directory / named(SESSIONS, state.part)])
    return Line(output, what, found, *counts, rate, lacks or "")


def _failed(state: State) -> int:
    return state.rows - state.without("error")


def _running(state: State) -> str | None:
    return "running" if is_held(state.directory / named(LOCK, state.part)) else None


def _has_started(state: State) -> bool:
    return state.part is None or bool(state.rows) or read_run_json(state.directory, state.part) is not None


def _lacks(state: State, ungraded: int | None) -> str | None:
    """Describe what is missing from a set, or return None if nothing is; raises InputError for a damaged one."""
    if state.record is None:
        return "no run.json"
    if not state.is_finished:
        return ""
    state.check()
    if state.command != "eval":
        return None
    if ungraded:
        return "without all verdicts"
    return _no_score(state) if state.part is None else None


def _no_score(state: State) -> str | None:
    if not (state.directory / RESULTS).is_file():
        return f"no {RESULTS}: run its trd eval again"
    try:
        read_results(str(state.directory))
    except InputError as error:
        return error.got
    return None


def _of_array(state: State, output: str) -> Iterator[Line]:
    """Yield the line of a job array, then one for each group of parts in the same state."""
    parts = [(each.part.index, _of_set(each, "", "")) for each in state.parts]
    logs = [state.directory / named(SESSIONS, each.part) for each in state.parts]
    again = [index for index, line in parts if line.state not in ("complete", "running")]
    states = [line.state for _, line in parts]
    whole = _sum(output, state.command or "set", [line for _, line in parts])
    whole = replace(whole, rate=tokens_per_second(logs), state=_of_all(states))
    if state.record is None:
        found = "unfinished" if whole.state == "complete" else whole.state
        # Any task writes the lost record again.
        yield replace(whole, state=found, note=f"no run.json: --array={expression(again or [1])}")
    elif whole.state == "complete":
        yield _judged(state, whole)
    else:
        yield replace(whole, note=f"--array={expression(again)}" if again else "")
    for name in dict.fromkeys(states):
        indices, lines = zip(*((index, line) for index, line in parts if line.state == name), strict=True)
        what = f"{'part' if len(indices) == 1 else 'parts'} {expression(indices)}"
        yield replace(_sum("", what, lines), state=name, note=next((line.note for line in lines if line.note), ""))


def _judged(state: State, line: Line) -> Line:
    """Return the line of an array whose parts are all complete, which may be damaged as a whole or lack its score."""
    try:
        lacks = _lacks(state, line.ungraded or 0)
    except InputError as error:
        return replace(line, state="damaged", note=error.got)
    ungraded = [each.part.index for each in state.parts if each.without("verdict")]
    verify = f"trd verify: --array={expression(ungraded)}" if 0 < len(ungraded) < len(state.parts) else ""
    return replace(line, state="unfinished", note=lacks) if lacks else replace(line, note=verify)


def _of_all(states: Sequence[str]) -> str:
    """Return the state of an array, by those of its parts."""
    for name in ("damaged", "running"):
        if name in states:
            return name
    return "complete" if set(states) == {"complete"} else "unfinished"


def _sum(output: str, what: str, lines: Iterable[Line]) -> Line:
    """Return one line with the sums of the counts of several; a sum with an unknown number is unknown."""
    columns = zip(*((line.done, line.missing, line.errors, line.ungraded) for line in lines), strict=True)
    return Line(output, what, "", *(None if None in column else sum(column) for column in columns))


def _of_run(directory: Path, output: str) -> Iterator[Line]:
    """Yield the line of a run, then one for each stage. Of many rounds those in one state have a line together."""
    is_running = is_held(directory / LOCK)
    nodes = list(read_run(directory).nodes.values())
    stages = [_of_stage(node, is_running) for node in nodes]
    done = sum(line.state == "done" for line in stages)
    failed = any(line.state in ("failed", "damaged") for line in stages)
    found = "complete" if done == len(stages) else "running" if is_running else "failed" if failed else "unfinished"
    yield Line(output, "run", found, done, len(stages) - done)
    yield from _by_round(nodes, stages) if are_many(nodes) else stages


def _by_round(nodes: Sequence[Node], stages: Sequence[Line]) -> Iterator[Line]:
    """Yield the lines of stages, with one line for consecutive rounds of a seed in which all stages are in one state.

    That is one of _TOGETHER. `done` and `missing` of such a line count stages.
    """
    rounds: dict[tuple[int | None, int | None], list[Line]] = {}
    for node, line in zip(nodes, stages, strict=True):
        rounds.setdefault((node.seed, node.round), []).append(line)
    for (seed, state), group in groupby(rounds.items(), key=lambda item: (item[0][0], _of_round(item[0][1], item[1]))):
        found = list(group)
        lines = [line for _, members in found for line in members]
        if state is None:
            yield from lines
        else:
            numbers = expression([of for (_, of), _ in found])
            what = f"seed-{seed}, {'round' if len(found) == 1 else 'rounds'} {numbers}: {counted(len(lines), 'stage')}"
            done = len(lines) if state == "done" else 0
            yield Line("", what, state, done, len(lines) - done)


def _of_round(number: int | None, stages: Sequence[Line]) -> str | None:
    """Return the state of all stages of a round, or None if each needs its own line."""
    states = {line.state for line in stages}
    return states.pop() if number is not None and len(states) == 1 and states <= _TOGETHER else None


def _of_stage(node: Node, is_running: bool) -> Line:
    """Return the line of a stage: its state by status.json and by its directory, and the figures of its output."""
    if node.stage == "problems" or not node.path.is_dir():
        is_there = node.state != "done" or (node.path / PROBLEMS_FILE).is_file()
        line = Line("", node.name, "complete" if is_there else "damaged", note="" if is_there else "its output is gone")
    else:
        line = _of_output(state_of(node.path), "", node.name)
    if node.state == "done":
        is_well = line.state == "complete" and not (node.stage == "verify" and line.ungraded)
        return replace(line, state="done" if is_well else "damaged" if line.state == "complete" else line.state)
    if node.state == "running" and not is_running:
        return replace(line, state="unfinished", note="interrupted")
    return replace(line, state=node.state)
