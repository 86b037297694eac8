"""trd plan: sound recipes pass, planted faults are named, and estimates agree with models, shards and calculations."""

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
import tomli_w
from conftest import Trd
from support.sets import rows_of
from support.tiny import END, OTHER_END, SHAPE, build_model, reference_model, set_eos, write_tokenizer

from trd_cli.planning.estimates import GIB, adapter_parameters, generating, row_bytes, training
from trd_cli.planning.pair import Planned, read_model
from trd_cli.recipes.graph import build_graph
from trd_cli.recipes.loading import load_recipe
from trd_cli.trajectories.problem_sets import read_problems
from trd_cli.trajectories.shards import list_shards, write_problems

Findings = list[dict[str, str]]
Write = Callable[..., Path]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model(tmp_path_factory.mktemp("plan") / "student")


@pytest.fixture
def write(tmp_path: Path, tiny: Path) -> Write:
    """Write a sound opsd recipe with changes to its top level; None takes a key out."""

    def write(**changes: Any) -> Path:
        recipe = {
            "setting": "opsd",
            "student": str(tiny),
            "problems": {"make": {"kind": "arithmetic", "n": 12, "seed": 1}},
            "sample": {"max_tokens": 32},
            "refine": {"max_tokens": 32},
            "eval": {"bench": "arithmetic:n=5,seed=2", "max_tokens": 32},
            "arms": {"trd": {"method": "trd"}, "fkl": {"method": "fkl"}},
            **changes,
        }
        path = tmp_path / "recipe.toml"
        path.write_text(tomli_w.dumps({k: v for k, v in recipe.items() if v is not None}))
        return path

    return write


@pytest.fixture
def plan(trd: Trd, tmp_path: Path) -> Callable[..., tuple[int, Findings]]:
    """Return exit code and findings of `trd plan`; the lines on standard output must say the same."""

    def plan(recipe: Path, *flags: object, code: int | None = None) -> Findings:
        out = tmp_path / "plan.json"
        result = trd("plan", recipe, "--run", tmp_path / "run", "--out", out, *flags)
        findings = json.loads(out.read_text())["findings"]
        assert all(f["what"] in result.stdout for f in findings)
        assert result.exit_code == (any(f["level"] == "error" for f in findings)), result.stdout
        if code is not None:
            assert result.exit_code == code, result.stdout
        return findings

    return plan


def told(findings: Findings, level: str, topic: str, *words: str) -> dict[str, str]:
    """Return the one finding of a level and topic with all the words; it names a change unless all is well."""
    own = [f for f in findings if (f["level"], f["topic"]) == (level, topic)]
    found = [f for f in own if all(word in f["what"] for word in words)]
    assert len(found) == 1, "\n".join(f"{f['level']} {f['topic']} {f['what']}" for f in findings)
    assert level == "ok" or found[0]["change"]
    return found[0]


# Sound recipes


def test_a_sound_recipe_has_a_finding_on_every_topic_and_none_is_worse_than_ok(write: Write, plan: Any) -> None:
    findings = plan(write(), code=0)
    assert {f["level"] for f in findings} == {"ok"}
    assert {f["topic"] for f in findings} == {
        *("recipe", "models", "problems", "lengths", "benchmarks", "memory", "disk", "cost")
    }


def test_a_plan_writes_nothing_but_what_it_is_asked_for(write: Write, trd: Trd, tmp_path: Path) -> None:
    recipe = write()
    assert trd("plan", recipe, "--run", tmp_path / "run").exit_code == 0
    assert {path.name for path in tmp_path.iterdir()} == {"recipe.toml"}


def test_findings_stand_under_their_topic_errors_with_what_to_change(write: Write, trd: Trd) -> None:
    result = trd("plan", write(arms={"k": {"method": "rkl-topk", "top_k": 5000}}))
    lines = result.stdout.splitlines()
    assert next(line for line in lines if not line.startswith(" ")) == "recipe"
    (error,) = [line for line in lines if line.startswith("  error")]
    assert error.startswith("  error   arm k: top_k 5,000 of a vocabulary of 280; lower top_k")
    assert result.stderr.splitlines()[-1].startswith("trd plan: error: ")
    assert result.stderr.splitlines()[-1].endswith("has 1 error; expected none; see the lines above")


# Teacher and student


def with_teacher(tiny: Path, tmp_path: Path, **changes: Any) -> dict[str, Any]:
    teacher = build_model(tmp_path / "teacher", seed=1, **changes)
    return {"setting": "opd", "student": str(tiny), "teacher": str(teacher)}


def test_a_teacher_with_another_tokenizer_is_an_error(write: Write, plan: Any, tiny: Path, tmp_path: Path) -> None:
    models = with_teacher(tiny, tmp_path)
    write_tokenizer(tmp_path / "teacher", merges=(("e", "x"), ("o", "n")))
    error = told(plan(write(**models), code=1), "error", "models", "tokenizers", "differ in")
    assert str(tiny) in error["what"]
    assert str(tmp_path / "teacher") in error["what"]


