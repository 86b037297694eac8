"""Games of TextWorld (https://github.com/microsoft/TextWorld), made from a seed without the network.

A game is compiled once and kept in the directory for temporary files, which is the one of the pool of workers. Of many
games the last used are kept; the others are made again when they are played again.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

from trd_cli.records import content_hash
from trd_cli.worlds.base import Score, Step, WorldError
from trd_cli.worlds.scratch import keep_newest

PACKAGE = "textworld"
# Counts changes of the texts below; it is part of the version.
REVISION = 1
OPTIONS: Mapping[str, int | str] = {"game": "treasure_hunter", "level": 1}
# The highest level of each game.
_LEVELS = {"treasure_hunter": 30, "coin_collector": 300, "quest": 20}
# Games; each has 0.43 MB of files. A game that is played needs them only at its reset.
_KEPT = 500
_BANNER = "$$"
# The status line stands after it.
_PROMPT = re.compile(r"\n>[^\n]*\Z")
_END = "Would you like to RESTART"
# Words that a command may begin with, besides a game's own verbs. All others (restart, undo, …) are answered here: they
# would part the game from its record.
_SHORT = {"n", "s", "e", "w", "north", "south", "east", "west", "l", "i", "x", "get", "pick"}
_TALK = {"help", "goal", "wait", "z"}
_NO_VERB = "That's not a verb I recognise."
_NO_ANSWER = "Nothing happens."


def make(game: str, level: int) -> TextWorld:
    """Return an environment of games of that name and level; raises WorldError for one that there is not."""
    if game not in _LEVELS:
        raise WorldError(f"game={game}; expected one of {', '.join(_LEVELS)}")
    if not 1 <= level <= _LEVELS[game]:
        raise WorldError(f"level={level}; expected a number from 1 to {_LEVELS[game]} for game={game}")
    return TextWorld(game, level)


class TextWorld:
    """Play TextWorld's games. The reward is the share of the game's points; it lies between 0 and 1."""

    def __init__(self, game: str, level: int) -> None:
        self._kind, self._level = game, level

    def reset(self, seed: int) -> str:
        import textworld

        wanted = textworld.EnvInfos(policy_commands=True, score=True, moves=True, won=True, lost=True)
        self._play = textworld.start(str(_game_file(self._kind, self._level, seed)), wanted)
        self._state = self._play.reset()
        game = self._state.game
        self._verbs = _SHORT | _TALK | {verb.split()[0] for verb in game.verbs}
        self._most = game.max_score
        commands = cleaned(self._play.step("help")[0].feedback)
        return f"{cleaned(self._state.feedback)}\n\n{commands}"

    def step(self, action: str) -> Step:
        words = action.lower().split()
        is_plain = re.fullmatch(r"[\w' -]+", action, re.ASCII) is not None
        if not words or not is_plain or words[0] not in self._verbs or "then" in words:
            return Step(_NO_VERB, valid=False)
        before = self._state.moves
        self._state, _, done = self._play.step(action)
        has_moved = self._state.moves > before
        return Step(cleaned(self._state.feedback) or _NO_ANSWER, has_moved or words[0] in _TALK, bool(done))

    def score(self) -> Score:
        return Score((self._state.score or 0) / self._most, bool(self._state.won))

    def oracle(self) -> list[str] | None:
        """Return the commands of the game's own policy; None where the goal is out of reach."""
        return self._state.policy_commands or ([] if self._state.won else None)


def cleaned(text: str) -> str:
    """Return what a game wrote without its banner, its prompt or last question, and the space that only lays it out."""
    lines = _PROMPT.sub("", text.partition(_END)[0]).splitlines()
    start = max((number for number, line in enumerate(lines, 1) if _BANNER in line), default=0)
    stripped = "\n".join(line.strip() if "***" in line else line.rstrip() for line in lines[start:])
    return re.sub(r"\n{3,}", "\n\n", stripped).strip()


def _game_file(game: str, level: int, seed: int) -> Path:
    """Return a game's file; the game is made unless it is there."""
    digest = content_hash([game, level, seed])
    place = Path(tempfile.gettempdir()) / f"textworld-{digest}"
    if place.is_dir():
        os.utime(place)
    else:
        with tempfile.TemporaryDirectory(prefix="making-") as made:
            _compile(game, level, seed, Path(made, "new"))
            try:
                os.rename(Path(made, "new"), place)
            except OSError:
                if not place.is_dir():  # else another process was faster
                    raise
        keep_newest(place.parent, "textworld-*", _KEPT)
    return place / "game.z8"


def _compile(game: str, level: int, seed: int, place: Path) -> None:
    """Make a game and write its files into a new directory."""
    import textworld
    from textworld.challenges.tw_coin_collector import coin_collector
    from textworld.challenges.tw_treasure_hunter import treasure_hunter

    options = textworld.GameOptions()
    options.seeds, options.file_ext, options.path = seed, ".z8", str(place / "game.z8")
    place.mkdir()
    if game == "quest":
        options.nb_rooms, options.nb_objects = level + 2, level + 3
        options.quest_length = level
        made = textworld.generator.make_game(options)
    else:
        kind = {"coin_collector": coin_collector, "treasure_hunter": treasure_hunter}[game]
        made = kind.make({"level": level}, options)
    textworld.generator.compile_game(made, options)
