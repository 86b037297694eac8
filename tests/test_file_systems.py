"""Faults of file systems, and commands that meet in one directory: one line, and all finished work is kept.

The faults are those of `support/faults.c`, a library that is loaded into real child processes before any other. A C
compiler builds it here; without one its tests are skipped. Not covered: other behaviour of a real NFS, Lustre or CIFS.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from conftest import Trd
from support.children import start_child, wait_for
from support.sets import by_id, rows_of

from trd_cli.atomic import replacing, sweep, sync_directory
from trd_cli.trajectories.shards import list_shards, read_rows, write_shard

HERE = Path(__file__).parent
PLENTY = 120  # seconds, for a process that must end by itself
SLOW = ("--engine-arg", "delay=0.05")
VERIFY = ("verify", "--workers", 1)
# One arithmetic operation without an end.
ENDLESS = r"\boxed{9^{9^{9^{9}}}}"
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the library of faults is for Linux")


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("no C compiler that makes a library for Linux")
    library = tmp_path_factory.mktemp("faults") / "faults.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, HERE / "support" / "faults.c", "-ldl"], check=True)
    return library


Sample = Callable[..., tuple[object, ...]]


@pytest.fixture
def sample(problems: Path) -> Sample:
    """Return the command that makes the rows of `rollouts` in another place."""
    return lambda out, *more: ("sample", "-m", "scripted", "-p", problems, "-n", 2, *more, "--out", out)


def start(*arguments: object, **environment: object) -> subprocess.Popen[str]:
    return start_child(
        [sys.executable, "-m", "trd_cli", *arguments],
        env={**os.environ, **{name: str(value) for name, value in environment.items()}},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@dataclass(frozen=True)
class Ended:
    exit_code: int
    said: str

    @property
    def error(self) -> str:
        """Return the one line that the command ended with."""
        assert "Traceback" not in self.said
        (line,) = [line for line in self.said.splitlines() if ": error: " in line]
        assert line == self.said.splitlines()[-1]
        return line


def end_of(running: subprocess.Popen[str]) -> Ended:
    said = running.communicate(timeout=PLENTY)[1]
    return Ended(running.returncode, said)


def fault(library: Path, call: str, number: int, below: object = "", when: object = "") -> dict[str, object]:
    """Return variables that let a call fail on paths that contain `below`, once the file `when` exists."""
    told = {"LD_PRELOAD": library, "TRD_FAULT": f"{call}:{number}"}
    return told | ({"TRD_FAULT_BELOW": below} if below else {}) | ({"TRD_FAULT_WHEN": when} if when else {})


def shards_in(directory: Path) -> int:
    return len(list_shards(directory)) if directory.is_dir() else 0


# File systems without locks


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP], ids=errno.errorcode.get)
def test_without_locks_all_is_done_and_said_once(
    number: int, faults: Path, sample: Sample, rollouts: Path, tmp_path: Path
) -> None:
    ended = end_of(start(*sample(tmp_path / "out", "--shard-rows", 10), **fault(faults, "flock", number)))
    assert ended.exit_code == 0, ended.said
    assert by_id(tmp_path / "out") == by_id(rollouts)
    assert ended.said.count(f"{tmp_path / 'out'} is on a file system without locks") == 1


def test_without_locks_a_second_process_of_the_machine_is_kept_out_until_the_first_has_ended(
    faults: Path, sample: Sample, rollouts: Path, tmp_path: Path
) -> None:
    out, without = tmp_path / "out", fault(faults, "flock", errno.ENOLCK)
    command = sample(out, "--engine-arg", "delay=0.1", "--shard-rows", 1)
    first = start(*command, **without)
    wait_for(lambda: shards_in(out))
    first.send_signal(signal.SIGSTOP)  # it is at work for as long as the next line takes
    assert f"{out} is in use by another process" in end_of(start(*command, **without)).error
    assert first.poll() is None
    first.kill()  # its name stays in the lock file
    first.communicate()
    assert end_of(start(*command, **without)).exit_code == 0
    assert by_id(out) == by_id(rollouts)


# Directories that cannot be made durable


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EBADF], ids=errno.errorcode.get)
def test_where_a_directory_cannot_be_made_durable_all_is_done(
    number: int, faults: Path, sample: Sample, rollouts: Path, tmp_path: Path
) -> None:
    ended = end_of(start(*sample(tmp_path / "out"), **fault(faults, "fsync-directory", number)))
    assert ended.exit_code == 0, ended.said
    assert by_id(tmp_path / "out") == by_id(rollouts)


def test_a_directory_that_a_disk_fails_to_make_durable_is_an_error(
    faults: Path, sample: Sample, tmp_path: Path
) -> None:
    ended = end_of(start(*sample(tmp_path / "out"), **fault(faults, "fsync-directory", errno.EIO)))
    assert ended.exit_code == 1
    assert "Input/output error; expected a file system that answers" in ended.error


def test_what_is_no_directory_is_not_made_durable(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        sync_directory(tmp_path / "gone")


# File systems that end while a command runs

ENDINGS = {
    "read-only": ("write-all", errno.EROFS),
    "forbidden": ("open", errno.EACCES),
    "quota": ("fsync", errno.EDQUOT),
    "stale": ("rename", errno.ESTALE),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_directory_that_takes_no_more_costs_what_was_not_written_yet(
    ending: str, faults: Path, sample: Sample, rollouts: Path, tmp_path: Path
) -> None:
    out, (call, number) = tmp_path / "out", ENDINGS[ending]
    told = fault(faults, call, number, below=out, when=out / "shard-00001.parquet")
    ended = end_of(start(*sample(out, "--shard-rows", 5), **told))
    assert ended.exit_code == 1
    assert f"could not write {out / 'shard-00002.parquet'}: {os.strerror(number)}; expected " in ended.error
    before = by_id(out)
    assert len(before) == 10
    assert end_of(start(*sample(out))).exit_code == 0, "as soon as the file system is mended"
    assert by_id(out) == by_id(rollouts)


def test_a_directory_that_is_removed_meanwhile_is_one_line(sample: Sample, tmp_path: Path) -> None:
    out = tmp_path / "out"
    running = start(*sample(out, *SLOW, "--shard-rows", 1))
    wait_for(lambda: shards_in(out))
    out.rename(tmp_path / "elsewhere")
    ended = end_of(running)
    assert ended.exit_code == 1
    assert f"{out}" in ended.error
    assert "No such file or directory" in ended.error
    assert shards_in(tmp_path / "elsewhere")


def test_shards_that_are_removed_while_they_are_graded_are_one_line(rollouts: Path, tmp_path: Path) -> None:
    first = list_shards(rollouts)[0]
    write_shard(first, [replace(row, response=ENDLESS) for row in read_rows(first)[:1]])
    running = start(*VERIFY, "--timeout", 2, rollouts)
    wait_for(lambda: (rollouts / ".verify").exists())
    for shard in list_shards(rollouts)[1:]:
        shard.unlink()
    ended = end_of(running)
    assert ended.exit_code == 1
    assert f"no such file: {rollouts / 'shard-00001.parquet'}" in ended.error
    assert rows_of(rollouts)[0].verdict == "timeout", "what was graded is kept"


def test_what_cannot_be_removed_is_one_line(faults: Path, problems: Path, tmp_path: Path, trd: Trd) -> None:
    """A shard of errors alone is removed when its rows are tried again."""
    command = ("sample", "-m", "scripted", "-p", problems, "--engine-arg", "faults=1", "--out", tmp_path / "out")
    assert trd(*command).exit_code == 3
    told = fault(faults, "unlink", errno.EROFS, below=tmp_path / "out" / "shard")
    ended = end_of(start(*command, "--retry-errors", **told))
    assert ended.exit_code == 1
    shard = tmp_path / "out" / "shard-00000.parquet"
    assert f"{shard}: Read-only file system; expected a file system that can be written to" in ended.error
    assert len(by_id(tmp_path / "out")) == 12


def test_a_set_that_may_only_be_read_is_verified_where_nothing_is_missing(
    faults: Path, rollouts: Path, ok: Trd
) -> None:
    ok(*VERIFY, rollouts)
    (rollouts / ".verify").unlink()
    ended = end_of(start(*VERIFY, rollouts, **fault(faults, "write-all", errno.EROFS, below=rollouts)))
    assert ended.exit_code == 0, ended.said


# Caches


def test_nothing_needs_a_cache_that_it_can_do_without(sample: Sample, rollouts: Path, tmp_path: Path) -> None:
    nowhere = dict.fromkeys(("HOME", "XDG_CACHE_HOME", "HF_HOME", "TRD_CACHE", "MPLCONFIGDIR"), "/dev/null/none")
    assert end_of(start(*sample(tmp_path / "out"), **nowhere)).exit_code == 0
    assert by_id(tmp_path / "out") == by_id(rollouts)
    ended = end_of(start(*VERIFY, tmp_path / "out", **nowhere))
    assert ended.exit_code == 0, ended.said


@pytest.mark.model
def test_a_cache_that_cannot_be_written_to_is_said_before_the_model_is_read(
    problems: Path, tmp_path: Path, trd: Trd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRD_CACHE", "/dev/null/none")
    result = trd("sample", "-m", "smollm2-135m", "-p", problems, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "the cache /dev/null/none cannot be written to: Not a directory" in result.stderr
    assert "set TRD_CACHE" in result.stderr


# Two processes in one directory


def test_of_two_verifies_of_one_set_the_second_is_refused(rollouts: Path, ok: Trd) -> None:
    first = list_shards(rollouts)[0]
    write_shard(first, [*read_rows(first)[1:], replace(read_rows(first)[0], response=ENDLESS)])
    slow = start(*VERIFY, "--timeout", 3, rollouts)
    wait_for(lambda: (rollouts / ".verify").exists())
    second = end_of(start(*VERIFY, rollouts))
    assert second.exit_code == 1
    assert f"the verdicts in {rollouts} are being filled in by another process" in second.error
    assert end_of(slow).exit_code == 0
    assert all(row.verdict for row in rows_of(rollouts))


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold a lock as another process does."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def test_copies_that_another_verify_makes_are_left_to_it(rollouts: Path, tmp_path: Path, trd: Trd) -> None:
    copies = tmp_path / "copies"
    copies.mkdir()
    with held(copies / ".verify"):
        assert trd(*VERIFY, rollouts, "--out", copies).exit_code == 1
    assert not list_shards(copies)
    assert trd(*VERIFY, rollouts, "--out", copies).exit_code == 0


def test_an_evaluation_is_not_graded_while_another_process_grades_it(tmp_path: Path, ok: Trd, trd: Trd) -> None:
    out = tmp_path / "eval"
    ok("eval", "scripted", "--bench", "arithmetic:n=4,seed=2", "--workers", 1, "--out", out)
    with held(out / ".verify"):
        result = trd("eval", "--rescore", out, "--workers", 1)
    assert result.exit_code == 1
    assert f"the verdicts in {out} are being filled in by another process" in result.stderr
    ok("eval", "--rescore", out, "--workers", 1)


def test_rows_are_not_taken_from_under_a_verify_but_others_are_added_beside_it(
    rollouts: Path, problems: Path, tmp_path: Path, trd: Trd
) -> None:
    command = ("sample", "-m", "scripted", "-p", problems, "-n", 3, "--out", rollouts)
    with held(rollouts / ".verify"):
        result = trd(*command, "--retry-errors")
        assert result.exit_code == 1
        assert "are being filled in by another process" in result.stderr
        assert trd(*command).exit_code == 0
    assert len(by_id(rollouts)) == 36


def test_a_set_is_verified_while_its_rows_are_still_made(rollouts: Path, trd: Trd) -> None:
    """A pipe does this."""
    with held(rollouts / ".lock"):
        assert trd(*VERIFY, rollouts).exit_code == 0


def test_two_writers_of_one_file_do_not_meet_and_the_last_one_stays(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with replacing(path) as one, replacing(path) as two:
        one.write(b"one")
        two.write(b"two")
    assert path.read_bytes() == b"one"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_half_written_goes_but_not_what_is_being_written(tmp_path: Path) -> None:
    writing = f"""
import pathlib, time
from trd_cli.atomic import replacing
with replacing(pathlib.Path({str(tmp_path / "file")!r})) as file:
    file.write(b"half")
    file.flush()
    print("writing", flush=True)
    time.sleep({PLENTY})
"""
    with start_child([sys.executable, "-c", writing], stdout=subprocess.PIPE, text=True) as writer:
        writer.stdout.readline()
        (half,) = tmp_path.iterdir()
        sweep(tmp_path)
        assert half.read_bytes() == b"half"
        writer.send_signal(signal.SIGKILL)
    with replacing(tmp_path / "file") as file:
        file.write(b"whole")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_output_that_is_a_device_is_not_replaced(tmp_path: Path, trd: Trd) -> None:
    device = tmp_path / "null"
    device.symlink_to(os.devnull)
    result = trd("data", "make", "arithmetic", "--n", 4, "--out", device)
    assert result.exit_code == 1
    assert f"{device} is no regular file" in result.stderr
    assert device.is_symlink()
