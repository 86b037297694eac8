"""The length of every row of an arm, in tokens: prompts by rendering the problem set, responses by measuring a run.

A response that nobody has written yet counts as long as it may become. Of a large set, a thousand problems spread over
it are rendered. Not covered: rounds after the first, `where`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.compute as pc

from trd_cli.config.generating import RefineConfig, RenderOptions, SampleConfig
from trd_cli.config.training import DistillConfig
from trd_cli.errors import InputError
from trd_cli.planning.pair import Planned
from trd_cli.prompting.prefixes import place_in
from trd_cli.prompting.rendering import (
    Rendering,
    room_for_prompt,
    room_for_response,
    template_for,
    template_kind,
    values_of,
)
from trd_cli.recipes.nodes import Graph, Node
from trd_cli.recipes.recipe import Recipe
from trd_cli.recipes.rounds import problems_a_round
from trd_cli.records import Problem
from trd_cli.trajectories.shards import list_shards, read_table

_RENDERED = 1000
# Stands for a window that nothing tells.
_UNBOUNDED = 1 << 62


@dataclass(frozen=True)
class Case:
    """One row: lengths in tokens.

    `attempt` and `refined` are y_o and y_r. `asked` is the refinement prompt, with the attempt cut to its room, and
    `bare` the same without the attempt. `context` is the teacher's context in training. `text` is the problem with
    reference and tests, in bytes. `given` are the tokens of y_r that the teacher gets from y_o and goes on from.
    """

    prompt: int
    attempt: int
    bare: int
    asked: int
    refined: int
    context: int
    text: int
    given: int = 0

    def response(self, along: str) -> int:
        return self.refined if along == "refined" else self.attempt


@dataclass(frozen=True)
class Chain:
    """An arm's first round: its nodes, the number of its rows, and a sample of them.

    `left_out` is the share of the problems that [sample] filters by length. `measured` names the kinds of rows
    ("rollout", "refined") whose lengths come from the run directory; all others are the longest possible.
    """

    sample: Node
    refine: Node | None
    distill: Node
    rows: int
    left_out: float
    cases: tuple[Case, ...]
    measured: frozenset[str]

    @property
    def along(self) -> str:
        assert isinstance(self.distill.config, DistillConfig)
        return self.distill.config.along()

    def trained(self, case: Case) -> int:
        """Return the number of response tokens of a row that the training reads."""
        most, response = self.distill.config.max_response_tokens, case.response(self.along)
        return response if most is None else min(most, response)


def chains(
    recipe: Recipe, graph: Graph, problems: Sequence[Problem], student: Planned, teacher: Planned
) -> list[Chain]:
    """Return the first round of each arm, with the first seed. Raises PromptError for an unusable template."""
    writers: dict[int, _Writer] = {}
    found = []
    for node in graph.nodes:
        if node.stage != "distill" or node.round != 0 or node.seed != recipe.seeds[0]:
            continue
        count = min(len(problems), problems_a_round(recipe, str(node.arm)) or len(problems))
        if count not in writers:
            step = max(1, -(-count // _RENDERED))
            writers[count] = _Writer(graph, problems[:count:step], student, teacher)
        found.append(writers[count].chain(node, count))
    return found


def rendering_of(graph: Graph, node: Node) -> Rendering:
    """Return how a node renders prompts. What its options leave open is as in the set that it reads."""
    read = {node.name} if node.stage == "eval" else graph.needed_by([node.name])
    found = Rendering()
    for each in graph.nodes:  # in the order of the stages
        if each.name in read and each.round == node.round and isinstance(each.config, RenderOptions):
            found = found.with_options(each.config)
    return found


class _Writer:
    """Render problems as the stages will, with each template once."""

    def __init__(self, graph: Graph, problems: Sequence[Problem], student: Planned, teacher: Planned) -> None:
        self._graph, self._problems, self._student, self._teacher = graph, problems, student, teacher
        self._rendered: dict[tuple[object, ...], list[int]] = {}

    def chain(self, distill: Node, count: int) -> Chain:
        made = (self._graph[name] for name in self._graph.needed_by([distill.name]))
        before = {node.stage: node for node in made if node.source == self._graph.recipe.sources[0]}
        sample, refine = before["sample"], before.get("refine")
        attempts, refined = (_responses(self._graph.path(node)) if node else {} for node in (sample, refine))
        cases = list(self._cases(sample, refine, distill, attempts, refined))
        kept = {name for name, _ in cases}
        # A set that is not finished tells too little: its short responses came first.
        both = (("rollout", attempts), ("refined", refined))
        measured = frozenset(name for name, found in both if kept and kept <= found.keys())
        share = len(kept) / max(len(self._problems), 1)
        rows = round(count * share) * sample.config.n
        return Chain(sample, refine, distill, rows, 1 - share, tuple(case for _, case in cases), measured)

    def _cases(
        self,
        sample: Node,
        refine: Node | None,
        distill: Node,
        attempts: Mapping[str, Sequence[int]],
        refined: Mapping[str, Sequence[int]],
    ) -> Iterator[tuple[str, Case]]:
        """Yield the rows of the problems that [sample] keeps, each with its problem's id."""
        config, training = sample.config, distill.config
        is_stored = training.takes_stored_prompt()
        prompts = self._lengths(sample, self._student)
        nothing = [0] * len(prompts)
        bares = self._lengths(refine, self._teacher) if refine else nothing
        contexts = nothing if is_stored else self._lengths(distill, self._teacher)
        window = self._student.window(config) or _UNBOUNDED
        refining = (self._teacher.window(refine.config) if refine else None) or _UNBOUNDED
        for problem, prompt, bare, context in zip(self._problems, prompts, bares, contexts, strict=True):
            if self._is_left_out(config, problem, prompt):
                continue
            longest = max(refined.get(problem.problem_id, ()), default=None)
            text = sum(len(t or "") for t in (problem.problem, problem.reference_solution, problem.tests))
            # How long an episode is, nobody knows: it may fill the model's context.
            most = config.max_tokens if config.env is None else window
            for attempt in attempts.get(problem.problem_id) or (room_for_response(window, prompt, most),):
                asked, given, y_r = _refined(refine.config, refining, bare, attempt, longest) if refine else (0, 0, 0)
                shown = attempt if training.teacher_context_kind() == "refine" else 0
                read = asked if is_stored else context + shown
                yield problem.problem_id, Case(prompt, attempt, bare, asked, y_r, read, text, given)

    def _is_left_out(self, sample: SampleConfig, problem: Problem, prompt: int) -> bool:
        if sample.max_prompt_tokens is not None and prompt > sample.max_prompt_tokens:
            return True
        if sample.max_reference_tokens is None:
            return False
        return len(self._student.tokenizer.encode(problem.reference_solution or "")) > sample.max_reference_tokens

    def _lengths(self, node: Node, model: Planned) -> list[int]:
        """Return the prompt tokens of each problem with an empty attempt."""
        config, setting, rendering = node.config, self._graph.recipe.setting, rendering_of(self._graph, node)
        key = (template_kind(config, setting), config.prompt, str(rendering), model.name)
        if key not in self._rendered:
            templates = {task: template_for(config, setting, task) for task in {p.task for p in self._problems}}
            messages = (templates[problem.task].render(values_of(problem)) for problem in self._problems)
            self._rendered[key] = [len(rendering.token_ids(model.tokenizer, each)) for each in messages]
        return self._rendered[key]


def _refined(config: RefineConfig, window: int, bare: int, attempt: int, longest: int | None) -> tuple[int, int, int]:
    """Return the lengths of a refinement prompt, of the attempt's prefix that is given, and of y_r.

    y_r has `longest` tokens where that has been measured. The place of line breaks is not known.
    """
    if config.mode == "rewrite":
        asked, given = min(bare + attempt, max(bare, room_for_prompt(window, config.max_tokens))), 0
    else:
        asked, given = bare, place_in(attempt, config.cut) if config.cut else 0
    new = room_for_response(window, asked + given, config.max_tokens)
    return asked, given, given + new if longest is None else longest


def _responses(directory: Path) -> dict[str, list[int]]:
    """Return the lengths of a set's responses by problem, {} for a set that is not there or cannot be read."""
    found: dict[str, list[int]] = defaultdict(list)
    try:
        for shard in list_shards(directory) if directory.is_dir() else ():
            table = read_table(shard, ["problem_id", "response_token_ids"])
            lengths = pc.list_value_length(table["response_token_ids"]).to_pylist()
            for name, length in zip(table["problem_id"].to_pylist(), lengths, strict=True):
                if length:
                    found[name].append(length)
    except InputError:
        return {}
    return dict(found)
