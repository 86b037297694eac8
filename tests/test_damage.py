"""Files changed by a disk, a crash or a copy: no reader returns wrong values in silence, and commands make rows again.

TRD_FLIPS sets the number of single bits that are flipped in each file; 500 is the full form. Not covered: damage from
before the bytes were written, weights of a checkpoint, `train.jsonl` and `sessions.jsonl`.
"""

from __future__ import annotations

import json
import os
import random
import re
import runpy
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Trd
from support.sets import by_id, flip, rows_of
from test_shards import GOLDEN_SHARDS, OF_VERSION, ROLLOUT, ROWS

from trd_cli.datasets.rows import file_rows
from trd_cli.errors import DamagedFile, InputError
from trd_cli.evaluation.results import read_results
from trd_cli.records import Problem
from trd_cli.trajectories.problem_sets import read_problems
from trd_cli.trajectories.run_json import read_run_json, write_run_json
from trd_cli.trajectories.sets import check_complete, iter_selected, open_sets, parent_frame
from trd_cli.trajectories.shards import (
    PROBLEM_SCHEMA,
    SCHEMA,
    SCHEMAS,
    check_whole,
    list_shards,
    read_rows,
    read_table,
    shard_info,
    write_problems,
    write_shard,
    write_table,
)

FLIPS = int(os.environ.get("TRD_FLIPS", 100))
Read = Callable[[Path], Any]


def long_rows() -> Iterator[Any]:
    """Yield rows whose columns take several pages, with values that a flipped bit turns into other valid ones."""
    chance = random.Random(3)
    for n in range(40):
        ids = [chance.randrange(150_000) for _ in range(80)]
        yield replace(
            ROLLOUT,
            trajectory_id=f"{chance.getrandbits(128):032x}",
            sample_index=n,
            response=" ".join(map(str, ids)),
            response_token_ids=ids,
            logprobs=[-chance.random() for _ in ids],
        )


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return three shards and a problem set, each in a directory of its own."""
    root = tmp_path_factory.mktemp("files")
    contents = {"small": ROWS, "long": list(long_rows()), "one": ROWS[:1]}
    found = {name: root / name / "shard-00000.parquet" for name in contents}
    for name, path in found.items():
        path.parent.mkdir()
        write_shard(path, contents[name], "0123456789abcdef")
    found["problems"] = root / "problems" / "problems.parquet"
    problems = [Problem(f"p{n}", "hand", "math", f"What is {n} + {n}?", str(2 * n)) for n in range(30)]
    write_problems(found["problems"], problems)
    return found


# The ways trd reads shards: whole rows, some columns, rows of a set with a filter, parents, and footers alone.
READS: dict[str, Read] = {
    "rows": read_rows,
    "ids": lambda path: read_table(path, ["trajectory_id", "error"]),
    "token ids": lambda path: read_table(path, ["response_token_ids"]),
    "chosen": lambda path: list(iter_selected(open_sets([str(path.parent)]), where="round >= 0")),
    "parents": lambda path: parent_frame(*open_sets([str(path.parent)]), [str(path.parent)]).sort("parent_id"),
    "footer": shard_info,
}
READS_OF_PROBLEMS: dict[str, Read] = {
    "problems": read_problems,
    "import": lambda path: list(file_rows(path)),
    "footer": lambda path: shard_info(path, PROBLEM_SCHEMA),
}


def outcome(read: Read, path: Path) -> Any:
    """Return a reader's values, or its refusal if that names the file."""
    try:
        found = read(path)
    except InputError as refused:
        return refused if str(path) in str(refused) else None
    return found.to_pylist() if isinstance(found, pa.Table) else found


def same(one: Any, other: Any) -> bool:
    return one.equals(other) if hasattr(one, "equals") else one == other


def changed(content: bytes, damage: str, chance: random.Random) -> bytes:
    """Return a file's content with some damage at a random place, in the footer as often as before it."""
    size = len(content)
    footer = size - 8 - int.from_bytes(content[-8:-4], "little")
    if damage == "bit":
        place = chance.choice([chance.randrange(size), chance.randrange(footer, size)])
        return content[:place] + bytes([content[place] ^ 1 << chance.randrange(8)]) + content[place + 1 :]
    if damage == "cut":
        return content[: chance.choice([0, chance.randrange(size), size - chance.randrange(1, 40)])]
    length = chance.choice([1, 8, 64, 512])
    place, other = sorted(chance.sample(range(max(1, size - length)), 2))
    if damage == "zeros":
        return content[:place] + bytes(length) + content[place + length :]
    if damage == "grown":
        return content[:place] + content[place : place + length] + content[place:]
    if damage == "copied":  # a block also lands in another place
        return content[:other] + content[place : place + length] + content[other + length :]
    assert damage == "swapped"
    other = max(other, place + length)
    first, second = content[place : place + length], content[other : other + length]
    return (
        content[:place]
        + second
        + content[place + len(second) : other]
        + first[: len(second)]
        + content[other + len(second) :]
    )


