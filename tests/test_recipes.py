"""Recipes and the graphs they make: refusals and their words, `extends`, and the stages that arms have in common."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from conftest import Trd
from support.tiny import build_model
from typer.main import get_command

from trd_cli.cli import app
from trd_cli.config.base import Config
from trd_cli.config.commands import EvalConfig, ImportConfig
from trd_cli.config.generating import RefineConfig, SampleConfig
from trd_cli.config.training import DistillConfig
from trd_cli.errors import InputError
from trd_cli.models import resolve_model
from trd_cli.prompting.templates import prompts_dir
from trd_cli.recipes.checkpoints import saves_adapter_alone, words_of_training
from trd_cli.recipes.done import begin, done_nodes, drop_states
from trd_cli.recipes.graph import build_graph
from trd_cli.recipes.loading import load_recipe
from trd_cli.recipes.nodes import Contents, Graph, Node
from trd_cli.recipes.recipe import Recipe

BASE = """
setting = "opsd"
student = "scripted"
[problems]
make = {kind = "arithmetic", n = 8}
"""
ARM = '[arms.trd]\nmethod = "trd"\n'


def written(directory: Path, text: str, name: str = "recipe.toml") -> Path:
    path = directory / name
    path.write_text(text)
    return path


def recipe(directory: Path, text: str) -> Recipe:
    return load_recipe(written(directory, text))


def graph(directory: Path, text: str) -> Graph:
    return build_graph(recipe(directory, text), directory / "run")


def kinds(made: Graph) -> Counter[str]:
    return Counter(node.kind for node in made.nodes)


def option(node: Node, flag: str) -> str | None:
    """Return the value of a flag in a node's command line, or None."""
    return node.argv[node.argv.index(flag) + 1] if flag in node.argv else None


# Recipes

