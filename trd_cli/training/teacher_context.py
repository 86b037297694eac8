"""From stored rows to examples: the student's own prompt, the teacher's context, and the response that both score."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from trd_cli.config.training import DistillConfig
from trd_cli.engines.rope import steady_length
from trd_cli.errors import InputError, ModelError, flag
from trd_cli.models import ModelRef
from trd_cli.progress import Progress
from trd_cli.prompting.rendering import Rendering
from trd_cli.prompting.tokens import Tokenizer, check_same_tokens, check_wrote
from trd_cli.records import Trajectory
from trd_cli.training.admission import check_trainable
from trd_cli.training.batches import Example, ids_array
from trd_cli.training.examples import TeacherPrompts, too_long_for
from trd_cli.trajectories.sets import InputSet

ALL_SPECIAL = "special"

ParentColumn = Callable[[str], Mapping[str, Any]]


class Contexts:
    """Build the examples of one training run; count the rows that are left out and the contexts that are cut."""

    def __init__(
        self,
        config: DistillConfig,
        source: InputSet,
        parents: ParentColumn,
        student: ModelRef,
        teacher: ModelRef,
        progress: Progress,
    ) -> None:
        """`parents` maps a column's name to its values by the parents' ids; parents that are lost are not in it.

        Raises ModelError when the two tokenizers differ: the response ids would mean different tokens.
        """
        for model in (student, teacher):
            check_trainable(model)
        self._student, self._teacher = student, teacher
        self._tokenizer: Tokenizer = student.tokenizer()
        teachers = self._tokenizer if teacher.path == student.path else teacher.tokenizer()
        check_same_tokens(student.name, self._tokenizer, teacher.name, teachers)
        check_wrote(student.name, self._tokenizer, source.about.tokenizer, source.directory, "give --model")
        if teachers.eos_ids != self._tokenizer.eos_ids:
            progress.note(
                f"{student.name} ends a response with {_ids(self._tokenizer)}, {teacher.name} with {_ids(teachers)}: "
                "an end that only the teacher knows is replaced by the student's"
            )
        self._teacher_eos_ids = teachers.eos_ids
        self._limit = min(longest_row(model, config.max_length) for model in (student, teacher))
        self._masked = masked_ids(config.mask_tokens, self._tokenizer)
        self._config, self._progress = config, progress
        self._parents = functools.cache(parents)
        rendering = Rendering.recorded(source.about.render, source.about.chat_template_kwargs)
        self._prompts = TeacherPrompts(config, rendering, teachers, self._limit)
        if unread := rendering.unread(teachers):
            progress.note(f"{teacher.name}: {unread}")

    def examples(self, rows: Sequence[Trajectory]) -> list[Example]:
        """Return the rows that can be trained on, and note how many were left out or cut.

        Raises InputError when all are left out.
        """
        made: list[Example] = []
        left_out: Counter[str] = Counter()
        self._cut: Counter[str] = Counter()
        for row in rows:
            example = self._example(row)
            if isinstance(example, Example):
                made.append(example)
            else:
                left_out[example] += 1
        # Training must not depend on the order in which rows finished and entered the shards.
        made.sort(key=lambda example: example.trajectory_id)
        for what, count in self._cut.items():
            self._progress.note(
                f"cut the {what} in the teacher's context of {count} of {len(rows)} rows, to {self._limit} tokens"
            )
        for reason, count in left_out.items():
            self._progress.note(f"left out {count} of {len(rows)} rows: {reason}")
        if not made:
            raise InputError(f"all {len(rows)} rows are left out", "at least one to train on", "see the reasons above")
        return made

    def _example(self, row: Trajectory) -> Example | str:
        """Return the row as an example, or the reason to leave it out."""
        if row.error is not None or not row.response_token_ids:
            return "no response"
        response_ids = self._response(row)
        if not response_ids:
            return "no response"
        scored: Sequence[int] = range(len(response_ids))
        if self._masked:
            scored = ids_array(t for t, token in enumerate(response_ids) if token not in self._masked)
        if not scored:
            return "every token of the response is masked"
        students = row.student_prompt_token_ids if row.stage == "refined" else row.prompt_token_ids
        if unknown := (
            _unknown(self._student, students, "the student's prompt")
            or _unknown(self._student, response_ids, "the response")
            or _unknown(self._teacher, response_ids, "the response")
        ):
            return unknown
        if len(students) + len(response_ids) > self._limit:
            return too_long_for(self._limit, "problem and response")
        teachers = self._prompts.prompt_of(row, len(response_ids))
        if isinstance(teachers, str):
            return teachers
        if unknown := _unknown(self._teacher, teachers.token_ids, "the teacher's context"):
            return unknown
        self._cut.update(teachers.cut)
        return Example(
            row.trajectory_id, students, teachers.token_ids, response_ids, scored, self._attempts_verdict(row)
        )

    def _response(self, row: Trajectory) -> list[int]:
        """Return the ids as sampled. A finished response ends with an end of turn that the student knows."""
        response_ids = list(row.response_token_ids)
        ends = self._tokenizer.eos_ids | self._teacher_eos_ids
        if row.finish_reason != "stop":
            return response_ids
        if not self._config.eos:
            return response_ids[:-1] if response_ids[-1] in ends else response_ids
        if response_ids[-1] not in self._tokenizer.eos_ids:
            # The student must learn to stop with an end of turn that it knows, not with the teacher's own.
            teachers_end = response_ids[-1] in self._teacher_eos_ids
            response_ids = [*(response_ids[:-1] if teachers_end else response_ids), self._tokenizer.end_of_turn_id]
        return response_ids

    def _attempts_verdict(self, row: Trajectory) -> str | None:
        return self._parents("verdict").get(row.parent_id) if row.stage == "refined" else row.verdict


def _unknown(model: ModelRef, token_ids: Sequence[int], what: str) -> str | None:
    """Return the reason to leave out a row with an id that the model does not know, or None where it knows all."""
    if model.unknown_id(token_ids) is None:
        return None
    return f"{what} has a token id that {model.name} has no embedding for"


def longest_row(model: ModelRef, asked: int | None) -> int:
    """Return how many tokens a row may have for this model: as `asked`, and no more than the model takes.

    Longer rows would change the rotary factors of the others, see `rope`. Raises ModelError where neither `asked` nor
    the configuration tells.
    """
    steady = None
    if model.path:
        with suppress(ModelError):  # a configuration that transformers does not know is refused by check_trainable
            steady = steady_length(model.architecture().get_text_config())
    try:
        longest = model.max_length()
    except ModelError as error:
        if asked is None:
            raise ModelError(error.got, error.expected, f"give {flag('max_length')}") from None
        longest = asked
    return min(filter(None, (asked, longest, steady)))


def masked_ids(names: Sequence[str], tokenizer: Tokenizer) -> frozenset[int]:
    """Return the ids of the tokens that the loss leaves out: by name, or all special ones but the end of a turn.

    Raises InputError for a name that is no token.
    """
    vocabulary, found = tokenizer.vocabulary(), set()
    for name in names:
        if name == ALL_SPECIAL:
            found |= tokenizer.special_ids - tokenizer.eos_ids
        elif name in vocabulary:
            found.add(vocabulary[name])
        else:
            raise InputError(f"{flag('mask_tokens')} {name}", "a token of the vocabulary, or special", "check the name")
    return frozenset(found)


def _ids(tokenizer: Tokenizer) -> str:
    return ", ".join(map(str, sorted(tokenizer.eos_ids)))
