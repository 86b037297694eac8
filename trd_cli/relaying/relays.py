"""From the options of a relay to its phases: the models, how each draws, the onset tokens, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from trd_cli.config.generating import RefineConfig, SamplingOptions
from trd_cli.diagnosis.onset import Onset, onset_of, read_words
from trd_cli.errors import InputError, counted, flag
from trd_cli.planned import Backend, Prompt
from trd_cli.progress import Progress
from trd_cli.prompting.tokens import check_wrote
from trd_cli.records import Trajectory
from trd_cli.relaying.phases import Relayer
from trd_cli.relaying.response import Rules
from trd_cli.relaying.search import scoring_of, search_with
from trd_cli.training.admission import check_trainable
from trd_cli.trajectories.sets import InputSet
from trd_cli.trajectories.shards import iter_values
from trd_cli.trajectories.stage_dir import StageDir

_DRAWN = ("temperature", "top_p", "top_k")


def check_engine(engine: str) -> None:
    """Raise InputError for an engine that cannot relay."""
    if engine == "openai":
        raise InputError(
            f"{flag('mode')} relay with {flag('engine')} openai",
            "an engine on this machine: both models' probabilities are compared at every token",
            f"change {flag('engine')}",
        )


class Relays:
    """Prepare the relays of some rollouts."""

    def __init__(
        self, config: RefineConfig, sets: Sequence[InputSet], student: Backend, teacher: Backend, progress: Progress
    ) -> None:
        """Raise InputError or ModelError for models and rollouts between which nothing can be relayed."""
        for backend in (student, teacher):
            check_engine(backend.engine)
            check_trainable(backend.model)
        source = sets[0]
        check_wrote(
            *(student.model.name, student.tokenizer, source.about.tokenizer, source.directory),
            "give the --student that wrote it, or one of its family",
        )
        if config.student is None:
            student.model.check_revision(source.about.model_revision, source.directory)
        self._config, self._student, self._teacher, self._progress = config, student, teacher, progress
        self._rules = Rules(config.legs, config.leg_tokens, config.leg_paragraphs)
        self._drawn, self._scoring = _drawn(sets), scoring_of(config)
        self._onset: Onset = onset_of(read_words(config.onset), teacher.tokenizer)
        for note in self._onset.notes():
            progress.note(note)

    def identity(self) -> dict[str, Any]:
        """Return what decides the rows beside the teacher's own part in them."""
        return {
            "student_revision": self._student.model.revision,
            "student_sampling": self._drawn,
            "onset_ids": list(self._onset.ids),
            "search_dtype": self._scoring.dtype,
            "legs": self._rules.legs,
            "leg_tokens": self._rules.leg_tokens,
            "leg_paragraphs": self._rules.leg_paragraphs,
        }

    def relayer(self, out: StageDir, prompt_of: Callable[[Trajectory], tuple[Prompt, str | None]]) -> Relayer:
        """Return what makes the rows in `out`; `prompt_of` gives the teacher's prompt, or the error of a row."""
        config, student, teacher = self._config, self._student, self._teacher
        return Relayer(
            *(config, self._rules, out, student, teacher),
            students=SamplingOptions(**self._drawn, seed=config.seed),
            prompt_of=prompt_of,
            search=search_with(student.model, teacher.model, self._scoring, self._onset.ids, self._progress.note),
            progress=self._progress,
        )

    def preview(self, total: int, where: Path) -> str:
        """Return the text of --dry-run."""
        legs = counted(self._rules.legs, "leg")
        onset = ", ".join(map(repr, self._onset.tokens.values()))
        return (
            f"would relay {counted(total, 'rollout')} between {self._student.model.name} and {self._teacher.model.name}, "
            f"at most {legs} of {self._rules.leg_tokens} tokens a row, in {where}; onset tokens: {onset}"
        )


def _drawn(sets: Sequence[InputSet]) -> dict[str, Any]:
    """Return how all rollouts were drawn, which is how the student goes on; raises InputError for several ways."""
    found = {*iter_values((path for each in sets for path in each.shards), [*_DRAWN])}
    if len(found) != 1:
        shown = "; ".join(f"T {t:g}, top-p {p:g}, top-k {k}" for t, p, k in sorted(found))
        raise InputError(
            f"rollouts that were drawn in {len(found)} ways ({shown})",
            "one way, in which the student goes on",
            "relay each set by itself",
        )
    return dict(zip(_DRAWN, found.pop(), strict=True))
