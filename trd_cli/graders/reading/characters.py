"""Rewrite Unicode as LaTeX: superscripts, fractions, root signs, dashes, spaces, letters of mathematics."""

from __future__ import annotations

import re
import unicodedata

from trd_cli.graders.reading.brackets import group_end
from trd_cli.graders.reading.vocabulary import words

GREEK = dict(
    zip(
        "αβγδεζηθικλμνξπρστυφχψωϕϵϑςΓΔΘΛΞΠΣΥΦΨΩ",
        words(
            "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma "
            "tau upsilon varphi chi psi omega phi varepsilon vartheta varsigma Gamma Delta Theta "
            "Lambda Xi Pi Sigma Upsilon Phi Psi Omega"
        ),
        strict=True,
    )
)


def _pairs(table: str) -> dict[str, str]:
    """Return a mapping from each first to each second word of a table of pairs."""
    found = words(table)
    return dict(zip(found[::2], found[1::2], strict=True))


# Replaced before compatibility forms are taken apart, which would lose the meaning of these characters.
_BEFORE = str.maketrans(
    {
        **dict.fromkeys("‐‑‒–—―−﹣－˗", "-"),
        **dict.fromkeys("’‘′´`ʹ", "'"),
        **dict.fromkeys("″“”", '"'),
        **{letter: rf"\mathbb{{{plain}}}" for letter, plain in zip("ℝℤℕℚℂ", "RZNQC", strict=True)},
        **_pairs("º ° ˚ ° ⁄ / ∕ / ￥ ¥ 。 . ϕ φ ℓ l"),
    }
)
_COMMANDS = _pairs(
    "· cdot ⋅ cdot ∙ cdot • cdot ≈ approx ≃ approx ≅ approx ⟨ langle 〈 langle ⟩ rangle 〉 rangle × times "
    "÷ div ∞ infty ≤ le ≥ ge ⩽ le ⩾ ge ≦ le ≧ ge ≠ neq ≡ equiv ∪ cup ∩ cap ± pm ∓ mp ∈ in ∉ notin "
    "∖ setminus ∅ emptyset ∀ forall ∠ angle △ triangle ⋯ ldots ⌊ lfloor ⌋ rfloor ⌈ lceil ⌉ rceil ∑ sum "
    "∏ prod ∫ int → to ¬ neg ∧ land ∨ lor ⊥ perp ∥ parallel ∂ partial"
)
_SYMBOLS = str.maketrans(
    {
        **{letter: rf"\{name} " for letter, name in {**GREEK, **_COMMANDS}.items()},
        **{"°": r"^{\circ}", "∣": "|", "、": ", ", "∶": ":", "′": "'"},
    }
)
# Restores a backslash and a letter that a program read as one control character.
CONTROLS = str.maketrans({"\x07": "\\a", "\x08": "\\b", "\x0b": "\\v", "\x0c": "\\f"})
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufe00-\ufe0f\ufeff]")
_SUPERSCRIPTS = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱᵃᵇᶜᵏᵐˣʸ]+")
_SUBSCRIPTS = re.compile("[₀₁₂₃₄₅₆₇₈₉₊₋₍₎ₙₐₑᵢⱼₖₘₓ]+")
_FRACTION = re.compile("[¼-¾⅐-⅞↉]")
_OVERLINED = re.compile("(?:\\d\u0305)+")
_DOTTED = re.compile("(\\d)\u0307")
_ROOT = re.compile(r"([√∛∜])\s*")
_RADICAND = re.compile(r"\d+(?:\.\d+)?|[A-Za-z]|\\[A-Za-z]+")


def in_latex(text: str) -> str:
    """Return the text with its mathematics in ASCII; letters of words stay."""
    text = _INVISIBLE.sub("", text).translate(_BEFORE)
    text = _OVERLINED.sub(lambda m: rf"\overline{{{m[0][::2]}}}", text)
    text = _DOTTED.sub(r"\\dot{\1}", text)
    text = re.sub(r"([²³⁴])√", lambda m: {"²": "√", "³": "∛", "⁴": "∜"}[m[1]], text)
    text = _SUPERSCRIPTS.sub(lambda m: f"^{{{unicodedata.normalize('NFKC', m[0])}}}", text)
    text = _SUBSCRIPTS.sub(lambda m: f"_{{{unicodedata.normalize('NFKC', m[0])}}}", text)
    text = _FRACTION.sub(_vulgar, text)
    text = unicodedata.normalize("NFKC", text.replace("\u2212", "-")).replace("\u2212", "-").replace("\u2044", "/")
    for match in reversed(list(_ROOT.finditer(text))):
        text = text[: match.start()] + _rooted(match[1], text[match.end() :])
    return text.translate(_SYMBOLS)


def _vulgar(match: re.Match[str]) -> str:
    top, _, bottom = unicodedata.normalize("NFKC", match[0]).partition("\u2044")
    return rf"\frac{{{top}}}{{{bottom}}}"


def _rooted(sign: str, rest: str) -> str:
    """Return a root sign with its whole radicand in braces: the digits, one letter, or the content of brackets."""
    root = {"√": r"\sqrt", "∛": r"\sqrt[3]", "∜": r"\sqrt[4]"}[sign]
    pair = {"(": ")", "{": "}"}.get(rest[:1])
    if pair:
        end = group_end(rest, 0, rest[0], pair)
        return f"{root}{{{rest[1:end]}}}{rest[end + 1 :]}"
    radicand = _RADICAND.match(rest) or re.match(r".?", rest)
    found = radicand[0] if radicand else ""
    if found in GREEK:
        found = rf"\{GREEK[found]}"
    return f"{root}{{{found}}}{rest[radicand.end() if radicand else 0 :]}"