WRONG: dict[str, tuple[str, tuple[str, ...]]] = {
    "no TOML": ("a = ", ("recipe.toml", "expected a TOML file")),
    "unknown at the top": (BASE + ARM, ("sudent, which is no key there", "did you mean student?")),
    "a flag of another name": (
        BASE + ARM + 'kind = "rollout"\n',
        ("kind, which is no key there", "did you mean stage?"),
    ),
    "no student": (BASE.replace('student = "scripted"', "") + ARM, ("no student", "add student")),
    "no problems": ('setting = "opsd"\nstudent = "scripted"\n' + ARM, ("no [problems]",)),
    "no arms": (BASE, ("no [arms]",)),
    "empty arms": (BASE + "[arms]\n", ("no arm", "at least one [arms.NAME]")),
    "setting": (BASE.replace("opsd", "both") + ARM, ("setting = 'both'", "'opd' or 'opsd'")),
    "opd alone": (BASE.replace("opsd", "opd") + ARM, ("without teacher", "add teacher = MODEL")),
    "opsd with a teacher": ('teacher = "x/y"' + BASE + ARM, ("teacher = 'x/y' with setting", "leave teacher out")),
    "rounds": ("rounds = 0" + BASE + ARM, ("rounds = 0", "greater than or equal to 1")),
    "seeds": ("seeds = [1, 1]" + BASE + ARM, ("seeds = [1, 1]", "all different")),
    "two sources": (BASE.replace("[problems]", '[problems]\nfile = "p.parquet"') + ARM, ("file and make", "one of")),
    "unknown source": (BASE.replace("make =", "made =") + ARM, ("[problems] made", "did you mean make?")),
    "wrong maker": (BASE.replace("n = 8", "m = 8") + ARM, ("[problems.make] m", "one of kind, n, seed, level")),
    "no such set": (BASE.replace("n = 8", "n = 8, level = 9") + ARM, ("[problems.make] level = 9",)),
    "too few problems": (
        "rounds = 3\nproblems_per_round = 3" + BASE + ARM,
        ("3 rounds of 3 problems, and there are 8", "at least 9"),
    ),
    "unknown option": (
        BASE + "[sample]\ntemprature = 1.0\n" + ARM,
        ("[sample] temprature", "did you mean temperature?"),
    ),
    "wrong value": (BASE + "[sample]\ntemperature = -1\n" + ARM, ("[sample] temperature = -1",)),
    "wrong type": (BASE + "[eval]\nk = 'many'\nbench = 'aime24'\n" + ARM, ("[eval] k = 'many'", "integer")),
    "eval of nothing": (BASE + "[eval]\nk = 4\n" + ARM, ("[eval] without a benchmark",)),
    "filled by the graph": (BASE + "[sample]\nlimit = 4\n" + ARM, ("[sample] limit", "problems_per_round")),
    "ray of a stage": (BASE + "[eval]\nbench = 'aime24'\nray = 'auto'\n" + ARM, ("[eval] ray", "ray, at the top")),
    "seed of a stage": (BASE + "[distill]\nseed = 4\n" + ARM, ("[distill] seed", "seeds, at the top")),
    "model of an arm": (BASE + ARM + 'model = "x"\n', ("[arms.trd] model", "student, at the top")),
    "unknown in an arm": (BASE + ARM + "learnig_rate = 1.0\n", ("[arms.trd] learnig_rate", "learning_rate?")),
    "unknown in distill": (BASE + ARM + "[distill]\nlrate = 1.0\n", ("[distill] lrate",)),
    "method": (BASE + '[arms.a]\nmethod = "tdr"\n', ("[arms.a] method = 'tdr'", "'trd'")),
    "unread by the objective": (BASE + ARM + "beta = 0.5\n", ("[arms.trd] beta with objective forward-kl",)),
    "name of an arm": (BASE + '[arms."a/b"]\nmethod = "trd"\n', ("[arms.a/b]", "letters, digits")),
    "base as an arm": (BASE + '[arms.base]\nmethod = "trd"\n', ("base is the starting model",)),
    "refine of an arm": (BASE + ARM + "refine = {top = 1}\n", ("[arms.trd.refine] top",)),
    "an arm is no table": (BASE + "[arms]\na = 3\n", ("arms.a = 3", "expected a table")),
    "refine of an arm is no table": (BASE + ARM + "refine = 3\n", ("[arms.trd] refine = 3", "a table")),
    "twins but for a default": (
        BASE + ARM + "[arms.b]\nmethod = 'trd'\nrefine = {temperature = 0.6}\n",
        ("arms trd and b come to the same training", "leave one out"),
    ),
    "twins": (
        BASE + ARM + '[arms.b]\nobjective = "forward-kl"\nstage = "refined"\nteacher_context = "refine"\n',
        ("arms trd and b come to the same training",),
    ),
    "reference arm": ('reference_arm = "tdr"' + BASE + ARM, ("reference_arm = 'tdr'", "did you mean trd?")),
    "a parent's verdict along y_o": (
        BASE + '[arms.a]\nmethod = "fkl"\nsubset = "repaired"\n',
        ("[arms.a] subset = 'repaired' along y_o", "all, correct, incorrect"),
    ),
    "an opsd method for opd": (
        'teacher = "x/y"' + BASE.replace("opsd", "opd") + '[arms.a]\nmethod = "opsd-clip"\n',
        ("method = 'opsd-clip' with setting", 'setting = "opsd"'),
    ),
    "no table": ("arms = 3" + BASE, ("arms = 3", "expected a table")),
    "no number": ("rounds = '2'" + BASE + ARM, ("rounds = '2'", "a valid integer")),
    "no student's name": (BASE.replace('"scripted"', '""') + ARM, ("student = ''", "at least 1 character")),
    "a name that leads elsewhere": ("name = '../x'" + BASE + ARM, ("name = '../x'", "letters, digits")),
    "an argument of a template that trd fills in": (
        BASE + "[refine]\nchat_template_kwargs = {tokenize = false}\n" + ARM,
        ("[refine] chat_template_kwargs tokenize", "leave tokenize out"),
    ),
    "a date": (BASE + "[sample]\nengine_arg = {x = 2025-01-01}\n" + ARM, ("a date or a time", "quotes")),
    "a benchmark that there is not": (
        BASE + "[eval]\nbench = 'amie25'\n" + ARM,
        ("[eval] no benchmark 'amie25'", "aime25"),
    ),
    "a benchmark's option": (BASE + "[eval]\nbench = 'arithmetic:m=4'\n" + ARM, ("[eval] ", "m=4")),
    "problems that are no Parquet": (
        BASE.replace('make = {kind = "arithmetic", n = 8}', 'file = "p.jsonl"') + ARM,
        ("file = 'p.jsonl'", "import.file = 'p.jsonl'"),
    ),
    "extend": ("extend = 'x.toml'" + BASE + ARM, ("extend, which is no key there", "did you mean extends?")),
    "no benchmark": (BASE + "[eval]\nbench = []\n" + ARM, ("[eval] without a benchmark",)),
    "no template": (BASE + "[sample]\nprompt = 'x.jinja'\n" + ARM, ("[sample] prompt x.jinja: No such file",)),
    "a template of another kind": (
        BASE + "[eval]\nbench = 'aime24'\nprompt = 'refine.jinja'\n" + ARM,
        ("[eval] ", "refine.jinja has the placeholder 'attempt'", "change prompt"),
    ),
    "a filter that is no SQL": (
        BASE + ARM + 'where = "verdict = "\n',
        ("[arms.trd] where 'verdict = '", "a Polars SQL condition"),
    ),
    "a filter of no column": (
        BASE + ARM + "where = \"verdit = 'correct'\"\n",
        ("[arms.trd] where", "verdit", "parent_verdict"),
    ),
    "a filter of a parent's column that is not read": (
        BASE + ARM + 'where = "array_length(parent_logprobs) > 3"\n',
        ("[arms.trd] where", "parent_logprobs"),
    ),
    "rollouts by their parents": (
        BASE + "[refine]\nsubset = 'repaired'\n" + ARM,
        ("[refine] subset = 'repaired' of rollouts, which have no parents",),
    ),
    "options that decide nothing": (
        BASE + ARM + "[arms.b]\nmethod = 'trd'\nmax_tokens_per_batch = 512\n",
        ("arms trd and b differ in max_tokens_per_batch of trd distill alone", "[distill]"),
    ),
    "rows of two servers": (
        BASE + ARM + "[arms.b]\nmethod = 'trd'\nsubset = 'correct'\nrefine = {batch_size = 3}\n",
        ("arms trd and b differ in batch_size of trd refine alone", "[refine]"),
    ),
    "own weights for opd": (
        'teacher = "x/y"' + BASE.replace("opsd", "opd") + ARM + 'teacher_weights = "ema"\n',
        ("teacher_weights = 'ema' with setting",),
    ),
}
ROUNDS = "rounds = 2\nsteps_per_round = 2"
IMPORTED = """
setting = "opsd"
student = "scripted"
[problems]
import = {file = "x/y", preset = "deepscaler"}
"""
WRONG |= {
    "steps and problems of a round": (
        ROUNDS + "\nproblems_per_round = 4" + BASE + ARM,
        ("steps_per_round = 2 with problems_per_round = 4", "expected one of them", "leave one out"),
    ),
    "steps that are no number": ("steps_per_round = 0" + BASE + ARM, ("steps_per_round = 0", "greater than")),
    "steps and passes": (
        ROUNDS + BASE + "[distill]\nbatch_size = 2\nepochs = 3\n" + ARM,
        ("[distill] epochs with steps_per_round = 2", "leave epochs or steps_per_round out"),
    ),
    "steps and passes of an arm": (
        ROUNDS + BASE + "[distill]\nbatch_size = 2\n" + ARM + "epochs = 3\n",
        ("[arms.trd] epochs with steps_per_round = 2",),
    ),
    "too few problems for the steps": (
        ROUNDS + BASE + "[distill]\nbatch_size = 2\n" + ARM + "batch_size = 5\n",
        ("2 rounds of 10 problems (2 steps of arm trd), and there are 8", "at least 20", "fewer steps a round"),
    ),
    "nothing to continue": (
        "continue = true" + BASE + ARM,
        ("continue = true with rounds = 1", "an earlier round", "raise rounds, or leave continue out"),
    ),
    "continue is neither": ("rounds = 2\ncontinue = 'no'" + BASE + ARM, ("continue = 'no'", "a valid boolean")),
    "a schedule of unknown length": (
        "rounds = 2" + IMPORTED + ARM,
        ("2 rounds of problems that are counted when", "problems_per_round or steps_per_round", "continue = false"),
    ),
    "a misspelt continue": ("continues = true" + BASE + ARM, ("continues, which is no key", "did you mean continue?")),
    "steps of a stage": (BASE + "[distill]\nsteps = 3\n" + ARM, ("[distill] steps", "steps_per_round, at the top")),
    "all steps of a stage": (BASE + ARM + "total_steps = 3\n", ("[arms.trd] total_steps", "trd run fills it in")),
    "continue of a stage": (BASE + ARM + "continue = true\n", ("[arms.trd] continue", "continue, at the top")),
    "a method without the option it needs": (
        BASE + "[arms.f]\nmethod = 'fastopd'\n",
        ("[arms.f] method fastopd without max_response_tokens", "give max_response_tokens"),
    ),
    "a relay along rewritten rows": (
        BASE + "[arms.r]\nmethod = 'relay'\n",
        ('[arms.r] method = "relay" along rows that are refined with mode = "rewrite"', 'mode = "relay"'),
    ),
    "the student of a relay": (
        BASE + "[arms.r]\nmethod = 'relay'\nrefine = { mode = 'relay', student = 'x' }\n",
        ("[arms.r.refine] student", "student, at the top"),
    ),
    "legs without a relay": (BASE + "[refine]\nlegs = 3\n" + ARM, ("legs with mode rewrite", "mode relay")),
    "a checkpoint to continue": (
        BASE + "[distill]\ncontinue_from = 'x'\n" + ARM,
        ("[distill] continue_from", "continue, at the top"),
    ),
}
WRONG["unknown at the top"] = ("sudent = 'x'" + BASE + ARM, WRONG["unknown at the top"][1])


