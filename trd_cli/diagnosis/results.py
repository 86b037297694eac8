"""diagnosis.json: the figures of a diagnosis, written once all its rows are scored, and read again by trd report.

format, trd          version of this layout, and of trd
checksum             a hash of all else (`trd_cli.records`)
student, teacher     {name, revision}
onset                SHA-256 of the words and ids in onset.json
rows                 {"y_o", "y_r": number of rows scored}
positions            number of positions scored
figures              [{figure, text, verdict, tenth, value, low, high, rows}]    `figures.Estimate`; null is unknown
scatter              [{text, verdict, counts}]    positions by p of the teacher (rows) and of the student (columns),
                     in squares of equal size over [0, 1]
shortening           {figures [{figure, y_o, y_r, difference, low, high, pairs}], collapsed, low, high, pairs}, null
                     without a pair
warnings             [one line each]
recovery             [{by, cut, quartile, value, low, high, prefixes, problems, graded, ungraded}]: with --recover,
                     `recovery.Recovery`
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from trd_cli import __version__
from trd_cli.atomic import write_text
from trd_cli.diagnosis.figures import ALL, Estimate, Gathering
from trd_cli.diagnosis.pairs import Shortening
from trd_cli.diagnosis.recovery import Recovery
from trd_cli.errors import DamagedFile, InputError
from trd_cli.records import is_intact, with_checksum

FORMAT = "trd-diagnosis-1"
FILE = "diagnosis.json"
_REMEDY = "run trd diagnose again with the same --out"


@dataclass(frozen=True, slots=True)
class Model:
    """A model of a diagnosis."""

    name: str
    revision: str


@dataclass(frozen=True, slots=True)
class Scatter:
    """Counts of positions by probability of the teacher (rows) and of the student (columns), in squares over [0, 1]."""

    text: str
    verdict: str
    counts: list[list[int]]


@dataclass(frozen=True)
class Diagnosis:
    """The content of diagnosis.json."""

    student: Model
    teacher: Model
    onset: str
    rows: dict[str, int]
    positions: int
    figures: list[Estimate]
    scatter: list[Scatter]
    shortening: Shortening | None
    warnings: list[str]
    recovery: list[Recovery]

    def of(self, figure: str, text: str, verdict: str = ALL, tenth: int | None = None) -> Estimate | None:
        """Return a figure of a group, or None if it is unknown."""
        return self._by_place.get((figure, text, verdict, tenth))

    @cached_property
    def _by_place(self) -> dict[tuple[str, str, str, int | None], Estimate]:
        return {(e.figure, e.text, e.verdict, e.tenth): e for e in self.figures}

    def groups(self) -> list[tuple[str, str]]:
        """Return the groups (text, verdict) that have rows, in order."""
        return list(dict.fromkeys((e.text, e.verdict) for e in self.figures))


def diagnosis_of(
    found: Gathering, student: Model, teacher: Model, onset: str, recovery: Sequence[Recovery]
) -> Diagnosis:
    """Return the figures of all rows that were added, and the recovery rates."""
    shortening = found.shortening()
    warning = shortening.warning if shortening else None
    scatter = [Scatter(*group, counts) for group, counts in found.scatter().items()]
    warnings = [warning] if warning else []
    figures = (found.rows, found.positions, found.estimates(), scatter, shortening)
    return Diagnosis(student, teacher, onset, *figures, warnings, [*recovery])


def write_diagnosis(directory: Path, diagnosis: Diagnosis) -> None:
    """Write diagnosis.json, atomically."""
    content = {"format": FORMAT, "trd": __version__, **asdict(diagnosis)}
    text = json.dumps(with_checksum(content), ensure_ascii=False, allow_nan=False)
    write_text(directory / FILE, text + "\n")


def read_diagnosis(directory: Path) -> Diagnosis:
    """Read diagnosis.json.

    Raises InputError if there is none, or one of another layout, and DamagedFile if it is not as it was written.
    """
    path = directory / FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"no such file: {path}", "the directory of a finished trd diagnose", _REMEDY) from None
    except (OSError, ValueError):
        content = None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(f"{path} is not of this trd's layout", f"one of format {FORMAT}", _REMEDY)
    if not is_intact(content):
        raise DamagedFile(f"{path} does not match its checksum", "what trd wrote", _REMEDY)
    try:
        return TypeAdapter(Diagnosis).validate_python(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise InputError(f"{path}: {place}: {first['msg'].lower()}", "a file as this trd writes it", _REMEDY) from None
