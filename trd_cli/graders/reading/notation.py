"""Rewrite the many notations of an answer as one plain LaTeX: Unicode, wrappers, source code, digit groups.

`plain` changes the notation of an answer and never its meaning. Each word becomes a `\\text{word}` of its own, so that
a reader can account for every one. Letters of mathematics stay letters and keep their case.
"""

from __future__ import annotations

import re
from functools import lru_cache

from trd_cli.graders.reading.brackets import group_end
from trd_cli.graders.reading.characters import CONTROLS, in_latex
from trd_cli.graders.reading.source import FUNCTIONS, NAMED, arguments, from_source
from trd_cli.graders.reading.vocabulary import words

# Commands that change the look of their argument; of those with two arguments the second counts.
_STYLES = frozenset(
    words(
        "boxed fbox underline mathbf mathit mathbfit boldsymbol bm pmb mathnormal ensuremath "
        "mathop mathclose mathopen mathord framebox makebox mathstrut smash uline"
    )
)
_BOLD = frozenset(words("mathbf boldsymbol bm mathbfit"))
_COLOURS = frozenset(["textcolor", "colorbox"])
_TEXTS = frozenset(
    words(
        "text textbf textit textrm textnormal texttt textsf textup textsc textmd mbox hbox emph "
        "mathrm mathtt mathsf operatorname"
    )
)
_SWITCHES = frozenset(
    words(
        "displaystyle textstyle scriptstyle large Large LARGE huge Huge small normalsize tiny bf "
        "rm it tt sf bfseries itshape limits nolimits left right middle big Big bigg Bigg bigl "
        "bigr Bigl Bigr biggl biggr Biggl Biggr bigm Bigm biggm noindent centering hfill "
        "mathstrut strut nonumber boldmath protect allowbreak nobreak"
    )
)
_SPACES = frozenset(words("quad qquad enspace enskip thinspace medspace thickspace space nobreakspace"))
_DROPPED = frozenset(words("phantom hphantom vphantom label tag hspace vspace hskip"))
_COMMANDS = {
    "dfrac": "frac", "tfrac": "frac", "cfrac": "frac", "dbinom": "binom", "tbinom": "binom", "leq": "le", "geq": "ge",
    "leqslant": "le", "geqslant": "ge", "ne": "neq", "varnothing": "emptyset", "dots": "ldots", "cdots": "ldots",
    "dotsc": "ldots", "dotsb": "ldots", "dotsm": "ldots", "vdots": "ldots", "arcctg": "arccot", "tg": "tan", "ctg": "cot", "arctg": "arctan",
    "lbrace": "{", "rbrace": "}", "lvert": "vert", "rvert": "vert", "lVert": "Vert", "rVert": "Vert", "lbrack": "[",
    "rbrack": "]", "lparen": "(", "rparen": ")", "colon": ":", "ast": "cdot", "bullet": "cdot", "simeq": "approx", "widehat": "hat", "overrightarrow": "vec",
    "backslash": "setminus", "degree": "circ_", "percnt": "%", "euro": "€", "pounds": "£", "smallsetminus": "setminus",
    "lt": "<", "gt": ">", "bigcup": "cup", "bigcap": "cap", "land": "land", "wedge": "land", "vee": "lor", "overset": "overset", "imath": "i_", "iff": "iff",
    "longrightarrow": "to", "rightarrow": "to", "Rightarrow": "Rightarrow", "implies": "Rightarrow", "exponentialE": "e_", "varphi": "varphi", "lg": "lg",
}  # fmt: skip
_ESCAPED = re.compile(r"\\\\(?=[A-Za-z(\[\]{}%$,;!])")
TOKEN = re.compile(r"\\([A-Za-z]+)\s*|\\(.)|~", re.DOTALL)
_LETTERS = re.compile(r"[^\W\d_]+(?:['-][^\W\d_]+)*")
TEXT = re.compile(r"\\text\{([^{}]*)\}")
_ABBREVIATED = re.compile(
    r"(?<![A-Za-z])([AaPp])\.\s?([Mm])\.?(?![A-Za-z])|(?<![A-Za-z])([BbAa])\.\s?([CcDd])\.(?:\s?[Ee]\.)?(?![A-Za-z])"
)
_JSON_LIST = re.compile(r'\[\s*"[^"]*"(?:\s*,\s*"[^"]*")*\s*\]')
_COMMAND_SPACE = re.compile(r"(\\[A-Za-z]+) (?![A-Za-z])")


@lru_cache(maxsize=128)
def plain(text: str) -> str:
    """Return the answer in plain LaTeX; raises Unbalanced if its braces do not match."""
    text = text.translate(CONTROLS).strip()
    if not text.isascii():
        text = in_latex(text)
    text = _ABBREVIATED.sub(lambda m: f" {m[1] or m[3]}{m[2] or m[4]} ", text)
    if _JSON_LIST.fullmatch(text):
        text = text[1:-1].replace('"', "")
    text = _without_marks(text)
    if "\\begin" not in text:
        text = _ESCAPED.sub(r"\\", text)
    text = re.sub(r"\s*\{\s*,\s*\}\s*", r",\\!", text) if "{" in text else text
    text = re.sub(r"(?<=\d),\\!\s*(?=\d{3}(?!\d))|(?<=\d)\\!(?=\d)", "", text)
    if about := re.match(r"~|\\sim(?![a-z])", text):
        text = r"\approx " + text[about.end() :]
    if "\\" in text or "~" in text:
        text = _simplified(text)
    text = "".join(
        part if part.startswith("\\text{") else from_source(part) for part in re.split(r"(\\text\{[^{}]*\})", text)
    )
    text = arguments(re.sub(r"\s+", " ", text).strip())
    return _COMMAND_SPACE.sub(r"\1", text) if "\\" in text else text


