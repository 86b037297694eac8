"""Moves to the goal in some of TextArena's games, from any state; None where there are none.

They read the state of the game, also what the player does not see.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from itertools import product
from typing import Any, TypeVar

State = TypeVar("State", bound=Hashable)


def _way(
    start: State, moves: Callable[[State], Iterable[tuple[str, State]]], is_goal: Callable[[State], bool]
) -> list[str] | None:
    """Return the fewest moves from a state to a goal."""
    ways: dict[State, list[str]] = {start: []}
    left = deque([start])
    while left:
        state = left.popleft()
        if is_goal(state):
            return ways[state]
        for move, after in moves(state):
            if after not in ways:
                ways[after] = [*ways[state], move]
                left.append(after)
    return None


def _hanoi(game: Any) -> list[str] | None:
    towers = game.state.game_state["towers"]

    def moves(state: tuple[tuple[int, ...], ...]) -> Iterator[tuple[str, tuple[tuple[int, ...], ...]]]:
        for source, target in product(range(3), repeat=2):
            if state[source] and (not state[target] or state[target][-1] > state[source][-1]) and source != target:
                after = list(state)
                after[source], after[target] = state[source][:-1], (*state[target], state[source][-1])
                yield f"[{'ABC'[source]} {'ABC'[target]}]", tuple(after)

    return _way(tuple(tuple(towers[name]) for name in "ABC"), moves, lambda state: len(state[2]) == game.num_disks)


def _frozen_lake(game: Any) -> list[str] | None:
    about, size = game.state.game_state, game.size

    def moves(place: tuple[int, int]) -> Iterator[tuple[str, tuple[int, int]]]:
        for name, (down, right) in game.actions.items():
            row, column = place[0] + down, place[1] + right
            if 0 <= row < size and 0 <= column < size and about["grid"][row][column] != "H":
                yield f"[{name}]", (row, column)

    return _way(about["player_pos"], moves, lambda place: place == about["goal_pos"])


def _lights_out(game: Any) -> list[str] | None:
    """Try every set of presses in the first row; each settles the rows below, from the top down."""
    lights, size = game.state.game_state["grid"], game.size
    best: list[str] | None = None
    for first in product((False, True), repeat=size):
        grid, presses = [list(row) for row in lights], []
        for row in range(size):
            for column in range(size):
                if first[column] if row == 0 else grid[row - 1][column]:
                    presses.append(f"[{row} {column}]")
                    _press(grid, row, column)
        if not any(grid[-1]) and (best is None or len(presses) < len(best)):
            best = presses
    return best


def _press(grid: list[list[bool]], row: int, column: int) -> None:
    for r, c in ((row, column), (row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
        if 0 <= r < len(grid) and 0 <= c < len(grid):
            grid[r][c] = not grid[r][c]


def _sudoku(game: Any) -> list[str]:
    board = game.state.game_state["board"]
    return [
        f"[{row + 1} {column + 1} {game.full_grid[row][column]}]"
        for row, column in product(range(9), repeat=2)
        if not board[row][column]
    ]


def _guess_the_number(game: Any) -> list[str]:
    return [f"[{game.state.game_state['game_number']}]"]


def _mastermind(game: Any) -> list[str]:
    return [f"[{' '.join(map(str, game.state.game_state['secret_code']))}]"]


ORACLES: Mapping[str, Callable[[Any], list[str] | None]] = {
    "FrozenLake": _frozen_lake,
    "GuessTheNumber": _guess_the_number,
    "LightsOut": _lights_out,
    "Mastermind": _mastermind,
    "Sudoku": _sudoku,
    "TowerOfHanoi": _hanoi,
}
