"""trd distill on tiny random models, through the commands: sample, refine, distill, and the checkpoint in use again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Trd
from support.launches import ENGINE, make_world
from support.sets import by_hand, iter_rows
from support.tiny import END, OTHER_END, SHAPE, build_model, reference_model, write_tokenizer

from trd_cli.models import fingerprint, resolve_model
from trd_cli.records import Trajectory
from trd_cli.trajectories.shards import list_shards, read_rows, write_shard

TRAIN = ("--dtype", "float32", "--device", "cpu")
OVERFIT = (*TRAIN, "--epochs", 12, "--lr", 1e-2, "--batch-size", 4)
ALONG_ROLLOUTS = ("--kind", "rollout", "--setting", "opd")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


@dataclass(frozen=True)
class World:
    """Two models of one family, and twelve trajectories of each kind. Tests read it and write elsewhere."""

    student: Path
    teacher: Path
    rollouts: Path
    by_teacher: Path
    by_student: Path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, ok: Trd) -> World:
    root = tmp_path_factory.mktemp("world")
    made = make_world(root, ok)
    return World(made.student, made.teacher, root / "y_o", made.by_teacher, made.by_student)


@pytest.fixture(scope="module")
def trained(world: World, ok: Trd, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkpoint trained long and fast enough to learn its twelve rows."""
    checkpoint = tmp_path_factory.mktemp("trained") / "checkpoint"
    assert ok("distill", world.by_teacher, *OVERFIT, "--out", checkpoint).stdout == f"{checkpoint}\n"
    return checkpoint


def log_of(checkpoint: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (checkpoint / "train.jsonl").read_text().splitlines()]


def run_json(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "run.json").read_text())