@pytest.mark.parametrize(("text", "said"), WRONG.values(), ids=WRONG)
def test_a_wrong_recipe_is_refused_with_its_file_and_key(
    text: str, said: tuple[str, ...], tmp_path: Path, trd: Trd
) -> None:
    path = written(tmp_path, text)
    written(tmp_path, "{{ problem }} {{ attempt }}", "refine.jinja")
    result = trd("run", path, "--out", tmp_path / "run")
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert str(path) in line or line.startswith("trd run: error: arms ")
    assert "; expected " in line
    assert [words for words in said if words not in line] == []
    assert "--" not in line, "a recipe has keys, not flags"
    assert not (tmp_path / "run").exists()


def test_arms_of_other_modes_refine_for_themselves_and_onset_words_count_by_their_text(tmp_path: Path) -> None:
    def refinements(words: str, name: str = "own.txt") -> dict[str, str]:
        (tmp_path / name).write_text(words)
        relayed = f"method = 'relay'\nrefine = {{ mode = 'relay', onset = '{name}' }}\n"
        text = (
            BASE + ARM + "[arms.c]\nmethod = 'trd'\nrefine = { mode = 'continue', prefix = 0.4 }\n[arms.r]\n" + relayed
        )
        graph = build_graph(load_recipe(written(tmp_path, text)), tmp_path / "run")
        nodes = {node.config.mode: node for node in graph.nodes if node.stage == "refine"}
        assert {mode: node.arm for mode, node in nodes.items()} == {"rewrite": None, "continue": "c", "relay": "r"}
        return {mode: node.digest for mode, node in nodes.items()}

    before, renamed, other = refinements("Wait\n"), refinements("Wait\n", "moved.txt"), refinements("Wait\nHmm\n")
    assert before == renamed
    assert {mode for mode in before if before[mode] != other[mode]} == {"relay"}


def test_a_recipe_that_is_not_there_is_named(tmp_path: Path, trd: Trd) -> None:
    result = trd("run", tmp_path / "none.toml")
    assert result.exit_code == 1
    assert "none.toml: No such file or directory" in result.stderr


def test_the_nearer_file_wins_key_by_key(tmp_path: Path) -> None:
    written(tmp_path, "name = 'far'\n" + BASE + "[sample]\nn = 2\ntop_k = 5\nengine_arg = {delay = 0.5}\n", "far.toml")
    written(tmp_path, 'extends = "far.toml"\n[sample]\nn = 3\nengine_arg = {length = 4}\n', "near.toml")
    written(tmp_path, "[sample]\ntop_k = 7\n[arms.fkl]\nmethod = 'fkl'\n", "mixin.toml")
    path = written(tmp_path, 'extends = ["near.toml", "mixin.toml"]\nrounds = 2\n' + ARM, "mine.toml")
    made = load_recipe(path)
    assert (made.name, made.rounds, made.student) == ("mine", 2, "scripted"), "a name is not inherited"
    assert made.sample == {"n": 3, "top_k": 7, "engine_arg": {"delay": 0.5, "length": 4}}
    assert list(made.arms) == ["fkl", "trd"]


def test_problems_of_another_kind_take_the_place_of_inherited_ones_and_false_takes_tables_out(tmp_path: Path) -> None:
    written(tmp_path, BASE + "[eval]\nbench = 'aime24'\n" + ARM + '[arms.fkl]\nmethod = "fkl"\n', "far.toml")
    text = 'extends = "far.toml"\neval = false\narms.trd = false\n[problems]\nfile = "mine.parquet"\n'
    made = load_recipe(written(tmp_path, text))
    assert made.problems == {"file": "mine.parquet"}
    assert made.eval is None
    assert list(made.arms) == ["fkl"]


def test_the_later_of_two_parts_says_where_problems_come_from(tmp_path: Path) -> None:
    written(tmp_path, BASE, "made.toml")
    written(tmp_path, '[problems]\nfile = "mine.parquet"\n', "mine.toml")
    assert recipe(tmp_path, 'extends = ["made.toml", "mine.toml"]\n' + ARM).problems == {"file": "mine.parquet"}


def test_a_directory_with_a_benchmark_s_name_does_not_stand_for_it(tmp_path: Path) -> None:
    (tmp_path / "aime24").mkdir()
    assert recipe(tmp_path, BASE + "[eval]\nbench = 'aime24'\n" + ARM).eval == {"bench": "aime24"}


def test_a_complaint_names_the_file_that_the_key_is_from(tmp_path: Path) -> None:
    far = written(tmp_path, BASE + "[sample]\nn = 0\n", "far.toml")
    near = written(tmp_path, 'extends = "far.toml"\n' + ARM, "near.toml")
    with pytest.raises(InputError) as caught:
        load_recipe(near)
    assert str(caught.value).startswith(f"{far}: [sample] n = 0")


@pytest.mark.parametrize("loop", [("a",), ("b", "a"), ("b", "c", "a")], ids=len)
def test_a_circle_of_files_is_refused(loop: tuple[str, ...], tmp_path: Path) -> None:
    for name, next_one in zip(("a", *loop), loop, strict=False):
        written(tmp_path, f'extends = "{next_one}.toml"\n' + BASE + ARM, f"{name}.toml")
    with pytest.raises(InputError, match=r"extends goes in a circle \(a\.toml → .*a\.toml\)"):
        load_recipe(tmp_path / "a.toml")


def test_a_file_that_is_extended_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"other\.toml: No such file"):
        recipe(tmp_path, 'extends = "other.toml"\n' + BASE + ARM)


def test_files_are_found_from_the_recipe_that_names_them(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "own.jinja").write_text("{{ problem }}")
    (tmp_path / "far" / "bench.parquet").write_text("x")
    (tmp_path / "far" / "student").mkdir()
    text = BASE.replace("scripted", "student") + '[sample]\nprompt = "own.jinja"\n'
    text += '[eval]\nbench = ["bench.parquet", "aime24", "arithmetic:n=3,level=2"]\n'
    written(tmp_path / "far", text, "base.toml")
    made = recipe(tmp_path, 'extends = "far/base.toml"\n' + ARM)
    assert made.sample["prompt"] == str(tmp_path / "far" / "own.jinja")
    assert made.student == str(tmp_path / "far" / "student")
    assert made.eval["bench"] == f"{tmp_path}/far/bench.parquet,aime24,arithmetic:n=3,level=2"


