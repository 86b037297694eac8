"""Contexts of student and teacher and the tokens that count: ends of turn, masks, and the cutting of long rows."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pytest
from conftest import Trd
from support.sets import by_hand, by_id, rows_of
from support.tiny import END, OTHER_END, SPECIALS, build_model, set_eos, with_normalizer, write_tokenizer

from trd_cli.config.training import DistillConfig
from trd_cli.errors import InputError, PromptError
from trd_cli.models import resolve_model
from trd_cli.progress import SilentProgress
from trd_cli.prompting.templates import load_template
from trd_cli.prompting.tokens import Tokenizer
from trd_cli.records import AUTHORS, Trajectory
from trd_cli.training.batches import Example
from trd_cli.training.examples import Contexts
from trd_cli.training.reading import choose, write_examples
from trd_cli.trajectories.sets import open_sets
from trd_cli.trajectories.shards import list_shards, read_rows, shard_path, write_shard

Setting = Literal["opd", "opsd"]
ENGINE = ("--engine", "transformers", "--dtype", "float32", "--device", "cpu", "--max-tokens", 12)
TRAIN = ("--dtype", "float32", "--device", "cpu")
START, ROWS = SPECIALS.index("<|start|>"), 6


def long_attempt(number: int) -> str:
    return f"Row {number}. " + "First the hours, then the sum of the others.\n\n" * (3 + number)


def with_attempts(source: Path, target: Path, tokenizer: Tokenizer, attempt: Callable[[int], str]) -> Path:
    """Return a copy of a set of rollouts in which row i, counted from 0, is the attempt i, finished."""
    shutil.copytree(source, target)
    number = 0
    for shard in list_shards(target):
        rows = []
        for row in read_rows(shard):
            ids = [*tokenizer.encode(attempt(number)), END]
            rows.append(
                replace(row, response=attempt(number), response_token_ids=ids, logprobs=None, finish_reason="stop")
            )
            number += 1
        write_shard(shard, rows)
    return target


@dataclass(frozen=True)
class World:
    """Two models of one family; six long attempts, and the rows that each of two teachers made of them. Only read."""

    student: Path
    teacher: Path
    rollouts: Path
    opd: Path
    opsd: Path

    def of(self, stage: str, setting: Setting) -> Path:
        return self.rollouts if stage == "rollout" else getattr(self, setting)

    def teacher_of(self, setting: Setting) -> Path:
        return self.student if setting == "opsd" else self.teacher

    @property
    def tokenizer(self) -> Tokenizer:
        return resolve_model(str(self.student)).tokenizer()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, ok: Trd) -> World:
    root = tmp_path_factory.mktemp("world")
    made = World(
        build_model(root / "student"), build_model(root / "teacher", seed=1), root / "y_o", root / "opd", root / "opsd"
    )
    problems = root / "problems.parquet"
    ok("data", "make", "arithmetic", "--n", 3, "--level", 2, "--out", problems)
    ok("sample", "-m", made.student, "-p", problems, "-n", 2, *ENGINE, "--out", root / "sampled")
    with_attempts(root / "sampled", made.rollouts, made.tokenizer, long_attempt)
    ok("refine", made.rollouts, "--setting", "opd", "--teacher", made.teacher, *ENGINE, "--out", made.opd)
    ok("refine", made.rollouts, "--setting", "opsd", *ENGINE, "--out", made.opsd)
    return made


@dataclass(frozen=True)
class Shown:
    """An example with its ids as lists."""

    student_prompt: list[int]
    teacher_prompt: list[int]
    response_ids: list[int]
    scored: list[int]
    parent_verdict: str | None

    @classmethod
    def of(cls, e: Example) -> Shown:
        ids = (x.tolist() for x in (e.student_prompt, e.teacher_prompt, e.response_ids, e.scored))
        return cls(*ids, e.parent_verdict)


@dataclass(frozen=True)
class Made:
    """Examples by the ids of their rows, and the notes that were written while they were made."""

    examples: Mapping[str, Shown]
    notes: Sequence[str]


def examples_of(
    world: World,
    directory: Path,
    rows: Sequence[Trajectory] | None = None,
    student: Path | None = None,
    teacher: Path | None = None,
    progress: SilentProgress | None = None,
    **options: Any,
) -> Made:
    """Return the examples that a run would train on, from the set's own rows unless others are given."""
    progress = progress or SilentProgress()
    models = (resolve_model(str(student or world.student)), resolve_model(str(teacher or world.teacher)))
    with tempfile.TemporaryDirectory() as scratch, tempfile.TemporaryFile() as file:
        if rows is not None:
            shutil.copy(directory / "run.json", scratch)
            write_shard(shard_path(Path(scratch), 0), rows)
            directory = Path(scratch)
        config = DistillConfig.parse({"inputs": (str(directory),), **options})
        chosen = choose(config, open_sets([str(directory)]))
        contexts = Contexts(config, chosen.sets[0], *models, progress)
        made = write_examples(config, chosen, contexts, "", file, progress)
        return Made({e.trajectory_id: Shown.of(e) for e in made}, [*progress.notes, *made.about["notes"]])


def content_of(world: World, token_ids: Sequence[int]) -> str:
    """Return the one user message of a prompt."""
    text = world.tokenizer.decode(token_ids)
    assert text.startswith("user\n")
    assert text.endswith("\nassistant\n")
    return text.removeprefix("user\n").removesuffix("\nassistant\n")


