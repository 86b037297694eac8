"""Training along episodes: only what a model wrote counts, each turn in the context that it was written in."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Trd
from pyarrow.parquet import read_table as read_parquet
from support.rows import refined_row, write_set
from support.tiny import (
    CHAT_TEMPLATE,
    END,
    OTHER_END,
    build_model,
    reference_model,
    write_other_form,
    write_tokenizer,
)

from trd_cli.config.training import DistillConfig
from trd_cli.episodes.contexts import Conversation
from trd_cli.models import resolve_model
from trd_cli.progress import SilentProgress
from trd_cli.prompting.rendering import Rendering
from trd_cli.prompting.templates import load_template
from trd_cli.prompting.tokens import Tokenizer
from trd_cli.records import AUTHORS, EPISODE, Trajectory
from trd_cli.stages.distill import read
from trd_cli.training.batches import Example, Weighting, collate, split_step
from trd_cli.training.launch import accelerator_for
from trd_cli.training.stored import Examples
from trd_cli.training.trainer import Trainer
from trd_cli.trajectories.sets import open_sets

# Takes the thinking out of all turns but the last, as templates of reasoning models do.
REWRITING = CHAT_TEMPLATE.replace(
    "{{ message['content'] }}",
    "{{ message['content'].split('</think>')[-1] if message['role'] == 'assistant' else message['content'] }}",
)
GAME = "You are in the hall.\nFind the key."
PLAYED = (("go north", "A kitchen."), ("take key", "You do not see it."), ("open drawer", "A key! You have won."))
ENVIRONMENT, TEMPLATE = AUTHORS.index("environment"), AUTHORS.index("template")
TRAIN = ("--dtype", "float32", "--device", "cpu", "--steps", 1)


@dataclass(frozen=True)
class World:
    """Two models; the second one's chat template rewrites history. Only read."""

    appending: Path
    rewriting: Path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("world")
    made = World(build_model(root / "appending"), build_model(root / "rewriting", seed=1))
    write_tokenizer(made.rewriting, chat_template=REWRITING)
    return made


def tokenizer_of(model: Path) -> Tokenizer:
    return resolve_model(str(model)).tokenizer()


def episode(model: Path, number: int, turns: int = 3, role: str = "student", **changes: Any) -> Trajectory:
    """Return an episode of some turns, in which the player thinks before each command."""
    tokenizer, rendering = tokenizer_of(model), Rendering()
    problem = f"{GAME} Game {number}."
    students = load_template("student", EPISODE).render({"problem": problem})
    played = Conversation(tokenizer, rendering, students)
    first = rendering.token_ids(tokenizer, students)
    for command, observation in PLAYED[:turns]:
        played.act(f"<think>Shall I {command} now?</think>{command}", command, role=role)
        played.observe(observation, valid=True)
    fields = {
        "task": EPISODE,
        "source": "scripted",
        "stage": "rollout",
        "setting": None,
        "parent_id": None,
        "problem": problem,
        "reference_solution": "take key",
        "messages": students,
        "prompt_token_ids": first,
        "student_prompt_token_ids": None,
        **played.columns(),
    }
    return replace(refined_row(number), **{**fields, **changes})


def refined(model: Path, number: int, turns: int = 3) -> Trajectory:
    """Return an episode that a teacher has written after the refinement prompt of OPSD."""
    rollout, tokenizer = episode(model, number), tokenizer_of(model)
    values = {"problem": rollout.problem, "attempt": rollout.response, "reference_solution": "take key"}
    messages = load_template("refine-opsd", EPISODE).render({**values, "reference_answer": ""})
    asked = {"messages": messages, "prompt_token_ids": Rendering().token_ids(tokenizer, messages)}
    given = {"stage": "refined", "setting": "opsd", "parent_id": rollout.trajectory_id}
    return episode(model, number, turns, "teacher", **asked, **given, student_prompt_token_ids=rollout.prompt_token_ids)


def examples_of(model: Path, rows: Sequence[Trajectory], **options: Any) -> Examples:
    """Return the examples that trd distill would make of some rows."""
    with tempfile.TemporaryDirectory() as scratch, tempfile.TemporaryFile() as file:
        source = write_set(Path(scratch) / "rows", [rows])
        own = {"model": str(model), "device": "cpu", "setting": "opsd", "inputs": (str(source),)}
        config = DistillConfig.parse(own | options)
        return read(config, open_sets([str(source)]), resolve_model, SilentProgress(), file)[2]


def notes_of(examples: Examples) -> str:
    return "\n".join(examples.about["notes"])