def test_an_arm_has_the_sections_that_were_written_and_no_defaults(tmp_path: Path) -> None:
    made = recipe(tmp_path, BASE + "[arms.a]\nmethod = 'trd'\nepochs = 2\nrefine = {top_k = 3}\n" + ARM)
    arm = made.arms["a"]
    assert (arm.distill, arm.sample, arm.refine) == ({"method": "trd", "epochs": 2}, {}, {"top_k": 3})
    assert made.record()["arms"] == {
        "a": {"method": "trd", "epochs": 2, "refine": {"top_k": 3}},
        "trd": {"method": "trd"},
    }


def test_the_resolved_recipe_is_the_same_recipe(tmp_path: Path) -> None:
    written(tmp_path, BASE + "[sample]\nengine_arg = {delay = 0.5}\n[eval]\nbench = 'aime24'\n", "base.toml")
    made = recipe(tmp_path, 'extends = "base.toml"\nseeds = [3, 1]\n' + ARM + "refine = {top_k = 3}\n")
    again = load_recipe(written(tmp_path, made.as_toml(), "resolved.toml"))
    assert again == made
    assert [n.record() for n in build_graph(again, tmp_path).nodes] == [
        n.record() for n in build_graph(made, tmp_path).nodes
    ]


# Flags

CONFIGS: tuple[Config, ...] = (
    SampleConfig.parse({"problems": "p.parquet", "n": 3, "engine_arg": {"a": "1", "b": 1, "c": "x=y", "d": [1]}}),
    SampleConfig.parse({"problems": "p.parquet", "chat_template_kwargs": {"enable_thinking": False}, "skip": 3}),
    SampleConfig.parse(
        {
            "problems": "p.parquet",
            "engine_arg": {"a": "True", "b": True, "c": None, "d": "None", "e": "true", "f": "False"},
            "chat_template_kwargs": {"x": False, "y": "False", "z": None},
        }
    ),
    RefineConfig.parse({"setting": "opd", "teacher": "x/y", "inputs": ("a", "b"), "stream": True, "top_p": 1e-5}),
    DistillConfig.parse({"inputs": ("a",)}),
    DistillConfig.parse({"method": "trd", "subset": "repaired", "where": "n > 'a b'", "inputs": ("a",)}),
    DistillConfig.parse({"method": "opsd-clip", "teacher_weights": "round", "eos": False, "lora": True}),
    DistillConfig.parse({"method": "jsd", "objective": "forward-kl", "mask_tokens": ("special", "<x>")}),
    DistillConfig.parse({"objective": "reverse-kl-topk", "top_k": 5, "top_k_mode": "tail", "stage": "refined"}),
    EvalConfig.parse({"model": "m", "bench": "aime24,aime25", "k": 4, "temperature": 0.0}),
    ImportConfig.parse({"file": "x.jsonl", "out": "p.parquet", "map": {"problem": "1", "reference_answer": "a=b"}}),
)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: type(c).__name__)
def test_the_flags_of_a_configuration_give_it_again(config: Config) -> None:
    commands: Any = get_command(app).commands
    names = {"SampleConfig": "sample", "RefineConfig": "refine", "DistillConfig": "distill", "EvalConfig": "eval"}
    name = names.get(type(config).__name__)
    command = commands[name] if name else commands["data"].commands["import"]
    parsed = command.make_context("trd", config.flags()).params
    given = {key: value for key, value in parsed.items() if value not in (None, (), [])}
    assert type(config).parse(given) == config


# Graphs

SUBSETS = ("all", "correct", "incorrect", "repaired", "kept")
SIX = BASE + "".join(f'[arms.{s}]\nmethod = "trd"\nsubset = "{s}"\n' for s in SUBSETS)
SIX += "[arms.y_o-correct]\nmethod = 'trd'\nwhere = \"parent_verdict = 'correct'\"\n".replace("y_o", "yo")


def test_arms_that_differ_in_what_they_keep_share_every_row(tmp_path: Path) -> None:
    made = graph(tmp_path, SIX)
    assert kinds(made) == {
        "problems": 1,
        "sample": 1,
        "verify-rollouts": 1,
        "refine": 1,
        "verify-refined": 1,
        "distill": 6,
    }
    trained = [node for node in made.nodes if node.kind == "distill"]
    assert {node.inputs for node in trained} == {("seed-0/round-0/verify-refined", "seed-0/round-0/verify-rollouts")}
    assert [node.arm for node in trained] == [*SUBSETS, "yo-correct"]
    assert {node.arm for node in made.nodes if node.kind != "distill"} == {None}
    assert len({node.out for node in trained}) == 6


def test_every_node_comes_after_its_inputs_and_names_its_output_by_its_digest(tmp_path: Path) -> None:
    made = graph(tmp_path, "rounds = 2\nseeds = [0, 1]" + SIX + "[eval]\nbench = 'arithmetic'\n")
    seen: set[str] = set()
    for node in made.nodes:
        assert set(node.inputs) <= seen
        assert node.name not in seen
        seen.add(node.name)
        stage = {"verify-rollouts": "sample", "verify-refined": "refine"}.get(node.kind, node.stage)
        owner = node if node.stage != "verify" else made[node.inputs[0]]
        assert node.out == f"nodes/{stage}-{owner.digest[:10]}"
    assert len({node.digest for node in made.nodes}) == len(made.nodes)


def test_arms_along_rollouts_need_no_refined_rows(tmp_path: Path) -> None:
    text = BASE + '[arms.a]\nmethod = "fkl"\n[arms.b]\nmethod = "rkl"\nsubset = "incorrect"\n'
    made = graph(tmp_path, text)
    assert kinds(made) == {"problems": 1, "sample": 1, "verify-rollouts": 1, "distill": 2}
    for arm in ("a", "b"):
        node = made[f"seed-0/round-0/{arm}/distill"]
        assert node.argv[-1] == made["seed-0/round-0/sample"].out


def test_from_the_second_round_on_every_arm_goes_on_from_its_own_student(tmp_path: Path) -> None:
    text = "rounds = 2\nproblems_per_round = 4" + BASE + ARM + '[arms.fkl]\nmethod = "fkl"\n'
    made = graph(tmp_path, text + "[eval]\nbench = 'arithmetic'\n")
    assert kinds(made) == {
        "problems": 1,
        "sample": 3,
        "verify-rollouts": 3,
        "refine": 2,
        "verify-refined": 2,
        "distill": 4,
        "eval": 5,
    }
    for arm in ("trd", "fkl"):
        first, second = (made[f"seed-0/round-{r}/{arm}/distill"] for r in (0, 1))
        rollouts = made[f"seed-0/round-1/{arm}/sample"]
        assert rollouts.inputs == ("problems", first.name)
        assert (option(rollouts, "--model"), option(second, "--model")) == (first.out, first.out)
        assert (option(rollouts, "--skip"), option(rollouts, "--limit")) == ("4", "4")
        assert option(rollouts, "--round") == "1"
        assert made[f"seed-0/round-1/{arm}/eval"].argv[-1] == second.out
    start = made["seed-0/round-0/sample"]
    assert (option(start, "--skip"), option(start, "--limit"), start.arm) == (None, "4", None)


