"""Estimate what the stages of a recipe take: the work of each, its memory, and the disk of all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

from trd_cli.config.commands import EvalConfig, PlanConfig
from trd_cli.config.generating import EngineOptions, RefineConfig, SampleConfig
from trd_cli.config.training import DistillConfig
from trd_cli.datasets.benchmarks import Benchmark
from trd_cli.errors import sized
from trd_cli.planning import estimates
from trd_cli.planning.chains import Chain
from trd_cli.planning.estimates import BYTES, GIB, Need, Shape
from trd_cli.planning.findings import Finding, error, grouped, ok, warning
from trd_cli.planning.lengths import arm_of
from trd_cli.planning.pair import Planned, longest_training_row
from trd_cli.recipes.checkpoints import saves_adapter_alone
from trd_cli.recipes.devices import machine_of
from trd_cli.recipes.nodes import ORDER, Graph, Node

GENERATING = ("sample", "refine", "eval")


@dataclass(frozen=True)
class Work:
    """The work of one node: rows, mean tokens of a row's prompt and response, longest tokens of both, bytes of text."""

    node: Node
    rows: int
    prompt: float
    response: float
    longest: int
    text: float
    student_prompt: float = 0.0
    measured: bool = False

    @property
    def tokens(self) -> float:
        """Return the response tokens that are written or trained along."""
        config = self.node.config
        if not isinstance(config, DistillConfig):
            return self.rows * self.response
        trained = config.steps * config.batch_size if config.steps else config.epochs * self.rows
        return trained * self.response


def work_of(graph: Graph, chains: Sequence[Chain], benchmarks: Sequence[Benchmark]) -> list[Work]:
    """Return the work of all nodes that run a model. Later rounds count as the first; unknown work is left out."""
    found: list[Work] = []
    for node in graph.nodes:
        if isinstance(node.config, EvalConfig):
            found += _evaluation(node, node.config, benchmarks)
            continue
        chain = next((c for c in chains if c.distill.arm in node.arms), None)
        if chain is not None and chain.cases and node.stage in ("sample", "refine", "distill"):
            found.append(_of_chain(node, chain))
    return sorted(found, key=lambda work: ORDER.index(work.node.stage))


def _of_chain(node: Node, chain: Chain) -> Work:
    cases = chain.cases
    written = {"sample": "rollout", "refine": "refined"}.get(node.stage)
    prompts = [{"sample": c.prompt, "refine": c.asked}.get(node.stage, max(c.prompt, c.context)) for c in cases]
    responses = [case.response(written) if written else chain.trained(case) for case in cases]
    return Work(
        node,
        chain.rows,
        fmean(prompts),
        fmean(responses),
        max(p + r for p, r in zip(prompts, responses, strict=True)),
        fmean(case.text for case in cases),
        fmean(case.prompt for case in cases) if node.stage == "refine" else 0.0,
        measured=not _filtered(node) and (written or chain.along) in chain.measured,
    )


def _filtered(node: Node) -> bool:
    """Tell whether a stage filters its rows, so that their number is not known beforehand."""
    config = node.config
    return isinstance(config, (RefineConfig, DistillConfig)) and (config.subset != "all" or config.where is not None)


def _evaluation(node: Node, config: EvalConfig, benchmarks: Sequence[Benchmark]) -> list[Work]:
    """Return the work on all benchmarks. A question's text stands for its prompt, four bytes for a token."""
    if not benchmarks:
        return []
    rows = tokens = text = longest = 0
    for each in benchmarks:
        count = min(len(each.problems), config.limit or len(each.problems)) * config.samples
        new, mean = config.max_tokens or each.max_tokens, fmean(len(p.problem) for p in each.problems)
        rows, tokens, text = rows + count, tokens + count * new, text + count * mean
        longest = max(longest, new + round(max(len(p.problem) for p in each.problems) / 4))
    return [Work(node, rows, text / rows / 4, tokens / rows, longest, text / rows)]


# Memory


