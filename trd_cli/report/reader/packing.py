"""Trajectories as the page holds them: an index of small facts for the list and its filters, and chunks of whole rows.

Both are JSON, compressed with gzip and written in base64, so that a model's text cannot break out of its place. The
page decompresses the index at once, and a chunk when one of its rows is chosen.

index  {count, starts (first row of each chunk), pattern (formulas.PATTERN), verdicts, flags (their names),
        problems [[id, beginning of the text, the part that can be searched]], sets [[node, label]], arms [name],
        id [], parent [], problem [], set [], trained [places in `arms`],
        before [], after [], tokens_before [], tokens_after [], flag_bits []}
       `parent` is the id of the y_o that a y_r was made from, even if that row is missing; null for a y_o. `before`
       and `after` are places in `verdicts`, of y_o and y_r; -1 without such a row. Nodes and labels of sets are
       unique. Ids need not be: two runs may share rows
chunk  [{id, task, problem, answer, reference, facts [[name, value]], before, after, math {formula: tree}, steps}]
       with `before` and `after` null or {id, verdict, text, error, facts, messages, authors, turns}; `authors` is null
       or has [name, end] for each part of the text, in UTF-16 code units, as JavaScript counts. An episode has turns
       [[role, action, [remark], observation]] and no text; other rows have null. `steps` is null but for two rows of
       an episode: [[place in the turns of `before`, place in those of `after`, change]], null where there is no turn
"""

from __future__ import annotations

import base64
import gzip
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import IO, Any

from trd_cli.records import EPISODE, Environment
from trd_cli.report.data import UNVERIFIED, VERDICTS, SetRef
from trd_cli.report.reader.formulas import PATTERN, typeset
from trd_cli.report.reader.trajectories import Entry, Row
from trd_cli.trajectories.alignment import align
from trd_cli.trajectories.show_turns import remarks_on, told_environment, told_episode

CHUNK = 200
# A browser parses a chunk in one go.
_CHUNK_CHARACTERS = 2_000_000
# Least length of an attempt that the teacher's prompt repeats. A shorter text may be there by chance.
_REPEATED = 200
_VERDICTS = (*VERDICTS, UNVERIFIED)
_FLAGS = (
    *("talks of the reference", "copies 8 words of it", "copies 13 words of it", "cut off", "no response"),
    "an action not valid",
)
SEARCHED = 2000
# What the counted tokens of a response are, of a text and of an episode.
_RESPONSE = ("response", "written by the model")


@dataclass
class Packed:
    """The trajectories to put in the page. `index` and each chunk is base64 of gzip of JSON; `chunks` is read once."""

    count: int
    index: str
    chunks: Iterator[str]


@dataclass
class _Index:
    """The columns of the index, filled entry by entry."""

    problems: dict[tuple[str, str], int] = field(default_factory=dict)
    sets: dict[SetRef, int] = field(default_factory=dict)
    starts: list[int] = field(default_factory=list)
    arms: dict[str, int] = field(default_factory=dict)
    columns: dict[str, list[Any]] = field(
        default_factory=lambda: {
            name: []
            for name in (
                *("id", "parent", "problem", "set", "trained", "before", "after"),
                *("tokens_before", "tokens_after", "flag_bits"),
            )
        }
    )

    def add(self, entry: Entry) -> None:
        row, before, after = entry.row, entry.rollout, entry.refined
        # The key has the text too: two runs may have different problems of one name.
        named = (row["problem_id"], row["problem"][:SEARCHED])
        values = {
            "id": row["trajectory_id"],
            "parent": row["parent_id"],
            "problem": self.problems.setdefault(named, len(self.problems)),
            "set": self.sets.setdefault(entry.source, len(self.sets)),
            "trained": [self.arms.setdefault(arm, len(self.arms)) for arm in entry.arms],
            "before": _place(before),
            "after": _place(after),
            "tokens_before": before["response_tokens"] if before else None,
            "tokens_after": after["response_tokens"] if after else None,
            "flag_bits": sum(bit << i for i, bit in enumerate(_flags(entry))),
        }
        for name, value in values.items():
            self.columns[name].append(value)

    def content(self) -> dict[str, Any]:
        return {
            "count": len(self.columns["id"]),
            "starts": self.starts,
            "pattern": PATTERN,
            "verdicts": _VERDICTS,
            "flags": _FLAGS,
            "problems": list(self.problems),
            "sets": list(zip((ref.node for ref in self.sets), set_labels(self.sets), strict=True)),
            "arms": list(self.arms),
            **self.columns,
        }