def test_only_the_last_round_is_evaluated_where_a_recipe_says_so(tmp_path: Path) -> None:
    text = "rounds = 3\nproblems_per_round = 2" + BASE + ARM + "[eval]\nbench = 'arithmetic'\n"
    each, last = (recipe(tmp_path, key + text) for key in ("", 'evaluate = "last-round"\n'))
    evaluations = [node.name for node in build_graph(last, tmp_path).nodes if node.stage == "eval"]
    assert evaluations == ["base/eval", "seed-0/round-2/trd/eval"]
    by_digest = {node.digest: node.out for node in build_graph(each, tmp_path).nodes}
    assert all(by_digest[node.digest] == node.out for node in build_graph(last, tmp_path).nodes)
    assert load_recipe(written(tmp_path, last.as_toml(), "resolved.toml")) == last
    assert "evaluate" not in each.record()


def test_rounds_to_evaluate_have_two_names(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"evaluate.*last"):
        recipe(tmp_path, 'evaluate = "first-round"' + BASE + ARM)


@pytest.mark.parametrize(
    ("weights", "more", "teacher"),
    [
        ("initial", "", "scripted"),
        ("round", "", "{checkpoint}"),
        ("ema", "", "{checkpoint}/ema"),
        ("ema", "lora = true\n", "{checkpoint}"),
    ],
    ids=["initial", "round", "ema", "ema of an adapter"],
)
def test_the_teacher_that_refines_in_later_rounds_is_the_one_of_the_loss(
    weights: str, more: str, teacher: str, tmp_path: Path
) -> None:
    made = graph(tmp_path, "rounds = 2" + BASE + ARM + f'teacher_weights = "{weights}"\n{more}')
    assert option(made["seed-0/round-0/refine"], "--teacher") == "scripted"
    checkpoint = made["seed-0/round-0/trd/distill"].out
    refine = made["seed-0/round-1/trd/refine"]
    assert option(refine, "--teacher") == teacher.format(checkpoint=checkpoint)
    assert option(made["seed-0/round-1/trd/distill"], "--teacher") is None


def test_a_stronger_teacher_refines_and_is_learned_from_in_every_round(tmp_path: Path) -> None:
    text = 'teacher = "x/strong"\nrounds = 2' + BASE.replace("opsd", "opd") + ARM
    made = graph(tmp_path, text)
    for node in made.nodes:
        if node.stage in ("refine", "distill"):
            assert (option(node, "--teacher"), option(node, "--setting")) == ("x/strong", "opd")


def test_every_seed_has_a_chain_of_its_own(tmp_path: Path) -> None:
    made = graph(tmp_path, "seeds = [0, 7]" + BASE + ARM + "[eval]\nbench = 'arithmetic'\n")
    assert kinds(made)["problems"] == 1
    assert next(node.name for node in made.nodes if node.kind == "eval") == "base/eval"
    assert all(kinds(made)[kind] == 2 for kind in ("sample", "refine", "distill"))
    for stage in ("sample", "refine", "trd/distill"):
        assert option(made[f"seed-7/round-0/{stage}"], "--seed") == "7"
    assert option(made["seed-7/round-0/trd/eval"], "--seed") is None


def test_an_arm_with_refinement_of_its_own_has_rows_of_its_own(tmp_path: Path) -> None:
    made = graph(tmp_path, BASE + ARM + '[arms.cold]\nmethod = "trd"\nrefine = {temperature = 0}\n')
    assert kinds(made)["sample"] == 1
    own = made["seed-0/round-0/cold/refine"]
    assert (option(own, "--temperature"), own.arm) == ("0.0", "cold")
    assert made["seed-0/round-0/cold/distill"].inputs[0] == "seed-0/round-0/cold/verify-refined"


# States between rounds


def five_rounds(directory: Path, arms: str = ARM) -> Graph:
    """Return the graph of five rounds with the checkpoints of all trainings; each but the last has its state."""
    made = graph(directory, "rounds = 5\nproblems_per_round = 1" + BASE + arms)
    for node in made.nodes:
        if node.stage == "distill":
            write_checkpoint(made, node)
    return made


def write_checkpoint(made: Graph, node: Node) -> None:
    """Write the output of a finished training that leaves a state unless it is the last."""
    record = {
        **{"format": "trd-run-1", "command": "distill", "digest": "0", "inputs": [], "rows_expected": None},
        **{"identity": {}, "about": {"finished": True}},
    }
    out = made.path(node)
    (out / "states").mkdir(parents=True)
    (out / "run.json").write_text(json.dumps(record))
    if node.round < made.recipe.rounds - 1:
        (out / "states" / "step-000001.pt").write_bytes(b"state")


def rounds_with_a_state(made: Graph, arm: str = "trd") -> list[int]:
    return [node.round for node in trainings(made, arm) if list((made.path(node) / "states").glob("*"))]


def rounds_done(made: Graph, arm: str = "trd") -> list[int]:
    chosen = trainings(made, arm)
    done = done_nodes(made, chosen)
    return [node.round for node in chosen if node.name in done]


def test_a_state_goes_when_the_round_after_next_has_begun(tmp_path: Path) -> None:
    made = five_rounds(tmp_path, TWO_ARMS)
    done: set[str] = set()
    kept = []
    for node in made.nodes:
        drop_states(made, done, {*done, node.name})
        if node.arm == "trd" and node.stage in ("sample", "distill"):
            kept.append((node.kind, node.round, rounds_with_a_state(made)))
        done.add(node.name)
    before = [0, 1, 2, 3]
    assert kept[:4] == [
        ("distill", 0, before),
        ("sample", 1, before),
        ("distill", 1, before),
        ("sample", 2, before[1:]),
    ]
    assert kept[-2:] == [("sample", 4, [3]), ("distill", 4, [3])]
    assert rounds_with_a_state(made) == rounds_with_a_state(made, "fkl") == [3]


def test_the_states_of_an_arm_that_is_not_run_stay(tmp_path: Path) -> None:
    made = five_rounds(tmp_path, TWO_ARMS)
    done = {node.name for node in made.nodes if node.arm != "fkl"}
    drop_states(made, done, done)
    assert (rounds_with_a_state(made), rounds_with_a_state(made, "fkl")) == ([3], [0, 1, 2, 3])


def test_rounds_that_are_trainings_of_their_own_need_no_state(tmp_path: Path) -> None:
    alone = graph(tmp_path, "continue = false\nrounds = 5\nproblems_per_round = 1" + BASE + ARM)
    for node in trainings(alone):
        write_checkpoint(alone, node)
    done = {node.name for node in alone.nodes}
    drop_states(alone, done, done)
    assert rounds_with_a_state(alone) == [0, 1, 2, 3]
    shutil.rmtree(alone.path(trainings(alone)[4]))
    assert rounds_done(alone) == [0, 1, 2, 3]


