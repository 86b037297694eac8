"""trd show and trd diff: one trajectory with its lineage; the words, or the actions, that the teacher changed.

In a row that names the authors of its tokens, each part of the response begins with a sign, as ⟨teacher⟩, and has a
colour. An episode is shown by its turns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean

from rich.console import Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from trd_cli.config.commands import DiffConfig, ShowConfig
from trd_cli.errors import InputError, counted
from trd_cli.prompting.authors import Span, author_spans, told_authors
from trd_cli.prompting.tokens import Tokenizer
from trd_cli.records import EPISODE, Sampling, Trajectory
from trd_cli.redaction import visible
from trd_cli.trajectories.marks import by_author, word_diff
from trd_cli.trajectories.sets import InputSet, find_row, open_sets, parent_directories
from trd_cli.trajectories.show_turns import shown_turns, told_environment, told_episode, turns_diff

# From a set to the tokenizer of its rows, None where it is not at hand.
TokenizerOf = Callable[[InputSet], Tokenizer | None]


def show(config: ShowConfig, paths: Sequence[str], tokenizer_of: TokenizerOf) -> Group:
    """Return all facts and texts of a row, with its parent where it has one."""
    row, source = find_row(open_sets(paths), config.id)
    parts: list[Panel | Table] = [_facts(row, source)]
    parent = parent_of(row, source, config.parents)
    if parent is not None:
        # The ids of a parent are those of the same tokenizer.
        body = _body(parent, _spans(parent, source, tokenizer_of))
        parts.append(_panel(f"parent {parent.trajectory_id[:12]} · y_o · {parent.verdict or 'unverified'}", body))
    for message in row.messages:
        parts.append(_panel(f"prompt · {message['role']} · {row.prompt_template}", message["content"]))
    spans = _spans(row, source, tokenizer_of)
    parts.append(_panel(f"response · {row.verdict or 'unverified'}{_not_marked(row, spans)}", _body(row, spans)))
    if config.tokens:
        parts.append(_panel("response token ids", " ".join(map(str, row.response_token_ids or ()))))
    return Group(*parts)


def diff(config: DiffConfig, paths: Sequence[str], tokenizer_of: TokenizerOf) -> Group:
    """Return y_o against y_r, word by word or, for episodes, action by action: removed in red, added in green."""
    row, source = find_row(open_sets(paths), config.id)
    parent = parent_of(row, source, config.parents)
    if parent is None:
        raise InputError(
            f"{row.trajectory_id[:12]} is a {row.stage} without a parent here",
            "a refined row",
            "give a set that trd refine made",
        )
    title = f"y_o {parent.verdict or 'unverified'} → y_r {row.verdict or 'unverified'} · problem {row.problem_id}"
    if row.turns is not None and parent.turns is not None:
        return Group(_panel(title, turns_diff(parent.turns, row.turns)))
    spans = _spans(row, source, tokenizer_of)
    body = word_diff(parent.response or "", row.response or "", spans)
    return Group(_panel(title + _not_marked(row, spans), body))


def _spans(row: Trajectory, source: InputSet, tokenizer_of: TokenizerOf) -> list[Span]:
    """Return the parts of a response by author, [] for a row that names none, and where they cannot be found."""
    if not _has_parts(row):
        return []
    tokenizer = tokenizer_of(source)
    if tokenizer is None:
        return []
    return author_spans(row.response, row.response_token_ids or (), row.author, tokenizer) or []


def _has_parts(row: Trajectory) -> bool:
    """Return whether a row's text has parts by author, which its tokens tell. An episode has turns instead."""
    return row.author is not None and bool(row.response) and row.turns is None


def _not_marked(row: Trajectory, spans: Sequence[Span]) -> str:
    return (
        " · authors are not marked (the tokenizer is not at hand or spells the text otherwise)"
        if _has_parts(row) and not spans
        else ""
    )


def _body(row: Trajectory, spans: Sequence[Span]) -> Text:
    """Return what a row's response is to a person: its text, its turns, or the error in its place."""
    if row.turns is not None:
        return shown_turns(row.turns)
    return Text(f"error: {row.error}") if row.response is None else by_author(row.response, spans)


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
        "set": f"{source} ({source.record.get('command', 'no run.json')} {source.record.get('digest', '')})",
        "made from": ", ".join(entry["path"] for entry in source.record.get("inputs", [])),
        "problem": f"{row.problem_id} ({row.task})",
        "place": f"{row.stage}, round {row.round}, sample {row.sample_index}"
        + (f", {row.setting}" if row.setting else ""),
        "model": f"{row.model} @ {row.model_revision or 'unknown'} on {row.engine} {row.engine_version}",
        "sampling": Sampling(row.temperature, row.top_p, row.top_k, row.max_tokens).told(row.seed),
        "tokens": f"{len(row.prompt_token_ids)} prompt, {len(row.response_token_ids or ())} response ({row.finish_reason})",
        "environment": told_environment(row.environment) if row.environment else "",
        "episode": told_episode(row.turns, row.episode_reward, row.stop_reason) if row.turns is not None else "",
        "authors": told_authors(row.author or (), is_episode=row.turns is not None),
        "prefix": f"{counted(row.prefix_tokens, 'response token')} given to the model" if row.prefix_tokens else "",
        "weights": _weights(row.token_weight) if row.token_weight else "",
        "attempt cut": counted(row.attempt_tokens_trimmed, "token") if row.attempt_tokens_trimmed else "",
        "reference": row.reference_answer or "",
        "oracle": ", ".join((row.reference_solution or "").splitlines()) if row.task == EPISODE else "",
        "verdict": _verdict(row) if row.verdict else "",
        "error": row.error or "",
    }
    for name, value in facts.items():
        if value:
            table.add_row(Text(name, style="bold"), _as_text(value))
    return table


def _verdict(row: Trajectory) -> str:
    by = f"({row.grader} {row.grader_version})"
    return f"{row.verdict}: {' '.join(filter(None, (row.extracted_answer, row.verdict_detail, by)))}"


def _weights(weights: Sequence[float]) -> str:
    zero = sum(weight == 0 for weight in weights)
    return f"{min(weights):g} to {max(weights):g}, mean {fmean(weights):.3g}, 0 for {zero} of {len(weights)} tokens"


def _panel(title: str, body: str | Text) -> Panel:
    return Panel(_as_text(body), title=_as_text(title), title_align="left")


def _as_text(body: str | Text) -> Text:
    """Return a text that no terminal takes for a command: models and environments may write any character."""
    text = body.copy() if isinstance(body, Text) else Text(body)
    text.plain = visible(text.plain)
    return text