def weights(directory: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(directory / "model.safetensors")


def edited(source: Path, target: Path, change: Callable[[int, Trajectory], Trajectory]) -> Path:
    """Return a copy of a set with each row, counted from 0, replaced by the result of `change`."""
    shutil.copytree(source, target)
    number = 0
    for shard in list_shards(target):
        rows = read_rows(shard)
        write_shard(shard, [change(number + i, row) for i, row in enumerate(rows)])
        number += len(rows)
    return target


# The checkpoint


def test_transformers_loads_the_checkpoint_and_its_weights_have_moved(world: World, trained: Path) -> None:
    reference_model(trained)
    before, after = weights(world.student), weights(trained)
    assert before.keys() == after.keys()
    assert all(not after[name].equal(before[name]) for name in before)
    assert {x.dtype for x in after.values()} == {torch.float32}


def test_the_tokenizer_files_are_those_of_the_student_byte_for_byte(world: World, trained: Path) -> None:
    for name in TOKENIZER_FILES:
        assert (trained / name).read_bytes() == (world.student / name).read_bytes()
    before, after = (resolve_model(str(path)).tokenizer() for path in (world.student, trained))
    assert after.eos_ids == before.eos_ids == {END, OTHER_END}
    assert after.fingerprint() == before.fingerprint()


def test_a_next_round_samples_from_the_checkpoint(world: World, trained: Path, ok: Trd, tmp_path: Path) -> None:
    ok("data", "make", "arithmetic", "--n", 2, "--out", tmp_path / "p.parquet")
    ok("sample", "-m", trained, "-p", tmp_path / "p.parquet", "--round", 1, *ENGINE, "--out", tmp_path / "y_o")
    rows = list(iter_rows(list_shards(tmp_path / "y_o")))
    assert [row.error for row in rows] == [None, None]
    assert {row.model_revision for row in rows} == {fingerprint(trained)} != {fingerprint(world.student)}


def test_no_temporary_file_is_left(trained: Path) -> None:
    assert {path.name for path in trained.iterdir()} - {".lock", ".gate"} == {
        *TOKENIZER_FILES,
        *("config.json", "generation_config.json", "model.safetensors", "probe.json"),
        *("run.json", "sessions.jsonl", "train.jsonl"),
    }


def test_run_json_tells_what_was_trained_on_what(world: World, trained: Path) -> None:
    run = run_json(trained)
    source = run_json(world.by_teacher)
    assert run["command"] == "distill"
    assert run["inputs"] == [{"path": str(world.by_teacher), "digest": source["digest"], "command": "refine"}]
    assert run["identity"]["inputs"] == [source["digest"]]
    assert run["identity"]["student_revision"] == fingerprint(world.student)
    assert run["identity"]["teacher_revision"] == fingerprint(world.teacher)
    assert (run["about"]["student"], run["about"]["teacher"]) == (str(world.student), str(world.teacher))
    assert (run["about"]["finished"], run["about"]["trajectories"], run["about"]["steps"]) == (True, 12, 36)
    assert run["config"]["learning_rate"] == 1e-2


def test_the_log_has_one_line_a_step_and_the_loss_falls(world: World, trained: Path) -> None:
    log = log_of(trained)
    assert [line["step"] for line in log] == list(range(1, 37))
    assert {line["trajectories"] for line in log} == {4}
    tokens = sum(len(row.response_token_ids) for row in iter_rows(list_shards(world.by_teacher)))
    assert sum(line["response_tokens"] for line in log) == 12 * tokens == run_json(trained)["about"]["tokens"]
    losses = [line["loss"] for line in log]
    first, last = sum(losses[:3]) / 3, sum(losses[-3:]) / 3
    assert last < 0.5 * first
    assert (run_json(trained)["about"]["first_loss"], run_json(trained)["about"]["last_loss"]) == (
        losses[0],
        losses[-1],
    )
    assert all(line["grad_norm"] > 0 and line["seconds"] >= 0 for line in log)


def test_the_rate_rises_to_its_peak_and_falls_to_its_share_of_it(trained: Path) -> None:
    rates = [line["learning_rate"] for line in log_of(trained)]
    # A tenth of 36 steps rises: 4 steps.
    assert rates[:4] == pytest.approx([0.0025, 0.005, 0.0075, 0.01])
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert rates[-1] == pytest.approx(0.001)


# The loss


def test_a_teacher_equal_to_the_student_in_an_equal_context_teaches_nothing(
    world: World, ok: Trd, tmp_path: Path
) -> None:
    ok(
        "distill",
        world.rollouts,
        *TRAIN,
        *ALONG_ROLLOUTS,
        "--teacher",
        world.student,
        "--lr",
        1e-3,
        "--out",
        tmp_path / "c",
    )
    (line,) = log_of(tmp_path / "c")
    assert 0 <= line["loss"] <= 1e-6
    # AdamW's weight decay alone moves the weights: by the rate times the decay.
    for name, tensor in weights(world.student).items():
        decayed = tensor * (1 - 1e-3 * 0.005)
        torch.testing.assert_close(weights(tmp_path / "c")[name], decayed, rtol=1e-6, atol=1e-8)


def test_without_weight_decay_such_a_student_keeps_its_weights_to_the_bit(
    world: World, ok: Trd, tmp_path: Path
) -> None:
    options = ("--lr", 1e-2, "--weight-decay", 0, "--epochs", 3, "--batch-size", 5)
    ok(
        "distill",
        world.rollouts,
        *TRAIN,
        *ALONG_ROLLOUTS,
        "--teacher",
        world.student,
        *options,
        "--out",
        tmp_path / "c",
    )
    after = weights(tmp_path / "c")
    assert all(tensor.equal(after[name]) for name, tensor in weights(world.student).items())


def test_the_first_loss_is_the_kl_of_the_two_models_along_the_responses(world: World, trained: Path) -> None:
    student, teacher = reference_model(world.student), reference_model(world.teacher)
    rows = {row.trajectory_id: row for row in iter_rows(list_shards(world.by_teacher))}

    def logprobs(model: Any, prompt: list[int], response: list[int]) -> torch.Tensor:
        with torch.no_grad():
            return model(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)

    means = []
    for row in rows.values():
        student_TV = logprobs(student, row.student_prompt_token_ids, row.response_token_ids)
        teacher_TV = logprobs(teacher, row.prompt_token_ids, row.response_token_ids)
        means.append((teacher_TV.exp() * (teacher_TV - student_TV)).sum(-1).mean().item())
    # Rates are above zero from the first step on, so only the first step's four rows see the starting weights.
    first = log_of(trained)[0]["loss"]
    assert min(means) < first < max(means)
    assert any(
        abs(first - (a + b + c + d) / 4) < 1e-4
        for i, a in enumerate(means)
        for j, b in enumerate(means[:i])
        for k, c in enumerate(means[:j])
        for d in means[:k]
    )


@pytest.mark.parametrize(
    "option",
    [
        ("--max-tokens-per-batch", 1),
        ("--max-tokens-per-batch", 600),
        ("--gradient-checkpointing",),
        ("--attn-implementation", "eager"),
    ],
)
def test_what_only_changes_memory_changes_no_loss(
    world: World, trained: Path, ok: Trd, tmp_path: Path, option: tuple[Any, ...]
) -> None:
    two_epochs = (*TRAIN, "--epochs", 2, "--lr", 1e-2, "--batch-size", 4)
    ok("distill", world.by_teacher, *two_epochs, "--out", tmp_path / "plain")
    ok("distill", world.by_teacher, *two_epochs, *option, "--out", tmp_path / "other")
    plain, other = ([line["loss"] for line in log_of(tmp_path / name)] for name in ("plain", "other"))
    assert other == pytest.approx(plain, rel=1e-4)
    assert run_json(tmp_path / "plain")["digest"] == run_json(tmp_path / "other")["digest"]


def test_the_same_command_gives_the_same_weights(world: World, ok: Trd, tmp_path: Path) -> None:
    for name in ("one", "two"):
        ok("distill", world.by_teacher, *TRAIN, "--batch-size", 5, "--out", tmp_path / name)
    assert (tmp_path / "one/model.safetensors").read_bytes() == (tmp_path / "two/model.safetensors").read_bytes()


def test_bfloat16_is_the_default_and_close_to_float32(world: World, ok: Trd, tmp_path: Path) -> None:
    ok("distill", world.by_teacher, *TRAIN, "--out", tmp_path / "float32")
    ok("distill", world.by_teacher, "--device", "cpu", "--out", tmp_path / "default")
    exact, default = (log_of(tmp_path / name)[0]["loss"] for name in ("float32", "default"))
    assert default == pytest.approx(exact, rel=0.02)
    assert default != exact
    assert {x.dtype for x in weights(tmp_path / "default").values()} == {torch.float32}


def test_save_dtype_is_that_of_the_start_unless_it_is_given(world: World, ok: Trd, tmp_path: Path) -> None:
    half = shutil.copytree(world.student, tmp_path / "half")
    reference_model(world.student).bfloat16().save_pretrained(half)
    saved = {}
    for name, student, option in (
        ("as it was", half, ()),
        ("float32", half, ("--save-dtype", "float32")),
        ("bfloat16", world.student, ("--save-dtype", "bfloat16")),
    ):
        ok("distill", world.by_teacher, *TRAIN, "--model", student, *option, "--out", tmp_path / name)
        saved[name] = {x.dtype for x in weights(tmp_path / name).values()}
    assert saved == {"as it was": {torch.bfloat16}, "float32": {torch.float32}, "bfloat16": {torch.bfloat16}}


def test_tied_embeddings_stay_tied(ok: Trd, tmp_path: Path) -> None:
    tied = build_model(tmp_path / "tied", tie_word_embeddings=True)
    ok("data", "make", "arithmetic", "--n", 2, "--out", tmp_path / "p.parquet")
    ok("sample", "-m", tied, "-p", tmp_path / "p.parquet", *ENGINE, "--out", tmp_path / "y_o")
    ok("distill", tmp_path / "y_o", *TRAIN, "--setting", "opsd", "--lr", 1e-2, "--out", tmp_path / "c")
    after = reference_model(tmp_path / "c")
    assert after.get_output_embeddings().weight is after.get_input_embeddings().weight
    assert "lm_head.weight" not in weights(tmp_path / "c")
    assert not after.get_output_embeddings().weight.equal(reference_model(tied).get_output_embeddings().weight)


# The two contexts


def first_trained(directory: Path) -> Trajectory:
    """Return the first row in the order of training, which is that of the ids and not of the shards."""
    return min(iter_rows(list_shards(directory)), key=lambda row: row.trajectory_id)


def preview(ok: Trd, *arguments: Any) -> tuple[str, str, str]:
    """Return the parts of --dry-run for the first row: the student's context, the teacher's, and the response."""
    said = ok("distill", *arguments, *TRAIN, "--dry-run").stderr
    _, _, rest = said.partition("student reads (")
    student, _, rest = rest.partition("teacher reads (")
    teacher, _, rest = rest.partition("both score (")
    return student, teacher, rest.partition("would train")[0]


def test_the_student_reads_its_own_prompt_and_the_teacher_the_refinement_prompt(world: World, ok: Trd) -> None:
    first = first_trained(world.by_student)
    student, teacher, _ = preview(ok, world.by_student)
    assert first.problem in student
    assert first.problem in teacher
    assert first.reference_solution in teacher
    assert first.reference_solution not in student
    assert student.startswith(f"{len(first.student_prompt_token_ids)} tokens")
    assert teacher.startswith(f"{len(first.prompt_token_ids)} tokens")


def test_along_rollouts_only_the_opsd_teacher_reads_the_reference(world: World, ok: Trd) -> None:
    reference = first_trained(world.rollouts).reference_solution
    student, teacher, _ = preview(ok, world.rollouts, *ALONG_ROLLOUTS, "--teacher", world.teacher)
    assert student == teacher
    student, teacher, _ = preview(ok, world.rollouts, "--setting", "opsd")
    assert reference in teacher
    assert reference not in student


def test_the_teacher_is_the_model_that_refined_and_for_opsd_the_student(world: World, ok: Trd) -> None:
    for refined, teacher in ((world.by_teacher, world.teacher), (world.by_student, world.student)):
        said = ok("distill", refined, *TRAIN, "--dry-run").stderr
        assert f"would train {world.student} towards {teacher} on 12 trajectories" in said


def test_refined_rows_are_taken_where_there_are_any(world: World, ok: Trd) -> None:
    said = ok("distill", world.rollouts, world.by_student, *TRAIN, "--model", world.student, "--dry-run").stderr
    assert "on 12 trajectories" in said
    both = (world.rollouts, world.by_student, "--kind", "rollout", "--setting", "opsd")
    assert preview(ok, *both) == preview(ok, world.rollouts, "--setting", "opsd")


@pytest.mark.parametrize(
    ("tail", "finish_reason", "trained_on"),
    [([], "length", 5), ([], "stop", 6), ([END], "stop", 6), ([OTHER_END], "stop", 6)],
    ids=["truncated", "ended, ids from text", "ended", "ended otherwise"],
)
def test_a_finished_response_is_trained_on_with_its_end_and_a_truncated_one_without(
    world: World, ok: Trd, tmp_path: Path, tail: list[int], finish_reason: Any, trained_on: int
) -> None:
    def cut(_: int, row: Trajectory) -> Trajectory:
        return replace(row, response_token_ids=[20, 21, 22, 23, 24, *tail], finish_reason=finish_reason, logprobs=None)

    source = edited(world.by_teacher, tmp_path / "cut", cut)
    ok("distill", source, *TRAIN, "--out", tmp_path / "c")
    assert log_of(tmp_path / "c")[0]["response_tokens"] == 12 * trained_on
    assert preview(ok, source)[2].startswith(f"{trained_on} tokens")


# Rows left out, and refusals


def test_rows_that_ended_as_errors_are_left_out(world: World, ok: Trd, tmp_path: Path) -> None:
    def fail(number: int, row: Trajectory) -> Trajectory:
        empty = {"response": None, "response_token_ids": None, "logprobs": None, "finish_reason": None}
        return replace(row, error="engine fault", **empty) if number in (2, 7, 8) else row

    source = edited(world.by_teacher, tmp_path / "faulty", fail)
    result = ok("distill", source, *TRAIN, "--out", tmp_path / "c")
    assert "left out 3 of 12 rows: no response" in result.stderr
    assert log_of(tmp_path / "c")[0]["trajectories"] == 9


def lengths_of(rows: list[Trajectory]) -> list[int]:
    return [len(row.prompt_token_ids) + len(row.response_token_ids) for row in rows]


def test_longer_rows_are_left_out_where_overflow_is_an_error(world: World, ok: Trd, trd: Trd, tmp_path: Path) -> None:
    lengths = sorted(lengths_of(list(iter_rows(list_shards(world.by_student)))))
    limit = lengths[6]
    longer = sum(n > limit for n in lengths)
    assert 0 < longer < 12
    strict = (*TRAIN, "--overflow", "error")
    result = ok("distill", world.by_student, *strict, "--max-length", limit, "--out", tmp_path / "c")
    assert f"left out {longer} of 12 rows: the teacher's context and the response" in result.stderr
    assert log_of(tmp_path / "c")[0]["trajectories"] == 12 - longer
    refused = trd("distill", world.by_student, *strict, "--max-length", 10, "--out", tmp_path / "none")
    assert refused.exit_code == 1
    assert "0 of 12 rows can be trained on" in refused.stderr
    assert not (tmp_path / "none").exists()


def test_rollouts_without_a_reference_are_left_out_of_opsd(world: World, ok: Trd, tmp_path: Path) -> None:
    source = edited(
        world.rollouts,
        tmp_path / "bare",
        lambda number, row: replace(row, reference_solution=None) if number < 4 else row,
    )
    said = ok("distill", source, *TRAIN, "--setting", "opsd", "--out", tmp_path / "c").stderr
    assert "left out 4 of 12 rows: no reference solution" in said


def with_verdicts(world: World, tmp_path: Path) -> Path:
    """Return rollouts that are wrong, and refined rows of which the first three are right."""
    wrong = edited(world.rollouts, tmp_path / "y_o", lambda _, row: replace(row, verdict="incorrect"))
    refined = edited(
        world.by_teacher,
        tmp_path / "y_r",
        lambda number, row: replace(row, verdict="correct" if number < 3 else "incorrect"),
    )
    by_hand(refined / "run.json", lambda run: run["inputs"][0].update(path=str(wrong)))
    return refined


@pytest.mark.parametrize(
    ("options", "count"),
    [
        (("--subset", "correct"), 3),
        (("--subset", "repaired"), 3),
        (("--subset", "unrepaired"), 9),
        (("--where", "sample_index = 0"), 6),
        (("--subset", "incorrect", "--where", "sample_index = 0 AND parent_verdict = 'incorrect'"), None),
    ],
)
def test_only_the_rows_of_the_subset_are_trained_on(
    world: World, ok: Trd, tmp_path: Path, options: tuple[str, ...], count: int | None
) -> None:
    refined = with_verdicts(world, tmp_path)
    if count is None:
        chosen = [r for r in iter_rows(list_shards(refined)) if r.verdict == "incorrect" and r.sample_index == 0]
        count = len(chosen)
    assert f"on {count} trajectories" in ok("distill", refined, *TRAIN, *options, "--dry-run").stderr


def refusal(result: Any) -> str:
    """Return the one line in which a refused command ends."""
    assert result.exit_code == 1, result.stderr
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if "error:" in line]
    assert lines == result.stderr.splitlines()[-1:], "the error should be the one last line"
    return lines[0]


