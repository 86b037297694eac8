"""trd diagnose: every figure of a position is known by hand, and no shard, batch, replica or kill leaves a trace.

Axes: N positions, V vocabulary.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Trd
from support.children import Start, forking, wait_for
from support.pair import ID, ONSET, START, STUDENT, TEACHER, WRONG, build_pair, distribution, write_problems_of_pair
from support.rows import write_set
from support.sets import by_hand, rows_of
from support.tiny import VOCABULARY, build_model, reference_model, write_tokenizer

from trd_cli.config.diagnosing import ScoringOptions
from trd_cli.diagnosis.engine import ScoringEngine
from trd_cli.diagnosis.files import (
    POSITION_TYPES,
    RowFigures,
    flat,
    iter_figures,
    read_onset_ids,
    read_rows,
    repetition,
    write_figures,
)
from trd_cli.diagnosis.onset import onset_of, read_words
from trd_cli.diagnosis.scoring import PositionFigures, Scorer
from trd_cli.errors import InputError
from trd_cli.losses.positions import compare
from trd_cli.models import resolve_model
from trd_cli.prompting.templates import load_template
from trd_cli.trajectories.shards import list_shards
from trd_cli.trajectories.shards import read_rows as read_trajectories

CPU = ("--dtype", "float32", "--device", "cpu")
DRAW = (*CPU, "--max-tokens", 40, "--temperature", 1, "--top-p", 1, "--top-k", 0)


# The figures


def naive(p_NV: np.ndarray, q_NV: np.ndarray, response_N: np.ndarray, onset: list[int]) -> dict[str, np.ndarray]:
    """Return the figures of positions from both whole distributions, one position after another, in float64."""
    found: dict[str, list[Any]] = {}
    for p, q, token in zip(p_NV, q_NV, response_N, strict=True):
        students, teachers = (np.argsort(-each, kind="stable")[:16] for each in (p, q))
        shared = sorted({*students} & {*teachers})
        on_p, on_q = p[shared] / p[shared].sum(), q[shared] / q[shared].sum()
        figures = {
            "forward_kl": np.sum(q * np.log(q / p)),
            "reverse_kl": np.sum(p * np.log(p / q)),
            "student_logprob": np.log(p[token]),
            "teacher_logprob": np.log(q[token]),
            "student_entropy": -np.sum(p * np.log(p)),
            "teacher_entropy": -np.sum(q * np.log(q)),
            "l2": np.sqrt(np.sum((p - q) ** 2)),
            "onset_mass": sum(q[i] for i in onset),
            "overlap": len(shared),
            "overlap_advantage": np.sum(on_p * np.log(on_q / on_p)) / len(shared) if shared else np.nan,
            "teacher_top": teachers[0],
            "teacher_top_logprob": np.log(q.max()),
            "trigger": teachers[0] in onset and not {*students[:5]} & {*onset},
        }
        for name, value in figures.items():
            found.setdefault(name, []).append(value)
    return {name: np.array(values) for name, values in found.items()}


def assert_same(found: Mapping[str, Any], wanted: Mapping[str, np.ndarray], tolerance: float) -> None:
    assert {*found} == {*wanted}
    for name, values in wanted.items():
        np.testing.assert_allclose(
            torch.as_tensor(found[name]).numpy(), values, rtol=tolerance, atol=tolerance, err_msg=name
        )


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return the student and the teacher whose distributions are written down."""
    return build_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def scorer(pair: tuple[Path, Path]) -> Scorer:
    return Scorer(*(resolve_model(str(path)) for path in pair), ScoringOptions(device="cpu"), [ONSET])


def scored(scorer: Scorer, *words: str) -> PositionFigures:
    """Return the figures of a response of these words after a prompt."""
    from trd_cli.training.batches import Example

    prompt = [ID["user"], ID[START]]
    return scorer.score([Example("row", prompt, prompt, [ID[word] for word in words])])[0]


def values(figures: PositionFigures) -> dict[str, np.ndarray]:
    return {field.name: getattr(figures, field.name) for field in fields(figures)}


