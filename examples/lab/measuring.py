"""What a model of the lab does on fresh problems: solves them, rewrites attempts, keeps what is right, turns back."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from policies import MOST, SHARES, Writing
from transformers import GenerationConfig, PreTrainedModel
from vocabulary import END, PAD, SPECIAL, VOCABULARY, ids_of, prompt_ids, tokens_of
from world import TURN, World, draw_world, grade

# As the recipes have it.
PLACES, DEPTH = 10, 6
_ROWS = 200
_TOKENS = {i: token for token, i in VOCABULARY.items()}


@dataclass(frozen=True)
class Attempt:
    """A response of a student to a problem."""

    world: World
    text: str

    @property
    def right(self) -> bool:
        return grade(str(self.world), None, self.text) is True

    def prompt(self, form: str) -> list[int]:
        """Return the ids of a prompt in which problem, reference and attempt may be shown."""
        shown = {"reference_solution": self.world.solution, "attempt": self.text}
        return prompt_ids(form, problem=str(self.world), **shown)


def fresh_worlds(seed: int, count: int) -> list[World]:
    """Draw problems of the recipes' size."""
    draws = random.Random(f"measured {seed}")
    return [draw_world(draws, PLACES, DEPTH) for _ in range(count)]


def sampled(model: PreTrainedModel, worlds: Sequence[World], form: str, shown: Sequence[Attempt] = ()) -> list[Attempt]:
    """Sample a response to each problem at temperature 1; `shown` are the attempts that the prompts show."""
    asked = shown or [Attempt(world, "") for world in worlds]
    responses = _generated(model, [attempt.prompt(form) for attempt in asked])
    return [Attempt(attempt.world, response) for attempt, response in zip(asked, responses, strict=True)]


def turning(model: PreTrainedModel, attempts: Sequence[Attempt], form: str) -> tuple[float, float]:
    """Return the mean probability of `!` after right beginnings of the attempts, and after wrong ones."""
    found: dict[bool, list[float]] = {True: [], False: []}
    for attempt in attempts:
        prompt, state = attempt.prompt(form), Writing(attempt.world)
        with torch.no_grad():
            logits = model(torch.tensor([prompt + ids_of(attempt.text)])).logits[0, len(prompt) - 1 :]
        shares = logits.softmax(-1)[:, VOCABULARY[TURN]].tolist()
        for token, share in zip([*tokens_of(attempt.text), None], shares, strict=True):
            found[state.right].append(share)
            state = state.after(token) if token else state
    return _mean(found[True]), _mean(found[False])


def student_figures(model: PreTrainedModel, worlds: Sequence[World]) -> tuple[dict[str, float], list[Attempt]]:
    """Return what a student does, and its own attempts."""
    attempts = sampled(model, worlds, "student")
    rewritten = sampled(model, worlds, "refine-opsd", attempts)
    wrong = [attempt for attempt in attempts if not attempt.right]
    figures = {
        "solves": share_right(attempts),
        "rewrites right": share_right(rewritten),
        "keeps": _kept(attempts, rewritten),
        "solves, shown the reference": share_right(sampled(model, worlds, "vanilla-opsd-q0")),
        "solves, asked to turn back": share_right(sampled(model, worlds, "vanilla-opsd-q30")),
        "turns back, asked for 0.3": turning(model, wrong[:_ROWS], "vanilla-opsd-q30")[1],
    }
    return figures, attempts


def teacher_figures(model: PreTrainedModel, worlds: Sequence[World], attempts: Sequence[Attempt]) -> dict[str, float]:
    """Return what the teacher does; the attempts are the students' own."""
    rewritten = sampled(model, worlds, "refine-opd", attempts)
    right, wrong = ([attempt for attempt in attempts if attempt.right == kind] for kind in (True, False))
    turns = {name: turning(model, wrong[:_ROWS], f"vanilla-opd-{name}") for name in SHARES}
    return {
        "solves": share_right(sampled(model, worlds, "student")),
        "rewrites right": share_right(rewritten),
        "keeps": _kept(attempts, rewritten),
        "solves, asked to turn back": share_right(sampled(model, worlds, "vanilla-opd-q30")),
        "turns back after right beginnings": turning(model, right[:_ROWS], "vanilla-opd-q30")[0],
    } | {f"turns back, asked for {SHARES[name]}": wrongly for name, (_, wrongly) in turns.items()}


def share_right(attempts: Sequence[Attempt]) -> float:
    """Return the share of right responses."""
    return _mean([attempt.right for attempt in attempts])


def _kept(attempts: Sequence[Attempt], rewritten: Sequence[Attempt]) -> float:
    """Return the share of right attempts that were rewritten word for word, without what an earlier `!` took back."""
    pairs = [
        (old.text.rpartition(TURN)[2], new.text) for old, new in zip(attempts, rewritten, strict=True) if old.right
    ]
    return _mean([old == new for old, new in pairs])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(1, len(values))


def _generated(model: PreTrainedModel, prompts: Sequence[list[int]]) -> list[str]:
    """Return a response to each prompt; those of about one length are sampled together."""
    options = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=MOST,
        eos_token_id=VOCABULARY[END],
        pad_token_id=VOCABULARY[PAD],
    )
    order, responses = sorted(range(len(prompts)), key=lambda i: len(prompts[i])), [""] * len(prompts)
    for first in range(0, len(order), _ROWS):
        part = order[first : first + _ROWS]
        length = len(prompts[part[-1]])
        ids = torch.tensor([[VOCABULARY[PAD]] * (length - len(prompts[i])) + prompts[i] for i in part])
        written = model.generate(
            input_ids=ids, attention_mask=(ids != VOCABULARY[PAD]).long(), generation_config=options
        )
        for i, row in zip(part, written[:, length:].tolist(), strict=True):
            responses[i] = "".join(_TOKENS[token] for token in row if _TOKENS[token] not in SPECIAL)
    return responses
