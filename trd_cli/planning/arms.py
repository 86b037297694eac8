"""What an arm asks for that says something else than it seems to."""

from __future__ import annotations

from collections.abc import Iterator

from trd_cli.config.generating import SampleConfig
from trd_cli.config.training import DistillConfig
from trd_cli.planning.findings import Finding, error, warning
from trd_cli.planning.models import Planned
from trd_cli.recipes.nodes import Graph, Node


def check_arms(graph: Graph, student: Planned, teacher: Planned) -> Iterator[Finding]:
    """Check each arm once. What trd distill refuses by itself is found by check_stages."""
    if graph.recipe.setting == "opd" and student.ref.path == teacher.ref.path is not None:
        yield warning(
            "recipe",
            f"student and teacher are both {student.name}, which has nothing to teach itself in equal contexts",
            'take a stronger teacher, or setting = "opsd"',
        )
    seen: set[str | None] = set()
    for node in graph.nodes:
        if isinstance(node.config, DistillConfig) and node.arm not in seen:
            seen.add(node.arm)
            yield from _objective(node, node.config, student, teacher)
            yield from _sampled(node, node.config, graph)


def _objective(node: Node, config: DistillConfig, student: Planned, teacher: Planned) -> Iterator[Finding]:
    vocabulary = min(student.vocabulary, teacher.vocabulary)
    if config.objective.endswith("topk") and config.top_k > vocabulary:
        yield error(
            "recipe",
            f"arm {node.arm}: top_k {config.top_k:,} of a vocabulary of {vocabulary:,}",
            f"lower top_k; 32 is usual, and all {vocabulary:,} are the objective {config.objective.removesuffix('-topk')}",
        )


def _sampled(node: Node, config: DistillConfig, graph: Graph) -> Iterator[Finding]:
    if config.objective != "sampled":
        return
    sample = next(graph[n].config for n in graph.needed_by([node.name]) if graph[n].stage == "sample")
    assert isinstance(sample, SampleConfig)
    drawn = (sample.temperature, sample.top_p, sample.top_k)
    along_refined = (config.stage or "refined") == "refined"
    if along_refined or drawn != (config.temperature, 1.0, 0):
        rows = "refined rows" if along_refined else "rollouts at T {:g}, top-p {:g}, top-k {}".format(*drawn)
        yield warning(
            "recipe",
            f"arm {node.arm}: the sampled estimate of reverse KL is biased along {rows}",
            f"set temperature = {config.temperature:g}, top_p = 1.0 and top_k = 0 in [sample], or take it as it is",
        )
