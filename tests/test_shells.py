"""Shells and terminals around a command: no traceback, no row lost, and a success is a success.

The tests run real child processes of a real shell. Not covered: terminals of Windows, and encodings that are no
superset of ASCII.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from conftest import Trd
from support.children import start_child, wait_for
from support.sets import by_id, rows_of
from support.tiny import build_model

from trd_cli.records import Trajectory
from trd_cli.trajectories.problem_sets import read_problems
from trd_cli.trajectories.shards import list_shards, read_rows, write_problems, write_shard

PLENTY = 120  # seconds, for a process that must end by itself
SLOW = ("--engine-arg", "delay=0.05")
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
ASCII_STREAMS = {"PYTHONIOENCODING": "ascii"}


@dataclass(frozen=True)
class Made:
    """A problem set, and the 24 rollouts that every sampling here must give."""

    problems: Path
    rollouts: Path

    @property
    def rows(self) -> dict[str, Trajectory]:
        return by_id(self.rollouts)

    def sample(self, out: Path | str | bytes, *more: object) -> tuple[object, ...]:
        return ("sample", "-m", "scripted", "-p", self.problems, "-n", 2, *more, "--out", out)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, ok: Trd) -> Made:
    root = tmp_path_factory.mktemp("made")
    found = Made(root / "problems.parquet", root / "y_o")
    ok("data", "make", "arithmetic", "--n", 12, "--seed", 1, "--out", found.problems)
    ok(*found.sample(found.rollouts))
    return found


def words(*arguments: object) -> list[bytes]:
    """Return a command line of trd; names that are not text are bytes."""
    command = (sys.executable, "-m", "trd_cli", *arguments)
    return [word if isinstance(word, bytes) else os.fsencode(str(word)) for word in command]


def shell(script: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run a script of bash in which `"$@"` is `trd` with these arguments, and `trd` any other command of it."""
    head = f'trd() {{ {sys.executable} -m trd_cli "$@"; }}\n'
    return subprocess.run(
        ["bash", "-c", head + script, "bash", *words(*arguments)],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=PLENTY,
        check=False,
    )


def the_error(result: subprocess.CompletedProcess[bytes]) -> str:
    """Return the one line that a command ended with."""
    said = result.stderr.decode()
    assert "Traceback" not in said
    (line,) = [line for line in said.splitlines() if ": error: " in line]
    assert line == said.splitlines()[-1]
    return line


def start(*arguments: object, ignored: Sequence[signal.Signals] = (), **streams: object) -> subprocess.Popen[bytes]:
    """Start a trd command; it hears all signals but those `ignored`, however the tests were started."""
    return start_child(words(*arguments), ignored=ignored, start_new_session=True, **streams)


# Streams that are closed or full

CLOSED = ("<&-", ">&-", "2>&-", "<&- >&-", "<&- 2>&-", ">&- 2>&-", "<&- >&- 2>&-")


@pytest.mark.parametrize("closed", CLOSED)
def test_with_streams_closed_all_rows_are_made_and_it_is_a_success(closed: str, made: Made, tmp_path: Path) -> None:
    result = shell(f'"$@" {closed}', *made.sample(tmp_path / "out"))
    assert result.returncode == 0, result.stderr.decode()
    assert by_id(tmp_path / "out") == made.rows
    (shard,) = list_shards(tmp_path / "out")
    assert result.stdout.decode() == ("" if " >&-" in f" {closed}" else f"{shard}\n")
    assert ("took" in result.stderr.decode()) == ("2>&-" not in closed)


def test_no_file_gets_the_number_of_a_closed_stream(made: Made, tmp_path: Path) -> None:
    out = tmp_path / "out"
    script = 'exec "$@" <&- >&- 2>&-'
    command = ["bash", "-c", script, "bash", *words(*made.sample(out, *SLOW, "--shard-rows", 1))]
    with start_child(command) as running:
        wait_for(lambda: out.is_dir() and list_shards(out))
        targets = {os.readlink(f"/proc/{running.pid}/fd/{number}") for number in range(3)}
    assert targets == {os.devnull}
    assert running.returncode == 0


def test_graders_work_with_all_streams_closed(made: Made, tmp_path: Path, ok: Trd) -> None:
    for name in ("one", "two"):
        ok(*made.sample(tmp_path / name))
    ok("verify", "--workers", 1, tmp_path / "one")
    result = shell('"$@" <&- >&- 2>&-', "verify", "--workers", 1, tmp_path / "two")
    assert result.returncode == 0
    assert by_id(tmp_path / "two") == by_id(tmp_path / "one")


