"""Findings of trd plan by topic, each with the change that mends it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

from trd_cli.errors import OutOfReach, UserError

Level = Literal["ok", "warning", "error"]
Topic = Literal["recipe", "models", "problems", "lengths", "benchmarks", "memory", "disk", "cost"]
TOPICS: tuple[Topic, ...] = ("recipe", "models", "problems", "lengths", "benchmarks", "memory", "disk", "cost")


@dataclass(frozen=True)
class Finding:
    """One thing found. `change` says how to mend it; an "ok" needs none. `expected` is that of a UserError."""

    level: Level
    topic: Topic
    got: str
    change: str = ""
    expected: str = ""

    @property
    def what(self) -> str:
        """Return what was found, with what was expected instead."""
        return self.got + (f"; expected {self.expected}" if self.expected else "")

    def line(self) -> str:
        return f"{self.level:<7} {self.what}" + (f"; {self.change}" if self.change else "")

    def record(self) -> dict[str, Any]:
        """Return the finding as the JSON file holds it."""
        return {"level": self.level, "topic": self.topic, "what": self.what, "change": self.change}


def ok(topic: Topic, what: str) -> Finding:
    return Finding("ok", topic, what)


def warning(topic: Topic, what: str, change: str) -> Finding:
    return Finding("warning", topic, what, change)


def error(topic: Topic, what: str, change: str) -> Finding:
    return Finding("error", topic, what, change)


def of_exception(level: Level, topic: Topic, raised: UserError, prefix: str = "") -> Finding:
    """Return a UserError as a finding."""
    return Finding(level, topic, prefix + raised.got, raised.mend, raised.expected)


def out_of_reach(raised: UserError) -> bool:
    """Return True for something that was not downloaded, and that another machine may reach."""
    return isinstance(raised, OutOfReach)


def grouped(labelled: Iterable[tuple[str, str, Finding]]) -> list[Finding]:
    """Put the stage and the arms ("" for none) before each finding. The same finding about several arms becomes one."""
    about: dict[tuple[str, Finding], dict[str, None]] = {}
    for stage, arm, finding in labelled:
        about.setdefault((stage, finding), {})[arm] = None
    return [
        replace(finding, got=f"{stage} {', '.join(filter(None, arms))}".rstrip() + f": {finding.got}")
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
