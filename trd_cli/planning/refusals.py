"""Find what the stages of a recipe will refuse, by asking the owners of their rules before anything is run.

What a machine lacks, such as a package or a device, is an error where the stages run on this machine. `trd plan` may be
asked on another one and gives a warning. Not covered: what vllm refuses of its arguments, and what a server refuses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from trd_cli.adapter_files import is_adapter_alone
from trd_cli.config.base import Config
from trd_cli.config.commands import EvalConfig
from trd_cli.config.generating import EngineName, RefineConfig, SampleConfig
from trd_cli.config.training import DistillConfig
from trd_cli.datasets.benchmarks import split_benchmarks, task_of
from trd_cli.engines.base import engine_version
from trd_cli.engines.placement import LOADING, check_replicas
from trd_cli.engines.registry import check_arguments, check_server, check_weights, choose_engine, window
from trd_cli.errors import InputError, ModelError, UserError
from trd_cli.graders.sandbox import choose_level
from trd_cli.model_files import has_weights
from trd_cli.models import base_of
from trd_cli.planning.chains import rendering_of
from trd_cli.planning.findings import Finding, Level, Topic, error, grouped, of_exception, warning
from trd_cli.planning.lengths import arm_of
from trd_cli.planning.pair import Planned, check_pair, check_template, read_model
from trd_cli.prompting.rendering import Rendering, templates_for
from trd_cli.recipes.nodes import Graph, Node
from trd_cli.recipes.recipe import Recipe
from trd_cli.recipes.rounds import sampling_of
from trd_cli.recipes.sections import in_a_recipe

Generating = SampleConfig | RefineConfig | EvalConfig
_PLACES = {
    "model",
    "teacher",
    "problems",
    "inputs",
    "parents",
    "out",
    "seed",
    "round",
    "limit",
    "skip",
    "continue_from",
}


def refuse(recipe: str, graph: Graph, nodes: Sequence[Node]) -> None:
    """Raise InputError where one of these nodes would be refused on this machine for its models or options."""
    todo = [node for node in nodes if isinstance(node.config, (*Generating.__args__, DistillConfig))]
    if not todo:
        return
    with_teacher = any(node.stage in ("refine", "distill") for node in todo)
    student, teacher, found = read_models(graph.recipe, with_teacher)
    if student is not None and teacher is not None:
        from trd_cli.training.sharding import is_asked_for

        found += check_stages(graph, todo, student, teacher, is_asked_for(), here=True)
    errors = [finding for finding in found if finding.level == "error"]
    if errors:
        first = errors[0]
        more = f"; trd plan {recipe} names {len(errors) - 1} more" if len(errors) > 1 else ""
        raise InputError(first.got, first.expected or "what its stages take", first.change + more)


def read_models(recipe: Recipe, with_teacher: bool = True) -> tuple[Planned | None, Planned | None, list[Finding]]:
    """Return student and teacher (opsd: the same), None for one that cannot be read, and the findings about them."""
    student, found = read_model(recipe.student)
    if not with_teacher or recipe.teacher is None or recipe.teacher == recipe.student:
        return student, student, found
    teacher, more = read_model(recipe.teacher)
    found = [*found, *more]
    if student is not None and teacher is not None:
        rendering = Rendering().with_options(sampling_of(recipe))
        found += check_pair(student, teacher, rendering)
    return student, teacher, found


def check_stages(
    graph: Graph, nodes: Sequence[Node], student: Planned, teacher: Planned, sharded: bool, here: bool
) -> list[Finding]:
    """Check models and options of nodes that run a model. Each finding comes once, with its stages and arms.

    `sharded` tells that training is launched with FSDP, `here` that the nodes run on this machine.
    """
    return _Stages(graph, nodes, student, teacher, sharded, here).findings()


class _Stages:
    """Collect what a list of nodes would be refused for."""

    def __init__(
        self, graph: Graph, nodes: Sequence[Node], student: Planned, teacher: Planned, sharded: bool, here: bool
    ) -> None:
        self._graph, self._nodes, self._sharded, self._here = graph, nodes, sharded, here
        self._student, self._teacher = student, teacher
        self._is_trained_or_taught: dict[Planned, bool] = {}
        self._templates: dict[Finding, None] = {}

    def findings(self) -> list[Finding]:
        labelled: list[tuple[str, str, Finding]] = []
        # Rounds, seeds and arms ask for much the same, and reading a model's files takes time.
        known: dict[tuple[str, ...], list[Finding]] = {}
        for node in self._nodes:
            rendering = rendering_of(self._graph, node)
            key = (node.stage, _without_places(node.config), str(rendering))
            if key not in known:
                known[key] = self._of(node, rendering)
            shared = isinstance(node.config, EvalConfig)
            stage, arm = ("arm", node.arm or "") if node.stage == "distill" else (node.stage, arm_of(node))
            labelled += [(stage, "" if shared else arm, found) for found in known[key]]
        models = [each for model, trained in self._is_trained_or_taught.items() for each in self._model(model, trained)]
        return [*models, *self._templates, *grouped(labelled)]

    def _of(self, node: Node, rendering: Rendering) -> list[Finding]:
        """Return what one node would be refused for, and note down its models and templates."""
        config = node.config
        if isinstance(config, DistillConfig):
            self._is_trained_or_taught |= dict.fromkeys((self._student, self._teacher), True)
            if templates_for(config, self._graph.recipe.setting):
                self._templates |= dict.fromkeys(check_template(self._teacher, rendering))
            return [*self._training(config), *self._networks(config)]
        if not isinstance(config, Generating):
            return []
        model = self._teacher if isinstance(config, RefineConfig) else self._student
        self._templates |= dict.fromkeys(check_template(model, rendering))
        try:
            engine = choose_engine(config, model.ref.name)
        except UserError as raised:
            return [of_exception("error", "recipe", in_a_recipe(raised))]
        if engine in LOADING:
            self._is_trained_or_taught.setdefault(model, False)
        return self._engine(node, engine, config, model)

    def _refused(self, topic: Topic, check: Callable[[], object], lacking: bool = False) -> Iterator[Finding]:
        """Yield what an owner of a rule refuses.

        `lacking` tells that the check asks for something that another machine may have.
        """
        try:
            check()
        except UserError as raised:
            yield of_exception(self._level(lacking), topic, in_a_recipe(raised))

    def _level(self, lacking: bool) -> Level:
        return "warning" if lacking and not self._here else "error"

    # Models

    def _model(self, model: Planned, trained: bool) -> Iterator[Finding]:
        from trd_cli.training.admission import check_head, check_trainable

        ref = model.ref
        if ref.path is not None and is_adapter_alone(ref.path):
            yield from self._refused("models", lambda: base_of(ref.path), lacking=True)
        elif ref.path is not None and Path(ref.name).is_dir() and not has_weights(ref.path):
            level, expected = self._level(lacking=True), "model.safetensors or its index"
            yield Finding(level, "models", f"{ref.name} has no weights", "copy them there", expected)
        if trained:
            topic: Topic = "models" if ref.path else "recipe"
            refusals = list(self._refused(topic, lambda: check_trainable(ref)))
            yield from refusals or self._refused(topic, lambda: check_head(ref.name, ref.skeleton()))

    # Stages that generate

    def _engine(self, node: Node, engine: EngineName, config: Generating, model: Planned) -> list[Finding]:
        """Return what is wrong with the options of an engine."""
        asked = config.model_copy(update={"ray": self._graph.recipe.ray})
        found = [
            *self._refused("recipe", lambda: check_arguments(engine, config)),
            *self._refused("recipe", lambda: check_replicas(engine, asked), lacking=True),
            *self._refused("recipe", lambda: engine_version(engine), lacking=True),
            *self._refused("models", lambda: check_weights(engine, model.ref)),
            *self._refused("recipe", lambda: check_server(engine, config), lacking=True),
            *self._window(node, engine, config, model),
        ]
        if isinstance(config, EvalConfig):
            found += self._sandbox(config)
        if isinstance(config, RefineConfig) and config.mode == "relay":
            from trd_cli.relaying.relays import check_engine

            self._is_trained_or_taught |= dict.fromkeys((self._student, self._teacher), True)
            found += self._refused("recipe", lambda: check_engine(engine))
        if engine == "transformers":
            from trd_cli.engines.transformers import check_device, check_options

            found += self._refused("recipe", lambda: check_device(config.device), lacking=True)
            if not any(each.level == "error" for each in found):
                # On another machine auto may be another engine.
                may_differ = config.engine == "auto"
                found += self._refused("models", lambda: check_options(model.ref, config), lacking=may_differ)
        return found

    def _window(self, node: Node, engine: EngineName, config: Generating, model: Planned) -> Iterator[Finding]:
        asked, longest = config.max_model_len, model.longest
        lower = f"lower max_model_len in [{node.stage}]"
        try:
            window(engine, model.ref, config)
        except InputError:
            yield error("lengths", f"max_model_len {asked:,}, and {model.name} takes {longest:,}", lower)
        except ModelError as raised:
            yield of_exception("error", "lengths", in_a_recipe(raised))
        else:
            if asked and longest and asked > longest:
                what = f"max_model_len {asked:,}, and the configuration of {model.name} says {longest:,}"
                yield warning("lengths", what, f"{lower}, where the engine takes no more")

    def _sandbox(self, config: EvalConfig) -> Iterator[Finding]:
        if any(task_of(name) == "code" for name in split_benchmarks(config.bench or "")):
            yield from self._refused("recipe", lambda: choose_level(config.sandbox), lacking=True)

    # Training

    def _training(self, config: DistillConfig) -> Iterator[Finding]:
        from trd_cli.training.examples import longest_row, masked_ids
        from trd_cli.training.launch import check_tracker, check_training_device

        student, teacher = self._student, self._teacher
        yield from self._refused("recipe", lambda: masked_ids(config.mask_tokens, student.tokenizer))
        for model in dict.fromkeys((student, teacher)):
            yield from self._refused("lengths", lambda ref=model.ref: longest_row(ref, config.max_length))
        if self._sharded:
            yield from self._refused("recipe", config.check_shardable)
        yield from self._refused("recipe", lambda: check_training_device(config.device), lacking=True)
        for tracker in config.tracker:
            yield from self._refused("recipe", lambda name=tracker: check_tracker(name), lacking=True)

    def _networks(self, config: DistillConfig) -> Iterator[Finding]:
        """Try what the options ask of the networks on ones without weights."""
        attention = config.attn_implementation
        for model in dict.fromkeys((self._student, self._teacher)):
            if model.ref.path is None:
                continue
            try:
                network = model.ref.skeleton(attention)
            except ModelError as raised:
                if attention:  # else `_model` reports it
                    # The package of an attention may be installed where the stage runs.
                    level = self._level(lacking=isinstance(raised.__cause__, ImportError))
                    yield of_exception(level, "recipe", in_a_recipe(raised))
                continue
            if model is self._student:
                yield from self._refused("recipe", lambda network=network: _adapt(network, config))


def _without_places(config: Config) -> str:
    """Return a configuration without names of places: equal for two that are refused for the same reasons."""
    return repr({name: value for name, value in config if name not in _PLACES})


def _adapt(network: Any, config: DistillConfig) -> None:
    """Do to a network without storage what training does to the student."""
    import torch

    from trd_cli.training.model import allow_checkpointing, with_adapter

    if config.gradient_checkpointing:
        allow_checkpointing(network)
    if config.lora:
        with torch.device("meta"):
            with_adapter(network, config, config.seed)


def check_arms(graph: Graph, student: Planned, teacher: Planned) -> Iterator[Finding]:
    """Check each arm once for what trd distill takes, but not in the way that it seems."""
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
            yield from _weighed(node, node.config, graph)


def _objective(node: Node, config: DistillConfig, student: Planned, teacher: Planned) -> Iterator[Finding]:
    vocabulary = min(student.vocabulary, teacher.vocabulary)
    if config.objective.endswith("topk") and config.top_k > vocabulary:
        yield error(
            "recipe",
            f"arm {node.arm}: top_k {config.top_k:,} of a vocabulary of {vocabulary:,}",
            f"lower top_k; 32 is usual, and all {vocabulary:,} are the objective {config.objective.removesuffix('-topk')}",
        )


def _sampling(node: Node, graph: Graph) -> SampleConfig:
    """Return the options with which the rollouts of a training are drawn."""
    return next(graph[n].config for n in graph.needed_by([node.name]) if graph[n].stage == "sample")


def _weighed(node: Node, config: DistillConfig, graph: Graph) -> Iterator[Finding]:
    if config.weighs_rows and _sampling(node, graph).n == 1:
        yield warning(
            "recipe",
            f"arm {node.arm}: rows are weighed among those of their problem, and each problem has one",
            "set n = 8 in [sample], or take equal weights",
        )


def _sampled(node: Node, config: DistillConfig, graph: Graph) -> Iterator[Finding]:
    sample = _sampling(node, graph)
    drawn = (sample.temperature, sample.top_p, sample.top_k)
    if config.objective == "sampled" and config.is_drawn_otherwise(config.along(), *drawn):
        is_refined = config.along() == "refined"
        rows = "refined rows" if is_refined else "rollouts at T {:g}, top-p {:g}, top-k {}".format(*drawn)
        yield warning(
            "recipe",
            f"arm {node.arm}: the sampled estimate of reverse KL is biased along {rows}",
            'take objective = "reverse-kl", which needs no samples, or leave it as it is'
            if is_refined
            else f"set temperature = {config.temperature:g}, top_p = 1.0 and top_k = 0 in [sample], or take it as it is",
        )
