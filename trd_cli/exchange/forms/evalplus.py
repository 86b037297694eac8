"""Read `samples.jsonl` of EvalPlus: `task_id` with `solution` (a whole program) or `completion` (the prompt's rest).

The problems are trd's own HumanEval+ or MBPP+, by the first row's task_id; `--problems humaneval+:version=v0.1.9` names
an edition. EvalPlus keeps the program alone, so the response is that program in a fence, as trd's prompt asks for. A
text that has a fence is taken as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from trd_cli.config.exchanging import ImportRolloutsConfig
from trd_cli.datasets.columns import From
from trd_cli.datasets.rows import Row, numbered_rows
from trd_cli.datasets.values import RowFault
from trd_cli.exchange.attempts import Attempt, Form, raw
from trd_cli.graders.evalplus_tasks import LATEST, Dataset, tasks

_BENCHMARKS: dict[str, tuple[str, Dataset]] = {"humaneval": ("humaneval+", "humaneval"), "mbpp": ("mbpp+", "mbpp")}


def open_form(config: ImportRolloutsConfig, path: Path) -> Form:
    first = next((row for _, row in numbered_rows(path) if not isinstance(row, RowFault)), {})
    name, dataset = _BENCHMARKS.get(_set_of(first), (None, None))

    def attempts(row: Row) -> Iterator[Attempt]:
        program = raw(row, "solution")
        if program is None and isinstance(body := raw(row, "completion"), str):
            program = _prompt(dataset, row.get("task_id")) + body
        if not isinstance(program, str):
            raise RowFault("neither solution nor completion")
        yield Attempt(program if "```" in program else f"```python\n{program}\n```")

    return Form({"problem_id": From(("task_id",), optional=True)}, attempts, problems=name)


def _set_of(row: Row) -> str:
    return str(row.get("task_id")).partition("/")[0].lower()


def _prompt(dataset: Dataset | None, task_id: object) -> str:
    found = tasks(dataset, LATEST[dataset]).get(str(task_id)) if dataset else None
    if found is None:
        raise RowFault(f"a completion of {task_id!r}, which EvalPlus does not know")
    return found["prompt"]
