"""trd refine on episodes: a teacher's commands are replayed in the environment."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import Result
from support.rows import refined_row
from support.sets import by_id, rows_of
from support.tiny import build_model, write_other_form

from trd_cli.config.training import DistillConfig
from trd_cli.episodes.commands import Command, commands_in
from trd_cli.episodes.contexts import Conversation
from trd_cli.episodes.moves import Ask, Reset
from trd_cli.episodes.replay import Replays, Teacher, replay
from trd_cli.models import resolve_model
from trd_cli.progress import SilentProgress
from trd_cli.prompting.rendering import Rendering
from trd_cli.prompting.templates import load_template
from trd_cli.prompting.tokens import ByteTokenizer
from trd_cli.records import AUTHORS, Completion, Environment, Request, Trajectory
from trd_cli.stages.distill import read
from trd_cli.trajectories.sets import open_sets
from trd_cli.worlds.base import Observation, Score, Step, World
from trd_cli.worlds.registry import make

Trd = Callable[..., Result]
# The player begins in the first of four rooms, and the lamp lies in the last.
WORLD = Environment("scripted", "1", '{"rooms": 4}', 2)
ORACLE = ("go east", "go east", "go east", "take lamp")
TOKENIZER = ByteTokenizer()
TEACHER = Teacher(TOKENIZER, Rendering(), load_template("again", "episode"), 3, 30, 4096)
STUDENTS = ({"role": "user", "content": "Find the lamp."},)
TEACHERS = ({"role": "user", "content": "Rewrite what the player did."},)


def test_a_reply_is_read_as_commands_with_their_expected_words() -> None:
    reply = "<think>\ngo up\n</think>\n```\n1. > go east => A blue Room!\n- take lamp\n\n> 2 b\n12 34\nopen do"
    whole = ("go east", "a blue room", "take lamp", "2 b", "12 34", "open do")
    found = commands_in(reply)
    assert found[0] == Command("go east", "A blue Room!")
    assert [each.action for each in found] == [whole[0], *whole[2:]]
    assert [each.action for each in commands_in(reply, is_cut=True)] == [whole[0], *whole[2:-1]]
    assert commands_in("<think>\ngo up\n") == ()
    assert commands_in("go up\n</think>\ngo down", opened=True) == (Command("go down"),)


@pytest.mark.parametrize(
    ("expected", "is_met"),
    [("", True), ("blue room", True), ("a  BLUE, room", True), ("lue room", False), ("room blue", False)],
)
def test_expected_words_stand_in_the_reply_in_a_row(expected: str, is_met: bool) -> None:
    assert Command("look", expected).is_met_by("You are in a blue room. Exits: east.") is is_met


class Cliff:
    """A path that one walks; a jump loses the game. Each time it is begun another bird sings where `has_birds`."""

    def __init__(self, has_birds: bool = False) -> None:
        self._birds, self._has_birds = 0, has_birds

    def reset(self, seed: int) -> str:
        self._birds, self._steps = self._birds + 1, 0
        return "A path leads along a cliff."

    def step(self, action: str) -> Step:
        self._steps += action == "walk"
        song = f" Bird {self._birds} sings." * self._has_birds
        return Step("You fall." if action == "jump" else f"You walk.{song}", done=action == "jump" or self._steps == 2)

    def score(self) -> Score:
        return Score(self._steps / 2, self._steps == 2)


def replayed(*lists: str, place: World | None = None, **changes: object) -> tuple[Trajectory, list[Request]]:
    """Return the row of a teacher that writes these lists in turn, and what it was asked."""
    prompts = [Rendering().token_ids(TOKENIZER, messages) for messages in (TEACHERS, STUDENTS)]
    planned = refined_row(
        *(0,),
        **{"task": "episode", "messages": TEACHERS, "response": None, "response_token_ids": None},
        **{"prompt_token_ids": prompts[0], "student_prompt_token_ids": prompts[1], "environment": WORLD},
        **{"finish_reason": None, "max_tokens": 999},
    )
    teacher, requests = replace(TEACHER, **changes), []
    play = replay(planned, teacher, lambda: Conversation(TOKENIZER, Rendering(), STUDENTS, prompts[1]))
    place, move, replies = place or make(WORLD), next(play), iter(lists)
    while True:
        if isinstance(move, Ask):
            requests.append(move.request)
            text = next(replies)
            ids = [*TOKENIZER.encode(text), TOKENIZER.end_of_turn_id]
            told = Completion(move.request.request_id, text, ids, None, "stop")
        elif isinstance(move, Reset):
            told = Observation(place.reset(WORLD.seed), True, False, False, 0.0)
        else:
            step = place.step(move.action)
            told = Observation(step.text, step.valid, step.done, place.score().solved, place.score().reward)
        try:
            move = play.send(told)
        except StopIteration as end:
            return end.value, requests


def actions(row: Trajectory) -> list[str]:
    return [turn.action for turn in row.turns]


def last_words(request: Request) -> str:
    return request.messages[-1]["content"]


def test_a_list_that_reaches_the_goal_is_an_episode_with_the_environments_own_replies() -> None:
    row, requests = replayed("\n".join(ORACLE))
    assert (row.stop_reason, row.episode_reward, row.error, row.ids_exact) == ("solved", 1.0, None, False)
    assert actions(row) == [*ORACLE]
    assert len(requests) == 1
    world = make(WORLD)
    world.reset(WORLD.seed)
    for turn in row.turns:
        assert turn.observation == world.step(turn.action).text
        assert (turn.role, turn.valid, turn.finish_reason) == ("teacher", True, "stop")


def test_each_commands_tokens_are_its_text_and_the_end_of_a_turn_by_the_teacher_and_all_others_are_not() -> None:
    row, _ = replayed("\n".join(ORACLE))
    owners = [AUTHORS[code] for code in row.author]
    for turn in row.turns:
        ids = row.response_token_ids[turn.start : turn.end]
        assert [*ids] == [*TOKENIZER.encode(turn.action), TOKENIZER.end_of_turn_id]
    spoken = {place for turn in row.turns for place in range(turn.start, turn.end)}
    assert spoken == {place for place, owner in enumerate(owners) if owner == "teacher"}
    environment = TOKENIZER.decode(
        [t for t, o in zip(row.response_token_ids, owners, strict=True) if o == "environment"]
    )
    assert environment == "".join(turn.observation for turn in row.turns[:-1])
    assert set(owners) == {"teacher", "environment", "template"}


def test_a_refused_command_is_taken_back_and_the_teacher_goes_on_from_there() -> None:
    row, requests = replayed("go east\nopen the door\ngo west", "go east\ngo east\ntake lamp")
    assert (row.stop_reason, actions(row)) == ("solved", [*ORACLE])
    assert all(turn.valid for turn in row.turns)
    assert [*map(len, (request.messages for request in requests))] == [1, 3]
    assert requests[1].messages[1]["content"] == "go east\nopen the door\ngo west"
    assert "> open the door\nThat is no command here." in last_words(requests[1])
    assert "refused" in last_words(requests[1])
    assert "go west" not in last_words(requests[1]), "what comes after it was not taken"
    assert len({request.seed for request in requests}) == 2


def test_a_command_that_loses_the_game_is_taken_back_and_stays_where_the_budget_ends() -> None:
    row, requests = replayed("walk\njump", "walk", place=Cliff())
    assert (row.stop_reason, actions(row)) == ("solved", ["walk", "walk"])
    assert "> jump\nYou fall." in last_words(requests[1])
    assert "lost" in last_words(requests[1])
    row, _ = replayed("walk\njump", place=Cliff(), replays=1)
    assert (row.stop_reason, row.episode_reward, actions(row)) == ("failed", 0.5, ["walk", "jump"])


def test_an_environment_that_answers_the_same_commands_in_another_way_makes_an_error_row() -> None:
    row, _ = replayed("walk\njump", "walk", place=Cliff(has_birds=True))
    assert row.error == "the environment answered the same commands in another way"
    assert row.turns is None


def test_a_teacher_whose_expected_words_do_not_come_is_asked_again_and_the_command_stays() -> None:
    row, requests = replayed("go east => a lamp lies here\ntake lamp", "go east\ngo east\ntake lamp")
    assert (row.stop_reason, actions(row)) == ("solved", [*ORACLE])
    assert "a lamp lies here" in last_words(requests[1])
    assert "> take lamp" not in last_words(requests[1])


def test_a_list_that_ends_before_the_goal_is_gone_on_with_and_only_new_replies_are_told() -> None:
    row, requests = replayed("go east", "go east", "go east\ntake lamp")
    assert (row.stop_reason, actions(row)) == ("solved", [*ORACLE])
    assert [last_words(request).count("> go east") for request in requests[1:]] == [1, 1]
    assert "not reached" in last_words(requests[1])


def test_the_budget_of_lists_ends_an_episode_and_a_refused_command_stays_then() -> None:
    row, requests = replayed("go east", "jump", "go east\njump\ntake lamp")
    assert (row.stop_reason, row.episode_reward, len(requests)) == ("replays", 0.0, 3)
    assert actions(row) == ["go east", "go east", "jump"]
    assert [turn.valid for turn in row.turns] == [True, True, False]
    assert replayed("go east", replays=1)[0].stop_reason == "replays"


def test_turns_and_the_teachers_window_end_an_episode() -> None:
    row, _ = replayed("\n".join(["look"] * 9), max_turns=3)
    assert (row.stop_reason, len(row.turns)) == ("turns", 3)
    row, _ = replayed("\n".join(["look"] * 99), max_length=600)
    assert row.stop_reason == "tokens"
    assert len(row.prompt_token_ids) + len(row.response_token_ids) <= 600
    assert replayed("look", "look", max_length=200)[0].stop_reason == "tokens"


def test_a_teacher_that_writes_no_command_makes_an_error_row() -> None:
    row, requests = replayed("", "<think>hm", "\n\n")
    assert (row.error, row.turns, len(requests)) == ("the teacher wrote no command", None, 3)
    assert "no command" in last_words(requests[1])


def test_a_planned_row_brings_all_that_its_play_needs_so_that_rows_that_are_never_played_hold_nothing() -> None:
    prompt = Rendering().token_ids(TOKENIZER, STUDENTS)
    rollout = replace(refined_row(0), messages=STUDENTS, prompt_token_ids=prompt, environment=WORLD)
    planned = Replays(TEACHER, TOKENIZER, Rendering()).planned(
        replace(refined_row(0), messages=TEACHERS, student_prompt_token_ids=prompt), rollout
    )
    play = Replays(TEACHER, TOKENIZER, Rendering()).play(planned)
    assert isinstance(next(play), Reset)
    asked = play.send(Observation("A hall.", True, False, False, 0.0))
    assert isinstance(asked, Ask)
    assert asked.request.messages == TEACHERS


# The command. The student is the scripted engine, and so is the teacher, which has the environment's oracle.
N = 8


@pytest.fixture(scope="module")
def rollouts(ok: Trd, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return episodes of a student that reaches no goal, verified."""
    out = tmp_path_factory.mktemp("episodes") / "y_o"
    env = ("--env", f"scripted:n={N},rooms=5", "--env-workers", 1, "--max-turns", 4, "--engine-arg", "accuracy=0")
    ok("sample", "-m", "scripted", *env, "--out", out)
    ok("verify", out, "--workers", 1)
    assert {(row.stop_reason, row.verdict) for row in rows_of(out)} == {("turns", "incorrect")}
    return out


