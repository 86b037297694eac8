"""trd export: write the rows of trajectory sets in the layout of another trainer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from trd_cli.config.exchanging import ExportConfig, ExportFormat
from trd_cli.errors import InputError, counted, flag
from trd_cli.exchange.answers import Answers, kinds
from trd_cli.exchange.files import Directory, write_file
from trd_cli.exchange.formats import messages, nemo, preference, prompt_completion, sharegpt, verl
from trd_cli.exchange.formats.base import Layout, Record
from trd_cli.exchange.pairs import refined_pairs, sample_pairs
from trd_cli.progress import Progress
from trd_cli.records import content_hash
from trd_cli.trajectories.sets import InputSet, check_complete, open_sets

LAYOUTS: Mapping[ExportFormat, Layout] = {
    "messages": messages.LAYOUT,
    "prompt-completion": prompt_completion.LAYOUT,
    "sharegpt": sharegpt.LAYOUT,
    "verl": verl.LAYOUT,
    "nemo": nemo.LAYOUT,
    "preference": preference.LAYOUT,
}
_RAW = ("raw", "raw-line")
# The columns that tell how the response to learn ended.
_ENDS = ("finish_reason", "chosen_finish_reason")
_NOT_OF_THE_ROWS = ("out", "inputs", "allow_partial", "parents", "file_type")


def run(config: ExportConfig, paths: Sequence[str], progress: Progress) -> None:
    """Write the rows in the subset to --out.

    Raises InputError where no row is left, and ResumeRefused for a directory with another export.
    """
    sets = open_sets(paths)
    if not config.allow_partial:
        check_complete(each.directory for each in sets)
    if Path(config.out).resolve() in {path.resolve() for each in sets for path in each.shards}:
        raise InputError(f"{config.out} is a shard of the set to export", "another file", f"give another {flag('out')}")
    layout = LAYOUTS[config.format]
    answers = Answers(config, sets, layout.reads, layout.holds_episodes, progress.note)
    directory = None if config.is_file else _directory(config, answers)
    if directory is not None and (done := directory.done()):
        progress.note(f"{config.out} is done: nothing to do")
        for path in done:
            progress.result(path)
        return
    schema, records = _with_arguments(layout, answers, _records(config, layout, answers), progress)
    counting = _Counting(records, answers, progress)
    progress.start("export", None)
    if directory is None:
        write_file(Path(config.out), config.type, schema, counting)
        progress.result(Path(config.out))
    else:
        for path in directory.write(config.type, schema, counting, config.split, config.file_rows):
            progress.result(path)
    progress.end()
    progress.note(f"{counted(counting.count, 'row')} in {config.out}, of {counted(answers.rows, 'row')}")
    if counting.cut_off:
        progress.note(
            f"{counted(counting.cut_off, 'row')} with a response that was cut off, after which a trainer puts the end of a "
            f"turn: {config.flag('where')} \"finish_reason = 'stop'\" leaves them out"
        )
    for reason, count in answers.left_out.most_common():
        progress.note(f"left out: {counted(count, 'row')} {reason}")


def _records(config: ExportConfig, layout: Layout, answers: Answers) -> Iterator[Record]:
    if config.format != "preference":
        return layout.records(answers, answers.left_out, config)
    pairs = config.pairs or ("refined" if "refined" in kinds(answers.sets) else "samples")
    made = (refined_pairs if pairs == "refined" else sample_pairs)(answers, config.max_pairs)
    return layout.records(made, answers.left_out, config)


class _Counting:
    """Records on their way to a file. Raise InputError where there is none, before a file gets its name."""

    def __init__(self, records: Iterable[Record], answers: Answers, progress: Progress) -> None:
        self._records, self._answers, self._progress = records, answers, progress
        self.count = self.cut_off = 0

    def __iter__(self) -> Iterator[Record]:
        for record in self._records:
            self.count += 1
            self.cut_off += any(record.get(name) == "length" for name in _ENDS)
            self._progress.advance()
            yield record
        if not self.count:
            reasons = [f"{count} {reason}" for reason, count in self._answers.left_out.most_common()]
            raise InputError(
                f"none of {counted(self._answers.rows, 'row')} can be exported"
                + (f": {', '.join(reasons)}" if reasons else ""),
                "at least one",
                f"see {flag('subset')} and {flag('where')}; verdicts are given by trd verify",
            )


def _directory(config: ExportConfig, answers: Answers) -> Directory:
    """Return the output directory. Raises ResumeRefused where it holds an export of other options or sets."""
    options = {name: value for name, value in config.record().items() if name not in _NOT_OF_THE_ROWS}
    made_of = {**options, "type": config.type, "sets": [each.digest for each in answers.sets]}
    shards = (path for each in (*answers.sets, *answers.origins) for path in each.shards)
    return Directory(Path(config.out), made_of, content_hash([_stamp(path) for path in dict.fromkeys(shards)]))


def _stamp(path: Path) -> list[Any]:
    status = path.stat()
    return [path.name, status.st_size, status.st_mtime_ns]


def _with_arguments(
    layout: Layout, answers: Answers, records: Iterator[Record], progress: Progress
) -> tuple[pa.Schema, Iterator[Record]]:
    """Return the columns and the records with the arguments that the student's chat template was given, if any.

    Note sets whose prompts were rendered without a template, or with arguments that the layout cannot hold.
    """
    schema = pa.schema([*layout.columns.items()])
    # Those of a refined set are its teacher's.
    students = [each for each in (*answers.sets, *answers.origins) if not each.is_refined]
    if any(each.about.render in _RAW for each in students):
        progress.note("prompts were rendered without a chat template (--render); a trainer puts its own around them")
    given = [each.about.chat_template_kwargs or {} for each in students]
    arguments = given[0] if given else {}
    if not any(given):
        return schema, records
    if not layout.renders or any(other != arguments for other in given):
        progress.note(f"arguments of the chat template are not in the rows: {_listed(students)}")
        return schema, records
    kind = pa.array([arguments]).type
    return schema.append(pa.field("chat_template_kwargs", kind)), (
        {**record, "chat_template_kwargs": dict(arguments)} for record in records
    )


def _listed(sets: Iterable[InputSet]) -> str:
    found = {str(each): each.about.chat_template_kwargs for each in sets}
    return ", ".join(f"{name} had {kwargs}" for name, kwargs in found.items() if kwargs)
