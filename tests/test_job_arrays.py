"""Job arrays: tasks that each make a part of one set, on machines that may come and go, are as one command.

Not covered: tasks on several machines, whose locks are those of their file system.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import Trd
from support.children import ROOT, start_child, wait_for
from support.sets import by_id, flip, rows_of

from trd_cli.errors import InputError
from trd_cli.locks import hold
from trd_cli.records import Part
from trd_cli.trajectories.parts import expression
from trd_cli.trajectories.shards import graded_by, list_shards, part_of, shard_path

# The delay leaves time to kill a task; it stands in the digest of a set, so all have it.
SAMPLE = ("sample", "-m", "scripted", "-n", 2, "--engine-arg", "delay=0.02", "--shard-rows", 3)
VERIFY = ("verify", "--workers", 1, "--max-errors", 1000)
OPSD = ("refine", "--setting", "opsd", "--shard-rows", 4)

# Run commands at the same time, as children of one process that has the modules loaded.
TOGETHER = """
import json, os, sys
import pyarrow
import trd_cli.engines.scripted
from trd_cli.cli import app
from trd_cli.stages import eval, refine, sample, verify
pyarrow.table({"x": [1]})  # loads pandas, where there is one
for line in sys.stdin:
    order = json.loads(line)
    for words in order["commands"]:
        if os.fork() == 0:
            for descriptor, name in ((1, order["stdout"]), (2, order["stderr"])):
                os.dup2(os.open(name, os.O_WRONLY | os.O_APPEND), descriptor)
            app(words)
    print(max(os.waitstatus_to_exitcode(os.wait()[1]) for _ in order["commands"]), flush=True)