OPSD = ("--setting", "opsd", "--env-workers", 1)
ORACLES = (*OPSD, "--engine-arg", "accuracy=1")


@pytest.fixture(scope="module")
def refined(ok: Trd, rollouts: Path) -> Path:
    """Return the rollouts as the oracle refines them, verified."""
    out = rollouts.parent / "y_r"
    ok("refine", rollouts, *ORACLES, "--out", out)
    ok("verify", out, "--workers", 1)
    return out


def test_the_oracle_as_teacher_makes_every_failed_episode_a_solved_one(rollouts: Path, refined: Path) -> None:
    parents, rows = by_id(rollouts), rows_of(refined)
    assert sorted(row.parent_id for row in rows) == sorted(parents)
    for row in rows:
        parent = parents[row.parent_id]
        assert (row.stop_reason, row.episode_reward, row.verdict, row.grader) == (
            *("solved", 1.0, "correct"),
            "environment",
        )
        assert (row.stage, row.setting, row.error, row.ids_exact) == ("refined", "opsd", None, False)
        assert actions(row) == parent.reference_solution.splitlines()
        assert row.environment == parent.environment
        assert (row.problem_id, row.source, row.task) == (parent.problem_id, "scripted", "episode")
        assert row.student_prompt_token_ids == parent.prompt_token_ids
    assert rows[0].trajectory_id not in parents


