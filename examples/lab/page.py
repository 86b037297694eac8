"""Write the lab's page of a directory that run.sh has filled: claims with verdicts, tables of scores, and the figures.

    python examples/lab/page.py lab-run                        # lab-run/page.html, table.md and claims.json
    python examples/lab/page.py lab-run --against quick-run    # and which verdicts of the two agree

A run that has not ended gives what it has.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
from claims import BENCH, HARDER, Claim, Lab, agreement, records
from figures import BASE, Scores, difference, first_sets
from markupsafe import Markup
from matplotlib.figure import Figure

from trd_cli.atomic import write_bytes, write_text
from trd_cli.evaluation.paired import holm
from trd_cli.evaluation.table import Table, number, table_of
from trd_cli.evaluation.tables import interval, markdown_table, percent
from trd_cli.report.drawing import INK, STYLE, Plot, add_legend, looks_of, panels, saved
from trd_cli.report.reader import page as report_page
from trd_cli.report.run_directory import read_run

STUDENTS = {"knobs-weak": "weak student", "knobs": "student", "knobs-strong": "strong student"}
# The teacher's shares of turning back, as the arms of knobs.toml name them.
SHARES = {"q0": 0, "q30": 30, "q100": 100}
_RIVALS = ("fkl", "rkl")
KNOBS = "trd less its rivals, by the student and by how often their teacher turns back"


def main(arguments: Sequence[str]) -> None:
    """Write the page, or print the sets that a diagnosis reads."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("directory", type=Path, help="Directory of run.sh.")
    parser.add_argument("--against", type=Path, metavar="DIR", help="Another one, to compare the verdicts.")
    parser.add_argument("--sets", metavar="RUN", help="Print the first rollouts and refined rows of a run, and stop.")
    options = parser.parse_args(arguments)
    if options.sets:
        sets = first_sets(read_run(options.directory / "runs" / options.sets))
        if not sets:
            sys.exit(f"Error: {options.sets} has no seed whose rollouts and refined rows are graded")
        print(*(node.path for node in sets[0]), sep="\n")
        return
    if options.against and not (options.against / "claims.json").is_file():
        sys.exit(f"Error: no claims.json in {options.against}; expected a directory for which this script has run")
    lab = Lab.read(options.directory)
    claims = lab.claims()
    there = json.loads((options.against / "claims.json").read_text()) if options.against else []
    write(lab, claims, list(tables(lab, claims, there)))


def write(lab: Lab, claims: Sequence[Claim], shown: Sequence[Table]) -> None:
    """Write the page, the tables as Markdown, and the claims as JSON, and print the path of the page."""
    plots = {"knobs": plot} if (plot := knobs(lab)) else {}
    write_text(lab.directory / "claims.json", json.dumps(records(claims), indent=2, ensure_ascii=False) + "\n")
    parts = [part for t in shown for part in (f"### {t.title}", markdown_table(t.columns, t.rows), t.note)]
    write_text(lab.directory / "table.md", "\n\n".join(filter(None, parts)) + "\n")
    for name, plot in plots.items():
        write_text(lab.directory / f"{name}.svg", plot.svg_file)
        write_bytes(lab.directory / f"{name}.png", plot.png)
    write_text(lab.directory / "page.html", rendered(lab, shown, plots))
    print(lab.directory / "page.html")


def rendered(lab: Lab, shown: Sequence[Table], plots: dict[str, Plot]) -> str:
    """Return the page. Its style and its plots are as in trd report."""
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(
        (Path(__file__).parent / "page.html.jinja").read_text(encoding="utf-8")
    )
    css = (Path(report_page.__file__).parent / "assets" / "page.css").read_text(encoding="utf-8")
    drawn: list[dict[str, Any]] = [
        {"name": n, "title": p.title, "alt": p.alt, "svg": Markup(report_page.inline_svg(p.svg, n))}
        for n, p in plots.items()
    ]
    reports = (lab.directory / "runs" / name / "report" / "report.html" for name in lab.scores)
    links = [(path.parts[-3], path.relative_to(lab.directory).as_posix()) for path in reports if path.is_file()]
    seeds = {name: max(len(of) for of in scores.correct.values()) for name, scores in lab.scores.items()}
    lines = [
        "Prefix failure in a world small enough to measure. Intervals are 95 %, from a hierarchical bootstrap over seeds and questions.",
        "Runs and their seeds: " + ", ".join(f"{name} {count}" for name, count in seeds.items()) + ".",
        *([f"Not finished: {', '.join(lab.unfinished)}. Verdicts may change."] if lab.unfinished else []),
    ]
    return template.render(title="The lab", lines=lines, tables=shown, plots=drawn, links=links, css=Markup(css))


def tables(lab: Lab, claims: Sequence[Claim], there: Sequence[dict[str, Any]]) -> Iterator[Table]:
    """Yield the tables of the page: claims, agreement with another directory, scores of each run."""
    yield claims_table(claims)
    if there:
        yield agreement_table(claims, there)
    for name, scores in lab.scores.items():
        yield scores_table(name, scores)
    if any(name in lab.scores for name in STUDENTS):
        yield knobs_table(lab)


