"""From stored rows to examples: the student's own prompt, the teacher's context, and the response that both score."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trd_cli.config.training import DistillConfig
from trd_cli.engines.rope import steady_length
from trd_cli.episodes.contexts import contexts_of_turns
from trd_cli.errors import InputError, ModelError, counted, flag
from trd_cli.models import ModelRef
from trd_cli.progress import Progress
from trd_cli.prompting.rendering import Rendering
from trd_cli.prompting.tokens import Tokenizer, check_same_tokens, check_wrote
from trd_cli.records import AUTHORS, EPISODE, Trajectory, authors_of, unfit_for_response
from trd_cli.training.admission import check_trainable
from trd_cli.training.batches import Example
from trd_cli.training.mix import Classes
from trd_cli.training.teacher_context import TeacherPrompt, TeacherPrompts, too_long_for
from trd_cli.trajectories.sets import InputSet

ALL_SPECIAL = "special"
# The authors whose tokens --train-on names. What an environment or a template wrote is never trained on.
_TRAINED = {"student": ("student",), "teacher": ("teacher",), "all": ("student", "teacher")}


class TextsNeeded(Exception):
    """A row's prompt must be rendered or cut, and its texts have not been read."""


@dataclass(frozen=True)
class _Reading:
    """Hold what the student reads before a part of a response, and where the part lies in it."""

    context: Sequence[int]
    start: int
    end: int

    @property
    def tokens(self) -> int:
        return len(self.context) + self.end - self.start


