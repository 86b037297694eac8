"""The page of a report: one HTML file with its style, script, plots and trajectories, which fetches nothing.

A model's text is untrusted. The file holds it only as base64, and the script puts it on the page as text, never as
HTML. A Content-Security-Policy in the file also forbids every script but the file's own (by its hash), requests of any
kind, and assignments of HTML from a script.

Needs a browser from 2024 or later (`light-dark()`, DecompressionStream, MathML Core). Without JavaScript the page shows
tables and plots, but not the reader.
"""

from __future__ import annotations

import base64
import hashlib
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trd_cli import __version__
from trd_cli.atomic import replacing
from trd_cli.evaluation.table import Table
from trd_cli.report.data import ReportData
from trd_cli.report.reader.packing import SEARCHED, pack
from trd_cli.report.reader.trajectories import CHARACTERS, LIMIT, Trajectories
from trd_cli.report.tabulate import SECTIONS, tables

if TYPE_CHECKING:
    from trd_cli.report.plots import Plot

_ASSETS = Path(__file__).parent / "assets"
_SCRIPTS = ("frame.js", "difference.js", "text.js", "store.js", "turns.js", "view.js", "page.js")
_PROLOGUE = re.compile(r"^.*?(?=<svg\b)", re.DOTALL)
_METADATA = re.compile(r"<metadata>.*?</metadata>", re.DOTALL)
_REFERENCE = re.compile(r'(\bid="|url\(#|href="#)')


@dataclass(frozen=True, slots=True)
class _Plot:
    name: str
    title: str
    alt: str
    svg: Any


@dataclass(frozen=True, slots=True)
class _Section:
    name: str
    title: str
    tables: Sequence[Table]
    plots: Sequence[_Plot]


def write_page(path: Path, data: ReportData, plots: Mapping[str, Plot], trajectories: Trajectories) -> None:
    """Write the page to `path`, atomically. The names of `plots` begin with their section's, as `scores-arms`."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_ASSETS), autoescape=True, undefined=jinja2.StrictUndefined
    )
    script = "(() => {\n" + "\n".join(_asset(name) for name in _SCRIPTS) + "})();\n"
    template = environment.get_template("page.html.jinja")
    shown: dict[str, Any] = {
        "data": data,
        "facts": _facts(data, trajectories),
        "sections": _sections(tables(data), plots, Markup),
        "total": trajectories.total,
        "by_round": trajectories.by_round,
        "bounds": {"rows": LIMIT, "characters": CHARACTERS, "searched": SEARCHED},
        "policy": _policy(script),
        "version": __version__,
        "css": Markup(_asset("page.css")),
        "script": Markup(script),
    }
    with replacing(path) as file, tempfile.TemporaryFile("w+", encoding="ascii", dir=path.parent) as spool:
        pieces = template.generate(packed=pack(trajectories.entries, spool), **shown)
        file.writelines(piece.encode() for piece in pieces)


def _asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")


def _policy(script: str) -> str:
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # matplotlib's SVG styles its elements by attributes, which only 'unsafe-inline' allows.
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )


def _facts(data: ReportData, trajectories: Trajectories) -> list[tuple[str, str]]:
    """Return names and values of the report's runs, arms, benchmarks and the like, for the top of the page."""
    rounds = {node.round for node in data.nodes if node.round is not None}
    runs = list(zip(data.runs, data.directories, strict=True))
    seeds = sorted({node.seed for node in data.nodes if node.seed is not None})
    facts = [
        ("Setting", (data.setting or "").upper()),
        ("Arms", ", ".join(_arms(data))),
        ("Compared to", data.reference_arm or ""),
        ("Benchmarks", ", ".join(dict.fromkeys(score.benchmark for score in data.scores))),
        ("Rounds", str(len(rounds)) if rounds else ""),
        ("Seeds", ", ".join(map(str, seeds))),
        ("Trajectories", f"{trajectories.total:,}" if trajectories.total else ""),
        *(("Directory" + (f" of {run}" if len(data.runs) > 1 else ""), str(path)) for run, path in runs),
    ]
    return [(name, value) for name, value in facts if value]


def _arms(data: ReportData) -> list[str]:
    """Return the arms. Of two runs each arm comes once, with the run's name if only one has it."""
    if len(data.runs) == 1:
        return data.arms()
    runs: dict[str, list[str]] = {}
    for arm in data.arms():
        run = next(run for run in data.runs if arm.startswith(f"{run}/"))
        runs.setdefault(arm.removeprefix(f"{run}/"), []).append(run)
    return [arm if len(has) > 1 else f"{arm} ({has[0]} only)" for arm, has in runs.items()]


def _sections(all_tables: Iterable[Table], plots: Mapping[str, Plot], markup: type[Any]) -> list[_Section]:
    """Return the sections that have a table or a plot, in order."""
    by_section: dict[str, tuple[list[Table], list[_Plot]]] = {name: ([], []) for name in SECTIONS}
    for table in all_tables:
        by_section[table.section][0].append(table)
    for name, plot in plots.items():
        drawn = _Plot(name, plot.title, plot.alt, markup(inline_svg(plot.svg, name)))
        by_section[name.partition("-")[0]][1].append(drawn)
    return [_Section(name, SECTIONS[name], *parts) for name, parts in by_section.items() if any(parts)]


def inline_svg(svg: str, name: str) -> str:
    """Return an SVG document as an element of a page: ids begin with `name`, XML prologue and metadata are gone."""
    body = _METADATA.sub("", _PROLOGUE.sub("", svg, count=1))
    return _REFERENCE.sub(rf"\g<1>{name}-", body).strip()
