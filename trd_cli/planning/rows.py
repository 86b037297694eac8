"""What one row of each arm will be, in tokens: prompts from the problem set's own text, responses from the rollouts
that are there, else as long as they may become.

Of a large set, a thousand problems spread over it are rendered. Not covered: rounds after the first, `where`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.compute as pc

from trd_cli.config.generating import RefineConfig, RenderOptions, SampleConfig
from trd_cli.config.training import DistillConfig
from trd_cli.errors import InputError
from trd_cli.generation import templates_for
from trd_cli.planning.models import Planned
from trd_cli.recipes.nodes import Graph, Node
from trd_cli.recipes.recipe import Recipe
from trd_cli.records import Problem
from trd_cli.trajectories.shards import list_shards, read_table

_RENDERED = 1000


@dataclass(frozen=True)
class Case:
    """One row, lengths in tokens. `attempt` and `refined` are y_o and y_r; `asked` is what the teacher reads to write
    y_r, with the attempt (cut to the room there is); `bare` the same without the attempt; `context` what it reads in
    training; `text` the problem with reference and tests, in bytes.
    """

    prompt: int
    attempt: int
    bare: int
    asked: int
    refined: int
    context: int
    text: int

    def response(self, along: str) -> int:
        return self.refined if along == "refined" else self.attempt


@dataclass(frozen=True)
class Chain:
    """An arm's first round: its nodes, how many rows it has, and a sample of them.

    `left_out` is the share of the problems that [sample] filters by length. `measured` tells whose lengths were found
    in the run directory ("rollouts", "refined"); all others are the longest there can be.
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
        return "refined" if self.refine else "rollout"

    @property
    def known(self) -> bool:
        """Whether the responses that are trained along have been measured."""
        return ("refined" if self.refine else "rollouts") in self.measured


def window(asked: int | None, *models: Planned) -> int | None:
    """The longest prompt and response: as asked, and no longer than the models take; None where nothing tells it."""
    known = [limit for limit in (asked, *(model.longest for model in models)) if limit is not None]
    return min(known, default=None)


