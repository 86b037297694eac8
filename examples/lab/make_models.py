"""Train the lab's models from nothing: a teacher, and students that are right in about 15, 35 and 50 of 100 attempts.

    python examples/lab/make_models.py --out trd-runs/lab/models [--seed 0]

The teacher learns to solve, to rewrite attempts and to turn back (see policies.py and rows.py). Each student goes on
from the teacher's weights for a short time: where a prompt shows no reference, it learns to write as a novice, who
takes a large digit for the largest; where the reference is shown, it goes on as the teacher. So it is known what a
student lacks. It is not a model that has never met the skill.

The command goes on where it was interrupted, and leaves finished models alone. It ends with a table of what each model
does on fresh problems, and fails where a goal is missed. All comes from the seed; another machine or number of threads
may round otherwise. `--share 0.01` makes so small a share of the steps, to try the command; no goal is checked then.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from measuring import fresh_worlds, student_figures, teacher_figures
from policies import Novice
from rows import FORMS
from training import Lesson, Shape, new_model, train
from transformers import LlamaForCausalLM
from transformers.utils import logging
from vocabulary import tokenizer

from trd_cli.atomic import make_directory, write_text
from trd_cli.errors import InputError, TrdError
from trd_cli.records import content_hash

TEACHER = "teacher"
NOVICES = {
    "student": Novice(0.52, 0.05),
    "student-weak": Novice(0.25, 0.05),
    "student-strong": Novice(0.8, 0.05),
}
# The teacher's steps and rate, those of a student, and rows a step.
STEPS, RATE = 1500, 3e-3
STUDENT_STEPS, STUDENT_RATE = 200, 1e-3
ROWS = 48
STUDENT_FORMS = {"student": 0.35, "vanilla-opd": 0.04, "vanilla-opsd": 0.38, "refine-opd": 0.04, "refine-opsd": 0.19}
MEASURED, _TRIED = 400, 8
MADE, FIGURES = "made.json", "figures.json"
# For each figure the least and the most that it may be.
GOALS: Mapping[str, Mapping[str, tuple[float, float]]] = {
    TEACHER: {
        "solves": (0.95, 1),
        "rewrites right": (0.95, 1),
        "keeps": (0.95, 1),
        "turns back, asked for 0.3": (0.2, 0.4),
    },
    "student": {"solves": (0.3, 0.45), "rewrites right": (0.9, 1), "solves, shown the reference": (0.9, 1)},
    "student-weak": {"solves": (0.12, 0.28), "rewrites right": (0.9, 1), "solves, shown the reference": (0.9, 1)},
    "student-strong": {"solves": (0.43, 0.6), "rewrites right": (0.9, 1), "solves, shown the reference": (0.9, 1)},
}


@dataclass(frozen=True)
class Maker:
    """Make models below `out` from a seed, with so large a share of the steps."""

    out: Path
    seed: int
    share: float
    save_seconds: float
    shape: Shape

    def lesson(self, name: str) -> Lesson:
        """Return how a model is trained."""
        own = f"{name} {self.seed}"
        if name == TEACHER:
            return Lesson(own, self._steps(STEPS), RATE, ROWS, FORMS)
        return Lesson(own, self._steps(STUDENT_STEPS), STUDENT_RATE, ROWS, STUDENT_FORMS, NOVICES[name])

    def _steps(self, steps: int) -> int:
        return max(1, round(self.share * steps))

    def model(self, name: str) -> LlamaForCausalLM:
        """Return a model, trained now unless it is there. Raises InputError for one that was made otherwise."""
        path, lesson = self.out / name, self.lesson(name)
        made = content_hash([asdict(lesson), asdict(self.shape), _code()])
        if (path / MADE).is_file():
            if json.loads((path / MADE).read_text())["digest"] != made:
                raise InputError(f"{path} was made otherwise", "a model of these options and this code", "remove it")
            return LlamaForCausalLM.from_pretrained(path).eval()
        model = new_model(self.shape, self.seed) if name == TEACHER else self.model(TEACHER)
        state = self.out / f".{name}-{made[:8]}.state"
        train(model, lesson, state, self.save_seconds)
        self._save(model, path, made, lesson)
        state.unlink(missing_ok=True)
        return model

    def _save(self, model: LlamaForCausalLM, path: Path, made: str, lesson: Lesson) -> None:
        """Write a model's directory beside its place and rename it."""
        beside = path.with_name(f".{path.name}.tmp")
        shutil.rmtree(beside, ignore_errors=True)
        model.save_pretrained(beside)
        tokenizer().save_pretrained(beside)
        write_text(
            beside / MADE, json.dumps({"digest": made, "shape": asdict(self.shape), "lesson": asdict(lesson)}, indent=1)
        )
        (self.out / FIGURES).unlink(missing_ok=True)
        os.replace(beside, path)

    def figures(self) -> dict[str, dict[str, float]]:
        """Return what each model does, measured now unless that is written down already."""
        file = self.out / FIGURES
        if file.is_file():
            return json.loads(file.read_text())
        torch.manual_seed(self.seed)
        count = MEASURED if self.share >= 1 else _TRIED
        worlds, attempts, found = fresh_worlds(self.seed, count), [], {}
        for name in NOVICES:
            found[name], own = student_figures(self.model(name), worlds)
            attempts += own
        found = {TEACHER: teacher_figures(self.model(TEACHER), worlds, attempts), **found}
        write_text(file, json.dumps(found, indent=1))
        return found


def missed(figures: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Return a line for each goal that a model misses."""
    return [
        f"{name} {figure}: {figures[name][figure]:.3f}, not {least:g} to {most:g}"
        for name, goals in GOALS.items()
        for figure, (least, most) in goals.items()
        if not least <= figures[name][figure] <= most
    ]


def table(figures: Mapping[str, Mapping[str, float]]) -> str:
    """Return the figures as a Markdown table, a row a figure and a column a model."""
    rows = list(dict.fromkeys(figure for each in figures.values() for figure in each))
    lines = [["", *figures], ["---"] * (len(figures) + 1)]
    lines += [[row, *(f"{each[row]:.3f}" if row in each else "" for each in figures.values())] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _code() -> str:
    here = Path(__file__).parent
    files = [here / f"{name}.py" for name in ("world", "policies", "vocabulary", "rows", "training")]
    return content_hash([file.read_text() for file in [*files, *sorted((here / "prompts").glob("*.jinja"))]])


def main(arguments: Sequence[str]) -> None:
    """Make the models and show their table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2, help="Threads that compute.")
    parser.add_argument("--share", type=float, default=1.0, help="Share of the steps, to try the command.")
    parser.add_argument("--save-minutes", type=float, default=0.75, help="A training under way is saved so often.")
    options = parser.parse_args(arguments)
    logging.disable_progress_bar()
    torch.set_num_threads(options.threads)
    begun = time.monotonic()
    maker = Maker(options.out, options.seed, options.share, 60 * options.save_minutes, Shape())
    try:
        make_directory(options.out)
        for name in (TEACHER, *NOVICES):
            maker.model(name)
        figures = maker.figures()
    except TrdError as error:
        sys.exit(f"Error: {error}")
    print(table(figures))
    print(f"{time.monotonic() - begun:.0f} seconds", file=sys.stderr)
    if options.share >= 1 and (lines := missed(figures)):
        sys.exit(f"Error: a goal is missed: {'; '.join(lines)}")


if __name__ == "__main__":
    main(sys.argv[1:])