def check_memory(config: PlanConfig, works: Sequence[Work], student: Planned, teacher: Planned) -> list[Finding]:
    """Check the memory of each kind of node once; rounds and seeds do not differ."""
    return grouped(
        (work.node.stage, arm_of(work.node), finding)
        for work in works
        for finding in _memory(config, work, student, teacher)
    )


def _memory(plan: PlanConfig, work: Work, student: Planned, teacher: Planned) -> Iterator[Finding]:
    device = plan.gpu_memory
    model = _model_of(work, student, teacher)
    if model.shape is None:
        return
    need = need_of(work, student, teacher, plan.fsdp)
    if isinstance(work.node.config, DistillConfig):
        what = _parts(need) + (f" on each of {plan.fsdp} processes" if plan.fsdp > 1 else "")
        change = "lower max_tokens_per_batch, use lora or gradient_checkpointing, or share the weights over (more) processes, --fsdp here"
    else:
        engine = work.node.config
        assert isinstance(engine, EngineOptions)
        at_once = _at_once(engine, work.rows)
        sequences = "one sequence" if at_once == 1 else f"{at_once} sequences"
        what = f"{_parts(need)} for {model.name} with {sequences} of {work.longest:,} tokens in flight"
        change = "lower max_tokens, max_model_len or batch_size, or raise tensor_parallel_size"
        device = device and device * engine.tensor_parallel_size * engine.gpu_memory_utilization
    if device is None or need.total <= device * GIB:
        yield ok("memory", what)
    else:
        yield error("memory", f"{what}, and {device:.1f} GiB are there", change)


def need_of(work: Work, student: Planned, teacher: Planned, shards: int = 1) -> Need:
    """Return the memory of one process of a node. The sizes of its models must be known."""
    if isinstance(work.node.config, DistillConfig):
        return training_need(work, student, teacher, shards)
    assert isinstance(work.node.config, EngineOptions)
    writing = _generating(work, _model_of(work, student, teacher), _at_once(work.node.config, work.rows))
    if isinstance(work.node.config, RefineConfig) and work.node.config.mode == "relay" and student.shape is not None:
        return max(writing, _searching(work, student, teacher), key=lambda need: need.total)
    return writing


def _searching(work: Work, student: Planned, teacher: Planned) -> Need:
    """Return what a relay holds while it searches rows for triggers: both models, and the logits of a chunk."""
    dtype = teacher.dtype if work.node.config.dtype == "auto" else work.node.config.dtype
    return estimates.comparing(student.shape, teacher.shape, dtype)


def _model_of(work: Work, student: Planned, teacher: Planned) -> Planned:
    """Return the model whose weights a node loads first."""
    return teacher if work.node.stage == "refine" else student


def _at_once(engine: EngineOptions, rows: int) -> int:
    """Return how many sequences are held: as asked for, but one where vllm or a server fills the room there is."""
    asked = engine.batch_size if engine.engine in ("auto", "transformers") else None
    return max(1, min(asked or 1, rows))


def _generating(work: Work, model: Planned, at_once: int) -> Need:
    config = work.node.config
    assert isinstance(config, (SampleConfig, RefineConfig, EvalConfig))
    assert model.shape is not None
    dtype = model.dtype if config.dtype == "auto" else config.dtype
    longest = min(work.longest, model.window(config) or work.longest)
    return estimates.generating(model.shape, dtype, longest, at_once)


def training_need(work: Work, student: Planned, teacher: Planned, shards: int = 1) -> Need:
    """Return the memory of one process of an arm's trd distill."""
    config, shape = work.node.config, student.shape
    assert isinstance(config, DistillConfig)
    assert shape is not None
    own = teacher.ref.path == student.ref.path
    # The student without its adapter is its own teacher without a second copy. Where each round has a training of its
    # own, the adapter of later rounds begins at other weights than `initial`.
    goes_on = config.continue_from is not None
    begins_elsewhere = bool(work.node.round) and not goes_on
    shared = own and config.lora and not (config.teacher_weights == "initial" and begins_elsewhere)
    # An adapter that goes on is held twice where its start in the round is the teacher.
    held_twice = config.teacher_weights == "ema" or (shared and goes_on and config.teacher_weights == "round")
    longest = min(work.longest, longest_training_row(student, teacher, config.max_length) or work.longest)
    return estimates.training(
        shape,
        None if shared else teacher.shape,
        "bfloat16" if config.dtype == "auto" else config.dtype,
        # A row that exceeds max_tokens_per_batch has a forward pass of its own.
        max(longest, min(config.max_tokens_per_batch, config.batch_size * longest)),
        adapter=adapter_of(config, student),
        copied=held_twice,
        checkpointing=config.gradient_checkpointing,
        shards=shards,
    )