@pytest.mark.parametrize("subset", ["broken", "kept"])
def test_an_empty_subset_is_refused(world: World, trd: Trd, tmp_path: Path, subset: str) -> None:
    line = refusal(trd("distill", with_verdicts(world, tmp_path), *TRAIN, "--subset", subset, "--out", tmp_path / "c"))
    assert "is in the subset" in line


@pytest.mark.parametrize("subset", ["correct", "repaired"])
def test_a_subset_by_verdicts_that_nobody_gave_names_trd_verify(
    world: World, trd: Trd, tmp_path: Path, subset: str
) -> None:
    line = refusal(trd("distill", world.by_teacher, *TRAIN, "--subset", subset, "--out", tmp_path / "c"))
    assert "trd verify" in line


def files_of(directory: Path) -> dict[str, tuple[int, bytes]]:
    """Return the time of writing and the content of each file, except those that every start touches."""
    paths = (path for path in directory.iterdir() if path.name not in (".lock", "run.json"))
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in paths}


def test_a_finished_run_run_again_does_nothing_and_prints_its_path(world: World, ok: Trd, tmp_path: Path) -> None:
    command = ("distill", world.by_teacher, *TRAIN, "--out", tmp_path / "c")
    ok(*command)
    before = files_of(tmp_path / "c")
    again = ok(*command)
    assert again.stdout == f"{tmp_path / 'c'}\n"
    assert "loading" not in again.stderr
    assert files_of(tmp_path / "c") == before
    assert run_json(tmp_path / "c")["about"]["finished"]


