"""Problems as verl's RLHFDataset reads them: a prompt to sample from, and what its reward compares a response with.

    data_source     the row's `source`: verl chooses its reward function by it
    prompt          messages
    ability         the row's `task`
    reward_model    {style: "rule", ground_truth}: the reference answer; for a task graded by tests, these as JSON
    extra_info      {split, index, problem_id, trajectory_id, question, answer, solution, verdict}

verl samples its own responses, so each problem is one row: that of its first trajectory. Source: verl-project/verl,
verl/utils/dataset/rl_dataset.py and docs/preparation/prepare_data.rst.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

import pyarrow as pa

from trd_cli.config.exchanging import ExportConfig
from trd_cli.exchange.answers import Answer
from trd_cli.exchange.formats.base import MESSAGES, NUMBER, TEXT, Layout, Record
from trd_cli.graders.base import graded_by
from trd_cli.records import Trajectory
from trd_cli.trajectories.id_set import IdSet

_EXTRA = ("problem_id", "trajectory_id", "question", "answer", "solution", "verdict")


def _records(answers: Iterable[Answer], left_out: Counter[str], config: ExportConfig) -> Iterator[Record]:
    seen, index = IdSet(), 0
    for answer in answers:
        row, truth = answer.row, _truth(answer.row)
        if not truth:
            left_out["without a reference answer or tests"] += 1
        elif not seen.add(row.problem_id):
            left_out["of a problem that is there already"] += 1
        else:
            yield {
                "data_source": row.source,
                "prompt": [*answer.prompt],
                "ability": row.task,
                "reward_model": {"style": "rule", "ground_truth": truth},
                "extra_info": {"split": config.split, "index": index, **_extra(row)},
            }
            index += 1


def _truth(row: Trajectory) -> str | None:
    return row.tests if graded_by(row.task) == "tests" else row.reference_answer or row.tests


def _extra(row: Trajectory) -> Record:
    values = (
        *(row.problem_id, row.trajectory_id, row.problem),
        *(row.reference_answer, row.reference_solution, row.verdict),
    )
    return {name: value or "" for name, value in zip(_EXTRA, values, strict=True)}


LAYOUT = Layout(
    {
        "data_source": TEXT,
        "prompt": MESSAGES,
        "ability": TEXT,
        "reward_model": pa.struct([("style", TEXT), ("ground_truth", TEXT)]),
        "extra_info": pa.struct([("split", TEXT), ("index", NUMBER), *((name, TEXT) for name in _EXTRA)]),
    },
    _records,
    reads=("tests", "reference_solution"),
)