@pytest.mark.parametrize("damage", ["bit", "cut", "zeros", "grown", "copied", "swapped"])
@pytest.mark.parametrize("name", ["small", "long", "one", "problems"])
def test_no_reader_gives_other_values_of_a_damaged_file(name: str, damage: str, files: dict[str, Path]) -> None:
    path, chance = files[name], random.Random(f"{name} {damage}")
    reads = READS_OF_PROBLEMS if name == "problems" else READS
    content = path.read_bytes()
    right = {kind: outcome(read, path) for kind, read in reads.items()}
    noticed = tries = 0
    try:
        for _ in range(FLIPS if damage == "bit" else 25):
            bad = changed(content, damage, chance)
            if bad == content:
                continue
            path.write_bytes(bad)
            for kind, read in reads.items():
                found = outcome(read, path)
                assert isinstance(found, InputError) or same(found, right[kind]), f"{kind}: other values"
            tries += 1
            try:
                check_whole(path, PROBLEM_SCHEMA if name == "problems" else SCHEMA)
            except DamagedFile:
                noticed += 1
    finally:
        path.write_bytes(content)
    assert noticed == tries > 0, "the whole file has its checksums"


def test_two_pages_that_changed_places_are_noticed_though_the_checksums_of_both_are_right(tmp_path: Path) -> None:
    path, chance = tmp_path / "problems.parquet", random.Random(0)
    answers = [str(chance.randrange(10**6)) for _ in range(25_000)]
    fixed = {"source": "hand", "task": "math", "problem": "?"}
    rows = [{"problem_id": f"{n:06d}", **fixed, "reference_answer": answer} for n, answer in enumerate(answers)]
    write_table(path, pa.Table.from_pylist(rows, PROBLEM_SCHEMA))
    content = path.read_bytes()
    group = pq.read_metadata(path).row_group(0)
    chunk = group.column(PROBLEM_SCHEMA.names.index("reference_answer"))
    first = chunk.data_page_offset
    end = chunk.dictionary_page_offset + chunk.total_compressed_size
    second = first + re.search(rb"(?s).\x15\x00\x15", content[first:end]).start() + 1
    path.write_bytes(content[:first] + content[second:end] + content[first:second] + content[end:])
    found = pq.ParquetFile(path, page_checksum_verification=True).read()
    assert found["reference_answer"].to_pylist() == answers[20_000:] + answers[:20_000]
    with pytest.raises(DamagedFile, match="column reference_answer does not match its checksum"):
        read_problems(path)


