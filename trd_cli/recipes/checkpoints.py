"""Choose the form in which a run's trainings save their students: merged weights, or the adapter alone."""

from __future__ import annotations

from trd_cli.config.generating import EngineOptions
from trd_cli.config.training import DistillConfig
from trd_cli.engines.registry import choose_engine
from trd_cli.errors import UserError
from trd_cli.recipes.nodes import Graph, Node


def words_of_training(graph: Graph, node: Node) -> list[str]:
    """Return the options that a training gets for the form of its checkpoint: they change no weight."""
    return ["--no-merge"] if saves_adapter_alone(graph, node) else []


def saves_adapter_alone(graph: Graph, node: Node) -> bool:
    """Return True if this machine needs no merged weights of a student: transformers alone reads it in this run.

    Students of the last round are for other readers too.
    """
    config = node.config
    if not isinstance(config, DistillConfig) or not config.lora or node.round == graph.recipe.rounds - 1:
        return False
    return all(_loads_adapters(each.config, node) for each in graph.nodes if node.name in each.inputs)


def _loads_adapters(config: object, student: Node) -> bool:
    try:
        return not isinstance(config, EngineOptions) or choose_engine(config, student.out) == "transformers"
    except UserError:  # an engine that is refused with its stage
        return False