def pack(entries: Iterable[Entry], spool: IO[str]) -> Packed:
    """Pack these entries into an index and chunks.

    Chunks go to `spool`, an empty file open for writing and reading, so that only one is in memory at a time.
    """
    index = _Index()
    for chunk in _chunks(entries):
        index.starts.append(len(index.columns["id"]))
        for entry in chunk:
            index.add(entry)
        spool.write(_compressed([_shown(entry) for entry in chunk]) + "\n")
    content = index.content()
    spool.seek(0)
    return Packed(content["count"], _compressed(content), (line.rstrip("\n") for line in spool))


def _chunks(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    """Yield chunks of at most CHUNK entries; one that reaches _CHUNK_CHARACTERS of responses ends there."""
    chunk: list[Entry] = []
    characters = 0
    for entry in entries:
        chunk.append(entry)
        characters += sum(len(side["response"] or "") for side in (entry.rollout, entry.refined) if side)
        if len(chunk) == CHUNK or characters >= _CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def set_labels(refs: Iterable[SetRef]) -> list[str]:
    """Return the labels of sets, with the node's name if two would have the same."""
    labels = {ref: _set_label(ref) for ref in refs}
    times = Counter(labels.values())
    return [label if times[label] == 1 else f"{label} · {ref.node}" for ref, label in labels.items()]


def _set_label(ref: SetRef) -> str:
    """Return a set's arms, round and seed, and a word if it has rollouts alone."""
    parts = [ref.users] if ref.users else []
    parts += [f"{name} {value}" for name, value in (("round", ref.round), ("seed", ref.seed)) if value is not None]
    return " · ".join([*parts, *(["y_o only"] if ref.kind == "rollout" else [])])


def _compressed(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    # gzip would write the time, and the same run must give the same page.
    return base64.b64encode(gzip.compress(text.encode(), compresslevel=6, mtime=0)).decode()


def _place(row: Row | None) -> int:
    return -1 if row is None else _VERDICTS.index(row["verdict"] or UNVERIFIED)


def _flags(entry: Entry) -> Sequence[bool]:
    rows = [row for row in (entry.rollout, entry.refined) if row]
    return (
        entry.talks,
        entry.copies >= 8,
        entry.copies >= 13,
        any(row["finish_reason"] == "length" for row in rows),
        any(row["response"] is None for row in rows),
        any(turn.valid is False for row in rows for turn in row["turns"] or ()),
    )


def _shown(entry: Entry) -> dict[str, Any]:
    row = entry.row
    sides = [side for side in (entry.rollout, entry.refined) if side]
    texts = [row["problem"], row["reference_solution"] or "", row["reference_answer"] or ""]
    texts += [side["response"] or "" for side in sides]
    attempt = (entry.rollout or {}).get("response") or ""
    for side in sides:
        for message in side["messages"]:
            # The formulas of a repeated attempt are y_o's, which are in `texts` already.
            repeats = len(attempt) >= _REPEATED and attempt in message["content"]
            texts.append(message["content"].replace(attempt, "\n") if repeats else message["content"])
    return {
        "id": row["trajectory_id"],
        "task": row["task"],
        "problem": row["problem"],
        "answer": row["reference_answer"],
        "reference": row["reference_solution"],
        "facts": _facts_of_place(entry),
        "before": _side(entry.rollout),
        "after": _side(entry.refined),
        # An environment's text has no formulas.
        "math": {} if row["task"] == EPISODE else typeset(texts),
        "steps": _steps(entry.rollout, entry.refined),
    }


def _steps(before: Row | None, after: Row | None) -> list[tuple[int | None, int | None, str]] | None:
    if not before or not after or before["turns"] is after["turns"] is None:
        return None
    both = ([turn.action for turn in row["turns"] or ()] for row in (before, after))
    return [(step.before, step.after, step.change) for step in align(*both)]


def _facts_of_place(entry: Entry) -> list[tuple[str, str]]:
    row = entry.row
    return _said(
        ("problem", f"{row['problem_id']} of {row['source']}"),
        ("set", f"{entry.source.node} ({entry.source.path.name})"),
        ("setting", row["setting"]),
        ("round", str(row["round"])),
        ("sample", str(row["sample_index"])),
    )


def _side(row: Row | None) -> dict[str, Any] | None:
    if row is None:
        return None
    return {
        "id": row["trajectory_id"],
        "verdict": row["verdict"] or UNVERIFIED,
        "text": row["response"] if row["turns"] is None else None,
        "error": row["error"],
        "facts": _facts(row),
        "messages": [[message["role"], message["content"]] for message in row["messages"]],
        "authors": _ends_of_authors(row),
        "turns": _turns(row),
    }


def _turns(row: Row) -> list[tuple[str, str, list[str], str | None]] | None:
    if row["turns"] is None:
        return None
    return [(turn.role, turn.action, remarks_on(turn), turn.observation) for turn in row["turns"]]


def _ends_of_authors(row: Row) -> list[tuple[str, int]] | None:
    if not row["author_spans"]:
        return None
    ends = [(span.author, row["response"][span.start : span.end]) for span in row["author_spans"]]
    lengths = accumulate(len(text.encode("utf-16-le", "surrogatepass")) // 2 for _, text in ends)
    return [(author, end) for (author, _), end in zip(ends, lengths, strict=True)]


def _facts(row: Row) -> list[tuple[str, str]]:
    sampling = f"T {row['temperature']:g}, top-p {row['top_p']:g}, top-k {row['top_k']}, at most {row['max_tokens']} tokens, seed {row['seed']}"
    ended = {"stop": "ended", "length": "cut off"}.get(row["finish_reason"], "not ended")
    trimmed, is_episode = row["attempt_tokens_trimmed"], row["turns"] is not None
    return _said(
        ("id", row["trajectory_id"]),
        ("made from", row["parent_id"]),
        ("tokens", f"{row['prompt_tokens']} prompt, {row['response_tokens'] or 0} {_RESPONSE[is_episode]}, {ended}"),
        ("episode", told_episode(row["turns"], row["episode_reward"], row["stop_reason"]) if is_episode else None),
        ("environment", told_environment(Environment(**row["environment"])) if row["environment"] else None),
        ("authors", _authors(row)),
        ("answer read", row["extracted_answer"]),
        ("verdict", f"{row['verdict']} by {row['grader']} {row['grader_version']}" if row["verdict"] else None),
        ("why", row["verdict_detail"]),
        ("model", f"{row['model']} @ {row['model_revision']}"),
        ("engine", f"{row['engine']} {row['engine_version']}"),
        ("sampling", sampling),
        ("prompt", f"{row['prompt_template']}, {row['prompt_sha256'][:12]}"),
        ("cut from the attempt in the prompt", f"{trimmed} tokens" if trimmed else None),
    )


def _authors(row: Row) -> str | None:
    if not row["authors"]:
        return None
    is_unmarked = row["response"] and row["turns"] is None and not row["author_spans"]
    return row["authors"] + ("; not marked: no tokenizer here that spells this text" if is_unmarked else "")


def _said(*facts: tuple[str, str | None]) -> list[tuple[str, str]]:
    return [(name, value) for name, value in facts if value]
