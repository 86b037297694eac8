"""What the stages of a recipe will refuse, asked of the owners of their rules before anything is run.

What a machine lacks, such as a package or a device, is an error where the stages run on this machine; `trd plan` may be
asked on another one, and gives a warning. Not covered: what vllm refuses of its arguments, and what a server does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from trd_cli.config.base import Config
from trd_cli.config.commands import EvalConfig
from trd_cli.config.generating import EngineName, RefineConfig, RenderOptions, SampleConfig
from trd_cli.config.training import DistillConfig
from trd_cli.datasets.benchmarks import asks_for_code, split_benchmarks
from trd_cli.engines.base import engine_version
from trd_cli.engines.registry import check_arguments, check_server, choose_engine, window
from trd_cli.errors import InputError, ModelError, UserError
from trd_cli.graders.sandbox import choose_level
from trd_cli.model_files import has_weights
from trd_cli.planning.findings import Finding, Level, Topic, error, grouped, of_exception, warning
from trd_cli.planning.lengths import arm_of
from trd_cli.planning.models import Planned, check_pair, check_template, read_model
from trd_cli.recipes.nodes import Graph, Node
from trd_cli.recipes.recipe import Recipe, templates_of
from trd_cli.recipes.sections import in_a_recipe

Generating = SampleConfig | RefineConfig | EvalConfig
_LOADING = ("transformers", "vllm")
_PLACES = {"model", "teacher", "problems", "inputs", "parents", "out", "seed", "round", "limit", "skip"}


def refuse(recipe: str, graph: Graph, nodes: Sequence[Node]) -> None:
    """Raise InputError where one of these nodes would end with an error on this machine, as far as models and options
    tell.
    """
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
        got, _, expected = errors[0].what.partition("; expected ")
        more = f"; trd plan {recipe} names {len(errors) - 1} more" if len(errors) > 1 else ""
        raise InputError(got, expected or "what its stages take", errors[0].change + more)


def read_models(recipe: Recipe, with_teacher: bool = True) -> tuple[Planned | None, Planned | None, list[Finding]]:
    """Return student and teacher (opsd: the same), None for one that cannot be read, and what is to be said of them."""
    student, found = read_model(recipe.student)
    if not with_teacher or recipe.teacher is None or recipe.teacher == recipe.student:
        return student, student, found
    teacher, more = read_model(recipe.teacher)
    found = [*found, *more]
    if student is not None and teacher is not None:
        sample = SampleConfig.parse({**recipe.sample, "problems": ""})
        found += check_pair(student, teacher, sample.render in (None, "chat"), sample.chat_template_kwargs or {})
    return student, teacher, found


def check_stages(
    graph: Graph, nodes: Sequence[Node], student: Planned, teacher: Planned, sharded: bool, here: bool
) -> list[Finding]:
    """Check models and options of nodes that run a model; each finding once, with the stages and arms it is about.

    `sharded` tells that training is launched with FSDP, `here` that the nodes run on this machine.
    """
    return _Stages(graph, nodes, student, teacher, sharded, here).findings()


class _Stages:
    """Collects what a list of nodes would be refused for."""

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
            asked = self._rollouts(node)
            key = (node.stage, _without_places(node.config), _without_places(asked))
            if key not in known:
                known[key] = self._of(node, asked)
            shared = isinstance(node.config, EvalConfig)
            stage, arm = ("arm", node.arm or "") if node.stage == "distill" else (node.stage, arm_of(node))
            labelled += [(stage, "" if shared else arm, found) for found in known[key]]
        models = [each for model, trained in self._is_trained_or_taught.items() for each in self._model(model, trained)]
        return [*models, *self._templates, *grouped(labelled)]

    def _of(self, node: Node, asked: RenderOptions) -> list[Finding]:
        """What one node would be refused for. Its models and templates are noted down."""
        config = node.config
        if isinstance(config, DistillConfig):
            self._is_trained_or_taught |= dict.fromkeys((self._student, self._teacher), True)
            if templates_of(config, self._graph.recipe.setting):
                self._templates |= dict.fromkeys(_template(self._teacher, RenderOptions(), asked))
            return [*self._training(config), *self._networks(config)]
        if not isinstance(config, Generating):
            return []
        model = self._teacher if isinstance(config, RefineConfig) else self._student
        self._templates |= dict.fromkeys(_template(model, config, asked))
        try:
            engine = choose_engine(config, model.ref.name)
        except UserError as raised:
            return [of_exception("error", "recipe", in_a_recipe(raised))]
        if engine in _LOADING:
            self._is_trained_or_taught.setdefault(model, False)
        return self._engine(node, engine, config, model)

    def _rollouts(self, node: Node) -> RenderOptions:
        """How the rollouts that a node comes from were asked for; an evaluation asks by itself."""
        before = (self._graph[name].config for name in self._graph.needed_by([node.name]))
        sampled = (each for each in before if isinstance(each, SampleConfig))
        return RenderOptions() if node.stage == "eval" else next(sampled, RenderOptions())

    def _told(self, topic: Topic, check: Callable[[], object], lacking: bool = False) -> Iterator[Finding]:
        """What an owner of rules refuses.

        `lacking` tells that it asks for something that may be there on another machine.
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
        if ref.path is not None and Path(ref.name).is_dir() and not has_weights(ref.path):
            what = f"{ref.name} has no weights; expected model.safetensors or its index"
            yield Finding(self._level(lacking=True), "models", what, "copy them there")
        if trained:
            topic: Topic = "models" if ref.path else "recipe"
            refusals = list(self._told(topic, lambda: check_trainable(ref)))
            yield from refusals or self._told(topic, lambda: check_head(ref.name, ref.skeleton()))

    # Stages that generate

    def _engine(self, node: Node, engine: EngineName, config: Generating, model: Planned) -> list[Finding]:
        """What is wrong with the options of an engine."""
        found = [
            *self._told("recipe", lambda: check_arguments(engine, config)),
            *self._told("recipe", lambda: engine_version(engine), lacking=True),
            *self._told("recipe", lambda: check_server(engine, config), lacking=True),
            *self._window(node, engine, config, model),
        ]
        if isinstance(config, EvalConfig):
            found += self._sandbox(config)
        if engine == "transformers":
            from trd_cli.engines.transformers import check_device, check_options

            found += self._told("recipe", lambda: check_device(config.device), lacking=True)
            if not any(each.level == "error" for each in found):
                # auto may be another engine elsewhere.
                may_differ = config.engine == "auto"
                found += self._told("models", lambda: check_options(model.ref, config), lacking=may_differ)
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
        if any(asks_for_code(name) for name in split_benchmarks(config.bench or "")):
            yield from self._told("recipe", lambda: choose_level(config.sandbox), lacking=True)

    # Training

    def _training(self, config: DistillConfig) -> Iterator[Finding]:
        from trd_cli.training.launch import check_tracker, check_training_device
        from trd_cli.training.teacher_context import longest_row, masked_ids

        student, teacher = self._student, self._teacher
        yield from self._told("recipe", lambda: masked_ids(config.mask_tokens, student.tokenizer))
        for model in dict.fromkeys((student, teacher)):
            yield from self._told("lengths", lambda ref=model.ref: longest_row(ref, config.max_length))
        if self._sharded:
            yield from self._told("recipe", config.check_shardable)
        yield from self._told("recipe", lambda: check_training_device(config.device), lacking=True)
        for tracker in config.tracker:
            yield from self._told("recipe", lambda name=tracker: check_tracker(name), lacking=True)

    def _networks(self, config: DistillConfig) -> Iterator[Finding]:
        """What the options ask of the networks themselves, tried on ones without weights."""
        attention = config.attn_implementation
        for model in dict.fromkeys((self._student, self._teacher)):
            if model.ref.path is None:
                continue
            try:
                network = model.ref.skeleton(attention)
            except ModelError as raised:
                if attention:  # else it is said of the model alone
                    # The package of an attention may be installed where the stage runs.
                    level = self._level(lacking=isinstance(raised.__cause__, ImportError))
                    yield of_exception(level, "recipe", in_a_recipe(raised))
                continue
            if model is self._student:
                yield from self._told("recipe", lambda network=network: _adapt(network, config))


def _without_places(config: Config) -> str:
    """A configuration without what says where things are: equal for two that are refused for the same reasons."""
    return repr({name: value for name, value in config if name not in _PLACES})


def _template(model: Planned, own: RenderOptions, asked: RenderOptions) -> Iterator[Finding]:
    """Whether prompts can be rendered; what a stage leaves open is as the rollouts were asked for."""
    kwargs = own.chat_template_kwargs
    kwargs = (asked.chat_template_kwargs or {}) if kwargs is None else kwargs
    yield from check_template(model, own.render or asked.render or "chat", kwargs)


def _adapt(network: Any, config: DistillConfig) -> None:
    """Do to a network without storage what training does to the student."""
    import torch

    from trd_cli.training.model import allow_checkpointing, with_adapter

    if config.gradient_checkpointing:
        allow_checkpointing(network)
    if config.lora:
        with torch.device("meta"):
            with_adapter(network, config, config.seed)
