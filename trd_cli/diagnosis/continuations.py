"""Make what the recovery rate is measured on: wrong rows are cut, models go on from there, and that is graded.

Below the directory of a diagnosis:

    recovery/cuts.json            the prefixes: row, problem, cut asked for, tokens kept, perplexity under the teacher
    recovery/teacher, .../student sets of trajectories like any other, with verdicts

Several cuts of a row may fall on one line break. They then share their continuations.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from trd_cli.atomic import make_directory, write_text
from trd_cli.config.diagnosing import DiagnoseConfig
from trd_cli.config.recovering import RecoverOptions
from trd_cli.continuing import PREFIX_OF, Continuer
from trd_cli.diagnosis.files import flat, iter_figures, read_rows
from trd_cli.diagnosis.recovery import By, Continued, Prefix, Recovery, rates
from trd_cli.diagnosis.sums import perplexity
from trd_cli.errors import InputError, counted
from trd_cli.generation import ShardFiller, check_strangers
from trd_cli.graders.pool import GraderOptions
from trd_cli.graders.verdicts import ShardGrader
from trd_cli.planned import Backend, Prompt
from trd_cli.progress import Progress, WithoutResults
from trd_cli.prompting.prefixes import cut
from trd_cli.prompting.tokens import Tokenizer
from trd_cli.records import Cut, Trajectory, is_intact, token_array, with_checksum
from trd_cli.training.batches import Example
from trd_cli.trajectories.id_set import IdSet
from trd_cli.trajectories.parts import verdicts_held
from trd_cli.trajectories.run_json import About, read_run_json
from trd_cli.trajectories.sets import InputSet, selected_tables
from trd_cli.trajectories.shards import list_shards, read_table
from trd_cli.trajectories.stage_dir import StageDir
from trd_cli.trajectories.state import State

RECOVERY, CUTS = "recovery", "cuts.json"
# The columns of a row that its continuations are made from, besides those of its contexts.
READ = (*PREFIX_OF, "prompt_template", "tests")
# From the ids of rows to these rows with their examples, which have both contexts.
Rows = Callable[[Collection[str]], Iterable[tuple[Trajectory, Example]]]


@dataclass(frozen=True)
class Voice:
    """Hold who goes on: its model, and what its set tells of it. A `setting` makes its rows refined ones."""

    by: By
    backend: Backend
    about: About
    setting: Literal["opd", "opsd"] | None = None

    def prompt(self, row: Trajectory, example: Example) -> Prompt:
        """Return the context that the model had when it scored the row."""
        if self.by == "student":
            return Prompt.of_student(row)
        return Prompt((), token_array(example.teacher_prompt), "", "")


def check_wrong(sets: Sequence[InputSet], chosen: IdSet, config: DiagnoseConfig) -> None:
    """Raise InputError, before hours of scoring, where no rollout to score has a verdict, or none is wrong."""
    columns = ["trajectory_id", "stage", "verdict"]
    verdicts = Counter(
        verdict
        for each in sets
        for table in selected_tables(each, config.subset, config.where, config.parents, columns)
        for name, stage, verdict in zip(*(table[column].to_pylist() for column in columns), strict=True)
        if stage == "rollout" and name in chosen
    )
    graded = verdicts.total() - verdicts[None]
    names = ", ".join(dict.fromkeys(str(each.directory) for each in sets))
    if not verdicts:
        raise InputError(f"--recover without a rollout in {names}", "the student's attempts", "name their set too")
    if not graded:
        raise InputError(f"--recover and no verdict in {names}", "graded rollouts", f"run trd verify {names} first")
    if not verdicts["incorrect"]:
        raise InputError(
            f"--recover and no wrong row among {counted(graded, 'graded rollout')} of {names}",
            "at least one with the verdict incorrect",
            "leave --recover out, or take another subset",
        )


def wrong_rows(directory: Path, limit: int | None) -> list[str]:
    """Return the ids of the diagnosed rollouts that are wrong, in order; only the first `limit`."""
    table = read_rows(directory).select(["trajectory_id", "kind", "verdict", "error"]).to_pylist()
    wrong = sorted(
        row["trajectory_id"]
        for row in table
        if row["kind"] == "rollout" and row["verdict"] == "incorrect" and row["error"] is None
    )
    return wrong[:limit]


def cut_rows(rows: Iterable[Trajectory], shares: Sequence[float], tokenizer: Tokenizer) -> Iterator[tuple[Any, ...]]:
    """Yield id, problem, share and tokens kept of each row and share, but for a row that ended at once."""
    for row in rows:
        for share in shares:
            tokens = cut(row.response_token_ids, tokenizer, Cut(share=share, at_line_break=True))
            if tokens:
                yield row.trajectory_id, row.problem_id, share, tokens


def with_perplexities(cuts: Iterable[tuple[Any, ...]], directory: Path) -> list[Prefix]:
    """Return the prefixes with their perplexities, from the figures of the diagnosis."""
    found = sorted(cuts)
    wanted = {name for name, *_ in found}
    sums = dict(_summed_logprobs(directory, wanted))
    return [
        Prefix(name, problem, share, tokens, perplexity(-sums[name][tokens - 1] / tokens))
        for name, problem, share, tokens in found
    ]


def _summed_logprobs(directory: Path, wanted: Collection[str]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the running sums of the teacher's log-probabilities of each row wanted."""
    for table in iter_figures(directory, ["trajectory_id", "teacher_logprob"]):
        values, offsets = flat(table, "teacher_logprob")
        for name, start, end in zip(table["trajectory_id"].to_pylist(), offsets, offsets[1:], strict=False):
            if name in wanted:
                yield name, values[start:end].cumsum(dtype=np.float64)


