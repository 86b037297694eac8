"""Rows are planned as the engine takes them: what is asked first, what is held, and what a resume knows."""

from __future__ import annotations

import json
import random
import weakref
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from conftest import Trd
from support.sets import by_id, flip, iter_rows, rows_of

from trd_cli.config.base import OutputOptions
from trd_cli.engines.base import Engine
from trd_cli.errors import ResumeRefused
from trd_cli.generation import ShardFiller
from trd_cli.models import resolve_model
from trd_cli.planned import Backend
from trd_cli.progress import SilentProgress
from trd_cli.records import Completion, Message, Problem, Request, Trajectory, content_hash
from trd_cli.trajectories.id_set import IdSet
from trd_cli.trajectories.problem_sets import ProblemSet
from trd_cli.trajectories.sets import open_sets, selected_tables
from trd_cli.trajectories.shards import list_shards, read_rows, read_table, write_problems, write_shard
from trd_cli.trajectories.stage_dir import StageDir


@dataclass
class Watched:
    """An engine with two slots; `planned` holds how many rows had been planned at each of its requests."""

    plan: list[str]
    planned: list[int] = field(default_factory=list)
    name: str = "scripted"
    version: str = "1"
    rows_at_once: int = 2

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        held: list[Request] = []
        for request in requests:
            self.planned.append(len(self.plan))
            held.append(request)
            if len(held) == self.rows_at_once:
                yield _reply(held.pop())
        yield from map(_reply, held)

    def close(self) -> None: ...


def _reply(request: Request) -> Completion:
    return Completion(request.request_id, "ok", [111, 107, 257], [-0.5] * 3, "stop")


def backend(engine: Engine | None) -> Backend:
    model = resolve_model("scripted")
    return Backend(model, model.tokenizer(), "scripted", "1", 8192, lambda note: engine)


def filled(out: Path, rows: Iterable[Trajectory], engine: Watched | None) -> ShardFiller:
    """Fill a directory with planned rows, four a shard."""
    with (
        StageDir(str(out), "sample", {}, {}) as stage_dir,
        ShardFiller(stage_dir, backend(engine), OutputOptions(shard_rows=4), SilentProgress(), None) as filler,
    ):
        filler.fill(rows)
        filler.end_of_plan()
    return filler


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory, ok: Trd) -> list[Trajectory]:
    """Return twenty rows without a response; every fifth cannot be asked for."""
    root = tmp_path_factory.mktemp("planned")
    problems = [Problem(f"p-{i:02d}", "hand", "math", f"{i} + 1 = ?", str(i + 1)) for i in range(20)]
    write_problems(root / "p.parquet", problems)
    ok(
        "sample",
        "-m",
        "scripted",
        "-p",
        root / "p.parquet",
        "--engine-arg",
        "faults=1",
        "--max-errors",
        20,
        "--out",
        root / "y_o",
    )
    rows = enumerate(rows_of(root / "y_o"))
    return [replace(row, error="prompt too long" if i % 5 == 4 else None) for i, row in rows]


def test_the_engine_has_its_first_request_before_the_second_row_is_planned(
    planned: list[Trajectory], tmp_path: Path
) -> None:
    plan: list[str] = []
    engine = Watched(plan)

    def rows() -> Iterator[Trajectory]:
        for row in planned:
            plan.append(row.trajectory_id)
            yield row

    filled(tmp_path / "out", rows(), engine)
    assert engine.planned[0] == 1
    # Between two requests only rows that cannot be asked for are planned.
    assert engine.planned == [i + 1 for i, row in enumerate(planned) if row.error is None]
    assert by_id(tmp_path / "out").keys() == {row.trajectory_id for row in planned}
    assert sum(row.error is not None for row in rows_of(tmp_path / "out")) == 4


class Messages(list[Message]):
    """The messages of one row, which tell whether anything still holds it."""


def test_only_rows_in_flight_and_those_of_the_open_shard_are_held(planned: list[Trajectory], tmp_path: Path) -> None:
    held: dict[int, weakref.ref[Messages]] = {}
    most = 0

    def rows() -> Iterator[Trajectory]:
        nonlocal most
        for number in range(200):
            row = planned[number % len(planned)]
            messages = Messages(row.messages)
            held[number] = weakref.ref(messages)
            most = max(most, sum(ref() is not None for ref in held.values()))
            yield replace(row, trajectory_id=f"{number:032x}", messages=messages)

    filler = filled(tmp_path / "out", rows(), Watched([]))
    assert filler.outcome.rows == 200
    # Four in the shard that is being filled, two in flight, and the one that is planned.
    assert most <= 4 + 2 + 1