def room_for_prompt(limit: int, max_tokens: int) -> int:
    """Tokens that trd refine leaves for its prompt:

    what the response does not need, and half of the window at least.
    """
    return limit - min(max_tokens, limit // 2)


def chains(
    recipe: Recipe, graph: Graph, problems: Sequence[Problem], student: Planned, teacher: Planned
) -> list[Chain]:
    """The first round of each arm, with the first seed. Raises PromptError for a template that cannot be used."""
    slice_ = problems[: recipe.problems_per_round]
    step = max(1, -(-len(slice_) // _RENDERED))
    writer = _Writer(recipe.setting, slice_[::step], student, teacher)
    found: list[Chain] = []
    for node in graph.nodes:
        if node.stage == "distill" and node.round == 0 and node.seed == recipe.seeds[0]:
            before = [graph[name] for name in graph.needed_by([node.name])]
            sample = next(n for n in before if n.stage == "sample")
            refine = next((n for n in before if n.stage == "refine"), None)
            found.append(writer.chain(graph, sample, refine, node, len(slice_)))
    return found


class _Writer:
    """Renders problems as the stages will, each template once."""

    def __init__(self, setting: str, problems: Sequence[Problem], student: Planned, teacher: Planned) -> None:
        self._setting, self._problems = setting, problems
        self._student, self._teacher = student, teacher
        self._rendered: dict[tuple[object, ...], list[int]] = {}

    def chain(self, graph: Graph, sample: Node, refine: Node | None, distill: Node, count: int) -> Chain:
        asked = sample.config
        assert isinstance(asked, SampleConfig)
        attempts = _responses(graph.path(sample))
        refined = _responses(graph.path(refine)) if refine else {}
        kept, cases = self._cases(asked, refine, distill, attempts, refined)
        # A set that is not finished tells too little: its short responses came first.
        both = (("rollouts", attempts), ("refined", refined))
        measured = {name for name, found in both if kept and kept <= found.keys()}
        share = len(kept) / max(len(self._problems), 1)
        rows = round(count * share) * asked.n
        return Chain(sample, refine, distill, rows, 1 - share, tuple(cases), frozenset(measured))

    def _cases(
        self,
        asked: SampleConfig,
        refine: Node | None,
        distill: Node,
        attempts: Mapping[str, Sequence[int]],
        refined: Mapping[str, Sequence[int]],
    ) -> tuple[set[str], list[Case]]:
        """Which of the problems are kept, and their rows."""
        prompts = self._lengths("student", asked, self._student, asked)
        training, refining = distill.config, refine.config if refine else None
        assert isinstance(training, DistillConfig)
        context_kind = training.teacher_context or ("refine" if refine else "vanilla")
        bare = contexts = [0] * len(prompts)
        if refining is not None:
            bare = self._lengths(f"refine-{self._setting}", refining, self._teacher, asked)
        if refining is None or context_kind == "vanilla":
            own = RenderOptions(prompt=training.prompt)
            contexts = self._lengths(f"{context_kind}-{self._setting}", own, self._teacher, asked)
        references = self._references() if asked.max_reference_tokens is not None else [0] * len(prompts)
        kept: set[str] = set()
        cases: list[Case] = []
        for problem, *lengths, reference in zip(self._problems, prompts, contexts, bare, references, strict=True):
            too_long = lengths[0] > (asked.max_prompt_tokens or lengths[0])
            if too_long or reference > (asked.max_reference_tokens or reference):
                continue
            kept.add(problem.problem_id)
            longest_y_r = max(refined.get(problem.problem_id, ()), default=None)
            known = attempts.get(problem.problem_id, ())
            room = (window(asked.max_model_len, self._student) or 1 << 62) - lengths[0]
            for attempt in known or (max(0, min(asked.max_tokens, room)),):
                cases.append(self._case(problem, lengths, attempt, longest_y_r, refining, context_kind))
        return kept, cases

    def _case(
        self,
        problem: Problem,
        lengths: Sequence[int],
        attempt: int,
        refined: int | None,
        refining: RefineConfig | None,
        context_kind: str,
    ) -> Case:
        prompt, context, bare = lengths
        asked, y_r = bare, 0
        if refining is not None:
            limit = window(refining.max_model_len, self._teacher) or 1 << 62
            asked = min(bare + attempt, max(bare, room_for_prompt(limit, refining.max_tokens)))
            y_r = refined if refined is not None else max(0, min(refining.max_tokens, limit - asked))
        if context_kind == "refine":
            context = asked if refining is not None else context + attempt
        text = sum(len(t or "") for t in (problem.problem, problem.reference_solution, problem.tests))
        return Case(prompt, attempt, bare, asked, y_r, context, text)

    def _lengths(self, kind: str, options: RenderOptions, model: Planned, asked: RenderOptions) -> list[int]:
        """Prompt tokens of each problem with an empty attempt.

        What `options` leave open is as the rollouts were asked for.
        """
        mode = options.render or asked.render or "chat"
        kwargs = options.chat_template_kwargs
        kwargs = (asked.chat_template_kwargs or {}) if kwargs is None else kwargs
        key = (kind, options.prompt, mode, str(kwargs), model.name)
        if key not in self._rendered:
            templates = templates_for(kind, {p.task for p in self._problems}, options.prompt)
            self._rendered[key] = [
                len(model.tokenizer.render(templates[p.task].render(_values(p)), mode, kwargs)) for p in self._problems
            ]
        return self._rendered[key]

    def _references(self) -> list[int]:
        return [len(self._student.tokenizer.encode(p.reference_solution or "")) for p in self._problems]


def _values(problem: Problem) -> dict[str, str]:
    return {
        "problem": problem.problem,
        "reference_solution": problem.reference_solution or "",
        "reference_answer": problem.reference_answer or "",
        "attempt": "",
    }


def _responses(directory: Path) -> dict[str, list[int]]:
    """Lengths of the responses in a set, by problem; {} where there is none or it cannot be read."""
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
