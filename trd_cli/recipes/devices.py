"""The devices of a run: the slots that a recipe names or this machine has, and the devices that each stage needs.

A stage that runs a model needs one device for each process that it starts: `processes` to train, and the
tensor-parallel size times `replicas` to generate. It sees its own devices alone, by CUDA_VISIBLE_DEVICES. Grading and
making problems need none, but on CPUs the cores are the devices.

A machine without GPUs is one slot, WHOLE, that holds any stage and hides nothing from it. With one slot, stages run one
after the other.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from trd_cli.config.training import DistillConfig
from trd_cli.engines.placement import gpus_each, visible_gpus
from trd_cli.engines.registry import choose_engine
from trd_cli.errors import InputError, UserError, counted
from trd_cli.recipes.nodes import Graph, Node
from trd_cli.recipes.recipe import Recipe
from trd_cli.recipes.slots import Slot, Task

WHOLE: Slot = ("machine",)
_LIGHT = ("problems", "verify")
_VISIBLE = "CUDA_VISIBLE_DEVICES"


def slots_of(recipe: Recipe) -> tuple[Slot, ...]:
    """Return the slots that the recipe names; by default each GPU that is visible, or WHOLE where there is none."""
    if recipe.devices is not None:
        return tuple(tuple(each.split(",")) for each in recipe.devices)
    return tuple((f"cuda:{index}",) for index in range(len(visible_gpus()))) or (WHOLE,)


def environment_of(devices: Sequence[str]) -> dict[str, str]:
    """Return the variables that show a stage these devices alone."""
    if tuple(devices) == WHOLE or not devices:
        return {}
    if "cpu" in devices:
        return {_VISIBLE: ""}
    visible = visible_gpus()
    return {_VISIBLE: ",".join(visible[_index(name)] for name in devices)}


def check_devices(slots: Sequence[Slot]) -> InputError | None:
    """Return the error of GPUs that are not on this machine, None where all are."""
    wanted = [name for slot in slots for name in slot if name.startswith("cuda:")]
    count = len(visible_gpus()) if wanted else 0
    missing = [name for name in wanted if _index(name) >= count]
    if not missing:
        return None
    return InputError(
        f"devices names {', '.join(missing)}, and there {'is' if count == 1 else 'are'} {counted(count, 'GPU')}",
        f"cuda:0 to cuda:{count - 1}" if count else "no GPU",
        "change devices at the top of the recipe, or leave it out",
    )


def misfits(graph: Graph, nodes: Sequence[Node], slots: Sequence[Slot]) -> Iterator[tuple[Node, InputError]]:
    """Yield each stage that needs more devices than there are, or one that it would not see."""
    there = sum(map(len, slots))
    for task in tasks_of(graph, nodes, slots):
        node = graph[task.name]
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
        elif tuple(slots) != (WHOLE,) and device.startswith("cuda:") and _index(device) >= seen:
            yield (
                node,
                InputError(
                    f"device = {device!r}, and a stage sees the {counted(seen, 'device')} of its own slot alone",
                    "auto, cpu or cuda",
                    "leave device out; devices at the top of the recipe names those of the run",
                ),
            )


def check_fits(graph: Graph, nodes: Sequence[Node], slots: Sequence[Slot]) -> None:
    """Raise InputError for a stage that does not fit the devices of this machine."""
    if missing := check_devices(slots):
        raise missing
    for node, error in misfits(graph, nodes, slots):
        raise InputError(f"{node.name}: {error.got}", error.expected, error.mend)


def tasks_of(graph: Graph, nodes: Sequence[Node], slots: Sequence[Slot]) -> list[Task]:
    """Return nodes as tasks for these slots."""
    return [Task(node.name, node.inputs, *_need(graph.recipe, node, slots)) for node in nodes]


def _need(recipe: Recipe, node: Node, slots: Sequence[Slot]) -> tuple[int, bool]:
    """Return how many devices a node needs, and True if it takes any multiple of that."""
    on_cpu = any("cpu" in slot for slot in slots)
    if tuple(slots) == (WHOLE,):
        return 1, False
    if node.stage in _LIGHT:
        return (1 if on_cpu or len(slots) == 1 else 0), False
    if isinstance(node.config, DistillConfig):
        return (1 if node.config.device == "cpu" else recipe.processes), False
    each, replicas = _devices_each(node), node.config.replicas
    return (each, True) if replicas == "auto" else (each * int(replicas), False)


def _devices_each(node: Node) -> int:
    """Return the devices of one replica: one also for an engine that needs no GPU, so that it runs in a slot."""
    model = node.config.teacher if node.stage == "refine" else node.config.model
    try:
        return max(1, gpus_each(choose_engine(node.config, model or ""), node.config))
    except UserError:  # an engine that is refused with its stage
        return 1


def _key(node: Node) -> str:
    if isinstance(node.config, DistillConfig):
        return "processes"
    return f"replicas or tensor_parallel_size in [{node.stage}]"


def _why(graph: Graph, node: Node) -> str:
    if isinstance(node.config, DistillConfig):
        return f"processes = {graph.recipe.processes}"
    return f"replicas = {node.config.replicas}, tensor_parallel_size = {node.config.tensor_parallel_size}"


def grading_workers(slots: Sequence[Slot], node: Node, held: Sequence[Slot]) -> int | None:
    """Return how many grader processes a stage may start beside others, None for as many as it would alone.

    A share of the cores goes with each slot. Beside GPUs, half of the cores are for grading that needs none.
    """
    if len(slots) == 1 or getattr(node.config, "workers", 1) is not None:
        return None
    cores = os.cpu_count() or 1
    if not held:
        return max(1, cores // 2)
    shared = cores if "cpu" in slots[0] else cores // 2
    return max(1, shared * len(held) // len(slots))


def shown(slots: Sequence[Slot]) -> str:
    """Return the names of devices in a row."""
    return ", ".join(name for slot in slots for name in slot)


def _index(name: str) -> int:
    return int(name.removeprefix("cuda:"))