class Contexts:
    """Make the examples of one training run; count the rows that are left out and the contexts that are cut."""

    def __init__(
        self,
        config: DistillConfig,
        source: InputSet,
        student: ModelRef,
        teacher: ModelRef,
        progress: Progress,
        weighs: bool = True,
        classes: Classes | None = None,
    ) -> None:
        """Raise ModelError when the two tokenizers differ: the response ids would mean different tokens.

        Without `weighs` all tokens of a response count alike, whoever wrote them, and episodes are left out. `source`
        is the set of the rows, or the first one. `classes` are those of --mix.
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
        self._authors = [AUTHORS.index(author) for author in _TRAINED[config.train_on]]
        self._masked = np.array(sorted(masked_ids(config.mask_tokens, self._tokenizer)), np.int64)
        self._config, self._weighs, self._classes = config, weighs, classes or Classes({}, ())
        self._teachers_tokenizer, self._note = teachers, progress.note
        self._prompts = TeacherPrompts(config, teachers, self._limit)
        self._renderings: dict[Path, Rendering] = {}
        self._source = source
        self._rendering_of(source)
        self.rows = 0
        self._cut: Counter[str] = Counter()
        self._left_out: Counter[str] = Counter()

    def example(self, row: Trajectory, verdict: str | None = None, source: InputSet | None = None) -> Example | None:
        """Return the row as an example, or None for one that is left out; `verdict` is the attempt's.

        `source` is the row's set, if not the first. Columns of text may be None where they have not been read. Raises
        TextsNeeded where they are needed.
        """
        made = self.made(row, verdict, source)
        if isinstance(made, str):
            self._left_out[made] += 1
            return None
        return made

    def made(self, row: Trajectory, verdict: str | None = None, source: InputSet | None = None) -> Example | str:
        """Return the row as an example, or the reason why it cannot be one, which is not counted. Else as `example`."""
        made = self._example(row, verdict, self._rendering_of(source or self._source))
        self.rows += 1
        return made

    def notes(self) -> list[str]:
        """Return how many rows were cut or left out, and why."""
        rows = counted(self.rows, "row")
        cut = [
            f"cut the {what} in the teacher's context of {count} of {rows}, to {self._limit} tokens"
            for what, count in self._cut.items()
        ]
        return cut + [f"left out {count} of {rows}: {reason}" for reason, count in self._left_out.items()]

    def _rendering_of(self, source: InputSet) -> Rendering:
        """Return how the prompts of a set are rendered; note arguments that the teacher's template does not read."""
        if source.directory not in self._renderings:
            rendering = Rendering.recorded(source.about.render, source.about.chat_template_kwargs)
            self._renderings[source.directory] = rendering
            if unread := rendering.unread(self._teachers_tokenizer):
                self._note(f"{self._teacher.name}: {unread}")
        return self._renderings[source.directory]

    def _example(self, row: Trajectory, verdict: str | None, rendering: Rendering) -> Example | str:
        """Return the row as an example, or the reason to leave it out."""
        if row.error is not None or row.response_token_ids is None:
            return "no response"
        if self._config.reads_verdicts and row.verdict not in ("correct", "incorrect"):
            return f"no verdict of correct or incorrect ({row.verdict or 'not graded'}), which {_reader(self._config)} needs"
        if unfit := unfit_for_response(row):
            return f"{', '.join(unfit)} do not go with the response tokens"
        if not self._weighs and row.task == EPISODE:
            return "an episode, most of whose tokens no model wrote"
        of_mix = self._classes.of(row.task, row.source)
        if self._classes and of_mix is None:
            return "neither task nor source is a name of --mix"
        response_ids, weights = self._response(row)
        if not len(response_ids):
            return "no response"
        if not weights.any():
            return f"no token of the response has a weight above 0 with --train-on {self._config.train_on}"
        scored = np.flatnonzero((weights > 0) & ~np.isin(response_ids, self._masked))
        if not len(scored):
            return "every token of the response is masked"
        readings = self._readings(row, response_ids)
        teachers = self._teachers(row, response_ids, readings, rendering)
        if isinstance(teachers, str):
            return teachers
        group = group_of(row) if self._config.reads_verdicts else 0
        parts: list[Example] = []
        for reading, teacher in zip(readings, teachers, strict=True):
            within = scored[(scored >= reading.start) & (scored < reading.end)]
            if len(within):
                ids = (reading.context, teacher, response_ids[reading.start : reading.end])
                places = within - reading.start
                parts.append(Example(row.trajectory_id, *ids, places, verdict, weights[within], group, mixed_as=of_mix))
        return parts[0] if len(readings) == 1 else Example.of_turns(parts)

    def _readings(self, row: Trajectory, response_ids: np.ndarray) -> list[_Reading]:
        """Return the parts of a response that the student reads in contexts of their own: all of it, or each turn.

        Turns are parts where the chat template rewrites what was said before.
        """
        prompt = row.student_prompt_token_ids if row.stage == "refined" else row.prompt_token_ids
        if not _is_rewritten(row):
            return [_Reading(prompt, 0, len(response_ids))]
        found: list[_Reading] = []
        for turn in row.turns:
            own = turn.context_token_ids
            context = np.concatenate([prompt, response_ids[: turn.start]]) if own is None else own
            # The last one ends where the response does: an end of turn may have been put to it or taken off.
            end = len(response_ids) if turn is row.turns[-1] else min(turn.end, len(response_ids))
            if turn.start < end:
                found.append(_Reading(context, turn.start, end))
        return found

    def _teachers(
        self, row: Trajectory, response_ids: np.ndarray, readings: Sequence[_Reading], rendering: Rendering
    ) -> list[Sequence[int]] | str:
        """Return what the teacher reads before each part of a response, or the reason to leave the row out."""
        for reading in readings:
            if unknown := _unknown(self._student, reading.context, "the student's prompt"):
                return unknown
        for model in (self._student, self._teacher):
            if unknown := _unknown(model, response_ids, "the response"):
                return unknown
        longest = max(reading.tokens for reading in readings)
        if longest > self._limit:
            return too_long_for(self._limit, "problem and response")
        prompt = self._prompts.prompt_of(row, longest - len(readings[0].context), rendering)
        if prompt is None:
            raise TextsNeeded
        if isinstance(prompt, str):
            return prompt
        contexts = self._contexts(row, prompt, readings, rendering)
        for context, reading in zip(contexts, readings, strict=True):
            if unknown := _unknown(self._teacher, context, "the teacher's context"):
                return unknown
            if len(context) + reading.end - reading.start > self._limit:
                return too_long_for(self._limit, "the teacher's context and the response")
        self._cut.update(prompt.cut)
        return contexts

    def _contexts(
        self, row: Trajectory, prompt: TeacherPrompt, readings: Sequence[_Reading], rendering: Rendering
    ) -> list[Sequence[int]]:
        """Return the teacher's contexts that begin with a prompt: the prompt itself, or one before each turn."""
        if not _is_rewritten(row):
            return [prompt.token_ids]
        if prompt.messages is None:
            raise TextsNeeded
        contexts = contexts_of_turns(self._teachers_tokenizer, rendering, prompt.messages, row)
        starts = {reading.start for reading in readings}
        return [context for context, turn in zip(contexts, row.turns, strict=True) if turn.start in starts]

    def _response(self, row: Trajectory) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids as sampled (int32) and the weight of each (float32), at most --max-response-tokens of them.

        A finished response ends with an end of turn that the student knows.
        """
        ids, weights = np.asarray(row.response_token_ids, np.int32), self._weights(row)
        if row.turns:
            ends = [turn.end - 1 for turn in row.turns if turn.end > turn.start]
            ids = self._with_own_ends(ids, ends)
            if not self._config.eos:
                weights = self._without_ends(ids, weights, ends)
        if row.finish_reason == "stop" and len(ids):
            ids, weights = self._ended(ids, weights)
        most = self._config.max_response_tokens
        return ids[:most], weights[:most]

    def _weights(self, row: Trajectory) -> np.ndarray:
        """Return the weight of each response token: its own, and 0 for one whose author is left out."""
        if not self._weighs:
            return np.ones(len(row.response_token_ids), np.float32)
        is_trained = np.isin(np.asarray(authors_of(row), np.int8), self._authors)
        if row.token_weight is None:
            return is_trained.astype(np.float32)
        return np.asarray(row.token_weight, np.float32) * is_trained

    def _with_own_ends(self, ids: np.ndarray, ends: Sequence[int]) -> np.ndarray:
        """Return the ids with the student's end of a turn in the place of an end that only the teacher knows.

        `ends` are the places of the last tokens of an episode's actions.
        """
        replaced = ids.copy()
        of_teacher = np.isin(ids[ends], sorted(self._teacher_eos_ids - self._tokenizer.eos_ids))
        replaced[ends] = np.where(of_teacher, np.int32(self._tokenizer.end_of_turn_id), ids[ends])
        return replaced

    def _without_ends(self, ids: np.ndarray, weights: np.ndarray, ends: Sequence[int]) -> np.ndarray:
        """Return the weights with 0 at the end of each turn of an episode, which the next one is read after."""
        is_end = np.zeros(len(ids), bool)
        is_end[ends] = np.isin(ids[ends], [*self._tokenizer.eos_ids])
        return np.where(is_end, np.float32(0), weights)

    def _ended(self, ids: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids and weights of a finished response with the end of turn that the student is to learn."""
        last = int(ids[-1])
        if not self._config.eos:
            kept = len(ids) - (last in self._tokenizer.eos_ids | self._teacher_eos_ids)
            return ids[:kept], weights[:kept]
        if last not in self._tokenizer.eos_ids:
            # The student must learn to stop with an end of turn that it knows, not with the teacher's own.
            kept = len(ids) - (last in self._teacher_eos_ids)
            return np.append(ids[:kept], np.int32(self._tokenizer.end_of_turn_id)), np.append(
                weights[:kept], weights[-1]
            )
        return ids, weights


