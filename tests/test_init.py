"""trd init: the recipe that it writes has the options' help as comments, is sound by trd plan, and runs to the end."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from conftest import Trd, takes_long
from support.tiny import build_model

from trd_cli import api
from trd_cli.config.base import Config
from trd_cli.config.commands import EvalConfig, ImportConfig, MakeConfig
from trd_cli.config.generating import RefineConfig, SampleConfig
from trd_cli.config.training import DistillConfig
from trd_cli.recipes.loading import load_recipe
from trd_cli.recipes.recipe import Recipe

ROOT = Path(__file__).parent.parent
QUICKSTART = ROOT / "examples" / "quickstart"
SECTIONS: dict[str, type[Config]] = {
    "sample": SampleConfig,
    "refine": RefineConfig,
    "distill": DistillConfig,
    "eval": EvalConfig,
}

Start = Callable[..., tuple[Recipe, Result]]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a student and a teacher of its family, with 2,048 tokens of context."""
    root = tmp_path_factory.mktemp("models")
    return build_model(root / "student"), build_model(root / "teacher", seed=1, hidden_size=64)


@pytest.fixture
def start(ok: Trd, tmp_path: Path) -> Start:
    """Run trd init on a new directory; return the recipe that it wrote, and what it said."""

    def run(*words: object) -> tuple[Recipe, Result]:
        result = ok("init", tmp_path / "new", *words)
        assert result.stdout == f"{tmp_path / 'new' / 'recipe.toml'}\n"
        assert "error" not in [line.split()[2] for line in result.stderr.splitlines()]
        return load_recipe(tmp_path / "new" / "recipe.toml"), result

    return run


def jsonl(path: Path) -> Path:
    asked = [(f"What is {n} + {n}?", f"{n} + {n} = {2 * n}.\n#### {2 * n}") for n in range(9)]
    rows = [{"problem": question, "question": question, "answer": answer} for question, answer in asked]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# What is written


def test_the_default_is_the_embedded_model_on_word_problems_with_prompts_of_its_own(start: Start, ok: Trd) -> None:
    recipe, result = start()
    assert (recipe.name, recipe.student, recipe.setting) == ("new", "smollm2-135m", "opsd")
    assert recipe.problems["make"]["kind"] == "arithmetic"
    assert recipe.eval["bench"].startswith("arithmetic:")
    assert recipe.problems["make"]["seed"] != 2
    assert "seed=2" in recipe.eval["bench"]
    for section, name in (("sample", "student"), ("refine", "refine"), ("eval", "student")):
        assert Path(getattr(recipe, section)["prompt"]).read_text() == (QUICKSTART / f"{name}.jinja").read_text()
    path = result.stdout.strip()
    assert result.stderr.splitlines()[-2:] == [
        f"trd init: next: trd run {path}",
        "trd init: then: trd report trd-runs/new",
    ]
    assert [line for line in result.stderr.splitlines() if re.match(r"trd init:   (warning|error)", line)] == []
    ok("plan", path)


@pytest.mark.parametrize("kind", ["opsd", "opd"])
def test_a_recipe_for_models_of_one_s_own(kind: str, start: Start, models: tuple[Path, Path]) -> None:
    student, teacher = models
    recipe, _ = start("-s", student, *(("-t", teacher) if kind == "opd" else ()), "--engine", "transformers")
    assert (recipe.setting, recipe.student) == (kind, str(student))
    assert recipe.teacher == (str(teacher) if kind == "opd" else None)
    assert recipe.sample["engine"] == recipe.refine["engine"] == recipe.eval["engine"] == "transformers"
    assert recipe.sample["max_tokens"] == 2048 // 4
    assert recipe.distill["lora"]
    assert ("teacher_weights" in recipe.distill) == (kind == "opsd")


