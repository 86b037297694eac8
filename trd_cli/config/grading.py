"""Declare the options of grading."""

from __future__ import annotations

from typing import Literal

from trd_cli.config.base import (
    AboveZero,
    ArrayOptions,
    Config,
    InputOptions,
    NotNegative,
    Positive,
    Share,
    Texts,
    option,
)


class GraderConfig(Config):
    lenient: bool = option(
        False, "Grading", "Without a boxed answer, take the final expression of the response.", decides=True
    )
    timeout: AboveZero = option(
        10.0, "Grading", "Seconds to grade a row, unless of code, else its verdict is timeout.", decides=True
    )
    grader: Texts = option(
        (),
        "Grading",
        "Python function MODULE:FUNCTION that grades tasks of your own; TASK=MODULE:FUNCTION for one task, also math (repeatable).",
        decides=True,
        counts_unset=False,
    )
    workers: Positive | None = option(None, "Grading", "Grader processes. Default: the number of cores.", rows=False)
    sandbox: Literal["auto", "namespaces", "bwrap", "limits"] = option(
        "auto",
        "Grading",
        "Confine programs by namespaces, bubblewrap or limits alone. auto: the strongest.",
        rows=False,
    )
    test_timeout: AboveZero = option(
        6.0,
        "Grading",
        "Seconds for one test of a program, else it is incorrect (HumanEval+, MBPP+: EvalPlus's).",
        decides=True,
    )
    code_timeout: AboveZero = option(
        120.0,
        "Grading",
        "Seconds for all tests of a program; verdict timeout if none has failed by then.",
        decides=True,
    )
    memory: AboveZero = option(4.0, "Grading", "GiB of memory for a program, and for a grader process.", decides=True)


class VerifyConfig(InputOptions, ArrayOptions, GraderConfig):
    out: str | None = option(
        None, "Output", "Write verified copies here. Default: fill in the verdicts in place.", rows=False
    )
    max_errors: NotNegative = option(
        0.05, "Output", "Exit with 3 when more rows end as error or timeout: a count, or a share below 1.", rows=False
    )
    regrade: bool = option(
        False, "Grading", "Grade rows again that have a verdict, and print old against new verdicts.", rows=False
    )
    audit: Share = option(
        0.0,
        "Grading",
        "Grade this share of the rows by a second method too (math-verify with its own extraction; a second run; an episode's actions again), print the agreement, and list rows that differ in SET.audit.jsonl.",
        rows=False,
    )
    dry_run: bool = option(False, "Output", "Print what would be graded, then stop.", rows=False)
