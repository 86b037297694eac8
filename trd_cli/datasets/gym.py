"""Make problems of the package reasoning-gym from a seed: `n` different questions of each task.

The seeds of the package are not used as they are. Its entry `index` of seed `s` is drawn by `s + index`, so that the
entries of neighbouring seeds are the same ones. Ours go through a hash with the task's name: other seeds give other
entries, but for a question that a small task draws twice by chance.

`DEFAULT` are the tasks with short answers: in 50 entries of each (seed 7), the package's own answer has the score 1.0
and one line of at most 64 characters (never none, as sometimes in `ab` and `string_manipulation`), another answer
scores less, and an entry takes less than 0.2 seconds to make. Any other task may be asked for by its name, but for
those in `UNUSABLE`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches
from itertools import islice

from trd_cli.errors import InputError, counted, flag
from trd_cli.graders import gym
from trd_cli.graders.gym import NAME, Entry
from trd_cli.records import Problem, content_hash

# fmt: off
DEFAULT = (
    "advanced_geometry", "aiw", "arc_1d", "base_conversion", "basic_arithmetic", "bf", "binary_alternation",
    "bitwise_arithmetic", "calendar_arithmetic", "chain_sum", "circuit_logic", "coin_flip", "color_cube_rotation",
    "complex_arithmetic", "count_bits", "count_primes", "countdown", "course_schedule", "cryptarithm",
    "decimal_arithmetic", "decimal_chain_sum", "dice", "family_relationships", "figlet_font",
    "fraction_simplification", "gcd", "gsm_symbolic", "knights_knaves", "largest_island", "lcm",
    "leg_counting", "letter_counting", "mahjong_puzzle", "maze", "needle_haystack", "number_format",
    "number_sequence", "palindrome_generation", "path_star", "polynomial_equations", "power_function",
    "prime_factorization", "products", "quantum_lock", "rectangle_count", "rotten_oranges",
    "self_reference", "shortest_path", "simple_equations", "simple_geometry", "simple_integration", "spell_backward",
    "string_insertion", "string_splitting", "string_synthesis", "syllogism", "time_intervals",
    "tsumego", "word_sequence_reversal",
)
# fmt: on
# Tasks that cannot be graded from their seed and index, with the reason.
UNUSABLE = {
    **dict.fromkeys(
        ("boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"),
        "has no answer of its own that it scores as right",
    ),
    "game_of_life_halting": "scores any answer as right",
    "intermediate_integration": "scores the integral itself, unsolved, as right",
    "list_functions": "draws another entry each time",
    **dict.fromkeys(
        ("isomorphic_strings", "polynomial_multiplication", "ransom_note", "word_ladder"),
        "draws another entry in another process",
    ),
    "composite": "is a mixture of the others",
}
# As many entries are looked at for each question that is wanted, before a task counts as exhausted.
_TRIES = 10


def tasks_named(names: Sequence[str]) -> tuple[str, ...]:
    """Return the tasks to make; those with short answers for no names.

    Raises InputError for a task that the package does not have, that cannot be graded, or that is named twice.
    """
    for name in names:
        if name in UNUSABLE:
            raise InputError(f"{flag('tasks')}: {name} {UNUSABLE[name]}", "a task that can be graded", "leave it out")
        if name not in DEFAULT and name not in _known():
            close = get_close_matches(name, _known(), n=4)
            hint = f" (closest: {', '.join(close)})" if close else ""
            raise InputError(
                f"reasoning-gym has no task {name!r}", f"one of its names{hint}", f"change {flag('tasks')}"
            )
        if names.count(name) > 1:
            raise InputError(f"{flag('tasks')} has {name} twice", "each task once", "leave one out")
    return tuple(names) or DEFAULT


def _known() -> list[str]:
    gym.package_version()
    from reasoning_gym.factory import DATASETS

    return sorted(DATASETS)


def draw_gym(
    tasks: Sequence[str], n: int, seed: int, remark: Callable[[str], None] = lambda _: None
) -> Iterator[Problem]:
    """Yield `n` problems of each task, task after task, no question twice.

    `remark` gets a line for people on each task that has fewer different questions; all that were found are yielded.
    Raises InputError without the package.
    """
    for task in tasks:
        found = 0
        for problem in islice(_different(task, seed, _TRIES * n), n):
            found += 1
            yield problem
        if found < n:
            remark(f"{task} has {counted(found, 'different question')}, not {n}")


def _different(task: str, seed: int, tries: int) -> Iterator[Problem]:
    """Yield the different questions among the first entries of a task, `tries` at most."""
    drawn, seen = int(content_hash([task, seed], 8), 16) >> 1, set[str]()
    for index in range(tries):
        entry = Entry(task, drawn, index, gym.package_version())
        try:
            made = gym.made(entry)
        except IndexError:
            return
        if made["question"] not in seen:
            seen.add(made["question"])
            yield _problem(entry, made["question"], str(made["answer"]))


def _problem(entry: Entry, question: str, answer: str) -> Problem:
    source = f"{NAME}/{entry.task}"
    return Problem(
        problem_id=f"{source}-{content_hash(question, 16)}",
        source=source,
        task=NAME,
        problem=question,
        reference_answer=answer,
        tests=entry.tests(),
    )