def _without_marks(text: str) -> str:
    """Return the text without marks of mathematics and emphasis; a dollar sign before a number stays."""
    while len(text) > 4 and text.startswith(("**", "__")) and text.endswith(text[:2]):
        text = text[2:-2].strip()
    for opening, closing in ((r"\(", r"\)"), (r"\[", r"\]")):
        if opening in text and text.count(opening) == text.count(closing):
            if opening == r"\[" and re.search(r"\\\\\[", text):
                continue
            text = text.replace(opening, " ").replace(closing, " ")
    text = text.strip()
    bare = [m.start() for m in re.finditer(r"(?<!\\)\$", text)]
    money = all(
        re.match(r"\s?[\d.]", text[place + 1 :]) and not re.match(r"[\w})]", text[place - 1 : place]) for place in bare
    )
    if bare and len(bare) % 2 == 0 and not money:
        text = re.sub(r"(?<!\\)\$", " ", text).strip()
    text = re.sub(r"(?<!\\)\$", r"\\$", text)
    return re.sub(r"(?<![\\\d])%%?|(?<=\d)%", r"\\%", text)


def _simplified(text: str) -> str:
    """Return the text with each command replaced by the plainest one of the same meaning."""
    out: list[str] = []
    place = 0
    while match := TOKEN.search(text, place):
        out.append(text[place : match.start()])
        place = match.end()
        name, mark = match[1], match[2]
        if name is None:
            out.append(_mark(mark))
            continue
        if name in _STYLES or name in _COLOURS or name in _DROPPED or name == "color":
            place, kept = _styled(text, place, name)
            out.append(kept)
        elif name in _TEXTS:
            place, kept = _worded(text, place, name)
            out.append(kept)
        elif name in _SWITCHES:
            if name in ("left", "right") and text[place : place + 1] == ".":
                place += 1
            out.append(" " if text[match.end() - 1].isspace() else "")
        elif name in _SPACES:
            out.append(" ")
        elif name in ("begin", "end"):
            out.append(match[0].strip())
        elif text[match.start() : place] == r"\lg" or name == "lg":
            out.append(r"\log_{10} ")
        else:
            out.append(_renamed(name))
    return "".join(out) + text[place:]


def _mark(mark: str | None) -> str:
    if mark is None or mark in ",;: ":
        return " "
    if mark in "!/@":
        return ""
    if mark in "\"'":
        return mark
    return f"\\{mark}"


def _renamed(name: str) -> str:
    new = _COMMANDS.get(name, name)
    if new.endswith("_"):
        return {"circ_": r"^{\circ}"}.get(new, new[:-1] + " ")
    if not new.isalpha():
        return f"\\{new}" if new in "{}%" else new
    return {"vert": "|"}.get(new, rf"\{new} ")


def _braced(text: str, place: int) -> tuple[int, str] | None:
    """Return the end and the content of the group at a place."""
    while text[place : place + 1].isspace():
        place += 1
    if text[place : place + 1] != "{":
        return None
    end = group_end(text, place)
    return end + 1, text[place + 1 : end]


def _styled(text: str, place: int, name: str) -> tuple[int, str]:
    found = _braced(text, place)
    if found is None:
        return place, " "
    place, content = found
    if name == "color" or name in _DROPPED:
        return place, " "
    if name in _COLOURS:
        second = _braced(text, place)
        if second is None:
            return place, _simplified(content)
        place, content = second
    if name in _BOLD and content.strip() in ("i", "j", "k", "\\imath", "\\jmath"):
        return place, rf"\hat{{{content.strip().lstrip(chr(92))[0]}}}"
    inner = _simplified(content)
    return place, f"{{{inner}}}" if text[place : place + 1] in ("^", "_") and len(inner) > 1 else inner


def _worded(text: str, place: int, name: str) -> tuple[int, str]:
    found = _braced(text, place)
    if found is None:
        return place, ""
    end, content = found
    inner = _simplified(_without_marks(content)) if re.search(r"[\\$%~]", content) else content
    stripped = inner.strip()
    if name in ("mathrm", "operatorname", "text") and stripped in NAMED and stripped not in ("times", "min", "max"):
        return end, NAMED[stripped]
    if name == "operatorname" and stripped in FUNCTIONS:
        return end, rf"\{stripped} "
    if name != "text" and (stripped in ("i", "e", "d") or (len(stripped) == 1 and text[end : end + 1] in ("_", "("))):
        return end, stripped
    return end, words_marked(inner)


def words_marked(content: str) -> str:
    """Return a piece of text with every word in a `\\text` of its own and everything else as mathematics."""
    out, place = [], 0
    content = re.sub(r"(?<=[^\W\d_])\.(?=\s|$)", "", content) if "." in content else content
    for part in re.split(r"(\\text\{[^{}]*\}|\\[A-Za-z]+)", content):
        if part.startswith("\\"):
            out.append(part)
            continue
        place = 0
        for word in _LETTERS.finditer(part):
            out.append(part[place : word.start()])
            out.append(rf"\text{{{word[0]}}}")
            place = word.end()
        out.append(part[place:])
    joined = "".join(out)
    return joined if joined.strip() else " "