def actions(tokenizer: Tokenizer, parts: Sequence[Example]) -> list[str]:
    """Return the texts of the tokens that count, one turn after another."""
    counting = np.concatenate([part.response_ids[part.scored] for part in parts]).tolist()
    ends = [0, *(place + 1 for place, token in enumerate(counting) if token == END), len(counting)]
    return [text for start, end in pairwise(ends) if (text := tokenizer.decode(counting[start:end]))]


THOUGHT = [f"<think>Shall I {command} now?</think>{command}" for command, _ in PLAYED]


# Tokens that count


def test_an_episode_whose_template_only_appends_is_an_ordinary_row_of_which_its_actions_count(world: World) -> None:
    row = episode(world.appending, 1)
    [made] = examples_of(world.appending, [row])
    assert made.parts == (made,)
    assert made.response_ids.tolist() == [*row.response_token_ids]
    assert made.student_prompt.tolist() == row.prompt_token_ids
    by_models = [place for place, code in enumerate(row.author) if code not in (ENVIRONMENT, TEMPLATE)]
    assert made.scored.tolist() == by_models
    assert actions(tokenizer_of(world.appending), [made]) == THOUGHT
    assert (made.response_ids[made.scored] == END).sum() == 3, "the student learns to end each turn"


def test_the_teacher_reads_its_own_view_of_the_game_along_y_o_and_the_refinement_prompt_along_y_r(world: World) -> None:
    tokenizer, rows = tokenizer_of(world.appending), [episode(world.appending, 1)]
    [along_y_o] = examples_of(world.appending, rows)
    assert "take key" in tokenizer.decode(along_y_o.teacher_prompt.tolist())
    assert "take key" not in tokenizer.decode(along_y_o.student_prompt.tolist())
    [opd] = examples_of(world.appending, rows, setting="opd", teacher=str(world.appending))
    assert opd.teacher_prompt.tolist() == opd.student_prompt.tolist(), "without the oracle's commands"
    row = refined(world.appending, 1)
    [along_y_r] = examples_of(world.appending, [row], setting=None)
    assert along_y_r.teacher_prompt.tolist() == [*row.prompt_token_ids]
    assert along_y_r.student_prompt.tolist() == [*row.student_prompt_token_ids]
    assert actions(tokenizer, [along_y_r]) == THOUGHT


def test_masks_ends_of_turn_and_the_head_of_a_response_are_as_in_any_row(world: World) -> None:
    tokenizer, row = tokenizer_of(world.appending), episode(world.appending, 1)
    [without_ends] = examples_of(world.appending, [row], eos=False)
    assert END not in without_ends.response_ids[without_ends.scored]
    assert actions(tokenizer, [without_ends]) == ["".join(THOUGHT)]
    masked = tokenizer.encode("k")[0]
    [with_mask] = examples_of(world.appending, [row], mask_tokens=("k",))
    assert masked not in with_mask.response_ids[with_mask.scored]
    assert masked in with_mask.response_ids
    [head] = examples_of(world.appending, [row], max_response_tokens=row.turns[1].end)
    assert actions(tokenizer, [head]) == THOUGHT[:2]


def test_the_end_of_every_turn_is_one_that_the_student_knows(world: World, tmp_path: Path) -> None:
    teacher = write_other_form(build_model(tmp_path / "teacher", seed=2))
    row = refined(teacher, 1)
    ends = [turn.end - 1 for turn in row.turns]
    assert [row.response_token_ids[place] for place in ends] == [OTHER_END] * 3
    along = {"setting": None, "teacher": str(teacher)}
    [made] = examples_of(world.appending, [row], **along)
    assert made.response_ids[ends].tolist() == [END] * 3
    assert set(ends) <= {*made.scored.tolist()}
    assert actions(tokenizer_of(world.appending), [made]) == THOUGHT
    [without] = examples_of(world.appending, [row], eos=False, **along)
    assert not {*ends} & {*without.scored.tolist()}


def test_an_episode_that_does_not_fit_and_one_that_failed_are_left_out_and_counted(world: World) -> None:
    short, long = (episode(world.appending, number, turns) for number, turns in ((1, 1), (2, 3)))
    limit = max(len(row.prompt_token_ids) + len(row.response_token_ids) for row in (short, long)) - 1
    failed = episode(world.appending, 3, error="the game crashed", response_token_ids=None, author=None, turns=None)
    made = examples_of(world.appending, [short, long, failed], max_length=limit)
    assert [each.trajectory_id for each in made] == [short.trajectory_id]
    assert "left out 1 of 3 rows: problem and response are longer" in notes_of(made)
    assert "left out 1 of 3 rows: no response" in notes_of(made)


