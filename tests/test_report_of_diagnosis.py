"""The files that a diagnosis leaves, and the section on prefix failure in the report of its run, or of it alone."""

from __future__ import annotations

import csv
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import Result
from support.diagnoses import ONSET, concluded, invented, positions, write_figures_of
from support.pages import pairs, trajectory, write_sets
from support.sets import by_hand

from trd_cli.diagnosis.recovery import By, Recovery
from trd_cli.diagnosis.results import FILE, Diagnosis, read_diagnosis
from trd_cli.diagnosis.tables import tables
from trd_cli.recipes.nodes import FORMAT
from trd_cli.report.collect import collect
from trd_cli.report.csv_files import csv_files
from trd_cli.report.prefix_plots import prefix_plots
from trd_cli.report.tabulate import markdown
from trd_cli.trajectories.run_json import write_run_json

Trd = Callable[..., Result]
ROWS = [(row, invented(row, i)) for i, row in enumerate(row for pair in pairs(24, 60) for row in pair)]


def diagnosed(directory: Path, inputs: tuple[Path, ...] = ()) -> Path:
    """Make up a finished diagnosis of 24 pairs."""
    write_figures_of(directory, ROWS)
    lineage = [{"path": str(path), "digest": "0", "command": "sample"} for path in inputs]
    write_run_json(directory, {"format": "trd-run-1", "command": "diagnose", "digest": "0", "inputs": lineage})
    concluded(directory)
    return directory


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a run of no stage, with a diagnosis."""
    directory = tmp_path_factory.mktemp("run")
    (directory / "graph.json").write_text(json.dumps({"format": FORMAT, "name": "tiny run", "nodes": []}))
    diagnosed(directory / "diagnosis")
    return directory


@pytest.fixture(scope="module")
def written(run: Path, ok: Trd, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report")
    ok("report", run, "--out", out)
    return out


def value(found: Diagnosis, figure: str, tenth: int | None = None, text: str = "y_o", verdict: str = "all") -> float:
    estimate = found.of(figure, text, verdict, tenth)
    assert estimate is not None
    assert estimate.value is not None
    return estimate.value


def test_figures_of_files_are_those_by_hand(tmp_path: Path) -> None:
    right = trajectory("right", 1, verdict="correct", response="so it is" * 4)
    wrong = trajectory("wrong", 2, verdict="incorrect", response="it is", finish_reason="length")
    lost = trajectory("lost", 3, verdict="incorrect")
    of_right = positions(
        forward_kl=[0.5, 1.5],
        student_logprob=[math.log(0.5)] * 2,
        overlap=[16, 8],
        teacher_top=[ONSET, ONSET],
        is_onset=[0, 1],
        overlap_advantage=[math.nan, -0.5],
    )
    of_wrong = positions(forward_kl=[4.0, 2.0], overlap=[0, 4], trigger=[0, 1], teacher_top=[3, ONSET])
    write_figures_of(tmp_path, [(right, of_right), (wrong, of_wrong), (lost, None)])
    found = concluded(tmp_path)
    assert read_diagnosis(tmp_path) == found
    assert found.rows == {"y_o": 2, "y_r": 0}
    assert found.positions == 4
    assert value(found, "forward_kl") == 2.0
    assert value(found, "forward_kl", tenth=6, verdict="incorrect") == 2.0
    assert math.exp(value(found, "student_nll", verdict="correct")) == pytest.approx(2)
    assert value(found, "overlap") == pytest.approx((0.75 + 0.125) / 2)
    assert value(found, "overlap", tenth=1) == 0.5
    assert value(found, "overlap_advantage", verdict="correct") == -0.5
    assert value(found, "onset_repeated") == pytest.approx(0.5)
    assert value(found, "onset_words", verdict="correct") == pytest.approx(500)
    assert (value(found, "trigger"), value(found, "trigger_token")) == (0.5, 2.0)
    assert (value(found, "truncated"), value(found, "accuracy_finished")) == (0.5, 1.0)


def test_figures_do_not_depend_on_the_size_of_shards(tmp_path: Path) -> None:
    for size in (1, 7, 100):
        write_figures_of(tmp_path / str(size), ROWS, shard_rows=size)
    one, seven, all_ = (concluded(tmp_path / str(size)) for size in (1, 7, 100))
    assert one == seven == all_


def test_a_diagnosis_that_was_changed_or_cut_off_is_refused(tmp_path: Path, trd: Trd) -> None:
    directory = diagnosed(tmp_path / "diagnosis")
    text = (directory / FILE).read_text()
    for content, told in (
        (text.replace('"rows": {"y_o": 24', '"rows": {"y_o": 25'), "checksum"),
        (text[: len(text) // 2], "layout"),
    ):
        (directory / FILE).write_text(content)
        result = trd("report", directory)
        assert result.exit_code == 1
        assert told in result.stderr
        assert "run trd diagnose again" in result.stderr
    (directory / FILE).write_text(text)
    by_hand(directory / FILE, lambda record: record.pop("positions"))
    assert "positions: field required" in trd("report", directory).stderr
    (directory / FILE).unlink()
    assert "finished trd diagnose" in trd("report", directory).stderr


def test_a_run_with_a_diagnosis_has_a_section_on_prefix_failure(written: Path, run: Path) -> None:
    page, text = (written / "report.html").read_text(), (written / "report.md").read_text()
    assert "## Prefix failure" in text
    assert '<section id="prefix"' in page
    for table in tables(read_diagnosis(run / "diagnosis")):
        assert f"### {table.title}" in text
        assert all(cell in text for row in table.rows for cell in row)
    for name in ("kl", "onset", "overlap", "fragments", "ratios", "scatter"):
        assert (written / "plots" / f"prefix-{name}.svg").is_file()
        assert f'id="plot-prefix-{name}"' in page


def test_the_csv_file_has_every_figure_as_it_is(written: Path, run: Path) -> None:
    found = read_diagnosis(run / "diagnosis")
    for directory in (written, run / "diagnosis"):
        with open(directory / "diagnosis.csv", newline="") as file:
            lines = list(csv.DictReader(file))
        assert len(lines) == len(found.figures)
        for line, estimate in zip(lines, found.figures, strict=True):
            assert (line["diagnosis"], line["figure"], line["text"]) == ("diagnosis", estimate.figure, estimate.text)
            assert float(line["value"]) == estimate.value
            assert line["tenth"] == ("" if estimate.tenth is None else str(estimate.tenth))
        assert len((directory / "diagnosis_pairs.csv").read_text().splitlines()) == 5


def test_a_diagnosis_of_a_run_that_is_not_finished_is_named(run: Path, ok: Trd, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    (copy / "diagnosis-2").mkdir(parents=True)
    (copy / "graph.json").write_bytes((run / "graph.json").read_bytes())
    write_run_json(copy / "diagnosis-2", {"format": "trd-run-1", "command": "diagnose", "digest": "0"})
    assert "not in the report: diagnosis-2: no such file" in ok("report", copy).stderr
    assert "Prefix failure" not in (copy / "report" / "report.md").read_text()


def test_several_diagnoses_are_told_apart(run: Path, tmp_path: Path) -> None:
    (tmp_path / "graph.json").write_bytes((run / "graph.json").read_bytes())
    for name in ("diagnosis-before", "diagnosis-after"):
        shutil.copytree(run / "diagnosis", tmp_path / name)
    data = collect(tmp_path)
    text = markdown(data)
    assert "### Turning back, diagnosis-before" in text
    assert "### Turning back, diagnosis-after" in text
    assert [line[0] for line in csv.reader(csv_files(data)["diagnosis_pairs.csv"].splitlines())] == [
        "diagnosis",
        *["diagnosis-after"] * 4,
        *["diagnosis-before"] * 4,
    ]


def test_a_diagnosis_alone_has_a_report_with_its_rows(tmp_path: Path, ok: Trd) -> None:
    sets = write_sets(tmp_path, pairs(24, 60))
    for ref, command in zip(sets, ("sample", "refine"), strict=True):
        write_run_json(ref.path, {"format": "trd-run-1", "command": command, "digest": "0"})
    diagnosed(tmp_path / "diagnosis", tuple(ref.path for ref in sets))
    ok("report", tmp_path / "diagnosis")
    page = (tmp_path / "diagnosis" / "report" / "report.html").read_text()
    assert '<section id="prefix"' in page
    assert "<dt>Trajectories</dt><dd>24</dd>" in page


def test_short_and_certain_rows_far_from_the_student_are_warned_of_in_the_report(tmp_path: Path) -> None:
    y_o = trajectory("o", 1)
    y_r = trajectory("r", 1, stage="refined", setting="opd", parent_id=y_o.trajectory_id)
    rows = [(y_o, positions(student_logprob=[-0.2] * 9)), (y_r, positions(student_logprob=[-3.0] * 3))]
    write_figures_of(tmp_path / "diagnosis", rows)
    write_run_json(tmp_path / "diagnosis", {"format": "trd-run-1", "command": "diagnose", "digest": "0"})
    concluded(tmp_path / "diagnosis")
    assert collect(tmp_path / "diagnosis").notes[0].startswith("diagnosis: 100 % of 1 pairs have a y_r that is short")


def test_recovery_is_drawn_by_cut_and_by_quartile_for_each_model_that_goes_on(run: Path) -> None:
    found = read_diagnosis(run / "diagnosis")
    assert prefix_plots(found)["prefix-recovery"]() is None
    rates: list[tuple[By, float | None, int | None, float]] = [
        ("teacher", 0.2, None, 0.8),
        ("teacher", 0.8, None, 0.3),
        ("teacher", None, 1, 0.7),
        ("teacher", None, 4, 0.4),
        ("teacher", 0.2, 1, 0.9),
        ("student", 0.2, None, 0.1),
    ]
    recovery = [Recovery(*of, value, value - 0.1, value + 0.1, 9, 9, 36, 0) for *of, value in rates]
    drawn = prefix_plots(replace(found, recovery=recovery))["prefix-recovery"]()
    assert drawn is not None
    figure, _, alt = drawn
    assert [[*line.get_ydata()] for line in figure.axes[0].lines if line.get_marker() in "os"] == [[80, 30], [10]]
    assert [[*line.get_ydata()] for line in figure.axes[1].lines if line.get_marker() in "os"] == [[70, 40]]
    assert "the teacher at 20 % 80 %" in alt
