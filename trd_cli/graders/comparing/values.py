"""The value of one expression in plain LaTeX, and whether two have the same.

Whole numbers, fractions and decimals are read here; all else by latex2sympy2_extended, math-verify's parser, with every
variable under a name of its own, so that neither the case of letters nor `I`, `E` and `\\Gamma` get a meaning that they
were not given.

Exact values are compared exactly. A decimal stands for what rounds to it, from six digits and six places on.
Expressions with variables are compared at points: at positive ones, and at others where both sides are real and not
both hold roots, so that `\\sqrt{1/n}` is `1/\\sqrt n` but `\\sqrt{x^2}` is not `x`. Not covered: identities that hold
for whole numbers only.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

from trd_cli.graders.comparing.numbers import LEAST_DIGITS, Digits, Number, number, same_number, with_fractions
from trd_cli.graders.comparing.sizes import is_huge
from trd_cli.graders.reading.vocabulary import words

# The parser takes ages to pair more bars than this.
_MOST_BARS = 12
_POINTS, _PRECISION = 5, 50
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
    """Return the expression as SymPy has it; None for what cannot be read."""
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
    """Return the text with each variable as `\\variable{name}`; bound variables and differentials stay as they are."""
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
    """Return what the parser makes of a text that is prepared for it, or None."""
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


def same_value(one: Parsed, other: Parsed, places: int | None = None) -> bool | None:
    """Return whether two expressions have the same value wherever both have one; None where that cannot be told."""
    from sympy import Expr, nan, zoo

    a, b = one.value, other.value
    if not isinstance(a, Expr) or not isinstance(b, Expr):
        return None
    if a == b:
        return not a.has(nan, zoo)
    if is_huge(a) or is_huge(b):
        return None
    try:
        symbols = sorted(a.free_symbols | b.free_symbols, key=lambda symbol: symbol.name)
        if not symbols:
            return _same_constant(one, other, places)
        return _same_at_points(one, other, [symbol.name for symbol in symbols])
    except MemoryError:
        raise
    except Exception:
        return None


def _same_constant(one: Parsed, other: Parsed, places: int | None) -> bool | None:
    from sympy import oo

    a, b = one.value.doit(), other.value.doit()
    if a == b:
        return True
    if a in (oo, -oo) or b in (oo, -oo):
        return False
    if a.is_Rational and b.is_Rational:
        pair = (Number(Fraction(int(v.p), int(v.q)), p.digits) for v, p in ((a, one), (b, other)))
        return same_number(*pair, places)
    x, y = a.evalf(_PRECISION), b.evalf(_PRECISION)
    if not (x.is_number and y.is_number and x.is_finite and y.is_finite):
        return None
    digits = [p.digits for p in (one, other) if p.digits]
    if digits or (places is not None):
        return _near(x, y, one, other, places)
    if _apart(x, y, _PRECISION - 10):
        return False
    return not _apart(a.evalf(500), b.evalf(500), 450)


def _apart(x: Any, y: Any, digits: int) -> bool:
    from sympy import Rational

    return bool(abs(x - y) > max(abs(x), abs(y)) * Rational(1, 10**digits))


def _near(x: Any, y: Any, one: Parsed, other: Parsed, places: int | None) -> bool | None:
    """Compare real and imaginary parts where a decimal is among the two values."""
    same = True
    for part in (0, 1):
        numbers = []
        for value, parsed in ((x, one), (y, other)):
            real = value.as_real_imag()[part]
            fraction = Fraction(str(real)) if real.is_number and real.is_finite else None
            if fraction is None:
                return None
            # A value that is no decimal has all its digits.
            numbers.append(Number(fraction, parsed.digits))
        if places is not None:
            same = same and round(numbers[0].value, places) == round(numbers[1].value, places)
        else:
            same = same and (same_number(*numbers) or abs(numbers[0].value - numbers[1].value) < Fraction(1, 10**40))
    return same


def _same_at_points(one: Parsed, other: Parsed, names: list[str]) -> bool | None:
    """Compare at positive points, then at points of any sign where no root or logarithm of a negative number is taken."""
    draws = random.Random(7)
    decimal = one.digits or other.digits
    rooted = [any(_has_root(p.value) for p in pair) for pair in ((one,), (other,))]
    compared = 0
    for number_of in range(_POINTS):
        # Where both hold roots their variables are quantities, which are positive.
        positive = number_of < 3 or all(rooted)
        at = {name: _draw(draws, positive) for name in names}
        x, y = _at(one.value, at), _at(other.value, at)
        if x is None or y is None:
            if positive:
                return None
            continue
        if not positive and (x[1] != y[1] or x[1]) and not _has_abs(one.value, other.value):
            continue
        if not positive and x[1] and y[1]:
            continue
        compared += 1
        if not _equal_at(x[0], y[0], bool(decimal), decimal):
            return False
    return True if compared >= 3 else None


def _has_root(value: Any) -> bool:
    from sympy import Pow, preorder_traversal

    return any(
        isinstance(p, Pow) and p.exp.is_Rational and p.exp.q > 1 and p.base.free_symbols
        for p in preorder_traversal(value)
    )


def _has_abs(a: Any, b: Any) -> bool:
    from sympy import Abs

    return a.has(Abs) != b.has(Abs)


def _draw(draws: random.Random, positive: bool) -> Any:
    from sympy import Rational

    value = Rational(draws.randrange(300, 4000), 997)
    return value if positive or draws.random() < 0.3 else -value


def _at(expression: Any, at: dict[str, Any]) -> tuple[Any, bool] | None:
    """Return the value at a point and whether a root or a logarithm of a negative number was taken;

    None without a value.
    """
    from sympy import Pow, Product, Sum, log, nan, preorder_traversal, zoo

    if expression.has(Sum, Product):
        expression = expression.doit()
    here = expression.subs({symbol: at[symbol.name] for symbol in expression.free_symbols})
    if is_huge(here):
        return None
    value = here.doit()
    if value.has(nan, zoo):
        return None
    if not value.is_Rational:
        value = value.evalf(_PRECISION)
        if not value.is_number or not value.is_finite:
            return None
    outside = False
    for part in preorder_traversal(expression):
        if (isinstance(part, Pow) and not part.exp.is_integer and part.base.free_symbols) or isinstance(part, log):
            argument = part.args[0].subs({symbol: at[symbol.name] for symbol in part.args[0].free_symbols})
            if not argument.is_nonnegative:
                outside = True
    return value, outside


def _equal_at(x: Any, y: Any, decimal: bool, digits: Digits | None) -> bool:
    if x == y:
        return True
    if x.is_Rational and y.is_Rational and not decimal:
        return False
    if decimal:
        return digits is not None and digits.significant >= LEAST_DIGITS and not _apart(x, y, LEAST_DIGITS)
    return not _apart(x, y, _PRECISION - 12)