def test_other_ends_and_templates_of_the_teacher_are_warnings(
    write: Write, plan: Any, tiny: Path, tmp_path: Path
) -> None:
    models = with_teacher(tiny, tmp_path)
    template = "{% for m in messages %}<|start|>{{ m['content'] }}<|end|>{% endfor %}<|start|>"
    write_tokenizer(tmp_path / "teacher", chat_template=template)
    set_eos(tmp_path / "teacher", [OTHER_END])
    findings = plan(write(**models), code=0)
    told(findings, "warning", "models", f"with {END},", f"with {END}, {OTHER_END}")
    told(findings, "warning", "models", "chat templates differ", "<|start|> What is 1 + 1? <|end|>")


def test_a_model_without_a_chat_template_is_an_error_unless_prompts_are_raw(
    write: Write, plan: Any, tmp_path: Path
) -> None:
    model = build_model(tmp_path / "bare")
    write_tokenizer(model, chat_template=None)
    (model / "chat_template.jinja").unlink(missing_ok=True)
    told(plan(write(student=str(model)), code=1), "error", "models", "has no chat template")
    assert plan(write(student=str(model), sample={"max_tokens": 32, "render": "raw"}), code=1), "eval is not"
    evaluation = {"bench": "arithmetic:n=5,seed=2", "max_tokens": 32, "render": "raw"}
    raw = write(student=str(model), sample={"max_tokens": 32, "render": "raw"}, eval=evaluation)
    assert not [f for f in plan(raw, code=0) if f["topic"] == "models" and f["level"] == "error"]


def test_a_head_that_is_longer_than_the_other_is_told(write: Write, plan: Any, tiny: Path, tmp_path: Path) -> None:
    findings = plan(write(**with_teacher(tiny, tmp_path, vocab_size=320)), code=0)
    told(findings, "ok", "models", "280 and 320")


def test_a_model_directory_that_is_not_there_is_an_error(write: Write, plan: Any) -> None:
    told(plan(write(student="./nowhere"), code=1), "error", "models", "./nowhere could not be read")