def test_a_full_standard_output_keeps_the_rows_and_the_exit_code_tells(made: Made, tmp_path: Path) -> None:
    result = shell('"$@" > /dev/full', *made.sample(tmp_path / "out", "--shard-rows", 10))
    assert result.returncode == 1
    assert by_id(tmp_path / "out") == made.rows
    line = the_error(result)
    assert "all is done, but standard output could not be written: No space left on device" in line


def test_a_full_standard_error_costs_what_was_said_and_nothing_else(made: Made, tmp_path: Path) -> None:
    result = shell('"$@" 2> /dev/full', *made.sample(tmp_path / "out"))
    assert result.returncode == 0
    assert by_id(tmp_path / "out") == made.rows
    assert result.stdout.decode().split() == [str(path) for path in list_shards(tmp_path / "out")]


@pytest.mark.parametrize("command", [("data", "list"), ("--help",), ("--version",)], ids=" ".join)
def test_what_is_printed_onto_a_full_disk_is_no_success(command: tuple[str, ...]) -> None:
    result = shell('"$@" > /dev/full', *command)
    assert result.returncode == 1
    assert "standard output cannot be written: No space left on device" in the_error(result)


# Locales and names


@pytest.mark.parametrize("environment", [ASCII, ASCII_STREAMS], ids=["locale", "streams"])
def test_where_only_ascii_is_spoken_names_keep_their_bytes_and_texts_are_shown(
    environment: dict[str, str], made: Made, tmp_path: Path
) -> None:
    out = tmp_path / "Rollouts ä · 一"
    script = '"$@" && trd show "${@: -1}"'
    result = shell(script, *made.sample(out), **environment)
    assert result.returncode == 0, result.stderr.decode()
    assert by_id(out) == made.rows
    (shard,) = list_shards(out)
    path, *shown = result.stdout.splitlines()
    assert path == os.fsencode(shard)
    assert any(b"trajectory" in line for line in shown)
    assert json.loads((out / "run.json").read_text())["config"]["out"] == str(out)


def test_a_run_reads_the_progress_of_its_stages_where_streams_are_ascii(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        'setting = "opsd"\nstudent = "scripted"\nproblems.make = {kind = "arithmetic", n = 4}\n[arms.a]\nmethod = "trd"\n'
    )
    result = shell('"$@"', "run", recipe, "--until", "sample", "--out", tmp_path / "run", **ASCII_STREAMS)
    assert result.returncode == 0, result.stderr.decode()
    (log,) = (tmp_path / "run" / "logs").glob("*sample.log")
    assert "sample 4/4 · " in log.read_text(encoding="utf-8")


def test_names_that_are_no_text_go_through_a_pipe_and_into_the_lineage(made: Made, tmp_path: Path) -> None:
    problems, y_o, y_r, copies = (os.fsencode(tmp_path) + b"/\xff-" + name for name in (b"p", b"y_o", b"y_r", b"c"))
    Path(os.fsdecode(problems)).write_bytes(made.problems.read_bytes())
    script = """
    set -o pipefail
    trd sample -m scripted -p "$1" -n 2 --shard-rows 10 --out "$2" | trd verify --workers 1 |
        trd refine --setting opsd --out "$3" | trd verify --workers 1 --out "$4" &&
    trd refine --setting opsd "$2" --out "$3" && trd diff "$3" > /dev/null
    """
    result = shell(f"shift 3; {script}", problems, y_o, y_r, copies)
    assert result.returncode == 0, result.stderr.decode("utf-8", "replace")
    assert result.stdout.splitlines() == [*(copies + b"/shard-00000.parquet",), *(y_r + b"/shard-00000.parquet",)]
    refined = Path(os.fsdecode(y_r))
    assert {row.parent_id for row in rows_of(refined)} == made.rows.keys()
    # Any reader of JSON, strict ones too: no stand-ins for bytes.
    record = json.loads((refined / "run.json").read_bytes())
    json.dumps(record, ensure_ascii=False).encode("utf-8")
    assert record["inputs"][0]["path"].endswith("/%FF-y_o")


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (("run", "RECIPE", "--out", b"\xff"), "is not UTF-8"),
        (("sample", "-m", b"\xff", "-p", "PROBLEMS"), "the tokenizers package takes"),
        (("eval", "scripted", "--bench", b"\xff.jsonl"), "not named in UTF-8"),
        (("data", "import", "ROWS", "--source", b"\xff", "--out", "p.parquet"), "is not UTF-8"),
    ],
    ids=["a run", "a model", "a benchmark", "a text"],
)
def test_a_name_that_cannot_be_used_is_said_before_anything_is_made(
    command: tuple[object, ...], reason: str, made: Made, tmp_path: Path
) -> None:
    (tmp_path / "recipe.toml").write_text(
        'setting = "opsd"\nstudent = "scripted"\nproblems.make = {kind = "arithmetic", n = 4}\n[arms.a]\nmethod = "trd"\n'
    )
    os.mkdir(os.fsencode(tmp_path) + b"/\xff")
    (tmp_path / "rows.jsonl").write_text('{"problem": "1 + 1", "answer": "2"}\n')
    before = set(tmp_path.rglob("*"))
    known = {"ROWS": "rows.jsonl", "RECIPE": "recipe.toml", "PROBLEMS": made.problems}
    result = shell(f'cd {tmp_path}; "$@"', *(known.get(str(word), word) for word in command))
    assert result.returncode == 1
    assert b"Traceback" not in result.stderr
    assert reason in result.stderr.decode("utf-8", "replace").splitlines()[-1]
    assert set(tmp_path.rglob("*")) == before


