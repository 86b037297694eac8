"""Load mathematics benchmarks from their published files.

Columns are accepted under the names of the Hub's edition and of the file in TRD_DATA. Each set is pinned to a commit of
its Hub repository. `sha256` is the content hash (`Loaded.sha256`) of the edition in TRD_DATA. Where `hub_is_same`, the
pinned file has the same bytes; elsewhere the Hub's text may differ in details, so another hash proves nothing.

AMO-Bench's prompts end with an instruction on the form of the answer. It is cut off, because trd's prompt template has
its own. Where a question asks for a set or a formula, one sentence replaces it, as a right answer could not be compared
otherwise. Eleven of its fifty questions ask for a description, which no parser can grade; they are left out, as in the
official parser subset.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from trd_cli.datasets.presets import gsm8k_parts
from trd_cli.datasets.rows import Row, file_rows
from trd_cli.datasets.sources import Loaded, fetch
from trd_cli.errors import InputError
from trd_cli.graders.answers import last_boxed
from trd_cli.records import Problem, content_hash

_PROBLEM = ("problem", "question", "prompt")
_IDS = ("id", "problem_idx", "question_id", "unique_id")
_FORMAT = "After solving the above problem, please output"
# Two answers are formulas, in n and in a triangle's sides; they are compared at the official grader's points.
_POINTS: dict[str, dict[str, Any]] = {
    "5": {"variables": ["n"], "points": [[n] for n in range(1, 21)]},
    "37": {"variables": ["a", "b", "c"], "points": [[n, n + 1, n + 2] for n in range(2, 19)]},
}
# Its other answers are compared to four decimal places.
_ROUNDED = json.dumps({"kind": "rounded", "digits": 4})


@dataclass(frozen=True)
class MathSet:
    """Describe one benchmark. `make` returns None for a row to leave out; `note` says which rows those are."""

    size: int
    repo: str
    path: str
    revision: str
    sha256: str
    hub_is_same: bool
    make: Callable[[str, Row], Problem | None]
    note: str | None = None


def load_math_set(name: str, revision: str | None) -> Loaded:
    """Return the problems of `MATH_SETS[name]`, from TRD_DATA or the Hub; raise InputError for a malformed row."""
    known = MATH_SETS[name]
    file = fetch(f"{name}.jsonl", known.repo, known.path, revision, known.revision)
    problems = []
    for number, row in enumerate(file_rows(file.path), start=1):
        try:
            problem = known.make(name, row)
        except (ValueError, KeyError) as error:
            raise InputError(
                f"{name}, row {number} of {file.source}: {error.args[0]}", "the published set", "get it again"
            ) from None
        if problem is not None:
            problems.append(problem)
    return Loaded(
        problems,
        file.source,
        file.commit,
        known.size,
        known.sha256,
        certain=known.hub_is_same or file.commit is None,
        notes=(known.note,) if known.note else (),
    )


def _first(row: Row, columns: tuple[str, ...]) -> str | None:
    """Return the first of `columns` that the row has, as text; a number is written in digits."""
    values = (row[column] for column in columns if row.get(column) is not None)
    return next((str(value) for value in values), None)


def _problem(name: str, row: Row, text: str, answer: str, **more: str | None) -> Problem:
    identity = _first(row, _IDS) or content_hash(text, 16)
    return Problem(f"{name}-{identity}", name, "math", text, answer, **more)


def _text(row: Row) -> str:
    text = _first(row, _PROBLEM)
    if not text:
        raise ValueError(f"no column {' or '.join(_PROBLEM)}; it has {', '.join(row)}")
    return text


def _boxed(text: str | None, where: str) -> str:
    boxed = last_boxed(text or "")
    if not boxed:
        raise ValueError(f"no boxed answer in the {where}")
    return boxed.strip()


def _plain(name: str, row: Row) -> Problem:
    """Return the problem of a row whose answer stands in `answer`, or boxed in `solution` (AIME 2024 on the Hub)."""
    answer, solution = _first(row, ("answer",)), _first(row, ("solution",))
    if answer is None:
        return _problem(name, row, _text(row), _boxed(solution, "solution"))
    return _problem(name, row, _text(row), answer, reference_solution=solution)


def _gsm8k(name: str, row: Row) -> Problem:
    solution, answer = gsm8k_parts(row["answer"])
    return _problem(name, row, _text(row), answer, reference_solution=solution)


def _amobench(name: str, row: Row) -> Problem | None:
    kind = row["answer_type"]
    if kind == "description":
        return None
    text, found, _ = _text(row).partition(_FORMAT)
    if not found:
        raise ValueError("the prompt does not end in AMO-Bench's format instruction")
    identity, tests, ending = str(row["question_id"]), _ROUNDED, ""
    if kind == "set":
        ending = "\n\nGive the set by listing all of its elements."
    if kind == "variable":
        if identity not in _POINTS:
            raise ValueError(f"question {identity} asks for a formula, but its points are not known")
        variables = ", ".join(_POINTS[identity]["variables"])
        ending = f"\n\nGive one formula in which no other variable occurs than {variables}."
        tests = json.dumps({"kind": "points", **_POINTS[identity]})
    solution = _first(row, ("solution",))
    answer = _boxed(row["answer"], "answer")
    return _problem(name, row, text.strip() + ending, answer, reference_solution=solution, tests=tests)


MATH_SETS: Mapping[str, MathSet] = {
    "aime24": MathSet(
        30,
        "math-ai/aime24",
        "test-00000-of-00001.parquet",
        "83a7f387baaa524a8bda0022eac0541582297103",
        "d8aaf2a688335940d2be7bf9732101db84edf7d921f4819c79689d7a2d743c4a",
        False,
        _plain,
    ),
    "aime25": MathSet(
        30,
        "math-ai/aime25",
        "test.jsonl",
        "563bb8404243c5f09de6ec262f2db674fe5bce9b",
        "c99d47dccc8b964969af926c35ee293d43f2f47b7be04698e76cf07362fcd5e9",
        True,
        _plain,
    ),
    "hmmt25": MathSet(
        30,
        "MathArena/hmmt_feb_2025",
        "data/train-00000-of-00001.parquet",
        "6fdc4277120810ff75aa22d2d5489b91f7a262a1",
        "32b4277b4f84ffb43f5e574b8be5c2779a25daf5f3aad4368313d9e2874c5cc6",
        False,
        _plain,
    ),
    "beyondaime": MathSet(
        100,
        "ByteDance-Seed/BeyondAIME",
        "data/test.parquet",
        "c705198ae1043810b1e1693bd879250b51a7a523",
        "ab8afc083b120fb1787eb23b89ef94aa5f3655c22d361a7af4f1eea644b8f419",
        False,
        _plain,
    ),
    "amobench": MathSet(
        39,
        "meituan-longcat/AMO-Bench",
        "data/test-00000-of-00001.parquet",
        "2f422616c25d862984408fbbfaed63a961e8e025",
        "3640634497e4b607cc97302532e499dc910056309827614824dde993e221d09c",
        False,
        _amobench,
        "39 of AMO-Bench's 50 questions: the 11 that ask for a description cannot be graded by a parser",
    ),
    "math500": MathSet(
        500,
        "HuggingFaceH4/MATH-500",
        "test.jsonl",
        "6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be",
        "63da2c8086dbeaa1675d960c53f41b84f43f6be05fb07f772fed558221010db1",
        True,
        _plain,
    ),
    "gsm8k": MathSet(
        1319,
        "openai/gsm8k",
        "main/test-00000-of-00001.parquet",
        "cc7b047b6e5bb11b4f1af84efc572db110a51b3c",
        "b0e767dc58f357f78168c4990fde9f64a3066f3b5782e6aa701f3ad0f40f75a4",
        False,
        _gsm8k,
    ),
}
