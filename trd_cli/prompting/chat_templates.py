"""Read a chat template: the token that ends an assistant's turn, the names it reads, and if it shows a user's text."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from functools import cache
from typing import TYPE_CHECKING, ClassVar

from trd_cli.records import Message

if TYPE_CHECKING:
    from jinja2 import Environment
    from jinja2.nodes import Node
    from jinja2.parser import Parser

# Lower case, no accents, no figures: a tokenizer that normalises its text leaves it as it is.
PROBE: tuple[Message, ...] = ({"role": "user", "content": "what is the sum of one and one"},)
# Two answers in words that no template has: the text that follows both is the template's.
_ANSWERS = ("heliotrope", "quicksilver lanterns")
_NEXT: Message = {"role": "user", "content": "and why"}
# Names that transformers gives to every template, beside those of special tokens.
_GIVEN = {"messages", "add_generation_prompt", "raise_exception", "strftime_now"}

Write = Callable[[Sequence[Message]], str]
Encode = Callable[[str], Sequence[int]]


def end_of_turn(write: Write, encode: Encode, marks: Set[int], ends: Set[int]) -> int | None:
    """Return the id that a template writes to end an assistant's turn, or None where it writes none.

    `write` renders a conversation without a prompt for the next turn. `marks` are ids that are no plain text, and
    `ends` those that are known to end a response. The end is the first mark after an answer; but where a known end
    follows that mark in the middle of a conversation, the mark ends only a part of the turn. A template that writes no
    mark may begin the next turn with a known end.
    """
    found = {_end_after(answer, write, encode, marks | ends, ends) for answer in _ANSWERS}
    return found.pop() if len(found) == 1 else None


def _end_after(answer: str, write: Write, encode: Encode, marks: Set[int], ends: Set[int]) -> int | None:
    turn: Message = {"role": "assistant", "content": answer}
    after, middle = (_after(answer, write, [*PROBE, turn, *more]) for more in ((), (_NEXT,)))
    written = [i for i in encode(after) if i in marks]
    between = [i for i in encode(middle.partition(_NEXT["content"])[0]) if i in ends]
    lasting = [i for i in written if i in between]
    return next(iter(lasting or written or between), None)


def _after(answer: str, write: Write, messages: Sequence[Message]) -> str:
    """Return the text that a template writes after an answer, "" where it fails or does not show the answer."""
    try:
        _, shown, rest = write(messages).rpartition(answer)
    except Exception:  # whatever a template raises: it has no assistant's turn
        return ""
    return rest if shown else ""


def shows(text: str, probe: str) -> bool:
    """Tell whether a rendered text holds the letters of the probe, in whatever form its white space is."""
    return "".join(filter(str.isalpha, probe)) in "".join(filter(str.isalpha, text))


def names_read(template: str) -> frozenset[str]:
    """Return the names that a template reads and that a user may give; none for a template that does not compile."""
    # Deferred: training alone needs no templates.
    import jinja2
    import jinja2.meta

    try:
        return frozenset(jinja2.meta.find_undeclared_variables(_environment().parse(template)) - _GIVEN)
    except jinja2.TemplateError:
        return frozenset()


@cache
def _environment() -> Environment:
    """Return an environment like that of transformers, where a template may also mark the text of an assistant."""
    import jinja2.ext

    class Generation(jinja2.ext.Extension):
        tags: ClassVar[set[str]] = {"generation"}

        def parse(self, parser: Parser) -> list[Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    return jinja2.Environment(extensions=[Generation, "jinja2.ext.loopcontrols"])
