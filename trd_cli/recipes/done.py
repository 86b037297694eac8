"""Tell which nodes of a run are done, by their outputs, and remove outputs that are to be made again.

status.json      {node: {"state", "digest", "started", "seconds", "peak_rss_bytes", "exit_code", "devices", "replicas",
                 "warm", "starts_worker"}}: for people and reports; outputs decide if a node is done. `warm`: in a
                 worker; `starts_worker`: the first stage of one
verdicts.json    {"digest", "again", "whole"} in a graded set: the node that grades it, true while it replaces earlier
                 verdicts, and true once it has finished
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from trd_cli.atomic import write_text
from trd_cli.config.base import errors_allowed
from trd_cli.errors import InputError
from trd_cli.evaluation.results import read_results
from trd_cli.recipes.nodes import NODES, STATUS_FILE, Graph, Node
from trd_cli.recipes.sections import PROBLEMS_FILE
from trd_cli.training import STATES
from trd_cli.trajectories.run_json import read_run_json, source_paths
from trd_cli.trajectories.shards import PROBLEM_SCHEMA, check_whole, list_shards
from trd_cli.trajectories.state import State, state_of

_REMOVED = ".removed-"


class Status:
    """status.json of a run directory."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / STATUS_FILE
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            found = {}
        self.records: dict[str, dict[str, Any]] = found if isinstance(found, dict) else {}

    def of(self, name: str) -> dict[str, Any]:
        return self.records.get(name, {})

    def set(self, name: str, **values: Any) -> None:
        """Change some values of a node's record; None removes one."""
        changed = {k: v for k, v in {**self.of(name), **values}.items() if v is not None}
        if changed != self.records.get(name):
            self.records[name] = changed
            self._write()

    def drop(self, names: Sequence[str]) -> None:
        kept = {name: record for name, record in self.records.items() if name not in names}
        if kept != self.records:
            self.records = kept
            self._write()

    def _write(self) -> None:
        write_text(self._path, json.dumps(self.records, indent=1) + "\n")


def done_nodes(graph: Graph, chosen: Sequence[Node]) -> set[str]:
    """Return the names of the chosen nodes that are done.

    Every byte that a node which is not done will read is checked. If one is damaged, the nodes that wrote that output
    are not done either. Nor is a training whose state is gone, if one that is not done continues it.
    """
    done = {node.name: node for node in chosen if is_done(graph, node)}
    is_sound = cache(_is_sound)  # many nodes read one set
    for node in reversed(chosen):  # from what is read to what it was made from
        inputs = [done[name] for name in node.inputs if name in done] if node.name not in done else []
        damaged = {each.out for each in inputs if not is_sound(graph.path(each))}
        done = {name: each for name, each in done.items() if each.out not in damaged}
        before = graph.continued(node)
        if node.name not in done and before is not None and not _states(graph, before):
            done.pop(before.name, None)
    return set(done)


def _states(graph: Graph, node: Node) -> list[Path]:
    return list((graph.path(node) / STATES).glob("*.pt"))


def begin(graph: Graph, node: Node) -> None:
    """Make room for the output of a node that starts: a finished training that lost its state is done anew."""
    if node.stage == "distill" and is_done(graph, node):
        _take_away(graph.path(node))
        sweep(graph.directory)


def drop_states(graph: Graph, done: Collection[str], begun: Collection[str]) -> None:
    """Remove the states of trainings that nothing needs any more.

    A state goes when the training that continues it is done and the round after that has begun, so that the last two
    rounds keep theirs.
    """
    for node in graph.nodes:
        after = next((graph[name] for name in node.inputs if graph[name].stage == "distill"), None)
        if after is None or node.name not in begun or node.round == after.round or after.name not in done:
            continue
        before = graph.continued(after)
        if before is not None:
            shutil.rmtree(graph.path(before) / STATES, ignore_errors=True)


def _is_sound(path: Path) -> bool:
    """Return True if every byte of the shards and problems in a node's output is as it was written."""
    problems = path / PROBLEMS_FILE
    try:
        if problems.is_file():
            check_whole(problems, PROBLEM_SCHEMA)
        for shard in list_shards(path):
            check_whole(shard)
    except InputError:
        return False
    return True


def is_done(graph: Graph, node: Node) -> bool:
    """Return True if nothing of a node's output is missing, and the verdicts of a verify node are its own."""
    if node.stage == "verify" and not Verdicts(graph.path(node)).are_of(node):
        return False
    return is_whole(graph, node)


