"""Compare our graders with the libraries they rest on, called plainly: math-verify and EvalPlus.

Mathematics, answers a second. Baseline: math-verify in one process, `verify(parse(reference), parse(response))` with
its defaults, the reference in a box. Ours: `GraderPool` on one and on two processes, with everything that makes a row
killable. Built-in rows are worked solutions that end in a boxed answer: half of them written otherwise than the
reference, a quarter the same way, a quarter wrong. With TRD_DATA the 800 responses of rollouts/math_cot_100.jsonl are a
second set. Every run has new processes that have graded rows like the built-in ones before, so that imports and first
uses are outside the time.

Cached: ours keeps the last 128 texts it read. So the built-in rows are all different. Two recorded rows to the same
problem are 100 rows apart, with enough rows between them, outside the time, that the reference is read again. The
script shows the share of readings that was kept nevertheless, mostly a row's own from one step to the next. Ours does
not read an answer that is written exactly as its reference. SymPy keeps its last 1000 results on both sides.

Mathematics, agreement: the public cases of TRD_DATA, by kind, ours and math-verify side by side, and how many wrong
answers each accepts.

Programs, checks a second, a check being a row's base and plus inputs (needs HumanEval+, in TRD_DATA or downloaded
before). Baseline: EvalPlus's `check_correctness`. Ours: `GraderPool` in the strongest sandbox there is. Rows are
reference solutions, several samples of each task in a row, and each side runs the reference once a task and process;
EvalPlus can keep those results on disk, so it is shown without them too. The two do not do the same: ours also
sanitises, keeps expected results away from the program and closes a sandbox for each row, where EvalPlus forks two
processes and compares inside them.

Programs, agreement: the public cases of TRD_DATA, by kind, and how many wrong programs pass.

Programs, under load: programs that take three quarters of EvalPlus's limit, or a third more than it, graded five times
beside two busy loops. Each must get one verdict: the one that it gets alone.

The ways take turns, and medians count. The goal for two processes holds where two cores are free. Free cores are
measured between the turns by the work of two busy loops together; with fewer, the goal is shown but not counted.

    TRD_DATA=... python examples/bench/graders.py [--quick]
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import multiprocessing
import os
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from statistics import median
from typing import Any

from trd_cli.datasets.arithmetic import make_arithmetic
from trd_cli.graders import math
from trd_cli.graders.base import Question
from trd_cli.graders.comparing.parsing import parse
from trd_cli.graders.evalplus_tasks import LATEST, origin, task_sha256, tasks
from trd_cli.graders.options import GraderOptions
from trd_cli.graders.pool import GraderPool
from trd_cli.graders.reading import read
from trd_cli.graders.sandbox import LEVELS, Limits, Sandbox, refusal

ONE_GOAL, TWO_GOAL, CODE_GOAL = 0.9, 1.7, 0.8
# Shares of the public cases: verdicts that are the label's, and wrong answers refused.
AGREEMENT_GOAL, REFUSED_GOAL = 0.97, 1.0
# Fewer than this are not two free cores.
FREE = 1.8
DATASET, VERSION = "humaneval", LATEST["humaneval"]
SPIN = 2_000_000
# Two texts a row: more than our grader keeps.
FORGETTING = 80


@dataclass(frozen=True)
class Size:
    """Hold the numbers of built-in answers, rounds of mathematics, tasks, samples a task, rounds of programs, and empty
    sandboxes a level.
    """

    answers: int
    math_rounds: int
    tasks: int
    samples: int
    code_rounds: int
    sandboxes: int


FULL, QUICK = Size(1000, 7, 40, 4, 3, 15), Size(200, 3, 5, 2, 2, 5)


# Answers


def _spellings(chance: random.Random) -> Iterator[tuple[str, str, str]]:
    """Return a reference, the same value written otherwise, and another value."""
    a, b, c = chance.randint(100, 9999), chance.randint(100, 9999), chance.randint(2, 99)
    # Numbers are what most answers are.
    for n in range(a, a + 5):
        yield f"{n}{b}", f"{n}{b}.0", f"{n}{b + 1}"
        yield rf"\frac{{{n}}}{{{b}}}", rf"\dfrac{{{c * n}}}{{{c * b}}}", rf"\frac{{{n + 1}}}{{{b}}}"
        yield f"{n}.{b}25", rf"\frac{{{4 * int(f'{n}{b}') + 1}}}{{4{'0' * len(str(b))}}}", f"{n}.{b}26"
        yield rf"{n}\sqrt{{{b}7}}", rf"\sqrt{{{n * n * int(f'{b}7')}}}", rf"{n + 1}\sqrt{{{b}7}}"
    yield f"x^2 + {a + b}x + {a * b}", f"(x + {a})(x + {b})", f"(x + {a})(x + {b + 1})"
    yield f"({a}, {b}.5)", rf"\left({a}, \frac{{{2 * b + 1}}}{{2}}\right)", f"({b}.5, {a})"
    yield f"[{a}, {a + b})", rf"\left[{a}, \frac{{{c * (a + b)}}}{{{c}}}\right)", f"[{a}, {a + b}]"
    yield rf"\{{{a}, {-b}, {c}\}}", rf"\{{{c}, {a}, {-b}\}}", rf"\{{{a}, {b}, {c}\}}"
    yield rf"\frac{{{a}\pi}}{{{c}}}", rf"\frac{{{2 * a}}}{{{2 * c}}}\pi", rf"\frac{{{a + 1}\pi}}{{{c}}}"


def built_in_rows(count: int, seed: int) -> tuple[list[Question], list[bool]]:
    """Make rows of mathematics, all different, and tell which are right."""
    chance = random.Random(seed)
    rows, right = [], []
    problems = iter(make_arithmetic(count, seed=seed, level=2))
    while True:
        for reference, otherwise, wrong in _spellings(chance):
            if len(rows) == count:
                return rows, right
            kind = chance.choice(("same", "otherwise", "otherwise", "wrong"))
            answer = {"same": reference, "otherwise": otherwise, "wrong": wrong}[kind]
            work = next(problems).reference_solution.rpartition("The answer")[0]
            rows.append(Question("math", rf"{work}The answer is $\boxed{{{answer}}}$.", reference))
            right.append(kind != "wrong")


Blocks = Sequence[Sequence[Question]]


def forgetting_rows(count: int) -> list[Question]:
    """Make cheap rows that fill our grader's cache."""
    return [
        Question("math", rf"\boxed{{\sqrt{{{n}}}}}", rf"\sqrt{{{n}.5}}") for n in range(10_000_000, 10_000_000 + count)
    ]


