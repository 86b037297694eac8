"""trd report: a run, or two beside each other, as tables, plots and one page.

Writes report.html, report.md, a CSV file a table, plots/*.svg and plots/*.png into --out, in place of those of an
earlier report. nll.json keeps the figures that --nll has scored.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path

from trd_cli.atomic import make_directory, write_bytes, write_text
from trd_cli.config.commands import ReportConfig
from trd_cli.models import ModelRef
from trd_cli.progress import Progress
from trd_cli.report.collect import collect
from trd_cli.report.csv_files import csv_files
from trd_cli.report.data import Nll, Refinement, ReportData
from trd_cli.report.plots import Plot, is_plot, plots
from trd_cli.report.reader.page import write_page
from trd_cli.report.reader.trajectories import trajectories
from trd_cli.report.tabulate import markdown
from trd_cli.report.two_runs import combine
from trd_cli.trajectories.run_json import read_run_json

CACHE = "nll.json"
PAGE = "report.html"


def run(config: ReportConfig, resolve: Callable[[str], ModelRef], report: Progress) -> ReportData:
    """Collect and write the report, and return its figures. An unfinished run is reported as far as it has come.

    Raises InputError if a directory is not a run, or if the student that --nll needs is unknown.
    """
    runs = [collect(Path(name)) for name in config.runs]
    data = runs[0] if len(runs) == 1 else combine(*runs)
    out = _out(config)
    make_directory(out / "plots")
    if config.nll is not None:
        data = _with_nll(data, config, out / CACHE, resolve, report)
    for line in data.missing:
        report.note(f"not in the report: {line}")
    for line in data.notes:
        report.note(line)
    _write(out, data)
    report.note(f"wrote {PAGE}, report.md, CSV files and plots in {out}")
    report.result(out / PAGE)
    return data


def _out(config: ReportConfig) -> Path:
    """Return the directory to write to. A report on two runs does not replace the one on B alone."""
    if config.out:
        return Path(config.out)
    *against, run = map(Path, config.runs)
    return run / "-against-".join(["report", *(each.resolve().name for each in against)])


def _write(out: Path, data: ReportData) -> None:
    write_text(out / "report.md", markdown(data))
    for name, text in csv_files(data).items():
        if text is None:
            (out / name).unlink(missing_ok=True)  # An earlier report may have left it.
        else:
            write_text(out / name, text)
    drawn = plots(data)
    _write_plots(out / "plots", drawn)
    # Last: its presence shows that the rest is complete.
    write_page(out / PAGE, data, drawn, trajectories(data.sets))


def _write_plots(directory: Path, drawn: Mapping[str, Plot]) -> None:
    """Write the plots as files. Remove plots that only an earlier report has drawn, and nothing else."""
    for name, plot in drawn.items():
        write_text(directory / f"{name}.svg", plot.svg_file)
        write_bytes(directory / f"{name}.png", plot.png)
    for path in directory.iterdir():
        if path.suffix in (".svg", ".png") and is_plot(path.stem) and path.stem not in drawn:
            path.unlink()


def _with_nll(
    data: ReportData, config: ReportConfig, cache: Path, resolve: Callable[[str], ModelRef], report: Progress
) -> ReportData:
    from trd_cli.report.nll import score, student_of

    kept = _cached(cache)
    sets = {each.node: each for each in data.sets if each.stage == "refined"}
    refinements: list[Refinement] = []
    for refinement in data.refinements:
        refined = sets[refinement.node]
        model = student_of(refined, resolve)
        # A set made anew has the same name and may have other rows.
        made = (read_run_json(refined.path) or {}).get("created")
        key = f"{refined.path.name} of {made}, {model.revision}, {config.nll} rows of {refinement.rows}"
        if key not in kept:
            report.note(f"scoring {config.nll} rows of {refinement.node} with {model.name}")
            scored = score(refined, config.nll, model, config.device, report)
            kept[key] = {text: asdict(nll) for text, nll in scored.items()}
            write_text(cache, json.dumps(kept, indent=2, ensure_ascii=False) + "\n")
        found = {text: Nll(**values) for text, values in kept[key].items()}
        refinements.append(replace(refinement, nll={**refinement.nll, **found}))
    return replace(data, refinements=tuple(refinements))


def _cached(path: Path) -> dict[str, Mapping[str, Mapping[str, float | str]]]:
    """Return the figures that an earlier report scored, {} if its file is missing or cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
