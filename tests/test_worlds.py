"""Environments play episodes in worker processes that can be killed; the same seed gives the same episode.

Not covered: limits of memory on systems that do not enforce RLIMIT_AS, as macOS.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest
from click.testing import Result
from support.children import start_child
from support.sets import rows_of

from trd_cli import keeper
from trd_cli.errors import InputError
from trd_cli.extras import version_of
from trd_cli.records import Environment
from trd_cli.trajectories.shards import write_shard
from trd_cli.worlds.base import Failure, Observation, Oracle
from trd_cli.worlds.registry import KINDS
from trd_cli.worlds.scratch import Scratch, keep_newest
from trd_cli.worlds.scripted import FAULTS
from trd_cli.worlds.spec import Made, Spec, problems
from trd_cli.worlds.workers import Limits, Workers

Trd = Callable[..., Result]
ROOT = Path(__file__).parent.parent

with_textworld = pytest.mark.skipif(find_spec("textworld") is None, reason="the extra worlds is not installed")
with_textarena = pytest.mark.skipif(find_spec("textarena") is None, reason="the extra worlds is not installed")


def environments(text: str) -> list[Environment]:
    return Spec.parse(text).environments()


def play(
    workers: Workers, worlds: Sequence[Environment], actions: Sequence[Sequence[str]]
) -> list[list[Observation | Failure]]:
    """Play episodes side by side; return what each saw, from its start to its last action or its failure."""
    seen: list[list[Observation | Failure]] = [[] for _ in worlds]
    left = [list(each) for each in actions]
    for i, world in enumerate(worlds):
        workers.start(i, world)
    open_ = set(range(len(worlds)))
    while open_:
        for i, result in workers.ready():
            seen[i].append(result)
            if isinstance(result, Failure) or not left[i]:
                open_.remove(i)
            else:
                workers.step(i, left[i].pop(0))
    return seen


def ask_oracle(workers: Workers, key: int) -> Oracle:
    workers.oracle(key)
    ((_, result),) = workers.ready()
    return result


def solutions(made: Sequence[Made]) -> list[list[str]]:
    return [each.problem.reference_solution.split("\n") for each in made]


# The scripted world, and workers


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    with Workers(1) as workers:
        yield workers


def test_the_oracle_reaches_the_goal_from_any_state(workers: Workers) -> None:
    (world,) = environments("scripted:rooms=9,n=1,seed=4")
    play(workers, [world], [["go west", "go east", "go east", "sing"]])
    commands = ask_oracle(workers, 0).commands
    for command in commands:
        workers.step(0, command)
        ((_, last),) = workers.ready()
    assert (last.done, last.solved, last.reward, last.valid) == (True, True, 1.0, True)
    assert ask_oracle(workers, 0).commands == ()


def test_an_action_that_the_world_does_not_know_is_not_valid_and_changes_nothing(workers: Workers) -> None:
    (world,) = environments("scripted:n=1")
    (seen,) = play(workers, [world], [["look", "sing", "look"]])
    assert [each.valid for each in seen] == [True, True, False, True]
    assert seen[1].text == seen[3].text
    assert seen[1].text in seen[0].text


@pytest.mark.parametrize(
    ("fault", "seconds", "told"),
    [
        ("hang", 2.0, "the environment gave no answer within 2 s"),
        ("crash", 60.0, "the environment's process was ended by SIGKILL"),
        ("raise", 60.0, "the environment raised RuntimeError: the scripted environment raises here"),
        ("memory", 60.0, "the environment took more memory than it may"),
    ],
)
def test_an_environment_that_fails_costs_its_episode_and_no_other_of_its_worker(
    fault: str, seconds: float, told: str, workers: Workers
) -> None:
    actions = [["look", "go east", "go west", "look", "take lamp"]] * 5
    broken = environments(f"scripted:n=5,fault={fault},at_seed=3,at_turn=2")
    with Workers(1, Limits(seconds, memory=512 << 20)) as limited:
        seen = play(limited, broken, actions)
    whole = play(workers, environments("scripted:n=5"), actions)
    assert seen[3] == [*whole[3][:2], Failure(told)]
    assert [each for i, each in enumerate(seen) if i != 3] == [each for i, each in enumerate(whole) if i != 3]


def test_every_fault_of_the_scripted_world_is_tested() -> None:
    (mark,) = test_an_environment_that_fails_costs_its_episode_and_no_other_of_its_worker.pytestmark
    assert {fault for fault, *_ in mark.args[1]} | {"none"} == set(FAULTS)


def test_a_game_that_cannot_be_made_has_a_reason_in_place_of_its_problem() -> None:
    with Workers(1) as workers:
        made = problems(environments("scripted:n=3,fault=crash,at_seed=1"), workers)
    assert [each.problem is None for each in made] == [False, True, False]
    assert made[1].failure == "the environment's process was ended by SIGKILL"
    assert len({made[0].problem.problem_id, made[2].problem.problem_id}) == 2


def test_a_worker_that_something_else_ends_costs_no_episode_anything() -> None:
    worlds, before = environments("scripted:n=3"), {each.pid for each in psutil.Process().children()}
    with Workers(1) as ours:
        undisturbed = play(ours, worlds, [["go east", "go west", "go west", "look"]] * 3)
        play(ours, worlds, [["go east", "go west"]] * 3)
        (child,) = (each for each in psutil.Process().children() if each.pid not in before)
        child.kill()
        child.wait()
        after = []
        for action in ("go west", "look"):
            for i in range(3):
                ours.step(i, action)
            found: dict[object, object] = {}
            while len(found) < 3:
                found.update(ours.ready())
            after.append([found[i] for i in range(3)])
    assert after == [[seen[3] for seen in undisturbed], [seen[4] for seen in undisturbed]]


def test_an_episode_may_begin_anew(workers: Workers) -> None:
    (world,) = environments("scripted:n=1")
    (first,) = play(workers, [world], [["go east", "go west"]])
    assert play(workers, [world], [["go east", "go west"]]) == [first]


WHERE = """
import tempfile
from trd_cli.worlds.base import Score, Step