# Files that begin with a byte order mark, and files that are pipes

MARK = b"\xef\xbb\xbf"
TEMPLATE = b"Solve this.\n{{ problem }}"
RECIPE = b"""
setting = "opsd"
student = "scripted"
problems.make = {kind = "arithmetic", n = 4}
sample.prompt = "student.jinja"
[arms.a]
method = "trd"
"""


def test_a_byte_order_mark_is_part_of_no_template(made: Made, tmp_path: Path, ok: Trd) -> None:
    for name, text in {"plain": TEMPLATE, "marked": MARK + TEMPLATE}.items():
        (tmp_path / name).write_bytes(text)
        ok(*made.sample(tmp_path / f"of-{name}", "--prompt", tmp_path / name))
    assert rows_of(tmp_path / "of-marked")[0].messages[0]["content"].startswith("Solve this.")
    ids = [by_id(tmp_path / f"of-{name}").keys() for name in ("plain", "marked")]
    assert ids[0] == ids[1]


def test_a_byte_order_mark_is_part_of_no_recipe(tmp_path: Path, ok: Trd) -> None:
    (tmp_path / "student.jinja").write_bytes(TEMPLATE)
    (tmp_path / "base.toml").write_bytes(MARK + RECIPE)
    (tmp_path / "recipe.toml").write_bytes(MARK + b'extends = "base.toml"')
    said = ok("run", tmp_path / "recipe.toml", "--dry-run", "--out", tmp_path / "run").stdout
    assert "Solve this." in said


def test_a_byte_order_mark_is_part_of_no_row_even_where_files_were_joined(tmp_path: Path, ok: Trd) -> None:
    lines = [json.dumps({"problem": f"1 + {i}", "answer": str(1 + i)}).encode() + b"\n" for i in range(4)]
    (tmp_path / "joined.jsonl").write_bytes(MARK + lines[0] + lines[1] + MARK + lines[2] + lines[3])
    ok("data", "import", tmp_path / "joined.jsonl", "--out", tmp_path / "p.parquet")
    assert {p.problem for p in read_problems(tmp_path / "p.parquet")} == {f"1 + {i}" for i in range(4)}


def test_a_byte_order_mark_is_part_of_no_path(made: Made, tmp_path: Path, ok: Trd) -> None:
    ok(*made.sample(tmp_path / "y_o"))
    ok("verify", "--workers", 1, stdin=f"\ufeff{tmp_path / 'y_o'}\r\n\n")
    assert all(row.verdict for row in rows_of(tmp_path / "y_o"))


def test_a_template_from_a_pipe_is_read_once_and_stands_by_its_text(made: Made, tmp_path: Path) -> None:
    """The set has problems of both tasks, so there are two templates."""
    problems = read_problems(made.problems)[:4]
    write_problems(tmp_path / "p.parquet", [*problems[:2], *(replace(p, task="code") for p in problems[2:])])
    (tmp_path / "t").write_bytes(TEMPLATE)
    sample = f"trd sample -m scripted -p {tmp_path}/p.parquet --out {tmp_path}/out"
    script = f"""
    {sample} --prompt <(cat {tmp_path}/t) && {sample} --prompt {tmp_path}/t &&
        exec 7< /dev/null && {sample} --prompt <(cat {tmp_path}/t; exec 8< /dev/null)
    """
    result = shell(script)
    assert result.returncode == 0, result.stderr.decode()
    assert {row.messages[0]["content"].split("\n")[0] for row in rows_of(tmp_path / "out")} == {"Solve this."}
    assert len((tmp_path / "out" / "sessions.jsonl").read_text().splitlines()) == 1, "nothing was made again"


