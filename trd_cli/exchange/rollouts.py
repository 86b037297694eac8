"""trd data import-rollouts: a trajectory set of responses made elsewhere, as trd sample would have written it.

The prompt is rendered by the chat template of `--model`, and the ids of the response are those of its tokenizer, with
the end-of-turn id where the response ended by itself; `ids_exact` is False. The text stays as the file has it. A
parameter of sampling that nothing tells is UNKNOWN in the rows, and run.json counts them under `unknown`.

Rows are read and written one at a time. In memory are 20 bytes of each response, some 200 of each problem, and the
rows of one shard.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import NoReturn

from trd_cli import __version__
from trd_cli.config.commands import ImportConfig
from trd_cli.config.exchanging import ImportRolloutsConfig
from trd_cli.datasets.columns import From
from trd_cli.datasets.importing import mapped_fields
from trd_cli.datasets.problem_rows import Counts, problem_of
from trd_cli.datasets.rows import Row, numbered_rows
from trd_cli.datasets.values import RowFault, text_of
from trd_cli.engines.border import with_end
from trd_cli.errors import InputError, ModelError, counted
from trd_cli.exchange.attempts import Attempt, Form
from trd_cli.exchange.forms.messages import MORE
from trd_cli.exchange.forms.registry import FORMS
from trd_cli.exchange.joining import Joiner
from trd_cli.exchange.tally import Tally
from trd_cli.generation import Outcome, ShardFiller
from trd_cli.graders.answers import OPEN
from trd_cli.hub.fetching import located
from trd_cli.models import ModelRef
from trd_cli.planned import Backend, Prompt, cannot_ask, new_row
from trd_cli.progress import Progress
from trd_cli.prompting.rendering import Rendering, templates_for, values_of
from trd_cli.prompting.templates import OTHER, Template, family_of
from trd_cli.records import UNKNOWN, FinishReason, Problem, Sampling, Trajectory, content_hash, token_array, well_formed
from trd_cli.redaction import one_line
from trd_cli.trajectories.id_set import IdSet
from trd_cli.trajectories.run_json import IMPORTED
from trd_cli.trajectories.stage_dir import StageDir

ENGINE = "import"
_PARAMETERS = ("temperature", "top_p", "top_k", "max_tokens")
# Rows of any other task have the templates of the last.
_TASKS = ("math", "code", OTHER)
_LONGEST_REASON = 2000


@dataclass(frozen=True, slots=True)
class _Told(Sampling):
    """The sampling of a response, as far as it is known."""

    seed: int = UNKNOWN


def run(config: ImportRolloutsConfig, model: ModelRef, progress: Progress) -> Outcome:
    """Write the responses of the files as rollouts; the same command again adds what is missing.

    Raises InputError for a file that cannot be read and for files without any response that can be taken.
    """
    paths = _files(config)
    backend = Backend(model, model.tokenizer(), ENGINE, __version__, model.known_length() or 2**31 - 1, _no_engine)
    rendering = Rendering().with_options(config)
    if unread := rendering.unread(backend.tokenizer):
        progress.note(unread)
    forms = [FORMS[config.format](config, path) for path in paths]
    if config.problems and (place := located(config.problems)).name:
        config = config.model_copy(update={"problems": str(place.name)})
    named = config.problems or next((form.problems for form in forms if form.problems), None)
    joiner = Joiner.of(named) if named else None
    maker = _Maker(config, backend, rendering, joiner)
    identity = config.identity() | {
        "files": [_digest(path) for path in paths],
        "requests": _digest(Path(config.requests)) if config.requests else None,
        "problems": joiner and joiner.digest,
        "prompt": {task: template.sha256 for task, template in maker.templates.items()},
        **rendering.identity(),
        **backend.identity(),
    }
    stage_dir = StageDir(config.out, IMPORTED, identity, config.record(), about=backend.about(**rendering.identity()))
    rows = islice(maker.rows(zip(paths, forms, strict=True)), config.limit)
    first = next(rows, None)
    if first is None:
        raise maker.tally.refuse(config.files)
    if config.dry_run:
        progress.note(_preview(first))
        return Outcome()
    with stage_dir, ShardFiller(stage_dir, backend, config, progress, None) as filler:
        filler.fill(chain([first], rows))
        stage_dir.record["unknown"] = maker.tally.unknown()
        filler.end_of_plan()
    for line in maker.tally.lines(filler.planned, config.distinct):
        progress.note(line)
    filler.outcome.check_errors(config.max_errors)
    return filler.outcome


def _no_engine(_: object) -> NoReturn:
    raise AssertionError("nothing is generated")


def _files(config: ImportRolloutsConfig) -> list[Path]:
    paths = [Path(name) for name in config.files]
    for path in paths:
        if not path.is_file():
            raise InputError(f"{path} is no file", "a file of responses, which is read twice", "check the path")
    if len({path.resolve() for path in paths}) < len(paths):
        raise InputError("a file twice", "each file once", "leave one out")
    return paths


def _digest(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}", "a readable file", "check the path") from None


def _preview(row: Trajectory) -> str:
    text = "\n\n".join(f"[{message['role']}]\n{message['content']}" for message in row.messages)
    response = row.error if row.response is None else row.response
    return f"first prompt ({counted(len(row.prompt_token_ids), 'token')}):\n{text}\n\nfirst response:\n{response}"


class _Maker:
    """Make rows of the responses in files, and count what a person should know of them."""

    def __init__(
        self, config: ImportRolloutsConfig, backend: Backend, rendering: Rendering, joiner: Joiner | None
    ) -> None:
        self._config, self._backend, self._rendering, self._joiner = config, backend, rendering, joiner
        self._mapped = mapped_fields(config.map, MORE if config.format == "messages" else ())
        self._counts, self._texts = Counts(), IdSet()
        # The responses of one file under their keys.
        self._copies = IdSet()
        # Of each problem, by the digest of its id: the digest of its text, and how many responses it has so far.
        self._known: dict[bytes, tuple[bytes, int]] = {}
        self._last: tuple[Problem, Prompt] | None = None
        self.tally = Tally(self._counts)

    @cached_property
    def templates(self) -> dict[str, Template]:
        """Return the templates of the prompts; none where the files' own messages are taken."""
        return {} if self._config.prompt_from == "file" else templates_for(self._config, tasks=_TASKS)

    def rows(self, files: Iterator[tuple[Path, Form]]) -> Iterator[Trajectory]:
        """Yield a row for each response, each made when it is asked for."""
        for path, form in files:
            fields, options = self._fields(form), self._as_import(path, form)
            self._copies = IdSet()
            for place, row in numbered_rows(path):
                self._counts.row += 1
                where = f"{path.name}, {place}"
                try:
                    if isinstance(row, RowFault):
                        raise row
                    problem, attempts = self._read(form.completed(row), form, fields, options)
                    yield from [row for attempt in attempts if (row := self._row(problem, attempt))]
                except ValueError as fault:
                    self.tally.leave_out(where, str(fault))
                except (InputError, ModelError) as error:
                    if isinstance(error, ModelError) and self._config.prompt_from != "file":
                        raise  # the template renders no prompt at all
                    self.tally.leave_out(where, f"{error.got}; {error.mend}")

    def _fields(self, form: Form) -> dict[str, From]:
        """Return the origins of a problem's fields: the form's, without what an option gives, overridden by --map."""
        given = {name for name in ("source", "task") if getattr(self._config, name)}
        own = {name: origin for name, origin in form.fields.items() if name not in given}
        return own | {name: From((column,)) for name, column in self._mapped.items() if name not in MORE}

    def _as_import(self, path: Path, form: Form) -> ImportConfig:
        source = self._config.source or form.source
        return ImportConfig(file=str(path), out="", task=self._config.task, source=source)

    def _read(
        self, row: Row, form: Form, fields: Mapping[str, From], options: ImportConfig
    ) -> tuple[Problem, list[Attempt]]:
        """Return the problem and the responses of a row. Raises RowFault for a row that cannot be taken."""
        problem = self._joined(row, fields) if self._joiner else self._own(row, fields, options)
        attempts = [_clean(each) for each in form.attempts(row)]
        if self._config.prompt_from == "file" and not all(attempt.messages for attempt in attempts):
            raise RowFault("no prompt, which --prompt-from file takes")
        return problem, attempts

    def _own(self, row: Row, fields: Mapping[str, From], options: ImportConfig) -> Problem:
        problem = problem_of(row, fields, options, self._counts) if "problem" in fields else None
        if problem is None:
            raise RowFault("no text of the problem: name it with --map problem=COLUMN, or give --problems")
        return problem.well_formed()

    def _joined(self, row: Row, fields: Mapping[str, From]) -> Problem:
        text = text_of(fields["problem"](row)) if "problem" in fields else None
        name = text_of(fields["problem_id"](row)) if "problem_id" in fields else None
        found = self._joiner.find(text, name, by_id="problem_id" in self._mapped)
        if found is None:
            raise RowFault("its problem is not in --problems")
        return found

    def _row(self, problem: Problem, attempt: Attempt) -> Trajectory | None:
        """Return the row of a response; None for a copy, and for one that repeats another where that is not wanted.

        Raises RowFault for a problem whose id another one has.
        """
        name, text = _short(problem.problem_id), _short(problem.problem)
        before, index = self._known.get(name, (text, 0))
        if before != text:
            raise RowFault(f"{problem.problem_id!r} is the id of another problem too: map problem_id to another column")
        said = content_hash([problem.problem_id, attempt.text])
        if attempt.key is not None and not self._copies.add(content_hash([said, attempt.key])):
            self.tally.copies += 1
            return None
        if attempt.text is not None and not self._texts.add(said):
            self.tally.repeats += 1
            if self._config.distinct:
                return None
        row = self._made(problem, attempt, index)
        if not index:
            self.tally.add_problem(problem)
        self._known[name] = text, index + 1
        return row

    def _made(self, problem: Problem, attempt: Attempt, index: int) -> Trajectory:
        config, prompt = self._config, self._prompt(problem, attempt)
        sampling = self._sampling(attempt)
        row = new_row(problem, prompt, self._backend, sampling, kind="rollout", round=config.round, sample_index=index)
        ids, finish, error = self._response(attempt, prompt, sampling.max_tokens)
        writer = config.model_name or attempt.model or self._backend.model.name
        identity = content_hash([row.trajectory_id, attempt.text, finish, writer, error])
        there = {"response": attempt.text, "response_token_ids": ids, "finish_reason": finish, "ids_exact": False}
        return replace(
            row,
            trajectory_id=identity,
            seed=UNKNOWN,
            model=writer,
            model_revision="",
            error=error,
            **(there if error is None else {}),
        )

    def _prompt(self, problem: Problem, attempt: Attempt) -> Prompt:
        """Return the prompt of a row; samples of one problem that follow one another share it."""
        if self._config.prompt_from == "file":
            ids = self._rendering.token_ids(self._backend.tokenizer, attempt.messages)
            return Prompt(attempt.messages, token_array(ids), "file", "")
        if self._last is None or self._last[0] != problem:
            template = self.templates[family_of(problem.task)]
            prompt = Prompt.rendered(
                template, values_of(problem), lambda turns: self._rendering.token_ids(self._backend.tokenizer, turns)
            )
            self._last = problem, prompt
        return self._last[1]

    def _sampling(self, attempt: Attempt) -> _Told:
        values = {}
        for name in _PARAMETERS:
            option = getattr(self._config, name)
            values[name] = attempt.sampling.get(name, UNKNOWN if option is None else option)
            self.tally.untold[name] += values[name] == UNKNOWN
        return _Told(**values)

    def _response(
        self, attempt: Attempt, prompt: Prompt, max_tokens: int
    ) -> tuple[array[int] | None, FinishReason | None, str | None]:
        """Return the ids of a response and how it ended, or the error of its row."""
        tokenizer, model = self._backend.tokenizer, self._backend.model
        if attempt.text is None:
            return None, None, attempt.error or "no response"
        ids = tokenizer.encode(attempt.text)
        finish = attempt.finish_reason
        if finish is None:
            self.tally.untold["finish_reason"] += 1
            finish = "length" if 0 < max_tokens <= len(ids) else self._config.finish
        if finish == "stop":
            ids, _ = with_end(ids, None, tokenizer)
        if not ids:
            return None, None, "a response without text that did not end by itself"
        unknown = model.unknown_id(ids)
        error = cannot_ask(self._backend, prompt.token_ids)
        if error is None and unknown is not None:
            error = f"the response has the token id {unknown}, and {model.name} has embeddings for {model.embedding_rows} ids"
        self.tally.opened_twice += attempt.text.lstrip().startswith(OPEN) and self._opens(prompt)
        return token_array(ids), finish, error

    def _opens(self, prompt: Prompt) -> bool:
        """Return whether a prompt ends with the beginning of a thinking block."""
        text = self._backend.tokenizer.write(prompt.messages, self._rendering.mode, self._rendering.kwargs)
        return text.rstrip().endswith(OPEN)


def _clean(attempt: Attempt) -> Attempt:
    """Return what a row can hold of an attempt: text of whole characters, and a reason in one line without keys."""
    text, model, error = attempt.text, attempt.model, attempt.error
    return replace(
        attempt,
        text=text and well_formed(text),
        model=well_formed(model) if isinstance(model, str) else None,
        error=error and one_line(well_formed(error), _LONGEST_REASON),
    )


def _short(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).digest()
