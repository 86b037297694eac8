"""Declare the options of grading."""

from __future__ import annotations

from typing import Literal

from trd_cli.config.base import AboveZero, Config, InputOptions, NotNegative, Positive, Share, option


class GraderConfig(Config):
    lenient: bool = option(
        False,
        "Grading",
        help="Without a boxed answer, take the final expression of the response.",
        rows=False,
        decides=True,
    )
    timeout: AboveZero = option(
        10.0,
        "Grading",
        help="Seconds for a row of mathematics; then its grader is killed (verdict timeout).",
        rows=False,
        decides=True,
    )
    workers: Positive | None = option(
        None, "Grading", help="Grader processes. Default: the number of cores.", rows=False
    )
    sandbox: Literal["auto", "namespaces", "bwrap", "limits"] = option(
        "auto",
        "Grading",
        help="How programs are confined: Linux namespaces, bubblewrap, or limits alone. auto: the strongest that works.",
        rows=False,
    )
    test_timeout: AboveZero = option(
        6.0,
        "Grading",
        help="Seconds for one test of a program; a slower program is incorrect. HumanEval+ and MBPP+ have EvalPlus's limits.",
        rows=False,
        decides=True,
    )
    code_timeout: AboveZero = option(
        120.0,
        "Grading",
        help="Seconds for all tests of a program (verdict timeout if none has failed by then).",
        rows=False,
        decides=True,
    )
    memory: AboveZero = option(
        4.0, "Grading", help="GiB of memory for a program, and for a grader process.", rows=False, decides=True
    )


class VerifyConfig(InputOptions, GraderConfig):
    out: str | None = option(
        None, "Output", help="Write verified copies here. Default: fill in the verdicts in place.", rows=False
    )
    max_errors: NotNegative = option(
        0.05,
        "Output",
        help="Exit with 3 when more rows get no verdict (error, timeout): a count, or a share if below 1.",
        rows=False,
    )
    regrade: bool = option(
        False, "Grading", help="Grade rows again that have a verdict, and print old against new verdicts.", rows=False
    )
    audit: Share = option(
        0.0,
        "Grading",
        help="Grade this share of the rows by a second method too (math-verify with its own extraction; a second run), print the agreement, and list rows that differ in SET.audit.jsonl.",
        rows=False,
    )
    dry_run: bool = option(False, "Output", help="Print what would be graded, then stop.", rows=False)
