"""Compare words, choices and numerals."""

from __future__ import annotations

import re

from trd_cli.graders.comparing.expressions import Expressions
from trd_cli.graders.reading import read
from trd_cli.graders.reading.kinds import Choice, Items, Numeral, Phrase, Scalar, Value
from trd_cli.graders.reading.units import singular
from trd_cli.graders.reading.vocabulary import is_wordlike


class Words(Expressions):
    """Compare answers by the way they are written."""

    def _choices(self, gold: Value, found: Value) -> bool:
        """Compare letters regardless of case, or the text beside a letter with an answer without one.

        Refuses one letter for another even if the same text stands beside them.
        """
        if isinstance(gold, Choice) and isinstance(found, Choice):
            return gold.letter.upper() == found.letter.upper()
        choice, other, first = (gold, found, False) if isinstance(gold, Choice) else (found, gold, True)
        if isinstance(other, Items) or not choice.beside:
            return False
        beside = read(choice.beside)
        return any(self.values(other, value) if first else self.values(value, other) for value in beside)

    def _phrases(self, gold: Value, found: Value) -> bool:
        """Compare words one by one, in order, regardless of capitals and plurals.

        Refuses a phrase for a part of it, and letters in another case if they may be variables.
        """
        if isinstance(gold, Scalar) and gold.unit is None:
            gold = Phrase((gold.latex.replace(" ", ""),), bare=True)
        if isinstance(found, Scalar) and found.unit is None:
            found = Phrase((found.latex.replace(" ", ""),), bare=True)
        if not (isinstance(gold, Phrase) and isinstance(found, Phrase)):
            return False
        if len(gold.parts) != len(found.parts):
            return "".join(gold.parts).lower() == "".join(found.parts).lower() and len("".join(gold.parts)) > 3
        return all(self._word(a, b, gold.bare and found.bare) for a, b in zip(gold.parts, found.parts, strict=True))

    def _word(self, gold: str, found: str, bare: bool) -> bool:
        if gold == found:
            return True
        if not (gold[:1].isalpha() and found[:1].isalpha() and len(gold) > 1 and len(found) > 1):
            return (gold[:1].isdigit() or gold[:1] == "-") and self._numbers(gold, found) is True
        if bare and not (is_wordlike(gold) and is_wordlike(found)):
            return False
        if not bare and not (is_wordlike(gold) or len(gold) > 3 or gold.lower() == gold == found.lower()):
            return gold[1:] == found[1:] and gold.lower() == found.lower() and len(gold) > 2
        return singular(gold.casefold()) == singular(found.casefold())

    def _numerals(self, gold: Value, found: Value) -> bool:
        """Compare digits and base; an answer without a base is read in the reference's.

        Refuses other digits in another base.
        """
        if isinstance(gold, Numeral) and isinstance(found, Numeral):
            return gold == found
        numeral, other = (gold, found) if isinstance(gold, Numeral) else (found, gold)
        if isinstance(numeral, Numeral) and isinstance(other, Scalar) and other.unit is None and not other.percent:
            plain = other.latex.replace(" ", "")
            return bool(re.fullmatch(r"[0-9A-Za-z]+", plain)) and (plain.lstrip("0").upper() or "0") == numeral.digits
        return False
