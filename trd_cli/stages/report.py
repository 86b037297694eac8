"""trd report: a run, or two beside each other, as tables, plots and one page.

Writes report.html, report.md, a CSV file a table and plots/*.svg, plots/*.png into --out; nll.json keeps what --nll has scored.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from trd_cli.config import ReportConfig
from trd_cli.errors import InputError
from trd_cli.models import ModelRef
from trd_cli.report.collect import collect, combine
from trd_cli.report.csv_files import csv_files
from trd_cli.report.data import Nll, Refinement, ReportData, SetRef
from trd_cli.report.page import write_page
from trd_cli.report.plots import plots
from trd_cli.report.refinement import read_rollouts
from trd_cli.report.tables import markdown
from trd_cli.report.trajectories import trajectories
from trd_cli.reporting import Report
from trd_cli.run_dir import write_text
from trd_cli.shards import list_shards

CACHE = "nll.json"
PAGE = "report.html"


def run(config: ReportConfig, resolve: Callable[[str], ModelRef], report: Report) -> ReportData:
    """Collect and write the report; gives its figures. A run that is not finished is reported as far as it is.

    Raises InputError where a directory is no run, and where --nll cannot be had.
    """
    runs = [collect(Path(name)) for name in config.runs]
    data = runs[0] if len(runs) == 1 else combine(*runs)
    out = Path(config.out) if config.out else Path(config.runs[-1]) / "report"
    _make(out)
    if config.nll is not None:
        data = _with_nll(data, config, out / CACHE, resolve, report)
    for line in (*data.missing, *data.notes):
        report.note(f"not in the report: {line}")
    _write(out, data)
    report.note(f"wrote {PAGE}, report.md, CSV files and plots in {out}")
    report.result(out / PAGE)
    return data


def _make(out: Path) -> None:
    try:
        (out / "plots").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot make {out}: {error.strerror}", "a directory", "give another --out"
        ) from None


def _write(out: Path, data: ReportData) -> None:
    write_text(out / "report.md", markdown(data))
    for name, text in csv_files(data).items():
        write_text(out / name, text)
    drawn = plots(data)
    for name, plot in drawn.items():
        write_text(out / "plots" / f"{name}.svg", plot.svg_file)
        (out / "plots" / f"{name}.png").write_bytes(plot.png)
    # Last: where it is, all the rest is.
    write_page(out / PAGE, data, drawn, trajectories(data.sets))


def _with_nll(
    data: ReportData, config: ReportConfig, cache: Path, resolve: Callable[[str], ModelRef], report: Report
) -> ReportData:
    from trd_cli.report.nll import score, student_of

    kept = _cached(cache)
    sets = {each.node: each for each in data.sets if each.stage == "refined"}
    refinements: list[Refinement] = []
    for refinement in data.refinements:
        refined = sets[refinement.node]
        model = student_of(refined, resolve)
        key = f"{refined.path.name} {model.revision} {config.nll} rows of {refinement.rows}"
        if key not in kept:
            report.note(f"scoring {config.nll} rows of {refinement.node} with {model.name}")
            scored = score(refined, _rollouts(refined), config.nll, model, config.device, report)
            kept[key] = {text: asdict(nll) for text, nll in scored.items()}
            write_text(cache, json.dumps(kept, indent=2, ensure_ascii=False) + "\n")
        found = {text: Nll(**values) for text, values in kept[key].items()}
        refinements.append(replace(refinement, nll={**refinement.nll, **found}))
    return replace(data, refinements=tuple(refinements))


def _rollouts(refined: SetRef) -> dict[str, Any]:
    return read_rollouts(path for parent in refined.parents for path in list_shards(parent))


def _cached(path: Path) -> dict[str, Mapping[str, Any]]:
    """What an earlier report scored; a file that cannot be read is made anew."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