def test_problems_may_be_a_file_to_import_a_problem_set_or_generated_tasks(
    start: Start, models: tuple[Path, Path], problems: Path, tmp_path: Path
) -> None:
    file = jsonl(tmp_path / "rows.jsonl")
    own = ("-s", models[0], "--overwrite")
    recipe, _ = start(*own, "-p", file, "--preset", "gsm8k", "-b", "arithmetic:n=4,seed=5")
    assert (recipe.problems["import"]["file"], recipe.problems["import"]["preset"]) == (str(file), "gsm8k")
    assert recipe.eval["bench"] == "arithmetic:n=4,seed=5"
    recipe, _ = start(*own, "-p", problems, "-b", f"{file}:math")
    assert (recipe.problems, recipe.eval["bench"]) == ({"file": str(problems)}, f"{file}:math")


def test_comments_are_the_help_of_the_options_and_none_comes_twice(start: Start, models: tuple[Path, Path]) -> None:
    recipe, result = start("-s", models[0])
    lines = Path(result.stdout.strip()).read_text().splitlines()
    assert all(len(line) <= 112 for line in lines if line.startswith("#"))
    text = re.sub(r"\n# ", " ", "\n".join(lines))
    written = {**{name: getattr(recipe, name) for name in SECTIONS}, "make": recipe.problems["make"]}
    for name, table in written.items():
        for key in table:
            told = SECTIONS.get(name, MakeConfig).model_fields[key].description
            pieces = re.split(r"--[a-z-]+", told)
            assert all(piece.strip() in text for piece in pieces), f"[{name}] {key}"
    assert "--" not in text, "a recipe has keys, not flags"
    comments = [" ".join(found.split("\n# ")) for found in re.findall(r"^# (.*(?:\n# .*)*)", "\n".join(lines), re.M)]
    assert len(set(comments)) == len(comments)


def test_names_of_any_letters_come_through(trd: Trd, models: tuple[Path, Path], tmp_path: Path) -> None:
    odd = tmp_path / 'it\'s "ö" #1 [x]'
    odd.mkdir()
    student = odd / "stu = dent"
    student.symlink_to(models[0], target_is_directory=True)
    (odd / "problems.jsonl").symlink_to(jsonl(tmp_path / "rows.jsonl"))
    made = trd("init", odd, "-s", student, "-p", odd / "problems.jsonl", "--preset", "gsm8k", "-b", "arithmetic:n=2")
    assert made.exit_code == 0, made.stderr
    recipe = load_recipe(odd / "recipe.toml")
    assert Path(recipe.student).samefile(models[0])
    assert Path(recipe.problems["import"]["file"]).samefile(tmp_path / "rows.jsonl")
    assert re.fullmatch("[A-Za-z0-9.+_-]+", recipe.name)


def test_a_generator_s_name_means_it_beside_a_directory_of_that_name(
    start: Start, models: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "arithmetic").mkdir()
    assert start("-s", models[0])[0].problems["make"]["kind"] == "arithmetic"


def test_models_and_data_on_the_hub_are_taken_at_their_names_where_it_cannot_be_reached(tmp_path: Path) -> None:
    words = "init new -s Qwen/Qwen3-1.7B -t Qwen/Qwen3-8B -p deepscaler -b aime25 --engine vllm"
    done = subprocess.run(
        [sys.executable, "-m", "trd_cli", *words.split()],
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, "new/recipe.toml\n"), done.stderr
    assert "warning Qwen/Qwen3-1.7B could not be read" in done.stderr
    recipe = load_recipe(tmp_path / "new/recipe.toml")
    assert (recipe.setting, recipe.student, recipe.teacher) == ("opd", "Qwen/Qwen3-1.7B", "Qwen/Qwen3-8B")
    assert recipe.problems["import"]["file"] == "agentica-org/DeepScaleR-Preview-Dataset"
    assert (recipe.sample["engine"], recipe.sample["max_tokens"], recipe.eval["bench"]) == ("vllm", 16384, "aime25")
    assert set(ImportConfig.model_fields) >= set(recipe.problems["import"])