def message(kind: str, row: Trajectory, attempt: str, reference: str | None = None, prompt: Path | None = None) -> str:
    """Return the message of a built-in template, or of `prompt`, for a row with this attempt.

    `reference` replaces the row's own.
    """
    values = {
        "problem": row.problem,
        "attempt": attempt,
        "reference_solution": row.reference_solution if reference is None else reference,
        "reference_answer": row.reference_answer or "",
    }
    (only,) = load_template(kind, row.task, str(prompt) if prompt else None).render(values)
    return only["content"]


def prompt_ids(world: World, content: str) -> list[int]:
    return world.tokenizer.render([{"role": "user", "content": content}], "chat", {})


def is_cut_from_its_tails(kind: str, row: Trajectory, attempt: str, content: str) -> bool:
    """Return True if a message lost only the tail of the attempt, and of the reference after the whole attempt."""
    reference = row.reference_solution or ""
    lost = len(message(kind, row, attempt)) - len(content)
    if not kind.startswith("refine"):
        attempt = ""
    if lost <= len(attempt):
        return content == message(kind, row, attempt[: len(attempt) - lost])
    return content == message(kind, row, "", reference[: len(reference) + len(attempt) - lost])


# The teacher's context


@pytest.mark.parametrize("setting", ["opd", "opsd"])
@pytest.mark.parametrize("context", ["refine", "vanilla"])
@pytest.mark.parametrize("stage", ["refined", "rollout"])
def test_the_teacher_reads_the_context_that_is_asked_for(
    world: World, stage: str, context: str, setting: Setting
) -> None:
    directory = world.of(stage, setting)
    # Refined rows carry their setting; rollouts use the given one.
    options = {"setting": setting} if stage == "rollout" else {}
    made = examples_of(world, directory, teacher=world.teacher_of(setting), teacher_context=context, **options)
    rollouts = by_id(world.rollouts)
    assert made.examples.keys() == by_id(directory).keys()
    assert not made.notes
    for identity, row in by_id(directory).items():
        example, rollout = made.examples[identity], rollouts[row.parent_id or identity]
        read = content_of(world, example.teacher_prompt)
        assert read == message(f"{context}-{setting}", row, rollout.response)
        assert (rollout.response in read) == (context == "refine")
        assert (row.reference_solution in read) == (setting == "opsd")
        # The student reads its own prompt, whatever the teacher reads.
        assert example.student_prompt == list(rollout.prompt_token_ids)


def test_unasked_the_teacher_reads_the_attempt_along_refined_rows_alone(world: World) -> None:
    for stage, usual in (("refined", "refine"), ("rollout", "vanilla")):
        directory = world.of(stage, "opd")
        asked = examples_of(world, directory, teacher_context=usual)
        assert examples_of(world, directory).examples == asked.examples


def test_along_refined_rows_the_teacher_reads_the_very_ids_it_was_asked_with(world: World) -> None:
    made = examples_of(world, world.opd)
    for identity, row in by_id(world.opd).items():
        assert made.examples[identity].teacher_prompt == list(row.prompt_token_ids)


def test_the_option_of_the_command_reaches_the_teachers_context(world: World, ok: Trd) -> None:
    first = min(rows_of(world.opd), key=lambda row: row.trajectory_id)
    attempt = by_id(world.rollouts)[first.parent_id].response
    for context in ("refine", "vanilla"):
        said = ok("distill", world.opd, *TRAIN, "--teacher-context", context, "--dry-run").stderr
        read = said.partition("teacher reads (")[2].partition("both score (")[0]
        assert first.problem in read
        assert (attempt in read) == (context == "refine")


def test_examples_do_not_depend_on_the_order_in_which_rows_were_stored(world: World) -> None:
    backwards = examples_of(world, world.opd, rows=rows_of(world.opd)[::-1])
    assert list(backwards.examples.items()) == list(examples_of(world, world.opd).examples.items())


# The end of turn


FINISHED = {"finish_reason": "stop", "logprobs": None}
TRUNCATED = {"finish_reason": "length", "logprobs": None}


def response_of(world: World, response: list[int], finish: dict[str, Any], **options: Any) -> Shown:
    """Return the example of a refined row with this response."""
    row = replace(rows_of(world.opd)[0], response_token_ids=response, **finish)
    return examples_of(world, world.opd, rows=[row], **options).examples[row.trajectory_id]


@pytest.mark.parametrize(
    ("response", "finish", "with_end", "without"),
    [
        ([20, 21, END], FINISHED, [20, 21, END], [20, 21]),
        ([20, 21], FINISHED, [20, 21, END], [20, 21]),
        ([20, 21], TRUNCATED, [20, 21], [20, 21]),
    ],
    ids=["finished", "finished, ids from text", "truncated"],
)
def test_no_eos_drops_the_end_of_a_finished_response_and_leaves_a_truncated_one_alone(
    world: World, response: list[int], finish: dict[str, Any], with_end: list[int], without: list[int]
) -> None:
    for eos, expected in ((True, with_end), (False, without)):
        example = response_of(world, response, finish, eos=eos)
        assert (example.response_ids, list(example.scored)) == (expected, list(range(len(expected))))