def test_the_teacher_reads_the_episode_and_with_opsd_the_oracles_commands(
    rollouts: Path, refined: Path, tmp_path: Path, ok: Trd
) -> None:
    parents = by_id(rollouts)
    ok("refine", rollouts, "--setting", "opd", "--teacher", "scripted", "--out", tmp_path / "opd")
    for directory, shows in ((refined, True), (tmp_path / "opd", False)):
        for row in rows_of(directory):
            parent, [message] = parents[row.parent_id], row.messages
            assert parent.problem in message["content"]
            assert parent.response in message["content"]
            assert parent.response.startswith(f"> {parent.turns[0].action}\n{parent.turns[0].observation}")
            assert (f"\n{parent.reference_solution}\n" in message["content"]) == shows
            assert message["content"] in TOKENIZER.decode(row.prompt_token_ids)


def test_every_observation_is_what_the_environment_says_to_the_same_commands(
    rollouts: Path, tmp_path: Path, ok: Trd
) -> None:
    ok("refine", rollouts, *OPSD, "--engine-arg", "accuracy=0.3", "--out", tmp_path / "y_r")
    rows = rows_of(tmp_path / "y_r")
    assert {"solved", "replays"} <= {row.stop_reason for row in rows}
    for row in rows:
        world = make(row.environment)
        assert world.reset(row.environment.seed) == row.problem
        steps = [world.step(action) for action in actions(row)]
        assert [(step.text, step.valid) for step in steps] == [(t.observation, t.valid) for t in row.turns]
        assert world.score().reward == row.episode_reward
        assert [turn.valid for turn in row.turns[:-1]] == [True] * (len(row.turns) - 1)