class Where:
    def reset(self, seed):
        return tempfile.gettempdir()
    def step(self, action):
        return Step("Here.")
    def score(self):
        return Score(0.0, False)
"""


def gone(pids: Sequence[int], seconds: float = 30.0) -> bool:
    """Return whether all processes end within that time; a zombie has ended."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        left = [pid for pid in pids if psutil.pid_exists(pid)]
        if all(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE for pid in left):
            return True
        time.sleep(0.05)
    return False


HANGING = """
import os, sys
from trd_cli.worlds.spec import Spec
from trd_cli.worlds.workers import Workers

with Workers(2) as workers:
    worlds = Spec.parse("scripted:n=2").environments() + Spec.parse("scripted:n=1,fault=hang,at_turn=1").environments()
    for i, world in enumerate(worlds):
        workers.start(i, world)
    begun = 0
    while begun < 3:
        begun += len(workers.ready())
    workers.step(2, "look")
    print(workers.ready(0.5), flush=True)
    os.kill(os.getpid(), 9)
"""


def test_no_process_and_no_temporary_file_outlives_a_command_that_is_killed(tmp_path: Path) -> None:
    child = start_child(
        [sys.executable, "-c", HANGING], cwd=ROOT, env=os.environ | {"TMPDIR": str(tmp_path)}, stdout=subprocess.PIPE
    )
    below: set[int] = set()
    while child.poll() is None:
        try:
            below |= {each.pid for each in psutil.Process(child.pid).children(recursive=True)}
        except psutil.NoSuchProcess:
            break
        time.sleep(0.02)
    assert child.communicate()[0].decode() == "[]\n", "one of the worlds hangs"
    assert len(below) >= 2
    assert gone(sorted(below))
    assert list(tmp_path.iterdir()) == []


def test_a_command_that_is_killed_before_its_first_episode_leaves_no_temporary_file(tmp_path: Path) -> None:
    program = "import os; from trd_cli.worlds.workers import Workers; Workers(2); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=os.environ | {"TMPDIR": str(tmp_path)}, check=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("is_link", [False, True])
