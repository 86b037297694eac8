"""trd sample: the student's own attempts y_o at every problem."""

from __future__ import annotations

from pathlib import Path

from trd_cli.config import SampleConfig
from trd_cli.generation import Backend, Outcome, Rendering, ShardFiller, plan_rollouts, preview, templates_for
from trd_cli.records import content_hash
from trd_cli.reporting import Report
from trd_cli.run_dir import RunDir
from trd_cli.shards import read_problems


def run(config: SampleConfig, backend: Backend, report: Report) -> Outcome:
    """Generate what is missing of `n` rollouts a problem; see `generation` for identity and resume."""
    everything = read_problems(Path(config.problems))
    problems = everything[: config.limit]
    templates = templates_for("student", (p.task for p in problems), config.prompt)
    rendering = Rendering(config.render or "chat", config.chat_template_kwargs or {})
    planned = plan_rollouts(problems, config.n, templates, rendering, backend, config, config.round)
    identity = config.identity() | {
        "problems": content_hash(sorted(p.problem_id + content_hash(p.problem) for p in everything), 16),
        "prompt": {task: template.sha256 for task, template in templates.items()},
        **rendering.identity(),
        **backend.identity(),
    }
    about = {**backend.about(), **rendering.identity()}
    run_dir = RunDir(config.out, "sample", identity, config.model_dump(mode="json"), about=about)
    if config.dry_run:
        report.note(preview(planned[0], len(planned), run_dir.path))
        return Outcome()
    with run_dir, ShardFiller(run_dir, backend, config, report, len(planned)) as filler:
        filler.expect(planned)
        filler.fill(planned)
    filler.outcome.check_errors(config.max_errors)
    return filler.outcome