def test_more_lists_solve_more_and_rows_of_other_limits_are_others(rollouts: Path, tmp_path: Path, ok: Trd) -> None:
    solved, names = [], set()
    for number in (1, 2, 6):
        out = tmp_path / f"{number}"
        log = tmp_path / f"{number}.log"
        script = ("--engine-arg", "accuracy=0.3", "--engine-arg", f"log={log}")
        ok("refine", rollouts, *OPSD, "--replays", number, *script, "--out", out)
        rows = rows_of(out)
        solved.append(sum(row.stop_reason == "solved" for row in rows))
        asked = Counter(line.partition(":")[0] for line in log.read_text().splitlines())
        assert max(asked.values()) <= number
        names |= asked.keys()
    assert solved == sorted(solved)
    assert solved[0] < solved[-1]
    assert len(names) == 3 * N


def test_a_refinement_whose_engine_crashes_goes_on_to_the_same_rows(
    rollouts: Path, tmp_path: Path, trd: Trd, ok: Trd
) -> None:
    command = ("refine", rollouts, *OPSD, "--shard-rows", 1, "--engine-arg", "accuracy=0.5")
    log = tmp_path / "log"
    ok(*command, "--engine-arg", f"log={log}", "--out", tmp_path / "whole")
    lists = len(log.read_text().splitlines())
    assert lists > N
    crashing = (*command, "--engine-arg", f"crash_after={lists - 1}", "--out", tmp_path / "y_r")
    assert trd(*crashing).exit_code == 1
    assert 0 < len(rows_of(tmp_path / "y_r")) < N
    ok(*crashing)
    assert by_id(tmp_path / "y_r") == by_id(tmp_path / "whole")


