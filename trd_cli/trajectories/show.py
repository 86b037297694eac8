"""trd show and trd diff: one trajectory with its lineage; the words that the teacher changed."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

from rich.console import Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from trd_cli.config.commands import DiffConfig, ShowConfig
from trd_cli.errors import InputError
from trd_cli.records import Trajectory
from trd_cli.trajectories.sets import InputSet, find_row, open_sets, parent_directories

_WORDS = re.compile(r"\s+|[^\s]+")


def show(config: ShowConfig, paths: Sequence[str]) -> Group:
    """Return all facts and texts of a row, with its parent where it has one."""
    row, source = find_row(open_sets(paths), config.id)
    parts: list[Panel | Table] = [_facts(row, source)]
    parent = parent_of(row, source, config.parents)
    if parent is not None:
        parts.append(
            _panel(
                f"parent {parent.trajectory_id[:12]} · y_o · {parent.verdict or 'unverified'}", parent.response or ""
            )
        )
    for message in row.messages:
        parts.append(_panel(f"prompt · {message['role']} · {row.prompt_template}", message["content"]))
    parts.append(
        _panel(
            f"response · {row.verdict or 'unverified'}",
            row.response if row.response is not None else f"error: {row.error}",
        )
    )
    if config.tokens:
        parts.append(_panel("response token ids", " ".join(map(str, row.response_token_ids or ()))))
    return Group(*parts)


def diff(config: DiffConfig, paths: Sequence[str]) -> Group:
    """Return y_o against y_r, word by word: removed in red, added in green."""
    row, source = find_row(open_sets(paths), config.id)
    parent = parent_of(row, source, config.parents)
    if parent is None:
        raise InputError(
            f"{row.trajectory_id[:12]} is a {row.stage} without a parent here",
            "a refined row",
            "give a set that trd refine made",
        )
    title = f"y_o {parent.verdict or 'unverified'} → y_r {row.verdict or 'unverified'} · problem {row.problem_id}"
    return Group(_panel(title, _word_diff(parent.response or "", row.response or "")))


def parent_of(row: Trajectory, source: InputSet, parents: Sequence[str]) -> Trajectory | None:
    """Return the rollout that a refined row was made from; None for rollouts and where its set is gone."""
    directories = [str(path) for path in parent_directories(source, parents)]
    if row.parent_id is None or not directories:
        return None
    return find_row(open_sets(directories), row.parent_id)[0]


def _facts(row: Trajectory, source: InputSet) -> Table:
    table = Table.grid(padding=(0, 2))
    facts = {
        "trajectory": row.trajectory_id,
        "set": f"{source.directory} ({source.record.get('command', 'no run.json')} {source.record.get('digest', '')})",
        "made from": ", ".join(entry["path"] for entry in source.record.get("inputs", [])),
        "problem": f"{row.problem_id} ({row.task})",
        "place": f"{row.stage}, round {row.round}, sample {row.sample_index}"
        + (f", {row.setting}" if row.setting else ""),
        "model": f"{row.model} @ {row.model_revision} on {row.engine} {row.engine_version}",
        "sampling": f"T {row.temperature:g}, top-p {row.top_p:g}, top-k {row.top_k}, at most {row.max_tokens} tokens, seed {row.seed}",
        "tokens": f"{len(row.prompt_token_ids)} prompt, {len(row.response_token_ids or ())} response ({row.finish_reason})",
        "attempt cut": f"{row.attempt_tokens_trimmed} tokens" if row.attempt_tokens_trimmed else "",
        "reference": row.reference_answer or "",
        "verdict": f"{row.verdict}: {row.extracted_answer} {row.verdict_detail or ''} ({row.grader} {row.grader_version})"
        if row.verdict
        else "",
        "error": row.error or "",
    }
    for name, value in facts.items():
        if value:
            table.add_row(Text(name, style="bold"), Text(value))
    return table


def _panel(title: str, body: str | Text) -> Panel:
    return Panel(body if isinstance(body, Text) else Text(body), title=Text(title), title_align="left")


def _word_diff(before: str, after: str) -> Text:
    old, new = _WORDS.findall(before), _WORDS.findall(after)
    text = Text()
    for kind, a, b, c, d in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if kind == "equal":
            text.append("".join(old[a:b]))
            continue
        # Marks, not colour alone: a diff must survive a pipe and a colour-blind reader.
        if b > a:
            text.append("[-" + "".join(old[a:b]) + "-]", style="red strike")
        if d > c:
            text.append("{+" + "".join(new[c:d]) + "+}", style="green")
    return text