def recorded_rows() -> Blocks | None:
    """Return the responses to 100 problems, 8 times one to each; None without the file."""
    path = Path(os.environ.get("TRD_DATA", ""), "rollouts", "math_cot_100.jsonl")
    if "TRD_DATA" not in os.environ or not path.is_file():
        return None
    problems = [json.loads(line) for line in path.read_text().splitlines()]
    return [[Question("math", p["code"][i], p["gt"]) for p in problems] for i in range(8)]


# Ways to grade, each in new processes: seconds, and what was right


def plainly(rows: Sequence[Question]) -> tuple[float, list[bool]]:
    """Grade by math-verify alone; its own failures count as incorrect."""
    from math_verify import parse, verify

    started = time.perf_counter()
    found = [
        verify(parse(rf"\boxed{{{row.reference_answer}}}"), parse(row.response), raise_on_error=False) for row in rows
    ]
    return time.perf_counter() - started, found


def run_plainly(warm: Sequence[Question], blocks: Blocks) -> tuple[float, list[bool]]:
    with _processes(1) as pool:
        pool.submit(plainly, warm).result()
        return pool.submit(plainly, [row for block in blocks for row in block]).result()


def run_ours(workers: int, warm: Sequence[Question], blocks: Blocks) -> tuple[float, list[bool]]:
    """Grade by our pool. Between blocks, outside the time, each worker gets rows that push out all it has read."""
    seconds, found = 0.0, []
    with GraderPool(GraderOptions(workers=workers)) as pool:
        list(pool.grade(warm))
        for block in blocks:
            list(pool.grade(forgetting_rows(FORGETTING * workers) if block is not blocks[0] else ()))
            started = time.perf_counter()
            found += [grade.verdict == "correct" for grade in pool.grade(block)]
            seconds += time.perf_counter() - started
    return seconds, found


def _processes(workers: int) -> ProcessPoolExecutor:
    # Forked, as EvalPlus's own processes on Linux: its checks start further processes by the same method.
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("fork"))


def spin(_: int = 0) -> float:
    """Return the processor seconds of a fixed piece of work."""
    started = time.process_time()
    sum(range(SPIN))
    return time.process_time() - started


