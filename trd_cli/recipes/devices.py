"""Find the devices of a run, count those that each of its stages needs, and show a stage its own alone.

A stage that runs a model needs one device for each process that it starts: `processes` to train, and the
tensor-parallel size times `replicas` to generate. It sees its own devices alone, by CUDA_VISIBLE_DEVICES. Grading and
making problems need none, but on CPUs the cores are the devices.

A machine without GPUs is one slot, WHOLE, that holds any stage and hides nothing from it. With one slot, stages run one
after the other. With `ray`, stages that generate have the GPUs of the cluster, which Ray gives them, and all others the
devices of this machine. If these are the cluster's too, no stage trains while another generates.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from trd_cli.config.generating import EngineOptions
from trd_cli.config.training import DistillConfig
from trd_cli.engines.placement import gpus_each, visible_gpus
from trd_cli.engines.registry import choose_engine
from trd_cli.errors import InputError, UserError, counted
from trd_cli.recipes.nodes import Graph, Node
from trd_cli.recipes.recipe import Recipe
from trd_cli.recipes.slots import Placement, Slot, Task

WHOLE: Slot = ("machine",)
_CLUSTER = "ray"
_LIGHT = ("problems", "verify")
_VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Machine:
    """The slots of this machine, and those of a Ray cluster at `address`; `apart` where they share GPUs."""

    here: tuple[Slot, ...]
    cluster: tuple[Slot, ...] = ()
    address: str | None = None
    apart: bool = False

    @property
    def slots(self) -> tuple[Slot, ...]:
        return (*self.here, *self.cluster)

    @property
    def has_several(self) -> bool:
        """Return True where stages may run at the same time."""
        return len(self.slots) > 1

    def of_kind(self, kind: str) -> tuple[Slot, ...]:
        return tuple(slot for slot in self.slots if slot[0].startswith(kind))


def machine_of(recipe: Recipe) -> Machine:
    """Return the slots that the recipe names; by default each GPU that is visible, or WHOLE where there is none."""
    if recipe.devices is not None:
        return Machine(tuple(tuple(each.split(",")) for each in recipe.devices))
    return Machine(tuple((f"cuda:{index}",) for index in range(len(visible_gpus()))) or (WHOLE,))


def with_cluster(machine: Machine, address: str) -> Machine:
    """Return the machine with the GPUs of a Ray cluster, or one slot for all of a cluster without any.

    Raises EngineError if there is no cluster.
    """
    from trd_cli.engines.ray_workers import count_gpus

    gpus, of_this_machine = count_gpus(address)
    cluster = tuple((f"{_CLUSTER}:{index}",) for index in range(gpus)) or ((_CLUSTER,),)
    return Machine(machine.here, cluster, address, apart=not gpus or of_this_machine > 0)


def tasks_of(graph: Graph, nodes: Sequence[Node], machine: Machine) -> list[Task]:
    """Return nodes as tasks for the slots of a machine."""
    return [Task(node.name, node.inputs, *_need(graph.recipe, node, machine)) for node in nodes]


def _need(recipe: Recipe, node: Node, machine: Machine) -> tuple[int, bool, str]:
    """Return how many devices a node needs, whether it takes any multiple of that, and the kind of the devices."""
    generates = isinstance(node.config, EngineOptions)
    slots = machine.cluster if generates and machine.cluster else machine.here
    kind = slots[0][0].partition(":")[0]
    if slots in ((WHOLE,), ((_CLUSTER,),)):
        return 1, False, kind
    if node.stage in _LIGHT:
        return (0 if kind == "cuda" and machine.has_several else 1), False, kind
    if isinstance(node.config, DistillConfig):
        return (1 if node.config.device == "cpu" else recipe.processes), False, kind
    each, replicas = _devices_each(node), node.config.replicas
    return (each, True, kind) if replicas == "auto" else (each * int(replicas), False, kind)


def _devices_each(node: Node) -> int:
    """Return the devices of one replica: one also for an engine that needs no GPU, so that it runs in a slot."""
    model = node.config.teacher if node.stage == "refine" else node.config.model
    try:
        return max(1, gpus_each(choose_engine(node.config, model or ""), node.config))
    except UserError:  # an engine that is refused with its stage
        return 1


# Stages that do not fit


def check_fits(graph: Graph, nodes: Sequence[Node], machine: Machine) -> None:
    """Raise InputError for a stage that does not fit the devices."""
    if missing := missing_gpus(machine):
        raise missing
    for node, error in misfits(graph, nodes, machine):
        raise InputError(f"{node.name}: {error.got}", error.expected, error.mend)


def missing_gpus(machine: Machine) -> InputError | None:
    """Return the error of GPUs that are not on this machine, None where all are."""
    wanted = [name for slot in machine.here for name in slot if name.startswith("cuda:")]
    count = len(visible_gpus()) if wanted else 0
    missing = [name for name in wanted if _index(name) >= count]
    if not missing:
        return None
    return InputError(
        f"devices names {', '.join(missing)}, and there {'is' if count == 1 else 'are'} {counted(count, 'GPU')}",
        f"cuda:0 to cuda:{count - 1}" if count else "no GPU",
        "change devices at the top of the recipe, or leave it out",
    )


def misfits(graph: Graph, nodes: Sequence[Node], machine: Machine) -> Iterator[tuple[Node, InputError]]:
    """Yield each stage that needs more devices than there are, or one that it would not see."""
    for task in tasks_of(graph, nodes, machine):
        node, slots = graph[task.name], machine.of_kind(task.kind)
        there = sum(map(len, slots))
        device = getattr(node.config, "device", "auto")
        seen = max(task.devices, min(map(len, slots)))
        if task.devices > there:
            yield (
                node,
                InputError(
                    f"{counted(task.devices, 'device')} ({_why(graph, node)}) of {there} ({shown(slots)})",
                    f"at most {there}",
                    f"lower {_key(node)}, or give the run more devices",
                ),
            )
        elif task.kind != WHOLE[0] and device.startswith("cuda:") and _index(device) >= seen:
            yield (
                node,
                InputError(
                    f"device = {device!r}, and a stage sees the {counted(seen, 'device')} of its own slot alone",
                    "auto, cpu or cuda",
                    "leave device out; devices at the top of the recipe names those of the run",
                ),
            )


def _key(node: Node) -> str:
    if isinstance(node.config, DistillConfig):
        return "processes"
    return f"replicas or tensor_parallel_size in [{node.stage}]"


def _why(graph: Graph, node: Node) -> str:
    if isinstance(node.config, DistillConfig):
        return f"processes = {graph.recipe.processes}"
    return f"replicas = {node.config.replicas}, tensor_parallel_size = {node.config.tensor_parallel_size}"


# Variables and options of a stage


def environment_of(placement: Placement) -> dict[str, str]:
    """Return the variables that show a stage its own devices alone."""
    if placement.task.kind == "cpu":
        return {_VISIBLE: ""}
    if placement.task.kind == "cuda" and placement.devices:
        visible = visible_gpus()
        return {_VISIBLE: ",".join(visible[_index(name)] for name in placement.devices)}
    return {}


def words_of(machine: Machine, node: Node, placement: Placement) -> list[str]:
    """Return the options that a stage gets with its devices: they change no row."""
    words = []
    if placement.task.kind == _CLUSTER:
        words += ["--ray", str(machine.address)]
    if placement.task.takes_free:
        words += ["--replicas", str(placement.times)]
    if machine.has_several and getattr(node.config, "workers", 1) is None:
        words += ["--workers", str(_grading_workers(machine, placement))]
    return words


def _grading_workers(machine: Machine, placement: Placement) -> int:
    """Return the grader processes of a stage beside others: its slots' share of the cores.

    Beside GPUs, half of the cores are for grading that needs none.
    """
    cores, slots = os.cpu_count() or 1, machine.of_kind(placement.task.kind)
    if not placement.slots:
        return max(1, cores // 2)
    shared = cores if placement.task.kind == "cpu" else cores // 2
    return max(1, shared * len(placement.slots) // len(slots))


def shown(slots: Sequence[Slot]) -> str:
    """Return the names of devices in a row."""
    return ", ".join(name for slot in slots for name in slot)


def _index(name: str) -> int:
    return int(name.removeprefix("cuda:"))