def test_the_attempts_end_is_cut_where_the_prompt_has_no_room(rollouts: Path, tmp_path: Path, ok: Trd) -> None:
    longest = max(len(row.prompt_token_ids) for row in rows_of(rollouts.parent / "y_r"))
    ok("refine", rollouts, *ORACLES, "--max-model-len", longest + 40, "--max-tokens", 100, "--out", tmp_path / "y_r")
    parents, rows = by_id(rollouts), rows_of(tmp_path / "y_r")
    cut = [row for row in rows if row.attempt_tokens_trimmed]
    assert cut
    for row in cut:
        content, attempt = row.messages[0]["content"], parents[row.parent_id].response
        assert attempt not in content
        assert attempt[:40] in content
        assert parents[row.parent_id].reference_solution in content


def test_an_environment_that_fails_costs_its_row_alone(tmp_path: Path, ok: Trd, trd: Trd) -> None:
    # The student plays two turns, and the fault comes with the third.
    env = ("--env", "scripted:n=6,rooms=9,fault=raise,at_seed=0,at_turn=3", "--max-turns", 2)
    ok("sample", "-m", "scripted", *env, "--out", tmp_path / "y_o")
    result = trd("refine", tmp_path / "y_o", *ORACLES, "--max-errors", 1, "--out", tmp_path / "y_r")
    assert result.exit_code == 0
    errors = [row for row in rows_of(tmp_path / "y_r") if row.error]
    assert [row.environment.seed for row in errors] == [0]
    assert "scripted environment raises" in errors[0].error


@pytest.mark.parametrize("mode", ["continue", "relay"])
def test_other_modes_refuse_episodes_in_one_line(mode: str, rollouts: Path, tmp_path: Path, trd: Trd) -> None:
    result = trd("refine", rollouts, *ORACLES, "--mode", mode, "--out", tmp_path / "y_r")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "rows of one response each; leave --mode out" in result.stderr
    assert not (tmp_path / "y_r").exists()


def test_episodes_and_other_rows_are_not_refined_in_one_command(
    rollouts: Path, problems: Path, tmp_path: Path, ok: Trd, trd: Trd
) -> None:
    ok("sample", "-m", "scripted", "-p", problems, "--out", tmp_path / "sums")
    result = trd("refine", rollouts, tmp_path / "sums", *ORACLES, "--out", tmp_path / "y_r")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "episodes and rows of other tasks (math)" in result.stderr
    result = trd("refine", tmp_path / "sums", "--setting", "opsd", "--replays", 2, "--out", tmp_path / "y_r")
    assert (result.exit_code, "--replays without episodes" in result.stderr) == (1, True)


def test_a_dry_run_shows_the_first_prompt_and_plays_nothing(rollouts: Path, tmp_path: Path, trd: Trd) -> None:
    result = trd("refine", rollouts, *ORACLES, "--dry-run", "--out", tmp_path / "y_r")
    assert result.exit_code == 0
    assert rows_of(rollouts)[0].response.splitlines()[0] in result.stderr
    assert f"would make {N} rows" in result.stderr
    assert not (tmp_path / "y_r").exists()


