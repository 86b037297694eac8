"""Rewrite notation of programs and plain text as LaTeX, and put every argument in braces."""

from __future__ import annotations

import re

from trd_cli.graders.reading.brackets import Unbalanced, group_end
from trd_cli.graders.reading.characters import GREEK
from trd_cli.graders.reading.vocabulary import words

FUNCTIONS = words(
    "arcsin arccos arctan arccot arcsec arccsc arsinh arcosh artanh arcsinh arccosh arctanh "
    "asin acos atan sinh cosh tanh coth sech csch sin cos tan cot sec csc ln log lg exp max "
    "min gcd lcm det"
)
NAMED = {
    "pi": r"\pi ", "infinity": r"\infty ", "infty": r"\infty ", "inf": r"\infty ", "oo": r"\infty ", "sqrt": r"\sqrt ", "cbrt": r"\cbrt ",
    "asin": r"\arcsin ", "acos": r"\arccos ", "atan": r"\arctan ", "emptyset": r"\emptyset ", "frac": r"\frac ",
    "lg": r"\log_{10} ", "Infinity": r"\infty ", "cdot": r"\cdot ", "times_": r"\times ", "binom": r"\binom ", "dbinom": r"\binom ",
    "comb": r"\binom ", "binomial": r"\binom ", "nCr": r"\binom ", "ncr": r"\binom ", "abs": r"\abs ", "Abs": r"\abs ", "floor": r"\floor ", "ceil": r"\ceil ",
    **{name: rf"\{name} " for name in GREEK.values() if name not in ("nu", "mu", "xi", "eta", "chi", "Xi", "tau", "rho")},
    **{name: rf"\{name} " for name in FUNCTIONS if name not in ("asin", "acos", "atan", "lg")},
}  # fmt: skip
_SCIENTIFIC = re.compile(r"(?<![A-Za-z_\d.])(\d+(?:\.\d*)?|\.\d+)[eE]([+-]?\d{1,6})(?![A-Za-z\d.])")
_RUN = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
_ENVIRONMENT = re.compile(r"(\\(?:begin|end)\{[a-z*]+\}(?:\{[^{}]*\})?)")
_RELATIONS = (("<=", r"\le "), (">=", r"\ge "), ("!=", r"\neq "), ("==", "="), ("=>", r"\Rightarrow "))
_INDEX = re.compile(r"(?<=[A-Za-z}])_(\d{2,})")
_POWER = re.compile(r"\^\s*(-?\d+(?:\.\d+)?|[+*])")
_CHOOSE = (
    re.compile(r"(?<![A-Za-z\\])(?:\{\}\s*)?[_^]\s*\{?(\d+|[a-z])\}?\s*C\s*_\s*\{?(\d+|[a-z])\}?"),
    re.compile(r"(?<![\w\\}])(\d+)\s?C\s?(\d+)(?!\w)"),
    re.compile(r"(?<![A-Za-z\\])C\((\w+),\s*(\w+)\)"),
    re.compile(r"(?<![A-Za-z\\])C_\{?(\d+|[a-z])\}?\^\{?(\d+|[a-z])\}?"),
)
_ARRANGED = re.compile(r"(?<![A-Za-z\\])(?:\{\}\s*)?[_^]\s*\{?(\d+|[a-z])\}?\s*P\s*_\s*\{?(\d+|[a-z])\}?")
_CHOOSE_REVERSED = re.compile(r"(?<![A-Za-z\\])C\^\{?(\d+|[a-z])\}?_\{?(\d+|[a-z])\}?")


def from_source(text: str) -> str:
    """Return notation of programs and plain text as LaTeX: `pi/2`, `x**2`, `1e-7`, `sqrt(5)`, `C(5,2)`."""
    return "".join(
        part if part.startswith(("\\begin", "\\end")) else _sourced(part) for part in _ENVIRONMENT.split(text)
    )


def _sourced(text: str) -> str:
    if "**" in text:
        text = text.replace("**", "^")
    text = text.replace("...", r"\ldots ")
    if "prime" in text:
        text = re.sub(r"\^\s?\{?((?:\\prime\s?)+)\}?", lambda m: "'" * m[1].count("prime"), text)
    if "P" in text:
        text = _ARRANGED.sub(r"\\frac{\1!}{(\1-\2)!}", text)
    if "C" in text:
        for pattern in _CHOOSE:
            text = pattern.sub(r"\\binom{\1}{\2}", text)
        text = _CHOOSE_REVERSED.sub(r"\\binom{\2}{\1}", text)
    if "e" in text or "E" in text:
        text = _SCIENTIFIC.sub(lambda m: rf"{m[1]}\times 10^{{{int(m[2])}}}", text)
    text = _RUN.sub(_named, text)
    if "<" in text or ">" in text or "=" in text:
        for source, target in _RELATIONS:
            text = text.replace(source, target)
    if "_" in text:
        text = _INDEX.sub(r"_{\1}", text)
    if "^" in text:
        text = _POWER.sub(r"^{\1}", text)
    return text.replace("*", r"\cdot ") if "*" in text else text


