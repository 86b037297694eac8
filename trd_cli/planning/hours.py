"""Estimate the tokens of a recipe and its hours on one device, on eight, and on those of the recipe or this machine.

The hours are those of a schedule: the one that `trd run` follows, with estimated seconds. A rate is that of one engine
or of one process that trains. Generating scales with its replicas, training with its processes, and both are cut to the
devices. Not covered: grading, the start of each stage, communication between processes, and further machines.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from trd_cli.config.commands import PlanConfig
from trd_cli.config.generating import EngineOptions
from trd_cli.errors import counted
from trd_cli.planning.findings import Finding, Level, grouped, of_exception, ok, per_cent
from trd_cli.planning.lengths import arm_of
from trd_cli.planning.needs import GENERATING, Work
from trd_cli.recipes.devices import WHOLE, Machine, machine_of, misfits, missing_gpus, tasks_of
from trd_cli.recipes.done import Status
from trd_cli.recipes.nodes import Graph, Node
from trd_cli.recipes.slots import Placement, Span, simulate
from trd_cli.training import LOG
from trd_cli.trajectories.rates import log_lines
from trd_cli.trajectories.stage_dir import SESSIONS

_MANY = 8


def check_devices(graph: Graph) -> list[Finding]:
    """Check that each stage fits the devices; this machine's own may be others than those where the recipe runs.

    A Ray cluster is not asked.
    """
    machine = machine_of(graph.recipe)
    nodes = [node for node in graph.nodes if graph.recipe.ray is None or not isinstance(node.config, EngineOptions)]
    level: Level = "error" if graph.recipe.devices is not None else "warning"
    found = [
        (node.stage, arm_of(node), of_exception(level, "recipe", raised))
        for node, raised in misfits(graph, nodes, machine)
    ]
    missing = missing_gpus(machine)
    return [*([of_exception("warning", "recipe", missing)] if missing else []), *grouped(found)]


def check_cost(config: PlanConfig, graph: Graph, works: Sequence[Work]) -> Iterator[Finding]:
    """Count response tokens of each stage over all rounds, arms and seeds, and hours where there is a rate."""
    rates, unknown = {}, []
    for stage in ("sample", "refine", "distill", "eval"):
        own = [work for work in works if work.node.stage == stage]
        tokens = sum(work.tokens for work in own)
        if not own:
            continue
        bound = "" if all(work.measured for work in own) else "at most "
        what = f"{stage}: {bound}{counted(tokens, 'response token', ',.0f')} in {counted(sum(w.rows for w in own), 'row', ',')}"
        rate, source = _rate(config, graph, stage)
        if rate is None:
            unknown.append(stage)
            yield ok("cost", what)
        else:
            rates[stage] = rate
            yield ok("cost", f"{what}, {_time(tokens / rate)} at {rate:,.0f} tokens/s ({source})")
    if rates:
        yield from _schedules(graph, works, rates, unknown)
    elif unknown:
        yield ok("cost", "no hours: there is no rate; --sample-rate and --train-rate give one")


# Hours by the number of devices


def _schedules(graph: Graph, works: Sequence[Work], rates: dict[str, float], unknown: list[str]) -> Iterator[Finding]:
    """Yield a line of the table for each number of devices."""
    own = machine_of(graph.recipe)
    choices = [_devices(1), _devices(_MANY)]
    if own.here != (WHOLE,) and _size(own) not in (1, _MANY):
        choices.append(own)
    width = max(len(_count(machine)) for machine in choices)
    for machine in choices:
        spans = schedule(graph, works, rates, machine)
        seconds, held = max((span.end for span in spans), default=0.0), _size(machine)
        busy = sum((span.end - span.begin) * len(span.placement.devices) for span in spans)
        share = busy / (seconds * held) if seconds else 0.0
        line = f"{_count(machine):<{width}}  {_time(seconds):>14}  {seconds * held / 3600:>12,.1f} device-hours  {per_cent(share):>9} busy"
        yield ok("cost", line + (f", without {', '.join(unknown)}" if unknown else ""))


def schedule(graph: Graph, works: Sequence[Work], rates: dict[str, float], machine: Machine) -> list[Span]:
    """Return when and where each stage would run; one that needs more devices than there are takes all of them.

    `rates` are tokens a second of one engine or process by stage. Work without a rate takes no time.
    """
    there = _size(machine)
    tokens = {work.node.name: work.tokens for work in works}
    tasks = [replace(task, devices=min(task.devices, there)) for task in tasks_of(graph, graph.nodes, machine)]

    def seconds(placement: Placement) -> float:
        node = graph[placement.task.name]
        rate = rates.get(node.stage)
        return tokens.get(node.name, 0.0) / (rate * _engines(graph, node, placement)) if rate else 0.0

    return simulate(tasks, machine.slots, seconds)


def _engines(graph: Graph, node: Node, placement: Placement) -> int:
    """Return how many engines or processes work at a node where it is placed."""
    if placement.task.takes_free:
        return placement.times
    wanted = graph.recipe.processes if node.stage == "distill" else int(node.config.replicas)
    return max(1, min(wanted, len(placement.devices)))


def _devices(count: int) -> Machine:
    return Machine(tuple((f"cuda:{index}",) for index in range(count)))


def _size(machine: Machine) -> int:
    return sum(map(len, machine.slots))


def _count(machine: Machine) -> str:
    return counted(_size(machine), "device")


# Rates


def _rate(config: PlanConfig, graph: Graph, stage: str) -> tuple[float | None, str]:
    """Return response tokens a second of one engine or process, as given or as measured, and which of the two."""
    given = config.train_rate if stage == "distill" else config.sample_rate
    if given is not None:
        return given, "given"
    if stage == "distill":
        return _measured(graph, [stage], LOG, "response_tokens", "seconds"), "measured"
    sessions = (SESSIONS, "tokens", "at_work")
    return _measured(graph, [stage], *sessions) or _measured(graph, GENERATING, *sessions), "measured"


def _measured(graph: Graph, stages: Sequence[str], log: str, tokens: str, seconds: str) -> float | None:
    """Return tokens a second of one engine or process over all lines of these stages' logs."""
    status = Status(graph.directory)
    count = spent = 0.0
    for node in (node for node in graph.nodes if node.stage in stages):
        processes = len(status.of(node.name).get("devices", ())) or graph.recipe.processes
        for line in log_lines(graph.path(node) / log):
            if tokens in line and seconds in line:
                engines = processes if node.stage == "distill" else len(line.get("replicas", ())) or 1
                count, spent = count + line[tokens], spent + line[seconds] * engines
    return count / spent if spent else None


def _time(seconds: float) -> str:
    return f"{seconds / 3600:,.1f} hours" if seconds >= 3600 else f"{seconds / 60:.1f} minutes"
