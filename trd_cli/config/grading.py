"""Options of grading."""

from __future__ import annotations

from typing import Literal

from trd_cli.config.base import AboveZero, Config, InputOptions, NotNegative, Positive, Share, option


class GraderConfig(Config):
    lenient: bool = option(
        False, help="Without a boxed answer, take the response's final expression.", rows=False, decides=True
    )
    timeout: AboveZero = option(
        10.0,
        help="Seconds a row of mathematics may take before its grader is killed (verdict timeout).",
        rows=False,
        decides=True,
    )
    workers: Positive | None = option(None, help="Grader processes. Default: the number of cores.", rows=False)
    sandbox: Literal["auto", "namespaces", "bwrap", "limits"] = option(
        "auto",
        help="What keeps programs in: Linux namespaces, bubblewrap, or limits alone. auto: the strongest there is.",
        rows=False,
    )
    test_timeout: AboveZero = option(
        6.0,
        help="Seconds a test of a program may take, else it is incorrect (HumanEval+, MBPP+: EvalPlus's limits).",
        rows=False,
        decides=True,
    )
    code_timeout: AboveZero = option(
        120.0,
        help="Seconds all tests of a program may take (verdict timeout where none has failed by then).",
        rows=False,
        decides=True,
    )
    memory: AboveZero = option(
        4.0, help="GiB of memory for a program, and for a grader process.", rows=False, decides=True
    )


class VerifyConfig(InputOptions, GraderConfig):
    out: str | None = option(None, help="Write verified copies here. Default: fill the verdicts in place.", rows=False)
    max_errors: NotNegative = option(
        0.05,
        help="Exit with 3 when more rows get no verdict (error, timeout): a count, or a share if below 1.",
        rows=False,
    )
    regrade: bool = option(
        False, help="Grade rows that have a verdict again, and print the old verdicts against the new.", rows=False
    )
    audit: Share = option(
        0.0,
        help="Grade this share of the rows by a second method too (math-verify with its own extraction; a second run), print the agreement, and list the rows that differ in SET.audit.jsonl.",
        rows=False,
    )
    dry_run: bool = option(False, help="Say what would be graded, then stop.", rows=False)
