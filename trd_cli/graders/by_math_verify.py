"""Call math-verify plainly, with its own extraction and defaults: a second opinion that shares none of our reading.

`verify` is not symmetric: the reference comes first. It ignores letter case and words and compares decimals to six
places. It is therefore no judge of the grader, but a person should look at the rows on which the two differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any

from trd_cli.errors import first_line

NAME = "math-verify"


@dataclass(frozen=True)
class Rules:
    """Options of math-verify's comparison, with its own defaults."""

    targets: tuple[str, ...] = ("latex", "expr")
    float_rounding: int = 6
    strict: bool = True
    allow_set_relation_comp: bool = False


_DEFAULT = Rules()


@lru_cache(maxsize=16)
def parse(text: str, targets: tuple[str, ...] = _DEFAULT.targets) -> tuple[Any, ...]:
    """Return what math-verify finds in a text: a SymPy value and its source text, or one of them, or nothing."""
    import math_verify

    kinds = {"latex": math_verify.LatexExtractionConfig(), "expr": math_verify.ExprExtractionConfig()}
    # Without an explicit None math-verify uses SIGALRM, which raises outside the main thread.
    return tuple(math_verify.parse(text, [kinds[name] for name in targets], parsing_timeout=None))


def compare(reference: str, response: str, rules: Rules = _DEFAULT) -> tuple[bool, str | None]:
    """Return whether math-verify finds the same value in both texts, and the fault if a comparison failed.

    Each reading of the one is compared with each of the other, as `verify` does with lists while it drops exceptions.
    """
    fault = None
    for gold, found in product(parse(reference, rules.targets), parse(response, rules.targets)):
        same, raised = verify(gold, found, rules)
        if same:
            return True, None
        fault = raised or fault
    return False, fault


def verify(gold: Any, found: Any, rules: Rules = _DEFAULT) -> tuple[bool, str | None]:
    """Return whether math-verify finds two parsed values equal, and the exception it raised, if any, as text."""
    import math_verify

    try:
        same = math_verify.verify(
            gold,
            found,
            float_rounding=rules.float_rounding,
            strict=rules.strict,
            allow_set_relation_comp=rules.allow_set_relation_comp,
            timeout_seconds=None,
            raise_on_error=True,
        )
    except MemoryError:
        raise
    except Exception as error:
        return False, f"cannot be compared: {type(error).__name__}: {first_line(error)}"[:300]
    return bool(same), None


def boxed(answer: str) -> str:
    """Return an answer in a box, so that all of it is read."""
    return rf"\boxed{{{answer}}}"


def final_expression(text: str) -> str | None:
    """Return the text of the last expression that math-verify finds; words such as "final answer is" go first."""
    return next((item for item in reversed(parse(text)) if isinstance(item, str)), None)