def test_a_lost_checkpoint_is_trained_again_from_the_last_state_that_is_there(tmp_path: Path) -> None:
    made = five_rounds(tmp_path)
    nodes = trainings(made)
    for index in (1, 2):
        shutil.rmtree(made.path(nodes[index]) / "states")
    assert rounds_done(made) == [0, 1, 2, 3, 4], "nothing needs what is gone"
    shutil.rmtree(made.path(nodes[3]))
    assert rounds_done(made) == [0, 4]
    shutil.rmtree(made.path(nodes[0]) / "states")
    assert rounds_done(made) == [4]


def test_a_training_that_is_done_anew_for_its_state_begins_with_nothing(tmp_path: Path) -> None:
    made = five_rounds(tmp_path)
    first, second, *_ = trainings(made)
    begin(made, first)
    assert not made.path(first).exists()
    (made.path(second) / "run.json").unlink()
    begin(made, second)
    assert made.path(second).exists(), "one that was interrupted goes on"


# Adapters


@pytest.mark.parametrize(
    ("text", "alone"),
    [
        ('engine = "transformers"', [True, True, False]),
        ('engine = "vllm"', [False, False, False]),
    ],
)
def test_an_adapter_is_saved_alone_where_transformers_reads_it_and_a_round_follows(
    text: str, alone: list[bool], tmp_path: Path
) -> None:
    top = "rounds = 3\nproblems_per_round = 2" + BASE.replace("scripted", str(build_model(tmp_path / "model")))
    sections = f"[sample]\n{text}\n[refine]\n{text}\n[eval]\nbench = 'arithmetic'\n{text}\n"
    made = graph(tmp_path, top + sections + ARM + "lora = true\n" + '[arms.all]\nmethod = "trd"\n')
    assert [saves_adapter_alone(made, node) for node in trainings(made)] == alone
    assert not any(saves_adapter_alone(made, node) for node in trainings(made, "all"))
    assert words_of_training(made, trainings(made)[0]) == ["--no-merge"] * alone[0]
    mixed = graph(
        tmp_path,
        top + sections.replace(f"'arithmetic'\n{text}", "'arithmetic'\nengine = 'vllm'") + ARM + "lora = true\n",
    )
    assert not any(saves_adapter_alone(mixed, node) for node in trainings(mixed)), "the evaluation needs merged weights"


# What a change changes


@pytest.mark.parametrize(
    ("change", "same"),
    [
        (("[sample]\nn = 2", "[sample]\nn = 3"), ()),
        (("[verify]", "[verify]\nlenient = true"), ("sample", "refine")),
        (("[refine]", "[refine]\ntop_k = 3"), ("sample", "verify-rollouts")),
        (("[distill]", "[distill]\nepochs = 3"), ("sample", "verify-rollouts", "refine", "verify-refined")),
        (("[sample]", "[sample]\nshard_rows = 3\nbatch_size = 2"), ("sample", "refine", "trd/distill")),
    ],
    ids=["sample", "verify", "refine", "distill", "how it runs"],
)
def test_a_change_of_options_changes_what_comes_of_them_and_nothing_else(
    change: tuple[str, str], same: tuple[str, ...], tmp_path: Path
) -> None:
    text = BASE + "[sample]\nn = 2\n[verify]\n[refine]\n[distill]\n" + ARM
    before, after = graph(tmp_path, text), graph(tmp_path, text.replace(*change))
    for name in ("sample", "verify-rollouts", "refine", "verify-refined", "trd/distill"):
        kept = before[f"seed-0/round-0/{name}"].digest == after[f"seed-0/round-0/{name}"].digest
        assert kept == (name in same or change[0] == "[sample]"), name


def test_a_problem_file_and_a_template_count_by_their_content(tmp_path: Path, ok: Trd) -> None:
    text = BASE.replace('make = {kind = "arithmetic", n = 8}', 'file = "p.parquet"')
    text += '[sample]\nprompt = "own.jinja"\n' + ARM
    digests = []
    for n, words in ((3, "a"), (4, "a"), (4, "b")):
        ok("data", "make", "arithmetic", "--n", n, "--out", tmp_path / "p.parquet")
        (tmp_path / "own.jinja").write_text("{{ problem }} " + words)
        made = graph(tmp_path, text)
        assert kinds(made)["problems"] == 0
        digests.append(made["seed-0/round-0/sample"].digest)
    assert len(set(digests)) == 3


OLD = """
problems_per_round = 4
rounds = 2
continue = false
[sample]
prompt = "own.jinja"
n = 2
shard_rows = 3
[refine]
prompt = "again.jinja"
subset = "incorrect"
[verify]
lenient = true
[eval]
bench = "arithmetic:n=3,level=2"
prompt = "own.jinja"
"""
OLD_DIGESTS = {
    "problems": "6d05016b50",
    "base/eval": "45da67ef7c",
    "seed-0/round-0/sample": "e17cdb0c92",
    "seed-0/round-0/verify-rollouts": "5ed6bf0e7b",
    "seed-0/round-0/trd/refine": "846ae95cd0",
    "seed-0/round-0/trd/verify-refined": "1f2496f57a",
    "seed-0/round-0/trd/distill": "61f3e6e54e",
    "seed-0/round-0/trd/eval": "9846c7b420",
    "seed-0/round-1/trd/sample": "9808837b7a",
    "seed-0/round-1/trd/verify-rollouts": "e2096c7e96",
    "seed-0/round-1/trd/refine": "8dbb547241",
    "seed-0/round-1/trd/verify-refined": "419750c156",
    "seed-0/round-1/trd/distill": "c2e75b079b",
    "seed-0/round-1/trd/eval": "94a00effdf",
}


def test_the_nodes_of_an_old_run_keep_their_digests_so_that_it_goes_on(tmp_path: Path) -> None:
    written(tmp_path, "{{ problem }}", "own.jinja")
    written(tmp_path, "{{ problem }} {{ attempt }} {{ reference_solution }}", "again.jinja")
    top, sections = OLD.split("[sample]")
    made = graph(tmp_path, top + BASE + "[sample]" + sections + ARM + "refine = {top_k = 3}\n")
    assert {node.name: node.digest[:10] for node in made.nodes} == OLD_DIGESTS


def test_the_nodes_of_an_old_run_of_one_round_keep_theirs(tmp_path: Path) -> None:
    written(tmp_path, "{{ problem }}", "own.jinja")
    written(tmp_path, "{{ problem }} {{ attempt }} {{ reference_solution }}", "again.jinja")
    top, sections = OLD.replace("rounds = 2\ncontinue = false\n", "").split("[sample]")
    sections += '[distill]\nepochs = 2\nlora = true\nteacher_weights = "ema"\n'
    made = graph(tmp_path, top + BASE + "[sample]" + sections + ARM + "refine = {top_k = 3}\n")
    before = {name: digest for name, digest in OLD_DIGESTS.items() if "round-1" not in name}
    assert {node.name: node.digest[:10] for node in made.nodes} == before | {
        "seed-0/round-0/trd/distill": "4e3a461a8a",
        "seed-0/round-0/trd/eval": "6a65082b7b",
    }


