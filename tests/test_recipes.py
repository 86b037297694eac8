"""Recipes and the graphs they make: refusals and their words, `extends`, and the stages that arms have in common."""

from __future__ import annotations

import hashlib
import json
import shlex
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
    assert Contents().deciding(config, "opsd")["prompt"] == [hashlib.sha256(text).hexdigest() for text in texts]


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
