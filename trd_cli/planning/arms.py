"""What an arm asks for that cannot be done, or that says something else than it seems to."""

from __future__ import annotations

from collections.abc import Iterator

from trd_cli.config import DistillConfig, SampleConfig
from trd_cli.errors import InputError
from trd_cli.planning.findings import Finding, error, of_exception, warning
from trd_cli.planning.models import Planned
from trd_cli.planning.needs import adapter_of
from trd_cli.running.nodes import Graph, Node

_ALL_SPECIAL = "special"


def check_arms(graph: Graph, student: Planned, teacher: Planned, sharded: bool) -> Iterator[Finding]:
    """Each arm once. `sharded` tells that training is launched with FSDP."""
    for model in dict.fromkeys((student, teacher)):
        if model.ref.path is None:
            yield error(
                "recipe",
                f"{model.name} has no weights to train or to learn from",
                "take a real model; trd run --until verify needs none",
            )
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
            if sharded:
                yield from _launch(node, node.config)


def _objective(node: Node, config: DistillConfig, student: Planned, teacher: Planned) -> Iterator[Finding]:
    vocabulary = min(student.vocabulary, teacher.vocabulary)
    if config.objective.endswith("topk") and config.top_k > vocabulary:
        yield error(
            "recipe",
            f"arm {node.arm}: top_k {config.top_k:,} of a vocabulary of {vocabulary:,}",
            f"lower top_k; 32 is usual, and all {vocabulary:,} are the objective {config.objective.removesuffix('-topk')}",
        )
    if config.lora_targets and student.linears and not adapter_of(config, student):
        yield error(
            "recipe",
            f"arm {node.arm}: lora_targets {', '.join(config.lora_targets)} name no linear layer of {student.name}",
            "give names of its layers, or leave it out for all of them",
        )
    known = student.tokenizer.vocabulary()
    for token in config.mask_tokens:
        if token != _ALL_SPECIAL and token not in known:
            yield error(
                "recipe",
                f"arm {node.arm}: mask_tokens {token!r} is no token of {student.name}",
                "give one of its vocabulary, or special",
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


def _launch(node: Node, config: DistillConfig) -> Iterator[Finding]:
    try:
        config.check_shardable()
    except InputError as raised:
        yield of_exception("error", "recipe", raised, f"arm {node.arm}: ")
