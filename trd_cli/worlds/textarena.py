"""Games of TextArena (https://github.com/LeonGuertler/TextArena) for one player that need no data.

The player reads what the game says, without its own actions. By TextArena's rule an episode ends at the second invalid
move in a row.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from trd_cli.worlds.base import Score, Step, WorldError
from trd_cli.worlds.oracles import ORACLES

PACKAGE = "textarena"
# Counts changes of the texts below and of the oracles; it is part of the version.
REVISION = 1
OPTIONS: Mapping[str, int | str] = {"game": "FrozenLake-v0"}
# By the name up to its version. All were tried without the network: a seed gives the same game in every process.
GAMES = (
    "2048",
    "Bandit",
    "Blackjack",
    "Crosswords",
    "FrozenLake",
    "GuessTheNumber",
    "LightsOut",
    "LogicPuzzle",
    "Mastermind",
    "Minesweeper",
    "PegJump",
    "RushHour",
    "Secretary",
    "Sokoban",
    "Sudoku",
    "TowerOfHanoi",
)
_DATA, _JUDGE, _BROKEN = "downloads words", "asks a model on a server", "fails in textarena 0.7.4"
_NOT_ONE_GAME = "has the same puzzle for every seed, and no number as reward of an invalid move"
REFUSED: Mapping[str, str] = {
    **dict.fromkeys(("Hangman", "WordLadder", "Wordle", "WordSearch"), _DATA),
    **dict.fromkeys(("GuessWho", "TwentyQuestions"), _JUDGE),
    **dict.fromkeys(("FifteenPuzzle", "Klondike", "UltimateTexasHoldem"), _BROKEN),
    **dict.fromkeys(("Countdown", "Cryptarithm", "Slitherlink"), _NOT_ONE_GAME),
    "Set": "has rewards above 1",
    "ThreeCardMonte": "has no number as reward of an invalid move",
}
# Suffixes of TextArena's own views of a game.
_VIEWS = ("-train", "-raw")


def make(game: str) -> TextArena:
    """Return an environment of that game; raises WorldError for one that is not in `GAMES`."""
    name = game.partition("-v")[0]
    if name in REFUSED:
        raise WorldError(f"game={game}: it {REFUSED[name]}")
    from textarena.envs.registration import ENV_REGISTRY

    found = [each for each in ENV_REGISTRY if each.partition("-v")[0] == name and not each.endswith(_VIEWS)]
    if name not in GAMES:
        raise WorldError(f"game={game}; expected one of {', '.join(GAMES)} with its version, as FrozenLake-v0")
    if game not in found:
        raise WorldError(f"game={game}; expected one of {', '.join(found)}")
    return TextArena(name, ENV_REGISTRY[game])


class TextArena:
    """Play one of TextArena's games. The reward is the game's own, which it gives at the end; a goal reached is 1."""

    def __init__(self, name: str, about: Any) -> None:
        module, kind = about.entry_point.split(":")
        self._name = name
        self._game = getattr(importlib.import_module(module), kind)(**about.kwargs)

    def reset(self, seed: int) -> str:
        self._game.reset(num_players=1, seed=seed)
        return self._news()

    def step(self, action: str) -> Step:
        # A move is what stands in brackets.
        self._game.step(action if "[" in action else f"[{action}]")
        state = self._game.state
        about = state.game_info[0]
        valid = not (state.error_count or about["invalid_move"])
        news = [self._news(), about.get("reason") or ""]
        return Step("\n".join(filter(None, news)) or "Nothing happens.", valid, bool(state.done))

    def _news(self) -> str:
        """Return what the game has said since it was asked last, in order."""
        from textarena import ObservationType

        _, said = self._game.get_observation()
        texts = [text.strip("\n") for _, text, kind in said if kind != ObservationType.PLAYER_ACTION]
        return "\n".join(texts)

    def score(self) -> Score:
        reward = float((self._game.state.rewards or {0: 0.0})[0])
        return Score(reward, self._game.state.done and reward >= 1)

    def oracle(self) -> list[str] | None:
        """Return the moves to the goal where `oracles` has the game, else None."""
        find = ORACLES.get(self._name)
        if find is None or self._game.state.done:
            return [] if self.score().solved else None
        return find(self._game)