def test_no_eos_leaves_out_a_response_that_is_nothing_but_its_end(world: World) -> None:
    first, *others = rows_of(world.opd)
    bare = replace(first, response="", response_token_ids=[END], **FINISHED)
    made = examples_of(world, world.opd, rows=[bare, *others], eos=False)
    assert made.examples.keys() == {row.trajectory_id for row in others}
    assert any("left out 1 of 6 rows" in note for note in made.notes)


@pytest.fixture
def two_ends(world: World, tmp_path: Path) -> Path:
    """Return a model with the teacher's weights and tokens and a second end of turn."""
    directory = shutil.copytree(world.teacher, tmp_path / "two-ends")
    set_eos(directory, [END, OTHER_END])
    return directory


def test_ends_of_turn_that_differ_are_said_and_the_teachers_is_replaced_by_the_students(
    world: World, two_ends: Path
) -> None:
    row = replace(rows_of(world.opd)[0], response_token_ids=[20, 21, OTHER_END], **FINISHED)
    made = examples_of(world, world.opd, rows=[row], teacher=two_ends)
    (note,) = made.notes
    assert f"{world.student} ends a response with {END}, {two_ends} with {END}, {OTHER_END}" in note
    assert made.examples[row.trajectory_id].response_ids == [20, 21, END]
    without = examples_of(world, world.opd, rows=[row], teacher=two_ends, eos=False)
    assert without.examples[row.trajectory_id].response_ids == [20, 21]


def test_an_end_that_the_student_knows_stays_as_it_is(world: World, two_ends: Path) -> None:
    row = replace(rows_of(world.opd)[0], response_token_ids=[20, 21, OTHER_END], **FINISHED)
    made = examples_of(world, world.opd, rows=[row], student=two_ends, teacher=two_ends)
    assert made.examples[row.trajectory_id].response_ids == [20, 21, OTHER_END]
    assert not made.notes


def test_an_end_that_only_the_teacher_knows_becomes_what_the_students_template_writes(
    world: World, tmp_path: Path
) -> None:
    base = shutil.copytree(world.student, tmp_path / "base")
    settings = json.loads((base / "tokenizer_config.json").read_text())
    (base / "tokenizer_config.json").write_text(json.dumps(settings | {"eos_token": "<|eos|>"}))
    teacher = shutil.copytree(world.teacher, tmp_path / "teacher")
    pad = SPECIALS.index("<|pad|>")
    set_eos(teacher, [END, pad])
    row = replace(rows_of(world.opd)[0], response_token_ids=[20, 21, pad], **FINISHED)
    made = examples_of(world, world.opd, rows=[row], student=base, teacher=teacher)
    assert made.examples[row.trajectory_id].response_ids == [20, 21, END]


# Weights


def test_a_reader_that_weighs_nothing_takes_all_tokens_whoever_wrote_them(world: World) -> None:
    first = rows_of(world.opd)[0]
    tokens = len(first.response_token_ids)
    by_environment = replace(first, author=[AUTHORS.index("environment")] * tokens)
    weightless = replace(first, token_weight=[0.0] * tokens)
    models = (resolve_model(str(world.student)), resolve_model(str(world.teacher)))
    (source,) = open_sets([str(world.opd)])
    for weighs in (True, False):
        contexts = Contexts(DistillConfig(), source, *models, SilentProgress(), weighs)
        for row in (by_environment, weightless):
            made = contexts.made(row)
            if weighs:
                assert made.startswith("no token of the response has a weight above 0")
            else:
                assert (len(made.scored), made.weight) == (len(made.response_ids),) * 2


# Masked tokens


def test_positions_of_a_masked_token_are_read_but_not_scored(world: World) -> None:
    the = world.tokenizer.vocabulary()["Ġthe"]
    response = [the, 20, the, 21, END]
    example = response_of(world, response, FINISHED, mask_tokens=("Ġthe",))
    assert (example.response_ids, list(example.scored)) == (response, [1, 3, 4])


def test_special_masks_all_special_tokens_but_the_end_of_turn(world: World) -> None:
    response = [20, START, 21, OTHER_END, 22, END]
    example = response_of(world, response, FINISHED, mask_tokens=("special",))
    assert (example.response_ids, list(example.scored)) == (response, [0, 2, 4, 5])


def test_several_masks_add_up_and_an_end_of_turn_by_its_name_is_masked_too(world: World) -> None:
    the = world.tokenizer.vocabulary()["Ġthe"]
    masks = ("special", "Ġthe", SPECIALS[END])
    assert list(response_of(world, [20, the, START, 21, END], FINISHED, mask_tokens=masks).scored) == [0, 3]


def test_a_row_of_nothing_but_masked_tokens_is_left_out_and_counted(world: World) -> None:
    first, *others = rows_of(world.opd)
    masked = replace(first, response_token_ids=[START, START], **TRUNCATED)
    made = examples_of(world, world.opd, rows=[masked, *others], mask_tokens=("special",))
    assert made.examples.keys() == {row.trajectory_id for row in others}
    assert "left out 1 of 6 rows: every token of the response is masked" in made.notes