def free_cores() -> float:
    """Measure how many of two cores two busy processes get; less than 2 also where two cores share their units."""
    with _processes(2) as pool:
        list(pool.map(spin, range(4)))
        alone = min(pool.submit(spin).result() for _ in range(2))
        started = time.perf_counter()
        list(pool.map(spin, range(8)))
        return 8 * alone / (time.perf_counter() - started)


Way = Callable[[], tuple[float, list[bool]]]


@dataclass(frozen=True)
class Measured:
    """Hold each way's seconds of each round and its last verdicts, and the cores that were free before each round."""

    seconds: dict[str, list[float]]
    right: dict[str, list[bool]]
    free: list[float]

    def ratio(self, faster: str, than: str) -> float:
        """Return how many times as fast a way is, the median over the rounds."""
        return median(b / a for a, b in zip(self.seconds[faster], self.seconds[than], strict=True))


def take_turns(ways: dict[str, Way], rounds: int) -> Measured:
    """Run every way once a round, in an order that rotates."""
    measured = Measured({name: [] for name in ways}, {}, [])
    for number in range(rounds):
        measured.free.append(free_cores())
        for name in list(ways) if number % 2 == 0 else list(reversed(ways)):
            seconds, measured.right[name] = ways[name]()
            measured.seconds[name].append(seconds)
    return measured


class Goals(dict[str, dict[str, Any]]):
    """Hold the result of each goal for the last line; a goal that is not counted decides nothing."""

    def judge(self, name: str, value: float, goal: float, counted: bool = True) -> None:
        ok = value >= goal
        self[name] = {"value": round(value, 3), "goal": goal, "ok": ok, "counted": counted}
        verdict = ("ok" if ok else "FAILS") if counted else "not counted: fewer than two cores were free"
        print(f"    {name:<58} {value:6.3f}  >= {goal}  {verdict}", flush=True)

    @property
    def hold(self) -> bool:
        return all(goal["ok"] for goal in self.values() if goal["counted"])


def print_rates(measured: Measured, count: int, unit: str) -> None:
    for name, seconds in measured.seconds.items():
        rates = [count / s for s in seconds]
        print(
            f"    {name:<28} {median(rates):8.1f} {unit} (from {min(rates):.1f} to {max(rates):.1f}),"
            f" {1000 * median(seconds) / count:8.2f} ms each, {sum(measured.right[name])} right"
        )
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"    cores free: {median(measured.free):.2f} of 2 (median), load average {load}")


def _looked_up() -> tuple[int, int]:
    """Return how many of the texts it asked for our grader had kept, and how many not."""
    caches = [part.cache_info() for part in (read, parse)]
    return sum(cache.hits for cache in caches), sum(cache.misses for cache in caches)


def share_kept(blocks: Blocks) -> float:
    """Return the share of these rows' texts that our grader, in one process, had kept."""
    hits = total = 0
    for block in blocks:
        for row in forgetting_rows(FORGETTING):
            math.grade(row, False)
        before = _looked_up()
        for row in block:
            math.grade(row, False)
        after = _looked_up()
        hits += after[0] - before[0]
        total += sum(after) - sum(before)
    return hits / total


def compare_math(name: str, blocks: Blocks, warm: Sequence[Question], rounds: int, goals: Goals) -> Measured:
    """Compare one set of rows with math-verify."""
    rows = [row for block in blocks for row in block]
    with _processes(1) as pool:
        kept = pool.submit(share_kept, blocks).result()
    texts = len({(row.reference_answer, row.response) for row in rows})
    print(f"\nMathematics, {name}: {len(rows)} rows, {texts} different, {rounds} rounds; {kept:.0%} of readings kept")
    measured = take_turns(
        {
            "math-verify, 1 process": lambda: run_plainly(warm, blocks),
            "ours, 1 process": lambda: run_ours(1, warm, blocks),
            "ours, 2 processes": lambda: run_ours(2, warm, blocks),
        },
        rounds,
    )
    print_rates(measured, len(rows), "answers/s")
    plain, one, two = measured.seconds
    both_free = median(measured.free) >= FREE
    goals.judge(f"{name}: ours, 1 process / math-verify", measured.ratio(one, plain), ONE_GOAL)
    goals.judge(f"{name}: ours, 2 processes / math-verify", measured.ratio(two, plain), TWO_GOAL, both_free)
    # The process that hands rows out takes its share of two cores.
    print(f"    {name + ': ours, 2 processes / 1 process':<58} {measured.ratio(two, one):6.3f}  (no goal)")
    return measured


# Agreement


