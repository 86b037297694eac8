"""Read a number or an expression with its unit, a phrase, or a choice."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction

from trd_cli.graders.reading import units
from trd_cli.graders.reading.brackets import Unbalanced, group_end
from trd_cli.graders.reading.kinds import Choice, Phrase, Scalar, Value
from trd_cli.graders.reading.notation import TEXT
from trd_cli.graders.reading.vocabulary import (
    DENYING,
    EACH,
    MULTIPLES,
    NOT_ADJECTIVES,
    NUMBER_WORDS,
    PERCENT,
    denies,
    is_wordlike,
)

_ORDINALS = re.compile(r"(?<=\d)(?:\^\{)?\s?(?:\\text\{(?:st|nd|rd|th)\}|(?:st|nd|rd|th)(?![A-Za-z]))\}?$")
_CURRENCY = re.compile(r"(-?)\s?(?:\\text\{)?(US\\\$|\\\$|€|£|¥|₹|₽|₩|Rs\.?|USD|EUR|GBP|RMB)\}?\s?(?=[\d.\\-])")
_TAIL = re.compile(
    r"\\text\{[^{}]*\}|\^\{\\circ\}|\\circ(?![A-Za-z])|\\Omega|\\mu|\\%|\\\$|[^\W\d_]+|[€£¥₹₽₩¢$]|\^\{-?\d\}|/\s?\([^()]*\)|/|\\cdot|\s|(?<=[A-Za-z}])\d(?=$)"
)
# A unit after a function belongs to its argument, as the degrees of a sine do.
_FUNCTION = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)\s?[\d{(]?[\d.]*$")
_TWO_QUANTITIES = re.compile(
    r"(\d+(?:\.\d+)?)\s?(\\text\{[^\W\d_]+\}|[^\W\d_]+)\s?(\d+(?:\.\d+)?)\s?(\\text\{[^\W\d_]+\}|[^\W\d_]+)"
)
_SHARE = re.compile(r"^of (?:a|an|the|one) ")
APART = re.compile(r"(?<![\d.,])(\d{1,3})((?:[ ']\d{3})+|(?:_\d{3})+)(?![\d,])")
_DEGREES = re.compile(r"(\d+)\^\{\\circ\}\s?(\d+(?:\.\d+)?)\s?'(?:\s?(\d+(?:\.\d+)?)\s?(?:''|\"))?")
_CHOICE = re.compile(r"\(([A-Za-z])\)(?P<a>.*)|\[([A-Z])\]|([A-Z])\s?[.)](?P<b>.*)|([A-J])\s?:(?P<c>.*)", re.DOTALL)
_CHOICE_INSIDE = re.compile(r"\([A-J]\)|(?<![A-Za-z])[A-J][.)](?!\w)")
_LETTER_RUN = re.compile(r"[^\W\d_]+(?:['-][^\W\d_]+)*")


def choice(text: str) -> Choice | None:
    """Return the letter of a multiple choice, or None if a second letter hedges it."""
    shown = TEXT.sub(lambda m: m[1] if len(m[1]) == 1 else m[0], text)
    if re.fullmatch(r"[A-Za-z]", shown):
        return Choice(shown) if shown in "ABCDEFGHIJ" or shown in "abcdfgh" else None
    match = _CHOICE.fullmatch(shown)
    if match is None:
        return None
    beside = (match["a"] or match["b"] or match["c"] or "").strip(" .:~")
    letter = next(match[n] for n in (1, 3, 4, 6) if match[n])
    if match[1] and letter.islower() and beside:
        return None
    if beside and (
        _CHOICE_INSIDE.search(beside) or denies(beside) or re.search(r"(?<![A-Za-z])[A-J](?![A-Za-z])$", beside)
    ):
        return None
    if beside and match[1] and re.match(r"[+\-^_/=]|\\cdot|\\cup|[A-Za-z(]", beside):
        return None
    return Choice(letter, beside)


def scalar(text: str) -> Iterator[Value]:
    """Yield an expression with its unit, or a phrase."""
    text = _ORDINALS.sub("", text)
    text = APART.sub(lambda m: re.sub("[ '_]", "", m[0]), text)
    text = re.sub(r"(?<=\d),(?=\d{3}(?:\D|$))", "", text)
    text = re.sub(r"(?<=\d)_(?=\d{3})", "", text)
    text = re.sub(r"^\\text\{(?:minus|negative)\}\s?", "-", text)
    text = re.sub(r"(?<![\d.\w}])(\d+)\s(\d+)/(\d+)(?!\d)", r"\1\\frac{\2}{\3}", text)
    text = re.sub(r"(?<=\d) (?=\\frac\{\d+\}\{\d+\})", "", text)
    text = _DEGREES.sub(_degrees, text)
    text = re.sub(
        r"(?<=\d)\s?('{1,2}|\")$",
        lambda m: f" \\text{{{'minute' if len(m[1]) == 1 and m[1] != chr(34) else 'second'}-mark}}",
        text,
    )
    counted = _number_words(text)
    if counted is not None:
        text = counted
    if match := _CURRENCY.match(text):
        sign = {"US\\$": "$", "\\$": "$", "¥": "¥"}.get(match[2], match[2])
        unit = units.read_unit(sign)
        for value in _measured(match[1] + text[match.end() :]):
            if isinstance(value, Scalar) and (value.unit is None or value.unit == unit):
                yield Scalar(value.latex, unit, value.percent, value.times)
                return
    yield from _measured(text)


def _degrees(match: re.Match[str]) -> str:
    value = Fraction(match[1]) + Fraction(match[2]) / 60 + Fraction(match[3] or 0) / 3600
    return rf"\frac{{{value.numerator}}}{{{value.denominator}}}^{{\circ}}"


def _number_words(text: str) -> str | None:
    """Return a number in words, alone or before a noun, in digits."""
    match = re.match(
        r"(?:\\text\{([A-Za-z]+(?:-[A-Za-z]+)?)\}|([A-Za-z]{3,}(?:-[a-z]+)?)(?![A-Za-z]))(.*)$", text, re.DOTALL
    )
    if match is None:
        return None
    word = (match[1] or match[2]).lower()
    value = NUMBER_WORDS.get(word)
    if value is None and "-" in word:
        tens, _, ones = word.partition("-")
        if NUMBER_WORDS.get(tens, 0) >= 20 and 0 < NUMBER_WORDS.get(ones, 0) < 10:
            value = NUMBER_WORDS[tens] + NUMBER_WORDS[ones]
    return None if value is None else f"{value}{match[3]}"


def _measured(text: str) -> Iterator[Value]:
    if several := _added(text):
        yield several
        return
    found = _with_unit(text)
    if found is not None:
        value, bare = found
        yield value
        if bare and not re.search("[A-Za-z]{3}", text):
            yield Scalar(text)
        return
    if "\\begin" in text:
        yield Scalar(text)
        return
    if any(TEXT.finditer(_outermost(text))):
        yield phrase(text)
        return
    if re.fullmatch(r"[^\W\d_]+(?:[ '-][^\W\d_]+)*", text):
        words = text.split(" ")
        if any(is_wordlike(word) for word in words):
            yield Phrase(tuple(words), bare=True)
            if any(not word.isascii() for word in words):
                return
    elif re.search(r"(?<!\\)(?<![A-Za-z\\])[^\W\d_]{4,}", re.sub(r"\\[A-Za-z]+|_\{[^{}]*\}", "", text)):
        runs = re.findall(r"[^\W\d_]{4,}", re.sub(r"\\[A-Za-z]+|_\{[^{}]*\}", " ", text))
        if any(is_wordlike(run) for run in runs):
            yield phrase(text)
            return
    yield Scalar(text)


def _added(text: str) -> Scalar | None:
    """Return `1 hour 30 minutes` in minutes: two quantities of one dimension, the larger unit first."""
    match = _TWO_QUANTITIES.fullmatch(text)
    if match is None:
        return None
    large, small = (units.read_unit(match[n].removeprefix("\\text{").removesuffix("}")) for n in (2, 4))
    if large is None or small is None or large.dimension != small.dimension or large.factor <= small.factor:
        return None
    value = Fraction(match[1]) * large.factor / small.factor + Fraction(match[3])
    return Scalar(
        str(value) if value.denominator == 1 else rf"\frac{{{value.numerator}}}{{{value.denominator}}}", small
    )


def _outermost(text: str) -> str:
    """Return the text without the subscripts in braces."""
    return re.sub(r"_\{(?:[^{}]|\{[^{}]*\})*\}", "", text)


def _with_unit(text: str) -> tuple[Scalar, bool] | None:
    """Return the value before a unit and whether the unit's letters may be variables; None if there is no unit."""
    starts = _tail_starts(text)
    for start in starts:
        head, tail = text[:start].rstrip(), text[start:]
        if not head:
            continue
        found = _beside(head, tail, text[start - 1 : start] == " " or tail[:1] == " ")
        if found is not None:
            return found
    return None


