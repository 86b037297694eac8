"""Declare the options of trd push."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator

from trd_cli.config.base import Config, option
from trd_cli.hub.names import is_repository


def _repository(text: str) -> str:
    """Return the name of a repository; raises ValueError for a text of another form."""
    if not is_repository(text):
        raise ValueError("owner/name")
    return text


def _branch(text: str) -> str:
    """Return the name of a branch; raises ValueError for a text that git takes for none."""
    if not text or text != "".join(text.split()):
        raise ValueError("the name of a branch, without spaces")
    return text


class PushConfig(Config):
    source: str = option(
        ...,
        "Input",
        "Trajectory set, run directory of trd run, or checkpoint of trd distill.",
        argument=True,
        rows=False,
    )
    repository: Annotated[str, AfterValidator(_repository)] = option(
        ..., "Output", "Repository on the Hub, owner/name; it is made if it is not there.", argument=True, rows=False
    )
    revision: Annotated[str, AfterValidator(_branch)] | None = option(
        None, "Output", "Branch to push to; it is made if it is not there. Default: main.", rows=False
    )
    private: bool = option(
        False, "Output", "Make the repository private; one that is there and public is refused.", rows=False
    )
    license: str | None = option(
        None, "Output", "Licence for the card, as the Hub spells it: apache-2.0, cc-by-4.0, other.", rows=False
    )
    replace: bool = option(
        False,
        "Output",
        "Also replace what else the repository holds: another set or checkpoint, a card that was edited.",
        rows=False,
    )
    allow_partial: bool = option(False, "Input", "Push what is there of an unfinished set or run.", rows=False)
    parents: tuple[str, ...] = option(
        (), "Input", "Where the parents of refined rows are now, for the card's table (repeatable).", rows=False
    )
    dry_run: bool = option(False, "Output", "Print the card and list the files, then stop.", rows=False)