def test_other_readers_can_check_the_pages_too(files: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "shard-00000.parquet"
    content = bytearray(files["long"].read_bytes())
    chunk = pq.read_metadata(files["long"]).row_group(0).column(SCHEMA.names.index("problem_id"))
    content[chunk.dictionary_page_offset + chunk.total_compressed_size - 1] ^= 1
    path.write_bytes(content)
    with pytest.raises(OSError, match="CRC checksum"):
        pq.ParquetFile(path, page_checksum_verification=True).read()


def test_the_benchmark_of_checksums_compares_the_same_rows(tmp_path: Path) -> None:
    bench = runpy.run_path(str(Path(__file__).parent.parent / "examples" / "bench" / "shards.py"))
    table = bench["realistic"](rows=40, tokens=30)
    write_table(tmp_path / "shard-00000.parquet", table)
    bench["write_plainly"](tmp_path / "plain.parquet", table)
    assert read_table(tmp_path / "shard-00000.parquet").equals(table)
    assert bench["read_plainly"](tmp_path / "plain.parquet", None).equals(table)
    assert {len(row) for row in table["response_token_ids"].to_pylist()} == {30}


# Shards without checksums, from before there were any


def _of_version_1(rows: list[Any]) -> pa.Table:
    schema = SCHEMAS["1"].with_metadata({b"trd.schema_version": b"1"})
    return pa.table({name: [getattr(row, name) for row in rows] for name in schema.names}, schema=schema)


def unsealed(path: Path, rows: list[Any]) -> Path:
    """Write a shard without checksums, as before there were any."""
    pq.write_table(_of_version_1(rows), path, compression="zstd")
    return path


def test_shards_without_checksums_are_read_as_before(tmp_path: Path) -> None:
    path = unsealed(tmp_path / "shard-00000.parquet", OF_VERSION["1"])
    for old in (path, GOLDEN_SHARDS["1"]):
        check_whole(old)
        assert read_rows(old) == OF_VERSION["1"]
        assert shard_info(old).rows == 3
    check_complete([tmp_path])


def test_text_that_is_none_any_more_in_a_shard_without_checksums_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "shard-00000.parquet"
    table = _of_version_1(ROWS)
    broken = pa.array([b"\xff\xfe"] * len(ROWS), pa.binary()).view(pa.string())
    table = table.set_column(table.schema.get_field_index("problem"), SCHEMA.field("problem"), broken)
    pq.write_table(table, path)
    with pytest.raises(DamagedFile, match="Invalid UTF8"):
        read_rows(path)


# The commands


def one_line(trd: Trd, *args: object) -> str:
    """Return the error of a command that ends in one line."""
    result = trd(*args)
    assert result.exit_code == 1
    assert "Traceback" not in result.stderr
    return result.stderr.splitlines()[-1]


SAMPLE = ("sample", "-m", "scripted", "-n", 2, "--shard-rows", 10)


def test_a_damaged_shard_is_made_again_by_its_own_command_and_no_other_row_is(
    rollouts: Path, problems: Path, ok: Trd
) -> None:
    before = by_id(rollouts)
    damaged = list_shards(rollouts)[1]
    # A column that the command itself never reads when it resumes.
    flip(damaged, "seed")
    result = ok(*SAMPLE, "-p", problems, "--out", rollouts)
    assert by_id(rollouts) == before
    assert f"is {damaged.with_suffix('.torn')} now: rows that only it had are made again" in result.stderr
    sessions = (rollouts / "sessions.jsonl").read_text().splitlines()
    assert [json.loads(line)["rows"] for line in sessions] == [24, 10]


def test_a_damaged_refined_shard_is_made_again(rollouts: Path, tmp_path: Path, ok: Trd) -> None:
    refine = ("refine", "--setting", "opsd", rollouts, "--shard-rows", 10, "--out", tmp_path / "y_r")
    ok(*refine)
    before = by_id(tmp_path / "y_r")
    flip(list_shards(tmp_path / "y_r")[0], "student_prompt_token_ids.list.element")
    ok(*refine)
    assert by_id(tmp_path / "y_r") == before


def test_damaged_samples_of_an_evaluation_are_made_again_and_the_scores_are_the_same(
    tmp_path: Path, ok: Trd, trd: Trd
) -> None:
    out = tmp_path / "e"
    command = ("eval", "scripted", "--bench", "arithmetic:n=12", "--k", 2, "--shard-rows", 10, "--out", out)
    ok(*command)
    before = (out / "results.json").read_bytes()
    flip(list_shards(out)[1], "response")
    assert f"{list_shards(out)[1]} is damaged" in one_line(trd, "eval", "--rescore", out)
    ok(*command)
    assert (out / "results.json").read_bytes() == before
    assert len(rows_of(out)) == 24


def test_those_who_only_read_name_the_damaged_shard_and_the_command_that_makes_it_again(
    rollouts: Path, tmp_path: Path, trd: Trd
) -> None:
    damaged = list_shards(rollouts)[2]
    flip(damaged, "problem")
    for command in (
        ("verify", rollouts),
        ("refine", "--setting", "opsd", rollouts, "--out", tmp_path / "y_r"),
        ("show", damaged),
    ):
        line = one_line(trd, *command)
        assert f"{damaged} is damaged" in line
        assert line.endswith("run its trd sample again, which makes the lost rows anew")
    assert not (tmp_path / "y_r").exists()
    assert not (tmp_path / "c").exists()


def test_a_damaged_copy_with_verdicts_is_made_again_from_its_source(rollouts: Path, tmp_path: Path, ok: Trd) -> None:
    ok("verify", rollouts, "--out", tmp_path / "graded")
    before = by_id(tmp_path / "graded")
    flip(list_shards(tmp_path / "graded")[0], "seed")
    ok("verify", rollouts, "--out", tmp_path / "graded")
    assert by_id(tmp_path / "graded") == before


def test_a_damaged_problem_set_is_named(problems: Path, tmp_path: Path, trd: Trd) -> None:
    flip(problems)
    line = one_line(trd, *SAMPLE, "-p", problems, "--out", tmp_path / "y_o")
    assert f"{problems} is damaged" in line
    assert line.endswith("make or import it again with trd data")


def test_a_shard_under_the_name_of_another_is_refused_and_the_lost_rows_are_made_again(
    rollouts: Path, problems: Path, ok: Trd, trd: Trd
) -> None:
    before = by_id(rollouts)
    first, second, _ = list_shards(rollouts)
    shutil.copy(first, second)
    line = one_line(trd, "refine", "--setting", "opsd", rollouts)
    assert f"{second} has the rows of {first.name}" in line
    assert line.endswith("run its trd sample again to mend it")
    ok(*SAMPLE, "-p", problems, "--out", rollouts)
    assert by_id(rollouts) == before


def test_error_rows_of_a_doubled_shard_are_tried_again_once(problems: Path, tmp_path: Path, trd: Trd) -> None:
    out = tmp_path / "y_o"
    command = (*SAMPLE, "-p", problems, "--engine-arg", "faults=0.3", "--max-errors", 24, "--out", out)
    trd(*command)
    before = by_id(out)
    first, second, _ = list_shards(out)
    shutil.copy(first, second)
    assert trd(*command, "--retry-errors").exit_code == 0
    assert by_id(out).keys() == before.keys()


def test_a_shard_of_another_set_is_refused_and_the_lost_rows_are_made_again(
    rollouts: Path, problems: Path, tmp_path: Path, ok: Trd, trd: Trd
) -> None:
    before = by_id(rollouts)
    ok(*SAMPLE, "-p", problems, "--seed", 5, "--out", tmp_path / "other")
    stranger = list_shards(rollouts)[0]
    shutil.copy(list_shards(tmp_path / "other")[0], stranger)
    assert f"{stranger} is of another set" in one_line(trd, "refine", "--setting", "opsd", rollouts)
    ok(*SAMPLE, "-p", problems, "--out", rollouts)
    assert by_id(rollouts) == before


def test_verdicts_stay_with_the_set_that_a_shard_says_it_is_of(rollouts: Path, ok: Trd) -> None:
    ok("verify", rollouts)
    digest = read_run_json(rollouts)["digest"]
    assert {shard_info(path).set_digest for path in list_shards(rollouts)} == {digest}


# run.json and results.json


def test_no_reader_gives_other_values_of_a_damaged_json_file(rollouts: Path, tmp_path: Path, ok: Trd) -> None:
    ok("eval", "scripted", "--bench", "arithmetic:n=4", "--k", 2, "--out", tmp_path / "e")
    chance = random.Random(4)
    readers: dict[Path, Read] = {
        rollouts / "run.json": lambda path: read_run_json(path.parent),
        tmp_path / "e" / "results.json": lambda path: read_results(str(path.parent)),
    }
    for path, read in readers.items():
        content = path.read_bytes()
        values = {name: value for name, value in read(path).items() if name != "checksum"}
        for _ in range(3 * FLIPS):
            place = chance.randrange(len(content))
            bad = content[:place] + bytes([content[place] ^ 1 << chance.randrange(8)]) + content[place + 1 :]
            path.write_bytes(bad)
            found = outcome(read, path)
            assert isinstance(found, InputError) or values == {name: found.get(name) for name in values}
        path.write_bytes(content)


def test_text_that_no_file_can_hold_does_not_make_a_run_json_damaged(tmp_path: Path) -> None:
    write_run_json(tmp_path, {"format": "trd-run-1", "half": "a\ud83d", 1: 2})
    assert read_run_json(tmp_path) | {"checksum": ""} == {
        "format": "trd-run-1",
        "half": "a\ufffd",
        "1": 2,
        "checksum": "",
    }


@pytest.mark.parametrize("damage", [b"", bytes(200), b'{"format": "trd-run'], ids=["empty", "zeros", "cut"])
def test_a_damaged_run_json_is_named_and_its_own_command_writes_it_anew(
    damage: bytes, rollouts: Path, problems: Path, ok: Trd, trd: Trd
) -> None:
    before = read_run_json(rollouts)
    rows = by_id(rollouts)
    (rollouts / "run.json").write_bytes(damage)
    line = one_line(trd, "verify", rollouts)
    assert f"{rollouts}/run.json" in line
    assert "the same options" in line
    ok(*SAMPLE, "-p", problems, "--out", rollouts)
    after = read_run_json(rollouts)
    assert [key for key in before if key not in ("created", "checksum") and before[key] != after[key]] == []
    assert by_id(rollouts) == rows


def test_a_damaged_run_json_lets_no_other_configuration_in(rollouts: Path, problems: Path, trd: Trd) -> None:
    (rollouts / "run.json").write_bytes(b"")
    assert "run.json" in one_line(trd, *SAMPLE, "--seed", 9, "-p", problems, "--out", rollouts)


def test_a_run_json_that_was_edited_on_purpose_is_taken_without_its_checksum(rollouts: Path, ok: Trd, trd: Trd) -> None:
    path = rollouts / "run.json"
    record = json.loads(path.read_text())
    record["about"]["note"] = "by hand"
    path.write_text(json.dumps(record))
    assert "take its key 'checksum' out" in one_line(trd, "verify", rollouts)
    del record["checksum"]
    path.write_text(json.dumps(record))
    ok("verify", rollouts)


def test_results_without_a_checksum_are_read(tmp_path: Path, ok: Trd) -> None:
    ok("eval", "scripted", "--bench", "arithmetic:n=4", "--out", tmp_path / "e")
    path = tmp_path / "e" / "results.json"
    record = json.loads(path.read_text())
    del record["checksum"]
    path.write_text(json.dumps(record))
    assert read_results(str(path)) == record
