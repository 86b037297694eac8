"""Compare two answers that have been read: choose the comparison and say what it refuses.

Each pair of readings is compared by the one rule for their kinds; if there is none, they differ. `same` takes the
reference first: an equation that is a reference is a statement, and one that is an answer may stand for its right side.
"""

from __future__ import annotations

from trd_cli.graders.comparing.expressions import Rules
from trd_cli.graders.comparing.relations import Relations
from trd_cli.graders.comparing.sequences import Sequences
from trd_cli.graders.comparing.words import Words
from trd_cli.graders.reading import read
from trd_cli.graders.reading.kinds import Choice, Items, Matrix, Numeral, Other, Phrase, Ratio, Relation, Scalar, Value

_DEFAULT = Rules()


def same(reference: str, answer: str, rules: Rules = _DEFAULT) -> tuple[bool, str | None]:
    """Return whether an answer is the reference's, and the reason if they could not be compared."""
    gold, found = read(reference), read(answer)
    if not found:
        return False, "not read: its brackets do not match"
    comparison = _Comparison(rules)
    agreed = comparison.readings(gold, found)
    return agreed, None if agreed else comparison.fault


class _Comparison(Words, Sequences, Relations):
    """One comparison with its rules."""

    def values(self, gold: Value, found: Value) -> bool:
        """Compare two values by the rule for their kinds."""
        if gold == found:
            return not (isinstance(gold, Scalar) and gold.latex in ("", "\\text{nan}"))
        if isinstance(gold, Relation) or isinstance(found, Relation):
            return self._relations(gold, found)
        if isinstance(gold, Choice) or isinstance(found, Choice):
            return self._choices(gold, found)
        if isinstance(gold, Phrase) or isinstance(found, Phrase):
            return self._phrases(gold, found)
        if isinstance(gold, Numeral) or isinstance(found, Numeral):
            return self._numerals(gold, found)
        if isinstance(gold, Matrix) or isinstance(found, Matrix):
            return self._matrices(gold, found)
        if isinstance(gold, Ratio) or isinstance(found, Ratio):
            return self._ratios(gold, found)
        if isinstance(gold, Other) or isinstance(found, Other):
            return self._sets(gold, found)
        if isinstance(gold, Items) or isinstance(found, Items):
            return self._items(gold, found)
        return self._scalars(gold, found)
