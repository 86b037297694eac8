"""trd_cli.api: the five steps as functions make what the commands make, say nothing, and raise the package's errors."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from conftest import Trd, takes_long
from support.sets import by_id, rows_of
from support.tiny import build_model

from trd_cli import api
from trd_cli.config.generating import RefineConfig, SampleConfig
from trd_cli.errors import InputError, ModelError, TooManyRowErrors, UserError
from trd_cli.progress import SilentProgress
from trd_cli.trajectories.shards import list_shards

ROOT = Path(__file__).parent.parent
LINES = re.search(r"## As a library\n\n```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model(tmp_path_factory.mktemp("api") / "tiny")


def files_of(directory: Path) -> dict[str, bytes]:
    """Return the content of all shards of a set."""
    return {path.name: path.read_bytes() for path in list_shards(directory)}


def python(program: str | Path, directory: Path, *more: str) -> subprocess.CompletedProcess[str]:
    words = [str(program)] if isinstance(program, Path) else ["-c", program]
    return subprocess.run([sys.executable, *words, *more], cwd=directory, capture_output=True, text=True)


# The lines of the README


def make_problems(ok: Trd, directory: Path) -> None:
    ok("data", "make", "arithmetic", "--n", 100, "--seed", 1, "--out", directory / "train.parquet")


def test_the_lines_in_the_readme_run_as_they_stand_in_a_script_and_print_nothing(
    ok: Trd, tiny: Path, tmp_path: Path
) -> None:
    make_problems(ok, tmp_path)
    # A directory comes before the model that trd knows by this name.
    (tmp_path / "smollm2-135m").symlink_to(tiny)
    assert len(LINES.splitlines()) <= 8
    (tmp_path / "lines.py").write_text(LINES)
    done = python(tmp_path / "lines.py", tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert len(rows_of(tmp_path / "runs/few/y_o")) == len(rows_of(tmp_path / "runs/few/y_r")) == 8
    assert all(row.verdict for row in rows_of(tmp_path / "runs/few/y_r"))
    assert (tmp_path / "runs/few/student/config.json").is_file()
    results = json.loads((tmp_path / "runs/few/eval/results.json").read_text())
    assert results["benchmarks"]["arithmetic:n=8,seed=2"]["verdicts"]


@takes_long
@pytest.mark.model
def test_the_lines_in_the_readme_run_with_the_model_that_they_name(ok: Trd, tmp_path: Path) -> None:
    make_problems(ok, tmp_path)
    done = python(LINES + "print(sum(verdicts.values()), *scores)", tmp_path)
    assert (done.returncode, done.stdout) == (0, "16 arithmetic:n=8,seed=2\n")


# The same as the commands


def test_rows_are_the_bytes_that_the_commands_make(problems: Path, ok: Trd, tmp_path: Path) -> None:
    ok(
        "sample",
        "-m",
        "scripted",
        "-p",
        problems,
        "-n",
        2,
        "--max-tokens",
        64,
        "--shard-rows",
        10,
        "--out",
        tmp_path / "a",
    )
    ok("verify", tmp_path / "a")
    ok("refine", tmp_path / "a", "--setting", "opd", "-t", "scripted", "--max-tokens", 64, "--out", tmp_path / "a_r")
    ok("verify", tmp_path / "a_r", "--out", tmp_path / "a_v")

    sampled = api.sample(model="scripted", problems=problems, n=2, max_tokens=64, shard_rows=10, out=tmp_path / "b")
    api.verify(inputs=sampled)
    refined = api.refine(inputs=[sampled], setting="opd", teacher="scripted", max_tokens=64, out=tmp_path / "b_r")
    verdicts = api.verify(inputs=refined, out=tmp_path / "b_v")
    assert (sampled, refined) == (tmp_path / "b", tmp_path / "b_r")
    for name in ("", "_r", "_v"):
        assert files_of(tmp_path / f"a{name}") == files_of(tmp_path / f"b{name}") != {}
    assert verdicts == Counter(row.verdict for row in rows_of(tmp_path / "a_v"))


def test_scores_and_weights_are_those_of_the_commands_and_a_second_call_finds_them(
    problems: Path, tiny: Path, ok: Trd, tmp_path: Path
) -> None:
    few: dict[str, Any] = {"dtype": "float32", "max_tokens": 16}
    y_o = api.sample(model=tiny, problems=problems, limit=4, out=tmp_path / "y_o", **few)
    train = {"method": "fkl", "setting": "opsd", "lr": 1e-3, "dtype": "float32", "device": "cpu"}
    words = [word for name, value in train.items() for word in (f"--{name}", value)]
    ok("distill", y_o, *words, "--out", tmp_path / "by_command")
    students = [api.distill(inputs=y_o, out=tmp_path / name, **train) for name in ("one", "two")]
    weights = {(path / "model.safetensors").read_bytes() for path in (*students, tmp_path / "by_command")}
    assert len(weights) == 1
    exam = {"bench": "arithmetic:n=3,seed=2", "max_tokens": 16, "dtype": "float32"}
    ok("eval", students[0], "--bench", exam["bench"], "--max-tokens", 16, "--dtype", "float32", "--out", tmp_path / "e")
    scores = api.evaluate(model=students[0], out=tmp_path / "f", **exam)
    assert {"checksum", *scores} == (written := json.loads((tmp_path / "e/results.json").read_text())).keys()
    assert scores == {key: value for key, value in written.items() if key != "checksum"}
    before = files_of(tmp_path / "f")
    progress = SilentProgress()
    assert api.evaluate(model=students[0], out=tmp_path / "f", progress=progress, **exam) == scores
    assert files_of(tmp_path / "f") == before
    assert not any("loading" in note for note in progress.notes)


def test_what_is_missing_is_made_by_the_same_call(problems: Path, tmp_path: Path) -> None:
    asked = {"model": "scripted", "problems": problems, "shard_rows": 5, "out": tmp_path / "y_o"}
    whole = by_id(api.sample(**asked))
    lost = list_shards(tmp_path / "y_o")[1]
    lost.unlink()
    progress = SilentProgress()
    assert by_id(api.sample(**asked, progress=progress)) == whole
    assert progress.results == list_shards(tmp_path / "y_o")


# Options


def test_a_config_stands_for_its_options(problems: Path, tmp_path: Path) -> None:
    config = SampleConfig(model="scripted", problems=str(problems), max_tokens=64)
    by_options = api.sample(model="scripted", problems=str(problems), max_tokens=64, out=tmp_path / "a")
    assert files_of(api.sample(config, out=tmp_path / "b")) == files_of(by_options)


def test_options_have_the_names_of_flags_or_of_fields(problems: Path, tmp_path: Path) -> None:
    y_o = api.sample(m="scripted", p=problems, out=tmp_path / "y_o")
    by_flag = api.sample(model="scripted", prefix=4, max_tokens=64, out=tmp_path / "a", **{"from": y_o})
    by_field = api.sample(model="scripted", prefix="4", max_tokens=64, from_sets=y_o, out=tmp_path / "b")
    assert files_of(by_flag) == files_of(by_field) != {}


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda out: api.sample(model="scripted", problem="p", out=out), "did you mean problems?"),
        (lambda out: api.sample(model="scripted", problems="p", n=0, out=out), "--n 0; expected"),
        (lambda out: api.sample(RefineConfig(setting="opsd"), out=out), "RefineConfig; expected either a SampleConfig"),
        (lambda out: api.refine(RefineConfig(setting="opsd"), n=3, out=out), "give one of the two"),
        (lambda out: api.sample(model="scripted", problems="no.parquet", out=out), "no.parquet"),
        (lambda out: api.verify(), "no input"),
        (lambda out: api.refine(setting="opsd", inputs="-", out=out), "no input"),
        (lambda out: api.evaluate(bench="arithmetic", out=out), "no model"),
    ],
)
def test_a_wrong_call_raises_one_line_and_writes_nothing(call: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as raised:
        call(tmp_path / "out")
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_errors_are_those_of_the_package(problems: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no model directory"):
        api.sample(model=tmp_path / "nothing", problems=problems, out=tmp_path / "y_o")
    with pytest.raises(TooManyRowErrors):
        api.sample(model="scripted", problems=problems, engine_arg={"faults": 1.0}, out=tmp_path / "y_o")
    with pytest.raises(UserError) as raised:  # of the system
        api.sample(model="scripted", problems=problems, out=problems / "inside")
    assert str(problems) in str(raised.value)


# In somebody else's process


def test_a_process_is_as_it_was_after_a_training(problems: Path, tiny: Path, tmp_path: Path) -> None:
    program = f"""