def piped(path: Path, content: bytes) -> Path:
    """Return a named pipe that gives its content to one reader, once."""
    os.mkfifo(path)
    threading.Thread(target=path.write_bytes, args=(content,), daemon=True).start()
    return path


def test_a_training_is_known_by_the_text_of_its_template_wherever_that_was_read(
    made: Made, tmp_path: Path, ok: Trd
) -> None:
    model = build_model(tmp_path / "model")
    (tmp_path / "file").write_bytes(TEMPLATE)
    paths = (tmp_path / "file", piped(tmp_path / "a", TEMPLATE), piped(tmp_path / "b", TEMPLATE))
    engine = ("--engine", "transformers", "--device", "cpu", "--max-tokens", 4)
    ok("sample", "-m", model, "-p", made.problems, "--limit", 2, *engine, "--out", tmp_path / "y_o")
    train = ("distill", tmp_path / "y_o", "--teacher", model, "--setting", "opd", "--method", "fkl")
    said = {ok(*train, "--dry-run", "--prompt", path).stderr.split("into ")[-1] for path in paths}
    assert len(said) == 1, "one directory"


def test_a_recipe_from_a_pipe_is_read_as_one_of_the_working_directory(tmp_path: Path) -> None:
    (tmp_path / "student.jinja").write_bytes(TEMPLATE)
    (tmp_path / "base.toml").write_bytes(RECIPE)
    script = f"cd {tmp_path}; trd run <(printf '%s\\n' \"$0\") --dry-run"
    named, unnamed = (
        subprocess.run(
            ["bash", "-c", f'trd() {{ {sys.executable} -m trd_cli "$@"; }}\n{script}', text],
            capture_output=True,
            timeout=PLENTY,
            check=False,
        )
        for text in ('name = "mine"\nextends = "base.toml"', 'extends = "base.toml"')
    )
    assert named.returncode == 0, named.stderr.decode()
    assert "in trd-runs/mine" in named.stdout.decode()
    assert "Solve this." in named.stdout.decode()
    assert unnamed.returncode == 1
    assert "has no name" in the_error(unnamed)


def test_rows_are_imported_from_a_pipe(tmp_path: Path, ok: Trd) -> None:
    lines = b"".join(b'{"problem": "1 + %d", "answer": "%d"}\n' % (i, i + 1) for i in range(3))
    ok("data", "import", piped(tmp_path / "63", lines), "--out", tmp_path / "p.parquet")
    found = read_problems(tmp_path / "p.parquet")
    assert [p.reference_answer for p in found] == ["1", "2", "3"]
    assert {p.source for p in found} == {"pipe"}, "not the number of a descriptor"


def test_parquet_from_a_pipe_is_refused_in_one_line(made: Made, tmp_path: Path, trd: Trd) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for command in (
        ("sample", "-m", "scripted", "-p", pipe),
        ("verify", pipe),
        ("data", "make", "arithmetic", "--n", 4, "--out", pipe),
    ):
        result = trd(*command)
        assert result.exit_code == 1
        assert f"{pipe} is " in result.stderr.splitlines()[-1]
    assert pipe.is_fifo()


# Sessions that end


def kept(made: Made, out: Path) -> int:
    """Return the number of rows; assert that each is as it should be."""
    rows = by_id(out)
    assert rows.items() <= made.rows.items()
    return len(rows)


def test_a_hang_up_keeps_the_rows_however_often_it_comes(made: Made, tmp_path: Path) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    with open(log, "wb") as stderr:
        running = start(*made.sample(out, *SLOW), stderr=stderr, stdout=subprocess.DEVNULL)
    wait_for(lambda: "24 rows" in log.read_text())
    time.sleep(0.3)
    while running.poll() is None:
        os.kill(running.pid, signal.SIGHUP)
        time.sleep(0.001)
    assert running.returncode == 130
    assert 0 < kept(made, out) < 24
    assert log.read_text().splitlines()[-1].startswith("trd sample: error: interrupted; finished rows are kept")