def test_every_figure_is_that_of_the_distributions_that_are_written_down(scorer: Scorer) -> None:
    walk = ("bad", "worse", "worse", WRONG, "<|end|>")
    found = scored(scorer, *walk)
    before = (START, *walk[:-1])
    p_NV, q_NV = (np.array([distribution(table, word) for word in before]) for table in (STUDENT, TEACHER))
    response = np.array([ID[word] for word in walk])
    wanted = naive(p_NV, q_NV, response, [ONSET]) | {"response_ids": response, "is_onset": response == ONSET}
    assert_same(values(found), wanted, 1e-4)


def test_the_figures_after_a_wrong_step_are_those_computed_by_hand(scorer: Scorer) -> None:
    at = {name: column[1] for name, column in values(scored(scorer, "bad", "worse", WRONG)).items()}
    assert at["student_logprob"] == pytest.approx(np.log(0.97), abs=1e-5)
    assert at["teacher_logprob"] == pytest.approx(np.log(0.3), abs=1e-5)
    assert at["onset_mass"] == pytest.approx(0.6, abs=1e-6)
    # The largest differences are 0.97 − 0.3 and 0.6 − 0.0001; all others are below 0.02.
    assert at["l2"] == pytest.approx(np.hypot(0.67, 0.5999), abs=2e-3)
    assert (at["teacher_top"], at["trigger"]) == (ONSET, True)
    assert not scored(scorer, "bad", "worse", WRONG).trigger[2], "going on is the teacher's likeliest word there"


def test_forward_kl_is_spent_on_the_onset_and_reverse_kl_on_the_wrong_continuation(scorer: Scorer) -> None:
    found = scored(scorer, "bad", "worse")
    p, q = (distribution(table, "bad") for table in (STUDENT, TEACHER))
    of_onset = q[ONSET] * np.log(q[ONSET] / p[ONSET])
    of_going_on = p[ID["worse"]] * np.log(p[ID["worse"]] / q[ID["worse"]])
    assert of_onset == pytest.approx(0.6 * np.log(6000), rel=1e-9)
    assert of_going_on == pytest.approx(0.97 * np.log(0.97 / 0.3), rel=1e-9)
    assert of_onset / found.forward_kl[1] == pytest.approx(1.0, abs=0.05)
    assert of_going_on / found.reverse_kl[1] == pytest.approx(1.0, abs=0.05)
    on_the_way_back = scored(scorer, "bad", "Wait", "good")
    assert on_the_way_back.is_onset.tolist() == [False, True, False]
    assert on_the_way_back.forward_kl[2] < 0.05, "after the turn both say the same"


@pytest.mark.parametrize("size", [40, 41])
@pytest.mark.parametrize("tokens", [1, 300, 513])
def test_the_figures_are_those_of_whole_distributions_in_any_number_of_chunks(tokens: int, size: int) -> None:
    random = torch.Generator().manual_seed(tokens + size)
    student, teacher = (torch.randn(tokens, width, generator=random, dtype=torch.float64) for width in (5, 9))
    heads = [torch.randn(rows, width, generator=random, dtype=torch.float64) for rows, width in ((size, 5), (48, 9))]
    response = torch.randint(size, (tokens,), generator=random)
    found = compare(student, heads[0], teacher, heads[1], response, torch.tensor([3, 17]))
    # A longer head is cut: ids that only one model has are padding.
    p, q = ((h @ head[:size].T).softmax(-1).numpy() for h, head in zip((student, teacher), heads, strict=True))
    assert_same(found._asdict(), naive(p, q, response.numpy(), [3, 17]), 1e-9)


PEAKS = """
import resource, torch
from trd_cli.losses.positions import compare
head = torch.randn(150_000, 64)
for tokens in (256, 640):
    states = torch.randn(tokens, 64)
    compare(states, head, states, head, torch.randint(150_000, (tokens,)), torch.tensor([5]))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def test_the_memory_does_not_grow_with_the_positions() -> None:
    peaks = subprocess.run([sys.executable, "-c", PEAKS], capture_output=True, text=True, check=True).stdout.split()
    # The logits of 384 more tokens would take 220 MiB a side.
    assert int(peaks[1]) - int(peaks[0]) < 40


def random_examples() -> list[Any]:
    from trd_cli.training.batches import Example

    random = np.random.default_rng(0)

    def ids(count: int) -> np.ndarray:
        return random.integers(4, VOCABULARY, count)

    return [Example(f"row-{i}", ids(12 + i), ids(20 - i), ids(length)) for i, length in enumerate((40, 41, 300, 1, 39))]


@pytest.fixture(scope="module")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return two models with random weights."""
    home = tmp_path_factory.mktemp("strangers")
    return build_model(home / "a"), build_model(
        home / "b", seed=1, hidden_size=40, num_attention_heads=5, num_key_value_heads=5
    )