def write_cuts(directory: Path, prefixes: Sequence[Prefix], config: RecoverOptions) -> None:
    """Write the prefixes, with the cuts and the samples asked for."""
    make_directory(directory / RECOVERY)
    content = {
        "cuts": config.recover_cuts,
        "samples": config.recover_samples,
        "by": voices_of(config),
        "prefixes": [asdict(prefix) for prefix in prefixes],
    }
    write_text(directory / RECOVERY / CUTS, json.dumps(with_checksum(content)) + "\n")


def read_cuts(directory: Path) -> tuple[list[By], list[Prefix]]:
    """Return who went on, and the prefixes; nothing for a diagnosis without recovery, or whose file is damaged."""
    try:
        content = json.loads((directory / RECOVERY / CUTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return [], []
    if not is_intact(content):
        return [], []
    return content["by"], [Prefix(**values) for values in content["prefixes"]]


def voices_of(config: RecoverOptions) -> list[By]:
    """Return who is to go on; nobody without --recover."""
    both: list[By] = ["teacher", "student"]
    return both[: (2 if config.recover_by == "both" else 1) if config.recover else 0]


def recover(
    directory: Path,
    digest: str,
    voices: Sequence[Voice],
    rows: Rows,
    config: DiagnoseConfig,
    progress: Progress,
) -> None:
    """Cut the wrong rows of a finished diagnosis, and make the continuations that are missing, with their verdicts.

    `digest` is that of the diagnosis.
    """
    wrong = wrong_rows(directory, config.recover_limit)
    cuts = cut_rows((row for row, _ in rows({*wrong})), config.recover_cuts, voices[0].backend.tokenizer)
    prefixes = with_perplexities(cuts, directory)
    write_cuts(directory, prefixes, config)
    for voice in voices:
        progress.note(
            f"recovery: the {voice.by} goes on from {counted(len(prefixes), 'cut')} of {counted(len(wrong), 'wrong row')}, "
            f"{config.recover_samples} times each"
        )
        go_on(voice, directory, digest, prefixes, rows, config, progress)


def go_on(
    voice: Voice,
    directory: Path,
    digest: str,
    prefixes: Sequence[Prefix],
    rows: Rows,
    config: DiagnoseConfig,
    progress: Progress,
) -> None:
    """Generate and grade the continuations that are missing. `digest` is that of the diagnosis."""
    sampling, places = config.continuing(), _places(prefixes)
    identity = {"diagnosis": digest, **sampling.identity(), **voice.backend.identity()}
    command = "refine" if voice.setting else "sample"
    stage_dir = StageDir(str(directory / RECOVERY / voice.by), command, identity, config.record(), about=voice.about)
    total, quiet = config.recover_samples * sum(map(len, places.values())), WithoutResults(progress)
    with stage_dir:
        with ShardFiller(stage_dir, voice.backend, config, quiet, total) as filler:
            check_strangers(stage_dir.path, _strangers(stage_dir, places, config.recover_samples))
            stage_dir.expect(total)
            filler.fill(_planned(voice, places, rows, config))
            filler.end_of_plan()
        _grade(stage_dir, config, quiet)
    filler.outcome.check_errors(config.max_errors)


def _places(prefixes: Iterable[Prefix]) -> dict[str, list[int]]:
    """Return the lengths to which each row is cut, each once."""
    places: dict[str, set[int]] = {}
    for prefix in prefixes:
        places.setdefault(prefix.trajectory_id, set()).add(prefix.tokens)
    return {name: sorted(lengths) for name, lengths in places.items()}


def _planned(
    voice: Voice, places: Mapping[str, Sequence[int]], rows: Rows, config: RecoverOptions
) -> Iterator[Trajectory]:
    for row, example in rows(places.keys()):
        prompt = voice.prompt(row, example)
        for tokens in places[row.trajectory_id]:
            yield from Continuer(voice.backend, config.continuing(), Cut(tokens=tokens)).rows(
                *(row, prompt),
                kind="refined" if voice.setting else "rollout",
                sample_indices=range(config.recover_samples),
                setting=voice.setting,
            )


def _strangers(stage_dir: StageDir, places: Mapping[str, Sequence[int]], samples: int) -> int:
    """Count the rows of a set that go on from other prefixes, or are more than asked for of one."""
    columns = ["parent_id", "prefix_tokens", "sample_index"]
    tables = (read_table(path, columns) for path in stage_dir.shards())
    rows = (row for table in tables for row in zip(*(table[name].to_pylist() for name in columns), strict=True))
    return sum(tokens not in places.get(parent, ()) or index >= samples for parent, tokens, index in rows)


def _grade(stage_dir: StageDir, config: RecoverOptions, progress: Progress) -> None:
    """Fill in the verdicts that are missing, and those of another grader: the rows are this command's own."""
    progress.start("verify", None)
    with (
        verdicts_held(stage_dir.path, None),
        ShardGrader(GraderOptions.of(config), progress, "stale") as grader,
    ):
        for path in stage_dir.shards():
            grader.fill(path, path)
    progress.end()


def recovery_figures(directory: Path) -> list[Recovery]:
    """Return the recovery rates of a diagnosis, nothing where it has none; a set that is not finished is left out."""
    voices, prefixes = read_cuts(directory)
    return [
        figure
        for by in voices
        if _is_finished(directory / RECOVERY / by)
        for figure in rates(by, prefixes, list(_continued(directory / RECOVERY / by)))
    ]


def _is_finished(directory: Path) -> bool:
    return State(directory, read_run_json(directory)).is_finished


def _continued(directory: Path) -> Iterator[Continued]:
    columns = ["parent_id", "prefix_tokens", "verdict"]
    for path in list_shards(directory):
        table = read_table(path, columns)
        yield from map(Continued, *(table[name].to_pylist() for name in columns))