def test_masked_tokens_do_not_count_in_a_run(world: World, ok: Trd, tmp_path: Path) -> None:
    the = world.tokenizer.vocabulary()["Ġthe"]
    source = shutil.copytree(world.opd, tmp_path / "y_r")
    for shard in list_shards(source):
        ids = {"response_token_ids": [20, the, START, 21, 22]}
        write_shard(shard, [replace(row, **ids, **TRUNCATED) for row in read_rows(shard)])
    masks = ("--mask-tokens", "special", "--mask-tokens", "Ġthe")
    ok("distill", source, *TRAIN, *masks, "--out", tmp_path / "c")
    (line,) = (tmp_path / "c/train.jsonl").read_text().splitlines()
    assert json.loads(line)["response_tokens"] == 3 * ROWS


def refusal(result: Any) -> str:
    """Return the one line in which a refused command ends."""
    assert result.exit_code == 1, result.stderr
    assert result.stdout == ""
    (line,) = [line for line in result.stderr.splitlines() if "error:" in line]
    assert line == result.stderr.splitlines()[-1]
    return line


def test_a_mask_that_is_no_token_is_refused_by_name(world: World, trd: Trd, tmp_path: Path) -> None:
    options = (*TRAIN, "--mask-tokens", "<|no such token|>", "--out", tmp_path / "c")
    line = refusal(trd("distill", world.opd, *options))
    assert "--mask-tokens <|no such token|>" in line
    assert not (tmp_path / "c").exists()


# Rows that are too long


def attempt_of(world: World, row: Trajectory) -> str:
    return by_id(world.rollouts)[row.parent_id or row.trajectory_id].response


def shortest(world: World, kind: str, row: Trajectory, reference: str | None = None) -> int:
    """Return the length of context and response if all of the attempt is cut, and the reference is `reference`."""
    return len(prompt_ids(world, message(kind, row, "", reference))) + len(row.response_token_ids)


CASES = [
    ("refined", "refine", "opd"),
    ("refined", "refine", "opsd"),
    ("rollout", "refine", "opd"),
    ("rollout", "refine", "opsd"),
]


@pytest.mark.parametrize(("stage", "context", "setting"), CASES)
@pytest.mark.parametrize("room_for", [0, 1, 17, 60])
def test_of_a_row_that_is_too_long_the_attempts_tail_is_cut_and_nothing_else(
    world: World, stage: str, context: str, setting: Setting, room_for: int
) -> None:
    directory, kind = world.of(stage, setting), f"{context}-{setting}"
    for row in rows_of(directory):
        limit = shortest(world, kind, row) + room_for
        options = {"max_length": limit, "teacher_context": context, "setting": setting}
        made = examples_of(world, directory, rows=[row], teacher=world.teacher_of(setting), **options)
        example, attempt = made.examples[row.trajectory_id], attempt_of(world, row)
        assert len(example.teacher_prompt) + len(example.response_ids) <= limit
        left = content_of(world, example.teacher_prompt)
        assert is_cut_from_its_tails(kind, row, attempt, left)
        kept = len(left) - len(message(kind, row, ""))
        # As much as fits is kept, but for a few tokens: a cut text is not tokenised one for one.
        assert max(0, room_for - 6) <= kept < len(attempt)
        assert example.response_ids == list(row.response_token_ids)
        assert example.student_prompt == list(row.student_prompt_token_ids or row.prompt_token_ids)
        assert f"cut the attempt in the teacher's context of 1 of 1 row, to {limit} tokens" in made.notes


@pytest.mark.parametrize(("stage", "context"), [("refined", "refine"), ("rollout", "refine"), ("rollout", "vanilla")])
def test_the_references_tail_is_cut_after_all_of_the_attempt(world: World, stage: str, context: str) -> None:
    directory, kind = world.of(stage, "opsd"), f"{context}-opsd"
    for row in rows_of(directory):
        limit = (shortest(world, kind, row, "") + shortest(world, kind, row)) // 2
        options = {"max_length": limit, "teacher_context": context, "setting": "opsd"}
        made = examples_of(world, directory, rows=[row], teacher=world.student, **options)
        example = made.examples[row.trajectory_id]
        assert len(example.teacher_prompt) + len(example.response_ids) <= limit
        left = content_of(world, example.teacher_prompt)
        assert is_cut_from_its_tails(kind, row, attempt_of(world, row), left)
        assert len(message(kind, row, "", "")) < len(left) < len(message(kind, row, ""))
        assert example.response_ids == list(row.response_token_ids)
        assert f"cut the reference in the teacher's context of 1 of 1 row, to {limit} tokens" in made.notes


def test_where_both_are_cut_both_are_said(world: World) -> None:
    row = rows_of(world.opsd)[0]
    limit = shortest(world, "refine-opsd", row) - 20
    made = examples_of(world, world.opsd, rows=[row], teacher=world.student, max_length=limit)
    assert f"cut the attempt in the teacher's context of 1 of 1 row, to {limit} tokens" in made.notes
    assert f"cut the reference in the teacher's context of 1 of 1 row, to {limit} tokens" in made.notes


def test_rows_that_fit_are_not_touched_and_those_that_are_cut_are_counted(world: World, ok: Trd) -> None:
    rows = by_id(world.opd)
    lengths = {i: len(row.prompt_token_ids) + len(row.response_token_ids) for i, row in rows.items()}
    limit = sorted(lengths.values())[3]
    longer = {i for i, length in lengths.items() if length > limit}
    assert 0 < len(longer) < ROWS
    made = examples_of(world, world.opd, max_length=limit)
    said = f"cut the attempt in the teacher's context of {len(longer)} of 6 rows, to {limit} tokens"
    assert list(made.notes) == [said]
    assert made.examples.keys() == rows.keys()
    for identity, row in rows.items():
        assert (made.examples[identity].teacher_prompt != list(row.prompt_token_ids)) == (identity in longer)
    assert said in ok("distill", world.opd, *TRAIN, "--max-length", limit, "--dry-run").stderr