@pytest.mark.parametrize(
    ("option", "named"),
    [
        (("--lr", 1e-3), "learning_rate"),
        (("--epochs", 2), "epochs"),
        (("--teacher", "STUDENT"), "teacher_revision"),
        (("--where", "sample_index = 0"), "rows"),
    ],
)
def test_a_directory_of_another_configuration_is_refused_and_the_difference_named(
    world: World, trained: Path, trd: Trd, option: tuple[Any, ...], named: str
) -> None:
    given = [world.student if value == "STUDENT" else value for value in option]
    line = refusal(trd("distill", world.by_teacher, *OVERFIT, *given, "--out", trained))
    assert f"{named} (" in line
    assert "--out" in line


def test_a_run_that_was_cut_off_starts_again(world: World, ok: Trd, tmp_path: Path) -> None:
    ok("distill", world.by_teacher, *TRAIN, "--batch-size", 4, "--out", tmp_path / "whole")
    cut = shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    by_hand(cut / "run.json", lambda run: run.update(about={}))
    (cut / "train.jsonl").write_text(json.dumps(log_of(cut)[0]) + "\n")
    (cut / "model.safetensors").unlink()
    ok("distill", world.by_teacher, *TRAIN, "--batch-size", 4, "--out", cut)
    assert run_json(cut)["about"]["finished"]
    assert [line["loss"] for line in log_of(cut)] == [line["loss"] for line in log_of(tmp_path / "whole")]
    assert (cut / "model.safetensors").read_bytes() == (tmp_path / "whole/model.safetensors").read_bytes()