def claims_table(claims: Sequence[Claim]) -> Table:
    tests = sum(claim.p_value is not None for claim in claims)
    rows = [
        (
            *(claim.text, claim.setting, claim.verdict, claim.figure, f"{claim.value:.1f}"),
            *(f"{claim.low:.1f} to {claim.high:.1f}", number(claim.p_value, 2), number(claim.p_holm, 2)),
        )
        for claim in claims
    ]
    note = " ".join(
        [
            "Scores are of the held-out problems after 30 steps, differences paired by question and, but for base, by seed; y_r and y_o are of the "
            f"training problems. p is two-sided and corrected by Holm for the {tests} tests of this table. Held and did not hold: corrected p below 0.05 "
            "for the claim and against it; undecided is not no difference. The share of the KL is of that behind the first wrong step, over the "
            "problems of one seed. It speaks for the claim if it is above a half and above the positions' share. Whole answers to a problem are "
            "equally long in this world, so that y_r cannot be shorter. Ten rounds have as many steps and rows as one, and fewer different problems in "
            "a step.",
            *(claim.about for claim in claims if claim.about),
        ]
    )
    columns = ("claim", "setting", "verdict", "measure"), ("figure", "95 % interval", "p", "p, Holm")
    return table_of("claims", "Claims", *columns, rows, note)


def agreement_table(claims: Sequence[Claim], there: Sequence[dict[str, Any]]) -> Table:
    rows = [
        (c.text, c.setting, c.verdict, other["verdict"], agreed, f"{c.value:.1f}", f"{other['value']:.1f}")
        for c, other, agreed in agreement(claims, there)
    ]
    counted = {word: sum(row[4] == word for row in rows) for word in dict.fromkeys(row[4] for row in rows)}
    note = f"Of {len(rows)} claims in both: " + ", ".join(f"{n} {word}" for word, n in counted.items()) + "."
    columns = ("claim", "setting", "here", "there", "verdicts"), ("figure here", "figure there")
    return table_of("agreement", "Verdicts here and in the other run", *columns, rows, note)


def scores_table(name: str, scores: Scores) -> Table:
    cells = [(bench, kind) for bench in (BENCH, HARDER) if bench in scores.benches for kind in ("avg", "pass")]
    rows = []
    for arm in scores.arms:
        found = [scores.mean(arm, *cell) for cell in cells]
        shown = (f"{percent(m.value)} ({interval({'low': m.low, 'high': m.high})})" for m in found)
        turned = scores.mean(arm, BENCH, "turned").value
        rows.append((arm, str(len(scores.correct[arm])), *shown, percent(turned)))
    k = scores.samples(BASE, cells[0][0])
    columns = [f"{bench}, {kind}@{k}" for bench, kind in cells]
    note = "With 95 % intervals over seeds and questions. Turns back: share of the answers to held-out problems with a mark for turning back."
    return table_of(f"scores-{name}", f"Scores, {name}", ("arm", "seeds"), (*columns, "turns back"), rows, note)


def knob_differences(lab: Lab) -> Iterator[tuple[str, str, str, Any]]:
    """Yield run, rival, share of turning back, and trd's avg@k less the rival's."""
    for run in STUDENTS:
        for rival in _RIVALS:
            for share in SHARES:
                scores = lab.scores.get(run)
                d = difference(scores, f"{rival}-{share}", scores, "trd", BENCH, "avg") if scores else None
                if d is not None:
                    yield run, rival, share, d


def knobs_table(lab: Lab) -> Table:
    found = list(knob_differences(lab))
    corrected = holm([d.p_value for *_, d in found])
    rows = [
        (
            f"{STUDENTS[run]}, {percent(lab.scores[run].mean(BASE, BENCH, 'avg').value)} right",
            *(f"trd − {rival}", f"{SHARES[share]} %", f"{100 * d.value:+.1f}"),
            *(interval({"low": d.low, "high": d.high}, "+"), number(d.p_value, 2), number(p_holm, 2)),
        )
        for (run, rival, share, d), p_holm in zip(found, corrected, strict=True)
    ]
    words = ("student", "difference", "teacher turns back")
    numbers = ("points of avg@4", "95 % interval", "p", "p, Holm")
    note = f"On the held-out problems, paired by question and by seed; p is corrected by Holm for the {len(rows)} differences of this table."
    return table_of("knobs", KNOBS, words, numbers, rows, note)


def knobs(lab: Lab) -> Plot | None:
    """Draw, for each student, trd's advantage over the share of turning back; None where none has ended."""
    found = list(knob_differences(lab))
    runs = list(dict.fromkeys(run for run, *_ in found))
    if not runs:
        return None
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": "knobs"}):
        figure: Figure
        figure, [row] = panels(1, len(runs), 3.0, shared=True)
        looks = looks_of(_RIVALS)
        for axes, run in zip(row, runs, strict=True):
            for i, rival in enumerate(_RIVALS):
                of = [
                    (SHARES[share] + 3 * i - 1.5, d)
                    for name, against, share, d in found
                    if (name, against) == (run, rival)
                ]
                values = [100 * d.value for _, d in of]
                ends = [[100 * (d.value - d.low) for _, d in of], [100 * (d.high - d.value) for _, d in of]]
                look = looks[rival]
                axes.errorbar([x for x, _ in of], values, ends, capsize=3, color=look.colour, marker=look.mark)
            axes.axhline(0, color=INK, linewidth=0.8)
            base = lab.scores[run].mean(BASE, BENCH, "avg")
            axes.set_title(f"{STUDENTS[run]}, {percent(base.value)} right", loc="left")
            axes.set_xlabel("teacher turns back, %")
        row[0].set_ylabel("trd less rival, points")
        add_legend(figure, [looks[rival].entry(f"trd − {rival} along y_o") for rival in _RIVALS])
        said = "; ".join(f"{STUDENTS[r]}, {rival}, {SHARES[q]} %: {100 * d.value:+.1f}" for r, rival, q, d in found)
        return saved(
            figure,
            f"{KNOBS}: above the line trd is better",
            f"Difference of avg@k with 95 % intervals, in points: {said}.",
        )


if __name__ == "__main__":
    main(sys.argv[1:])
