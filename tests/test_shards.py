"""The format of a shard, refusals, and that a shard is there whole or not at all."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from array import array
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import Result
from support.sets import iter_rows

from trd_cli.errors import InputError
from trd_cli.records import Environment, Problem, Trajectory, Turn, author_array, logprob_array, token_array
from trd_cli.trajectories.problem_sets import read_problems
from trd_cli.trajectories.sets import open_sets
from trd_cli.trajectories.shards import (
    PROBLEM_SCHEMA,
    SCHEMA,
    SCHEMAS,
    list_shards,
    read_rows,
    read_table,
    write_problems,
    write_shard,
)

ROOT = Path(__file__).parent.parent
# A change of the schema gets a new version and new golden files; these are never written again.
GOLDEN = Path(__file__).parent / "golden"
GOLDEN_SHARDS = {
    "1": GOLDEN / "shard-00000.parquet",
    **{version: GOLDEN / f"version-{version}" / "shard-00000.parquet" for version in ("2", "3")},
}

ROLLOUT = Trajectory(
    trajectory_id="0" * 32,
    problem_id="sum-1",
    parent_id=None,
    round=2,
    sample_index=1,
    stage="rollout",
    setting=None,
    source="hand",
    task="math",
    problem="What is 1 + 1? Übung, 数学, 🧮",
    reference_answer="2",
    reference_solution="1 + 1 = 2.",
    tests=None,
    messages=[{"role": "system", "content": ""}, {"role": "user", "content": "What is 1 + 1?"}],
    prompt_token_ids=token_array([256, 1, 2, 257]),
    prompt_template="student-math",
    prompt_sha256="ab" * 32,
    student_prompt_token_ids=None,
    attempt_tokens_trimmed=None,
    response="\\boxed{3}",
    response_token_ids=token_array([51, 2**31 - 1, 257]),
    logprobs=logprob_array([-0.5, -0.125, 0.0]),
    finish_reason="stop",
    ids_exact=True,
    model="scripted",
    model_revision="r1",
    engine="scripted",
    engine_version="0.1.0",
    temperature=0.6,
    top_p=0.95,
    top_k=20,
    max_tokens=64,
    seed=2**62 - 1,
    verdict="incorrect",
    extracted_answer="3",
    grader="math-verify",
    grader_version="0.9.0+boxed",
    verdict_detail="by hand",
    error=None,
)
REFINED = replace(
    ROLLOUT,
    trajectory_id="1" * 32,
    parent_id="0" * 32,
    stage="refined",
    setting="opsd",
    task="code",
    tests='{"kind": "stdin", "inputs": [], "outputs": []}',
    student_prompt_token_ids=token_array([256, 1, 2, 257]),
    attempt_tokens_trimmed=3,
    response="",
    response_token_ids=token_array([]),
    logprobs=None,
    finish_reason="length",
    ids_exact=False,
)
FAILED = replace(
    ROLLOUT,
    trajectory_id="2" * 32,
    messages=[],
    prompt_token_ids=token_array([]),
    response=None,
    response_token_ids=None,
    logprobs=None,
    finish_reason=None,
    ids_exact=None,
    verdict=None,
    extracted_answer=None,
    grader=None,
    grader_version=None,
    verdict_detail=None,
    error="prompt too long: 9000 tokens, the model takes 8192",
)
CONTINUED = replace(
    REFINED,
    trajectory_id="3" * 32,
    response="1 + 1 is 2",
    response_token_ids=token_array([1, 2, 3, 4]),
    author=author_array([0, 0, 1, 3]),
    token_weight=array("f", [0.0, 0.25, 1.0, 2.5]),
    prefix_tokens=2,
)
EPISODE = replace(
    ROLLOUT,
    trajectory_id="4" * 32,
    task="episode",
    response="> go west\nA wall.\n> go east",
    response_token_ids=token_array([1, 2, 3, 4, 5, 6]),
    logprobs=None,
    author=author_array([0, 0, 3, 2, 3, 0]),
    turns=[
        Turn("student", "go west", "A wall.", 0, 2, False, "stop", 2**62 - 1),
        Turn("student", "go east", None, 5, 6, None, "length", 7, token_array([9, 1, 2, 8])),
    ],
    environment=Environment("scripted", "1", '{"rooms": 3}', 5),
    episode_reward=0.5,
    stop_reason="tokens",
)
OF_VERSION = {"1": [ROLLOUT, REFINED, FAILED]}
OF_VERSION["2"] = [*OF_VERSION["1"], CONTINUED]
OF_VERSION["3"] = [*OF_VERSION["2"], EPISODE]
ROWS = OF_VERSION["3"]


def described(schema: pa.Schema, version: str) -> str:
    lines = [f"{f.name} {f.type} {'nullable' if f.nullable else 'required'}" for f in schema]
    return "\n".join([f"version {version}", *lines]) + "\n"


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    path = tmp_path / "set" / "shard-00000.parquet"
    path.parent.mkdir()
    write_shard(path, ROWS)
    return path


@pytest.mark.parametrize("version", GOLDEN_SHARDS)
def test_the_schema_of_each_version_is_the_one_that_is_written_down(version: str) -> None:
    written_down = GOLDEN_SHARDS[version].with_name("schema.txt").read_text()
    assert described(SCHEMAS[version], version) == written_down


@pytest.mark.parametrize("version", GOLDEN_SHARDS)
def test_the_golden_shards_still_read_to_the_same_rows(version: str) -> None:
    assert read_rows(GOLDEN_SHARDS[version]) == OF_VERSION[version]


def test_the_newest_version_is_written(shard: Path) -> None:
    assert described(pq.read_schema(shard), "3") == described(SCHEMA, [*SCHEMAS][-1])
    assert pq.read_metadata(shard).metadata[b"trd.schema_version"] == b"3"


def test_the_golden_rows_use_every_column() -> None:
    unused = [f.name for f in fields(Trajectory) if all(getattr(row, f.name) is None for row in ROWS)]
    assert unused == []


def test_the_schemas_columns_are_the_records_fields_in_their_order() -> None:
    assert SCHEMA.names == [f.name for f in fields(Trajectory)]
    assert PROBLEM_SCHEMA.names == [f.name for f in fields(Problem)]


def test_rows_come_back_as_they_were_written(shard: Path) -> None:
    assert read_rows(shard) == ROWS


def test_problems_come_back_as_they_were_written(tmp_path: Path) -> None:
    problems = [
        Problem("a", "hand", "math", "1 + 1?", "2", "1 + 1 = 2"),
        Problem("b", "hand", "code", "Add.", tests='{"kind": "stdin"}'),
    ]
    write_problems(tmp_path / "new" / "p.parquet", problems)
    assert read_problems(tmp_path / "new" / "p.parquet") == problems


def test_a_problem_without_a_required_value_is_not_written(tmp_path: Path) -> None:
    path, problem = tmp_path / "p.parquet", Problem("a", "hand", "math", "1 + 1?")
    write_problems(path, [problem])
    with pytest.raises((ValueError, pa.ArrowException)):
        write_problems(path, [problem, replace(problem, problem=None)])
    assert read_problems(path) == [problem]
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_row_without_a_required_value_becomes_an_error_row_that_says_so(shard: Path) -> None:
    write_shard(shard, [ROLLOUT, replace(ROLLOUT, problem=None)])
    good, bad = read_rows(shard)
    assert good == ROLLOUT
    assert (bad.error, bad.response) == ("could not be written: no table holds its problem", None)


def plain(value: Any) -> Any:
    """Return a column's value as other libraries have it: lists and dictionaries."""
    if is_dataclass(value):
        return {each.name: plain(getattr(value, each.name)) for each in fields(value)}
    return [plain(each) for each in value] if isinstance(value, (array, list)) else value