def test_only_a_directory_that_the_workers_made_is_removed(is_link: bool, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    (kept / "below").mkdir(parents=True)
    scratch = Scratch.made()
    scratch.path.rmdir()
    if is_link:
        scratch.path.symlink_to(kept)
    else:
        kept = kept.rename(scratch.path)
    scratch.remove()
    Scratch(tmp_path, scratch.mark).remove()
    assert [each.name for each in kept.iterdir()] == ["below"]
    if is_link:
        scratch.path.unlink()
    else:
        kept.rename(tmp_path / "kept")


@pytest.mark.parametrize(("name", "left"), [("trd-worlds-1", {"game-3", "game-4", "other"}), ("documents", None)])
def test_of_many_games_the_newest_are_kept_where_workers_made_the_directory(
    name: str, left: set[str] | None, tmp_path: Path
) -> None:
    place = tmp_path / name
    names = {"other", *(f"game-{number}" for number in range(5))}
    for each in names:
        (place / each / "files").mkdir(parents=True)
        os.utime(place / each, (0, int(each[-1]) if each != "other" else 0))
    keep_newest(place, "game-*", 2)
    assert {each.name for each in place.iterdir()} == (left or names)


def played_once(count: int) -> tuple[list[int], Path]:
    """Play an episode in each of so many workers, and end them; return their processes, and their directory."""
    before = {each.pid for each in psutil.Process().children()}
    with Workers(count) as workers:
        play(workers, environments(f"where:Where:n={count}"), [["look"]] * count)
        during = [each for each in psutil.Process().children() if each.pid not in before]
        assert len(during) == count
        ((seen,),) = play(workers, environments("where:Where:n=1"), [[]])
        scratch = Path(seen.text)
        assert scratch.is_dir()
    return [each.pid for each in during], scratch


@pytest.fixture
def where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Add an environment that shows its directory for temporary files."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "where.py").write_text(WHERE)


@pytest.mark.usefixtures("where")
def test_no_process_and_no_temporary_file_is_left_by_workers_that_are_closed() -> None:
    processes, scratch = played_once(2)
    assert gone(processes)
    assert not scratch.exists()


@pytest.mark.usefixtures("where")
def test_a_process_of_several_commands_keeps_the_games_that_were_made_until_its_end() -> None:
    keeper.begin()
    (_, scratch), (_, again) = played_once(1), played_once(1)
    assert scratch == again
    assert scratch.is_dir()
    keeper.end()
    assert not scratch.exists()


def test_a_worker_starts_without_torch() -> None:
    program = (
        "import sys, trd_cli.worlds.workers; print({'torch', 'transformers', 'pyarrow', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


# Specifications


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("nowhere", "unknown environment; expected one of scripted, textarena, textworld, or MODULE:FUNCTION"),
        ("scripted:doors=2", "unknown option doors; expected options of scripted with their defaults: rooms=4"),
        ("scripted:rooms=many", "rooms=many; expected a whole number"),
        ("scripted:rooms", "'rooms'; expected NAME or NAME:key=value"),
        ("scripted:n=2,n=3", "'n=3' a second time; expected"),
        ("scripted:n=0", "n=0; expected a number from 1 to 1000000"),
        ("scripted:n=2000000000000000", "n=2000000000000000; expected a number from 1 to 1000000"),
        ("scripted:seed=-1", "seed=-1; expected a number from 0 to "),
        ("scripted:n=2,seed=9223372036854775807", "seed=9223372036854775807; expected a number from 0 to 92233"),
        ("", "--env '': unknown environment"),
        ("textworld:level=high", "level=high; expected a whole number"),
        ("no_such_module:make", "there is no module no_such_module; expected a file of Python code"),
    ],
)
def test_a_specification_that_cannot_be_used_is_refused_in_one_line(text: str, told: str) -> None:
    with pytest.raises(InputError, match=re.escape(told)):
        environments(text)


@pytest.mark.parametrize("text", ["scripted:rooms=1", "scripted:fault=tea"])
def test_a_value_that_an_environment_does_not_take_is_refused_before_any_row(
    text: str, tmp_path: Path, trd: Trd
) -> None:
    done = trd("sample", "-m", "scripted", "--env", text, "--out", tmp_path / "y")
    assert done.exit_code == 1
    *_, last = done.stderr.splitlines()
    assert last.startswith(f"trd sample: error: --env scripted: {text.partition(':')[2]}; expected ")


def test_the_last_seed_that_a_row_can_hold_is_taken_and_the_next_refused() -> None:
    spec = Spec.parse("scripted:n=2,seed=9223372036854775806")
    assert spec.environments()[-1].seed == 2**63 - 1
    with pytest.raises(InputError, match="seed=9223372036854775806"):
        replace(spec, n=3)


