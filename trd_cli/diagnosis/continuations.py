"""Make what the recovery rate is measured on: wrong rows are cut, models go on from there, and that is graded.

Below the directory of a diagnosis:

    recovery/cuts.json            the prefixes: row, problem, cut asked for, tokens kept, perplexity under the teacher
    recovery/teacher, .../student sets of trajectories like any other, with verdicts

Several cuts of a row may fall on one line break. They then share their continuations. Those of a row whose verdict has
changed from incorrect to another stay in their set and count no more.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
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
from trd_cli.errors import DamagedFile, InputError, counted
from trd_cli.generation import ShardFiller, check_strangers
from trd_cli.graders.options import GraderOptions
from trd_cli.graders.verdicts import ShardGrader
from trd_cli.planned import Backend, Prompt
from trd_cli.progress import Progress, WithoutResults
from trd_cli.prompting.prefixes import cut
from trd_cli.prompting.tokens import Tokenizer
from trd_cli.records import Cut, Trajectory, is_intact, token_array, with_checksum
from trd_cli.training.batches import Example
from trd_cli.trajectories.id_set import IdSet
from trd_cli.trajectories.parts import verdicts_held
from trd_cli.trajectories.run_json import About
from trd_cli.trajectories.sets import InputSet, selected_tables
from trd_cli.trajectories.shards import iter_values, list_shards
from trd_cli.trajectories.stage_dir import StageDir

RECOVERY, CUTS = "recovery", "cuts.json"
VOICES: tuple[By, ...] = ("teacher", "student")
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


def wrong_rows(directory: Path) -> list[str]:
    """Return the ids of the diagnosed rollouts that are wrong, in order."""
    table = read_rows(directory).select(["trajectory_id", "kind", "verdict", "error"]).to_pylist()
    return sorted(
        row["trajectory_id"]
        for row in table
        if row["kind"] == "rollout" and row["verdict"] == "incorrect" and row["error"] is None
    )


def cut_rows(
    rows: Iterable[Trajectory], shares: Sequence[float], tokenizers: Sequence[Tokenizer]
) -> Iterator[tuple[Any, ...]]:
    """Yield id, problem, share and tokens kept of each row and share, but for a row that ended at once.

    An end of turn that any of the tokenizers knows is in no prefix. A row or a share that comes twice counts once.
    """
    seen: set[tuple[str, float]] = set()
    for row in rows:
        for share in shares:
            where = Cut(share=share, at_line_break=True)
            tokens = min(cut(row.response_token_ids, tokenizer, where) for tokenizer in tokenizers)
            if tokens and (row.trajectory_id, share) not in seen:
                seen.add((row.trajectory_id, share))
                yield row.trajectory_id, row.problem_id, share, tokens


def with_perplexities(cuts: Iterable[tuple[Any, ...]], directory: Path) -> list[Prefix]:
    """Return the prefixes with their perplexities, from the figures of the diagnosis, one shard in memory."""
    of_row: defaultdict[str, list[tuple[Any, ...]]] = defaultdict(list)
    for name, *place in cuts:
        of_row[name].append(tuple(place))
    found: list[Prefix] = []
    for table in iter_figures(directory, ["trajectory_id", "teacher_logprob"]):
        values, offsets = flat(table, "teacher_logprob")
        for name, start, end in zip(table["trajectory_id"].to_pylist(), offsets, offsets[1:], strict=False):
            if name in of_row:
                sums = values[start:end].cumsum(dtype=np.float64)
                found += [Prefix(name, *place, _perplexity(sums, place[-1])) for place in of_row[name]]
    return sorted(found, key=lambda prefix: (prefix.trajectory_id, prefix.cut))


def _perplexity(sums: np.ndarray, tokens: int) -> float:
    """Return the perplexity of the first tokens from the running sums of log-probabilities."""
    return perplexity(-float(sums[tokens - 1]) / tokens)


def write_cuts(directory: Path, prefixes: Sequence[Prefix], config: RecoverOptions) -> None:
    """Write the prefixes, with the cuts and the samples asked for."""
    make_directory(directory / RECOVERY)
    content = {
        "cuts": config.recover_cuts,
        "samples": config.recover_samples,
        "prefixes": [asdict(prefix) for prefix in prefixes],
    }
    write_text(directory / RECOVERY / CUTS, json.dumps(with_checksum(content)) + "\n")


def read_cuts(directory: Path) -> tuple[int, list[Prefix]]:
    """Return the samples of each prefix, and the prefixes.

    Nothing is returned for a diagnosis without recovery, or whose file is damaged.
    """
    try:
        content = json.loads((directory / RECOVERY / CUTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return 0, []
    if not is_intact(content):
        return 0, []
    return content["samples"], [Prefix(**values) for values in content["prefixes"]]


def voices_of(config: RecoverOptions) -> list[By]:
    """Return who is to go on; nobody without --recover."""
    return [*VOICES[: (2 if config.recover_by == "both" else 1) if config.recover else 0]]


def recover(
    directory: Path,
    digest: str,
    voices: Sequence[Voice],
    tokenizers: Sequence[Tokenizer],
    rows: Rows,
    inputs: Sequence[Mapping[str, Any]],
    config: DiagnoseConfig,
    progress: Progress,
) -> None:
    """Cut the wrong rows of a finished diagnosis, and make the continuations that are missing, with their verdicts.

    `digest` is that of the diagnosis, `inputs` the lineage of its rows, `tokenizers` those of both models. Raises
    ResumeRefused, before anything is written, where a set is of other options or has more than is asked for.
    """
    wrong = wrong_rows(directory)
    chosen = wrong[: config.recover_limit]
    cuts = cut_rows((row for row, _ in rows({*chosen})), config.recover_cuts, tokenizers)
    prefixes = with_perplexities(cuts, directory)
    places = _places(prefixes)
    sets = [_set_of(voice, directory, digest, inputs, config) for voice in voices]
    # Of all voices: the prefixes are those of a set, too, to which nothing is added now.
    for path in (directory / RECOVERY / by for by in VOICES):
        check_strangers(path, _strangers(path, places, {*wrong}, config.recover_samples))
    with ExitStack() as held:
        for stage_dir in sets:
            held.enter_context(stage_dir)
        write_cuts(directory, prefixes, config)
        for voice, stage_dir in zip(voices, sets, strict=True):
            progress.note(
                f"recovery: the {voice.by} goes on from {counted(len(prefixes), 'cut')} of "
                f"{counted(len(chosen), 'wrong row')}, {config.recover_samples} times each"
            )
            go_on(voice, stage_dir, places, rows, config, progress)


def _set_of(
    voice: Voice, directory: Path, digest: str, inputs: Sequence[Mapping[str, Any]], config: DiagnoseConfig
) -> StageDir:
    """Return the set of a voice's continuations; raises ResumeRefused where it was made by other options."""
    identity = {"diagnosis": digest, **config.continuing().identity(), **voice.backend.identity()}
    command = "refine" if voice.setting else "sample"
    return StageDir(str(directory / RECOVERY / voice.by), command, identity, config.record(), inputs, voice.about)


