"""trd sample: the student's own attempts y_o at every problem."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trd_cli.config.generating import SampleConfig
from trd_cli.errors import InputError
from trd_cli.generation import Backend, Outcome, ShardFiller, plan_rollouts, preview
from trd_cli.progress import Progress
from trd_cli.prompting.rendering import Rendering, templates_for
from trd_cli.prompting.tokens import Tokenizer
from trd_cli.records import Problem, Trajectory, content_hash
from trd_cli.trajectories.shards import read_problems
from trd_cli.trajectories.stage_dir import StageDir


def run(config: SampleConfig, backend: Backend, progress: Progress) -> Outcome:
    """Generate what is missing of `n` rollouts a problem; see `generation` for identity and resuming."""
    everything = read_problems(Path(config.problems))
    problems = _slice(config, everything)
    templates = templates_for(config, tasks=(p.task for p in problems))
    rendering = Rendering().with_options(config)
    if unread := rendering.unread(backend.tokenizer):
        progress.note(unread)
    planned = plan_rollouts(problems, config.n, templates, rendering, backend, config, config.round)
    planned = _short_enough(config, problems, planned, backend.tokenizer, progress)
    identity = config.identity() | {
        "problems": content_hash(sorted(p.problem_id + content_hash(p.problem) for p in everything), 16),
        "prompt": {task: template.sha256 for task, template in templates.items()},
        **rendering.identity(),
        **backend.identity(),
    }
    about = backend.about(**rendering.identity())
    stage_dir = StageDir(config.out, "sample", identity, config.record(), about=about)
    if config.dry_run:
        progress.note(preview(planned[0], len(planned), stage_dir.path))
        return Outcome()
    with stage_dir, ShardFiller(stage_dir, backend, config, progress, len(planned)) as filler:
        filler.expect(planned)
        filler.fill(planned)
    filler.outcome.check_errors(config.max_errors)
    return filler.outcome


def _slice(config: SampleConfig, everything: Sequence[Problem]) -> Sequence[Problem]:
    """Return `limit` problems after the first `skip`; raises InputError when none is left."""
    if config.skip >= len(everything):
        raise InputError(
            f"--skip {config.skip}, and {config.problems} has {len(everything)} problems",
            "problems that are left",
            "lower --skip, or give a larger set",
        )
    end = None if config.limit is None else config.skip + config.limit
    return everything[config.skip : end]


def _short_enough(
    config: SampleConfig,
    problems: Sequence[Problem],
    planned: Sequence[Trajectory],
    tokenizer: Tokenizer,
    progress: Progress,
) -> list[Trajectory]:
    """Return the rows of problems whose prompt and reference are short enough, and report how many are left out.

    Raises InputError when none is left.
    """
    prompts = {row.problem_id: len(row.prompt_token_ids) for row in planned}
    left_out: set[str] = set()
    if config.max_prompt_tokens is not None:
        long = {name for name, tokens in prompts.items() if tokens > config.max_prompt_tokens}
        _say(progress, long, problems, f"a prompt of more than {config.max_prompt_tokens} tokens")
        left_out |= long
    if config.max_reference_tokens is not None:
        limit = config.max_reference_tokens
        long = {p.problem_id for p in problems if len(tokenizer.encode(p.reference_solution or "")) > limit}
        _say(progress, long, problems, f"a reference solution of more than {limit} tokens")
        left_out |= long
    if len(left_out) == len(problems):
        raise InputError(
            f"all {len(problems)} problems are left out as too long",
            "at least one that is not",
            "raise --max-prompt-tokens or --max-reference-tokens",
        )
    return [row for row in planned if row.problem_id not in left_out]


def _say(progress: Progress, long: set[str], problems: Sequence[Problem], what: str) -> None:
    if long:
        progress.note(f"left out {len(long)} of {len(problems)} problems: {what}")