def gradient(model: Path, rows: Sequence[Trajectory], **options: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return the loss of one step along some rows and its gradient by each weight."""
    examples = examples_of(model, rows, **options)
    ref = resolve_model(str(model))
    config = DistillConfig.parse({"dtype": "float32", "device": "cpu", **options})
    trainer = Trainer(config, ref, ref, accelerator_for(config))
    weighting = Weighting.of([*examples], "sequence")
    losses = []
    for group in split_step([*examples], 4096).groups:
        loss, _ = trainer.step(collate(group, weighting))
        loss.backward()
        losses.append(loss.detach())
    return torch.stack(losses).sum(), [weight.grad for weight in trainer.step.student.parameters()]


@pytest.mark.parametrize("author", [TEMPLATE, ENVIRONMENT])
def test_another_token_of_the_game_or_the_template_that_nothing_is_read_after_changes_no_bit(
    world: World, author: int
) -> None:
    row = episode(world.appending, 1)
    # The last token of the head is a target and nothing else.
    place = [*row.author].index(author, row.turns[0].end)
    others = [*row.response_token_ids[:place], 77, *row.response_token_ids[place + 1 :]]
    (loss, grads), (other_loss, other_grads) = (
        gradient(world.appending, [replace(row, response_token_ids=ids)], max_response_tokens=place + 1)
        for ids in (row.response_token_ids, others)
    )
    assert loss == other_loss > 0
    assert all(map(torch.equal, grads, other_grads))


# The loss, turn by turn


@dataclass(frozen=True)
class Read:
    """Hold what student and teacher read before an action, and the action."""

    student: Sequence[int]
    teacher: Sequence[int]
    action: Sequence[int]


def turns_read(model: Path, row: Trajectory, of_teacher: Sequence[Mapping[str, str]]) -> list[Read]:
    """Return the contexts of each turn, from the chat template alone: an action keeps its ids where it is the last."""
    tokenizer, rendering = tokenizer_of(model), Rendering()
    students = load_template("student", EPISODE).render({"problem": row.problem})
    found: list[Read] = []
    said: list[Mapping[str, str]] = []
    for turn in row.turns:
        contexts = (rendering.token_ids(tokenizer, [*first, *said]) for first in (students, of_teacher))
        action = row.response_token_ids[turn.start : turn.end]
        found.append(Read(*contexts, action))
        said += [
            {"role": "assistant", "content": tokenizer.decode(action)},
            {"role": "user", "content": turn.observation},
        ]
    return found


def naive_losses(model: Path, rows: Sequence[tuple[Trajectory, Sequence[Mapping[str, str]]]]) -> tuple[float, float]:
    """Return forward KL by sequence and by token, from whole logits in each turn's own contexts."""
    network, of_rows = reference_model(model), []
    for row, of_teacher in rows:
        divergences = []
        for turn in turns_read(model, row, of_teacher):
            student, teacher = (
                network(torch.tensor([[*context, *turn.action]])).logits[0, len(context) - 1 : -1].log_softmax(-1)
                for context in (turn.student, turn.teacher)
            )
            divergences.append((teacher.exp() * (teacher - student)).sum(-1))
        of_rows.append(torch.cat(divergences))
    return torch.stack([row.mean() for row in of_rows]).mean().item(), torch.cat(of_rows).mean().item()


def along(model: Path, kind: str) -> list[tuple[Trajectory, Sequence[Mapping[str, str]]]]:
    """Return two episodes, of three turns and of one, each with the messages that the teacher reads first."""
    if kind == "refined":
        return [(row, row.messages) for row in (refined(model, 1), refined(model, 2, 1))]
    template, rows = load_template("vanilla-opsd", EPISODE), (episode(model, 1), episode(model, 2, 1))
    values = {"reference_solution": "take key", "reference_answer": ""}
    return [(row, template.render({"problem": row.problem, **values})) for row in rows]


@pytest.mark.parametrize(
    ("template", "kind"), [("appending", "refined"), ("rewriting", "rollout"), ("rewriting", "refined")]
)
def test_the_loss_by_turn_is_a_naive_computation_s_however_the_step_is_cut(
    world: World, ok: Trd, tmp_path: Path, template: str, kind: str
) -> None:
    model = getattr(world, template)
    rows = along(model, kind)
    source = write_set(tmp_path / "rows", [[row for row, _ in rows]])
    with torch.no_grad():
        by_sequence, by_token = naive_losses(model, rows)
    assert by_sequence != pytest.approx(by_token, rel=1e-3)
    acted = sum(len(turn.action) for each in rows for turn in turns_read(model, *each))
    norms = []
    for reduction, most, loss in (
        ("sequence", 4096, by_sequence),
        ("sequence", 1, by_sequence),
        ("token", 1, by_token),
    ):
        out = tmp_path / f"{reduction}-{most}"
        options = ("--setting", "opsd", "--reduction", reduction, "--max-tokens-per-batch", most)
        ok("distill", source, "--model", model, *TRAIN, *options, "--out", out)
        [line] = map(json.loads, (out / "train.jsonl").read_text().splitlines())
        assert line["loss"] == pytest.approx(loss, rel=1e-4)
        assert (line["trajectories"], line["response_tokens"]) == (2, acted)
        norms.append(line["grad_norm"])
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


@pytest.mark.parametrize("kind", ["rollout", "refined"])
def test_a_turn_whose_history_the_template_rewrites_is_read_as_the_template_writes_it(world: World, kind: str) -> None:
    rows = along(world.rewriting, kind)
    made = examples_of(world.rewriting, [row for row, _ in rows], setting="opsd")
    by_id = {each.trajectory_id: each for each in made}
    for row, of_teacher in rows:
        each = by_id[row.trajectory_id]
        read_by = turns_read(world.rewriting, row, of_teacher)
        found = [(p.student_prompt.tolist(), p.teacher_prompt.tolist(), p.response_ids.tolist()) for p in each.parts]
        assert found == [(list(t.student), list(t.teacher), list(t.action)) for t in read_by]
    parts = [part for each in made for part in each.parts]
    assert len({part.name for part in parts}) == len(parts)
    assert len(made) == 2


def test_a_long_context_of_a_turn_is_cut_at_the_reference_or_its_row_left_out(world: World) -> None:
    row = episode(world.rewriting, 1, reference_solution="take key\n" * 40)
    [whole] = examples_of(world.rewriting, [row])
    limit = max(len(part.student_prompt) + len(part.response_ids) for part in whole.parts) + 150
    [cut] = made = examples_of(world.rewriting, [row], max_length=limit)
    assert "cut the reference in the teacher's context of 1 of 1 row" in notes_of(made)
    assert max(len(part.teacher_prompt) + len(part.response_ids) for part in cut.parts) <= limit
    assert [part.student_prompt.tolist() for part in cut.parts] == [
        part.student_prompt.tolist() for part in whole.parts
    ]


@pytest.mark.parametrize("reduction", ["sequence", "token"])
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_a_row_counts_once_however_its_turns_are_spread(world: World, reduction: str, processes: int) -> None:
    made = [*examples_of(world.rewriting, [episode(world.rewriting, i, 1 + i % 3) for i in range(5)])]
    weighting, found = Weighting.of(made, reduction), Counter()
    split = split_step(made, 300, processes)
    for process in range(processes):
        for group in filter(None, split.mine(process)):
            batch = collate(group, weighting)
            for part, own in zip(group, batch.weights_N.split([len(part.scored) for part in group]), strict=True):
                found[part.trajectory_id] += own.double().sum().item()
                found["tokens"] += len(own)
    tokens = {each.trajectory_id: sum(len(part.scored) for part in each.parts) for each in made}
    assert found.pop("tokens") == sum(tokens.values())
    share = {name: 1 / 5 if reduction == "sequence" else count / sum(tokens.values()) for name, count in tokens.items()}
    assert found == pytest.approx(share, rel=1e-5)


def test_rows_of_several_turns_are_weighed_by_the_perplexity_of_all_of_them(
    world: World, ok: Trd, tmp_path: Path
) -> None:
    rows = [replace(row, verdict="incorrect") for row, _ in along(world.rewriting, "rollout")]
    options = ("--model", world.rewriting, *TRAIN, "--setting", "opsd", "--row-weights", "perplexity")
    ok("distill", write_set(tmp_path / "rows", [rows]), *options, "--out", tmp_path / "c")
    weighed = {each["trajectory_id"]: each for each in read_parquet(tmp_path / "c" / "row_weights.parquet").to_pylist()}
    network = reference_model(world.rewriting)
    for row in rows:
        nll = []
        for turn in turns_read(world.rewriting, row, row.messages):
            with torch.no_grad():
                logits = network(torch.tensor([[*turn.student, *turn.action]])).logits[0, len(turn.student) - 1 : -1]
            nll.append(-logits.log_softmax(-1)[range(len(turn.action)), [*turn.action]])
        expected = torch.cat(nll).mean().exp().item()
        assert weighed[row.trajectory_id]["student_perplexity"] == pytest.approx(expected, rel=1e-4)


def test_the_selfcheck_holds_along_turns(world: World, ok: Trd, tmp_path: Path) -> None:
    source = write_set(tmp_path / "rows", [[row for row, _ in along(world.rewriting, "rollout")]])
    ok("distill", source, "--model", world.rewriting, *TRAIN, "--setting", "opsd", "--selfcheck")