def test_episodes_have_consecutive_seeds_and_every_option_in_their_config() -> None:
    worlds = environments("scripted:rooms=7,n=3,seed=40")
    assert [world.seed for world in worlds] == [40, 41, 42]
    assert {world.config for world in worlds} == {
        json.dumps({"at_seed": -1, "at_turn": 0, "fault": "none", "rooms": 7}, sort_keys=True)
    }
    assert environments("textarena:Sudoku-v0,n=1") == environments("textarena:n=1,game=Sudoku-v0")


@pytest.mark.parametrize(
    ("there", "told"), [((), "gcc and make"), (("gcc",), "make"), (("make",), "gcc"), (("gcc", "make"), None)]
)
def test_a_missing_package_is_told_with_the_line_that_installs_it_and_the_programs_it_needs(
    there: tuple[str, ...], told: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in there:
        (tmp_path / name).touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    line = 'no-such-world is not installed; expected the extra worlds; pip install "trd-cli[worlds]"'
    with pytest.raises(InputError) as caught:
        version_of("no-such-world", "worlds")
    end = f", once pip finds {told}, by which it compiles" if told else ""
    assert str(caught.value).endswith(line + end)


def test_an_episode_of_another_version_is_not_played(workers: Workers) -> None:
    (world,) = environments("scripted:n=1")
    ((failure,),) = play(workers, [replace(world, version="0")], [[]])
    assert failure == Failure("the episode belongs to scripted 0; 1 is installed here", refused=True)


# An environment of one's own


def example() -> str:
    """Return the environment that the manual shows."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "trd_cli/worlds/README.md").read_text(), re.DOTALL)
    return code


def test_the_manuals_environment_of_ones_own_is_played_and_graded(
    tmp_path: Path, ok: Trd, trd: Trd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "guess.py").write_text(example())
    ok("sample", "-m", "scripted", "--env", "guess:Guess:most=20,n=8", "--engine-arg", "accuracy=0.5", "--out", "y")
    ok("verify", "y", "--audit", 1)
    rows = rows_of(tmp_path / "y")
    assert {row.verdict for row in rows} == {"correct"}
    assert {row.environment.name for row in rows} == {row.source for row in rows} == {"guess:Guess"}
    (tmp_path / "guess.py").write_text(example() + "# Changed.\n")
    told = ok("verify", "y", "--audit", 1).stderr
    assert told.count("not played again: the episode belongs to guess:Guess ") == 1
    assert "cannot tell 8" in told
    assert {row.reference_solution for row in rows} <= {str(number) for number in range(1, 21)}
    for text, told in (("guess:Guest", "no function Guest"), ("guess:Guess:least=2", "unexpected keyword argument")):
        done = trd("sample", "-m", "scripted", "--env", text, "--out", "z")
        assert (done.exit_code, told in done.stderr.splitlines()[-1]) == (1, True), done.stderr
        assert done.stderr.splitlines()[-1].count("guess:Gues") == 1


COUNTED = """
from pathlib import Path
from trd_cli.worlds.base import Score, Step

class Counted:
    alive = most = 0
    def __init__(self):
        Counted.alive += 1
        Counted.most = max(Counted.most, Counted.alive)
        Path("most").write_text(str(Counted.most))
    def __del__(self):
        Counted.alive -= 1
    def reset(self, seed):
        return "Begin."
    def step(self, action):
        return Step("Go on.")
    def score(self):
        return Score(0.0, False)
"""


def test_few_of_a_sets_environments_are_alive_while_it_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "counted.py").write_text(COUNTED)
    with Workers(1) as workers:
        made = problems(environments("counted:Counted:n=30"), workers)
    assert [each.environment.seed for each in made if each.problem] == list(range(30))
    assert int((tmp_path / "most").read_text()) <= workers.room


DICE = """
import random
from trd_cli.worlds.base import Score, Step

class Dice:
    def reset(self, seed):
        return f"{random.random()}"
    def step(self, action):
        return Step(f"{random.random()}")
    def score(self):
        return Score(0.0, False)
"""


def test_episodes_side_by_side_in_a_worker_have_pythons_random_numbers_each_for_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dice.py").write_text(DICE)
    worlds = environments("dice:Dice:n=3")
    with Workers(1) as workers:
        together = play(workers, worlds, [["roll"] * 3] * 3)
        alone = [play(workers, [world], [["roll"] * 3])[0] for world in worlds]
    assert together == alone
    assert len({seen[-1].text for seen in together}) == 3


# Its programs leave the session of its process; one of them has lost its parent too.
LEAVING = """
import subprocess, sys
from trd_cli.worlds.base import Score, Step

ORPHAN = "import os, time; print(os.getpid(), flush=True); os.fork() and os._exit(0); print(os.getpid(), flush=True)"

class Leaving:
    def reset(self, seed):
        return "Begin."
    def step(self, action):
        own = subprocess.Popen(["sleep", "300"], start_new_session=True)
        program = f"{ORPHAN}; os.close(1); time.sleep(300)"
        orphan = subprocess.run([sys.executable, "-c", program], stdout=-1, text=True, start_new_session=True)
        return Step(f"{own.pid} {orphan.stdout.split()[-1]}")
    def score(self):
        return Score(0.0, False)
"""
LEFT = """
import os, sys
from trd_cli.worlds.spec import Spec
from trd_cli.worlds.workers import Workers

with Workers(1) as workers:
    workers.start(0, Spec.parse("leaving:Leaving:n=1").environments()[0])
    workers.ready()
    workers.step(0, "go")
    print(workers.ready()[0][1].text, flush=True)
    if sys.argv[1] == "killed":
        os.kill(os.getpid(), 9)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no way to find them")
@pytest.mark.parametrize("end", ["ends", "killed"])
def test_a_program_that_an_environment_starts_in_a_session_of_its_own_ends_with_the_command(
    end: str, tmp_path: Path
) -> None:
    (tmp_path / "leaving.py").write_text(LEAVING)
    variables = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", LEFT, end], cwd=tmp_path, env=variables, capture_output=True, text=True, check=False
    )
    assert len(pids := [int(word) for word in done.stdout.split()]) == 2, done.stderr
    assert gone(pids)