def public_cases(of_programs: bool = False) -> list[dict[str, Any]] | None:
    """Return the cases of mathematics, or of programs; None without the file."""
    path = Path(os.environ.get("TRD_DATA", ""), "grading", "public_cases.jsonl")
    if "TRD_DATA" not in os.environ or not path.is_file():
        return None
    cases = [json.loads(line) for line in path.read_text().splitlines()]
    return [case for case in cases if ("tests" in case) is of_programs]


def compare_verdicts(cases: Sequence[dict[str, Any]], goals: Goals) -> dict[str, Any]:
    """Print the agreement with the labels, kind by kind, and the wrong answers accepted."""
    rows = [Question("math", case["response"], case["reference"]) for case in cases]
    with _processes(1) as pool:
        _, plain = pool.submit(plainly, rows).result()
    ours = [math.grade(row, bool(case["lenient"])).verdict for row, case in zip(rows, cases, strict=True)]
    verdicts = {"ours": ours, "math-verify": ["correct" if found else "incorrect" for found in plain]}
    agree = {
        name: [found == case["right"] for found, case in zip(each, cases, strict=True)]
        for name, each in verdicts.items()
    }
    print(f"\nMathematics, {len(cases)} public cases: verdicts as labelled, ours and math-verify's")
    for kind in dict.fromkeys(case["kind"] for case in cases):
        places = [n for n, case in enumerate(cases) if case["kind"] == kind]
        counts = [sum(agree[name][n] for n in places) for name in verdicts]
        print(f"    {kind:<28} {counts[0]:4d} {counts[1]:4d}  of {len(places)}")
    wrong = [n for n, case in enumerate(cases) if case["right"] == "incorrect"]
    accepted = {name: sum(not agree[name][n] for n in wrong) for name in verdicts}
    for name in verdicts:
        print(
            f"    {name}: {sum(agree[name])} of {len(cases)}, {accepted[name]} of {len(wrong)} wrong answers accepted"
        )
    goals.judge("public cases: agreement", sum(agree["ours"]) / len(cases), AGREEMENT_GOAL)
    goals.judge("public cases: wrong answers refused", 1 - accepted["ours"] / len(wrong), REFUSED_GOAL)
    return {name: {"agree": sum(agree[name]), "wrong_accepted": accepted[name]} for name in verdicts} | {
        "of": len(cases)
    }


# Programs


def compare_programs(cases: Sequence[dict[str, Any]], goals: Goals) -> dict[str, Any]:
    """Print the agreement of verdicts on programs with the labels, kind by kind, and the wrong ones accepted."""
    rows = [Question("code", case["response"], None, json.dumps(case["tests"])) for case in cases]
    with GraderPool(GraderOptions(workers=2)) as pool:
        found = [grade.verdict for grade in pool.grade(rows)]
    agree = [verdict == case["right"] for verdict, case in zip(found, cases, strict=True)]
    print(f"\nPrograms, {len(cases)} public cases: verdicts as labelled")
    for kind in dict.fromkeys(case["kind"] for case in cases):
        places = [n for n, case in enumerate(cases) if case["kind"] == kind]
        print(f"    {kind:<48} {sum(agree[n] for n in places):4d}  of {len(places)}")
    wrong = [n for n, case in enumerate(cases) if case["right"] != "correct"]
    accepted = sum(found[n] == "correct" for n in wrong)
    print(f"    {sum(agree)} of {len(cases)}, {accepted} of {len(wrong)} that are not right accepted")
    goals.judge("public programs: agreement", sum(agree) / len(cases), AGREEMENT_GOAL)
    goals.judge("public programs: wrong ones refused", 1 - accepted / len(wrong), REFUSED_GOAL)
    return {"agree": sum(agree), "wrong_accepted": accepted, "of": len(cases)}


def near_the_limit(task_id: str, seconds: float) -> Question:
    """Make a row whose reference first keeps the processor busy, once in each run."""
    row = code_row(task_id)
    busy = (
        "import time as _t\n"
        "class _Once:\n"
        "    def __init__(self): self.end = None\n"
        "    def spend(self):\n"
        "        if self.end is None:\n"
        f"            self.end = _t.process_time() + {seconds}\n"
        "            while _t.process_time() < self.end: pass\n"
        "_once = _Once()\n"
    )
    name = tasks(DATASET, VERSION)[task_id]["entry_point"]
    source = program(task_id).replace(f"def {name}(", "def _reference(", 1)
    whole = f"{busy}{source}\n\ndef {name}(*given):\n    _once.spend()\n    return _reference(*given)\n"
    return Question("code", f"```python\n{whole}\n```", None, row.tests)