def test_the_oracle_writes_in_the_tokens_of_a_real_model_which_is_trained_on_its_commands_alone(
    tmp_path: Path, ok: Trd, trd: Trd, problems: Path
) -> None:
    model = build_model(tmp_path / "model")
    tokenizer = resolve_model(str(model)).tokenizer()
    on_cpu = ("--dtype", "float32", "--device", "cpu")
    env = ("--env", "scripted:n=2,rooms=3", "--max-turns", 2, "--max-tokens", 4)
    ok("sample", "-m", model, *env, *on_cpu, "--out", tmp_path / "y_o")
    scripted = ("--engine", "scripted", "--engine-arg", "accuracy=1", "--max-tokens", 200)
    ok("refine", tmp_path / "y_o", "--setting", "opsd", *scripted, "--out", tmp_path / "y_r")
    rows = by_id(tmp_path / "y_r")
    assert {row.stop_reason for row in rows.values()} == {"solved"}
    # A teacher with another chat template and end of a turn writes the same episodes, in the student's form.
    other = write_other_form(build_model(tmp_path / "other", seed=1))
    by_other = ("refine", tmp_path / "y_o", "--setting", "opd", "--teacher", other, *scripted)
    ok(*by_other, "--out", tmp_path / "of_other")
    written = {row.parent_id: (row.response_token_ids, row.author) for row in rows.values()}
    assert {row.parent_id: (row.response_token_ids, row.author) for row in rows_of(tmp_path / "of_other")} == written
    config = DistillConfig.parse({"model": str(model), "device": "cpu", "inputs": (str(tmp_path / "y_r"),)})
    sets = open_sets([str(tmp_path / "y_r")])
    with tempfile.TemporaryFile() as file:
        examples = [*read(config, sets, resolve_model, SilentProgress(), file)[2]]
    assert len(examples) == 2
    for example in examples:
        row = rows[example.trajectory_id]
        assert example.response_ids.tolist() == [*row.response_token_ids]
        assert example.teacher_prompt.tolist() == [*row.prompt_token_ids]
        assert example.student_prompt.tolist() == [*row.student_prompt_token_ids]
        scored = [place for turn in row.turns for place in range(turn.start, turn.end)]
        assert example.scored.tolist() == scored
        assert tokenizer.decode(example.response_ids[scored].tolist()) == "".join(actions(row))
    result = trd("diagnose", tmp_path / "y_o", tmp_path / "y_r", "--device", "cpu", "--out", tmp_path / "d")
    assert (result.exit_code, (tmp_path / "d").exists()) == (1, False)
    assert f"error: episodes in {tmp_path / 'y_o'}" in result.stderr
    result = trd("sample", "-m", model, "-p", problems, "--engine", "scripted", "--out", tmp_path / "sums")
    assert "--engine scripted with --model" in result.stderr
    # Where the student is gone, only a teacher that writes as it does may refine.
    model.rename(tmp_path / "twin")
    result = trd(*by_other, "--out", tmp_path / "gone")
    assert (result.exit_code, result.stderr.count("\n"), (tmp_path / "gone").exists()) == (1, 1, False)
    assert "writes a conversation otherwise than the student" in result.stderr
    twin = ("--teacher", tmp_path / "twin")
    ok("refine", tmp_path / "y_o", "--setting", "opd", *twin, *scripted, "--out", tmp_path / "of_twin")
    assert {row.parent_id: (row.response_token_ids, row.author) for row in rows_of(tmp_path / "of_twin")} == written


OWN = """
class World:
    def reset(self, seed):
        return "Say friend and enter."

    def step(self, action):
        from trd_cli.worlds.base import Step

        self.is_in = action == "friend"
        return Step("The doors open." if self.is_in else "Nothing happens.", done=self.is_in)

    is_in = False

    def score(self):
        from trd_cli.worlds.base import Score

        return Score(float(self.is_in), self.is_in)

    def oracle(self):
        return ["friend"]
"""


def test_episodes_of_an_environment_that_is_another_one_now_are_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ok: Trd, trd: Trd
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gates.py").write_text(OWN)
    ok("sample", "-m", "scripted", "--env", "gates:World:n=1", "--engine-arg", "accuracy=0", "--out", "y_o")
    ok("refine", "y_o", *ORACLES, "--out", "y_r")
    assert [row.stop_reason for row in rows_of(tmp_path / "y_r")] == ["solved"]
    (tmp_path / "gates.py").write_text(OWN + "# anew")
    result = trd("refine", "y_o", *ORACLES, "--out", "again")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "the episode belongs to gates:World" in result.stderr
    assert not (tmp_path / "again").exists()
