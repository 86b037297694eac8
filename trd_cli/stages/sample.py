"""trd sample: the student's own attempts y_o at every problem or episode, or from a prefix of each row of a set."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from functools import partial
from itertools import chain
from typing import Any

from trd_cli.config.generating import SampleConfig
from trd_cli.continuing import LENGTH_OF, PREFIX_OF, Continuer
from trd_cli.episodes.contexts import check_turns
from trd_cli.episodes.driver import EpisodeFiller, workers_of
from trd_cli.episodes.sampling import EpisodeAsker, EpisodeSet, Player
from trd_cli.errors import InputError, counted
from trd_cli.generation import Outcome, ShardFiller, check_strangers
from trd_cli.hub.fetching import located
from trd_cli.planned import Asker, Backend, Prompt, no_response, preview
from trd_cli.progress import Progress
from trd_cli.prompting.rendering import Rendering, templates_for
from trd_cli.prompting.tokens import check_wrote
from trd_cli.records import Problem, Trajectory
from trd_cli.trajectories.id_set import IdSet
from trd_cli.trajectories.problem_sets import ProblemSet
from trd_cli.trajectories.sets import InputSet, open_sets
from trd_cli.trajectories.shards import iter_values
from trd_cli.trajectories.sources import Sources, asked_of, count_orphans
from trd_cli.trajectories.stage_dir import StageDir
from trd_cli.worlds.spec import Spec

# The columns of a row that those which go on from it are made from.
_READ = (
    *("trajectory_id", "round", "prompt_token_ids", "student_prompt_token_ids", *PREFIX_OF),
    *("messages", "prompt_template", "prompt_sha256", *(field.name for field in fields(Problem))),
)


def run(config: SampleConfig, paths: Sequence[str], backend: Backend, progress: Progress) -> Outcome:
    """Generate what is missing of the rows that a config asks for; see `generation` for identity and resuming.

    `paths` are the sets that its `from_sets` name, or those from a pipe in their place.
    """
    if paths:
        return go_on(config, paths, backend, progress)
    return play(config, backend, progress) if config.env is not None else attempt(config, backend, progress)


def attempt(config: SampleConfig, backend: Backend, progress: Progress) -> Outcome:
    """Generate what is missing of `n` rollouts a problem."""
    place = located(config.problems)
    everything = ProblemSet.open(place.path)
    if place.name:
        config = config.model_copy(update={"problems": str(place.name)})
    return _attempt(config, everything, {"problems": everything.digest}, backend, progress, Asker, ShardFiller)


def play(config: SampleConfig, backend: Backend, progress: Progress) -> Outcome:
    """Play what is missing of `n` attempts at each episode that --env names; see `episodes`."""
    rendering = Rendering().with_options(config)
    check_turns(backend.tokenizer, rendering)
    player = Player(backend, rendering, config.max_turns)
    with workers_of(config) as workers:
        everything = EpisodeSet.of(Spec.parse(config.env), workers, progress.note)
        asker_of = partial(EpisodeAsker, episodes=everything, max_turns=config.max_turns, part=config.part)
        filler_of = partial(EpisodeFiller, workers=workers, play_of=player.play)
        return _attempt(config, everything, everything.identity(), backend, progress, asker_of, filler_of)


def _attempt(
    config: SampleConfig,
    everything: ProblemSet | EpisodeSet,
    asked_about: Mapping[str, Any],
    backend: Backend,
    progress: Progress,
    asker_of: Callable[..., Asker],
    filler_of: Callable[..., ShardFiller],
) -> Outcome:
    """Generate what is missing of `n` attempts at each problem; `asked_about` is what decides the problems."""
    problems = everything.slice(config.skip, config.limit)
    templates = templates_for(config, tasks=problems.tasks())
    rendering = Rendering().with_options(config)
    if unread := rendering.unread(backend.tokenizer):
        progress.note(unread)
    identity = config.identity() | {
        **asked_about,
        "prompt": {task: template.sha256 for task, template in templates.items()},
        **rendering.identity(),
        **backend.identity(),
    }
    about = backend.about(**rendering.identity())
    stage_dir = StageDir(
        config.out, "sample", identity, config.record(), about=about, part=config.part, asked=config.deciding()
    )
    if isinstance(problems, EpisodeSet) and stage_dir.path.is_dir():
        problems.recall(stage_dir.shards(), config.retry_errors)
    asker = asker_of(templates, rendering, backend)
    asker.check_fit(problems)
    # From here on only what is to be made: all that decides the rows is the same for every part.
    problems = problems.of_part(config.part)
    plan = _Plan(config, problems, asker)
    planned = plan.rows(progress)
    most = config.n * len(problems)
    if config.dry_run:
        first = next(planned, None)
        turns = config.max_turns if config.env else None
        would = first and preview(first, most, stage_dir.path, is_most=plan.is_filtered, turns=turns)
        progress.note(would or "no problem is in this part")
        return Outcome()
    total = None if plan.is_filtered else most
    with stage_dir, filler_of(stage_dir, backend, config, progress, total) as filler:
        check_strangers(stage_dir.path, _strangers(stage_dir, problems, config.n))
        if total is not None:
            stage_dir.expect(total)
        filler.fill(planned)
        filler.end_of_plan()
    plan.say_left_out(progress)
    if summary := filler.summary():
        progress.note(summary)
    filler.outcome.check_errors(config.max_errors)
    return filler.outcome


def _strangers(stage_dir: StageDir, problems: ProblemSet | EpisodeSet, n: int) -> int:
    """Count the rows of a directory that are of other problems or attempts."""
    shards = stage_dir.shards()
    ids = problems.ids() if shards else ()
    return sum(index >= n or name not in ids for name, index in iter_values(shards, ["problem_id", "sample_index"]))


class _Plan:
    """Plan the attempts at the problems whose prompt and reference are short enough, and count those left out."""

    def __init__(self, config: SampleConfig, problems: ProblemSet | EpisodeSet, asker: Asker) -> None:
        self._config, self._problems, self._asker = config, problems, asker
        self._long_prompts = self._long_references = 0
        self.is_filtered = config.max_prompt_tokens is not None or config.max_reference_tokens is not None

    def rows(self, progress: Progress) -> Iterator[Trajectory]:
        """Return the planned rows, each made when it is asked for.

        Raises InputError when every problem is left out, but for a part, whose problems may be few.
        """
        rows = self._rows()
        first = next(rows, None)
        if first is None and self._config.part is not None:
            return rows
        if first is None:
            self.say_left_out(progress)
            raise InputError(
                f"0 of {counted(len(self._problems), 'problem')} short enough",
                "at least one",
                "raise --max-prompt-tokens or --max-reference-tokens",
            )
        return chain([first], rows)

    def say_left_out(self, progress: Progress) -> None:
        """Report how many of the problems seen so far are left out."""
        for count, limit, what in (
            (self._long_prompts, self._config.max_prompt_tokens, "a prompt"),
            (self._long_references, self._config.max_reference_tokens, "a reference solution"),
        ):
            if count:
                of = counted(len(self._problems), "problem")
                progress.note(f"left out {count} of {of}: {what} of more than {counted(limit, 'token')}")

    def _rows(self) -> Iterator[Trajectory]:
        for problem in self._problems:
            prompt = self._asker.prompt(problem)
            if self._is_short(problem, prompt):
                yield from self._asker.rows(problem, prompt, self._config.n, self._config, self._config.round)

    def _is_short(self, problem: Problem, prompt: Prompt) -> bool:
        most = self._config.max_prompt_tokens
        long_prompt = most is not None and len(prompt.token_ids) > most
        most = self._config.max_reference_tokens
        encode = self._asker.backend.tokenizer.encode
        long_reference = most is not None and len(encode(problem.reference_solution or "")) > most
        self._long_prompts += long_prompt
        self._long_references += long_reference
        return not (long_prompt or long_reference)


def go_on(config: SampleConfig, paths: Sequence[str], backend: Backend, progress: Progress) -> Outcome:
    """Generate what is missing of `n` rows from the prefix of each row that the sets at `paths` have in the subset."""
    sets = open_sets(paths)
    source, sources = sets[0], Sources(config, playable=False)
    sources.check(sets)
    mend = "give the --model that wrote it, or one of its family"
    for each in sets:
        check_wrote(backend.model.name, backend.tokenizer, each.about.tokenizer, each.directory, mend)
    identity = config.identity() | {"inputs": [each.digest for each in sets], **backend.identity()}
    rendering = Rendering.recorded(source.about.render, source.about.chat_template_kwargs)
    stage_dir = StageDir(
        *(config.out, "sample", identity, config.record(), [each.lineage() for each in sets]),
        about=backend.about(**rendering.identity()),
        part=config.part,
        asked=config.deciding() | {"inputs": asked_of(sets)},
    )
    continuer, within = Continuer(backend, config, config.cut), _slice(config, sets)
    chosen = sources.ids(sets, lambda row: _is_in(row, within) and continuer.has_prefix(row), LENGTH_OF)
    rows = (row for row in sources.rows(sets, _READ) if _is_in(row, within))
    planned = chain.from_iterable(_continued(continuer, row, config.n) for row in rows)
    first, total = next(planned, None), config.n * len(chosen)
    if config.dry_run:
        progress.note(preview(first, total, stage_dir.path) if first else "no row is in the subset")
        return Outcome()
    with stage_dir, ShardFiller(stage_dir, backend, config, progress, total) as filler:
        check_strangers(stage_dir.path, count_orphans(stage_dir.shards(), chosen, config.n))
        stage_dir.expect(total)
        filler.fill(chain([first] if first else [], planned))
        filler.end_of_plan()
    continuer.say_left_out(progress)
    if not filler.planned:
        progress.note("no row is in the subset: nothing to go on from")
    filler.outcome.check_errors(config.max_errors)
    return filler.outcome


def _continued(continuer: Continuer, row: Trajectory, n: int) -> Iterator[Trajectory]:
    prompt, error = Prompt.of_student(row), no_response(row)
    if not len(prompt.token_ids):
        error = error or "the refined row does not have the student's prompt"
    yield from continuer.rows(row, prompt, kind="rollout", sample_indices=range(n), error=error)


def _slice(config: SampleConfig, sets: Sequence[InputSet]) -> IdSet | None:
    """Return the ids of the rows that --skip and --limit leave, the same for every part, or None where all are left."""
    if not config.skip and config.limit is None:
        return None
    whole = Sources(config.model_copy(update={"shard": None}))
    whole.check(sets)
    names = sorted(row.trajectory_id for row in whole.rows(sets, ()))
    return IdSet(names[config.skip :][: config.limit])


def _is_in(row: Trajectory, ids: IdSet | None) -> bool:
    return ids is None or row.trajectory_id in ids
