"""Parse one expression in plain LaTeX as SymPy has it.

Whole numbers, fractions and decimals are parsed here. Everything else goes to latex2sympy2_extended, math-verify's
parser, with every variable under a name of its own, so that neither the case of letters nor `I`, `E` and `\\Gamma` get
a meaning that they did not have.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from trd_cli.graders.comparing.numbers import Digits, number, with_fractions
from trd_cli.graders.reading.vocabulary import words

# The parser takes very long to pair more bars than this.
_MOST_BARS = 12
_NAME = re.compile(
    r"(?P<accent>\\(?:vec|hat|bar|overline|tilde|overrightarrow|dot|ddot|mathcal|mathbb|mathfrak|overleftrightarrow|widetilde)\s?"
    r"(?:\{[^{}]*\}|\\?[A-Za-z]+))"
    r"|(?P<command>\\[A-Za-z]+)|(?P<text>\\text\{[^{}]*\})|(?P<letter>[^\W\d_])"
)
_SUBSCRIPT = re.compile(r"\s?_\s?(\{(?:[^{}]|\{[^{}]*\})*\}|\\[A-Za-z]+|\w)")
_PRIMES = re.compile(r"'+")
_GREEK = frozenset(
    words(
        "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu "
        "nu xi rho varrho sigma varsigma tau upsilon phi varphi chi psi omega Gamma Delta Theta "
        "Lambda Xi Pi Sigma Upsilon Phi Psi Omega hbar nabla triangle angle ell star circ"
    )
)
_ANGLED = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![a-z])")
_DEGREES = re.compile(r"(\d+)\s?\^\{\\circ\}")
_BINDING = re.compile(r"\\(?:int|sum|prod|lim|iint|oint|partial)(?![A-Za-z])")
_PRODUCT = re.compile(r"(?<=\))\s?(?=\()")
_DOUBLE_FACTORIAL = re.compile(r"(\d{1,3})!!")
_ORDERLESS = re.compile(r"\\(gcd|lcm)\s?\(([^()]*)\)")


@dataclass(frozen=True)
class Parsed:
    """A SymPy expression and the digits of the shortest decimal in it."""

    value: Any
    digits: Digits | None


@lru_cache(maxsize=128)
def parse(latex: str) -> Parsed | None:
    """Return the expression as SymPy has it, or None if it cannot be read."""
    known = number(latex)
    if known is not None:
        from sympy import Rational

        return Parsed(Rational(known.value.numerator, known.value.denominator), known.digits)
    if latex.count("|") > _MOST_BARS:
        return None
    if "\\circ" in latex and _ANGLED.search(latex):
        latex = _DEGREES.sub(r"\\frac{\1\\pi}{180}", latex)
    latex, digits = with_fractions(latex)
    value = _converted(_with_names(latex))
    return None if value is None else Parsed(value, digits)


def _with_names(latex: str) -> str:
    """Return the text with each variable as `\\variable{name}`; leave bound variables and differentials as they are."""
    latex = _DOUBLE_FACTORIAL.sub(lambda m: str(_double_factorial(int(m[1]))), latex)
    latex = _ORDERLESS.sub(lambda m: _function_of(m[1], sorted(part.strip() for part in m[2].split(","))), latex)
    if _BINDING.search(latex):
        return latex.replace(r"\ldots", r"\variable{ldots}")
    out: list[str] = []
    place = 0
    while match := _NAME.search(latex, place):
        out.append(latex[place : match.start()])
        place = match.end()
        found = match[0]
        is_function = bool(match["command"]) and found[1:] not in _GREEK
        if is_function:
            if found in (r"\variable", r"\begin", r"\end", r"\mathbb", r"\operatorname"):
                place = latex.index("}", place) + 1 if "}" in latex[place:] else place
            out.append(latex[match.start() : place])
            continue
        if subscript := _SUBSCRIPT.match(latex, place):
            place = subscript.end()
            found += "_" + subscript[1].strip("{} ")
        if primes := _PRIMES.match(latex, place):
            place = primes.end()
            found += primes[0]
        found = found.replace("\\overline", "\\bar")
        if found in ("e", "\\pi"):
            out.append(found if found == "\\pi" else " e ")
        elif re.fullmatch(r"[fghFGP]'*", found) and latex[place : place + 1] == "(" and "'" not in found:
            out.append(found)
        else:
            out.append(rf"\variable{{{_encoded(found)}}}")
    return "".join(out) + latex[place:]


def _double_factorial(n: int) -> int:
    product = 1
    while n > 1:
        product, n = product * n, n - 2
    return product


def _function_of(name: str, arguments: list[str]) -> str:
    if all(argument.lstrip("-").isdigit() for argument in arguments):
        return rf"\operatorname{{{name}}}({','.join(arguments)})"
    return rf"\variable{{{_encoded(name + '(' + ','.join(arguments) + ')')}}}"


def _encoded(name: str) -> str:
    """Return a name in letters alone, a different one for each name."""
    return "".join(
        character
        if character.isascii() and character.isalpha() and character not in "QZ"
        else f"Z{ord(character):x}Q".translate(_HEX)
        for character in name.replace(" ", "")
    )


_HEX = str.maketrans("0123456789", "ghijklmnop")


def _converted(latex: str) -> Any:
    """Return what the parser makes of a prepared text, or None."""
    from latex2sympy2_extended import latex2sympy
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig
    from sympy import Basic, I, MatrixBase

    latex = _PRODUCT.sub(r"\\cdot ", latex) if ")" in latex or "(" in latex else latex
    try:
        value = latex2sympy(
            latex,
            is_real=True,
            convert_degrees=False,
            normalization_config=None,
            conversion_config=ConversionConfig(lowercase_symbols=False),
        )
    except MemoryError:
        raise
    except Exception:
        return None
    if not isinstance(value, (Basic, MatrixBase)):
        return None
    imaginary = [symbol for symbol in value.free_symbols if symbol.name == "i"] if "i" in latex else []
    return value.subs(dict.fromkeys(imaginary, I)) if imaginary else value