def adapter_of(config: DistillConfig, student: Planned) -> int:
    """Return the parameters of the adapter, 0 where all weights are trained."""
    if not config.lora:
        return 0
    wanted = config.lora_targets
    chosen = [
        (layer.inputs, layer.outputs)
        for layer in student.linears
        if not wanted or any(layer.name == t or layer.name.endswith(f".{t}") for t in wanted)
    ]
    return estimates.adapter_parameters(config.lora_rank, chosen)


def _parts(need: Need) -> str:
    rough = {"activations": "activations (rough)"}
    parts = ", ".join(f"{rough.get(name, name)} {sized(size)}" for name, size in need.parts.items() if size)
    return f"{sized(need.total)} ({parts})"


# Disk


def check_disk(graph: Graph, works: Sequence[Work], student: Planned) -> Iterator[Finding]:
    """Check the room for shards before compression, checkpoints, and states that are kept while training."""
    shards = sum(
        w.rows * estimates.row_bytes(round(w.prompt), round(w.response), round(w.text), round(w.student_prompt))
        for w in works
        if w.node.stage in GENERATING
    )
    training = [w.node for w in works if w.node.stage == "distill"]
    devices = sum(map(len, machine_of(graph.recipe).here))
    at_once = max(1, min(len(graph.recipe.arms) * len(graph.recipe.seeds), devices // graph.recipe.processes))
    kept = states = 0
    if student.shape is not None:
        kept = sum(_checkpoint(graph, node, student, student.shape) for node in training)
        sizes = {node: _state(node, student, student.shape) for node in training}
        states = sum(sorted((node.config.keep + 1) * size for node, size in sizes.items())[-at_once:])
        # A continued training leaves the states of its last two rounds.
        states += sum(size for node, size in sizes.items() if _leaves_state(graph, node))
    while_training = "one arm trains" if at_once == 1 else f"{at_once} arms train"
    what = f"at most {sized(shards)} of shards before compression, {sized(kept)} of checkpoints, {sized(states)} of states while {while_training}"
    free = shutil.disk_usage(
        next(p for p in (graph.directory.resolve(), *graph.directory.resolve().parents) if p.exists())
    ).free
    if shards + kept + states > free:
        yield warning(
            "disk",
            f"{what}, and {sized(free)} are free",
            "give trd run an --out with more room, or lower keep in [distill]",
        )
    else:
        yield ok("disk", f"{what}; {sized(free)} are free")


def _leaves_state(graph: Graph, node: Node) -> bool:
    return graph.recipe.is_continued and node.round is not None and node.round >= graph.recipe.rounds - 2


def _checkpoint(graph: Graph, node: Node, student: Planned, shape: Shape) -> int:
    config = node.config
    assert isinstance(config, DistillConfig)
    dtype = BYTES[student.dtype if config.save_dtype == "auto" else config.save_dtype]
    adapter = adapter_of(config, student) * dtype
    if saves_adapter_alone(graph, node):
        return adapter
    copies = 2 if config.teacher_weights == "ema" and not config.lora else 1
    return copies * shape.parameters * dtype + adapter


def _state(node: Node, student: Planned, shape: Shape) -> int:
    """Return the bytes of a saved state: weights and two moments in float32, and the average of `ema`."""
    config = node.config
    assert isinstance(config, DistillConfig)
    average = BYTES["float32"] if config.teacher_weights == "ema" else 0
    return (adapter_of(config, student) or shape.parameters) * (12 + average)
