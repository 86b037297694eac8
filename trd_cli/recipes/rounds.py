"""Count what the rounds of a recipe are made of: problems and optimiser steps of a round, and steps of all rounds.

A round takes a slice of the problems, `n` attempts at each, and trains on `batch_size` rows a step. The rows that
[sample] or a subset will leave out are not known beforehand. Where a recipe does not give the steps, they count too.
"""

from __future__ import annotations

import math
from fractions import Fraction

from trd_cli.config.commands import MakeConfig
from trd_cli.config.generating import SampleConfig
from trd_cli.config.training import DistillConfig
from trd_cli.hub.fetching import local_path
from trd_cli.recipes.recipe import Recipe, Source
from trd_cli.recipes.sections import PROBLEMS_FILE
from trd_cli.records import EPISODE
from trd_cli.trajectories.shards import PROBLEM_SCHEMA, shard_info
from trd_cli.worlds.spec import Spec


def known_problems(recipe: Recipe, source: Source | None = None) -> int | None:
    """Return the number of problems or episodes, None where it is not known before the set is made.

    That is so for an imported set, and for one that is made by task. Raises InputError for a file without problems.
    """
    if (source or recipe.sources[0]) == "episodes":
        return Spec.parse(recipe.episodes.env).n
    (kind, value), *_ = recipe.problems.items()
    if kind == "file":
        return shard_info(local_path(value), PROBLEM_SCHEMA).rows
    if kind != "make":
        return None
    config = MakeConfig.parse({**value, "out": PROBLEMS_FILE})
    return config.n if config.kind == "arithmetic" else None


def problems_a_round(recipe: Recipe, arm: str, source: Source | None = None) -> int | None:
    """Return the number of problems or episodes of a round, None where each round has all."""
    source = source or recipe.sources[0]
    if recipe.steps_per_round is None:
        return recipe.problems_per_round if source == "problems" else recipe.episodes.per_round
    rows = recipe.steps_per_round * _batch(recipe, arm) * share_of(recipe, arm, source)
    return math.ceil(rows / _attempts(recipe, arm, source))


def share_of(recipe: Recipe, arm: str, source: Source) -> Fraction:
    """Return the share of a step's rows that an arm takes from a source: all, or what its mix gives to the names.

    Names that are not the environment's are those of problems.
    """
    if len(recipe.sources) == 1:
        return Fraction(1)
    mix = {name: Fraction(str(share)) for name, share in DistillConfig.parse(recipe.training(arm)).mix.items()}
    of_episodes = sum(mix.get(name, Fraction(0)) for name in (EPISODE, Spec.parse(recipe.episodes.env).name))
    share = of_episodes / sum(mix.values())
    return share if source == "episodes" else 1 - share


def steps_a_round(recipe: Recipe, arm: str) -> int | None:
    """Return the optimiser steps of a round (at most, if `steps_per_round` does not set them), None if not known."""
    if recipe.steps_per_round is not None:
        return recipe.steps_per_round
    rows = 0
    for source in recipe.sources:
        problems = problems_a_round(recipe, arm, source) or known_problems(recipe, source)
        if problems is None:
            return None
        rows += problems * _attempts(recipe, arm, source)
    epochs = DistillConfig.parse(recipe.training(arm)).epochs
    return epochs * math.ceil(rows / _batch(recipe, arm))


def total_steps(recipe: Recipe, arm: str) -> int | None:
    """Return the steps of all rounds of an arm together: the length of their one schedule. None if not known."""
    steps = steps_a_round(recipe, arm)
    return None if steps is None else recipe.rounds * steps


def _batch(recipe: Recipe, arm: str) -> int:
    return DistillConfig.parse(recipe.training(arm)).batch_size


def sampling_of(recipe: Recipe, arm: str | None = None, source: Source | None = None) -> SampleConfig:
    """Return how rollouts are sampled from a source, before the graph fills in models and files."""
    is_played = (source or recipe.sources[0]) == "episodes"
    read = {"env": recipe.episodes.env} if is_played else {"problems": PROBLEMS_FILE}
    return SampleConfig.parse({**recipe.sampling(arm, source), **read})


def _attempts(recipe: Recipe, arm: str, source: Source) -> int:
    return sampling_of(recipe, arm, source).n
