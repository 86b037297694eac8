"""trd lab estimators: how the variance of g_γ grows with γ, on two mirrored tasks, after Fu et al. (arXiv 2603.25562).

run.json                          the options that decide a cell
cells/gamma-0.25-seed-0.json      one cell: a student of one γ and seed, with its figures of every update
estimators.json                   the table: mean, least and largest value over the seeds of each γ
estimators.svg, estimators.png    the plot

A cell that is there is not made again; the same command, or one with more seeds, makes those that are missing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from trd_cli.atomic import make_directory, write_bytes, write_text
from trd_cli.config.lab import EstimatorsConfig
from trd_cli.lab.cells import Cell, distil, shown, teachers_of
from trd_cli.progress import Progress
from trd_cli.records import CHECKSUM, is_intact, with_checksum
from trd_cli.trajectories.stage_dir import StageDir

RESULTS = "estimators.json"
CELLS = "cells"
TITLES = (
    *("γ", "seeds", "variance", "times the first", "in the first tenth", "times the first", "in the last tenth"),
    *("variance / norm²", "in the first tenth", "end error", "teachers'"),
)


def run(config: EstimatorsConfig, progress: Progress) -> dict[str, Any]:
    """Make the cells that are missing, write the results and the plot, and return the content of estimators.json."""
    # Matrices of 64 × 64 gain nothing by threads, and one thread gives the same bytes on every machine of a kind.
    torch.set_num_threads(1)
    stage_dir = StageDir(config.out, "lab-estimators", config.identity(), config.record())
    with stage_dir:
        stage_dir.expect(None)
        cells = _cells(config, stage_dir.path / CELLS, progress)
        results = summary(cells)
        write_text(stage_dir.path / RESULTS, json.dumps(with_checksum(results), indent=2) + "\n")
        _draw(stage_dir.path, cells)
    progress.note(f"wrote {RESULTS} and the plot in {stage_dir.path}")
    return results


def _cells(config: EstimatorsConfig, directory: Path, progress: Progress) -> list[Cell]:
    """Return all cells, by γ and then by seed, and write those that are missing as soon as each is done."""
    make_directory(directory)
    paths = {
        (gamma, seed): directory / f"gamma-{shown(gamma)}-seed-{seed}.json"
        for gamma in config.gammas
        for seed in range(config.seeds)
    }
    cells = {place: cell for place, path in paths.items() if (cell := read_cell(path, *place)) is not None}
    teachers = cache(lambda seed: teachers_of(seed, config.teacher_updates))
    progress.start("cells", len(paths), len(cells))
    # A seed at a time: its teachers serve all of its cells.
    for gamma, seed in sorted(paths.keys() - cells.keys(), key=lambda place: (place[1], place[0])):
        cells[gamma, seed] = distil(gamma, seed, config.updates, teachers(seed))
        write_text(paths[gamma, seed], json.dumps(with_checksum(asdict(cells[gamma, seed]))) + "\n")
        progress.advance()
    progress.end()
    return [cells[place] for place in paths]


def read_cell(path: Path, gamma: float, seed: int) -> Cell | None:
    """Return a cell from its file, None where there is none, or a damaged or another one: it is made again then."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(record, dict) or not is_intact(record):
        return None
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in record.items()}
    values.pop(CHECKSUM, None)
    if values.keys() != {field.name for field in fields(Cell)} or (values["gamma"], values["seed"]) != (gamma, seed):
        return None
    return Cell(**values)


def summary(cells: Sequence[Cell]) -> dict[str, Any]:
    """Return the content of estimators.json: for each γ the mean, the least and the largest of each figure."""
    return {
        "gammas": {
            shown(gamma): {
                "seeds": len(found),
                **{name: _over_seeds([cell.figures()[name] for cell in found]) for name in found[0].figures()},
                "teacher_error": _over_seeds([cell.teacher_error for cell in found]),
            }
            for gamma, found in _by_gamma(cells).items()
        }
    }


def _by_gamma(cells: Sequence[Cell]) -> dict[float, list[Cell]]:
    return {gamma: [cell for cell in cells if cell.gamma == gamma] for gamma in dict.fromkeys(c.gamma for c in cells)}


def _over_seeds(values: Sequence[float]) -> dict[str, float]:
    return {"mean": fmean(values), "low": min(values), "high": max(values)}


def table(results: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return the rows below TITLES: means over the seeds, with the least and the largest in brackets."""
    first = next(iter(results["gammas"].values()))

    def cells(gamma: str, of: Mapping[str, Any]) -> Iterator[str]:
        yield from (gamma, str(of["seeds"]))
        for name in ("variance", "variance_start"):
            yield from (_spread(of[name]), f"{of[name]['mean'] / first[name]['mean']:.1f}")
        yield from (_spread(of[n]) for n in ("variance_end", "ratio", "ratio_start", "end_error", "teacher_error"))

    return [tuple(cells(gamma, of)) for gamma, of in results["gammas"].items()]


def _spread(of: Mapping[str, float]) -> str:
    return f"{of['mean']:.3g} ({of['low']:.3g} – {of['high']:.3g})"


def _draw(directory: Path, cells: Sequence[Cell]) -> None:
    from trd_cli.lab.drawing import draw

    plot = draw(_by_gamma(cells))
    write_text(directory / "estimators.svg", plot.svg_file)
    write_bytes(directory / "estimators.png", plot.png)
