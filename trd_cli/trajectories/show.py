"""trd show and trd diff: one trajectory with its lineage; the words that the teacher changed.

In a row that names the authors of its tokens, each part of the response begins with a sign, as ⟨teacher⟩, and has a
colour: the sign is there for pipes and for eyes that do not tell the colours apart.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from statistics import fmean

from rich.console import Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from trd_cli.config.commands import DiffConfig, ShowConfig
from trd_cli.errors import InputError, counted
from trd_cli.prompting.authors import Span, author_runs, author_spans
from trd_cli.prompting.tokens import Tokenizer
from trd_cli.records import Trajectory
from trd_cli.trajectories.sets import InputSet, find_row, open_sets, parent_directories

_WORDS = re.compile(r"\s+|[^\s]+")
_STYLES = {"student": "cyan", "teacher": "magenta", "environment": "yellow", "template": "dim"}

# From a set to the tokenizer of its rows, None where it is not at hand.
TokenizerOf = Callable[[InputSet], Tokenizer | None]


def show(config: ShowConfig, paths: Sequence[str], tokenizer_of: TokenizerOf) -> Group:
    """Return all facts and texts of a row, with its parent where it has one."""
    row, source = find_row(open_sets(paths), config.id)
    parts: list[Panel | Table] = [_facts(row, source)]
    parent = parent_of(row, source, config.parents)
    if parent is not None:
        # The ids of a parent are those of the same tokenizer.
        body = _by_author(parent, _spans(parent, source, tokenizer_of))
        parts.append(_panel(f"parent {parent.trajectory_id[:12]} · y_o · {parent.verdict or 'unverified'}", body))
    for message in row.messages:
        parts.append(_panel(f"prompt · {message['role']} · {row.prompt_template}", message["content"]))
    spans = _spans(row, source, tokenizer_of)
    body = _by_author(row, spans) if row.response is not None else f"error: {row.error}"
    parts.append(_panel(f"response · {row.verdict or 'unverified'}{_not_marked(row, spans)}", body))
    if config.tokens:
        parts.append(_panel("response token ids", " ".join(map(str, row.response_token_ids or ()))))
    return Group(*parts)


def diff(config: DiffConfig, paths: Sequence[str], tokenizer_of: TokenizerOf) -> Group:
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
    spans = _spans(row, source, tokenizer_of)
    body = _word_diff(parent.response or "", row.response or "", spans)
    return Group(_panel(title + _not_marked(row, spans), body))


def _spans(row: Trajectory, source: InputSet, tokenizer_of: TokenizerOf) -> list[Span]:
    """Return the parts of a response by author, [] for a row that names none, and where they cannot be found."""
    if row.author is None or not row.response:
        return []
    tokenizer = tokenizer_of(source)
    if tokenizer is None:
        return []
    return author_spans(row.response, row.response_token_ids or (), row.author, tokenizer) or []


def _not_marked(row: Trajectory, spans: Sequence[Span]) -> str:
    there = row.author is not None and row.response
    return (
        " · authors are not marked (the tokenizer is not at hand or spells the text otherwise)"
        if there and not spans
        else ""
    )


def _by_author(row: Trajectory, spans: Sequence[Span]) -> Text:
    response = row.response or ""
    if not spans:
        return Text(response)
    text = Text()
    for span in spans:
        text.append(_sign(span.author), style=f"bold {_STYLES[span.author]}")
        text.append(response[span.start : span.end], style=_STYLES[span.author])
    return text


def _sign(author: str) -> str:
    return f"⟨{author}⟩"


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
        "authors": ", then ".join(f"{author} {tokens}" for author, tokens in author_runs(row.author or ())),
        "prefix": f"{counted(row.prefix_tokens, 'response token')} given to the model" if row.prefix_tokens else "",
        "weights": _weights(row.token_weight) if row.token_weight else "",
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


def _weights(weights: Sequence[float]) -> str:
    zero = sum(weight == 0 for weight in weights)
    return f"{min(weights):g} to {max(weights):g}, mean {fmean(weights):.3g}, 0 for {zero} of {len(weights)} tokens"


def _panel(title: str, body: str | Text) -> Panel:
    return Panel(body if isinstance(body, Text) else Text(body), title=Text(title), title_align="left")


def _word_diff(before: str, after: str, spans: Sequence[Span]) -> Text:
    """Return both texts as one. `spans` are of `after`."""
    old, new = _WORDS.findall(before), _WORDS.findall(after)
    text, place = Text(), 0

    def append(words: Sequence[str], added: bool) -> None:
        nonlocal place
        start, place = place, place + sum(map(len, words))
        if added and start < place:
            text.append("{+", style="green")
        for span in spans or [Span("", 0, len(after))]:
            if start <= span.start < place and span.author:
                text.append(_sign(span.author), style=f"bold {_STYLES[span.author]}")
            part = after[max(start, span.start) : min(place, span.end)]
            text.append(part, style="green" if added else _STYLES.get(span.author, ""))
        if added and start < place:
            text.append("+}", style="green")

    for kind, a, b, c, d in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        # Marks, not colour alone: a diff must survive a pipe and a colour-blind reader.
        if kind != "equal" and b > a:
            text.append("[-" + "".join(old[a:b]) + "-]", style="red strike")
        append(new[c:d], added=kind != "equal")
    return text