def verdicts_under_load(goals: Goals) -> dict[str, list[str]]:
    """Grade rows near EvalPlus's limit of a second: alone, and five times beside two busy loops."""
    rows = [near_the_limit(task_id, seconds) for task_id in ("HumanEval/0", "HumanEval/23") for seconds in (0.75, 1.35)]
    graded: list[list[str]] = []
    with GraderPool(GraderOptions(workers=1)) as pool:
        alone = [grade.verdict for grade in pool.grade(rows)]
        loops = [multiprocessing.get_context("fork").Process(target=_spin_for_ever, daemon=True) for _ in range(2)]
        for loop in loops:
            loop.start()
        try:
            for _ in range(5):
                graded.append([grade.verdict for grade in pool.grade(rows)])
        finally:
            for loop in loops:
                loop.kill()
    print(f"\nPrograms near the limit: alone {' '.join(alone)}; beside two busy loops")
    for verdicts in graded:
        print(f"    {' '.join(verdicts)}")
    goals.judge("programs: verdicts beside two busy loops", sum(v == alone for v in graded) / 5, 1.0)
    return {"alone": alone, **{f"beside {n}": verdicts for n, verdicts in enumerate(graded, start=1)}}


def _spin_for_ever() -> None:
    while True:
        pass


def program(task_id: str) -> str:
    task = tasks(DATASET, VERSION)[task_id]
    return task["prompt"] + task["canonical_solution"]


def code_row(task_id: str) -> Question:
    task = tasks(DATASET, VERSION)[task_id]
    spec = {"kind": "evalplus", "dataset": DATASET, "version": VERSION, "task_id": task_id}
    spec |= {"entry_point": task["entry_point"], "sha256": task_sha256(task)}
    return Question("code", f"```python\n{program(task_id)}\n```", None, json.dumps(spec))


@lru_cache(maxsize=4)
def expected_of(task_id: str) -> dict[str, Any]:
    """Return EvalPlus's expected results and the reference's seconds, as its check takes them."""
    from evalplus.gen.util import trusted_exec

    task, made = tasks(DATASET, VERSION)[task_id], {}
    for part in ("base", "plus"):
        made[part], made[f"{part}_time"] = trusted_exec(
            program(task_id), task[f"{part}_input"], task["entry_point"], record_time=True
        )
    return made


def check_plainly(task_id: str) -> tuple[float, bool]:
    """Return EvalPlus's verdict, and its seconds for expected results."""
    from evalplus.evaluate import check_correctness

    started = time.perf_counter()
    expected = expected_of(task_id)
    seconds = time.perf_counter() - started
    problem = tasks(DATASET, VERSION)[task_id]
    found = check_correctness(DATASET, 0, problem, program(task_id), expected, fast_check=True)
    return seconds, all(found[part][0] == "pass" for part in ("base", "plus"))


def run_evalplus(workers: int, warm: Sequence[str], ids: Sequence[str], apart: list[float]) -> tuple[float, list[bool]]:
    """Run EvalPlus and add its seconds for expected results, a row's share of the processes' time, to `apart`."""
    with _processes(workers) as pool:
        list(pool.map(check_plainly, warm))
        started = time.perf_counter()
        found = list(pool.map(check_plainly, ids))
        seconds = time.perf_counter() - started
    apart.append(sum(each for each, _ in found) / workers)
    return seconds, [right for _, right in found]


