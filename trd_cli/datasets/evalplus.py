"""Load HumanEval+ and MBPP+ as problems; the grader reads the tasks itself (`graders/evalplus_tasks.py`).

Not covered: the Mini and NoExtreme editions, and the timing tasks of EvalPerf.
"""

from __future__ import annotations

import json
import re

from trd_cli.datasets.sources import Loaded
from trd_cli.errors import InputError
from trd_cli.graders.evalplus_tasks import Dataset, Task, origin, task_sha256, tasks
from trd_cli.records import Problem

SIZES: dict[Dataset, int] = {"humaneval": 164, "mbpp": 378}
# Content hashes (`Loaded.sha256`) of the editions that trd knows.
_SHA256: dict[tuple[Dataset, str], str] = {
    ("humaneval", "v0.1.10"): "f73399e41b70845f2b6071d3c875e74625a4d5c1b77dc8ecb8328ca8ae3d6f14",
    ("humaneval", "v0.1.9"): "cb3be0aeea23aed9118487fcbacaf5c8f3b5fed3c5402ec572381e543166edf2",
    ("mbpp", "v0.2.0"): "555808fc292310c5fe7d0b86cfecd13c30839059daaecf9dac9d304e490ab920",
}
_ASKS: dict[Dataset, str] = {
    "humaneval": "Complete the function below. Answer with the whole code, its imports and helpers included.",
    "mbpp": "Write the function described below, under the name its test uses. Answer with the whole code, its imports included.",
}


def load_evalplus(name: str, dataset: Dataset, version: str) -> Loaded:
    """Return the tasks as problems.

    Their tests hold no inputs, only the task's name and hash; the grader reads the task again.
    """
    problems = [_problem(name, dataset, version, task) for task in tasks(dataset, version).values()]
    size = SIZES[dataset] if (dataset, version) in _SHA256 else None
    return Loaded(problems, origin(dataset, version), version, size, _SHA256.get((dataset, version)))


def canonical_version(text: str) -> str:
    """Return `v0.1.9` for 0.1.9 and v0.1.9; raise InputError for any other form."""
    if not re.fullmatch(r"v?\d+(\.\d+)+", text):
        raise InputError(f"version={text}", "one of EvalPlus's, such as v0.1.9", "change the version")
    return f"v{text.removeprefix('v')}"


def _problem(name: str, dataset: Dataset, version: str, task: Task) -> Problem:
    tests = {
        "kind": "evalplus",
        "dataset": dataset,
        "version": version,
        "task_id": task["task_id"],
        "entry_point": task["entry_point"],
        "sha256": task_sha256(task),
    }
    return Problem(
        task["task_id"],
        name,
        "code",
        f"{_ASKS[dataset]}\n\n```python\n{task['prompt'].strip()}\n```",
        reference_solution=task["prompt"] + task["canonical_solution"],
        tests=json.dumps(tests),
    )