# A world whose methods return what an option says in place of what they should.
ODD = """
from trd_cli.worlds.base import Score, Step

class Odd:
    def __init__(self, **values):
        self.values = {name: eval(text) for name, text in values.items()}
    def reset(self, seed):
        return self.values.get("reset", "Begin.")
    def step(self, action):
        return self.values.get("step", Step("Go on."))
    def score(self):
        return self.values.get("score", Score(0.0, False))
    def oracle(self):
        return self.values.get("oracle")
"""


@pytest.mark.parametrize(
    ("method", "returned", "told"),
    [
        ("reset", "7", "reset() is of type int; expected str"),
        ("step", "('Go.'; True)", "step() is of type tuple; expected trd_cli.worlds.base.Step"),
        ("step", "None", "step() is of type NoneType; expected trd_cli.worlds.base.Step"),
        ("step", "Step(None)", "text is of type NoneType; expected str"),
        ("step", "Step(''; done='no')", "done is of type str; expected bool"),
        ("step", "Step(''; valid=1)", "valid is of type int; expected bool"),
        ("score", "1.0", "score() is of type float; expected trd_cli.worlds.base.Score"),
        ("score", "Score(float('nan'); True)", "reward is nan; expected a finite number"),
        ("score", "Score(float('-inf'); True)", "reward is -inf; expected a finite number"),
        ("score", "Score('1'; True)", "reward is of type str; expected a number"),
        ("score", "Score(1; None)", "solved is of type NoneType; expected bool"),
        ("oracle", "'go'", "oracle() is a text; expected a list of texts"),
        ("oracle", "3", "oracle() is of type int; expected a list of texts"),
        ("oracle", "[1; 2]", "oracle's command is of type int; expected str"),
        ("oracle", r"['go'; 'a\nb']", r"oracle has the command 'a\nb'; expected one line of text"),
        ("oracle", "['']", "oracle has the command ''; expected one line of text"),
    ],
)
def test_a_value_that_an_environment_may_not_return_costs_its_episode_and_is_told(
    method: str, returned: str, told: str, odd: Workers
) -> None:
    config = json.dumps({method: returned.replace(";", ",")})
    (world,) = environments("odd:Odd:n=1")
    odd.start(0, replace(world, config=config))
    ((_, result),) = odd.ready()
    if isinstance(result, Observation):
        odd.step(0, "go") if method == "step" else odd.oracle(0)
        ((_, result),) = odd.ready()
    assert result == Failure(f"the environment's {told}")