def go_on(
    voice: Voice,
    stage_dir: StageDir,
    places: Mapping[str, Sequence[int]],
    rows: Rows,
    config: DiagnoseConfig,
    progress: Progress,
) -> None:
    """Generate and grade the continuations that are missing in a set that is held."""
    total, quiet = config.recover_samples * sum(map(len, places.values())), WithoutResults(progress)
    with ShardFiller(stage_dir, voice.backend, config, quiet, total) as filler:
        stage_dir.expect(None)  # until it is counted, what stays of rows that are right now makes no set whole
        filler.fill(_planned(voice, places, rows, config))
        filler.end_of_plan(keeps_others=True)
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


def _strangers(directory: Path, places: Mapping[str, Sequence[int]], wrong: Collection[str], samples: int) -> int:
    """Count the rows of a set that go on from other prefixes of wrong rows, or are more than asked for of one."""
    rows = _values(directory, ["parent_id", "prefix_tokens", "sample_index"])
    return sum(
        parent in wrong and (tokens not in places.get(parent, ()) or index >= samples) for parent, tokens, index in rows
    )


def _values(directory: Path, columns: list[str]) -> Iterator[tuple[Any, ...]]:
    """Yield some columns of the continuations in a set; a damaged shard has none, as they are to be made again."""
    for path in list_shards(directory) if directory.is_dir() else ():
        with suppress(DamagedFile):
            yield from iter_values([path], columns)


def _grade(stage_dir: StageDir, config: RecoverOptions, progress: Progress) -> None:
    """Fill in the verdicts that are missing, and those of another grader: the rows are this command's own."""
    progress.start("verify", None)
    with (
        verdicts_held(stage_dir.path, None),
        ShardGrader(GraderOptions.of(config), progress, "stale") as grader,
    ):
        for path in stage_dir.shards():
            grader.fill(path, path)
        grader.check_all_graded()
    progress.end()


def recovery_figures(directory: Path) -> list[Recovery]:
    """Return the recovery rates of a diagnosis, nothing where it has none.

    A set that lacks continuations is left out, and so are prefixes of rows that have another verdict by now.
    """
    samples, prefixes = read_cuts(directory)
    if not prefixes:
        return []
    wrong = {*wrong_rows(directory)}
    prefixes = [prefix for prefix in prefixes if prefix.trajectory_id in wrong]
    found: list[Recovery] = []
    for by in VOICES:
        rows = [
            Continued(*row) for row in _values(directory / RECOVERY / by, ["parent_id", "prefix_tokens", "verdict"])
        ]
        made = Counter((row.parent_id, row.tokens) for row in rows)
        if all(made[prefix.trajectory_id, prefix.tokens] >= samples for prefix in prefixes):
            found += rates(by, prefixes, rows)
    return found