@pytest.mark.parametrize("missing", ["finished mark", "weights as well"])
def test_an_unfinished_checkpoint_is_refused_as_a_model(
    world: World, trained: Path, trd: Trd, tmp_path: Path, missing: str
) -> None:
    cut = shutil.copytree(trained, tmp_path / "cut")
    by_hand(cut / "run.json", lambda run: run["about"].pop("finished"))
    if missing == "weights as well":
        (cut / "config.json").unlink()
        (cut / "model.safetensors").unlink()
    for command in (("eval", cut, "--bench", "arithmetic:n=2"), ("distill", world.by_teacher, "--model", cut)):
        line = refusal(trd(*command, "--out", tmp_path / "out"))
        assert "unfinished checkpoint" in line
        assert "trd distill" in line


@pytest.fixture
def stranger(world: World, tmp_path: Path) -> Path:
    """Return a model with the teacher's weights whose tokenizer gives some ids to other tokens."""
    directory = shutil.copytree(world.teacher, tmp_path / "stranger")
    write_tokenizer(directory, merges=tuple((a, b) for a in "abcd" for b in "eghij"))
    return directory


@pytest.mark.parametrize("role", ["--teacher", "--model"])
def test_models_of_two_tokenizers_are_refused(
    world: World, stranger: Path, trd: Trd, tmp_path: Path, role: str
) -> None:
    line = refusal(trd("distill", world.by_teacher, *TRAIN, role, stranger, "--out", tmp_path / "c"))
    assert "tokenizer" in line


