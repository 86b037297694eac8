"""What trd plan and the previews say is what the stages do: each rule is asked of its owner by both."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from click.testing import Result
from conftest import Trd
from support.sets import rows_of
from support.tiny import build_model, write_tokenizer

from trd_cli.planning.chains import Case, chains
from trd_cli.planning.refusals import read_models
from trd_cli.prompting.rendering import room_for_prompt
from trd_cli.recipes.graph import build_graph
from trd_cli.recipes.loading import load_recipe
from trd_cli.recipes.nodes import Graph
from trd_cli.recipes.previews import first_prompts
from trd_cli.records import Trajectory
from trd_cli.trajectories.problem_sets import read_problems
from trd_cli.trajectories.shards import write_problems

N = 3
# Every response is longer than it may be, so that it is cut where the plan says.
ENDLESS = {"engine": "scripted", "engine_arg": {"length": 2500}}
TINY = {"engine": "transformers", "dtype": "float32", "device": "cpu", "max_tokens": 12}
SHORT = {"sample": {"max_tokens": 40}, "refine": {"max_tokens": 40}}


class World:
    """A recipe, its run directory, and what `trd plan` says of it."""

    def __init__(self, directory: Path, trd: Trd, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory, self.run, self._trd = directory, directory / "run", trd
        self.problems = directory / "problems.parquet"
        self.run.mkdir()
        monkeypatch.chdir(self.run)  # where a graph's commands are run
        trd("data", "make", "arithmetic", "--n", N, "--seed", 1, "--out", self.problems)

    def write(self, **changes: Any) -> Graph:
        recipe = {
            "setting": "opsd",
            "student": "scripted",
            "problems": {"file": str(self.problems)},
            "arms": {"trd": {"method": "trd"}},
            **SHORT,
            **changes,
        }
        self.path = self.directory / "recipe.toml"
        self.path.write_text(tomli_w.dumps(recipe))
        return build_graph(load_recipe(self.path), self.run)

    def cases(self, graph: Graph, arm: str = "trd") -> tuple[Case, ...]:
        student, teacher, _ = read_models(graph.recipe)
        found = chains(graph.recipe, graph, read_problems(self.problems), student, teacher)
        return next(chain.cases for chain in found if chain.distill.arm == arm)

    def findings(self) -> list[dict[str, str]]:
        out = self.directory / "plan.json"
        self._trd("plan", self.path, "--run", self.run, "--out", out)
        return json.loads(out.read_text())["findings"]

    def says(self, level: str, words: str) -> bool:
        return any(f["level"] == level and words in f["what"] for f in self.findings())

    def stage(self, graph: Graph, name: str, *flags: str) -> Result:
        return self._trd(*graph[f"seed-0/round-0/{name}"].argv, *flags)

    def rows(self, graph: Graph, name: str) -> list[Trajectory]:
        """Run a stage and return its rows."""
        result = self.stage(graph, name)
        assert result.exit_code in (0, 3), result.stderr
        return rows_of(graph.path(graph[f"seed-0/round-0/{name}"]))


@pytest.fixture
def world(tmp_path: Path, trd: Trd, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path, trd, monkeypatch)


# Room, windows and lengths


@pytest.mark.parametrize(
    ("sample", "refine"),
    [
        pytest.param({"max_tokens": 40}, {"max_tokens": 30}, id="everything fits"),
        pytest.param({"max_tokens": 4000, "max_model_len": 700}, {"max_tokens": 30}, id="the window ends responses"),
        pytest.param({"max_tokens": 8500, "max_model_len": 9100}, {"max_tokens": 4}, id="a server's longer window"),
        pytest.param({"max_tokens": 900}, {"max_tokens": 300, "max_model_len": 2200}, id="attempts are cut"),
        pytest.param({"max_tokens": 900}, {"max_tokens": 9000, "max_model_len": 3600}, id="half of a window is kept"),
        pytest.param({"max_tokens": 40}, {"max_tokens": 9, "max_model_len": 600}, id="no prompt fits"),
        pytest.param({"max_tokens": 40, "max_prompt_tokens": 390}, {"max_tokens": 9}, id="some are filtered"),
    ],
)
def test_the_lengths_that_the_plan_says_are_those_of_the_rows(
    world: World, sample: dict[str, Any], refine: dict[str, Any]
) -> None:
    graph = world.write(sample={**ENDLESS, **sample}, refine={**ENDLESS, **refine})
    cases = world.cases(graph)
    is_cut, is_unfit = world.says("warning", "attempts are cut"), world.says("error", "refine: 100 % of the prompts")
    rollouts = {row.trajectory_id: row for row in world.rows(graph, "sample")}
    refined = world.rows(graph, "refine")
    assert Counter((c.prompt, c.attempt) for c in cases) == Counter(
        (len(row.prompt_token_ids), len(row.response_token_ids)) for row in rollouts.values()
    )
    room = room_for_prompt(refine.get("max_model_len", 8192), refine["max_tokens"])
    assert Counter((c.prompt, c.asked, c.refined) for c in cases if c.bare <= room) == Counter(
        (len(row.student_prompt_token_ids), len(row.prompt_token_ids), len(row.response_token_ids))
        for row in refined
        if row.error is None
    )
    assert is_unfit == all(row.error is not None and "too long" in row.error for row in refined)
    assert is_cut == any(row.attempt_tokens_trimmed for row in refined)


@pytest.mark.parametrize(
    ("prefix", "refine", "fits"),
    [
        pytest.param(0.4, {"max_tokens": 30}, True, id="a share"),
        pytest.param(25, {"max_tokens": 30}, True, id="tokens"),
        pytest.param(0.4, {"max_tokens": 3000, "max_model_len": 3000}, True, id="the window ends responses"),
        pytest.param(0.9, {"max_tokens": 9, "max_model_len": 510}, False, id="some leave no room"),
    ],
)
def test_the_lengths_of_rows_whose_beginning_is_given_are_those_that_the_plan_says(
    world: World, prefix: float, refine: dict[str, Any], fits: bool
) -> None:
    refining = {**ENDLESS, **refine, "mode": "continue", "prefix": prefix}
    graph = world.write(sample={**ENDLESS, "max_tokens": 40}, refine=refining)
    cases = world.cases(graph)
    is_unfit = world.says("warning", "of the prompts do not fit") or world.says("error", "of the prompts do not fit")
    world.rows(graph, "sample")
    refined = world.rows(graph, "refine")
    limit = refine.get("max_model_len", 8192)
    assert Counter((c.asked, c.given, c.refined, c.context) for c in cases if c.asked + c.given < limit) == Counter(
        (len(row.prompt_token_ids), row.prefix_tokens, len(row.response_token_ids), len(row.prompt_token_ids))
        for row in refined
        if row.error is None
    )
    assert is_unfit == any(row.error is not None for row in refined) == (not fits)


def test_a_plan_takes_a_window_from_the_engine_that_a_stage_would_choose(world: World) -> None:
    long = {"max_tokens": 8500, "max_model_len": 9100}
    world.write(sample={**ENDLESS, **long})
    assert not world.says("warning", "leave less than max_tokens"), "scripted, as a server, takes what is asked for"
    build_model(world.directory / "tiny")
    world.write(student=str(world.directory / "tiny"), sample={**TINY, **long})
    assert world.says("error", "max_model_len 9,100"), "transformers takes no more than the model"


def test_a_plan_cuts_contexts_at_the_length_where_training_does(world: World) -> None:
    """A longer row would change the rotary factors of this model, whose configuration names no length."""
    model = build_model(world.directory / "tiny", rope_scaling={"rope_type": "dynamic", "factor": 4.0})
    config = json.loads((model / "config.json").read_text())
    del config["max_position_embeddings"]
    (model / "config.json").write_text(json.dumps(config))
    write_problems(
        world.problems,
        [replace(p, reference_solution="and so on, " * 500) for p in read_problems(world.problems)],
    )
    graph = world.write(
        student=str(model),
        sample={**TINY, "max_model_len": 2048},
        distill={"max_length": 100_000, "dtype": "float32", "device": "cpu"},
        arms={"fkl": {"method": "fkl"}},
    )
    world.rows(graph, "sample")
    assert world.says("warning", "max_length 2,048: 100 % lose a part of the context")
    said = world.stage(graph, "fkl/distill", "--dry-run").stderr
    assert f"cut the reference in the teacher's context of {N} of {N} rows, to 2048 tokens" in said


# What is trained along, and what the teacher reads


ARMS = {
    "trd": {"method": "trd"},
    "fkl": {"method": "fkl"},
    "default": {"objective": "jsd"},
    "y_o": {"stage": "rollout", "objective": "jsd", "beta": 0.2},
    "y_o, refine": {"stage": "rollout", "teacher_context": "refine"},
    "y_r, vanilla": {"teacher_context": "vanilla"},
    "sampled y_o": {"method": "sampled"},
    "sampled y_o, colder": {"method": "sampled", "temperature": 0.5},
    "sampled y_r": {"method": "sampled", "stage": "refined", "teacher_context": "refine"},
}
NAMES = {name: re.sub(r"\W+", "-", name) for name in ARMS}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, ok: Trd) -> tuple[World, Graph, str]:
    """One problem, sampled and refined by a tiny model, for all arms; and what the plan then says."""
    patch = pytest.MonkeyPatch()
    directory = tmp_path_factory.mktemp("trained")
    build_model(directory / "tiny")
    world = World(directory, ok, patch)
    write_problems(world.problems, read_problems(world.problems)[:1])
    unfiltered = {"temperature": 1.0, "top_p": 1.0, "top_k": 0}
    graph = world.write(
        student=str(directory / "tiny"),
        sample={**TINY, **unfiltered, "chat_template_kwargs": {"greeting": "hello"}},
        refine={**TINY, "render": "raw"},
        distill={"dtype": "float32", "device": "cpu"},
        arms={NAMES[name]: arm for name, arm in ARMS.items()},
    )
    for name in ("sample", "refine"):
        world.rows(graph, name)
    said = "\n".join(finding["what"] for finding in world.findings())
    patch.undo()
    return world, graph, said


@pytest.mark.parametrize("arm", ARMS)
def test_the_context_that_the_plan_says_is_what_the_teacher_reads(
    trained: tuple[World, Graph, str], arm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, graph, plan = trained
    monkeypatch.chdir(world.run)
    (case,) = world.cases(graph, NAMES[arm])
    node = graph[f"seed-0/round-0/{NAMES[arm]}/distill"]
    said = world.stage(graph, f"{NAMES[arm]}/distill", "--dry-run", "--allow-partial").stderr
    read = re.findall(r"(student reads|teacher reads|both score) \((\d+) tokens\)", said)
    response = case.response(node.config.along())
    # The text of ids that were drawn at random may be encoded in other ones, of three bytes each at most.
    may_differ = 3 * TINY["max_tokens"] if node.config.teacher_context_kind() == "refine" else 0
    assert {name: int(tokens) for name, tokens in read} == {
        "student reads": case.prompt,
        "teacher reads": pytest.approx(case.context, abs=may_differ),
        "both score": response,
    }
    assert ("biased" in said) == (f"arm {NAMES[arm]}: the sampled estimate of reverse KL is biased" in plan)


# Templates and their values


@pytest.mark.parametrize("setting", ["opd", "opsd"])
def test_previews_show_the_prompts_that_the_stages_make(world: World, setting: str) -> None:
    own = world.directory / "refine.jinja"
    own.write_text("Mend this.\n{{ problem }}\n---\n{{ attempt }}\n---")
    arms = {"along-y_r": {"method": "trd"}, "along-y_o": {"stage": "rollout"}}
    models = {"teacher": "scripted"} if setting == "opd" else {}
    graph = world.write(setting=setting, **models, refine={"prompt": str(own), "max_tokens": 40}, arms=arms)
    before = {title.partition(",")[0]: text for title, text in first_prompts(graph, graph.nodes, ())}
    first = read_problems(world.problems)[0].problem_id
    (rollout,) = (row for row in world.rows(graph, "sample") if row.problem_id == first)
    (refined,) = (row for row in world.rows(graph, "refine") if row.problem_id == first)
    students, teachers = (_text(row, rollout.response) for row in (rollout, refined))
    assert students in before["seed-0/round-0/sample"], "which needs no other stage: by its own --dry-run"
    assert before["seed-0/round-0/refine"] == teachers
    along_y_r = before["seed-0/round-0/along-y_r/distill"]
    assert along_y_r == f"student reads:\n{students}\n\nteacher reads:\n{teachers}"
    assert "Mend this" not in before["seed-0/round-0/along-y_o/distill"]


def _text(row: Trajectory, attempt: str) -> str:
    """Return a row's messages as previews show them, which have no attempt yet."""
    (message,) = row.messages
    return "[user]\n" + message["content"].replace(attempt, "⟨the student's attempt y_o⟩")