def test_a_terminal_that_is_closed_keeps_the_rows(made: Made, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ours, theirs = pty.openpty()

    running = start_child(
        words(*made.sample(out, *SLOW)),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(theirs, termios.TIOCSCTTY, 0),
        pass_fds=[theirs],
    )
    os.close(theirs)
    wait_for(lambda: b"sample" in os.read(ours, 1000))
    wait_for(lambda: (out / "run.json").is_file())
    time.sleep(0.5)
    os.close(ours)
    assert running.wait(PLENTY) == 130
    assert 0 < kept(made, out) < 24


def test_warnings_and_notes_stand_above_a_live_bar() -> None:
    program = (
        "import logging\nfrom trd_cli.console import ConsoleProgress, show_remarks\n"
        "show_remarks('sample')\nprogress = ConsoleProgress('sample')\nprogress.start('sample', 10)\n"
        "logging.getLogger('trd_cli.engines').warning('a [warning]')\nprogress.note('a note')\nprogress.end()\n"
    )
    ours, theirs = pty.openpty()
    child = start_child([sys.executable, "-c", program], stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # Linux: the terminal has no other end any more
        while part := os.read(ours, 4096):
            shown += part
    os.close(ours)
    assert child.wait(PLENTY) == 0
    for line in (b"trd sample: a [warning]", b"trd sample: a note"):
        assert b"\r\x1b[2K" + line + b"\r\n" in shown  # the bar is erased, and drawn again below


def test_under_nohup_a_hang_up_is_not_heard(made: Made, tmp_path: Path) -> None:
    out = tmp_path / "out"
    running = start(*made.sample(out, *SLOW), ignored=[signal.SIGHUP], stderr=subprocess.DEVNULL)
    wait_for(lambda: (out / "run.json").is_file())
    os.kill(running.pid, signal.SIGHUP)
    assert running.wait(PLENTY) == 0
    assert by_id(out) == made.rows


def test_a_hang_up_ends_a_verify_with_whole_shards(made: Made, tmp_path: Path, ok: Trd) -> None:
    out = tmp_path / "out"
    ok(*made.sample(out, "--shard-rows", 12))
    second = list_shards(out)[1]
    # One arithmetic operation without an end.
    write_shard(second, [replace(row, response=r"\boxed{9^{9^{9^{9}}}}") for row in read_rows(second)])
    running = start("verify", "--workers", 1, "--timeout", 100, out, stderr=subprocess.DEVNULL)
    wait_for(lambda: read_rows(list_shards(out)[0])[0].verdict is not None)
    os.kill(running.pid, signal.SIGHUP)
    assert running.wait(PLENTY) == 130
    assert [row.verdict is None for row in rows_of(out)] == [False] * 12 + [True] * 12


def test_a_hang_up_ends_a_run_and_its_stage_with_their_rows(tmp_path: Path) -> None:
    recipe, out = tmp_path / "recipe.toml", tmp_path / "run"
    recipe.write_text(
        'setting = "opsd"\nstudent = "scripted"\nproblems.make = {kind = "arithmetic", n = 24}\n'
        '[sample]\nengine_arg = {delay = 0.1}\n[arms.a]\nmethod = "trd"\n'
    )
    running = start("run", recipe, "--until", "sample", "--out", out, stderr=subprocess.DEVNULL)
    wait_for(lambda: any("24 rows" in log.read_text() for log in out.glob("logs/*sample.log")))
    time.sleep(0.5)
    os.kill(running.pid, signal.SIGHUP)
    assert running.wait(PLENTY) == 130
    (rows,) = out.glob("nodes/sample-*")
    assert 0 < len(rows_of(rows)) < 24
    (log,) = out.glob("logs/*sample.log")
    assert log.read_text().splitlines()[-1].startswith("trd sample: error: interrupted; ")


def test_a_hang_up_saves_the_state_of_a_training_after_its_step(made: Made, tmp_path: Path, ok: Trd) -> None:
    model, out = build_model(tmp_path / "model"), tmp_path / "student"
    engine = ("--engine", "transformers", "--device", "cpu", "--max-tokens", 4)
    ok("sample", "-m", model, "-p", made.problems, *engine, "--out", tmp_path / "y_o")
    train = ("distill", tmp_path / "y_o", "--setting", "opd", "--teacher", model, "--method", "fkl", "--device", "cpu")
    with open(tmp_path / "log", "wb") as log:
        running = start(*train, "--batch-size", 4, "--epochs", 1000, "--out", out, stderr=log)
    wait_for(lambda: (out / "train.jsonl").is_file() and len((out / "train.jsonl").read_text().splitlines()) > 2)
    for _ in range(3):
        os.kill(running.pid, signal.SIGHUP)
    assert running.wait(PLENTY) == 130, (tmp_path / "log").read_text()
    steps = len((out / "train.jsonl").read_text().splitlines())
    assert [path.name for path in (out / "states").iterdir()] == [f"step-{steps:06d}.pt"]
    assert "Traceback" not in (tmp_path / "log").read_text()