@pytest.mark.parametrize("overflow", ["trim", "error"])
def test_a_row_whose_problem_and_response_alone_do_not_fit_is_left_out_and_counted(world: World, overflow: str) -> None:
    first, *others = rows_of(world.opd)
    limit = max(len(row.prompt_token_ids) + len(row.response_token_ids) for row in others)
    long = replace(first, response_token_ids=[20] * limit, **TRUNCATED)
    made = examples_of(world, world.opd, rows=[long, *others], max_length=limit, overflow=overflow)
    assert made.examples.keys() == {row.trajectory_id for row in others}
    (said,) = made.notes
    assert said.startswith(f"left out 1 of 6 rows: problem and response are longer than {limit} tokens")


def test_the_problem_is_never_cut_even_where_nothing_else_is_left(world: World) -> None:
    row = rows_of(world.opd)[0]
    limit = shortest(world, "refine-opd", row) - 1
    # The student's own context would fit; only the words around the attempt are too many.
    assert len(row.student_prompt_token_ids) + len(row.response_token_ids) < limit
    progress = SilentProgress()
    with pytest.raises(InputError, match="0 of 1 row can be trained on"):
        examples_of(world, world.opd, rows=[row], max_length=limit, progress=progress)
    assert any("teacher's context and the response are longer" in note for note in progress.notes)


def test_where_overflow_is_an_error_rows_are_left_out_and_none_is_cut(world: World) -> None:
    rows = by_id(world.opd)
    lengths = {i: len(row.prompt_token_ids) + len(row.response_token_ids) for i, row in rows.items()}
    limit = sorted(lengths.values())[3]
    fitting = {i for i, length in lengths.items() if length <= limit}
    made = examples_of(world, world.opd, max_length=limit, overflow="error")
    assert made.examples.keys() == fitting
    assert all(e.teacher_prompt == list(rows[i].prompt_token_ids) for i, e in made.examples.items())
    (said,) = made.notes
    assert said.startswith(f"left out {ROWS - len(fitting)} of 6 rows: the teacher's context and the response")


def with_context_length(model: Path, target: Path, length: int | None) -> Path:
    shutil.copytree(model, target)
    config = json.loads((target / "config.json").read_text())
    config.pop("max_position_embeddings")
    (target / "config.json").write_text(json.dumps(config | ({"max_position_embeddings": length} if length else {})))
    return target


@pytest.mark.parametrize("role", ["student", "teacher"])
@pytest.mark.parametrize("asked", [None, 2000])
def test_no_row_is_longer_than_what_both_models_take(
    world: World, tmp_path: Path, role: str, asked: int | None
) -> None:
    limit = max(shortest(world, "refine-opd", row) for row in rows_of(world.opd)) + 5
    short = with_context_length(getattr(world, role), tmp_path / "short", limit)
    made = examples_of(world, world.opd, **{role: short, "max_length": asked})
    assert len(made.examples) == ROWS
    assert all(len(e.teacher_prompt) + len(e.response_ids) <= limit for e in made.examples.values())
    assert list(made.notes) == [f"cut the attempt in the teacher's context of 6 of 6 rows, to {limit} tokens"]


def test_a_model_that_names_no_context_length_is_trained_with_a_given_one(world: World, tmp_path: Path) -> None:
    silent = with_context_length(world.student, tmp_path / "silent", None)
    made = examples_of(world, world.opd, student=silent, max_length=2000)
    assert made.examples == examples_of(world, world.opd).examples


# Only the attempt's own text is cut, and nothing that looks like it


def refined_row(
    world: World, setting: Setting, problem: str, attempt: str, reference: str, shown: int | None = None
) -> Trajectory:
    """Return a refined row as trd refine makes it; its prompt shows `shown` characters of the attempt (None: all)."""
    row = replace(rows_of(world.of("refined", setting))[0], problem=problem, reference_solution=reference)
    content = message(f"refine-{setting}", row, attempt[:shown])
    return replace(
        row,
        messages=({"role": "user", "content": content},),
        prompt_token_ids=prompt_ids(world, content),
        student_prompt_token_ids=prompt_ids(world, message("student", row, "")),
        attempt_tokens_trimmed=len(world.tokenizer.encode(attempt[shown:])) if shown is not None else 0,
    )


def cut_messages(world: World, setting: Setting, row: Trajectory, attempt: str, limits: Sequence[int]) -> list[str]:
    """Return the teacher's message at each of the limits, except for those at which the row is left out."""
    found = []
    for limit in limits:
        options = {"max_length": limit, "teacher": world.teacher_of(setting)}
        directory = world.of("refined", setting)
        try:
            made = examples_of(world, directory, rows=[row], **options)
        except InputError:  # the one row is left out
            continue
        example = made.examples[row.trajectory_id]
        assert len(example.teacher_prompt) + len(example.response_ids) <= limit
        found.append(content_of(world, example.teacher_prompt))
    return found