# One training over rounds

TWO_ARMS = ARM + '[arms.fkl]\nmethod = "fkl"\n'


def trainings(made: Graph, arm: str = "trd") -> list[Node]:
    return [node for node in made.nodes if node.stage == "distill" and node.arm == arm]


def test_the_rounds_of_an_arm_are_one_training_by_default(tmp_path: Path) -> None:
    text = "rounds = 3\nproblems_per_round = 2" + BASE + "[sample]\nn = 3\n[distill]\nbatch_size = 4\nepochs = 2\n"
    made = graph(tmp_path, text + TWO_ARMS)
    assert [node.digest for node in graph(tmp_path, "continue = true\n" + text + TWO_ARMS).nodes] == [
        node.digest for node in made.nodes
    ]
    for arm in ("trd", "fkl"):
        first, *later = trainings(made, arm)
        # Three rounds of two passes over six rows, four a step.
        assert {option(node, "--total-steps") for node in (first, *later)} == {"12"}
        assert option(first, "--continue") is None
        for before, node in zip((first, *later), later, strict=False):
            assert option(node, "--continue") == before.out
            assert before.name in node.inputs
            assert made.continued(node) == before
        assert made.continued(first) is None
    alone = graph(tmp_path, "continue = false\n" + text + TWO_ARMS)
    assert not [node for node in alone.nodes if {"--continue", "--total-steps"} & set(node.argv)]
    assert not {node.digest for node in alone.nodes if node.stage == "distill"} & {node.digest for node in made.nodes}


@pytest.mark.parametrize(
    ("sample", "problems"),
    [("", 12), ("[sample]\nn = 3\n", 4), ("[sample]\nn = 5\n", 3), ("[sample]\nn = 40\n", 1)],
    ids=["one attempt", "three attempts", "rounded up", "more attempts than rows"],
)
def test_steps_of_a_round_take_as_many_problems_as_their_rows_need(sample: str, problems: int, tmp_path: Path) -> None:
    text = ROUNDS + BASE.replace("n = 8", "n = 24") + sample + "[distill]\nbatch_size = 6\n"
    made = graph(tmp_path, text + TWO_ARMS)
    for arm in ("trd", "fkl"):
        for node in trainings(made, arm):
            assert (option(node, "--steps"), option(node, "--total-steps")) == ("2", "4")
    slices = [(option(n, "--limit"), option(n, "--skip")) for n in made.nodes if n.stage == "sample"]
    assert slices == [(str(problems), None), (str(problems), str(problems)), (str(problems), str(problems))]


def test_arms_with_steps_of_their_own_have_problems_and_schedules_of_their_own(tmp_path: Path) -> None:
    text = BASE.replace("n = 8", "n = 24") + "[distill]\nbatch_size = 2\n" + TWO_ARMS
    text += '[arms.large]\nmethod = "fkl"\nbatch_size = 6\n'
    made = graph(tmp_path, ROUNDS + text)
    first = [made[f"seed-0/round-0/{name}"] for name in ("sample", "large/sample")]
    assert [option(node, "--limit") for node in first] == ["4", "12"]
    assert made["seed-0/round-0/sample"].arms == ("trd", "fkl")
    shared = graph(tmp_path, "rounds = 2\nproblems_per_round = 6" + text + "epochs = 3\n")
    assert kinds(shared)["sample"] == 1 + 3, "one slice for all arms in the first round"
    assert {option(node, "--total-steps") for node in trainings(shared)} == {"6"}
    assert {option(node, "--total-steps") for node in trainings(shared, "large")} == {"6"}
    assert {option(node, "--steps") for node in shared.nodes if node.stage == "distill"} == {None}


def test_the_schedule_of_a_file_of_problems_is_as_long_as_the_file_and_that_of_an_import_as_its_slices(
    tmp_path: Path, ok: Trd
) -> None:
    ok("data", "make", "arithmetic", "--n", 7, "--out", tmp_path / "p.parquet")
    text = BASE.replace('make = {kind = "arithmetic", n = 8}', 'file = "p.parquet"') + "[distill]\nbatch_size = 2\n"
    assert option(trainings(graph(tmp_path, "rounds = 2" + text + ARM))[1], "--total-steps") == "8"
    imported = "rounds = 2\nproblems_per_round = 5" + IMPORTED + "[distill]\nbatch_size = 2\n" + ARM
    assert option(trainings(graph(tmp_path, imported))[1], "--total-steps") == "6"
    (tmp_path / "p.parquet").write_bytes(b"no problems")
    with pytest.raises(InputError, match=r"p\.parquet"):
        graph(tmp_path, "rounds = 2" + text + ARM)


def test_one_round_of_so_many_steps_has_a_schedule_of_its_own(tmp_path: Path) -> None:
    (node,) = trainings(graph(tmp_path, "steps_per_round = 3" + BASE + "[distill]\nbatch_size = 2\n" + ARM))
    assert (option(node, "--steps"), option(node, "--total-steps"), option(node, "--continue")) == ("3", None, None)


def test_the_record_of_a_recipe_has_its_rounds_as_they_were_written(tmp_path: Path) -> None:
    text = "rounds = 2\nsteps_per_round = 2\ncontinue = false" + BASE + "[distill]\nbatch_size = 2\n" + ARM
    made = recipe(tmp_path, text)
    assert (made.record()["continue"], made.record()["steps_per_round"]) == (False, 2)
    assert load_recipe(written(tmp_path, made.as_toml(), "resolved.toml")) == made
    assert not {"continue", "steps_per_round"} & recipe(tmp_path, BASE + ARM).record().keys()


def test_a_node_s_config_does_not_say_where_it_writes_and_its_command_line_does(tmp_path: Path) -> None:
    here, there = graph(tmp_path, BASE + ARM), build_graph(recipe(tmp_path, BASE + ARM), tmp_path / "elsewhere")
    assert [node.config for node in here.nodes] == [node.config for node in there.nodes]
    for node in here.nodes:
        if node.stage == "problems":
            assert option(node, "--out") == f"{node.out}/{node.config.out}"
        else:
            assert node.config.out is None
            assert option(node, "--out") == (None if node.stage == "verify" else node.out)


def test_the_templates_that_trd_brings_count_by_their_content_too() -> None:
    config = SampleConfig.parse({"problems": "p.parquet"})
    texts = [(prompts_dir() / f"student-{task}.jinja").read_bytes() for task in ("math", "code")]
    assert Contents().deciding(config, "opsd", ())["prompt"] == [hashlib.sha256(text).hexdigest() for text in texts]