def _tail_starts(text: str) -> list[int]:
    """Return the places at which a tail of units, words and marks may begin, that of the longest tail first."""
    end = len(text)
    place = 0
    run: list[int] = []
    while place < end:
        match = _TAIL.match(text, place)
        if match is None or match.end() == place:
            run = []
            if text[place] == "{":
                try:
                    place = group_end(text, place) + 1
                except Unbalanced:
                    return []
            elif text[place] == "\\":
                command = re.compile(r"\\(?:[A-Za-z]+|.)").match(text, place)
                place = command.end() if command else place + 1
            else:
                place += 1
            continue
        run.append(place)
        place = match.end()
    return [start for start in run if not text[start].isspace()]


def _beside(head: str, tail: str, spaced: bool) -> tuple[Scalar, bool] | None:
    """Return the value of a head with such a tail: a percentage, a count or a quantity with a unit."""
    named = [m[1].lower() for m in TEXT.finditer(tail)] or [m[0].lower() for m in _LETTER_RUN.finditer(tail)]
    marked = "\\text{" in tail or any(not word.isascii() for word in named)
    bare = not tail.lstrip().startswith("^{\\circ}") and bool(
        re.search(
            r"(?<![\\A-Za-z{])[A-Za-z]",
            TEXT.sub("", tail)
            .replace("^{\\circ}", "")
            .replace("\\Omega", "")
            .replace("\\cdot", "")
            .replace("\\mu", ""),
        )
    )
    shown = TEXT.sub(lambda m: f" {m[1]} ", tail).strip()
    if not _is_value(head, marked and not bare):
        return None
    if (
        shown in ("\\%",)
        or shown.lower() == "per cent"
        or (len(named) == 1 and named[0] in PERCENT and shown.lower() == named[0])
    ):
        return Scalar(head, percent=True), False
    times = Fraction(1)
    if named and named[0] in MULTIPLES and shown.lower().startswith(named[0]):
        times = Fraction(MULTIPLES[named[0]])
        shown = shown[len(named[0]) :].strip()
        if not shown:
            return Scalar(head, times=times), False
        if shown.lower().startswith("of "):
            return None
        bare = False
    shown = (
        shown.replace("^{\\circ}", " ° ")
        .replace("\\Omega", "Ω")
        .replace("\\cdot", "*")
        .replace("\\$", "$")
        .replace("\\mu", "u")
    )
    shown = re.sub(r"\bu\s+(?=[mgs](?![A-Za-z]))", "u", shown)
    shown = re.sub(r"°\s*([CF])(?![A-Za-z])", r"°\1", shown).strip()
    shown = re.sub(r"^°\s*(?=celsius|fahrenheit)", "", shown, flags=re.IGNORECASE)
    shown = re.sub(r"(?<=[A-Za-z])([23])$", r"^\1", shown)
    if bare and not units.may_stand_bare(shown, spaced):
        return None
    unit = units.read_unit(_without_of(shown))
    if unit is None and head in ("1", "-1") and re.fullmatch(r"[a-z]{3,}", shown):
        unit = units.read_unit(shown + "s")
    if unit is None and marked and not bare and spaced:
        unit = units.named_thing(shown)
    if unit is None:
        return None
    return Scalar(head, unit if unit.dimension else None, times=times), bare and times == 1