def test_two_models_that_agree_but_did_not_write_the_rows_are_refused(
    world: World, stranger: Path, trd: Trd, tmp_path: Path
) -> None:
    both = ("--model", stranger, "--teacher", stranger)
    assert "is not the one that wrote" in refusal(
        trd("distill", world.by_teacher, *TRAIN, *both, "--out", tmp_path / "c")
    )


def test_the_scripted_model_has_nothing_to_train(rollouts: Path, world: World, trd: Trd, tmp_path: Path) -> None:
    line = refusal(trd("distill", rollouts, "--setting", "opsd", "--out", tmp_path / "c"))
    assert "scripted has no weights to train" in line
    line = refusal(trd("distill", world.by_teacher, "--teacher", "scripted", "--out", tmp_path / "c"))
    assert "scripted has no weights to train" in line


def test_rollouts_need_a_teacher_or_a_setting(world: World, trd: Trd, tmp_path: Path) -> None:
    line = refusal(trd("distill", world.rollouts, *TRAIN, "--out", tmp_path / "c"))
    assert "--teacher MODEL, or --setting opsd" in line


@pytest.mark.parametrize("batch_size", [4, 6], ids=["early on", "in the last step"])
def test_a_step_that_is_not_finite_ends_the_run_and_leaves_no_checkpoint(
    world: World, trd: Trd, tmp_path: Path, batch_size: int
) -> None:
    options = (*TRAIN, "--batch-size", batch_size, "--lr", 1e30, "--max-grad-norm", 1e9)
    line = refusal(trd("distill", world.by_teacher, *options, "--out", tmp_path / "c"))
    assert "at step 2; expected finite ones" in line
    assert "lower --lr" in line
    assert len(log_of(tmp_path / "c")) == 1
    assert not (tmp_path / "c" / "config.json").exists()
    evaluated = trd("eval", tmp_path / "c", "--bench", "arithmetic:n=2", "--out", tmp_path / "e")
    assert "unfinished" in refusal(evaluated)


