"""Sets, runs and checkpoints on the Hub: pushed, interrupted, read by their names; by a Hub on this machine."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import Trd
from support.children import start_child
from support.hub import Hub
from support.hub_user import HubUser
from support.report_run import TRAIN, make_run
from support.sets import rows_of

from trd_cli.errors import InputError
from trd_cli.hub.names import HubName

ROOT = Path(__file__).parent.parent
TOKEN = "hf_aTokenThatMayWrite1234567"
SECRET = "hf_aTokenThatMayNotWrite987"


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with Hub() as found:
        found.token = TOKEN
        yield found


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def user(hub: Hub, work: Path) -> Iterator[HubUser]:
    with HubUser(hub, work / "cache", TOKEN, work) as found:
        yield found


@pytest.fixture(scope="module")
def problems(ok: Trd, work: Path) -> Path:
    ok("data", "make", "arithmetic", "--n", 6, "--out", work / "train.parquet")
    return work / "train.parquet"


@pytest.fixture(scope="module")
def rollouts(ok: Trd, work: Path, problems: Path) -> Path:
    options = ("--engine-arg", "accuracy=0.5", "--shard-rows", 4)
    ok("sample", "-m", "scripted", "-p", problems, "-n", 2, *options, "--out", work / "y_o")
    ok("verify", work / "y_o")
    return work / "y_o"


@pytest.fixture(scope="module")
def refined(ok: Trd, work: Path, rollouts: Path) -> Path:
    options = ("--setting", "opsd", "--engine-arg", "accuracy=0.9", "--shard-rows", 4)
    ok("refine", rollouts, *options, "--out", work / "y_r")
    ok("verify", work / "y_r")
    return work / "y_r"


@pytest.fixture(scope="module")
def pushed(user: HubUser, rollouts: Path, refined: Path) -> tuple[str, str]:
    """Push both sets; return their names at their commits."""
    y_o = user.ok("push", rollouts, "me/y_o").strip()
    y_r = user.ok("push", refined, "me/y_r", "--license", "apache-2.0").strip()
    return y_o, y_r


def counts(directory: Path) -> dict[str, int]:
    verdicts = [row.verdict for row in rows_of(directory)]
    return {verdict: verdicts.count(verdict) for verdict in set(verdicts)}


# Names


@pytest.mark.parametrize(
    ("text", "repository", "revision", "path"),
    [
        ("hf://datasets/o/n", "o/n", None, ""),
        ("hf://datasets/o/n/", "o/n", None, ""),
        ("hf://datasets/o-1/n.x@main/seed-0/y_r", "o-1/n.x", "main", "seed-0/y_r"),
        ("hf://datasets/o/n@refs/pr/3/y_r", "o/n", "refs/pr/3", "y_r"),
        ("hf://datasets/o/n@a%2Fb", "o/n", "a/b", ""),
        ("hf://datasets/o/n/a/train.parquet", "o/n", None, "a/train.parquet"),
    ],
)
def test_a_name_has_a_repository_a_revision_and_a_path(
    text: str, repository: str, revision: str | None, path: str
) -> None:
    name = HubName.parse(text)
    assert (name.repository, name.revision, name.path) == (repository, revision, path)
    assert HubName.parse(str(name)) == name


def test_a_name_where_none_can_stand_is_refused_and_makes_no_directory(
    trd: Trd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problems: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    name = "hf://datasets/o/n/x.parquet"
    sample = ("sample", "-m", "scripted", "-p", problems, "--out")
    for words in (
        (*sample, name),
        ("data", "make", "arithmetic", "--out", name),
        ("init", "hf://o/n"),
        ("init", "new", "-p", "hf://datasets/o/n"),
        ("eval", "scripted", "--bench", f"{name}:math"),
        ("init", "new", "-b", f"{name}:math"),
    ):
        refused = trd(*words)
        assert (refused.exit_code, "hf://" in refused.stderr) == (1, True), words
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text", ["hf://o/n", "hf://datasets/n", "hf://datasets/o/n/../x", "hf://datasets/o//n", "hf://"]
)
def test_another_form_is_refused_in_one_line(trd: Trd, text: str) -> None:
    with pytest.raises(InputError, match="is no dataset on the Hub"):
        HubName.parse(text)
    refused = trd("show", text)
    assert refused.exit_code == 1
    assert "expected hf://datasets/owner/name[@revision][/folder or file]" in refused.stderr


# What is pushed


def test_a_pushed_set_loads_as_it_is(user: HubUser, pushed: tuple[str, str], refined: Path) -> None:
    found, rows = user.load("me/y_r"), rows_of(refined)
    assert found["trajectory_id"] == [row.trajectory_id for row in rows]
    assert found["response"] == [row.response for row in rows]
    assert found["verdict"] == [row.verdict for row in rows]
    assert user.load("me/y_r", revision=pushed[1].rpartition("@")[2]) == found


def test_the_shards_on_the_hub_are_those_of_the_set(hub: Hub, pushed: tuple[str, str], refined: Path) -> None:
    files = hub.of("me/y_r").files()
    shards = {path.name: path.read_bytes() for path in sorted(refined.glob("*.parquet"))}
    assert {name: files[name] for name in files if name.endswith(".parquet")} == shards
    assert sorted(set(files) - set(shards)) == [".gitattributes", "README.md", "run.json", "sessions.jsonl"]


def test_the_card_tells_how_the_rows_were_made(hub: Hub, pushed: tuple[str, str], refined: Path) -> None:
    card = hub.of("me/y_r").files()["README.md"].decode()
    head = yaml.safe_load(card.split("---\n")[1])
    assert head["license"] == "apache-2.0"
    assert head["configs"] == [
        {"config_name": "default", "data_files": [{"split": "train", "path": "shard-*.parquet"}]}
    ]
    assert "12 rows in 3 shards, 0 of them ended as errors." in card
    for verdict, count in counts(refined).items():
        assert f"| {verdict} | {count} |" in card
    assert "| repaired |" in card
    assert "| model | scripted @ scripted, scripted 0.1.0 |" in card
    assert "| sampling | T 0.6, top-p 0.95, top-k 20, at most 16384 tokens |" in card
    assert "| grader | math-verify 0.9" in card
    digest = "5d24b32d97eb3a70b32e29a22c5a12d37ec89210cef940650723015531df8234"
    assert f"**refine-opsd-math**, SHA-256 `{digest}`" in card
    assert "Rewrite the draft into a solution that agrees with the reference" in card
    assert "| y_o | trd sample | `" in card
    assert 'load_dataset("me/y_r", split="train")' in card
    assert "trd refine --engine-arg accuracy=0.9 --out y_r --shard-rows 4 --setting opsd y_o" in card
    assert "## Licence\n\napache-2.0" in card


def test_without_a_licence_the_card_says_so_and_so_does_the_command(
    hub: Hub, user: HubUser, pushed: tuple[str, str], rollouts: Path
) -> None:
    card = hub.of("me/y_o").files()["README.md"].decode()
    assert "license" not in yaml.safe_load(card.split("---\n")[1])
    assert "Not chosen yet: add `license:` to the head of this page" in card
    shown = user.trd("push", rollouts, "me/y_o", "--dry-run")
    assert shown.out.strip() == card.strip()
    assert "no --license: the card says 'Not chosen yet" in shown.err
    assert "would push shard-00002.parquet" in shown.err


def test_no_token_and_no_place_of_this_machine_is_published(
    hub: Hub, pushed: tuple[str, str], work: Path, rollouts: Path
) -> None:
    # The record that stays here has the places: the test would see them.
    assert str(work) in (rollouts / "run.json").read_text()
    for name in ("me/y_o", "me/y_r"):
        for content in hub.of(name).files().values():
            assert str(work).encode() not in content
            assert TOKEN.encode() not in content
    kept = [path for path in work.rglob("*") if path.is_file()]
    assert [path for path in kept if TOKEN.encode() in path.read_bytes()] == []


def test_what_is_there_is_not_sent_again(hub: Hub, user: HubUser, pushed: tuple[str, str], refined: Path) -> None:
    before, commits = list(hub.uploads), len(hub.of("me/y_r").commits)
    again = user.trd("push", refined, "me/y_r", "--license", "apache-2.0")
    assert (again.code, again.out.strip()) == (0, pushed[1])
    assert "0 files sent, 6 were there" in again.err
    assert (hub.uploads, len(hub.of("me/y_r").commits)) == (before, commits)


def test_a_card_that_was_edited_stays(hub: Hub, user: HubUser, rollouts: Path) -> None:
    user.ok("push", rollouts, "me/edited", "--private")
    of = hub.of("me/edited")
    mine = b"---\nlicense: mit\n---\nMine.\n"
    of.put("main", {**of.files(), "README.md": mine})
    assert "README.md of me/edited was edited and stays as it is" in user.trd("push", rollouts, "me/edited").err
    assert of.files()["README.md"] == mine
    user.ok("push", rollouts, "me/edited", "--replace")
    assert b"## Make again" in of.files()["README.md"]


def test_what_is_to_be_private_is_not_pushed_to_a_public_repository(
    hub: Hub, user: HubUser, rollouts: Path, refined: Path
) -> None:
    hub.add("me/public", "d" * 40, {".gitattributes": b""})
    refused = user.trd("push", rollouts, "me/public", "--private")
    assert (refused.code, "me/public is there and public; expected a private repository" in refused.error) == (1, True)
    assert set(hub.of("me/public").files()) == {".gitattributes"}
    for _ in range(2):
        user.ok("push", rollouts, "me/hidden", "--private")
    assert hub.of("me/hidden").is_private


def test_a_set_that_changes_while_it_is_pushed_is_not_published_with_another_table(
    hub: Hub, user: HubUser, work: Path, refined: Path
) -> None:
    changing = copied_with_another_model(refined, work / "changing", "changing")
    hub.good_uploads, hub.fault = len(hub.uploads), "wait"
    process = pushing(hub, work, changing, "me/changing")
    assert hub.faulty.wait(120)
    last = sorted(changing.glob("*.parquet"))[-1]
    last.replace(work / "was.parquet")
    last.write_bytes((work / "was.parquet").read_bytes())
    hub.resume()
    _, said = process.communicate()
    assert f"{last} has changed since the push began" in said.splitlines()[-1]
    assert set(hub.of("me/changing").files()) == {".gitattributes"}
    user.ok("push", changing, "me/changing")
    assert len(user.load("me/changing")["trajectory_id"]) == 12


def test_responses_made_elsewhere_are_pushed_with_what_is_known(hub: Hub, user: HubUser, work: Path) -> None:
    messages = [{"role": "user", "content": "What is 1 + 1?"}, {"role": "assistant", "content": "2"}]
    (work / "chats.jsonl").write_text(json.dumps({"messages": messages}) + "\n")
    words = ("--format", "messages", "--model", "scripted", "--max-tokens", 64)
    user.ok("data", "import-rollouts", "chats.jsonl", *words, "--out", "elsewhere")
    user.ok("push", "elsewhere", "me/elsewhere-made")
    card = hub.of("me/elsewhere-made").files()["README.md"].decode()
    assert "Responses made elsewhere" in card
    assert "| sampling | at most 64 tokens, unknown: T top-p top-k |" in card
    assert "trd data import-rollouts --format messages --model scripted" in card
    assert user.load("me/elsewhere-made")["response"] == ["2"]


def test_a_repository_with_something_else_is_refused(hub: Hub, user: HubUser, rollouts: Path, refined: Path) -> None:
    user.ok("push", rollouts, "me/taken")
    refused = user.trd("push", refined, "me/taken")
    assert refused.code == 1
    assert "me/taken holds something else: run.json" in refused.error
    hub.add("me/foreign", "f" * 40, {"data.csv": b"a,b\n"})
    assert "me/foreign holds something else: data.csv" in user.trd("push", rollouts, "me/foreign").error
    user.ok("push", refined, "me/taken", "--replace")
    assert len(user.load("me/taken")["trajectory_id"]) == 12


def test_a_branch_is_made_and_pushed_to(hub: Hub, user: HubUser, rollouts: Path) -> None:
    printed = user.ok("push", rollouts, "me/branched", "--revision", "v1/a").strip()
    of = hub.of("me/branched")
    assert set(of.files()) == {".gitattributes"}
    assert printed == f"hf://datasets/me/branched@{of.branches['v1/a']}"
    assert "12" in user.ok("status", "hf://datasets/me/branched@v1%2Fa")


# Interrupted


@pytest.fixture(scope="module")
def many(ok: Trd, work: Path) -> Path:
    """Make more problems than a commit holds shards."""
    ok("data", "make", "arithmetic", "--n", 70, "--seed", 5, "--out", work / "many.parquet")
    return work / "many.parquet"


def test_a_killed_push_goes_on_without_sending_again(hub: Hub, user: HubUser, work: Path, refined: Path) -> None:
    before = len(hub.uploads)
    # The contents of these shards are on this Hub already: others are needed.
    other = copied_with_another_model(refined, work / "killed", "another")
    hub.good_uploads, hub.fault = before + 1, "hang"
    process = pushing(hub, work, other, "me/killed")
    assert hub.faulty.wait(120)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    hub.good_uploads = None
    hub.faulty.clear()
    arrived = hub.uploads[before:]
    assert len(arrived) == 1
    assert set(hub.of("me/killed").files()) == {".gitattributes"}
    assert " has no shards; " in user.trd("show", "hf://datasets/me/killed").error
    user.ok("push", other, "me/killed")
    sent = hub.uploads[before:]
    assert len(sent) == len(set(sent)) == 3, "each shard once"
    assert len(user.load("me/killed")["trajectory_id"]) == 12


def test_a_push_that_the_server_stopped_is_no_set_until_it_has_ended(
    hub: Hub, user: HubUser, ok: Trd, work: Path, many: Path
) -> None:
    ok("sample", "-m", "scripted", "-p", many, "--shard-rows", 1, "--out", work / "many")
    before = len(hub.uploads)
    hub.good_uploads, hub.fault = before + 66, "error"
    stopped = user.trd("push", work / "many", "me/many")
    hub.good_uploads = None
    assert stopped.code == 1
    assert "the Hub did not take me/many: " in stopped.error
    assert stopped.error.endswith("run the same command again: what has arrived is not sent again")
    half = hub.of("me/many").files()
    assert len([name for name in half if name.endswith(".parquet")]) == 64
    assert "run.json" not in half
    refused = user.trd("show", "hf://datasets/me/many")
    assert "has no run.json: its push has not ended" in refused.error
    user.ok("push", work / "many", "me/many")
    sent = hub.uploads[before:]
    assert len(sent) == len(set(sent)) == 70, "each shard once"
    assert "run.json" in hub.of("me/many").files()


def test_rows_that_were_added_since_take_the_record_away_until_all_are_there(
    hub: Hub, user: HubUser, ok: Trd, work: Path, many: Path
) -> None:
    sample = ("sample", "-m", "scripted", "-p", many, "--seed", 1, "--out", work / "grown")
    ok(*sample, "--shard-rows", 70)
    user.ok("push", work / "grown", "me/grown")
    assert "run.json" in hub.of("me/grown").files()
    ok(*sample, "--shard-rows", 1, "-n", 2)
    hub.good_uploads = len(hub.uploads) + 66
    assert user.trd("push", work / "grown", "me/grown").code == 1
    hub.good_uploads = None
    assert "run.json" not in hub.of("me/grown").files()
    user.ok("push", work / "grown", "me/grown")
    assert len(user.load("me/grown")["trajectory_id"]) == 140


def pushing(hub: Hub, work: Path, directory: Path, repository: str) -> subprocess.Popen[str]:
    """Start trd push in a process of its own."""
    return start_child(
        [sys.executable, "-m", "trd_cli", "push", str(directory), repository],
        env={**os.environ, "PYTHONPATH": str(ROOT), **hub.environment(work / "cache"), "HF_TOKEN": TOKEN},
        stderr=subprocess.PIPE,
        text=True,
    )


def copied_with_another_model(source: Path, target: Path, model: str) -> Path:
    """Copy a set with other bytes in its shards, by writing them anew with another name of the model."""
    from dataclasses import replace

    from trd_cli.trajectories.shards import list_shards, read_rows, write_shard

    target.mkdir()
    (target / "run.json").write_bytes((source / "run.json").read_bytes())
    for path in list_shards(source):
        write_shard(target / path.name, [replace(row, model=model) for row in read_rows(path)])
    return target


# Refused


def test_an_unfinished_set_is_refused_without_allow_partial(user: HubUser, work: Path, rollouts: Path) -> None:
    part = work / "part"
    part.mkdir()
    for name in ("run.json", "shard-00000.parquet"):
        (part / name).write_bytes((rollouts / name).read_bytes())
    refused = user.trd("push", part, "me/part")
    assert refused.code == 1
    assert "is unfinished: 4 of 12 rows" in refused.error
    assert "**Unfinished**: 8 rows are missing." in user.ok("push", part, "me/part", "--allow-partial", "--dry-run")


def test_without_a_token_a_permission_or_a_network_there_is_one_line(user: HubUser, work: Path, rollouts: Path) -> None:
    without = user.trd("push", rollouts, "me/none", HF_TOKEN="")
    assert (without.code, without.error) == (
        1,
        "trd push: error: no token for the Hub; expected HF_TOKEN, or a login; run hf auth login, or set HF_TOKEN",
    )
    forbidden = user.trd("push", rollouts, "me/none", HF_TOKEN=SECRET)
    assert (forbidden.code, "this token may not write to me/none" in forbidden.error) == (1, True)
    assert SECRET not in forbidden.out + forbidden.err


def test_other_directories_and_names_are_refused(user: HubUser, work: Path, rollouts: Path) -> None:
    assert "is no directory" in user.trd("push", work / "nothing", "me/x").error
    (work / "of-nothing").mkdir()
    assert "is neither a set, a run nor a checkpoint" in user.trd("push", work / "of-nothing", "me/x").error
    assert "expected owner/name" in user.trd("push", rollouts, "x").error
    assert "expected the name of a branch" in user.trd("push", rollouts, "me/x", "--revision", "").error


# Read by name


def test_each_command_reads_a_set_by_its_name(
    user: HubUser, work: Path, pushed: tuple[str, str], rollouts: Path, refined: Path
) -> None:
    y_o, y_r = pushed
    assert y_r in " ".join(user.ok("show", "hf://datasets/me/y_r").split())
    assert user.ok("status", y_o).split("\t")[1:4] == ["sample", "complete", "12"]
    assert user.ok("data", "overlap", y_o, "arithmetic:n=2,seed=9") == ""
    user.ok("refine", "hf://datasets/me/y_o", "--setting", "opsd", "--subset", "incorrect", "--out", "again")
    assert len(rows_of(work / "again")) == counts(rollouts)["incorrect"]
    (source,) = json.loads((work / "again" / "run.json").read_text())["inputs"]
    assert source["path"] == y_o
    assert "y_o incorrect → y_r unverified" in user.ok("diff", "again")
    one = user.ok("sample", "-m", "scripted", "--from", f"{y_o}/shard-00000.parquet", "--prefix", "0.5", "--out", "on")
    assert len(rows_of(work / "on")) == 4, one


def test_verify_needs_a_directory_for_a_graded_copy(
    user: HubUser, work: Path, pushed: tuple[str, str], refined: Path
) -> None:
    refused = user.trd("verify", pushed[1])
    assert refused.error.endswith(
        f"{pushed[1]}, which cannot be written to; expected a directory for the graded copy; give --out DIR"
    )
    user.ok("verify", pushed[1], "--out", "graded")
    assert counts(work / "graded") == counts(refined)


def test_a_problem_set_is_read_by_its_name(hub: Hub, user: HubUser, work: Path, problems: Path) -> None:
    commit = "c" * 40
    hub.add("me/problems", commit, {"sets/train.parquet": problems.read_bytes()})
    name = "hf://datasets/me/problems/sets/train.parquet"
    user.ok("sample", "-m", "scripted", "-p", name, "--limit", 2, "--out", "of-name")
    assert len(rows_of(work / "of-name")) == 2
    config = json.loads((work / "of-name" / "run.json").read_text())["config"]
    assert config["problems"] == f"hf://datasets/me/problems@{commit}/sets/train.parquet"
    (work / "old.jsonl").write_text(json.dumps({"problem": rows_of(work / "of-name")[0].problem, "response": "1"}))
    elsewhere = ("data", "import-rollouts", "old.jsonl", "--format", "messages", "-m", "scripted", "-p", name)
    user.ok(*elsewhere, "--out", "imported")
    assert [row.problem_id for row in rows_of(work / "imported")] == [rows_of(work / "of-name")[0].problem_id]
    told = json.loads((work / "imported" / "run.json").read_text())["config"]["problems"]
    assert told == f"hf://datasets/me/problems@{commit}/sets/train.parquet"
    recipe = work / "recipe.toml"
    recipe.write_text(
        f'student = "scripted"\nsetting = "opsd"\nproblems.file = "{name}"\n[sample]\n[distill]\n[arms.trd]\nmethod = "trd"\n'
    )
    assert "6 problems" in user.trd("plan", recipe).out


def test_a_branch_that_has_moved_is_noticed(hub: Hub, user: HubUser, ok: Trd, work: Path, problems: Path) -> None:
    ok("sample", "-m", "scripted", "-p", problems, "--out", work / "one")
    ok("sample", "-m", "scripted", "-p", problems, "--seed", 1, "--out", work / "two")
    first = user.ok("push", work / "one", "me/moving").strip()
    refine = ("--setting", "opsd", "--out", "moved")
    user.ok("refine", "hf://datasets/me/moving", *refine)
    user.ok("push", work / "two", "me/moving", "--replace")
    refused = user.trd("refine", "hf://datasets/me/moving", *refine)
    assert "was made by another configuration: inputs (" in refused.error
    user.ok("refine", first, *refine)


def test_a_commit_in_the_cache_needs_no_network(hub: Hub, user: HubUser, work: Path, pushed: tuple[str, str]) -> None:
    user.ok("show", pushed[0])
    before = len(hub.requests)
    with HubUser(hub, work / "cache", "", work, HF_HUB_OFFLINE="1") as offline:
        offline.ok("refine", pushed[0], "--setting", "opsd", "--out", "offline")
        missing = offline.trd("show", "hf://datasets/me/elsewhere")
        unreached = offline.trd("push", "y_o", "me/y_o", HF_TOKEN=TOKEN)
    assert len(hub.requests) == before
    assert "it is not in the cache, and the Hub cannot be reached" in missing.error
    assert "the Hub cannot be reached" in unreached.error


# Runs and checkpoints


@pytest.fixture(scope="module")
def run(ok: Trd, work: Path) -> Path:
    return make_run(work / "run", ok)


def test_a_run_is_a_dataset_with_a_configuration_for_each_set(hub: Hub, user: HubUser, work: Path, run: Path) -> None:
    name = user.ok("push", run, "me/run", "--license", "mit").strip()
    files = hub.of("me/run").files()
    folder = "seed-0/round-0"
    assert {"problems/problems.parquet", "recipe.toml", f"{folder}/refine/run.json"} <= set(files)
    assert {f"results/{node}/results.json" for node in ("base/eval", f"{folder}/trd/eval")} <= set(files)
    assert len(user.load("me/run", "seed-0_round-0_refine")["trajectory_id"]) == 8
    assert len(user.load("me/run", "problems")["problem_id"]) == 8
    card = files["README.md"].decode()
    assert "| repaired | 3 | 37.5 % |" in card
    assert "| base/eval | arithmetic:n=20,seed=3 | avg@2 |" in card
    # The parents are found in the same commit.
    assert "y_o incorrect → y_r correct" in user.ok("diff", f"{name}/{folder}/refine")
    user.ok("verify", f"{name}/{folder}/refine", "--regrade", "--out", "graded-copy")
    (source,) = json.loads((work / "graded-copy" / "run.json").read_text())["inputs"]
    assert source["path"] == f"{name}/{folder}/sample"
    user.ok("distill", f"{name}/{folder}/refine", "--model", run / "student", *TRAIN, "--out", "from-the-hub")
    (source,) = json.loads((work / "from-the-hub" / "run.json").read_text())["inputs"]
    assert source["path"] == f"{name}/{folder}/refine"
    # The student's directory is named in rows and records: here its name alone is left.
    table = pq.read_table(pa.BufferReader(files[f"{folder}/refine/shard-00000.parquet"]))
    assert set(table["model"].to_pylist()) == {"student"}
    assert [path for path, content in files.items() if str(work).encode() in content] == []


def test_a_checkpoint_is_a_model_that_commands_take_by_its_name(
    hub: Hub, user: HubUser, work: Path, run: Path, problems: Path
) -> None:
    checkpoint = run / "nodes" / "distill-trd"
    assert user.ok("push", checkpoint, "me/student", "--license", "mit").strip() == "me/student"
    files = hub.of("me/student", "model").files()
    assert {"model.safetensors", "tokenizer.json", "config.json", "train.jsonl", "run.json", "README.md"} <= set(files)
    assert [path for path, content in files.items() if str(work).encode() in content] == []
    card = files["README.md"].decode()
    assert yaml.safe_load(card.split("---\n")[1])["library_name"] == "transformers"
    assert "| method | trd (objective forward-kl) |" in card
    assert 'AutoModelForCausalLM.from_pretrained("me/student")' in card
    made = "trd distill --method trd --batch-size 4 --learning-rate 0.001 --device cpu --dtype float32 --out distill-trd refine-0"
    assert sorted(shlex.split(card.split("```bash\n")[2].partition("\n")[0])) == sorted(shlex.split(made))
    options = ("--engine", "transformers", "--dtype", "float32", "--device", "cpu", "--max-tokens", 8, "--limit", 1)
    user.ok("sample", "-m", "me/student", "-p", problems, *options, "--out", "by-model")
    (row,) = rows_of(work / "by-model")
    assert (row.model, row.model_revision) == ("me/student", hub.of("me/student", "model").branches["main"])


def test_the_lines_on_an_adapter_s_card_load_it_onto_its_base(hub: Hub, user: HubUser, work: Path, run: Path) -> None:
    base = {path.name: path.read_bytes() for path in (run / "student").iterdir() if path.is_file()}
    hub.add("me/base", "b" * 40, base, kind="model")
    rows = run / "nodes" / "refine-0"
    user.ok("distill", rows, "--model", "me/base", "--lora", "--no-merge", *TRAIN, "--out", "adapter")
    user.ok("push", "adapter", "me/adapter", "--revision", "v1")
    card = hub.of("me/adapter", "model").files("v1")["README.md"].decode()
    head = yaml.safe_load(card.split("---\n")[1])
    assert (head["library_name"], head["base_model"]) == ("peft", "me/base")
    lines = card.split("```python\n")[1].partition("```")[0]
    done = subprocess.run(
        [sys.executable, "-c", f"{lines}\nprint(type(model).__name__, len(tokenizer) > 0)"],
        env={**os.environ, **hub.environment(work / "cache")},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "PeftModelForCausalLM True\n", done.stderr
