"""Which rows would not fit: prompts in sampling and refining, contexts with responses in training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from statistics import median

from trd_cli.config.base import errors_allowed
from trd_cli.config.commands import EvalConfig
from trd_cli.config.generating import RefineConfig, SampleConfig
from trd_cli.config.training import DistillConfig
from trd_cli.datasets.benchmarks import Benchmark
from trd_cli.planning.findings import Finding, error, grouped, ok, per_cent, warning
from trd_cli.planning.models import Planned
from trd_cli.planning.rows import Chain, room_for_prompt, window
from trd_cli.recipes.nodes import Graph, Node

_RARE = 0.01  # share of rows that may be cut without a warning


def check_lengths(chains: Sequence[Chain], student: Planned, teacher: Planned) -> list[Finding]:
    """Every stage once, by the sample of rows in the chains."""
    return grouped(
        (node.stage, arm_of(node), finding)
        for nodes in zip(*((c.sample, c.refine, c.distill) for c in chains), strict=True)
        for node, chain in zip(nodes, chains, strict=True)
        if node is not None
        for finding in _check(node, chain, student, teacher)
    )


def arm_of(node: Node) -> str:
    """Whose a node is: an arm's, the starting model's, or "" where arms share it."""
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
    told = f"prompts of {_spread(prompts)} tokens"
    if chain.left_out:
        told += f", {per_cent(chain.left_out)} of the problems left out as too long"
    yield ok("lengths", told)
    limit = window(config.max_model_len, student)
    if limit is None:
        return
    yield from _unasked(node, prompts, limit, config.max_errors)
    yield from _fewer_tokens(node, prompts, limit, config.max_tokens)


def _refine(node: Node, config: RefineConfig, chain: Chain, teacher: Planned) -> Iterator[Finding]:
    cases = chain.cases
    yield ok("lengths", f"prompts of {_spread([case.asked for case in cases])} tokens{_by(chain, 'rollouts')}")
    limit = window(config.max_model_len, teacher)
    if limit is None:
        return
    room = room_for_prompt(limit, config.max_tokens)
    yield from _unasked(node, [case.bare for case in cases], room + 1, config.max_errors)
    cut = [case for case in cases if case.bare <= room < case.bare + case.attempt]
    if len(cut) / len(cases) > _RARE:
        yield warning(
            "lengths",
            f"{per_cent(len(cut) / len(cases))} of the attempts are cut to fit the {room:,} tokens beside the response"
            + _by(chain, "rollouts"),
            "raise max_model_len in [refine], or lower max_tokens in [sample] or [refine]",
        )


def _unasked(node: Node, prompts: Sequence[int], limit: int, max_errors: float) -> Iterator[Finding]:
    """Prompts that leave no room for a response: such rows end as errors, and too many of them fail the stage."""
    beyond = sum(length >= limit for length in prompts)
    if not beyond:
        return
    what = f"{per_cent(beyond / len(prompts))} of the prompts do not fit (the longest has {max(prompts):,} tokens, and fewer than {limit:,} fit)"
    change = f"raise max_model_len in [{node.stage}], or filter by max_prompt_tokens in [sample]"
    many = beyond > errors_allowed(max_errors, len(prompts))
    yield (error if many else warning)("lengths", what, change)


def check_evaluations(graph: Graph, benchmarks: Sequence[Benchmark], student: Planned) -> Iterator[Finding]:
    """Questions and their responses against the model's window. A question's own tokens stand for its prompt."""
    node = next((node for node in graph.nodes if isinstance(node.config, EvalConfig)), None)
    if node is None:
        return
    config = node.config
    assert isinstance(config, EvalConfig)
    found: list[Finding] = []
    limit = window(config.max_model_len, student)
    for each in benchmarks if limit is not None else ():
        prompts = [len(student.tokenizer.encode(question.problem)) for question in each.problems]
        asked = config.max_tokens or each.max_tokens
        for finding in (
            *_unasked(node, prompts, limit, config.max_errors),
            *_fewer_tokens(node, prompts, limit, asked),
        ):
            found.append(replace(finding, what=f"{each.name}: {finding.what}"))
    yield from grouped(("eval", "", finding) for finding in found)


def _fewer_tokens(node: Node, prompts: Sequence[int], limit: int, asked: int) -> Iterator[Finding]:
    cut = [prompt for prompt in prompts if prompt < limit < prompt + asked]
    share = len(cut) / len(prompts)
    if share > _RARE:
        least = limit - max(cut)
        yield warning(
            "lengths",
            f"{per_cent(share)} of the prompts leave less than max_tokens {asked:,} in a window of {limit:,} ({least:,} at the least)",
            f"lower max_tokens in [{node.stage}], or raise max_model_len where the model takes more",
        )


def _distill(node: Node, config: DistillConfig, chain: Chain, student: Planned, teacher: Planned) -> Iterator[Finding]:
    limit, along = window(config.max_length, student, teacher), chain.along
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
    left_out = sum(case.prompt + case.response(along) > limit for case in cases)
    over = sum(case.context + case.response(along) > limit for case in cases)
    if config.overflow == "error":
        left_out = max(left_out, over)
    source = _by(chain, "refined" if along == "refined" else "rollouts")
    yield _fit(len(cases), hopeless, left_out, over, limit, _needed(chain), source, chain.known)


def _fit(
    rows: int, hopeless: int, left_out: int, over: int, limit: int, needed: int, source: str, known: bool
) -> Finding:
    """`hopeless`, `left_out` and `over` are rows that never fit, that do not fit, and whose teacher's context does not."""
    told = f"rows of up to {needed:,} tokens{source}, max_length {limit:,}"
    change = f"raise max_length to {needed:,}, or lower max_tokens of what is trained along"
    if hopeless == rows or (known and left_out == rows):
        return error("lengths", f"{told}: no row fits, all would be left out", change)
    if max(left_out, over) / rows <= _RARE:
        return ok("lengths", told)
    parts = [
        f"{per_cent(count / rows)} {what}"
        for count, what in ((left_out, "would be left out"), (over - left_out, "lose a part of the context"))
        if count > 0
    ]
    return warning("lengths", f"{told}: {', '.join(parts)}", change)


def _needed(chain: Chain) -> int:
    return max(max(case.prompt, case.context) + case.response(chain.along) for case in chain.cases)


def _by(chain: Chain, kind: str) -> str:
    return " (measured)" if kind in chain.measured else " (if every response is as long as it may be)"


def _spread(lengths: Sequence[int]) -> str:
    return f"{round(median(lengths)):,} (median) to {max(lengths):,}"