def test_numbers_and_booleans_of_numpy_are_taken(odd: Workers) -> None:
    numpy = "__import__('numpy')"
    config = json.dumps({"score": f"Score({numpy}.float32(0.5), {numpy}.bool_(True))", "oracle": "()"})
    (world,) = environments("odd:Odd:n=1")
    ((seen,),) = play(odd, [replace(world, config=config)], [[]])
    assert seen == Observation("Begin.", valid=True, done=False, solved=True, reward=0.5)
    assert ask_oracle(odd, 0) == Oracle(())


def test_a_class_that_is_no_environment_is_refused(odd: Workers, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="odd:Score: its Score has no method reset; expected reset, step, score"):
        problems(environments("odd:Score:reward=1,solved=true"), odd)


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    place = tmp_path_factory.mktemp("odd")
    (place / "odd.py").write_text(ODD)
    with pytest.MonkeyPatch.context() as patch, Workers(1) as workers:
        patch.chdir(place)
        yield workers


LARGE = """
from trd_cli.worlds.base import Score, Step

class Large:
    def reset(self, seed):
        self.held = bytearray(150 << 20)
        return "Begin."
    def step(self, action):
        return Step(action)
    def score(self):
        return Score(0.0, False)
"""


def test_episodes_that_have_room_alone_are_played_also_where_all_of_them_have_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "large.py").write_text(LARGE)
    with Workers(1, Limits(60.0, memory=512 << 20)) as workers:
        seen = play(workers, environments("large:Large:n=4"), [["look"]] * 4)
    assert [[each.text for each in episode] for episode in seen] == [["Begin.", "look"]] * 4


# Verdicts


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory, ok: Trd) -> Path:
    """Return verified episodes of a student that is often wrong."""
    path = tmp_path_factory.mktemp("played") / "y"
    sample = ("sample", "-m", "scripted", "--env", "scripted:rooms=6,n=12", "--engine-arg", "accuracy=0.6")
    ok(*sample, "--max-turns", 5, "--out", path)
    ok("verify", path)
    return path


def test_the_verdict_of_an_episode_is_its_environments(played: Path) -> None:
    rows = rows_of(played)
    assert {row.verdict for row in rows} == {"correct", "incorrect"}
    for row in rows:
        assert (row.verdict == "correct") == (row.stop_reason == "solved")
        assert (row.grader, row.grader_version, row.extracted_answer) == ("environment", "1", None)
        turns = f"{len(row.turns)} turn{'s' * (len(row.turns) != 1)}"
        assert row.verdict_detail == f"{row.stop_reason} after {turns}, reward {row.episode_reward:g}"


def test_an_audit_plays_the_actions_again(played: Path, tmp_path: Path, ok: Trd) -> None:
    done = ok("verify", played, "--audit", 1)
    assert "audit of 12 rows: the second method agrees on 12 of 12 (100.0%)" in done.stderr
    rows = rows_of(played)
    turns = rows[0].turns
    other = replace(rows[0], turns=[replace(turns[0], observation="You fly."), *turns[1:]])
    solved = next(row for row in rows[1:] if row.verdict == "correct")
    cut = replace(solved, turns=solved.turns[:-1], trajectory_id="0" * 32)
    (tmp_path / "y").mkdir()
    write_shard(tmp_path / "y" / "shard-00000.parquet", [other, cut])
    done = ok("verify", tmp_path / "y", "--audit", 1)
    assert "agrees on 0 of 2 (0.0%), cannot tell 0, disagrees on 2" in done.stderr
    listed = [json.loads(line) for line in (tmp_path / "y.audit.jsonl").read_text().splitlines()]
    assert {each["second_verdict"] for each in listed} == {"error", "incorrect"}


# TextWorld


@pytest.fixture(scope="module")
def game() -> Iterator[tuple[Workers, Made]]:
    """Yield workers that have made a game, and the game."""
    with Workers(1) as workers:
        (made,) = problems(environments("textworld:level=3,n=1,seed=7"), workers)
        yield workers, made