@pytest.mark.parametrize("lacking", ["reference_solution", "reference_answer"])
@pytest.mark.parametrize("shown", ["reference_solution", "reference_answer", "both", "neither"])
def test_a_problem_lacks_for_the_plan_what_its_refined_row_ends_as_an_error_for(
    world: World, shown: str, lacking: str
) -> None:
    names = ("reference_solution", "reference_answer") if shown == "both" else (shown,)
    placeholders = "" if shown == "neither" else " ".join(f"{{{{ {name} }}}}" for name in names)
    own = world.directory / "refine.jinja"
    own.write_text(f"{{{{ problem }}}} {{{{ attempt }}}} {placeholders}")
    write_problems(world.problems, [replace(p, **{lacking: None}) for p in read_problems(world.problems)])
    graph = world.write(refine={"prompt": str(own), "max_tokens": 40})
    assert [row.error for row in world.rows(graph, "sample")] == [None] * N
    errors = {row.error for row in world.rows(graph, "refine")}
    is_missing = world.says("error", f"{N} of {N} problems have no {lacking}")
    assert errors == ({f"the problem has no {lacking}"} if is_missing else {None})


# Tokenizers


def test_the_plan_and_the_stages_refuse_the_same_pairs_of_tokenizers(world: World) -> None:
    """The student's ids are bytes. One teacher has other tokens, another model the same."""
    build_model(world.directory / "teacher")
    write_tokenizer(world.directory / "teacher", merges=(("e", "x"),))
    for teacher, differs in ((str(world.directory / "teacher"), True), ("scripted", False)):
        graph = world.write(setting="opd", teacher=teacher)
        assert world.says("error", "the tokenizers of scripted and") == differs
        world.rows(graph, "sample")
        result = world.stage(graph, "refine")
        assert (result.exit_code, "is not the one that wrote" in result.stderr) == (int(differs), differs)