def _is_rewritten(row: Trajectory) -> bool:
    """Return True if some turn was read in a context that is not the prompt and all of the response before it."""
    return any(turn.context_token_ids is not None for turn in row.turns or ())


def group_of(row: Trajectory) -> int:
    """Return the number that a graded row shares with those of its problem and verdict: odd if correct, never 0."""
    number = int.from_bytes(hashlib.blake2b(row.problem_id.encode(), digest_size=7).digest())
    return 2 * (number + 1) + (row.verdict == "correct")


def _reader(config: DistillConfig) -> str:
    """Return the flag that makes a training read verdicts."""
    return flag("correct_objective" if config.correct_objective else "row_weights")


def shown(example: Example, tokenizer: Tokenizer) -> str:
    """Return the texts of an example for a person: both contexts, and the response."""
    parts = {
        "student reads": example.student_prompt,
        "teacher reads": example.teacher_prompt,
        "both score": example.response_ids,
    }
    texts = (f"{what} ({len(ids)} tokens):\n{tokenizer.decode(ids.tolist())}" for what, ids in parts.items())
    return f"first row {example.trajectory_id[:12]}\n" + "\n\n".join(texts)


def _unknown(model: ModelRef, token_ids: Sequence[int], what: str) -> str | None:
    """Return the reason to leave out a row with an id that the model does not know, or None where it knows all."""
    ids = np.asarray(token_ids, np.int64)
    if not len(ids) or model.unknown_id([ids.min(), ids.max()]) is None:
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
