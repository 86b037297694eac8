"""Draw rows to train on: a prompt as trd renders it, a response, and what should come at each of its places.

A row is drawn in one of the forms of `prompts/`. Its response is the policy's own, or an attempt with faults of any
kind, so that the model learns what to say after wrong beginnings too: no token of a response is learnt because it was
written, only because the policy would have said it there.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from policies import SHARES, Expert, Next, Novice, Policy, any_novice, targets, write
from vocabulary import VOCABULARY, prompt_ids
from world import TURN, World, draw_world

# The forms of prompts, each with its share of the rows. Those of `SEEING` show the reference.
FORMS = {"student": 0.12, "vanilla-opd": 0.3, "vanilla-opsd": 0.26, "refine-opd": 0.18, "refine-opsd": 0.14}
SEEING = ("vanilla-opsd", "refine-opsd")
_PLACES, _DEPTHS = (6, 7, 8, 9, 10, 10, 10, 11, 12, 12), (3, 4, 5, 6, 6, 6, 7, 8)
_NEAR_TIES = 0.25
# Batches whose rows are drawn together and sorted by length, so that little is padding.
POOL = 8


@dataclass(frozen=True)
class Row:
    """A prompt's ids, a response, and the next token's probabilities before each of its tokens and after the last."""

    prompt: list[int]
    response: list[str]
    targets: list[Next]


@dataclass(frozen=True)
class Batch:
    """Ids of rows (rows, length), padded behind; the places (N,) that count, in all ids, and their targets (N, V)."""

    ids: torch.Tensor
    places: torch.Tensor
    targets: torch.Tensor


def batch_at(name: str, step: int, rows: int, forms: Mapping[str, float], novice: Novice | None) -> list[Batch]:
    """Return the batches of the pool that begins at `step`, a multiple of `POOL`: the same for the same arguments."""
    draws = random.Random(f"{name} {step}")
    chosen = draws.choices([*forms], [*forms.values()], k=POOL * rows)
    drawn = sorted((draw_row(draws, form, novice) for form in chosen), key=lambda r: len(r.prompt) + len(r.response))
    batches = [_collated(drawn[first : first + rows]) for first in range(0, len(drawn), rows)]
    draws.shuffle(batches)
    return batches


def draw_row(draws: random.Random, form: str, novice: Novice | None = None) -> Row:
    """Draw a row in a form. Where it shows no reference, `novice`, if any, is the policy, and else the expert."""
    world = draw_world(draws, draws.choice(_PLACES), draws.choice(_DEPTHS), draws.random() < _NEAR_TIES)
    shown = {"problem": str(world), "reference_solution": world.solution}
    policy: Policy = Expert()
    if form.startswith("vanilla"):
        share = draws.choice([*SHARES])
        form, policy = f"{form}-{share}", Expert(SHARES[share])
    elif form.startswith("refine"):
        shown["attempt"] = "".join(write(_author(draws), world, draws))
    if novice is not None and not form.startswith(SEEING):
        return _row(form, shown, novice, world, _twice(draws, novice, world))
    own = draws.random() < (0.8 if form.startswith("refine") else 0.5)
    return _row(form, shown, policy, world, write(policy if own else any_novice(draws), world, draws))


def _author(draws: random.Random) -> Policy:
    """Draw who wrote an attempt: mostly a novice, at times an expert that turns back."""
    return any_novice(draws) if draws.random() < 0.85 else Expert(draws.choice((0.1, 0.3, 0.6)))


def _twice(draws: random.Random, novice: Novice, world: World) -> list[str]:
    """Return a novice's response; at times it is cut and begun anew, for a novice must know how to go on from `!`."""
    response = write(novice, world, draws)
    if draws.random() < 0.3:
        return [*response[: draws.randrange(len(response) + 1)], TURN, *write(novice, world, draws)]
    return response


def _row(form: str, shown: Mapping[str, str], policy: Policy, world: World, response: list[str]) -> Row:
    return Row(prompt_ids(form, **shown), response, targets(policy, world, response))


def _collated(rows: list[Row]) -> Batch:
    length = max(len(row.prompt) + len(row.response) for row in rows)
    ids = torch.full((len(rows), length), VOCABULARY["<pad>"])
    places, found = [], []
    for number, row in enumerate(rows):
        whole = [*row.prompt, *(VOCABULARY[token] for token in row.response)]
        ids[number, : len(whole)] = torch.tensor(whole)
        first = number * length + len(row.prompt) - 1
        places += range(first, first + len(row.targets))
        found += row.targets
    wanted = torch.zeros(len(places), len(VOCABULARY))
    cells = [(n, VOCABULARY[token], share) for n, shares in enumerate(found) for token, share in shares.items()]
    numbers, tokens, shares = zip(*cells, strict=True)
    wanted[list(numbers), list(tokens)] = torch.tensor(shares)
    return Batch(ids, torch.tensor(places), wanted)
