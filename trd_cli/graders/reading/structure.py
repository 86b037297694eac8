"""Read the meaning of an answer: a number with its unit, words, a choice, a list, an equation, a matrix.

Every word and letter of an answer must be accounted for: as a unit, as a label (`Answer: 5`), as a condition (`for all
x`), as a count (`million`), or as a symbol. An answer with any other word is a phrase, which only the same phrase
equals, so that `3 or more` is not 3. If a text can mean two things (`5 m`, `1,234`), both readings are returned.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

from trd_cli.graders.reading.brackets import Unbalanced, depth_stays, split
from trd_cli.graders.reading.framing import (
    RELATIONS,
    is_condition,
    is_label,
    signs,
    tidy,
    unannounced,
    without_condition,
)
from trd_cli.graders.reading.kinds import (
    ELLIPSIS,
    Items,
    Matrix,
    Numeral,
    Other,
    Phrase,
    Ratio,
    Reading,
    Relation,
    Scalar,
    Value,
)
from trd_cli.graders.reading.notation import TEXT, plain
from trd_cli.graders.reading.quantities import APART, choice, phrase, scalar
from trd_cli.graders.reading.vocabulary import AND, BARE_AND, NAMED_SETS, denies, words

MOST_WORDS = 6
_MODULUS = re.compile(
    r"\\(?:pmod|pod|mod|bmod)\s?\{?\s*([^{}]+?)\s*\}?$|\(\s*(?:\\text\{mod\}|\\bmod|\\mod|mod)\s*([^()]+)\)$"
)
_ENVIRONMENT = re.compile(
    r"(?P<open>\\\{|[(\[|])?\s*\\begin\{(?P<name>[a-z]+)\*?\}(?:\[[^\]]*\])?(?P<columns>\{[lcr|@{} ]*\})?(?P<body>(?:(?!\\begin).)*)\\end\{(?P=name)\*?\}\s*(?P<close>\\\}|[)\]|]|\.)?",
    re.DOTALL,
)
_MATRICES = frozenset(words("matrix pmatrix bmatrix Bmatrix vmatrix Vmatrix smallmatrix array"))
# Digits in groups never begin with a zero, so this comma is a decimal point.
_COMMA_DECIMAL = re.compile(r"[+-]?0,\d{3,}")
_GROUPED = re.compile(r"[+-]?\d{1,3}(?:,\d{3})+(?:\.\d+)?|[+-]?\d{1,2}(?:,\d{2})+,\d{3}(?:\.\d+)?")
_INDIVIDUAL = re.compile(r"-?\d+(?:\.\d+)?(?: \d+(?:\.\d+)?)+")
_BASED = re.compile(r"([0-9A-Za-z]*[0-9][0-9A-Za-z]*)\s?_\s?(?:\{(\d+|\\text\{[a-z]+\})\}|(\d+)|\{\((\d+)\)\})")
_SECOND_DERIVATIVE = re.compile(r"\\frac\{d\^\{2\}\s?([a-zA-Z])\}\{d\s?[a-zA-Z]\^\{2\}\}")
_DERIVATIVE = re.compile(r"\\frac\{(?:d|\\mathrm\{d\})\s?([a-zA-Z])\}\{d\s?[a-zA-Z]\}")


@lru_cache(maxsize=128)
def read(text: str) -> Reading:
    """Return the possible meanings of an answer, none if its brackets do not match."""
    try:
        return tuple(dict.fromkeys(_readings(plain(text))))
    except Unbalanced:
        return ()


_SEPARATOR = re.compile(
    r"\s?[,;]?\s?\\text\{(?:"
    + "|".join(sorted(AND, key=len, reverse=True))
    + r")\}\s?|\s?[,;]?\s?\\lor\s?|(?:\s?[,;])?\s?(?<![A-Za-z\\])(?:"
    + "|".join(BARE_AND)
    + r")(?![A-Za-z])\s?|\s?[,;]\s?|[或和与及と]|(?<=\d) (?:y|e|o|u|и|i) (?=-?\d)|\s?\\land\s?"
)
_SEMICOLON = re.compile(r"\s?;\s?")
_COMMA = re.compile(r"\s?[,;]\s?")
_COLON = re.compile(r"\s?:\s?|\s?\\text\{(?:to|比)\}\s?|比|(?<=\d) to (?=\d)")
_UNION = re.compile(r"\\cup|\\cap|\\setminus")
_ROW = re.compile(r"\\\\(?:\[[^\]]*\])?")
_PLUS = re.compile(r"\+|\\times|\\cdot")


def _readings(text: str) -> Iterator[Value]:
    text = tidy(text)
    if not text:
        return
    if environment := _ENVIRONMENT.fullmatch(text):
        yield from _environment(environment)
        return
    yield from _grouped(text)
    text = _SECOND_DERIVATIVE.sub(r"\1''", _DERIVATIVE.sub(r"\1'", text))
    text = without_condition(unannounced(text))
    if enclosed := _enclosed(text):
        yield from enclosed
        return
    listed, separators = split(text, _SEPARATOR)
    if len({mark.strip() for mark in separators} & {",", ";"}) == 2:
        listed, separators = split(text, _SEMICOLON)
    if separators:
        yield from _listed(text, listed)
        return
    sides, relations = split(text, RELATIONS)
    if relations:
        yield from _related(text, sides, relations)
        return
    yield from _single(text)


def _grouped(text: str) -> Iterator[Value]:
    """Yield the number whose digits are written in groups."""
    if _COMMA_DECIMAL.fullmatch(text):
        yield Scalar(text.replace(",", "."))
    elif _GROUPED.fullmatch(text):
        yield Scalar(text.replace(",", ""))
    elif match := re.match(r"(?:\\\$\s?)?([+-]?\d{1,3}(?:,\d{3})+(?:\.\d+)?)(?![\d,])", text):
        whole = text.replace(match[1], match[1].replace(",", ""), 1)
        if whole != text and not split(whole, _COMMA)[1]:
            yield from _readings(whole)


def _listed(text: str, pieces: list[str]) -> Iterator[Value]:
    pieces = [piece.strip() for piece in pieces]
    if not all(pieces):
        if not pieces[-1] or not pieces[0]:
            pieces = [piece for piece in pieces if piece]
        if len(pieces) < 2 or not all(pieces):
            yield phrase(text)
            return
    kept = [pieces[0]]
    for piece in pieces[1:]:
        if not is_condition(piece, pieces[0]):
            kept.append(piece)
    if len(kept) == 1:
        yield from _readings(kept[0])
        return
    yield _items("list", kept)


def _items(kind: str, pieces: list[str], brackets: str = "") -> Items:
    found = []
    for piece in pieces:
        piece = piece.strip()
        if piece == "\\ldots":
            found.append(ELLIPSIS)
        elif "\\pm" in piece and kind in ("list", "set"):
            found.extend(tuple(_readings(sign)) for sign in signs(piece))
        else:
            found.append(tuple(_readings(piece)))
    return Items(kind, tuple(found), brackets)


def _enclosed(text: str) -> list[Value]:
    """Return the tuple, interval or set if brackets enclose the whole text, else nothing."""
    if transposed := re.fullmatch(r"([(\[].*[)\]])\^\{?(?:T|\\top|\\text\{T\})\}?", text):
        pieces, separators = split(transposed[1][1:-1], _COMMA)
        return [_items("tuple", pieces, "()")] if separators else []
    if text.startswith("\\{") and text.endswith("\\}"):
        inside = text[2:-2]
        if not depth_stays(text):
            return []
        builder, marks = split(inside, re.compile(r"\s?(?:\\mid|:|\|)\s?"))
        if not marks and (match := re.match(r"\s*([a-zA-Z])\s?\|(.*)", inside)):
            builder, marks = [match[1], match[2]], ["|"]
        if marks and len(builder) == 2:
            variable = builder[0].partition("\\in")[0].strip()
            if re.fullmatch(r"[a-zA-Z]", variable):
                return list(_readings(builder[1]))
        pieces, _ = split(inside, _COMMA)
        pieces = [piece for piece in pieces if piece.strip()]
        if not pieces:
            return [Other("\\emptyset")]
        return [_items("set", pieces)]
    if text.startswith("\\langle") and text.endswith("\\rangle"):
        pieces, _ = split(text[len("\\langle") : -len("\\rangle")], _COMMA)
        return [_items("tuple", pieces, "()")]
    if text[0] in "([]" and text[-1] in ")][" and len(text) > 2:
        return _bracketed(text)
    return []


def _bracketed(text: str) -> list[Value]:
    opening, closing = text[0], text[-1]
    inside = text[1:-1]
    flipped = opening == "]" or closing == "["
    if not flipped and not depth_stays(text):
        return []
    pieces, separators = split(inside, _COMMA)
    if flipped:
        if len(pieces) != 2:
            return []
        shape = ("(" if opening in "](" else "[") + (")" if closing in "[)" else "]")
        return [_items("interval", pieces, shape)]
    if not separators:
        if opening == "(" and closing == ")":
            return list(_readings(inside))
        return []
    if all(piece.strip() for piece in pieces):
        shape = opening + closing
        if len(pieces) == 2 and shape != "()":
            return [_items("interval", pieces, shape)]
        return [_items("tuple", pieces, shape)]
    return []


def _environment(match: re.Match[str]) -> Iterator[Value]:
    body = match["body"].strip()
    rows = [row.strip() for row in _ROW.split(body)]
    rows = [row.removeprefix("\\hline").strip() for row in rows if row.strip() and row.strip() != "\\hline"]
    if match["name"] in _MATRICES and (
        match["name"] != "array" or any("&" in row for row in rows) or match["open"] in ("(", "[")
    ):
        cells = tuple(tuple(tuple(_readings(cell.strip())) for cell in row.split("&")) for row in rows)
        yield Matrix(cells, match[0], match["name"] in ("vmatrix", "Vmatrix") or match["open"] == "|")
        return
    if match["name"] in ("cases", "array", "rcases") and all(
        "&" in row and not re.search(r"&\s?[=<>]", row) for row in rows
    ):
        yield phrase(body.replace(" ", ""))
        return
    pieces = [row.replace("&", " ").strip().rstrip(",;.").strip() for row in rows]
    if len(pieces) == 1:
        yield from _readings(pieces[0])
    else:
        yield _items("list", pieces)


def _related(text: str, sides: list[str], relations: list[str]) -> Iterator[Value]:
    sides = [side.strip() for side in sides]
    if relations[0] == "\\approx" and not sides[0]:
        yield from _readings("\\approx".join(sides[1:]))
        return
    if relations == ["="] and not sides[0]:
        yield from _readings(sides[1])
        return
    if relations[-1] == "\\approx" and sides[0]:
        if len(relations) == 1 and is_label(sides[0]):
            relations = ["="]
        else:
            sides, relations = sides[:-1], relations[:-1]
            yield from (_related(text, sides, relations) if relations else _readings(sides[0]))
            return
    if not all(sides):
        yield phrase(text)
        return
    if "\\pm" in sides[-1] and relations[-1] == "=" and len(sides) == 2 and "\\pm" not in sides[0]:
        plus, minus = signs(sides[-1])
        yield Items("list", ((Relation((sides[0], plus), ("=",)),), (Relation((sides[0], minus), ("=",)),)))
        return
    yield Relation(tuple(sides), tuple(relations))


def _single(text: str) -> Iterator[Value]:
    """Yield the readings of an answer that has no lists, relations or brackets around it."""
    named = NAMED_SETS.get(TEXT.sub(r"\1", text).lower())
    if named:
        yield Other(named)
    if text == "\\ldots":
        yield ELLIPSIS[0]
        return
    if match := _MODULUS.search(text):
        yield Items("modulus", (tuple(_readings(text[: match.start()])), tuple(_readings(match[1] or match[2]))))
        return
    if based := _BASED.fullmatch(_untexted(text)):
        yield Numeral(based[1].lstrip("0").upper() or "0", based[2] or based[3] or based[4])
        return
    if letter := choice(text):
        yield letter
    if split(text, _UNION)[1] or text in ("\\emptyset",) or re.fullmatch(r"\\mathbb\s?\{[A-Z]\}(?:\^\{.\})?", text):
        yield Other(text)
        return
    if "\\ldots" in text and not re.search(r"\d\s?\\ldots$", text):
        pieces, operators = split(text, _PLUS)
        if operators and len(set(operators)) == 1 and any(piece.strip() == "\\ldots" for piece in pieces):
            yield _items("sum" + operators[0], pieces)
            return
    parts, colons = split(text, _COLON)
    if colons and all(part.strip() for part in parts):
        yield from _with_colons(text, [part.strip() for part in parts])
        return
    if "\\pm" in text:
        plus, minus = signs(text)
        yield Items("list", (tuple(_readings(plus)), tuple(_readings(minus))))
        return
    if _INDIVIDUAL.fullmatch(text):
        joined = APART.sub(lambda m: m[0].replace(" ", ""), text)
        if " " not in joined:
            yield Scalar(joined)
        yield _items("list", text.split(" "))
        return
    yield from scalar(text)


def _untexted(text: str) -> str:
    return TEXT.sub(
        lambda m: m[1] if len(m[1]) == 1 else {"two": "2", "ten": "10", "eight": "8", "sixteen": "16"}.get(m[1], m[0]),
        text,
    )


def _with_colons(text: str, parts: list[str]) -> Iterator[Value]:
    """Yield a ratio, a time of day, or the value after a label."""
    if all(re.search(r"\d", part) or len(part) <= 3 for part in parts) and not denies(parts[0]):
        last = next(scalar(parts[-1]), None)
        if isinstance(last, Scalar) and last.times == 1 and not last.percent:
            yield Ratio((*parts[:-1], last.latex), last.unit)
            return
    if len(parts) == 2 and not denies(text) and not re.search(r"\d", parts[0]):
        yield Relation((parts[0] if TEXT.search(parts[0]) else rf"\text{{{parts[0]}}}", parts[1]), ("=",))
        return
    yield phrase(text)


def is_plain_answer(text: str) -> bool:
    """Return whether a text is an answer and nothing else: mathematics that is wholly understood, or a few words."""
    readings = read(text)
    return bool(readings) and _is_plain(readings[0])


def _is_plain(value: Value) -> bool:
    if isinstance(value, Phrase):
        return len(value.parts) <= MOST_WORDS and not any(map(str.isdigit, "".join(value.parts)))
    if isinstance(value, Items):
        return all(item and _is_plain(item[0]) for item in value.items)
    return not isinstance(value, Other) or value.latex.startswith("\\")
