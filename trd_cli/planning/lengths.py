"""Find rows that do not fit: prompts in sampling and refining, contexts with responses in training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from statistics import median

from trd_cli.config.base import errors_allowed
from trd_cli.config.commands import EvalConfig
from trd_cli.config.generating import RefineConfig, SampleConfig
from trd_cli.config.training import DistillConfig
from trd_cli.datasets.benchmarks import Benchmark
from trd_cli.planning.chains import Chain
from trd_cli.planning.findings import Finding, error, grouped, ok, per_cent, warning
from trd_cli.planning.pair import Planned, longest_training_row
from trd_cli.prompting.rendering import room_for_prompt, room_for_response
from trd_cli.recipes.nodes import Graph, Node

_RARE = 0.01  # share of rows that may be cut without a warning


def check_lengths(chains: Sequence[Chain], student: Planned, teacher: Planned) -> list[Finding]:
    """Check every stage once, by the sample of rows in the chains."""
    return grouped(
        (node.stage, arm_of(node), finding)
        for nodes in zip(*((c.sample, c.refine, c.distill) for c in chains), strict=True)
        for node, chain in zip(nodes, chains, strict=True)
        if node is not None
        for finding in _check(node, chain, student, teacher)
    )


def arm_of(node: Node) -> str:
    """Return a node's arm, "base" for the starting model's evaluation, "" for a node that arms share."""
    return node.arm or ("base" if node.stage == "eval" else "")


def _check(node: Node, chain: Chain, student: Planned, teacher: Planned) -> Iterator[Finding]:
    config = node.config
    if not chain.cases:
        if isinstance(config, SampleConfig):
            what = "every problem is left out by max_prompt_tokens or max_reference_tokens"
            yield error("lengths", what, "raise them in [sample]")
    elif isinstance(config, SampleConfig):
        yield from _sample(node, config, chain, student)
    elif isinstance(config, RefineConfig):
        yield from _refine(node, config, chain, teacher)
    elif isinstance(config, DistillConfig):
        yield from _distill(node, config, chain, student, teacher)


def _sample(node: Node, config: SampleConfig, chain: Chain, student: Planned) -> Iterator[Finding]:
    prompts = [case.prompt for case in chain.cases]
    text = f"prompts of {_spread(prompts)} tokens"
    if chain.left_out:
        text += f", {per_cent(chain.left_out)} of the problems left out as too long"
    yield ok("lengths", text)
    limit = student.window(config)
    if limit is None:
        return
    yield from _unasked(node, prompts, limit, config.max_errors)
    yield from _fewer_tokens(node, prompts, limit, config.max_tokens)


def _refine(node: Node, config: RefineConfig, chain: Chain, teacher: Planned) -> Iterator[Finding]:
    cases = chain.cases
    prompts = [case.asked + case.given for case in cases]
    given = " with the prefix that is given" if config.cut else ""
    yield ok("lengths", f"prompts of {_spread(prompts)} tokens{given}{_by(chain, 'rollout')}")
    limit = teacher.window(config)
    if limit is None:
        return
    if config.mode != "rewrite":
        yield from _unasked(node, prompts, limit, config.max_errors)
        yield from _fewer_tokens(node, prompts, limit, config.max_tokens)
        return
    room = room_for_prompt(limit, config.max_tokens)
    yield from _unasked(node, [case.bare for case in cases], room + 1, config.max_errors)
    cut = [case for case in cases if case.bare <= room < case.bare + case.attempt]
    if len(cut) / len(cases) > _RARE:
        yield warning(
            "lengths",
            f"{per_cent(len(cut) / len(cases))} of the attempts are cut to fit the {room:,} tokens beside the response"
            + _by(chain, "rollout"),
            "raise max_model_len in [refine], or lower max_tokens in [sample] or [refine]",
        )


def _unasked(node: Node, prompts: Sequence[int], limit: int, max_errors: float) -> Iterator[Finding]:
    """Count prompts that leave no room for a response: their rows end as errors, and too many fail the stage."""
    beyond = sum(length >= limit for length in prompts)
    if not beyond:
        return
    what = f"{per_cent(beyond / len(prompts))} of the prompts do not fit (the longest has {max(prompts):,} tokens, and fewer than {limit:,} fit)"
    change = f"raise max_model_len in [{node.stage}], or filter by max_prompt_tokens in [sample]"
    many = beyond > errors_allowed(max_errors, len(prompts))
    yield (error if many else warning)("lengths", what, change)


def check_evaluations(graph: Graph, benchmarks: Sequence[Benchmark], student: Planned) -> Iterator[Finding]:
    """Check questions and their responses against the model's window. A question's tokens stand for its prompt."""
    node = next((node for node in graph.nodes if isinstance(node.config, EvalConfig)), None)
    if node is None:
        return
    config = node.config
    assert isinstance(config, EvalConfig)
    found: list[Finding] = []
    limit = student.window(config)
    for each in benchmarks if limit is not None else ():
        prompts = [len(student.tokenizer.encode(question.problem)) for question in each.problems]
        asked = config.max_tokens or each.max_tokens
        for finding in (
            *_unasked(node, prompts, limit, config.max_errors),
            *_fewer_tokens(node, prompts, limit, asked),
        ):
            found.append(replace(finding, got=f"{each.name}: {finding.got}"))
    yield from grouped(("eval", "", finding) for finding in found)


def _fewer_tokens(node: Node, prompts: Sequence[int], limit: int, asked: int) -> Iterator[Finding]:
    rooms = [room_for_response(limit, prompt, asked) for prompt in prompts if prompt < limit]
    share = sum(room < asked for room in rooms) / len(prompts)
    if share > _RARE:
        least = min(rooms)
        yield warning(
            "lengths",
            f"{per_cent(share)} of the prompts leave less than max_tokens {asked:,} in a window of {limit:,} ({least:,} at the least)",
            f"lower max_tokens in [{node.stage}], or raise max_model_len where the model takes more",
        )


def _distill(node: Node, config: DistillConfig, chain: Chain, student: Planned, teacher: Planned) -> Iterator[Finding]:
    limit = longest_training_row(student, teacher, config.max_length)
    if limit is None:
        return
    if config.max_length and config.max_length > limit:
        yield warning(
            "lengths",
            f"max_length {config.max_length:,}, and the models take {limit:,}: that counts",
            "lower max_length",
        )
    cases = chain.cases
    # The shortest response has one token beside what cannot be cut.
    hopeless = sum(case.prompt + 1 > limit for case in cases)
    left_out = sum(case.prompt + chain.trained(case) > limit for case in cases)
    over = sum(case.context + chain.trained(case) > limit for case in cases)
    if config.overflow == "error":
        left_out = max(left_out, over)
    yield _fit(chain, hopeless, left_out, over, limit)


def _fit(chain: Chain, hopeless: int, left_out: int, over: int, limit: int) -> Finding:
    """Judge the rows that never fit (`hopeless`), that do not fit, and whose teacher's context does not (`over`)."""
    rows, along = len(chain.cases), chain.along
    needed = max(max(case.prompt, case.context) + chain.trained(case) for case in chain.cases)
    text = f"rows of up to {needed:,} tokens{_by(chain, along)}, max_length {limit:,}"
    change = f"raise max_length to {needed:,}, or lower max_tokens of what is trained along"
    if hopeless == rows or (along in chain.measured and left_out == rows):
        return error("lengths", f"{text}: no row fits, all would be left out", change)
    if max(left_out, over) / rows <= _RARE:
        return ok("lengths", text)
    parts = [
        f"{per_cent(count / rows)} {what}"
        for count, what in ((left_out, "would be left out"), (over - left_out, "lose a part of the context"))
        if count > 0
    ]
    return warning("lengths", f"{text}: {', '.join(parts)}", change)


def _by(chain: Chain, kind: str) -> str:
    return " (measured)" if kind in chain.measured else " (if every response is as long as it may be)"


def _spread(lengths: Sequence[int]) -> str:
    return f"{round(median(lengths)):,} (median) to {max(lengths):,}"
