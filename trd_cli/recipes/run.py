"""Run the stages of a recipe, each in a process of its own, and leave alone those that are done."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

from trd_cli.atomic import has_text_name, write_text
from trd_cli.config.commands import RunConfig
from trd_cli.errors import InputError, UserError, counted
from trd_cli.progress import NodeState, RunProgress
from trd_cli.recipes.done import Status, Verdicts, done_nodes, forget, is_done, is_whole, sweep
from trd_cli.recipes.graph import build_graph
from trd_cli.recipes.loading import load_recipe
from trd_cli.recipes.nodes import BASE_EVAL, FORMAT, GRAPH_FILE, Graph, Node
from trd_cli.recipes.previews import first_prompts
from trd_cli.recipes.processes import StageProcess, locked, stage_lock
from trd_cli.trajectories.stage_dir import DEFAULT_ROOT

_TICK = 0.05
_SAVE = 5.0  # seconds between two records of a running stage


# Raises InputError if one of these nodes of the recipe at this path would refuse its models or options.
Check = Callable[[str, Graph, Sequence[Node]], None]


def run(config: RunConfig, progress: RunProgress, check: Check) -> Path:
    """Run what is missing and return the run directory.

    Models and options are checked before anything is generated with them. Raises UserError when stages failed, after
    all others have run.
    """
    graph, chosen, again = _planned(config)
    check(config.recipe, graph, [node for node in chosen if node.name in again or not is_done(graph, node)])
    directory = graph.directory
    with locked(directory):
        _write(directory / "recipe.toml", graph.recipe.as_toml())
        _write(directory / GRAPH_FILE, _json(graph.record()))
        status = Status(directory)
        with stage_lock(directory, progress.note) as lock:
            sweep(directory)
            forget(graph, again, status)
            _Runner(graph, chosen, status, lock, progress).run()
    return directory


def dry_run(config: RunConfig) -> list[str]:
    """Return lines on the state of each stage and the first prompt of each kind. Nothing is written."""
    graph, chosen, again = _planned(config)
    there = done_nodes(graph, graph.nodes)
    done = there - again
    names = {node.name for node in chosen}
    width = max(len(node.name) for node in graph.nodes)
    lines = [f"{counted(len(graph.nodes), 'stage')} in {graph.directory}: {len(done)} done, {len(names - done)} to run"]
    for node in graph.nodes:
        state = "done" if node.name in done else "run" if node.name in names else "left out"
        if node.name in again & there and node.name in names:
            state = "again"
        inputs = ", ".join(node.inputs)
        lines.append(f"  {state:<8} {node.name:<{width}}  {node.out}" + (f"  ← {inputs}" if inputs else ""))
    for title, text in first_prompts(graph, chosen, done):
        lines += ["", f"── {title}", text]
    return lines


def _planned(config: RunConfig) -> tuple[Graph, list[Node], set[str]]:
    """Return the graph, the nodes to run, and the names of those to do again."""
    recipe = load_recipe(Path(config.recipe))
    graph = build_graph(recipe, Path(config.out) if config.out else DEFAULT_ROOT / recipe.name)
    chosen = graph.chosen(config.only, config.until)
    again = _again(graph, config, chosen)
    _check_directory(graph.directory)
    return graph, chosen, again


def _again(graph: Graph, config: RunConfig, chosen: Sequence[Node]) -> set[str]:
    """Return the names of the nodes that --from does again: those of its stage, and all that are made from them."""
    if config.from_stage is None:
        return set()
    starts = [
        node.name for node in chosen if node.stage == config.from_stage and not (config.only and node.name == BASE_EVAL)
    ]
    if not starts:
        raise InputError(
            f"--from {config.from_stage}",
            "one of " + ", ".join(dict.fromkeys(node.stage for node in chosen)),
            "name a stage that is to run",
        )
    again = graph.made_from(starts)
    others = {graph[name].arm for name in again} - {None, *config.only}
    if config.only and others:
        raise InputError(
            f"--from {config.from_stage} with --only {' --only '.join(config.only)}: others are made from the same rows",
            "all arms whose rows would change (also " + ", ".join(sorted(others)) + ")",
            "name them too, or leave --only out",
        )
    return again


def _check_directory(directory: Path) -> None:
    """Raise InputError for a directory that holds other files, or whose path is not UTF-8, as records are."""
    if not has_text_name(directory):
        raise InputError(f"the path of {directory.resolve()} is not UTF-8", "one that is", "give another --out")
    if directory.is_dir() and not (directory / GRAPH_FILE).is_file():
        others = [path.name for path in directory.iterdir() if not _may_be_left(path.name)]
        if others:
            raise InputError(
                f"{directory} holds other files ({others[0]}) and no graph.json",
                f"a run directory ({FORMAT}), or a new or empty one",
                "give another --out",
            )
    elif directory.exists() and not directory.is_dir():
        raise InputError(f"{directory} is a file", "a directory", "give another --out")


def _may_be_left(name: str) -> bool:
    """Return True for a file that a run may leave when it is killed at its very start."""
    of_a_write = name.endswith(".tmp") and name.startswith((".recipe.toml.", ".graph.json."))
    return name in (".lock", ".stage", "recipe.toml") or of_a_write


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def _write(path: Path, text: str) -> None:
    """Write a file unless it holds that text already: a run that has nothing to do changes nothing."""
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)


class _Runner:
    """The runner of chosen nodes, one after the other, each after its inputs."""

    def __init__(
        self, graph: Graph, chosen: Sequence[Node], status: Status, lock: IO[str], progress: RunProgress
    ) -> None:
        self._graph, self._chosen, self._status = graph, chosen, status
        self._lock, self._progress = lock, progress
        self._shown: dict[str, NodeState] = {}

    def run(self) -> None:
        """Run what is missing. After a failure only the nodes that are made from the failed one are skipped."""
        status = self._status
        done = done_nodes(self._graph, self._chosen)
        for node in self._chosen:
            is_there = node.name in done
            if is_there and status.of(node.name).get("state") != "done":
                status.set(node.name, state="done", digest=node.digest)
            self._show(node, "done" if is_there else "waiting", "")
        waiting = [node for node in self._chosen if node.name not in done]
        try:
            for node in waiting:
                if all(name in done for name in node.inputs):
                    if self._run_one(node):
                        done.add(node.name)
                else:
                    status.set(node.name, state="skipped", digest=node.digest)
                    self._show(node, "skipped", "without its input")
        finally:
            self._progress.end()
        self._conclude(waiting)

    def _run_one(self, node: Node) -> bool:
        before = self._status.of(node.name)
        if before.get("digest") != node.digest or before.get("state") == "done":
            spent = 0.0
        else:
            spent = before.get("seconds", 0.0)
        verdicts = Verdicts(self._graph.path(node)) if node.stage == "verify" else None
        more = ["--regrade"] if verdicts is not None and verdicts.begin(node) else []
        started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self._status.set(node.name, state="running", digest=node.digest, started=started, exit_code=None)
        process = StageProcess(self._graph, node, self._lock, more)
        try:
            code = self._watch(node, process, spent)
        except KeyboardInterrupt:
            self._progress.note(f"stopping {node.name}; once more to end it at once")
            process.stop()
            self._record(node, process, spent, "waiting")
            raise
        except BaseException:  # such as a record that cannot be written: no stage goes on unwatched
            process.stop()
            raise
        well = code == 0 and is_whole(self._graph, node)
        if well and verdicts is not None:
            verdicts.end(node)
        self._record(node, process, spent, "done" if well else "failed")
        if well:
            self._show(node, "done", "", process.seconds, process)
        else:
            reason = process.failure() if code else "it ended well, but its output is not whole"
            self._show(node, "failed", f"{reason} (exit code {code})", process.seconds)
        return well

    def _watch(self, node: Node, process: StageProcess, spent: float) -> int:
        """Wait for a stage and show its progress. Return its exit code."""
        shown = saved = 0.0
        while (code := process.poll()) is None:
            if process.seconds - shown > 0.5:
                shown = process.seconds
                self._show(node, "running", "", process.seconds, process)
            if process.seconds - saved > _SAVE:
                saved = process.seconds
                self._record(node, process, spent, "running")
            time.sleep(_TICK)
        return code

    def _record(self, node: Node, process: StageProcess, spent: float, state: str) -> None:
        peak = max(process.peak, self._status.of(node.name).get("peak_rss_bytes", 0) if spent else 0)
        self._status.set(
            node.name,
            state=state,
            seconds=round(spent + process.seconds, 3),
            peak_rss_bytes=peak,
            exit_code=process.exit_code,
        )

    def _show(
        self, node: Node, state: str, text: str, seconds: float = 0.0, process: StageProcess | None = None
    ) -> None:
        before = self._shown.get(node.name)
        rows, total = (before.rows, before.total) if before else (None, None)
        if process is not None and (work := process.progress()) is not None:
            # A last piece of work that cannot be counted leaves the rows of the one before it.
            rows, total = (work.done, work.total) if work.total is not None else (rows, total)
            text = work.pace() if state == "running" else text
        self._shown[node.name] = NodeState(node.name, state, total if state == "done" else rows, total, text, seconds)
        self._progress.show(list(self._shown.values()), node.name)

    def _conclude(self, waiting: Sequence[Node]) -> None:
        states = {node.name: self._shown[node.name].state for node in waiting}
        failed = [node for node in waiting if states[node.name] == "failed"]
        if failed:
            named = ", ".join(f"{node.name} ({self._graph.directory / node.log})" for node in failed)
            skipped = sum(state == "skipped" for state in states.values())
            raise UserError(
                f"{len(failed)} of {counted(len(waiting), 'stage')} failed, {skipped} skipped for it: {named}",
                "all to end well",
                "see the logs, mend it, and run the same command again",
            )
        count, total = len(self._chosen), len(self._graph.nodes)
        which = f"all {total} stages" if count == total else f"the {count} stages asked for, of {total},"
        self._progress.note(f"{self._graph.directory}: {which} are done")