PROBLEM = "Ann works 3 hours and then 4 hours. How many hours does Ann work?"
WORKED = " ".join(["3 + 4 = 7, so Ann works the sum of both."] * 4)


@pytest.mark.parametrize(
    ("setting", "attempt", "reference"),
    [
        ("opsd", "hours", WORKED),
        ("opsd", "Ann works 3 hours", WORKED),
        ("opsd", "A", WORKED),
        ("opd", "student", WORKED),
        ("opd", long_attempt(2), "hours"),
        ("opsd", long_attempt(2), "Ann works 3 hours"),
        ("opsd", long_attempt(2), "own"),
    ],
    ids=[
        "attempt: a word of the problem",
        "attempt: the problem's beginning",
        "attempt: a letter of the template",
        "attempt: a word of the template",
        "reference: a word of the problem, not shown",
        "reference: the problem's beginning",
        "reference: a word of the template",
    ],
)
def test_words_that_also_stand_elsewhere_are_cut_at_their_own_place(
    world: World, setting: Setting, attempt: str, reference: str
) -> None:
    kind = f"refine-{setting}"
    row = refined_row(world, setting, PROBLEM, attempt, reference)
    full = len(row.prompt_token_ids) + len(row.response_token_ids)
    bare = shortest(world, kind, row, "")
    least = len(row.student_prompt_token_ids) + len(row.response_token_ids)
    limits = [full - 1, full - 2, (full + bare) // 2, bare + 1, bare, bare - 1, max(least, bare - 4)]
    contents = cut_messages(world, setting, row, attempt, limits)
    for content in contents:
        assert is_cut_from_its_tails(kind, row, attempt, content), content
    assert len(contents) >= 5


def test_a_reference_that_is_no_more_than_the_answer_leaves_the_answer_in_place(world: World) -> None:
    attempt = long_attempt(2)
    row = refined_row(world, "opsd", PROBLEM, attempt, rows_of(world.opsd)[0].reference_answer)
    limit = shortest(world, "refine-opsd", row) - 1
    (content,) = cut_messages(world, "opsd", row, attempt, [limit])
    assert is_cut_from_its_tails("refine-opsd", row, attempt, content), content


def test_a_response_that_begins_as_the_reference_does_is_no_attempt_that_the_teacher_reads(world: World) -> None:
    reference = "First we add up the hours of both parts of the day, and then " + WORKED
    response = reference[:50] + "something else altogether."
    ids = [*world.tokenizer.encode(response), END]
    row = replace(rows_of(world.rollouts)[0], reference_solution=reference, response=response, response_token_ids=ids)
    limit = shortest(world, "vanilla-opsd", row) - 20
    options = {"setting": "opsd", "max_length": limit}
    made = examples_of(world, world.rollouts, rows=[row], teacher=world.student, **options)
    left = content_of(world, made.examples[row.trajectory_id].teacher_prompt)
    assert is_cut_from_its_tails("vanilla-opsd", row, response, left), left
    assert list(made.notes) == [f"cut the reference in the teacher's context of 1 of 1 row, to {limit} tokens"]


def test_an_attempt_that_refine_has_cut_can_be_cut_further(world: World, ok: Trd, tmp_path: Path) -> None:
    attempt = "hours and others, " * 40
    rollouts = with_attempts(world.rollouts, tmp_path / "y_o", world.tokenizer, lambda _: attempt)
    teacher = ("--setting", "opd", "--teacher", world.teacher)
    ok("refine", rollouts, *teacher, *ENGINE, "--max-model-len", 600, "--out", tmp_path / "y_r")
    rows = by_id(tmp_path / "y_r")
    assert all(row.attempt_tokens_trimmed > 0 for row in rows.values())
    limit = min(len(row.prompt_token_ids) + len(row.response_token_ids) for row in rows.values()) - 30
    made = examples_of(world, tmp_path / "y_r", max_length=limit)
    assert made.examples.keys() == rows.keys()
    for identity, row in rows.items():
        example = made.examples[identity]
        assert len(example.teacher_prompt) + len(example.response_ids) <= limit
        left = content_of(world, example.teacher_prompt)
        assert len(left) < len(row.messages[0]["content"])
        assert is_cut_from_its_tails("refine-opd", row, attempt, left), left


@pytest.mark.parametrize("until", ["", "\n", "\n\n", "\n\nFir"])
def test_words_after_an_attempt_that_refine_has_cut_stay_though_it_went_on_as_they_do(world: World, until: str) -> None:
    attempt = long_attempt(5)
    shown = attempt.index("\n\n", 150) + len(until)
    row = refined_row(world, "opd", PROBLEM, attempt, WORKED, shown)
    full = len(row.prompt_token_ids) + len(row.response_token_ids)
    contents = cut_messages(world, "opd", row, attempt, [full - 1, full - 30])
    assert len(contents) == 2
    for content in contents:
        assert is_cut_from_its_tails("refine-opd", row, attempt, content), content


def test_no_half_of_a_character_is_left_of_an_attempt(world: World) -> None:
    attempt = "∑ 漢字 🙂 " * 15
    row = refined_row(world, "opd", PROBLEM, attempt, WORKED)
    full = len(row.prompt_token_ids) + len(row.response_token_ids)
    contents = cut_messages(world, "opd", row, attempt, range(full - 60, full - 40))
    assert len(contents) == 20
    for content in contents:
        assert is_cut_from_its_tails("refine-opd", row, attempt, content), content


def normalizing(world: World, directory: Path, kind: str) -> World:
    """Return the same sets, and models whose tokenizers change letters before they look them up."""
    from tokenizers import normalizers as n

    normalizer = {
        "NFC": n.NFC(),
        "lowercase": n.Lowercase(),
        "accents stripped": n.Sequence([n.NFD(), n.StripAccents()]),
        "spaces replaced": n.Sequence([n.Prepend("_"), n.Replace(" ", "_")]),
    }[kind]
    models = {
        role: with_normalizer(shutil.copytree(getattr(world, role), directory / role), normalizer)
        for role in ("student", "teacher")
    }
    return replace(world, **models)


NORMALIZERS = ["NFC", "lowercase", "accents stripped", "spaces replaced"]
# OHM SIGN, which NFC makes a letter omega; capitals, accents and spaces for the others.
CHANGED = "Ann measures 3 \u2126 and 4 \u2126, Zoe\u0301 adds: " + long_attempt(3)


@pytest.mark.parametrize("kind", NORMALIZERS)
@pytest.mark.parametrize("cut", ["attempt", "reference"])
def test_a_text_that_the_tokenizer_normalises_loses_its_tail_alone(
    world: World, tmp_path: Path, kind: str, cut: str
) -> None:
    other = normalizing(world, tmp_path, kind)
    attempt, reference = (CHANGED, "7") if cut == "attempt" else ("3 + 4", CHANGED)
    row = refined_row(other, "opsd", PROBLEM, attempt, reference)
    limit = len(row.prompt_token_ids) + len(row.response_token_ids) - 30
    made = examples_of(other, world.opsd, rows=[row], teacher=other.student, max_length=limit)
    read = made.examples[row.trajectory_id].teacher_prompt
    shown = [(attempt[:n], reference) for n in range(len(attempt))] + [
        ("", reference[:n]) for n in range(len(reference))
    ]
    texts = [message("refine-opsd", row, *parts) for parts in shown]
    assert any(prompt_ids(other, text) == read for text in texts)
    assert limit - 8 <= len(read) + len(row.response_token_ids) <= limit


@pytest.mark.parametrize("kind", NORMALIZERS)
def test_trd_refine_shows_the_head_of_an_attempt_as_it_was_written(
    world: World, ok: Trd, tmp_path: Path, kind: str
) -> None:
    other = normalizing(world, tmp_path, kind)
    attempt = CHANGED + "hours and others, " * 20
    rollouts = with_attempts(world.rollouts, tmp_path / "y_o", other.tokenizer, lambda _: attempt)
    teacher = ("--setting", "opd", "--teacher", other.teacher)
    ok("refine", rollouts, *teacher, *ENGINE, "--max-model-len", 600, "--out", tmp_path / "y_r")
    for row in rows_of(tmp_path / "y_r"):
        assert row.attempt_tokens_trimmed > 0
        shown = row.messages[0]["content"]
        assert shown in {message("refine-opd", row, attempt[:n]) for n in range(len(attempt))}
        assert 580 <= len(row.prompt_token_ids) + 12 <= 600


def test_a_template_may_show_the_attempt_before_the_problem(world: World, tmp_path: Path) -> None:
    prompt = tmp_path / "mine.jinja"
    prompt.write_text("An attempt:\n{{ attempt }}\n\nat this problem:\n{{ problem }}\n\nRewrite it.\n")
    for row in rows_of(world.rollouts):
        attempt = row.response
        bare = prompt_ids(world, message("refine-opd", row, "", prompt=prompt))
        limit = len(bare) + len(row.response_token_ids) + 20
        options = {"max_length": limit, "teacher_context": "refine", "prompt": str(prompt)}
        made = examples_of(world, world.rollouts, rows=[row], **options)
        left = content_of(world, made.examples[row.trajectory_id].teacher_prompt)
        kept = len(left) - len(message("refine-opd", row, "", prompt=prompt))
        assert 0 < kept < len(attempt)
        assert left == message("refine-opd", row, attempt[:kept], prompt=prompt)


def test_a_template_that_did_not_make_a_context_cannot_cut_it_and_its_row_is_left_out(
    world: World, tmp_path: Path
) -> None:
    rows, prompt = rows_of(world.opd), tmp_path / "mine.jinja"
    lengths = [len(row.prompt_token_ids) + len(row.response_token_ids) for row in rows]
    options = {"max_length": sorted(lengths)[3], "prompt": str(prompt)}
    longer = sum(length > options["max_length"] for length in lengths)
    for of_another in ("{{ problem }}, and an attempt: {{ attempt }}", "{{ problem }}"):
        prompt.write_text(of_another)
        made = examples_of(world, world.opd, **options)
        assert len(made.examples) == 6 - longer
        (note,) = made.notes
        assert note.startswith(f"left out {longer} of 6 rows")
        assert "the template that made the context is not at hand (--prompt)" in note
    prompt.write_text("{{ attempt }}")
    with pytest.raises(PromptError, match=r"lacks \{\{ problem \}\}"):
        examples_of(world, world.opd, **options)


# The two tokenizers


def with_merges(world: World, target: Path, merges: Sequence[tuple[str, str]]) -> Path:
    """Return the teacher with a tokenizer of other merges."""
    shutil.copytree(world.teacher, target)
    write_tokenizer(target, merges=tuple(merges))
    return target


def test_tokenizers_that_differ_are_refused_with_the_tokens_in_which_they_do(
    world: World, trd: Trd, tmp_path: Path
) -> None:
    stranger = with_merges(world, tmp_path / "stranger", [(a, b) for a in "abcd" for b in "eghij"])
    mine, theirs = (resolve_model(str(m)).tokenizer().vocabulary() for m in (world.student, stranger))
    differing = {token for token in {*mine, *theirs} if mine.get(token) != theirs.get(token)}
    options = (*TRAIN, "--teacher", stranger, "--out", tmp_path / "c")
    line = refusal(trd("distill", world.opd, *options))
    assert f"{world.student} and {stranger} differ in {len(differing)} tokens" in line
    examples = [token for token in differing if repr(token) in line]
    assert 1 <= len(examples) < len(differing)
    assert "…" in line
    for token in examples:
        assert f"{token!r} {mine.get(token, '–')}/{theirs.get(token, '–')}" in line


def test_two_tokens_that_have_changed_places_are_named_with_their_ids(world: World, trd: Trd, tmp_path: Path) -> None:
    vocabulary = world.tokenizer.vocabulary()
    directory = shutil.copytree(world.teacher, tmp_path / "stranger")
    written = json.loads((directory / "tokenizer.json").read_text())
    vocab = written["model"]["vocab"]
    vocab["es"], vocab["or"] = vocab["or"], vocab["es"]
    (directory / "tokenizer.json").write_text(json.dumps(written))
    line = refusal(trd("distill", world.opd, *TRAIN, "--teacher", directory, "--out", tmp_path / "c"))
    es, of = vocabulary["es"], vocabulary["or"]
    assert f"differ in 2 tokens ('es' {es}/{of}, 'or' {of}/{es})" in line


# Parents


def without_parents(refined: Path, target: Path) -> Path:
    """Return a copy of a refined set whose rollouts are not at the path in its run.json."""
    shutil.copytree(refined, target)
    moved = str(target.with_name("moved-away"))
    by_hand(target / "run.json", lambda run: run["inputs"][0].update(path=moved))
    return target


def test_parents_that_are_gone_do_not_stop_training(world: World, ok: Trd, tmp_path: Path) -> None:
    refined = without_parents(world.opd, tmp_path / "y_r")
    assert examples_of(world, refined).examples == examples_of(world, world.opd).examples
    ok("distill", refined, *TRAIN, "--out", tmp_path / "c")
    assert (tmp_path / "c/model.safetensors").is_file()


def test_without_their_parents_rows_that_fit_stay_and_longer_ones_are_cut_or_left_out_and_counted(
    world: World, tmp_path: Path
) -> None:
    refined = without_parents(world.opd, tmp_path / "y_r")
    rows = by_id(refined)
    lengths = {i: len(row.prompt_token_ids) + len(row.response_token_ids) for i, row in rows.items()}
    limit = sorted(lengths.values())[3]
    made = examples_of(world, refined, max_length=limit)
    for identity, row in rows.items():
        if lengths[identity] <= limit:
            assert made.examples[identity].teacher_prompt == list(row.prompt_token_ids)
        elif identity in made.examples:
            left = content_of(world, made.examples[identity].teacher_prompt)
            assert is_cut_from_its_tails("refine-opd", row, attempt_of(world, row), left)
    left_out = len(rows) - len(made.examples)
    cut = sum(length > limit for length in lengths.values()) - left_out
    assert any(note.startswith(f"left out {left_out} of 6") for note in made.notes) == (left_out > 0)
    assert any(f"context of {cut} of 6 rows" in note for note in made.notes) == (cut > 0)


def test_the_verdict_that_sorts_the_log_is_the_attempts(world: World, tmp_path: Path) -> None:
    rollouts = by_id(world.rollouts)
    wrong = min(rollouts)
    verdicts = {i: "incorrect" if i == wrong else "correct" for i in rollouts}
    attempts = [replace(row, verdict=verdicts[i]) for i, row in rollouts.items()]
    write_shard(shard_path(tmp_path, 0), attempts)
    rows = [replace(row, verdict="timeout") for row in rows_of(world.opd)]
    made = examples_of(world, world.opd, rows=rows, parents=(str(tmp_path),))
    assert {row.parent_id: made.examples[row.trajectory_id].parent_verdict for row in rows} == verdicts
    of_attempts = examples_of(world, world.rollouts, rows=attempts)
    assert {i: e.parent_verdict for i, e in of_attempts.examples.items()} == verdicts


def test_the_teacher_reads_its_own_chat_template(world: World, tmp_path: Path) -> None:
    """Two models of one vocabulary may have been trained with different templates; the student's prompt is stored."""
    teacher = Path(shutil.copytree(world.teacher, tmp_path / "teacher"))
    (teacher / "chat_template.jinja").write_text("Q: {{ messages[0]['content'] }}\nA:")
    made = examples_of(world, world.rollouts, teacher=teacher, setting="opd")
    rows = {row.trajectory_id: row for row in rows_of(world.rollouts)}
    for name, example in made.examples.items():
        assert example.student_prompt == list(rows[name].prompt_token_ids)
        text = world.tokenizer.decode(example.teacher_prompt)
        assert text.startswith("Q: ")
        assert text.endswith("\nA:")