def test_a_resume_makes_what_is_missing_and_refuses_rows_that_are_not_of_the_plan(
    planned: list[Trajectory], tmp_path: Path
) -> None:
    askable = [row for row in planned if row.error is None]
    filled(tmp_path / "out", askable[:6], Watched([]))
    engine = Watched([])
    filler = filled(tmp_path / "out", [*askable[:10], askable[3], askable[9]], engine)
    assert (filler.outcome.generated, filler.outcome.rows, filler.planned) == (4, 10, 10)
    assert len(engine.planned) == 4
    with pytest.raises(ResumeRefused, match="holds 9 rows that this command would not make"):
        filled(tmp_path / "out", askable[4:5], engine)
    assert len(engine.planned) == 4


def test_a_finished_set_is_resumed_without_an_engine(planned: list[Trajectory], tmp_path: Path) -> None:
    filled(tmp_path / "out", planned, Watched([]))
    filler = filled(tmp_path / "out", planned, None)
    assert (filler.outcome.generated, filler.outcome.rows, filler.outcome.errors) == (0, 20, 4)


def test_a_growing_set_does_not_look_finished(planned: list[Trajectory], tmp_path: Path) -> None:
    filled(tmp_path / "out", planned[:8], Watched([]))
    seen: list[int | None] = []

    def rows() -> Iterator[Trajectory]:
        for row in planned:
            seen.append(json.loads((tmp_path / "out" / "run.json").read_text())["rows_expected"])
            yield row

    filled(tmp_path / "out", rows(), Watched([]))
    assert set(seen[:9]) == {8}
    assert set(seen[10:]) == {None}
    assert json.loads((tmp_path / "out" / "run.json").read_text())["rows_expected"] == 20


def test_ids_and_logprobs_come_back_from_a_shard_in_four_bytes_each(planned: list[Trajectory], tmp_path: Path) -> None:
    filled(tmp_path / "out", planned, Watched([]))
    for row in iter_rows(list_shards(tmp_path / "out")):
        assert isinstance(row.prompt_token_ids, array)
        if row.error is None:
            assert (row.response_token_ids, row.logprobs) == (array("i", [111, 107, 257]), array("f", [-0.5] * 3))
        else:
            assert (row.response_token_ids, row.logprobs) == (None, None)
    shard = list_shards(tmp_path / "out")[0]
    before = shard.read_bytes()
    write_shard(shard, [replace(row, logprobs=row.logprobs and row.logprobs.tolist()) for row in read_rows(shard)])
    as_lists = read_table(shard)
    shard.write_bytes(before)
    assert read_table(shard).equals(as_lists), "lists and arrays are written alike"


# Sets of ids


def test_a_set_of_ids_adds_finds_and_discards_like_a_plain_one() -> None:
    chance = random.Random(4)
    names = [f"{chance.getrandbits(64):x}" for _ in range(3000)] + ["", "é\ud800", "x" * 9000]
    ids, plain = IdSet(names[:100]), set(names[:100])
    for _ in range(20_000):
        name = chance.choice(names)
        if chance.random() < 0.6:
            assert ids.add(name) == (name not in plain)
            plain.add(name)
        else:
            assert ids.discard(name) == (name in plain)
            plain.discard(name)
    assert len(ids) == len(plain)
    assert [name in ids for name in names] == [name in plain for name in names]


# Problem sets


def test_a_problem_set_is_read_in_slices_and_known_by_the_same_digest_as_ever(tmp_path: Path) -> None:
    # Ids of which one begins another, and letters outside ASCII: their order decides the digest.
    names = ["p", "p1", "p10", "p-1", "é", "\U0001f642", "z", "pa", "pf"]
    problems = [Problem(name, "hand", "code" if name == "z" else "math", f"{name} = ?", "1") for name in names]
    write_problems(tmp_path / "p.parquet", problems)
    found = ProblemSet.open(tmp_path / "p.parquet")
    assert found.digest == content_hash(sorted(p.problem_id + content_hash(p.problem) for p in problems), 16)
    assert (list(found), len(found), found.tasks()) == (problems, 9, ["math", "code"])
    part = found.slice(2, 3)
    assert (list(part), len(part), part.digest, part.tasks()) == (problems[2:5], 3, found.digest, ["math"])
    assert [name in part.ids() for name in names] == [False, False, True, True, True, False, False, False, False]
    assert list(found.slice(7, 100)) == problems[7:]


# The columns that are read


def test_a_filter_reads_only_the_columns_it_names_and_gives_only_those_asked_for(rollouts: Path) -> None:
    (each,) = open_sets([str(rollouts)])
    where = "sample_index = 1 AND LENGTH(response) > 0"
    tables = list(selected_tables(each, "all", where, (), ["trajectory_id"]))
    assert {tuple(table.column_names) for table in tables} == {("trajectory_id",)}
    expected = {row.trajectory_id for row in rows_of(rollouts) if row.sample_index == 1}
    assert {name for table in tables for name in table["trajectory_id"].to_pylist()} == expected
    # A column that the filter does not name may be damaged.
    for path in each.shards:
        flip(path, "logprobs.list.element")
    assert sum(table.num_rows for table in selected_tables(each, "all", where, (), ["trajectory_id"])) == len(expected)
