"""Count what the rounds of a recipe are made of: problems and optimiser steps of a round, and steps of all rounds.

A round takes a slice of the problems, `n` attempts at each, and trains on `batch_size` rows a step. The rows that
[sample] or a subset will leave out are not known beforehand. Where a recipe does not give the steps, they count too.
"""

from __future__ import annotations

from pathlib import Path

from trd_cli.config.commands import MakeConfig
from trd_cli.config.generating import SampleConfig
from trd_cli.config.training import DistillConfig
from trd_cli.recipes.recipe import Recipe
from trd_cli.recipes.sections import PROBLEMS_FILE
from trd_cli.trajectories.shards import PROBLEM_SCHEMA, shard_info


def known_problems(recipe: Recipe) -> int | None:
    """Return the number of problems, None where it is not known before the set is made: imported, or by task.

    Raises InputError for a file without problems.
    """
    (kind, value), *_ = recipe.problems.items()
    if kind == "file":
        return shard_info(Path(value), PROBLEM_SCHEMA).rows
    if kind != "make":
        return None
    config = MakeConfig.parse({**value, "out": PROBLEMS_FILE})
    return config.n if config.kind == "arithmetic" else None


def problems_a_round(recipe: Recipe, arm: str) -> int | None:
    """Return the number of problems of a round, None where each round has all."""
    if recipe.steps_per_round is None:
        return recipe.problems_per_round
    return _ceil(recipe.steps_per_round * _batch(recipe, arm), _attempts(recipe, arm))


def steps_a_round(recipe: Recipe, arm: str) -> int | None:
    """Return the optimiser steps of a round (at most, if `steps_per_round` does not set them), None if not known."""
    if recipe.steps_per_round is not None:
        return recipe.steps_per_round
    problems = problems_a_round(recipe, arm) or known_problems(recipe)
    if problems is None:
        return None
    epochs = DistillConfig.parse(recipe.training(arm)).epochs
    return epochs * _ceil(problems * _attempts(recipe, arm), _batch(recipe, arm))


def total_steps(recipe: Recipe, arm: str) -> int | None:
    """Return the steps of all rounds of an arm together: the length of their one schedule. None if not known."""
    steps = steps_a_round(recipe, arm)
    return None if steps is None else recipe.rounds * steps


def _batch(recipe: Recipe, arm: str) -> int:
    return DistillConfig.parse(recipe.training(arm)).batch_size


def _attempts(recipe: Recipe, arm: str) -> int:
    return SampleConfig.parse({**recipe.sampling(arm), "problems": ""}).n


def _ceil(count: int, each: int) -> int:
    return -(-count // each)
