"""Grade by a function of the user's own, in a worker that can be killed.

The function gets three texts: the problem, the reference answer (None where the row has none), and the response after
any thinking block. It returns True (correct), False (incorrect) or a text: incorrect, for that reason. What it prints
goes to standard error, since standard output carries paths.

Not covered: a function whose verdict depends on more than its module's file and these texts. The file's hash is the
version of the grader.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trd_cli.errors import InputError, flag
from trd_cli.graders import answers
from trd_cli.graders.base import NO_ANSWER, Grade, Question
from trd_cli.own_code import OwnCode
from trd_cli.records import TASK_NAME, Task
from trd_cli.redaction import one_line

# A reason may have as many characters.
_LONGEST = 500
# The functions that this worker has imported, each with the version of its module then.
_imported: dict[OwnCode, tuple[str, Callable[..., Any]]] = {}


@dataclass(frozen=True)
class OwnGrader:
    """A function of the user's; `version` is a hash of its module's file, found from `directory` on."""

    code: OwnCode
    version: str
    directory: str


def own_graders(texts: Iterable[str]) -> dict[Task | None, OwnGrader]:
    """Read MODULE:FUNCTION (for the key None) and TASK=MODULE:FUNCTION; nothing is imported.

    Raises InputError for a text of another form, a task that is named twice, and a module that is not there.
    """
    found: dict[Task | None, OwnGrader] = {}
    for text in texts:
        task, named, name = text.rpartition("=")
        code = OwnCode.parse(name)
        if code is None or (named and not TASK_NAME.fullmatch(task)):
            raise InputError(
                f"{flag('grader')} {text}", "MODULE:FUNCTION or TASK=MODULE:FUNCTION", f"change {flag('grader')}"
            )
        if (task or None) in found:
            raise InputError(
                f"{flag('grader')} {text}, and another grader for {task or 'tasks of your own'}",
                "one grader a task",
                "leave one out",
            )
        found[task or None] = OwnGrader(code, code.version(), os.getcwd())
    return found


def chosen(graders: Mapping[Task | None, OwnGrader], task: Task, known: bool) -> OwnGrader | None:
    """Return the grader that the user names for a task; the one without a task is for those that trd does not know."""
    return graders.get(task) or (None if known else graders.get(None))


def load(grader: OwnGrader) -> None:
    """Import the grader's module, unless this process has it in this version; raises OwnCodeError."""
    version, _ = _imported.get(grader.code, (None, None))
    if version == grader.version:
        return
    if version is not None:
        sys.modules.pop(grader.code.module, None)
    if Path.cwd() != Path(grader.directory):
        os.chdir(grader.directory)
    with redirect_stdout(sys.stderr):
        _imported[grader.code] = grader.version, grader.code.load()


def grade(question: Question, grader: OwnGrader) -> Grade:
    """Return the function's verdict; raises what the function raises, and OwnCodeError if it cannot be imported."""
    load(grader)
    response = answers.final_part(question.response, question.thinking)
    if response is None:
        return Grade("incorrect", detail=NO_ANSWER)
    _, function = _imported[grader.code]
    with redirect_stdout(sys.stderr):
        found = function(question.problem, question.reference_answer, response)
    if isinstance(found, str):
        return Grade("incorrect", detail=one_line(found, _LONGEST) if found.strip() else None)
    if isinstance(found, bool):
        return Grade("correct" if found else "incorrect")
    kind, module = type(found).__qualname__, type(found).__module__
    kind = kind if module == "builtins" else f"{module}.{kind}"
    return Grade("error", detail=f"{grader.code} returned {kind}; it may return True, False or a text")