import os, random, signal, sys
import torch
from accelerate import Accelerator
from trd_cli import api
os.chdir({str(tmp_path)!r})
y_o = api.sample(model={str(tiny)!r}, problems={str(problems)!r}, limit=2, max_tokens=8, dtype="float32", out="y_o")
torch.manual_seed(7)
expected = torch.rand(3)
torch.manual_seed(7)
state = [signal.getsignal(n) for n in signal.valid_signals()], random.getstate(), dict(os.environ)
for number in range(2):
    api.distill(inputs="y_o", method="fkl", setting="opsd", device="cpu", dtype="float32", out=f"student-{{number}}")
assert torch.equal(torch.rand(3), expected)
assert state == ([signal.getsignal(n) for n in signal.valid_signals()], random.getstate(), dict(os.environ))
assert torch.is_grad_enabled() and os.getcwd() == {str(tmp_path)!r}
mine = Accelerator(cpu=True, mixed_precision="bf16")
api.distill(inputs="y_o", method="fkl", setting="opsd", device="cpu", dtype="float32", out="student-2")
print(mine.state.mixed_precision)
"""
    done = python(program, tmp_path)
    assert (done.returncode, done.stdout) == (0, "bf16\n"), done.stderr
    weights = {(tmp_path / f"student-{number}/model.safetensors").read_bytes() for number in range(3)}
    assert len(weights) == 1


def test_a_step_runs_in_a_thread_and_inside_an_event_loop(problems: Path, tiny: Path, tmp_path: Path) -> None:
    program = f"""
import asyncio
from trd_cli import api
few = dict(max_tokens=8, dtype="float32")
def steps(name):
    y_o = api.sample(model={str(tiny)!r}, problems={str(problems)!r}, limit=2, out=f"y_o-{{name}}", **few)
    api.verify(inputs=y_o)
    train = dict(method="fkl", setting="opsd", device="cpu", dtype="float32")
    return api.distill(inputs=y_o, out=f"student-{{name}}", **train)
async def main():
    steps("loop")
    await asyncio.to_thread(steps, "thread")
asyncio.run(main())
"""
    done = python(program, tmp_path)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    weights = {(tmp_path / f"student-{name}/model.safetensors").read_bytes() for name in ("loop", "thread")}
    assert len(weights) == 1


def test_importing_it_loads_nothing_heavy(tmp_path: Path) -> None:
    program = "import sys, trd_cli.api; print(*sorted({n.partition('.')[0] for n in sys.modules}))"
    loaded = set(python(program, tmp_path).stdout.split())
    assert "pydantic" in loaded
    assert (
        loaded & {"torch", "transformers", "numpy", "pyarrow", "polars", "datasets", "jinja2", "typer", "rich"} == set()
    )