# What is not written


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("-p", "nothing.jsonl"), "no such file: nothing.jsonl"),
        (("-p", "arithmetics"), "expected a file, a Hub dataset owner/name, arithmetic"),
        (("-p", "verl"), "--problems FILE --preset verl"),
        (("-b", "no-such-bench"), "no-such-bench"),
        (("-s", "./no-model"), "the recipe would have"),
        (("-t", "scripted"), "the recipe would have"),
    ],
    ids=lambda value: value[-1] if isinstance(value, tuple) else "",
)
def test_a_recipe_with_an_error_is_not_written(words: tuple[str, ...], told: str, trd: Trd, tmp_path: Path) -> None:
    result = trd("init", tmp_path / "new", *words)
    assert (result.exit_code, result.stdout) == (1, "")
    assert told in result.stderr
    assert "trd-init-" not in result.stderr, "the place of the draft is of no use"
    assert list(tmp_path.iterdir()) == []


def test_a_recipe_that_is_there_stays_unless_it_is_to_be_replaced(
    start: Start, trd: Trd, models: tuple[Path, Path], tmp_path: Path
) -> None:
    path = tmp_path / "new" / "recipe.toml"
    path.parent.mkdir()
    path.write_text("# mine\n")
    result = trd("init", path.parent, "-s", models[0])
    assert (result.exit_code, path.read_text()) == (1, "# mine\n")
    assert f"{path} is there" in result.stderr
    assert trd("init", path.parent, "-s", "./no-model", "--overwrite").exit_code == 1
    assert path.read_text() == "# mine\n"
    recipe, _ = start("-s", models[0], "--overwrite")
    assert recipe.student == str(models[0])


def test_a_template_of_one_s_own_beside_it_is_not_lost(trd: Trd, tmp_path: Path) -> None:
    (tmp_path / "student.jinja").write_text("{{ problem }} Think.")
    result = trd("init", tmp_path)
    assert (result.exit_code, [path.name for path in tmp_path.iterdir()]) == (1, ["student.jinja"])
    assert "student.jinja is there" in result.stderr


# It runs


def test_the_sections_do_for_their_stages_to_the_end(
    start: Start, models: tuple[Path, Path], ok: Trd, tmp_path: Path
) -> None:
    # In this process: trd run would load torch anew for each stage.
    recipe, _ = start("-s", models[0], "--engine", "transformers")
    ok("data", "make", recipe.problems["make"]["kind"], "--n", 4, "--out", tmp_path / "problems.parquet")
    few: dict[str, Any] = {"max_tokens": 12, "dtype": "float32"}
    of = {"model": recipe.student, "problems": tmp_path / "problems.parquet", "out": tmp_path / "y_o"}
    y_o = api.sample(**{**recipe.sample, **few, **of})
    y_r = api.refine(**{**recipe.refine, **few, "setting": recipe.setting, "inputs": y_o, "out": tmp_path / "y_r"})
    api.verify(inputs=y_r)
    arm = {**recipe.distill, **recipe.arms["trd"].distill, "dtype": "float32"}
    student = api.distill(inputs=y_r, out=tmp_path / "student", **arm)
    scores = api.evaluate(**{**recipe.eval, **few, "bench": "arithmetic:n=2,seed=2", "k": 1, "model": student})
    assert sum(scores["benchmarks"]["arithmetic:n=2,seed=2"]["verdicts"].values()) == 2


@takes_long
@pytest.mark.model
def test_the_default_recipe_runs_to_the_end_as_it_is(start: Start, ok: Trd, tmp_path: Path) -> None:
    _, result = start()
    ok("run", result.stdout.strip(), "--out", tmp_path / "run")
    assert "failed" not in (tmp_path / "run/status.json").read_text()


# Completion


def test_a_shell_completes_commands_options_and_their_values(tmp_path: Path) -> None:
    script = """
trd --install-completion >/dev/null && source ~/.bashrc || exit 1
try() {
    COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMPREPLY=()
    _trd_completion trd
    echo "${COMPREPLY[@]}"
}
try trd ver
try trd distill --mas
try trd distill --method rk
try trd data ""
"""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/trd").write_text(f'#!/bin/sh\nexec {sys.executable} -m trd_cli "$@"\n')
    (tmp_path / "bin/trd").chmod(0o755)
    done = subprocess.run(
        ["bash", "-c", script],
        env={**os.environ, "HOME": str(tmp_path), "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines() == [
        "verify",
        "--mask-tokens",
        "rkl rkl-topk",
        "make import import-rollouts list overlap",
    ], done