@pytest.mark.parametrize("device", ["no_such_device", "cuda:7"])
def test_a_device_that_is_not_there_is_refused(world: World, trd: Trd, tmp_path: Path, device: str) -> None:
    line = refusal(trd("distill", world.by_teacher, "--device", device, "--out", tmp_path / "c"))
    assert f"--device {device}" in line


def test_weights_that_cannot_be_read_are_refused(world: World, trd: Trd, tmp_path: Path) -> None:
    broken = shutil.copytree(world.student, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes((world.student / "model.safetensors").read_bytes()[:2000])
    line = refusal(trd("distill", world.by_teacher, *TRAIN, "--model", broken, "--out", tmp_path / "c"))
    assert f"cannot load {broken}" in line


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("Gemma2Config", {"query_pre_attn_scalar": 8}),
        ("CohereConfig", {}),
        ("GraniteConfig", {"logits_scaling": 8.0}),
        ("FalconH1Config", {"lm_head_multiplier": 0.5, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8}),
        ("PhiConfig", {}),
    ],
)
def test_a_model_whose_logits_are_more_than_its_heads_output_is_refused(
    world: World, trd: Trd, tmp_path: Path, name: str, changes: dict[str, Any]
) -> None:
    import transformers

    config = getattr(transformers, name)(**{**SHAPE, **changes})
    model = build_model(tmp_path / "model", config=config)
    line = refusal(trd("distill", world.by_teacher, *TRAIN, "--teacher", model, "--out", tmp_path / "c"))
    assert "transforms its logits" in line or "has a bias on its output head" in line


def test_a_second_round_keeps_its_own_log_and_takes_nothing_but_the_model_along(
    world: World, trained: Path, ok: Trd, tmp_path: Path
) -> None:
    (trained / "notes.txt").write_text("not part of a model\n")
    second = tmp_path / "second"
    ok("distill", world.by_student, *TRAIN, "--model", trained, "--epochs", 2, "--batch-size", 12, "--out", second)
    assert [record["step"] for record in log_of(second)] == [1, 2]
    assert not (second / "notes.txt").exists()
    assert all((second / name).is_file() for name in TOKENIZER_FILES)


def test_a_run_that_died_while_saving_is_run_again(world: World, ok: Trd, tmp_path: Path) -> None:
    arguments = ("distill", world.by_student, *TRAIN, "--out", tmp_path / "checkpoint")
    ok(*arguments)
    by_hand(tmp_path / "checkpoint" / "run.json", lambda run: run["about"].pop("finished"))
    (tmp_path / "checkpoint" / ".saving.tmp").mkdir()
    (tmp_path / "checkpoint" / ".saving.tmp" / "model.safetensors").write_bytes(b"half")
    ok(*arguments)
    assert run_json(tmp_path / "checkpoint")["about"]["finished"]
    reference_model(tmp_path / "checkpoint")


def test_sets_that_were_made_differently_are_not_trained_on_together(world: World, trd: Trd, tmp_path: Path) -> None:
    result = trd("distill", world.by_teacher, world.by_student, *TRAIN, "--out", tmp_path / "checkpoint")
    assert result.exit_code == 1
    assert "differ in model, model_revision, setting" in result.stderr


def test_rollouts_beside_refined_rows_are_left_alone(world: World, ok: Trd) -> None:
    alone = ok("distill", world.by_student, *TRAIN, "--dry-run").stderr
    assert (
        ok("distill", world.rollouts, world.by_student, *TRAIN, "--dry-run").stderr.split("into")[0]
        == alone.split("into")[0]
    )


def test_a_student_that_has_changed_since_it_was_sampled_is_not_trained_unasked(
    world: World, trd: Trd, tmp_path: Path
) -> None:
    refined = edited(world.by_student, tmp_path / "y_r", lambda _, row: row)
    by_hand(refined / "run.json", lambda run: run["about"].update(student_revision="0" * 16))
    result = trd("distill", refined, *TRAIN, "--out", tmp_path / "checkpoint")
    assert result.exit_code == 1
    assert "0000000000000000, which made" in result.stderr
    assert trd("distill", refined, *TRAIN, "--model", world.student, "--out", tmp_path / "c").exit_code == 0
