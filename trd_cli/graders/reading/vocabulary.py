"""Words that have a meaning in answers: numbers, counts, conjunctions, announcements, denials."""

from __future__ import annotations

import re
from fractions import Fraction


def words(text: str) -> tuple[str, ...]:
    """Return the words of a table that is written as one text."""
    return tuple(text.split())


MULTIPLES = {
    "hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12, "hundreds": 100,
    "thousands": 1000, "millions": 10**6, "billions": 10**9, "dozens": 12, "万": 10**4, "萬": 10**4, "亿": 10**8, "億": 10**8,
    "千": 1000, "百": 100, "тысяч": 1000, "тысячи": 1000, "млн": 10**6, "миллионов": 10**6, "mil": 1000, "millones": 10**6,
    "lakh": 10**5, "crore": 10**7, "halves": Fraction(1, 2), "thirds": Fraction(1, 3), "fourths": Fraction(1, 4), "quarters": Fraction(1, 4),
    "fifths": Fraction(1, 5), "sixths": Fraction(1, 6), "sevenths": Fraction(1, 7), "eighths": Fraction(1, 8), "ninths": Fraction(1, 9),
    "tenths": Fraction(1, 10),
}  # fmt: skip
NUMBER_WORDS = {
    word: number
    for number, word in enumerate(
        words(
            "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
            "fifteen sixteen seventeen eighteen nineteen twenty"
        )
    )
} | {word: 10 * n for n, word in enumerate(words("thirty forty fifty sixty seventy eighty ninety"), 3)}
PERCENT = frozenset(words("percent percentage pct percents процентов процента prozent"))
AND = frozenset(words("and or und oder y o et ou e и или 或 和 与 及 又 또는 および または"))
BARE_AND = frozenset(words("and or und oder или"))
EACH = frozenset(words("each apiece total altogether exactly"))
# Words before an answer that only announce it.
ANNOUNCING = frozenset(
    words(
        "approximately approx about roughly around exactly precisely just only answer answers final the is are option choice correct result solution solutions ans "
        "therefore so value equals equal to respuesta réponse antwort ответ 答案 答 为 是 total"
    )
)
DENYING = frozenset(words("not no never wrong neither nor without except incorrect false cannot isn't non"))
# Sets with a name in words.
NAMED_SETS = {
    "all real numbers": r"\mathbb{R}",
    "all reals": r"\mathbb{R}",
    "real numbers": r"\mathbb{R}",
    "empty set": r"\emptyset",
    "all integers": r"\mathbb{Z}",
}
_SHORT_WORDS = frozenset(words("yes no odd one two six ten red none all both man true even blue left east west"))
NOT_ADJECTIVES = frozenset(
    words(
        "more less fewer other than about least most over under below above minus plus times "
        "half per and the doubled tripled greater additional extra another square cubic ago "
        "before after past"
    )
)


def is_wordlike(word: str) -> bool:
    """Return whether a run of letters is a word, whose capitals do not matter, rather than a product of variables."""
    low = word.lower()
    if low in _SHORT_WORDS or not word.isascii():
        return True
    if word[:1].isupper() and word[1:].islower() and len(word) > 2 and re.search("[aeiou]", low):
        return True
    return (
        len(word) >= 4
        and bool(re.search("[aeiou]", low))
        and bool(re.search("[^aeiou]", low))
        and low not in "abcdefghijklmnopqrstuvwxyz"
    )


def denies(text: str) -> bool:
    """Return whether a text contains a word that takes back or excludes."""
    return any(word.lower() in DENYING for word in re.findall(r"[^\W\d_]+(?:'[a-z]+)?", text))