def test_models_and_sets_out_of_reach_are_warnings_and_the_rest_is_still_checked(write: Write, tmp_path: Path) -> None:
    recipe = write(student="nobody/nothing", eval={"bench": "aime25,arithmetic:n=5,seed=2"})
    apart = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub"), "TRD_DATA": ""}
    words = [sys.executable, "-m", "trd_cli", "plan", str(recipe), "--run", str(tmp_path / "run")]
    done = subprocess.run(words, env={**os.environ, **apart}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "warning nobody/nothing could not be read" in done.stdout
    assert "warning aime25 cannot be loaded" in done.stdout
    assert "ok      arithmetic:n=5,seed=2: 5 questions" in done.stdout


def test_a_refusal_names_keys_and_quotes_values_as_they_are(write: Write, plan: Any) -> None:
    findings = plan(write(distill={"mask_tokens": ["--top-k"]}), code=1)
    told(findings, "error", "recipe", "mask_tokens --top-k; expected a token of the vocabulary")


def test_the_scripted_student_is_an_error_as_it_cannot_be_trained(write: Write, plan: Any) -> None:
    told(plan(write(student="scripted"), code=1), "error", "recipe", "scripted has no weights")


# Lengths


def test_a_max_length_that_no_row_fits_is_an_error(write: Write, plan: Any) -> None:
    findings = plan(write(distill={"max_length": 40}), code=1)
    error = told(findings, "error", "lengths", "distill trd", "max_length 40", "no row fits")
    assert "raise max_length to" in error["change"]


def test_a_max_length_that_long_responses_exceed_is_a_warning(write: Write, plan: Any) -> None:
    findings = plan(write(sample={"max_tokens": 1500}, distill={"max_length": 1400}, arms={"f": {"method": "fkl"}}))
    told(findings, "warning", "lengths", "distill f", "100 % would be left out", "if every response is as long")


def test_of_a_response_the_plan_counts_the_head_that_is_trained_on(write: Write, plan: Any) -> None:
    distill = {"max_length": 1400, "max_response_tokens": 100}
    findings = plan(write(sample={"max_tokens": 1500}, distill=distill, arms={"f": {"method": "fkl"}}))
    told(findings, "ok", "lengths", "distill f")


def test_a_window_that_the_model_does_not_have_is_an_error(write: Write, plan: Any) -> None:
    findings = plan(write(sample={"max_tokens": 32, "max_model_len": 9000}), code=1)
    told(findings, "error", "lengths", "sample: max_model_len 9,000", "takes 2,048")


def test_a_refused_window_leaves_the_other_findings_as_the_model_s_own_gives_them(write: Write, plan: Any) -> None:
    def others(window: int) -> Findings:
        found = plan(write(sample={"max_tokens": 5000, "max_model_len": window}))
        return [f for f in found if "max_model_len" not in f["what"]]

    assert others(9000) == others(2048)


def test_prompts_beyond_the_window_are_an_error_when_too_many_rows_fail(write: Write, plan: Any) -> None:
    findings = plan(write(refine={"max_tokens": 32, "max_model_len": 200}), code=1)
    told(findings, "error", "lengths", "refine: 100 % of the prompts do not fit")


def test_attempts_that_must_be_cut_to_be_refined_are_a_warning(write: Write, plan: Any) -> None:
    findings = plan(write(sample={"max_tokens": 1500}, refine={"max_tokens": 800}), code=0)
    told(findings, "warning", "lengths", "refine: 100 % of the attempts are cut")


def test_problems_that_are_filtered_by_length_are_counted(write: Write, plan: Any) -> None:
    filtered = write(sample={"max_tokens": 32, "max_prompt_tokens": 10})
    told(plan(filtered, code=1), "error", "lengths", "sample: every problem is left out")


def sampled(recipe: Path, ok: Trd, run: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the rollouts of a recipe, made in its run directory by the command of its graph."""
    run.mkdir()
    monkeypatch.chdir(run)
    graph = build_graph(load_recipe(recipe), run)
    for name in ("problems", "seed-0/round-0/sample"):
        ok(*graph[name].argv)
    return run / graph["seed-0/round-0/sample"].out


def test_lengths_and_rates_are_those_of_the_run_as_soon_as_it_has_rollouts(
    write: Write, plan: Any, ok: Trd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write(student="scripted", arms={"fkl": {"method": "fkl"}})
    rollouts = sampled(recipe, ok, tmp_path / "run", monkeypatch)
    rows = rows_of(rollouts)
    findings = plan(recipe)
    prompts = sorted(len(row.prompt_token_ids) for row in rows)
    told(findings, "ok", "lengths", "sample: prompts of", f"to {prompts[-1]} tokens")
    told(
        findings,
        "ok",
        "cost",
        f"sample: {sum(len(row.response_token_ids) for row in rows):,} response tokens",
        "(measured)",
    )
    assert [f for f in findings if f["topic"] == "lengths" and "distill fkl" in f["what"] and "(measured)" in f["what"]]


def test_a_set_that_is_not_finished_does_not_count_as_measured(
    write: Write, plan: Any, ok: Trd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write(student="scripted", arms={"fkl": {"method": "fkl"}}, sample={"shard_rows": 5, "max_tokens": 32})
    rollouts = sampled(recipe, ok, tmp_path / "run", monkeypatch)
    list_shards(rollouts)[0].unlink()
    told(plan(recipe), "ok", "cost", "sample: at most ")


def test_seeds_multiply_what_every_stage_does(write: Write, plan: Any) -> None:
    rows = {}
    for seeds in ([0], [0, 1, 2]):
        findings = plan(write(seeds=seeds), code=0)
        told_rows = [f["what"] for f in findings if f["topic"] == "cost" and " rows" in f["what"]]
        for what in told_rows:
            stage = what.partition(":")[0]
            rows.setdefault(stage, []).append(int(what.rpartition(" in ")[2].split()[0]))
    assert {stage: rows[stage] for stage in ("sample", "refine", "distill")} == {
        "sample": [12, 36],
        "refine": [12, 36],
        "distill": [24, 72],
    }
    assert rows["eval"] == [15, 35], "the starting model once, two arms a seed"


def test_an_evaluation_longer_than_the_model_takes_is_told(write: Write, plan: Any) -> None:
    eval_ = {"bench": "arithmetic:n=5,seed=2"}
    long = plan(write(eval={**eval_, "max_tokens": 4096}), code=0)
    told(long, "warning", "lengths", "eval: arithmetic:n=5,seed=2: 100 %", "less than max_tokens 4,096")
    wide = plan(write(eval={**eval_, "max_tokens": 32, "max_model_len": 9000}), code=1)
    told(wide, "error", "lengths", "eval: max_model_len 9,000", "takes 2,048")


# Problems and benchmarks


def test_questions_among_the_problems_are_an_error(write: Write, plan: Any) -> None:
    findings = plan(write(eval={"bench": "arithmetic:n=12,seed=1", "max_tokens": 32}), code=1)
    error = told(findings, "error", "benchmarks", "12 training problems (100 %)", "12 word by word")
    assert "trd data overlap" in error["change"]


def test_problems_that_share_a_long_run_of_words_with_a_question_are_a_warning(
    write: Write, plan: Any, tmp_path: Path
) -> None:
    run = "a heron counts seventeen silver fishes below the old stone bridge at dusk while"
    rows = {"train": f"Once {run} it rains. How many?", "bench": f"Now {run} it snows. How few?"}
    for name, text in rows.items():
        row = {"problem": text, "reference_answer": "17", "reference_solution": "There are 17."}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    made = {"import": {"file": str(tmp_path / "train.jsonl")}}
    findings = plan(write(problems=made, eval={"bench": str(tmp_path / "bench.jsonl"), "max_tokens": 32}), code=0)
    told(findings, "warning", "benchmarks", "1 training problem (100 %) overlap")


def test_a_benchmark_that_there_is_not_is_an_error(write: Write, plan: Any) -> None:
    told(plan(write(eval={"bench": "aime2042"}), code=1), "error", "recipe", "[eval] no benchmark 'aime2042'")


def test_a_set_to_import_that_has_no_answers_is_an_error_unless_none_are_wanted(
    write: Write, plan: Any, tmp_path: Path
) -> None:
    row = {"problem": "How many?", "reference_solution": "There are some."}
    (tmp_path / "train.jsonl").write_text(json.dumps(row) + "\n")
    made = {"file": str(tmp_path / "train.jsonl")}
    told(plan(write(problems={"import": made})), "error", "problems", "no reference answer")
    findings = plan(write(problems={"import": {**made, "no_answers": True}}))
    assert not [f for f in findings if "no reference answer" in f["what"]]


def without(tmp_path: Path, ok: Trd, field: str, count: int) -> dict[str, str]:
    """Return twelve problems of which the first lack a field."""
    path = tmp_path / "made.parquet"
    ok("data", "make", "arithmetic", "--n", 12, "--seed", 1, "--out", path)
    import dataclasses

    problems = [dataclasses.replace(p, **{field: None}) if i < count else p for i, p in enumerate(read_problems(path))]
    write_problems(tmp_path / "train.parquet", problems)
    return {"file": str(tmp_path / "train.parquet")}


def test_a_task_of_ones_own_needs_a_grader_and_an_answer_is_reference_enough(
    write: Write, plan: Any, ok: Trd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("def grade(problem, reference, response): return True\n")
    lines = [json.dumps({"problem": f"Mate in {n}?", "answer": "e4", "task": "chess"}) for n in range(12)]
    (tmp_path / "mates.jsonl").write_text("\n".join(lines))
    problems = {"import": {"file": str(tmp_path / "mates.jsonl")}}
    told(plan(write(problems=problems), code=1), "error", "problems", "12 problems of the task chess")
    missing = {"grader": "nowhere:grade"}
    told(plan(write(problems=problems, verify=missing), code=1), "error", "recipe", "no module nowhere")
    findings = plan(write(problems=problems, verify={"grader": "mine:grade"}), code=0)
    told(findings, "ok", "problems", "reference_solution or reference_answer")


def test_opsd_without_references_is_an_error(write: Write, plan: Any, ok: Trd, tmp_path: Path) -> None:
    problems = without(tmp_path, ok, "reference_solution", 12)
    told(plan(write(problems=problems), code=1), "error", "problems", "12 of 12", "no reference_solution")


def test_a_few_missing_references_are_a_warning_where_no_stage_fails_of_them(
    write: Write, plan: Any, ok: Trd, tmp_path: Path
) -> None:
    problems = without(tmp_path, ok, "reference_solution", 1)
    few = write(problems=problems, refine={"max_tokens": 32, "max_errors": 2})
    told(plan(few, code=0), "warning", "problems", "1 of 12", "no reference_solution")
    told(plan(write(problems=problems), code=1), "error", "problems", "1 of 12")


@pytest.mark.parametrize(("allowed", "level"), [(1, "warning"), (0, "error"), (0.1, "warning"), (0.05, "error")])
def test_max_errors_is_a_count_or_below_1_a_share_as_for_a_stage(
    allowed: float, level: str, write: Write, plan: Any, ok: Trd, tmp_path: Path
) -> None:
    problems = without(tmp_path, ok, "reference_solution", 1)
    told(plan(write(problems=problems, refine={"max_errors": allowed})), level, "problems", "1 of 12")


def test_opd_needs_no_references(write: Write, plan: Any, ok: Trd, tiny: Path, tmp_path: Path) -> None:
    problems = without(tmp_path, ok, "reference_solution", 12)
    findings = plan(write(problems=problems, **with_teacher(tiny, tmp_path)), code=0)
    assert not [f for f in findings if "reference_solution" in f["what"]]


def test_subsets_by_verdict_without_anything_to_grade_by_are_an_error(
    write: Write, plan: Any, ok: Trd, tmp_path: Path
) -> None:
    problems = without(tmp_path, ok, "reference_answer", 12)
    findings = plan(write(problems=problems, arms={"r": {"method": "trd", "subset": "repaired"}}), code=1)
    told(findings, "error", "problems", "nothing to grade by", "subsets of r")


def test_slices_beyond_the_problems_are_an_error(write: Write, plan: Any, ok: Trd, tmp_path: Path) -> None:
    problems = without(tmp_path, ok, "reference_solution", 0)
    findings = plan(write(problems=problems, rounds=2, problems_per_round=8), code=1)
    told(findings, "error", "recipe", "2 rounds of 8 problems, and there are 12; expected at least 16")


# Many rounds

FORTY = {
    "rounds": 40,
    "steps_per_round": 2,
    "problems": {"make": {"kind": "arithmetic", "n": 1000, "seed": 1, "level": 2}},
    "distill": {"batch_size": 4},
}


def test_forty_rounds_are_planned_in_as_many_lines_as_one_of_them(write: Write, plan: Any) -> None:
    adapter = {"trd": {"method": "trd", "lora": True}}
    one = plan(write(**FORTY | {"rounds": 1}, arms=adapter))
    many = plan(write(**FORTY, arms=adapter), "--sample-rate", 1, "--train-rate", 1)
    assert len(many) <= len(one) + 2, "the hours on one device and on eight"
    told(many, "ok", "recipe", "arm trd: 40 rounds of 2 steps (8 problems), one training of 80 steps")
    told(many, "ok", "problems", "8 of them a round")
    # Eight rows a round of at most 32 tokens; the base model and the student of each round answer five questions.
    told(many, "ok", "cost", "sample: at most 10,240 response tokens in 320 rows")
    told(many, "ok", "cost", "distill: at most 10,240 response tokens in 320 rows")
    told(many, "ok", "cost", "eval: at most 6,560 response tokens in 205 rows")
    told(many, "ok", "cost", "1 device ", f"{(3 * 10_240 + 6_560) / 3600:,.1f} hours")


def test_rounds_with_trainings_of_their_own_are_told_from_one_training(write: Write, plan: Any) -> None:
    few = {**FORTY, "rounds": 2, "continue": False, "arms": {"f": {"method": "fkl"}, "t": {"method": "trd"}}}
    findings = plan(write(**few), code=0)
    told(findings, "ok", "recipe", "arm f, t: 2 rounds of 2 steps (8 problems), each a training of its own")
    told(findings, "ok", "cost", "distill: at most 1,024 response tokens in 32 rows")
    passes = {"steps_per_round": None, "problems_per_round": 6, "distill": {"batch_size": 4, "epochs": 3}}
    told(plan(write(**few | passes), code=0), "ok", "recipe", "2 rounds of at most 6 steps (6 problems), each")


def test_a_set_that_is_too_small_for_the_steps_of_its_rounds_is_an_error(
    write: Write, plan: Any, tmp_path: Path
) -> None:
    rows = [{"problem": f"What is {i} + 1?", "answer": str(i + 1), "solution": "Add 1."} for i in range(5)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    few = {"import": {"file": str(tmp_path / "p.jsonl"), "preset": "deepscaler"}}
    findings = plan(write(**FORTY | {"rounds": 2, "problems": few}), code=1)
    error = told(findings, "error", "problems", "2 rounds of 8 problems need 16, and there are 5")
    assert error["change"].startswith("lower steps_per_round")


def test_an_adapter_over_rounds_has_no_second_base_and_saves_no_merged_students(write: Write, plan: Any) -> None:
    own = {**FORTY, "arms": {"x": {"method": "trd", "lora": True, "lora_rank": 8, "teacher_weights": "initial"}}}

    def planned(**changes: Any) -> tuple[Findings, dict[str, float]]:
        findings = plan(write(**own, **changes), code=0)
        (line,) = [f["what"] for f in findings if f["topic"] == "disk"]
        sizes = re.findall(r"([0-9.]+) (KiB|MiB) of (checkpoints|states)", line)
        memory = [f for f in findings if f["topic"] == "memory" and "distill x" in f["what"]]
        return memory, {name: float(size) * {"KiB": 1, "MiB": 1024}[unit] for size, unit, name in sizes}

    memory, joined = planned()
    assert [" teacher " in f["what"] for f in memory] == [False]
    memory, apart = planned(**{"continue": False})
    assert [" teacher " in f["what"] for f in memory] == [False, True], "the first round, and all others"
    # Three states while training, and each of the last two rounds keeps one.
    assert joined["states"] == pytest.approx(apart["states"] * 5 / 3, rel=0.05)
    _, merged = planned(eval={"bench": "arithmetic:n=5,seed=2", "max_tokens": 32, "engine": "vllm"})
    assert joined["checkpoints"] < merged["checkpoints"] / 2


# Options that exclude each other


@pytest.mark.parametrize(
    ("arm", "words"),
    [
        ({"method": "rkl-topk", "top_k": 281}, ["top_k 281", "vocabulary of 280"]),
        ({"method": "trd", "mask_tokens": ["<|nothing|>"]}, ["mask_tokens <|nothing|>"]),
        ({"method": "fkl", "beta": 0.3}, ["beta"]),
        ({"method": "fkl", "subset": "repaired"}, ["subset = 'repaired'", "no parents"]),
        ({"method": "fastopd"}, ["method fastopd without max_response_tokens"]),
        ({"method": "relay"}, ['method = "relay" along rows that are refined with mode = "rewrite"']),
        ({"method": "relay", "refine": {"mode": "relay", "engine": "openai"}}, ["mode relay with engine openai"]),
        ({"method": "trd", "lora": True, "lora_targets": ["nope"]}, ["lora_targets nope", "not found"]),
        ({"method": "trd", "lora": True, "lora_targets": ["lm_head"]}, ["lora_targets with the output head"]),
    ],
)
def test_an_arm_that_cannot_be_trained_is_an_error(
    write: Write, plan: Any, arm: dict[str, Any], words: list[str]
) -> None:
    told(plan(write(arms={"x": arm}), code=1), "error", "recipe", *words)


def test_the_whole_vocabulary_is_a_possible_support(write: Write, plan: Any) -> None:
    plan(write(arms={"x": {"method": "rkl-topk", "top_k": 280}}), code=0)


def test_an_average_of_weights_that_are_sharded_is_an_error(
    write: Write, plan: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    arms = {"x": {"method": "trd", "teacher_weights": "ema"}}
    plan(write(arms=arms), code=0)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    told(plan(write(arms=arms), code=1), "error", "recipe", "arm x: teacher_weights ema with FSDP")
    monkeypatch.delenv("ACCELERATE_USE_FSDP")
    told(plan(write(arms=arms), "--fsdp", 2, code=1), "error", "recipe", "arm x: teacher_weights ema with FSDP")


def test_a_biased_estimate_is_a_warning(write: Write, plan: Any) -> None:
    arms = {"s": {"method": "sampled"}}
    told(plan(write(arms=arms), code=0), "warning", "recipe", "biased along rollouts at T 0.6, top-p 0.95, top-k 20")
    unbiased = {"max_tokens": 32, "temperature": 1.0, "top_p": 1.0, "top_k": 0}
    assert not [f for f in plan(write(arms=arms, sample=unbiased)) if "biased" in f["what"]]


def test_weights_among_the_rows_of_a_problem_that_has_one_are_a_warning(write: Write, plan: Any) -> None:
    arms = {"s": {"method": "scope"}}
    told(plan(write(arms=arms), code=0), "warning", "recipe", "arm s: rows are weighed", "each problem has one")
    findings = plan(write(arms=arms, sample={"max_tokens": 32, "n": 2}), code=0)
    assert not [f for f in findings if "weighed" in f["what"]]


def test_a_relay_holds_both_models_while_it_searches(write: Write, plan: Any) -> None:
    arms = {"r": {"method": "relay", "refine": {"mode": "relay", "batch_size": 1}}, "t": {"method": "trd"}}
    findings = plan(write(arms=arms, refine={"max_tokens": 32, "batch_size": 1}), code=0)
    assert "teacher" in told(findings, "ok", "memory", "refine r")["what"]
    # A relayed row is no longer than max_tokens of [refine], whatever the attempt has.
    told(findings, "ok", "lengths", "distill r: rows of up to")
    assert "teacher" not in told(findings, "ok", "memory", "refine:")["what"]


# Sizes of models

# config.json of Qwen/Qwen3-1.7B and Qwen/Qwen3-8B, as far as sizes go; their model cards say 1.7B and 8.2B parameters.
QWEN3_1_7B = {
    "vocab_size": 151936,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "tie_word_embeddings": True,
    "max_position_embeddings": 40960,
}
QWEN3_8B = {
    **QWEN3_1_7B,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "tie_word_embeddings": False,
}


def without_weights(directory: Path, sizes: dict[str, Any]) -> Planned:
    from transformers import Qwen3Config

    Qwen3Config(**sizes, dtype="bfloat16", bos_token_id=None, eos_token_id=END).save_pretrained(directory)
    write_tokenizer(directory)
    model, findings = read_model(str(directory))
    assert model is not None, findings
    return model


@pytest.mark.parametrize(
    ("sizes", "parameters", "kv_bytes"),
    # 2 · 28 · 8 · 128 · 2 and 2 · 36 · 8 · 128 · 2 bytes
    [(QWEN3_1_7B, 1_720_574_976, 114_688), (QWEN3_8B, 8_190_735_360, 147_456)],
)
def test_qwen3_has_its_published_size(tmp_path: Path, sizes: dict[str, Any], parameters: int, kv_bytes: int) -> None:
    model = without_weights(tmp_path / "qwen3", sizes)
    assert model.shape is not None
    assert model.shape.parameters == parameters
    assert model.shape.kv_bytes("bfloat16") == kv_bytes
    assert (model.longest, model.vocabulary, model.dtype) == (40960, 151936, "bfloat16")


@pytest.mark.parametrize("kind", ["llama", "tied", "Qwen2Config", "Qwen3Config"])
def test_parameters_of_a_model_are_counted_as_it_has_them(tmp_path: Path, kind: str) -> None:
    import transformers

    sizes = {**SHAPE, "tie_word_embeddings": kind == "tied"}
    config = getattr(transformers, kind)(**sizes) if kind.endswith("Config") else None
    directory = build_model(tmp_path / "model", config=config, tie_word_embeddings=kind == "tied")
    model, _ = read_model(str(directory))
    assert model is not None
    assert model.shape is not None
    assert model.shape.parameters == sum(p.numel() for p in reference_model(directory).parameters())
    assert model.shape.kv_width == 2 * 8


def test_an_adapter_has_the_parameters_that_are_trained(tiny: Path) -> None:
    from trd_cli.config.training import DistillConfig
    from trd_cli.planning.needs import adapter_of
    from trd_cli.training.model import with_adapter

    for targets in ([], ["q_proj", "down_proj"]):
        config = DistillConfig.parse({"lora": True, "lora_rank": 3, "lora_targets": targets})
        adapted = with_adapter(reference_model(tiny), config, seed=0)
        model, _ = read_model(str(tiny))
        assert adapter_of(config, model) == sum(p.numel() for p in adapted.parameters() if p.requires_grad)


# Memory, disk and hours by hand


def test_memory_of_generation_is_weights_and_the_longest_sequence(tmp_path: Path) -> None:
    shape = without_weights(tmp_path / "qwen3", QWEN3_8B).shape
    assert shape is not None
    need = generating(shape, "bfloat16", longest=34_816)
    assert need.parts == {"weights": 16_381_470_720, "keys and values": 34_816 * 147_456}


def test_memory_of_training_all_weights_is_sixteen_bytes_each_and_two_for_the_cast(tmp_path: Path) -> None:
    shape = without_weights(tmp_path / "qwen3", QWEN3_1_7B).shape
    assert shape is not None
    need = training(shape, shape, "bfloat16", tokens=4096).parts
    assert need["weights"] + need["gradients"] + need["optimiser"] == 18 * 1_720_574_976
    assert need["teacher"] == 2 * 1_720_574_976
    # Two chunks in bfloat16 and eight in float32 of 256 × 151,936 logits; the head's gradient of 151,936 × 2,048.
    assert need["logits"] == 256 * 151_936 * (2 * 2 + 8 * 4) + 151_936 * 2048 * 4


def test_memory_of_training_an_adapter_is_sixteen_bytes_of_it_beside_frozen_weights(tmp_path: Path) -> None:
    model = without_weights(tmp_path / "qwen3", QWEN3_1_7B)
    assert model.shape is not None
    adapter = adapter_parameters(64, [(layer.inputs, layer.outputs) for layer in model.linears])
    # Rank 64 on q (2048→2048), k and v (2048→1024), o (2048→2048), gate and up (2048→6144), down (6144→2048), in 28
    # layers.
    assert adapter == 28 * 64 * (4096 + 2 * 3072 + 4096 + 2 * 8192 + 8192)
    need = training(model.shape, None, "bfloat16", tokens=4096, adapter=adapter).parts
    assert need["weights"] == 2 * 1_720_574_976 + 4 * adapter
    assert need["gradients"] + need["optimiser"] == 12 * adapter
    assert need["teacher"] == 0


def test_processes_that_share_the_weights_hold_a_part_each_and_what_computes_whole(tmp_path: Path) -> None:
    shape = without_weights(tmp_path / "qwen3", QWEN3_8B).shape
    assert shape is not None
    need = training(shape, shape, "bfloat16", tokens=4096, shards=8).parts
    parameters = 8_190_735_360
    assert need["weights"] == need["gradients"] == need["optimiser"] // 2 == 4 * parameters // 8
    assert need["teacher"] == 2 * parameters // 8
    # Both sides in bfloat16: head and embedding of 151,936 × 4,096, and two of 36 layers; the head's gradient in
    # bfloat16 and float32.
    head = 151_936 * 4096
    layer = (parameters - 2 * head) // 36
    assert need["whole while it computes"] == 2 * (2 * 2 * head + 2 * 2 * layer) + 6 * head


def test_an_eight_billion_student_with_the_longest_rows_fits_eight_devices_of_80_gb(
    write: Write, plan: Any, tmp_path: Path
) -> None:
    without_weights(tmp_path / "model", QWEN3_8B)
    recipe = write(
        student=str(tmp_path / "model"),
        sample={"max_tokens": 20000},
        refine={"max_tokens": 20000},
        distill={"max_length": 38912, "gradient_checkpointing": True},
        arms={"trd": {"method": "trd"}},
    )
    alone = plan(recipe, "--gpu-memory", 74.5, code=1)
    told(alone, "error", "memory", "distill", "and 74.5 GiB are there")
    shared = plan(recipe, "--gpu-memory", 74.5, "--fsdp", 8, code=0)
    told(shared, "ok", "memory", "distill", "on each of 8 processes")


def test_checkpointing_keeps_an_input_a_layer_and_the_insides_of_one() -> None:
    from trd_cli.planning.estimates import Shape, activations

    shape = Shape(parameters=0, vocabulary=10, width=8, layers=3, kv_width=4, inner=16)
    inside = 5 * (8 * 8 + 2 * 4 + 3 * 16) * 2
    assert activations(shape, "bfloat16", 5, checkpointing=False) == 3 * inside
    assert activations(shape, "bfloat16", 5, checkpointing=True) == inside + 3 * 5 * 8 * 2


def test_a_device_that_is_too_small_is_an_error(write: Write, plan: Any) -> None:
    findings = plan(write(), "--gpu-memory", 0.0001, code=1)
    assert {f["level"] for f in findings if f["topic"] == "memory"} == {"error"}
    told(findings, "error", "memory", "distill trd", "and 0.0 GiB are there")
    plan(write(), "--gpu-memory", 80, code=0)


def test_shards_are_no_larger_than_told_before_compression(rollouts: Path) -> None:
    rows = rows_of(rollouts)
    told = sum(
        row_bytes(
            len(row.prompt_token_ids),
            len(row.response_token_ids),
            sum(len(text or "") for text in (row.problem, row.reference_solution, row.tests)),
        )
        for row in rows
    )
    on_disk = sum(path.stat().st_size for path in list_shards(rollouts))
    assert on_disk < told < 4 * on_disk


def test_hours_are_tokens_by_the_given_rates(write: Write, plan: Any) -> None:
    findings = plan(write(eval=None), "--sample-rate", 2, "--train-rate", 1, code=0)
    # 12 problems of at most 32 tokens, sampled and refined; two arms train along as many.
    told(findings, "ok", "cost", "sample: at most 384 response tokens in 12 rows, 3.2 minutes at 2 tokens/s (given)")
    told(findings, "ok", "cost", "distill: at most 768 response tokens in 24 rows, 12.8 minutes at 1 tokens/s (given)")
    told(findings, "ok", "cost", "1 device ", "19.2 minutes", "0.3 device-hours", "100 % busy")


def hours_of(findings: Findings, devices: int) -> float:
    """Return the minutes of the schedule on so many devices."""
    (line,) = [f["what"] for f in findings if re.match(rf"{devices} devices? ", f["what"])]
    return float(re.search(r"([0-9.]+) minutes", line)[1])


def test_hours_shrink_with_the_devices_that_replicas_and_processes_use(write: Write, plan: Any) -> None:
    rates = ("--sample-rate", 2, "--train-rate", 1)
    alone = plan(write(eval=None), *rates, code=0)
    # Sampling and refining take 3.2 minutes each on one engine; the two arms train beside each other, 6.4 minutes each.
    assert (hours_of(alone, 1), hours_of(alone, 8)) == (19.2, 12.8)
    more = {"sample": {"max_tokens": 32, "replicas": "auto"}, "refine": {"max_tokens": 32, "replicas": 4}}
    many = plan(write(eval=None, processes=4, devices=[f"cuda:{i}" for i in range(4)], **more), *rates)
    assert (hours_of(many, 1), hours_of(many, 4), hours_of(many, 8)) == (19.2, 4.8, 2.8)


def test_replicas_and_processes_that_exceed_the_named_devices_are_errors(write: Write, plan: Any) -> None:
    sample = {"max_tokens": 32, "replicas": 3}
    findings = plan(write(devices=["cpu", "cpu"], sample=sample, processes=4, distill={"device": "auto"}), code=1)
    told(findings, "error", "recipe", "sample: 3 devices (replicas = 3", "of 2 (cpu, cpu)")
    told(findings, "error", "recipe", "distill trd, fkl: 4 devices (processes = 4) of 2")


def test_the_paper_s_largest_pair_needs_what_its_configuration_says(write: Write, plan: Any, tmp_path: Path) -> None:
    for name, sizes in (("student", QWEN3_1_7B), ("teacher", QWEN3_8B)):
        without_weights(tmp_path / name, sizes)
    recipe = write(
        setting="opd",
        student=str(tmp_path / "student"),
        teacher=str(tmp_path / "teacher"),
        refine={"max_tokens": 16384, "max_model_len": 34816},
    )
    findings = plan(recipe, "--gpu-memory", 80)
    told(findings, "ok", "models", "1,720,574,976 parameters, 40,960 tokens of context")
    told(findings, "ok", "memory", "refine", f"weights {16_381_470_720 / GIB:.1f} GiB")


def test_a_template_for_contexts_along_y_o_is_not_asked_of_arms_along_y_r(
    write: Write, plan: Any, tmp_path: Path
) -> None:
    template = tmp_path / "vanilla.jinja"
    template.write_text("{{ problem }} The reference says {{ reference_solution }}")
    findings = plan(write(distill={"prompt": str(template)}), code=0)
    along_y_o = told(findings, "ok", "lengths", "distill fkl")
    assert along_y_o != told(findings, "ok", "lengths", "distill trd")