def test_both_models_read_the_response_in_their_own_context(strangers: tuple[Path, Path]) -> None:
    onset = [7, 30, 31, 200]
    scorer = Scorer(*(resolve_model(str(path)) for path in strangers), ScoringOptions(device="cpu"), onset)
    examples = random_examples()
    for example, found in zip(examples, scorer.score(examples), strict=True):
        sides = []
        for path, prompt in zip(strangers, (example.student_prompt, example.teacher_prompt), strict=True):
            ids = torch.tensor([[*prompt, *example.response_ids]])
            with torch.no_grad():
                logits = reference_model(path)(ids.long()).logits[0, len(prompt) - 1 : -1]
            sides.append(logits.double().softmax(-1).numpy())
        response = example.response_ids
        wanted = naive(*sides, response, onset) | {"response_ids": response, "is_onset": np.isin(response, onset)}
        assert_same(values(found), wanted, 2e-3)


def test_in_float32_a_row_has_the_same_bits_whatever_is_beside_it(strangers: tuple[Path, Path]) -> None:
    models = [resolve_model(str(path)) for path in strangers]
    examples = random_examples()

    def figures(order: list[int], **options: Any) -> list[bytes]:
        found = Scorer(*models, ScoringOptions(device="cpu", **options), [7]).score([examples[i] for i in order])
        by_number = dict(zip(order, found, strict=True))
        return [b"".join(column.tobytes() for column in values(by_number[i]).values()) for i in range(len(order))]

    alone = figures([0, 1, 2, 3, 4])
    assert figures([4, 2, 0, 3, 1], max_tokens_per_batch=64) == alone


def test_in_bfloat16_rows_are_read_together_and_differ_by_rounding(strangers: tuple[Path, Path]) -> None:
    models = [resolve_model(str(path)) for path in strangers]
    examples = random_examples()
    exact = Scorer(*models, ScoringOptions(device="cpu"), [7]).score(examples)
    coarse = Scorer(*models, ScoringOptions(device="cpu", dtype="bfloat16"), [7])
    assert coarse.rows_at_once > 1
    for one, other in zip(exact, coarse.score(examples), strict=True):
        assert len(one) == len(other)
        assert abs(one.forward_kl.mean() - other.forward_kl.mean()) < 0.2


def test_a_model_that_is_its_own_teacher_differs_nowhere_in_equal_contexts(strangers: tuple[Path, Path]) -> None:
    model = resolve_model(str(strangers[0]))
    examples = [replace(e, teacher_prompt=e.student_prompt) for e in random_examples()]
    for found in Scorer(model, model, ScoringOptions(device="cpu"), [7]).score(examples):
        assert not found.forward_kl.any()
        assert not found.l2.any()
        assert (found.overlap == 16).all()


def test_a_closed_engine_frees_its_models_at_once_even_where_they_refer_to_each_other(pair: tuple[Path, Path]) -> None:
    own = Scorer(*(resolve_model(str(path)) for path in pair), ScoringOptions(device="cpu"), [ONSET])
    own.again = own
    engine, freed = ScoringEngine(own, "1"), weakref.ref(own)
    del own
    engine.close()
    assert freed() is None


def test_repetition_tells_a_loop_from_prose() -> None:
    prose = "The train leaves at nine, so Mia has forty minutes to walk, eat and buy a ticket for her brother."
    assert repetition("") is None
    assert repetition(prose) < 2 < 50 < repetition("wait, no. " * 2000)
    assert repetition("z" * 500 + prose * 200) == repetition(prose * 200), "the tail alone counts"


# Onset tokens