"""
Together = Callable[..., str]


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Together]:
    """Yield a function that runs commands at the same time; all must succeed. It returns what they print."""
    stdout, stderr = (tmp_path_factory.mktemp("talk") / name for name in ("stdout", "stderr"))
    process = start_child(
        [sys.executable, "-c", TOGETHER], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )

    def run(*commands: tuple[object, ...]) -> str:
        for path in (stdout, stderr):
            path.write_text("")
        words = [[str(word) for word in command] for command in commands]
        order = {"commands": words, "stdout": str(stdout), "stderr": str(stderr)}
        process.stdin.write(json.dumps(order) + "\n")
        process.stdin.flush()
        assert process.stdout.readline() == "0\n", stderr.read_text()
        return stdout.read_text()

    yield run
    process.stdin.close()
    process.wait()


def shards(count: int) -> list[tuple[str, str]]:
    """Return the options of all tasks of an array."""
    return [("--shard", f"{index}/{count}") for index in range(1, count + 1)]


@pytest.fixture(scope="module")
def problems(tmp_path_factory: pytest.TempPathFactory, ok: Trd) -> Path:
    """Return 24 problems; each of five parts has some."""
    path = tmp_path_factory.mktemp("data") / "p.parquet"
    ok("data", "make", "arithmetic", "--n", 24, "--seed", 1, "--out", path)
    return path


@pytest.fixture(scope="module")
def whole(problems: Path, ok: Trd) -> Path:
    """Return a set of 48 rollouts that one command made."""
    ok(*SAMPLE, "-p", problems, "--out", problems.parent / "whole")
    return problems.parent / "whole"


@pytest.fixture(scope="module")
def in_parts(problems: Path, together: Together) -> Path:
    """Return the same set, made by five tasks at once."""
    out = problems.parent / "in-parts"
    together(*((*SAMPLE, "-p", problems, *each, "--out", out) for each in shards(5)))
    return out


@pytest.fixture(scope="module")
def graded(whole: Path, ok: Trd) -> Path:
    """Return the set that one command made and another verified."""
    out = Path(shutil.copytree(whole, whole.parent / "graded"))
    ok(*VERIFY, out)
    return out


@pytest.fixture
def copy(in_parts: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(in_parts, tmp_path / "y_o"))


def digest(directory: Path) -> str:
    return json.loads((directory / "run.json").read_text())["digest"]


# Parts


def test_every_problem_belongs_to_one_part_of_as_many() -> None:
    for count in (1, 2, 5, 64):
        parts = [Part(index, count) for index in range(1, count + 1)]
        owners = [[part for part in parts if part.owns(f"problem-{n}")] for n in range(300)]
        assert all(len(owner) == 1 for owner in owners)
        assert {owner[0] for owner in owners} == set(parts), "none is without work"


@pytest.mark.parametrize("text", ["6/5", "0/5", "1/0", "-1/5", "x", "2", "2/5/7", "", "1.0/2"])
def test_a_part_that_is_none_is_one_clear_line(text: str, trd: Trd, problems: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError):
        Part.parse(text)
    result = trd(*SAMPLE, "-p", problems, "--shard", text, "--out", tmp_path / "out")
    assert result.exit_code == 1
    [line] = result.stderr.splitlines()
    assert line.startswith(f"trd sample: error: --shard {text}; expected part I of N as I/N, from 1/N to N/N; ")
    assert not (tmp_path / "out").exists()


def test_numbers_of_parts_are_written_as_slurm_takes_them() -> None:
    assert [expression(numbers) for numbers in ([], [3], [2, 4, 5], [1, 2, 3, 7, 9, 10])] == [
        *("", "3", "2,4-5"),
        "1-3,7,9-10",
    ]


# Sampling


def test_five_tasks_that_start_at_once_make_the_set_that_one_makes(in_parts: Path, whole: Path) -> None:
    assert by_id(in_parts) == by_id(whole)
    assert digest(in_parts) == digest(whole)
    assert {part_of(path) for path in list_shards(in_parts)} == {Part(index, 5) for index in range(1, 6)}


def test_tasks_race_safely_for_a_new_directory(problems: Path, whole: Path, together: Together, tmp_path: Path) -> None:
    for attempt in range(2):
        out = tmp_path / f"out-{attempt}"
        printed = together(*((*SAMPLE, "-p", problems, *each, "--out", out) for each in shards(3)))
        assert by_id(out) == by_id(whole)
        assert sorted(printed.splitlines()) == sorted(map(str, list_shards(out)))
        assert not [path for path in out.iterdir() if path.name.endswith(".tmp")]


def test_each_task_prints_its_own_shards_alone(copy: Path, problems: Path, ok: Trd) -> None:
    again = ok(*SAMPLE, "-p", problems, "--shard", "2/5", "--out", copy)
    own = [str(path) for path in list_shards(copy, Part(2, 5))]
    assert again.stdout.splitlines() == own
    assert 0 < len(own) < len(list_shards(copy))


def test_after_a_kill_and_a_task_that_never_started_status_names_them_and_their_rerun_completes_the_set(
    problems: Path, whole: Path, tmp_path: Path, ok: Trd, trd: Trd
) -> None:
    out = tmp_path / "y_o"

    def task(index: int) -> tuple[object, ...]:
        slowly = ("--engine-arg", "delay=0.05", "--shard-rows", 1)
        return (*SAMPLE, *slowly, "-p", problems, "--shard", f"{index}/5", "--out", out)

    for index in (1, 3, 5):
        ok(*task(index))
    killed = start_child([sys.executable, "-m", "trd_cli", *task(2)], cwd=ROOT, stderr=subprocess.DEVNULL)
    wait_for(lambda: list_shards(out, Part(2, 5)))
    killed.send_signal(signal.SIGSTOP)  # it is at work for as long as the next line takes
    running = trd("status", out)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert "part 2\trunning\t" in running.stdout
    assert running.stdout.splitlines()[0].endswith("\t--array=4"), "one that runs is not to be run again"
    shown = trd("status", out)
    assert shown.exit_code == 4
    lines = [line.split("\t") for line in shown.stdout.splitlines()]
    assert lines[0][:3] == [str(out), "sample", "unfinished"]
    assert lines[0][-1] == "--array=2,4"
    assert [line[1:3] for line in lines[1:]] == [
        ["parts 1,3,5", "complete"],
        ["part 2", "unfinished"],
        ["part 4", "never started"],
    ]
    refused = trd(*OPSD, out, "--out", tmp_path / "y_r")
    assert f"{out} is unfinished: " in refused.stderr
    assert "run its trd sample again as --array=2,4 to finish it" in refused.stderr
    before = {path: path.stat().st_mtime_ns for path in list_shards(out)}
    for index in (2, 4):
        ok(*task(index))
    assert before.items() <= {path: path.stat().st_mtime_ns for path in list_shards(out)}.items()
    assert by_id(out) == by_id(whole)
    assert ok("status", out).stdout.splitlines()[1].split("\t")[1:3] == ["parts 1-5", "complete"]


def test_a_set_in_parts_is_refused_to_a_whole_run_and_to_another_number_of_parts(
    copy: Path, whole: Path, problems: Path, tmp_path: Path, trd: Trd
) -> None:
    names = {path.name for path in copy.iterdir()}
    for shard in ((), ("--shard", "1/4")):
        result = trd(*SAMPLE, "-p", problems, *shard, "--out", copy)
        assert result.exit_code == 1
        [line] = result.stderr.splitlines()
        assert line.startswith(f"trd sample: error: {copy} is made in 5 parts; expected a new directory for ")
        assert line.endswith("; give --shard I/5, or give another --out")
    assert {path.name for path in copy.iterdir()} == names
    (copy / "run.json").unlink()
    assert f"{copy} is made in 5 parts" in trd(*SAMPLE, "-p", problems, "--out", copy).stderr
    one = Path(shutil.copytree(whole, tmp_path / "one"))
    result = trd(*SAMPLE, "-p", problems, "--shard", "1/4", "--out", one)
    assert (
        f"{one} is made whole, not in parts; expected a new directory for part 1 of 4; leave --shard out"
        in result.stderr
    )


def test_a_task_is_kept_out_while_its_part_is_at_work_and_no_other_part_is(
    copy: Path, problems: Path, ok: Trd, trd: Trd
) -> None:
    with hold(copy / ".lock-2of5") as is_ours:
        assert is_ours
        ok(*SAMPLE, "-p", problems, "--shard", "1/5", "--out", copy)
        result = trd(*SAMPLE, "-p", problems, "--shard", "2/5", "--out", copy)
    assert f"part 2 of 5 of {copy} is in use by another process" in result.stderr


def test_a_directory_without_rows_is_not_taken_from_an_array_that_has_just_begun(
    problems: Path, tmp_path: Path, ok: Trd, trd: Trd
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with hold(out / ".lock-2of5"):
        for shard in ((), ("--shard", "1/4")):
            result = trd(*SAMPLE, "-p", problems, *shard, "--out", out)
            assert "is in use by another process" in result.stderr
    ok(*SAMPLE, "-p", problems, "--shard", "1/4", "--out", out)


def test_tasks_leave_each_others_half_written_files_alone(copy: Path, problems: Path, ok: Trd) -> None:
    living, dead = copy / ".shard-1of5-00009.parquet.0123abcd.tmp", copy / ".shard-3of5-00009.parquet.0123abcd.tmp"
    dead.write_bytes(b"half")
    with hold(living):
        ok(*SAMPLE, "-p", problems, "--shard", "2/5", "--out", copy)
        assert living.exists()
    assert not dead.exists()


def test_a_damaged_shard_of_a_part_is_named_and_made_again_by_its_task(
    copy: Path, whole: Path, problems: Path, ok: Trd, trd: Trd
) -> None:
    flip(list_shards(copy, Part(4, 5))[0])
    shown = trd("status", copy)
    assert shown.exit_code == 4
    assert shown.stdout.splitlines()[0].endswith("\t--array=4")
    ok(*SAMPLE, "-p", problems, "--shard", "4/5", "--out", copy)
    assert by_id(copy) == by_id(whole)


def test_a_shard_under_the_name_of_another_part_is_set_aside_by_that_part(
    copy: Path, whole: Path, problems: Path, ok: Trd, trd: Trd
) -> None:
    shutil.copy(list_shards(copy, Part(1, 5))[0], copy / "shard-3of5-00077.parquet")
    assert "each row once" in trd(*OPSD, copy, "--out", copy.parent / "y_r").stderr
    ok(*SAMPLE, "-p", problems, "--shard", "3/5", "--out", copy)
    assert by_id(copy) == by_id(whole)


def test_status_tells_which_part_has_a_shard_of_another_one(copy: Path, ok: Trd, trd: Trd, problems: Path) -> None:
    first, last = list_shards(copy, Part(1, 5))[0], list_shards(copy, Part(3, 5))[0]
    shutil.copy(last, first)
    lines = [line.split("\t") for line in trd("status", copy).stdout.splitlines()]
    assert (lines[0][2], lines[0][-1]) == ("damaged", "--array=1")
    assert lines[1][1:3] == ["part 1", "damaged"]
    assert lines[1][-1] == f"{first} has the rows of {last.name}"
    assert lines[2][1:3] == ["parts 2-5", "complete"]
    ok(*SAMPLE, "-p", problems, "--shard", "1/5", "--out", copy)
    ok("status", copy)


@pytest.mark.parametrize("name", ["shard-00000.parquet", "shard-9of5-00000.parquet", "shard-1of4-00000.parquet"])
def test_a_shard_that_no_part_can_have_is_named_and_to_be_taken_away(
    name: str, copy: Path, problems: Path, tmp_path: Path, ok: Trd, trd: Trd
) -> None:
    shutil.copy(list_shards(copy, Part(2, 5))[0], copy / name)
    lines = [line.split("\t") for line in trd("status", copy).stdout.splitlines()]
    found = f"{copy / name} is by its name of another set"
    assert (lines[0][2], lines[0][-1]) == ("damaged", found)
    assert lines[1][1:3] == ["parts 1-5", "complete"]
    for command in ((*SAMPLE, "-p", problems, "--shard", "1/5", "--out", copy), (*OPSD, copy, "--out", tmp_path / "y")):
        assert f"{found}; expected a shard of {copy}; take it away" in trd(*command).stderr
    (copy / name).unlink()
    ok("status", copy)


def test_parts_are_known_without_run_json_and_any_of_them_writes_it_again(
    copy: Path, problems: Path, ok: Trd, trd: Trd
) -> None:
    (copy / "run.json").unlink()

    def shown() -> list[list[str]]:
        return [line.split("\t") for line in trd("status", copy).stdout.splitlines()]

    whole, parts = shown()
    assert whole[1:5] == ["sample", "unfinished", "48", "0"]
    assert whole[-1] == "no run.json: --array=1"
    assert parts[1:5] == ["parts 1-5", "complete", "48", "0"]
    list_shards(copy, Part(4, 5))[0].unlink()
    assert shown()[0][-1] == "no run.json: --array=4"
    ok(*SAMPLE, "-p", problems, "--shard", "4/5", "--out", copy)
    ok("status", copy)
    for record in copy.glob("run*.json"):
        record.unlink()
    whole, parts = shown()
    assert whole[1:5] == ["set", "unfinished", "48", ""]
    assert parts[1] == "parts 1-5"


def test_more_attempts_later_are_complete_when_every_part_has_them(
    copy: Path, problems: Path, tmp_path: Path, ok: Trd, trd: Trd
) -> None:
    more = (*SAMPLE, "-p", problems, "-n", 3)
    ok(*more, "--shard", "1/5", "--out", copy)
    assert trd("status", copy).stdout.splitlines()[0].endswith("\t--array=2-5")
    for each in shards(5)[1:]:
        ok(*more, *each, "--out", copy)
    ok(*more, "--out", tmp_path / "whole")
    assert by_id(copy) == by_id(tmp_path / "whole")
    ok("status", copy)


def records(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.glob("run*.json")}


def test_a_task_that_is_refused_changes_no_record(
    copy: Path, problems: Path, tmp_path: Path, ok: Trd, trd: Trd
) -> None:
    scored = tmp_path / "eval"
    for each in shards(2):
        ok(*EVAL, "--bench", "arithmetic:n=12,seed=2", *each, "--out", scored)
    before = records(copy), records(scored)
    for options in (("--limit", 3), ("-n", 1), ("--max-prompt-tokens", 60)):
        result = trd(*SAMPLE, "-p", problems, *options, "--shard", "2/5", "--out", copy)
        assert "rows that this command would not make" in result.stderr
    result = trd(*EVAL, "--k", 1, "--bench", "arithmetic:n=12,seed=2", "--shard", "1/2", "--out", scored)
    assert "--k 1 asks for fewer" in result.stderr
    assert (records(copy), records(scored)) == before
    (copy / "run.json").unlink()
    before = records(copy)
    assert trd(*SAMPLE, "-p", problems, "--limit", 3, "--shard", "2/5", "--out", copy).exit_code == 1
    assert records(copy) == before, "nor does it write a lost one"
    ok(*SAMPLE, "-p", problems, "--shard", "2/5", "--out", copy)
    ok("status", copy)


def test_failed_rows_are_tried_again_by_their_own_task(problems: Path, tmp_path: Path, ok: Trd) -> None:
    out, faulty = tmp_path / "out", ("--engine-arg", "faults=0.3", "--max-errors", 1000)
    for each in shards(2):
        ok(*SAMPLE, "-p", problems, *faulty, *each, "--out", out)
    failed = {path: path.read_bytes() for path in list_shards(out)}
    before = sum(row.error is not None for row in rows_of(out))
    ok(*SAMPLE, "-p", problems, *faulty, "--retry-errors", "--shard", "1/2", "--out", out)
    assert before > 0
    assert len(by_id(out)) == 48
    assert all(path.read_bytes() == failed[path] for path in list_shards(out, Part(2, 2)))


# Grading


def test_two_tasks_verify_a_set_beside_each_other(copy: Path, graded: Path, together: Together) -> None:
    printed = together(*((*VERIFY, *each, copy) for each in shards(2)))
    assert by_id(copy) == by_id(graded)
    assert sorted(printed.splitlines()) == sorted(map(str, list_shards(copy))), "each shard by one task"


@pytest.mark.parametrize("count", [1, 2, 5])
def test_each_shard_is_verified_by_one_task_in_whatever_parts_its_set_was_made(count: int) -> None:
    parts = [Part(index, count) for index in range(1, count + 1)]
    for made in (None, Part(2, 5), Part(5, 5), Part(1, 3)):
        paths = [shard_path(Path("y_o"), number, made) for number in range(20)]
        graders = [[part for part in parts if graded_by(path, part)] for path in paths]
        assert all(len(each) == 1 for each in graders)
        if made and made.count == count:
            assert graders == [[made]] * 20, "a task that made a shard grades it too"
        else:
            assert {each[0] for each in graders} == set(parts), "none is without work"


def test_a_task_verifies_its_part_of_a_set_whose_other_parts_are_still_to_come(
    problems: Path, tmp_path: Path, ok: Trd, trd: Trd
) -> None:
    out = tmp_path / "y_o"
    sampled = ok(*SAMPLE, "-p", problems, "--shard", "2/5", "--out", out)
    verified = ok(*VERIFY, "--shard", "2/5", stdin=sampled.stdout)
    assert verified.stdout == sampled.stdout
    assert all(row.verdict for row in rows_of(out))
    assert "unfinished" in trd(*VERIFY, "--shard", "1/3", out).stderr, "a part of another number has rows of all parts"


def test_verified_copies_of_all_parts_are_a_finished_set(
    copy: Path, graded: Path, together: Together, tmp_path: Path, ok: Trd
) -> None:
    out = tmp_path / "copies"
    together(*((*VERIFY, *each, copy, "--out", out) for each in shards(2)))
    assert {row.verdict is None for row in rows_of(copy)} == {True}
    assert by_id(out) == by_id(graded)
    ok("status", out)
    ok(*OPSD, out, "--out", tmp_path / "y_r")


def test_verdicts_are_filled_in_by_one_task_a_part_and_by_no_whole_run_beside_it(copy: Path, ok: Trd, trd: Trd) -> None:
    with hold(copy / ".verify-1of2"):
        ok(*VERIFY, "--shard", "2/2", copy)
        for shard in ((), ("--shard", "1/2"), ("--shard", "1/3")):
            assert "are being filled in by another process" in trd(*VERIFY, *shard, copy).stderr
    ok(*VERIFY, copy)


def test_a_task_without_a_shard_to_verify_says_so(problems: Path, tmp_path: Path, ok: Trd) -> None:
    out = tmp_path / "y_o"
    ok(*SAMPLE, "-p", problems, "--shard-rows", 100, "--out", out)
    for dry in ((), ("--dry-run",)):
        assert f"no shard of {out} falls to part 2 of 2" in ok(*VERIFY, *dry, "--shard", "2/2", out).stderr


# Refining


def test_a_set_in_parts_is_refined_as_one(in_parts: Path, whole: Path, tmp_path: Path, ok: Trd) -> None:
    for name, source in (("parts", in_parts), ("whole", whole)):
        ok(*OPSD, source, "--out", tmp_path / name)
    assert by_id(tmp_path / "parts") == by_id(tmp_path / "whole")
    assert digest(tmp_path / "parts") == digest(tmp_path / "whole")


@pytest.mark.parametrize("count", [2, 5])
def test_refining_in_parts_makes_the_rows_that_one_command_makes(
    count: int, in_parts: Path, whole: Path, together: Together, tmp_path: Path, ok: Trd
) -> None:
    together(*((*OPSD, *each, in_parts, "--out", tmp_path / "parts") for each in shards(count)))
    ok(*OPSD, whole, "--out", tmp_path / "whole")
    assert by_id(tmp_path / "parts") == by_id(tmp_path / "whole")
    assert digest(tmp_path / "parts") == digest(tmp_path / "whole")


def test_each_task_may_pipe_its_part_through_all_stages(problems: Path, graded: Path, tmp_path: Path, ok: Trd) -> None:
    y_o, y_r = tmp_path / "y_o", tmp_path / "y_r"
    for each in shards(2):
        sampled = ok(*SAMPLE, "-p", problems, *each, "--out", y_o)
        verified = ok(*VERIFY, *each, stdin=sampled.stdout)
        ok(*OPSD, *each, "--subset", "incorrect", "--out", y_r, stdin=verified.stdout)
    ok(*OPSD, "--subset", "incorrect", graded, "--out", tmp_path / "refined")
    assert by_id(y_r) == by_id(tmp_path / "refined")
    assert len(by_id(y_r)) > 0


def test_a_part_is_not_refined_from_some_of_its_shards(copy: Path, tmp_path: Path, trd: Trd, ok: Trd) -> None:
    others = list_shards(copy, Part(1, 5))
    result = trd(*OPSD, "--shard", "2/5", *others, "--out", tmp_path / "y_r")
    assert result.exit_code == 1
    assert f"of {copy} without its {list_shards(copy, Part(2, 5))[0].name}" in result.stderr


def test_rollouts_that_have_grown_are_refined_when_every_part_has_been(
    copy: Path, problems: Path, tmp_path: Path, ok: Trd, trd: Trd
) -> None:
    y_r = tmp_path / "y_r"
    refine = [(*OPSD, *each, copy, "--out", y_r) for each in shards(2)]
    for command in refine:
        ok(*command)
    ok("status", y_r)
    for each in shards(5):
        ok(*SAMPLE, "-p", problems, "-n", 3, *each, "--out", copy)
    ok(*refine[0])
    assert trd("status", y_r).stdout.splitlines()[0].endswith("\t--array=2")
    ok(*refine[1])
    assert len(by_id(y_r)) == len(by_id(copy)) == 72


# Evaluation


EVAL = ("eval", "scripted", "--k", 2, "--workers", 1, "--max-errors", 1000)


@pytest.fixture(scope="module")
def scored(problems: Path, ok: Trd) -> Path:
    """Return the evaluation that one command made."""
    out = problems.parent / "scored"
    ok(*EVAL, "--bench", "arithmetic:n=12,seed=2", "--out", out)
    return out


def test_the_last_task_of_an_evaluation_writes_the_results_of_one_command(
    scored: Path, tmp_path: Path, ok: Trd, trd: Trd
) -> None:
    out = tmp_path / "eval"
    for index in (1, 2):
        told = ok(*EVAL, "--bench", "arithmetic:n=12,seed=2", "--shard", f"{index}/3", "--out", out)
        assert "the score comes when all parts are done" in told.stderr
        assert told.stdout == ""
        assert not (out / "results.json").exists()
    assert trd("status", out).stdout.splitlines()[0].endswith("\t--array=3")
    last = ok(*EVAL, "--bench", "arithmetic:n=12,seed=2", "--shard", "3/3", "--out", out)
    assert last.stdout.splitlines() == [str(out / "results.json")]
    assert (out / "results.json").read_bytes() == (scored / "results.json").read_bytes()
    ok("status", out)
    (out / "results.json").unlink()
    assert trd("status", out).exit_code == 4
    ok("eval", "--rescore", out, "--workers", 1, "--max-errors", 1000)
    assert (out / "results.json").read_bytes() == (scored / "results.json").read_bytes()


def test_tasks_of_an_evaluation_that_run_at_once_write_the_same_results(
    scored: Path, together: Together, tmp_path: Path
) -> None:
    out = tmp_path / "eval"
    together(*((*EVAL, "--bench", "arithmetic:n=12,seed=2", *each, "--out", out) for each in shards(3)))
    assert (out / "results.json").read_bytes() == (scored / "results.json").read_bytes()
    assert (out / "results.md").read_bytes() == (scored / "results.md").read_bytes()