def test_a_file_of_questions_counts_by_its_content(tmp_path: Path) -> None:
    digests = []
    for place, answer in (("a", 2), ("b", 2), ("b", 3)):
        (tmp_path / place).mkdir(exist_ok=True)
        (tmp_path / place / "q.jsonl").write_text(json.dumps({"problem": "1 + 1?", "answer": str(answer)}) + "\n")
        text = BASE + "[eval]\nbench = 'q.jsonl:math,arithmetic:n=3,level=2'\n" + ARM
        digests.append(build_graph(load_recipe(written(tmp_path / place, text)), tmp_path)["base/eval"].digest)
    assert digests[0] == digests[1] != digests[2]


def test_training_is_told_where_the_rollouts_are_so_that_a_run_can_be_moved(tmp_path: Path) -> None:
    made = graph(tmp_path, BASE + ARM + '[arms.fkl]\nmethod = "fkl"\n')
    rollouts = made["seed-0/round-0/sample"].out
    assert option(made["seed-0/round-0/trd/distill"], "--parents") == rollouts
    assert option(made["seed-0/round-0/fkl/distill"], "--parents") is None


def trained(directory: Path) -> tuple[Path, Path]:
    """Return a model and a checkpoint made from it, with an average beside it, as trd distill leaves them."""
    first, second = (build_model(directory / name, seed) for seed, name in enumerate(("first", "second")))
    build_model(second / "ema", 2)
    record = {
        **{"format": "trd-run-1", "command": "distill", "digest": "0", "inputs": [], "rows_expected": None},
        "identity": {"student_revision": resolve_model(str(first)).revision},
        "about": {"student": str(first), "finished": True},
    }
    (second / "run.json").write_text(json.dumps(record))
    return first, second


@pytest.mark.parametrize(("weights", "teacher"), [("initial", "first"), ("round", "second"), ("ema", "second/ema")])
def test_a_student_that_an_earlier_run_has_trained_has_the_teacher_that_training_has(
    weights: str, teacher: str, tmp_path: Path
) -> None:
    _, second = trained(tmp_path)
    text = BASE.replace("scripted", str(second)) + ARM + f'teacher_weights = "{weights}"\n'
    assert option(graph(tmp_path, text)["seed-0/round-0/refine"], "--teacher") == str(tmp_path / teacher)


def test_checkpoints_that_were_moved_together_still_find_each_other(tmp_path: Path) -> None:
    trained(tmp_path / "old")
    new = (tmp_path / "old").rename(tmp_path / "new")
    text = BASE.replace("scripted", str(new / "second")) + ARM + 'teacher_weights = "initial"\n'
    assert option(graph(tmp_path, text)["seed-0/round-0/refine"], "--teacher") == str(new / "first")


def test_arms_with_different_teachers_have_rows_and_names_of_their_own(tmp_path: Path) -> None:
    _, second = trained(tmp_path)
    arms = "".join(
        f'[arms.{weights}]\nmethod = "trd"\nteacher_weights = "{weights}"\n' for weights in ("initial", "round", "ema")
    )
    text = BASE.replace("scripted", str(second)) + arms + '[arms.fkl]\nmethod = "fkl"\nteacher_weights = "ema"\n'
    made = graph(tmp_path, text)
    assert kinds(made)["refine"] == kinds(made)["verify-refined"] == 3
    names = [node.name for node in made.nodes]
    assert len(set(names)) == len(names)
    assert {node.name for node in made.chosen()} == set(names)
    before = made["seed-0/round-0/fkl/distill"].digest
    (second / "ema" / "config.json").write_text((second / "ema" / "config.json").read_text() + "\n")
    assert graph(tmp_path, text)["seed-0/round-0/fkl/distill"].digest != before, "its teacher is another"


def test_a_problem_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    text = BASE.replace('make = {kind = "arithmetic", n = 8}', 'file = "none.parquet"') + ARM
    with pytest.raises(InputError, match=r"no such file: none\.parquet"):
        graph(tmp_path, text)


def test_until_ends_every_round_there(tmp_path: Path) -> None:
    made = graph(tmp_path, "rounds = 2" + BASE + ARM + "[eval]\nbench = 'arithmetic'\n")
    chosen = {until: {n.name for n in made.chosen(until=until)} for until in ("problems", "verify", "distill")}
    assert chosen["problems"] == {"problems"}
    assert {name.rpartition("/")[2] for name in chosen["verify"]} == {
        *("problems", "sample", "verify-rollouts", "refine", "verify-refined")
    }
    assert not any("round-1" in name for name in chosen["verify"]), "the next round needs a student"
    assert chosen["distill"] == {n.name for n in made.nodes if n.kind != "eval"}


def test_only_takes_an_arm_with_what_it_needs(tmp_path: Path) -> None:
    text = BASE + ARM + '[arms.fkl]\nmethod = "fkl"\n[arms.rkl]\nmethod = "rkl"\n[eval]\nbench = "arithmetic"\n'
    made = graph(tmp_path, text)
    names = {node.name for node in made.chosen(only=("fkl",))}
    shared = {"problems", "base/eval", "seed-0/round-0/sample", "seed-0/round-0/verify-rollouts"}
    assert names == shared | {"seed-0/round-0/fkl/distill", "seed-0/round-0/fkl/eval"}
    assert len(made.chosen(only=("fkl", "rkl"))) == len(names) + 2
    with pytest.raises(InputError, match="--only tdr; expected one of trd, fkl, rkl"):
        made.chosen(only=("tdr",))


def test_the_record_of_a_graph_is_plain_json(tmp_path: Path) -> None:
    made = graph(tmp_path, SIX)
    record = json.loads(json.dumps(made.record()))
    assert (record["format"], record["name"], len(record["nodes"])) == ("trd-graph-1", "recipe", 11)
    assert shlex.join(record["nodes"][0]["argv"]).startswith("data make --n 8 --out nodes/problems-")
    assert set(record["nodes"][1]) == {
        *("name", "stage", "arm", "arms", "round", "seed", "out", "inputs", "digest", "argv")
    }


def test_a_dry_run_of_many_rounds_has_one_line_for_stages_that_are_alike(tmp_path: Path, ok: Trd) -> None:
    text = ROUNDS.replace("rounds = 2", "rounds = 40") + BASE.replace("n = 8", "n = 800")
    path = written(tmp_path, text + "[distill]\nbatch_size = 8\n[eval]\nbench = 'arithmetic'\n" + TWO_ARMS)
    lines = ok("run", path, "--out", tmp_path / "run", "--dry-run", "--until", "distill").stdout.splitlines()
    stages = lines[1 : lines.index("")]
    assert lines[0].startswith("400 stages in ")
    assert len(stages) < 25
    (later,) = [line for line in stages if "trd/distill, N = 1 … 39" in line]
    assert re.split(r" {2,}", later.strip()) == [
        "run",
        "seed-0/round-N/trd/distill, N = 1 … 39",
        "39 stages",
        "← seed-0/round-N/trd/verify-refined, seed-0/round-N/trd/verify-rollouts, seed-0/round-(N-1)/trd/distill",
        "(warm)",
    ]
    assert [line.split()[0] for line in stages if "trd/eval" in line] == ["left"]