@with_textworld
def test_a_game_of_textworld_is_won_by_its_own_policy_also_after_a_detour(game: tuple[Workers, Made]) -> None:
    workers, made = game
    ((first, *_, last),) = play(workers, [made.environment], solutions([made]))
    assert first.text == made.problem.problem
    assert (last.done, last.solved, last.reward) == (True, True, 1.0)
    assert "RESTART" not in last.text
    moves = ["go north", "go south", "go east", "go west", "look"]
    play(workers, [made.environment], [moves])
    for command in ask_oracle(workers, 0).commands:
        workers.step(0, command)
        ((_, last),) = workers.ready()
    assert last.solved


@with_textworld
def test_what_textworld_shows_has_no_banner_and_names_the_commands(game: tuple[Workers, Made]) -> None:
    text = game[1].problem.problem
    assert "$$" not in text
    assert "\n\n\n" not in text
    assert "\n>" not in text
    assert "Available commands:" in text


@with_textworld
def test_commands_that_would_part_textworld_from_its_record_are_not_valid(game: tuple[Workers, Made]) -> None:
    workers, made = game
    actions = ["restart", "look then restart", "look. restart", "undo", "save", "", "fly away", "take the moon", "look"]
    ((first, *seen, last),) = play(workers, [made.environment], [actions])
    assert [each.valid for each in seen] == [False] * len(seen)
    assert (last.valid, last.done) == (True, False)
    assert last.text in first.text


@with_textworld
def test_the_same_seed_gives_the_same_game_of_textworld_in_another_process(game: tuple[Workers, Made]) -> None:
    with Workers(1) as others:
        assert problems([game[1].environment], others) == [game[1]]


# TextArena


@pytest.fixture(scope="module")
def arena() -> Iterator[Workers]:
    with Workers(2) as workers:
        yield workers


def arena_games() -> tuple[str, ...]:
    from trd_cli.worlds.textarena import GAMES

    return tuple(f"{game}-v0" for game in GAMES)


@with_textarena
def test_games_of_textarena_are_the_same_in_two_processes_by_their_seed(arena: Workers) -> None:
    # One after the other, the episodes go to both processes in turn.
    for game in arena_games():
        (world,) = environments(f"textarena:{game},n=1,seed=5")
        one, two = play(arena, [world, world], [["nonsense"]] * 2)
        assert one == two, game
        assert (one[0].valid, one[1].valid) == (True, False), game


@with_textarena
@pytest.mark.parametrize(
    "game", ["FrozenLake-v0", "GuessTheNumber-v0", "LightsOut-v0", "Mastermind-v0", "Sudoku-v0", "TowerOfHanoi-v0"]
)
def test_the_oracles_of_textarena_reach_the_goal(game: str, arena: Workers) -> None:
    made = problems(environments(f"textarena:{game},n=4"), arena)
    for *_, last in play(arena, [each.environment for each in made], solutions(made)):
        assert (last.done, last.solved, last.reward) == (True, True, 1.0)


@with_textarena
@pytest.mark.parametrize(
    ("game", "told"),
    [
        ("Wordle-v0", "game=Wordle-v0: it downloads words"),
        ("TwentyQuestions-v0", "it asks a model on a server"),
        ("Chess-v0", "expected one of 2048, Bandit"),
        ("Sudoku-v9", "expected one of Sudoku-v0-very-easy, Sudoku-v0-easy, Sudoku-v0"),
        ("Sudoku-v0-train", "expected one of Sudoku-v0-very-easy"),
    ],
)
def test_games_of_textarena_that_need_data_or_are_not_there_are_refused(game: str, told: str, arena: Workers) -> None:
    with pytest.raises(InputError, match=re.escape(told)):
        problems(environments(f"textarena:{game},n=1"), arena)


def test_the_manual_names_every_environment_with_its_options() -> None:
    manual = (ROOT / "trd_cli/worlds/README.md").read_text()
    for name, kind in KINDS.items():
        (line,) = (line for line in manual.splitlines() if line.startswith(f"| `{name}` |"))
        shown = [f"`{key}={value}`" for key, value in kind.options.items()]
        assert all(each in line for each in shown if name != "scripted")