@pytest.fixture(scope="module")
def spelling(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a tokenizer that knows Wait, also after a space, and the first five letters of Alternatively."""
    from trd_cli.prompting.tokens import HubTokenizer

    home = tmp_path_factory.mktemp("spelling")
    (home / "config.json").write_text('{"model_type": "llama"}')
    merges = ["W a", "Wa i", "Wai t", "Ġ Wait", "A l", "Al t", "Alt e", "Alte r", "B u", "Bu t", "L e", "Le t"]
    write_tokenizer(home, tuple(tuple(merge.split()) for merge in merges))
    return HubTokenizer(home)


def test_a_word_counts_by_the_first_token_of_each_of_its_forms(spelling: Any) -> None:
    onset = onset_of(["Wait", "Alternatively", "But"], spelling)
    assert sorted(onset.tokens.values()) == [" Wait", "Alter", "But", "Wait"]
    assert onset.ids == tuple(sorted(onset.tokens))
    assert onset.silent == {}


def test_a_first_token_that_most_words_share_is_named_and_not_counted(spelling: Any) -> None:
    onset = onset_of(["Hmm", "Let me check", "Wait"], spelling)
    assert sorted(onset.tokens.values()) == [" Wait", "Wait"]
    assert onset.silent == {"Hmm": "H", "Let me check": "Let"}
    assert onset.left_out[" Hmm"] == " "
    assert [("Hmm" in note, "Let me check" in note) for note in onset.notes()] == [(True, True)]


def test_a_list_of_words_has_comments_and_each_word_once(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("# of ours\nWait  # often\n\nHmm\nWait\n")
    assert read_words(str(tmp_path / "words.txt")) == ("Wait", "Hmm")
    assert "Wait" in read_words(None)


# The command


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, pair: tuple[Path, Path], ok: Trd) -> Path:
    """Return a directory with graded rollouts y_o, refined rows y_r, and their diagnosis."""
    home = tmp_path_factory.mktemp("sets")
    student, teacher = pair
    problems = write_problems_of_pair(home / "problems.parquet", 10)
    ok("sample", "-m", student, "-p", problems, "-n", 2, *DRAW, "--out", home / "y_o")
    ok("verify", home / "y_o")
    ok("refine", "--setting", "opd", "-t", teacher, *DRAW, "--out", home / "y_r", home / "y_o")
    ok("verify", home / "y_r")
    ok("diagnose", home / "y_o", home / "y_r", *CPU, "--out", home / "diagnosis")
    return home


def by_id(directory: Path) -> dict[str, dict[str, Any]]:
    """Return all figures in the shards of a diagnosis by the ids of the rows; fail if one is there twice."""
    found = [row for table in iter_figures(directory) for row in table.to_pylist()]
    assert len({row["trajectory_id"] for row in found}) == len(found)
    return {row["trajectory_id"]: {name: repr(value) for name, value in row.items()} for row in found}


def sessions(directory: Path) -> list[int]:
    return [json.loads(line)["rows"] for line in (directory / "sessions.jsonl").read_text().splitlines()]


def test_each_row_of_both_sets_has_figures_and_verdicts(home: Path) -> None:
    rows = {row["trajectory_id"]: row for row in read_rows(home / "diagnosis").to_pylist()}
    written = {row.trajectory_id: row for name in ("y_o", "y_r") for row in rows_of(home / name)}
    assert {*rows} == {*written}
    for name, row in rows.items():
        of = written[name]
        assert (row["kind"], row["verdict"], row["error"]) == (of.stage, of.verdict, None)
        assert row["parent_verdict"] == (written[of.parent_id].verdict if of.parent_id else None)
        students = of.prompt_token_ids if of.stage == "rollout" else of.student_prompt_token_ids
        assert row["student_prompt_tokens"] == len(students)
        assert (row["finish_reason"], row["characters"]) == (of.finish_reason, len(of.response))


def test_figures_of_rows_are_means_over_their_positions(home: Path) -> None:
    rows = {row["trajectory_id"]: row for row in read_rows(home / "diagnosis").to_pylist()}
    for table in iter_figures(home / "diagnosis"):
        figures = {name: flat(table, name) for name in POSITION_TYPES}
        for i, name in enumerate(table["trajectory_id"].to_pylist()):
            at = {n: column[offsets[i] : offsets[i + 1]] for n, (column, offsets) in figures.items()}
            row, nll = rows[name], -at["student_logprob"].mean()
            assert row["tokens"] == len(at["response_ids"])
            assert row["student_nll"] == pytest.approx(nll, rel=2e-3)
            assert row["student_perplexity"] == pytest.approx(np.exp(nll), rel=5e-3)
            assert row["mean_forward_kl"] == pytest.approx(at["forward_kl"].mean(), rel=2e-3)
            assert row["mean_overlap"] == pytest.approx(at["overlap"].mean() / 16)
            assert row["triggers"] == at["trigger"].sum()
            assert row["first_trigger"] == next(iter(np.flatnonzero(at["trigger"])), None)
            assert row["onset_per_1000"] == pytest.approx(1000 * (at["response_ids"] == ONSET).mean())


def test_the_trigger_is_where_the_walk_goes_wrong(home: Path) -> None:
    for table in iter_figures(home / "diagnosis"):
        ids, offsets = flat(table, "response_ids")
        trigger, _ = flat(table, "trigger")
        before = np.concatenate([[-1], ids[:-1]])
        before[offsets[:-1][np.diff(offsets) > 0]] = ID[START]
        np.testing.assert_array_equal(trigger, before == ID["bad"])


def test_the_onset_words_and_ids_are_saved(home: Path) -> None:
    record = json.loads((home / "diagnosis" / "onset.json").read_text())
    assert read_onset_ids(home / "diagnosis") == (ONSET,)
    assert record["tokens"] == {str(ONSET): "Wait"}
    assert "Hmm" in record["silent"]
    assert "first token" in record["rule"]


def test_the_figures_do_not_depend_on_shards_batches_or_replicas(home: Path, tmp_path: Path, ok: Trd) -> None:
    sets, whole = (home / "y_o", home / "y_r"), home / "diagnosis"
    ok("diagnose", *sets, *CPU, "--max-tokens-per-batch", 8, "--out", tmp_path / "batches")
    ok("diagnose", *sets, *CPU, "--shard-rows", 7, "--out", tmp_path / "shards")
    ok("diagnose", *sets, *CPU, "--replicas", 2, "--out", tmp_path / "replicas")
    assert [path.read_bytes() for path in list_shards(tmp_path / "batches")] == [
        path.read_bytes() for path in list_shards(whole)
    ]
    assert len(list_shards(tmp_path / "shards")) == 6
    for name in ("batches", "shards", "replicas"):
        assert by_id(tmp_path / name) == by_id(whole), name
        assert (tmp_path / name / "rows.parquet").read_bytes() == (whole / "rows.parquet").read_bytes(), name


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    with forking("import torch, transformers, trd_cli.stages.diagnose", tmp_path_factory.mktemp("child")) as run:
        yield run


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["INT", "KILL"])
def test_a_diagnosis_that_was_stopped_scores_what_is_missing(
    number: signal.Signals, start: Start, home: Path, tmp_path: Path, ok: Trd, trd: Trd
) -> None:
    out = tmp_path / "out"
    command = ("diagnose", home / "y_o", home / "y_r", *CPU, "--shard-rows", 2, "--out", out)
    run = start(*command)
    wait_for(lambda: out.is_dir() and list_shards(out))
    assert run.kill(number) == {signal.SIGINT: 130, signal.SIGKILL: -9}[number]
    done = len(by_id(out))
    assert 0 < done < 40
    status = trd("status", out)
    assert (status.exit_code, status.stdout.split("\t")[2:5]) == (4, ["unfinished", str(done), str(40 - done)])
    ok(*command)
    assert by_id(out) == by_id(home / "diagnosis")
    assert sessions(out)[-1] == 40 - done
    assert ok("status", out).stdout.split("\t")[1:6] == ["diagnose", "complete", "40", "0", "0"]


def test_verdicts_that_come_later_are_joined_without_scoring_again(
    home: Path, pair: tuple[Path, Path], tmp_path: Path, ok: Trd
) -> None:
    y_o, out = tmp_path / "y_o", tmp_path / "out"
    ok("sample", "-m", pair[0], "-p", home / "problems.parquet", *DRAW, "--out", y_o)
    command = ("diagnose", y_o, "--teacher", pair[1], *CPU, "--out", out)
    ok(*command)
    assert set(read_rows(out)["verdict"].to_pylist()) == {None}
    ok("verify", y_o)
    assert ok(*command).stdout == f"{out / 'rows.parquet'}\n"
    assert {*read_rows(out)["verdict"].to_pylist()} <= {"correct", "incorrect"}
    assert sessions(out) == [10]


def test_y_o_and_y_r_are_read_in_the_same_contexts_unless_the_refinement_prompt_is_asked_for(
    home: Path, tmp_path: Path, ok: Trd
) -> None:
    def contexts(directory: Path) -> dict[str, set[tuple[int, int]]]:
        found: dict[str, set[tuple[int, int]]] = {}
        for row in read_rows(directory).to_pylist():
            lengths = row["student_prompt_tokens"], row["teacher_prompt_tokens"]
            found.setdefault(row["kind"], set()).add(lengths)
        return found

    vanilla = contexts(home / "diagnosis")
    assert vanilla["rollout"] == vanilla["refined"]
    ok("diagnose", home / "y_r", *CPU, "--teacher-context", "refine", "--out", tmp_path / "refine")
    stored = {len(row.prompt_token_ids) for row in rows_of(home / "y_r")}
    assert {teachers for _, teachers in contexts(tmp_path / "refine")["refined"]} == stored


def test_a_limit_takes_the_same_attempts_of_both_sets(home: Path, tmp_path: Path, ok: Trd) -> None:
    ok("diagnose", home / "y_o", home / "y_r", *CPU, "--limit", 5, "--out", tmp_path / "out")
    rows = read_rows(tmp_path / "out").to_pylist()
    first = sorted(row.trajectory_id for row in rows_of(home / "y_o"))[:5]
    assert sorted(row["trajectory_id"] for row in rows if row["kind"] == "rollout") == first
    assert sorted(row["parent_id"] for row in rows if row["kind"] == "refined") == first


def test_a_row_that_cannot_be_scored_is_counted_and_the_others_are_scored(
    home: Path, pair: tuple[Path, Path], tmp_path: Path, trd: Trd
) -> None:
    rows = [row for path in list_shards(home / "y_o") for row in read_trajectories(path)][:6]
    rows[1] = replace(rows[1], response=None, response_token_ids=None, error="the server was away")
    rows[3] = replace(rows[3], response_token_ids=[5, 99])
    bad = write_set(tmp_path / "bad", [rows])
    command = ("diagnose", bad, "--student", pair[0], "--teacher", pair[1], *CPU, "--out", tmp_path / "out")
    for more in ((), ("--retry-errors",)):
        result = trd(*command, "--max-errors", 1, *more)
        assert result.exit_code == 3
        assert "2 of 6 rows ended as errors" in result.stderr
    assert sessions(tmp_path / "out") == [6, 2]
    found = {row["trajectory_id"]: row["error"] for row in read_rows(tmp_path / "out").to_pylist()}
    assert [found[row.trajectory_id] for row in (rows[1], rows[3])] == [
        "the server was away",
        f"the response has a token id that {pair[0]} has no embedding for",
    ]
    whole = by_id(home / "diagnosis")
    scored = {name: row for name, row in by_id(tmp_path / "out").items() if found[name] is None}
    assert len(scored) == 4
    assert all(row["forward_kl"] == whole[name]["forward_kl"] for name, row in scored.items())


Wrong = Callable[[Path, Path], tuple[tuple[object, ...], str]]
WRONG_COMMANDS: dict[str, Wrong] = {
    "no teacher": lambda home, _: ((home / "y_o",), "no teacher; expected --teacher MODEL"),
    "a list that is not there": lambda home, _: (
        (home / "y_r", "--onset", "gone.txt"),
        "--onset gone.txt: No such file",
    ),
    "a list of nothing": lambda home, tmp: ((home / "y_r", "--onset", tmp / "empty.txt"), "has no word"),
    "another context, same output": lambda home, _: (
        (home / "y_o", home / "y_r", *CPU, "--teacher-context", "refine", "--out", home / "diagnosis"),
        "teacher_context (vanilla → refine)",
    ),
    "an option of --recover alone": lambda home, _: (
        (home / "y_r", "--recover-by", "both"),
        "--recover-by without --recover; expected --recover, which reads it",
    ),
    "an option of grading without --recover": lambda home, _: (
        (home / "y_r", "--lenient"),
        "--lenient without --recover",
    ),
    "a diagnosis for a set": lambda home, _: ((home / "diagnosis", "--setting", "opsd"), "is a shard of a diagnosis"),
}


@pytest.mark.parametrize("name", WRONG_COMMANDS)
def test_bad_input_is_one_line(name: str, home: Path, tmp_path: Path, trd: Trd) -> None:
    (tmp_path / "empty.txt").write_text("# nothing\n")
    arguments, words = WRONG_COMMANDS[name](home, tmp_path)
    before = sorted(home.rglob("*"))
    result = trd("diagnose", *arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    assert words in result.stderr.splitlines()[-1]
    assert sorted(home.rglob("*")) == before


def told_otherwise(source: Path, target: Path, **about: str) -> Path:
    """Return a copy of a set whose run.json tells other things of it."""
    shutil.copytree(source, target)
    by_hand(target / "run.json", lambda run: run["about"].update(about))
    return target


@pytest.mark.parametrize(
    ("name", "about", "option", "told"),
    [
        ("y_o", {"model_revision": "later"}, ("--student", "student"), "other differ in student_revision"),
        (
            "y_r",
            {"student": "x", "student_revision": "y"},
            ("--student", "student"),
            "differ in student, student_revision",
        ),
        ("y_r", {"model": "x"}, ("--teacher", "teacher"), "other differ in teacher;"),
        ("y_r", {"setting": "opsd"}, ("--setting", "opd"), "other differ in setting;"),
    ],
)
def test_sets_of_two_models_or_settings_are_read_together_only_if_one_is_asked_for(
    name: str,
    about: dict[str, str],
    option: tuple[str, str],
    told: str,
    home: Path,
    pair: tuple[Path, Path],
    trd: Trd,
    tmp_path: Path,
) -> None:
    other = told_otherwise(home / name, tmp_path / "other", **about)
    command = ("diagnose", home / "y_r", home / "y_o", other, "--dry-run", "--out", tmp_path / "out")
    result = trd(*command)
    assert result.exit_code == 1
    assert told in result.stderr
    assert f"take each by itself, or give {option[0]}" in result.stderr
    paths = dict(zip(("student", "teacher"), pair, strict=True))
    assert trd(*command, option[0], paths.get(option[1], option[1])).exit_code == 0


def test_a_diagnosis_tells_the_built_in_templates_from_which_its_contexts_are_made(home: Path) -> None:
    identity = json.loads((home / "diagnosis" / "run.json").read_text())["identity"]
    assert identity["prompt"] == {task: load_template("vanilla-opd", task).sha256 for task in ("math", "code")}


def test_a_diagnosis_that_was_stopped_before_its_first_shard_gives_way_to_another(
    home: Path, tmp_path: Path, ok: Trd
) -> None:
    for name in ("run.json", "onset.json"):
        (tmp_path / "out").mkdir(exist_ok=True)
        shutil.copy(home / "diagnosis" / name, tmp_path / "out" / name)
    command = ("diagnose", home / "y_o", home / "y_r", "--teacher-context", "refine", "--out", tmp_path / "out")
    assert "would score" in ok(*command, "--dry-run").stderr


def test_recovery_offers_only_engines_that_can_be_had(home: Path, trd: Trd) -> None:
    for engine in ("openai", "scripted"):
        assert trd("diagnose", home / "y_o", "--recover", "--recover-engine", engine).exit_code == 2


def test_a_cluster_whose_dtype_this_machine_decides_is_told(home: Path, trd: Trd) -> None:
    command = ("diagnose", home / "y_o", home / "y_r", "--device", "cpu", "--ray", "auto", "--dry-run")
    assert "--dtype auto is float32, as on this machine" in trd(*command).stderr
    assert "--dtype auto" not in trd(*command, "--dtype", "bfloat16").stderr


def test_a_shard_of_more_positions_than_its_offsets_can_count_is_refused(tmp_path: Path) -> None:
    # Arrays that repeat one number, and take no memory.
    many = {f.name: np.broadcast_to(np.int8(0), 2**30) for f in fields(PositionFigures)}
    values = {"trajectory_id": "a", "problem_id": "p", "kind": "rollout", "round": 0, "sample_index": 0}
    row = RowFigures({**values, "source": "s", "task": "math"}, positions=PositionFigures(**many))
    with pytest.raises(InputError, match="2,147,483,648 tokens in a shard; expected at most 2,147,483,647"):
        write_figures(tmp_path / "shard-00000.parquet", [row, row], None)


def test_a_dry_run_shows_what_both_models_read_and_writes_nothing(home: Path, tmp_path: Path, trd: Trd) -> None:
    result = trd("diagnose", home / "y_o", home / "y_r", "--limit", 1, "--out", tmp_path / "out", "--dry-run")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "teacher reads" in result.stderr
    assert "would score 2 rows with" in result.stderr
    assert not (tmp_path / "out").exists()