@pytest.mark.parametrize("version", [*GOLDEN_SHARDS, None])
def test_a_shard_loads_with_plain_polars_pyarrow_and_datasets(version: str | None, shard: Path, tmp_path: Path) -> None:
    import datasets
    import polars as pl

    name = str(GOLDEN_SHARDS.get(version, shard))
    version = version or "3"
    loaded = datasets.load_dataset("parquet", data_files=name, split="train", cache_dir=str(tmp_path / "cache"))
    rows = {
        "polars": pl.read_parquet(name).to_dicts(),
        "pyarrow": pq.read_table(name).to_pylist(),
        "datasets": [dict(row) for row in loaded],
    }
    written = [{name: plain(getattr(row, name)) for name in SCHEMAS[version].names} for row in OF_VERSION[version]]
    assert rows == dict.fromkeys(rows, written)


def rewritten(change: Callable[[pa.Table], pa.Table]) -> Callable[[Path], None]:
    """Return damage that goes through Arrow; the footer's version stays unless `change` removes it."""

    def damage(path: Path) -> None:
        table = change(pq.read_table(path))
        pq.write_table(table, path)

    return damage


def with_bytes(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(change(path.read_bytes())) and None


def of_type(name: str, kind: pa.DataType) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.set_column(
        table.schema.get_field_index(name), name, table[name].cast(kind)
    ).replace_schema_metadata(table.schema.metadata)


DAMAGES: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "text": (with_bytes(lambda _: b"a,b\n1,2\n" * 9), ["truncated or not Parquet"]),
    "nothing": (with_bytes(lambda _: b""), ["truncated or not Parquet"]),
    "cut tail": (with_bytes(lambda data: data[:-9]), ["truncated or not Parquet"]),
    "cut half": (with_bytes(lambda data: data[: len(data) // 2]), ["truncated or not Parquet"]),
    "hole": (with_bytes(lambda data: data[:4] + b"\xff" * 400 + data[404:]), ["truncated or not Parquet"]),
    "later version": (
        rewritten(lambda t: t.replace_schema_metadata({b"trd.schema_version": b"7"})),
        ["schema version 7", "version 1 or 2 or 3"],
    ),
    "no version": (
        rewritten(lambda t: t.replace_schema_metadata(None)),
        ["not a trajectory shard of trd", "trd.schema_version"],
    ),
    "missing column": (rewritten(lambda t: t.drop_columns(["seed"])), ["column seed", "no such column", "int64"]),
    "extra column": (
        rewritten(lambda t: t.append_column("reward", pa.nulls(len(t), pa.float32()))),
        ["column reward", "float", "no such column"],
    ),
    "wrong type": (rewritten(of_type("seed", pa.string())), ["column seed", "string", "int64"]),
    "wider ids": (
        rewritten(of_type("prompt_token_ids", pa.list_(pa.field("element", pa.int64())))),
        ["column prompt_token_ids", "int64", "int32"],
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_file_that_does_not_match_is_refused_by_name(name: str, shard: Path) -> None:
    damage, words = DAMAGES[name]
    damage(shard)
    with pytest.raises(InputError) as refused:
        read_rows(shard)
    assert [w for w in [str(shard), *words] if w not in str(refused.value)] == []


def test_a_problem_set_is_no_shard_and_a_shard_no_problem_set(shard: Path, tmp_path: Path) -> None:
    write_problems(tmp_path / "p.parquet", [Problem("a", "hand", "math", "1 + 1?")])
    with pytest.raises(InputError, match="column trajectory_id"):
        read_rows(tmp_path / "p.parquet")
    with pytest.raises(InputError, match="column"):
        read_problems(shard)


def test_a_missing_file_and_a_directory_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no such file: .*nowhere\.parquet"):
        read_table(tmp_path / "nowhere.parquet")
    with pytest.raises(InputError, match="is a directory"):
        read_table(tmp_path)


def test_an_empty_set_and_a_missing_one_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty has no shards"):
        open_sets([str(tmp_path / "empty")])
    with pytest.raises(InputError, match=r"no such file or directory: .*nowhere"):
        open_sets([str(tmp_path / "nowhere")])


def test_an_empty_problem_set_and_a_doubled_id_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    write_problems(path, [])
    with pytest.raises(InputError, match=r"p\.parquet has no problems"):
        read_problems(path)
    write_problems(path, [Problem("a", "hand", "math", text) for text in ("1 + 1?", "1 + 2?")])
    with pytest.raises(InputError, match="two problems 'a'"):
        read_problems(path)


def limited(size: int, *args: object) -> subprocess.CompletedProcess[str]:
    """Run a trd command whose files cannot grow beyond `size` bytes, as on a disk that fills up."""
    return subprocess.run(
        [sys.executable, "-m", "trd_cli.cli", *map(str, args)],
        cwd=ROOT,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)),
    )


def test_a_write_that_fails_half_way_leaves_no_shard_and_the_command_resumes(
    ok: Callable[..., Result], problems: Path, tmp_path: Path
) -> None:
    command: list[Any] = ["sample", "-m", "scripted", "-p", problems, "-n", 2]
    out = tmp_path / "y_o"
    ok(*command, "--shard-rows", 4, "--limit", 2, "--out", out)
    [first] = list_shards(out)
    written = first.read_bytes()

    # The next shard holds ten times as many rows.
    failed = limited(len(written) + 2000, *command, "--out", out)
    assert failed.returncode == 1
    assert failed.stdout.split() == [str(first)]
    [line] = [line for line in failed.stderr.splitlines() if "error" in line]
    assert line.startswith(f"trd sample: error: could not write {out}/shard-00001.parquet: File too large; expected")
    assert "Traceback" not in failed.stderr
    assert sorted(p.name for p in out.iterdir() if "shard" in p.name) == ["shard-00000.parquet"]
    assert first.read_bytes() == written

    ok(*command, "--out", out)
    assert len({row.trajectory_id for row in iter_rows(list_shards(out))}) == 24
    assert sum(1 for _ in iter_rows(list_shards(out))) == 24