def _named(run: re.Match[str]) -> str:
    """Return the LaTeX command of a name such as `pi`, `sqrt` or `sinx`, and any other run of letters unchanged."""
    word = run[0]
    if word in NAMED:
        return NAMED[word]
    for name in ("sqrt", "arcsin", "arccos", "arctan", "sin", "cos", "tan", "ln", "log"):
        if word.startswith(name) and len(word) == len(name) + 1:
            return NAMED[name] + word[-1]
    if word.endswith("pi") and len(word) == 3 and word[0] in "rnkx":
        return word[0] + r"\pi "
    return word


def arguments(text: str) -> str:
    """Return the text with each argument of a fraction, root, binomial, power or absolute value in braces."""
    if "\\over" in text or "\\choose" in text:
        text = _infix(text)
    for command, count in (("\\frac", 2), ("\\binom", 2), ("\\sqrt", 1)):
        if command in text:
            text = _with_braces(text, command, count)
    for command, opening, closing in (
        ("\\abs", "|", "|"),
        ("\\cbrt", r"\sqrt[3]{", "}"),
        ("\\floor", r"\lfloor ", r"\rfloor "),
        ("\\ceil", r"\lceil ", r"\rceil "),
    ):
        text = _called(text, command, opening, closing)
    if "\\exp" in text:
        text = _called(text, "\\exp", "e^{", "}")
    if "^" in text:
        text = _powers(text)
    return text


def _powers(text: str) -> str:
    """Return `x^(n+1)` as `x^{n+1}`; leave primes and degrees unchanged."""
    place = 0
    while (place := text.find("^", place)) >= 0:
        rest = place + 1
        while text[rest : rest + 1] == " ":
            rest += 1
        if text[rest : rest + 1] == "(":
            end = group_end(text, rest, "(", ")")
            text = f"{text[:place]}^{{{text[rest + 1 : end]}}}{text[end + 1 :]}"
        elif command := re.compile(r"\\[A-Za-z]+").match(text, rest):
            if command[0] not in ("\\frac", "\\sqrt", "\\text", "\\binom"):
                text = f"{text[:place]}^{{{command[0]}}}{text[command.end() :]}"
        elif text[rest : rest + 1].isalpha():
            text = f"{text[:place]}^{{{text[rest]}}}{text[rest + 1 :]}"
        place += 1
    return text


def _with_braces(text: str, command: str, count: int) -> str:
    place = 0
    while (place := text.find(command, place)) >= 0:
        place += len(command)
        if text[place : place + 1].isalpha():
            continue
        rest = place
        head = ""
        if command == "\\sqrt" and (index := re.compile(r"\s*\[([^\[\]]*)\]").match(text, rest)):
            head, rest = f"[{index[1]}]", index.end()
        spaced = text[rest : rest + 1] == " "
        called = re.compile(r"\s*\(([^(),]*),([^(),]*)\)").match(text, rest) if count == 2 else None
        if called:
            text = f"{text[:place]}{{{called[1].strip()}}}{{{called[2].strip()}}}{text[called.end() :]}"
            continue
        braced = []
        for _ in range(count):
            rest, argument = _argument(text, rest, whole=spaced and command == "\\sqrt")
            braced.append(f"{{{argument}}}")
        text = text[:place] + head + "".join(braced) + text[rest:]
    return text


def _argument(text: str, place: int, whole: bool) -> tuple[int, str]:
    """Return the end and the content of one argument.

    It is a group in braces or brackets, all digits if `whole` is true, or else one token.
    """
    while text[place : place + 1].isspace():
        place += 1
    first = text[place : place + 1]
    if first == "{":
        end = group_end(text, place)
        return end + 1, text[place + 1 : end]
    if first == "(":
        end = group_end(text, place, "(", ")")
        return end + 1, text[place + 1 : end]
    token = re.compile(r"\d+(?:\.\d+)?|\\[A-Za-z]+|\S" if whole else r"\\[A-Za-z]+|\S").match(text, place)
    if token is None:
        raise Unbalanced(text)
    return token.end(), token[0]


def _called(text: str, command: str, opening: str, closing: str) -> str:
    while (match := re.search(re.escape(command) + r"\s*([({])", text)) is not None:
        end = group_end(text, match.end() - 1, match[1], {"(": ")", "{": "}"}[match[1]])
        text = text[: match.start()] + opening + text[match.end() : end] + closing + text[end + 1 :]
    return text


def _infix(text: str) -> str:
    """Return `{1 \\over 2}` and `{5 \\choose 2}` with the command before its arguments."""
    for name, command in (("\\over", "\\frac"), ("\\choose", "\\binom")):
        while (match := re.search(re.escape(name) + r"(?![A-Za-z])\s*", text)) is not None:
            depth, start = 0, match.start() - 1
            while start >= 0 and (depth or text[start] != "{"):
                depth += {"}": 1, "{": -1}.get(text[start], 0)
                start -= 1
            end = group_end(text, start) if start >= 0 else len(text)
            top, bottom = text[start + 1 : match.start()].strip(), text[match.end() : end].strip()
            text = f"{text[: max(start, 0)]}{command}{{{top}}}{{{bottom}}}{text[end + 1 :]}"
    return text