def _without_of(text: str) -> str:
    """Return `cups of flour` as `cups` and `red balls` as `balls`: the counted thing decides."""
    words = [word for word in _SHARE.sub("", text).split(" ") if word]
    while len(words) > 1 and words[-1].lower() in EACH | {"left", "remaining"}:
        words = words[:-1]
    if "of" in [word.lower() for word in words[1:-1]]:
        place = [word.lower() for word in words].index("of")
        if all(word.isalpha() and word.lower() not in DENYING for word in words[place:]):
            words = words[:place]
    if (
        len(words) == 2
        and words[0].isalpha()
        and words[0].islower()
        and len(words[0]) > 2
        and not units.is_unit_name(words[0])
    ) and (units.read_unit(words[0]) is None and words[0] not in DENYING | NOT_ADJECTIVES and words[1].isalpha()):
        words = words[1:]
    return " ".join(words)


def _is_value(head: str, marked: bool) -> bool:
    """Return whether a unit may follow this text: a number, or any expression if the unit is marked as text."""
    if TEXT.search(head) or _FUNCTION.search(head):
        return False
    if not re.search(r"[\d)}]$|\\pi$|!$|[A-Za-z|]$|\\infty$", head) or re.search(r"[_^]$", head):
        return False
    if marked:
        return bool(re.search(r"[\w\\]", head))
    return bool(re.search(r"[\d})]$", head)) and not re.search(r"[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", head))


def phrase(text: str) -> Phrase:
    """Return the words and expressions of a text in order, without articles."""
    parts = re.findall(
        r"\\text\{[^{}]*\}|[^\W\d_]{2,}(?:['-][^\W\d_]+)*|\\[A-Za-z]+|\S", TEXT.sub(lambda m: f" {m[0]} ", text)
    )
    found: list[str] = []
    glue = False
    for part in parts:
        word = TEXT.fullmatch(part)
        if word:
            glue = False
            if word[1].lower() not in ("the", "a", "an"):
                found.append(word[1])
        elif part[0].isalpha() and len(part) > 1:
            glue = False
            found.append(part)
        elif part in ".,;:!?()":
            glue = False
        elif glue:
            found[-1] += part
        else:
            found.append(part)
            glue = True
    return Phrase(tuple(found))