def compare_code(size: Size, goals: Goals) -> dict[str, float]:
    """Compare with EvalPlus, without HumanEval/32, which fails there whatever the program."""
    known = [task_id for task_id in tasks(DATASET, VERSION) if task_id != "HumanEval/32"]
    warm, chosen = known[:4], known[5 :: len(known) // size.tasks][: size.tasks]
    ids = [task_id for task_id in chosen for _ in range(size.samples)]
    warm_rows, rows = [code_row(i) for i in warm], [code_row(i) for i in ids]
    with GraderPool(GraderOptions()) as pool:
        level = pool.sandbox
    print(
        f"\nPrograms, HumanEval+ {VERSION}: {len(chosen)} tasks, {size.samples} samples each, {size.code_rounds} rounds,"
        f" sandbox {level}"
    )
    apart: list[float] = []
    measured = take_turns(
        {
            f"{side}, {workers} process{'es' * (workers > 1)}": way
            for workers in (1, 2)
            for side, way in (
                ("EvalPlus", lambda w=workers: run_evalplus(w, warm, ids, apart if w == 1 else [])),
                ("ours", lambda w=workers: run_ours(w, warm_rows, [rows])),
            )
        },
        size.code_rounds,
    )
    print_rates(measured, len(rows), "checks/s")
    theirs_1, ours_1, theirs_2, ours_2 = measured.seconds
    checks_alone = median(
        (t - a) / o for t, a, o in zip(measured.seconds[theirs_1], apart, measured.seconds[ours_1], strict=True)
    )
    ratios = {
        "ours / EvalPlus, 1 process": measured.ratio(ours_1, theirs_1),
        "ours / EvalPlus, 1 process, its expected results at hand": checks_alone,
        "ours / EvalPlus, 2 processes": measured.ratio(ours_2, theirs_2),
    }
    both_free = median(measured.free) >= FREE
    print(f"    without its expected results, 1 process: {checks_alone:6.3f}  (no goal)")
    goals.judge("programs: ours / EvalPlus, 1 process", measured.ratio(ours_1, theirs_1), CODE_GOAL)
    goals.judge("programs: ours / EvalPlus, 2 processes", measured.ratio(ours_2, theirs_2), CODE_GOAL, both_free)
    return {name: round(value, 3) for name, value in ratios.items()}


def has_tasks() -> bool:
    """Tell whether HumanEval+ can be read without downloading it."""
    if Path(origin(DATASET, VERSION)).is_file():
        return True
    from evalplus.data.utils import CACHE_DIR

    return Path(CACHE_DIR, f"HumanEvalPlus-{VERSION}.jsonl").is_file()


def empty_sandboxes(count: int) -> dict[str, float]:
    """Measure the milliseconds to start and end an empty sandbox at each level, once its parent process exists."""
    print(f"\nAn empty sandbox, median of {count}")
    found = {}
    for level in LEVELS:
        if reason := refusal(level):
            print(f"    {level:<28} not to be had: {reason}")
            continue
        taken = []
        for _ in range(count + 1):
            started = time.perf_counter()
            with Sandbox(level, Limits(4 << 30, 30)) as sandbox:
                sandbox.ask({"load": "", "prelude": False}, 30)
            taken.append(1000 * (time.perf_counter() - started))
        found[level] = round(median(taken[1:]), 1)
        print(f"    {level:<28} {found[level]:8.1f} ms")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rows and rounds: under a minute on two free cores")
    size = QUICK if parser.parse_args().quick else FULL
    # Loaded here for processes forked from this one. Ours asks it to run without its own time limit, and it warns of
    # that.
    logging.getLogger(importlib.import_module("math_verify").__name__).setLevel(logging.ERROR)

    started, goals = time.monotonic(), Goals()
    warm, _ = built_in_rows(60, seed=1)
    rows, right = built_in_rows(size.answers, seed=2)
    measured = compare_math("built-in", [rows], warm, size.math_rounds, goals)
    for name, found in measured.right.items():
        wrong = sum(a != b for a, b in zip(found, right, strict=True))
        print(f"    {name}: {wrong} verdicts other than the rows were made for")
    recorded = recorded_rows()
    if recorded:
        compare_math("math_cot_100", recorded, warm, size.math_rounds, goals)
    else:
        print("\nMathematics, math_cot_100: left out, TRD_DATA does not name a folder with it")
    figures: dict[str, Any] = {}
    cases = public_cases()
    if cases:
        figures["public_cases"] = compare_verdicts(cases, goals)
    else:
        print("\nMathematics, public cases: left out, TRD_DATA does not name a folder with them")
    programs = public_cases(of_programs=True)
    if programs:
        figures["public_programs"] = compare_programs(programs, goals)
    if has_tasks():
        figures["evalplus"] = compare_code(size, goals)
        figures["under_load"] = verdicts_under_load(goals)
    else:
        print("\nPrograms: left out, there is no HumanEval+ in TRD_DATA or in EvalPlus's cache")
    figures["sandbox_ms"] = empty_sandboxes(size.sandboxes)
    print(f"\n{time.monotonic() - started:.0f} s in all", file=sys.stderr)
    worst = min(goal["value"] for name, goal in goals.items() if goal["goal"] == ONE_GOAL)
    report = {"name": "graders_vs_math_verify", "value": worst, "goal": ONE_GOAL, "ok": goals.hold}
    print(json.dumps({**report, "goals": goals, "figures": figures}))


if __name__ == "__main__":
    main()