class Verdicts:
    """verdicts.json of a set: the node that its verdicts are from, which their columns do not hold in full."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "verdicts.json"
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            found = {}
        self._record: dict[str, Any] = found if isinstance(found, dict) else {}

    def are_of(self, node: Node) -> bool:
        return self._record.get("whole", False) and self._record.get("digest") == node.digest

    def begin(self, node: Node) -> bool:
        """Record that the node starts grading. Return True if it must replace the verdicts that are there.

        Those of an earlier, interrupted run of the same node stay.
        """
        own = self._record.get("digest") == node.digest
        again = self._record.get("again", False) if own else _has_verdicts(self._path.parent)
        self._write(digest=node.digest, again=again, whole=False)
        return again

    def end(self, node: Node) -> None:
        self._write(digest=node.digest, again=False, whole=True)

    def forget(self) -> None:
        """Disown the verdicts in the set, so that they are made again."""
        self._path.unlink(missing_ok=True)

    def _write(self, **record: Any) -> None:
        write_text(self._path, json.dumps(record) + "\n")


def is_whole(graph: Graph, node: Node) -> bool:
    """Return True if a node's output has all rows, and no more errors than the node allows.

    A file that cannot be read counts as missing.
    """
    path = graph.path(node)
    try:
        if node.stage == "problems":
            return (path / PROBLEMS_FILE).is_file()
        if node.stage == "eval":
            return _few_errors(node, *_in_scores(path))
        state = state_of(path)
        if not state.is_finished or node.stage == "distill":
            return state.is_finished
        state.check()
        if node.stage == "verify":
            return state.without("verdict") == 0
        return _few_errors(node, state.rows - state.without("error"), state.rows)
    except InputError:
        return False


def _few_errors(node: Node, errors: int, rows: int) -> bool:
    """Return True if the stage's --max-errors allows so many errors."""
    return errors <= errors_allowed(node.config.max_errors, rows)


def _has_verdicts(directory: Path) -> bool:
    state = State(directory, None)
    return state.without("verdict") < state.rows


def forget(graph: Graph, names: set[str], status: Status) -> None:
    """Remove the outputs of these nodes, and those that earlier recipes in the same directory made from them.

    An output goes before those that it was made from, so that a crash leaves none without its inputs. Verdicts stay
    where their set stays, and are made again.
    """
    chosen = [node for node in graph.nodes if node.name in names]
    gone = list(dict.fromkeys(node.out for node in chosen if node.stage != "verify"))
    graded = [node for node in chosen if node.stage == "verify" and node.out not in gone]
    removed, regraded = {Path(out).name for out in gone}, {Path(node.out).name for node in graded}
    for path in _made_from(graph.directory / NODES, removed, regraded):
        _take_away(path)
    for out in reversed(gone):
        _take_away(graph.directory / out)
    for node in graded:
        Verdicts(graph.path(node)).forget()
    status.drop(list(names))
    sweep(graph.directory)


def _take_away(path: Path) -> None:
    # Renamed first, because a stage would go on from half a set.
    if path.exists():
        path.rename(path.with_name(f"{_REMOVED}{path.name}-{time.time_ns()}"))


def _made_from(nodes: Path, removed: set[str], regraded: set[str]) -> list[Path]:
    """Return the directories made, directly or not, from those removed or by the verdicts of those graded again.

    Each comes before those that it was made from.
    """
    sources = {}
    for path in nodes.glob("*/run.json"):
        try:
            record = read_run_json(path.parent) or {}
        except InputError:
            continue  # nothing that a stage could go on from
        used = {part for source in source_paths(record) for part in Path(source).parts}
        sources[path.parent] = used if _reads_verdicts(record) else used - regraded
    found: dict[Path, None] = {}
    known = removed | regraded
    while more := [p for p, used in sources.items() if p.name not in known and used & known]:
        found |= dict.fromkeys(more)
        known |= {path.name for path in more}
    return list(reversed(found))


def sweep(directory: Path) -> None:
    """Delete the outputs that this run, or one that was killed, has taken away."""
    for path in (directory / NODES).glob(f"{_REMOVED}*"):
        shutil.rmtree(path, ignore_errors=True)


def _reads_verdicts(record: Mapping[str, Any]) -> bool:
    """Return True for a stage that reads verdicts: training always, refining where it chooses rows by them."""
    identity = record.get("identity", {})
    chooses = identity.get("subset", "all") != "all" or identity.get("where") is not None
    return chooses or record.get("command") == "distill"


def _in_scores(directory: Path) -> tuple[int, int]:
    """Return the number of samples of an evaluation without a verdict, and of all samples.

    Raises InputError for results that cannot be read.
    """
    counts = [bench["verdicts"] for bench in read_results(str(directory))["benchmarks"].values()]
    return sum(c["error"] + c["timeout"] for c in counts), sum(sum(c.values()) for c in counts)
