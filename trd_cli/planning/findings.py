"""Findings of trd plan by topic, each with the change that mends it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from trd_cli.errors import UserError

Level = Literal["ok", "warning", "error"]
Topic = Literal["recipe", "models", "problems", "lengths", "benchmarks", "memory", "disk", "cost"]
TOPICS: tuple[Topic, ...] = ("recipe", "models", "problems", "lengths", "benchmarks", "memory", "disk", "cost")


@dataclass(frozen=True)
class Finding:
    """One thing found. `change` says how to mend it; an "ok" needs none."""

    level: Level
    topic: Topic
    what: str
    change: str = ""

    def line(self) -> str:
        return f"{self.level:<7} {self.what}" + (f"; {self.change}" if self.change else "")

    def record(self) -> dict[str, Any]:
        return asdict(self)


def ok(topic: Topic, what: str) -> Finding:
    return Finding("ok", topic, what)


def warning(topic: Topic, what: str, change: str) -> Finding:
    return Finding("warning", topic, what, change)


def error(topic: Topic, what: str, change: str) -> Finding:
    return Finding("error", topic, what, change)


def of_exception(level: Level, topic: Topic, raised: UserError, prefix: str = "") -> Finding:
    """Return the finding that one of our exceptions makes."""
    return Finding(level, topic, f"{prefix}{raised.got}; expected {raised.expected}", raised.mend)


def out_of_reach(raised: UserError) -> bool:
    """Whether something was not downloaded:

    what does so names the network in how to mend it. It may be in reach elsewhere.
    """
    return "network" in raised.mend


def grouped(labelled: Iterable[tuple[str, str, Finding]]) -> list[Finding]:
    """Put the stage and the arms ("" for none) before each finding. The same finding about several arms becomes one."""
    about: dict[tuple[str, Finding], dict[str, None]] = {}
    for stage, arm, finding in labelled:
        about.setdefault((stage, finding), {})[arm] = None
    return [
        replace(finding, what=f"{stage} {', '.join(filter(None, arms))}".rstrip() + f": {finding.what}")
        for (stage, finding), arms in about.items()
    ]


def lines(findings: Iterable[Finding]) -> list[str]:
    """Return all findings by topic, in the order of TOPICS, a heading before each topic."""
    by_topic: dict[Topic, list[str]] = {topic: [] for topic in TOPICS}
    for finding in findings:
        by_topic[finding.topic].append(f"  {finding.line()}")
    return [line for topic, own in by_topic.items() if own for line in (topic, *own)]


def per_cent(share: float) -> str:
    """Return a share as `12 %`. One that is neither none nor all never looks so."""
    if 0 < share < 0.01:
        return "under 1 %"
    return "over 99 %" if 0.99 < share < 1 else f"{share:.0%}".replace("%", " %")
