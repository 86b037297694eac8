"""trd data overlap: n-grams by hand and by brute force, the command, and real training sets against benchmarks."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Trd
from support.sets import iter_rows

from trd_cli.config.commands import ImportConfig, OverlapConfig
from trd_cli.datasets.importing import import_problems
from trd_cli.datasets.ngrams import SIZES, Overlap, QuestionIndex, split_words
from trd_cli.datasets.overlap import Overlaps, run
from trd_cli.errors import InputError
from trd_cli.progress import SilentProgress
from trd_cli.records import Problem
from trd_cli.trajectories.problem_sets import read_problems
from trd_cli.trajectories.shards import list_shards, write_problems, write_shard

DATA = Path(os.environ.get("TRD_DATA", Path(__file__).resolve().parent.parent.parent / "shared" / "data"))
WORDS = [
    "alpha",
    "beta",
    "gamma",
    "delta",
    "epsilon",
    "zeta",
    "eta",
    "theta",
    "iota",
    "kappa",
    "lambda",
    "mu",
    "nu",
    "xi",
    "omicron",
    "pi",
    "rho",
    "sigma",
]


def first(n: int, then: str = "") -> str:
    """Return the first n of WORDS and then some more."""
    return " ".join([*WORDS[:n], then])


def problem_set(path: Path, texts: Sequence[str], prefix: str) -> Path:
    write_problems(path, [Problem(f"{prefix}{i}", "made", "math", text) for i, text in enumerate(texts)])
    return path


@pytest.fixture
def compare(tmp_path: Path):
    """Compare training texts t0, t1, … with questions q0, q1, … of one benchmark."""

    def compare(train: Sequence[str], questions: Sequence[str], **options: object) -> Overlaps:
        paths = [
            problem_set(tmp_path / f"{name}.parquet", texts, name[0])
            for name, texts in (("train", train), ("questions", questions))
        ]
        config = OverlapConfig(train=str(paths[0]), bench=(str(paths[1]),), **options)
        return run(config, SilentProgress())

    return compare


def overlaps(text: str, questions: Sequence[str], common: int = 0) -> list[Overlap]:
    index = QuestionIndex(questions, ["bench"] * len(questions))
    shared = index.shared(text)
    return [] if shared is None else index.overlaps(shared, index.boilerplate([(text, shared)], common))


def hits(text: str, question: str) -> dict[int, bool]:
    found = overlaps(text, [question])
    return dict(found[0].hit) if found else dict.fromkeys(SIZES, False)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Hello, WORLD! It's 3.50", "hello world it s 3 50"),
        (r"$x^2$ and \(x_{2}\) and x²", "x 2 and x 2 and x 2"),
        (r"\dfrac{1}{\sqrt{2}}", "1 sqrt 2"),
        (r"\frac{1}{\sqrt{2}}", "1 sqrt 2"),
        (r"\left( 2x \right) \cdot \text{cm}", "2 x cm"),
        (r"\leftarrow", "leftarrow"),
        (r"\begin{align*} a &= b \\c &= d \end{align*}", "a b c d"),
        ("2 ≤ n", "2 n"),
        (r"2 \le n", "2 n"),
        ("ÜBER Straße ﬁve 𝑥", "über straße five x"),
        ("求 n 个", "求 n 个"),
        ("整数と", "整 数 と"),
        ("snake_case2", "snake case 2"),
        ("?!", ""),
    ],
)
def test_words_are_runs_of_letters_or_digits_without_layout_commands(text: str, words: str) -> None:
    assert split_words(text) == words.split()


@pytest.mark.parametrize(
    ("shared", "at_8", "at_13"), [(7, False, False), (8, True, False), (12, True, False), (13, True, True)]
)
def test_a_run_counts_from_eight_and_from_thirteen_words(shared: int, at_8: bool, at_13: bool) -> None:
    question = first(shared, "one two three four five six seven eight nine ten eleven twelve")
    assert hits("before " + first(shared, "after"), question) == {8: at_8, 13: at_13}


def test_a_finding_has_the_longest_run_and_the_share_of_the_questions_ngrams() -> None:
    question = first(18)  # 11 8-grams and 6 13-grams
    (found,) = overlaps("x " + first(14) + " y " + " ".join(WORDS[8:18]), [question])
    assert found.run == 14
    assert found.covered == {8: 10 / 11, 13: 2 / 6}
    assert not found.equal


def test_two_halves_of_a_question_are_no_longer_run() -> None:
    (found,) = overlaps(" ".join(WORDS[9:18]) + " " + " ".join(WORDS[:9]), [first(18)])
    assert (found.run, found.covered[8], found.hit[13]) == (9, 4 / 11, False)


def test_case_punctuation_and_layout_do_not_hide_a_copy() -> None:
    text = r"FIND \textbf{all} $\dfrac{a}{b}$: alpha, beta. Gamma; delta!"
    (found,) = overlaps(text, [r"find all \(\frac{a}{b}\) alpha beta gamma delta"])
    assert found.equal
    assert found.run == 8


def test_a_question_of_eight_to_twelve_words_is_hit_at_thirteen_by_a_text_that_holds_all_of_it() -> None:
    question = "how many apples are left in the big box"
    (found,) = overlaps(f"Say {question} today?", [question])
    assert (found.run, found.hit, found.equal) == (9, {8: True, 13: True}, False)
    (found,) = overlaps("how many apples are left in the big bag", [question])
    assert (found.run, found.hit) == (8, {8: True, 13: False})


def test_a_short_question_is_hit_by_an_equal_text_only() -> None:
    question = r"Compute $\sin 60^\circ$."
    (found,) = overlaps("compute sin 60°", [question])
    assert (found.run, found.covered, found.hit) == (3, {8: 1.0, 13: 1.0}, {8: True, 13: True})
    assert overlaps("compute sin 60° now", [question]) == []


def test_texts_without_words_equal_nothing() -> None:
    assert overlaps("?", ["!", ""]) == []


def brute_force(train: Sequence[str], questions: Sequence[str], common: int) -> list[tuple]:
    """Return (row, question, run, covered 8, covered 13, hit 8, hit 13), by comparing every pair of texts directly."""

    def grams(text: str, n: int) -> set[str]:
        words = text.split()
        return {" ".join(words[i : i + n]) for i in range(len(words) - n + 1)}

    def is_common(gram: str, n: int) -> bool:
        return bool(common) and any(
            len({text for text in texts if gram in grams(text, n)}) > common for texts in (train, questions)
        )

    rows = []
    for (t, text), (q, question) in ((a, b) for a in enumerate(train) for b in enumerate(questions)):
        covered, hit = [], []
        for n in SIZES:
            own = grams(question, n)
            both = own & grams(text, n)
            covered.append(len(both) / len(own) if own else float(text == question))
            whole = len(question.split()) >= 8 and question in text
            short = n == 13 and len(question.split()) < 13 and whole
            hit.append(text == question or short or any(not is_common(g, n) for g in both) or covered[-1] >= 0.7)
        if any(hit):
            run = max(n for n in range(len(question.split()) + 1) if n == 0 or grams(question, n) & grams(text, n))
            rows.append((t, q, run, *covered, any(hit), hit[1]))
    return rows


@pytest.mark.parametrize("common", [0, 1, 3])
def test_findings_are_those_of_brute_force_on_random_texts(compare, common: int) -> None:
    rng = random.Random(common)
    stream = [rng.choice(WORDS[:6]) for _ in range(80)]

    def text() -> str:
        parts = []
        for _ in range(rng.randint(1, 3)):
            start = rng.randrange(len(stream))
            parts += stream[start : start + rng.randint(3, 20)]
        return " ".join(parts)

    train, questions = ([text() for _ in range(count)] for count in (40, 20))
    train += train[:2] + questions[:3]
    found = compare(train, questions, common=common).findings
    seen = [(f.row, int(f.question_id[1:]), f.run, f.covered_8, f.covered_13, f.hits_at(8), f.hit_13) for f in found]
    expected = brute_force(train, questions, common)
    assert seen == expected
    assert len({row[-1] for row in expected}) == 2, "both kinds of hits are there"


def test_a_sentence_that_many_training_problems_share_is_no_hit(compare) -> None:
    sentence = first(14)
    train = [f"{sentence} {word}" for word in ["one", "two", "three", "four"]]
    question = sentence + " and then something of its own that is long enough to matter here"
    assert len(compare(train, [question], common=4).offending) == 4
    ignoring = compare(train, [question], common=3)
    assert ignoring.findings == ()
    (counts,) = ignoring.benchmarks.values()
    assert counts["ignored"] == {8: 7, 13: 2}


def test_a_sentence_that_many_questions_share_is_no_hit(compare) -> None:
    questions = [f"{first(14)} {word} {'and so on ' * 9}{word}" for word in ["one", "two", "three", "four"]]
    train = [f"{first(14)} other"]
    assert len(compare(train, questions, common=4).findings) == 4
    assert compare(train, questions, common=3).findings == ()


def test_a_hit_at_thirteen_is_one_at_eight_though_all_its_8grams_are_boilerplate() -> None:
    texts = [first(13, "x"), " ".join(WORDS[:10]), " ".join(WORDS[3:13])]
    index = QuestionIndex([first(13, "and then something of its own that is long enough to matter")], ["bench"])
    found = [(text, shared) for text in texts if (shared := index.shared(text)) is not None]
    boilerplate = index.boilerplate(found, common=1)
    assert {len(gram) for gram in boilerplate.everywhere} == {8}
    assert [[o.hit for o in index.overlaps(shared, boilerplate)] for _, shared in found] == [
        [{8: True, 13: True}],
        [],
        [],
    ]


def test_copies_of_one_text_do_not_make_it_boilerplate(compare) -> None:
    train = [first(14, "one")] * 5
    question = first(14, "and then something of its own that is long enough to matter here")
    assert len(compare(train, [question], common=1).offending) == 5
    assert len(compare(train[:1], [question] * 5, common=1).findings) == 5


def test_boilerplate_never_hides_a_near_copy(compare) -> None:
    train = [f"{first(17)} {word}" for word in ["one", "two", "three", "four"]]
    found = compare(train, [first(18)], common=1)
    assert [f.row for f in found.offending] == [0, 1, 2, 3]
    assert found.offending[0].covered_13 == 5 / 6


def test_the_line_of_a_row_is_the_question_with_the_longest_run(compare) -> None:
    questions = [first(13, "x y z"), first(16, "x"), first(14, "z")]
    found = compare([first(18), "nothing in common"], questions)
    assert [f.question_id for f in found.findings] == ["q0", "q1", "q2"]
    assert [(f.problem_id, f.question_id, f.run) for f in found.offending] == [("t0", "q1", 16)]


def test_counts_are_of_questions_and_of_rows(compare) -> None:
    train = [first(13, "a"), first(13, "b"), " ".join(WORDS[8:18]), "else"]
    found = compare(train, [first(18, "c d"), first(13, "a"), "e"])
    (counts,) = found.benchmarks.values()
    assert found.rows == 4
    assert {name: counts[name] for name in ("questions", "equal", "questions_hit", "rows_hit", "ignored")} == {
        "questions": 3,
        "equal": 1,
        "questions_hit": {8: 2, 13: 2},
        "rows_hit": {8: 3, 13: 2},
        "ignored": {8: 0, 13: 0},
    }


def test_the_command_prints_one_tab_separated_line_a_row_and_ends_with_zero(ok: Trd, tmp_path: Path) -> None:
    train = problem_set(tmp_path / "train.parquet", [first(13, "x"), "clean", first(9, "y")], "t")
    bench = problem_set(tmp_path / "bench.parquet", [first(18)], "q")
    out = tmp_path / "new" / "all.json"
    shown = ok("data", "overlap", train, f"{bench},arithmetic:n=3,seed=2", "--out", out)
    assert shown.stdout.splitlines() == [f"t0\t\tproblem\t{bench}\tq0\t13\t0.545\t0.167"]
    assert "1 of 3 rows (33.33%) overlap at n = 13" in shown.stderr
    saved = json.loads(out.read_text())
    assert [(f["problem_id"], f["hit_13"]) for f in saved["findings"]] == [("t0", True), ("t2", False)]
    assert len(saved["benchmarks"][str(bench)]["sha256"]) == 64
    assert saved["benchmarks"][str(bench)]["questions_hit"] == {"8": 1, "13": 1}
    assert saved["benchmarks"]["arithmetic:n=3,seed=2"]["rows_hit"] == {"8": 0, "13": 0}
    stricter = ok("data", "overlap", train, bench, "--n", 8).stdout.splitlines()
    assert [line.split("\t")[0] for line in stricter] == ["t0", "t2"]


def test_several_benchmarks_are_arguments_or_a_list_and_one_named_twice_counts_once(ok: Trd, tmp_path: Path) -> None:
    train = problem_set(tmp_path / "train.parquet", [first(13, "x")], "t")
    one, two = (problem_set(tmp_path / f"{n}.parquet", [first(14 + n)], "q") for n in (1, 2))
    apart, joined = (ok("data", "overlap", train, *names) for names in ((one, two), (f"{one},{two},{one}",)))
    assert apart.stdout == joined.stdout
    for shown in (apart, joined):
        assert [shown.stderr.count(f"{path}: 1 question,") for path in (one, two)] == [1, 1]


def test_drop_keeps_exactly_the_clean_rows_in_their_order(ok: Trd, tmp_path: Path) -> None:
    texts = ["zeta one", first(13, "x"), "alpha two", first(9, "y"), "beta three"]
    train = problem_set(tmp_path / "train.parquet", texts, "t")
    bench = problem_set(tmp_path / "bench.parquet", [first(18)], "q")
    whole = read_problems(train)
    for n, kept in ((13, (0, 2, 3, 4)), (8, (0, 2, 4))):
        clean = tmp_path / f"clean-{n}.parquet"
        shown = ok("data", "overlap", train, bench, "--n", n, "--drop", clean)
        assert read_problems(clean) == [whole[i] for i in kept]
        assert f"{len(kept)} clean problems" in shown.stderr
        assert ok("data", "overlap", clean, bench, "--n", n).stdout == ""
    assert read_problems(train) == whole


@pytest.mark.parametrize("flag", ["--drop", "--out"])
@pytest.mark.parametrize("which", ["train.parquet", "./bench.parquet"])
def test_an_output_that_is_an_input_is_refused(trd: Trd, tmp_path: Path, flag: str, which: str) -> None:
    train = problem_set(tmp_path / "train.parquet", [first(13)], "t")
    bench = problem_set(tmp_path / "bench.parquet", [first(18)], "q")
    before = train.read_bytes(), bench.read_bytes()
    refused = trd("data", "overlap", train, bench, flag, f"{tmp_path}/{which}")
    assert refused.exit_code == 1
    assert "another file of this command" in refused.stderr
    assert (train.read_bytes(), bench.read_bytes()) == before


def test_drop_of_every_row_is_refused(trd: Trd, tmp_path: Path) -> None:
    train = problem_set(tmp_path / "train.parquet", [first(13)], "t")
    refused = trd("data", "overlap", train, problem_set(tmp_path / "b.parquet", [first(18)], "q"), "--drop", "c")
    assert (refused.exit_code, refused.stderr.splitlines()[-1]) == (
        1,
        "trd data overlap: error: 0 of 1 row without overlap; expected at least one clean row to write; leave --drop out",
    )


def test_what_cannot_be_used_ends_in_one_line(trd: Trd, tmp_path: Path, rollouts: Path) -> None:
    train = problem_set(tmp_path / "train.parquet", ["a"], "t")
    cases = {
        (tmp_path / "none.parquet", train): "no such file",
        (train, "no-such-benchmark"): "no-such-benchmark",
        (rollouts, train, "--drop", tmp_path / "clean.parquet"): "trajectory set",
        (train, "arithmetic:n=2", "--responses"): "problem set",
        (tmp_path, train): "no shards",
    }
    for words, expected in cases.items():
        refused = trd("data", "overlap", *words)
        assert (refused.exit_code, len(refused.stderr.splitlines())) == (1, 1), words
        assert expected in refused.stderr
    assert trd("data", "overlap", train, train, "--n", 9).exit_code == 2


def test_of_a_trajectory_set_problems_are_compared_and_responses_when_asked(
    ok: Trd, rollouts: Path, problems: Path, tmp_path: Path
) -> None:
    count = len(list(iter_rows(list_shards(rollouts))))
    lines = [line.split("\t") for line in ok("data", "overlap", rollouts, problems).stdout.splitlines()]
    assert len(lines) == count
    assert [line[0] for line in lines] == [line[4] for line in lines], "every row's problem is its question"
    assert {line[2] for line in lines} == {"problem"}

    (shard, *_) = list_shards(rollouts)
    rows = list(iter_rows([shard]))
    rows[3] = replace(rows[3], response="I recall: " + first(14))
    changed = tmp_path / "changed" / "shard-00000.parquet"
    changed.parent.mkdir()
    write_shard(changed, rows)
    bench = problem_set(tmp_path / "bench.parquet", [first(18)], "q")
    assert ok("data", "overlap", changed, bench).stdout == ""
    (line,) = ok("data", "overlap", changed, bench, "--responses").stdout.splitlines()
    assert line.split("\t")[1:6] == [rows[3].trajectory_id, "response", str(bench), "q0", "14"]


def test_rollouts_of_one_problem_do_not_make_its_words_boilerplate(ok: Trd, rollouts: Path, problems: Path) -> None:
    lines = ok("data", "overlap", rollouts, problems, "--common", 1).stdout.splitlines()
    assert len(lines) == len(list(iter_rows(list_shards(rollouts))))


def test_two_runs_print_and_write_the_same(ok: Trd, tmp_path: Path, problems: Path) -> None:
    shown = []
    for name in ("a.json", "b.json"):
        result = ok("data", "overlap", problems, problems, "arithmetic:n=50,seed=2", "--n", 8, "--out", tmp_path / name)
        shown.append((result.stdout, (tmp_path / name).read_bytes()))
    assert shown[0] == shown[1]
    assert shown[0][0].count("\n") == 12


def real(folder: Path, name: str, preset: str, source: str) -> str:
    if not (DATA / name).is_file():
        pytest.skip(f"{name} is not in the data folder (set TRD_DATA)")
    path = folder / f"{source}.parquet"
    config = ImportConfig(file=str(DATA / name), preset=preset, source=source, out=str(path))
    write_problems(path, import_problems(config).problems)
    return str(path)


def overlap_of(train: str, bench: str) -> tuple[Overlaps, dict]:
    found = run(OverlapConfig(train=train, bench=(bench,)), SilentProgress())
    return found, found.benchmarks[bench]


def test_math_train_has_no_question_of_math500_but_many_of_its_phrases(tmp_path: Path) -> None:
    train = real(tmp_path, "train/math.json", "math", "math")
    bench = real(tmp_path, "benchmarks/math500.jsonl", "math", "math500")
    found, counts = overlap_of(train, bench)
    assert (found.rows, counts["questions"], counts["equal"]) == (7474, 500, 0)
    assert 0 < counts["questions_hit"][13] < counts["questions_hit"][8] < 250
    assert counts["ignored"][13] > 0, "MATH has sentences that many problems end with"


def test_gsm8k_train_has_no_question_of_its_test(tmp_path: Path) -> None:
    train = real(tmp_path, "train/gsm8k.jsonl", "gsm8k", "train")
    bench = real(tmp_path, "benchmarks/gsm8k.jsonl", "gsm8k", "test")
    found, counts = overlap_of(train, bench)
    assert (found.rows, counts["questions"], counts["equal"]) == (7473, 1319, 0)
    assert len(found.offending) < 20


def test_a_benchmark_against_itself_is_hit_whole(tmp_path: Path) -> None:
    bench = real(tmp_path, "benchmarks/math500.jsonl", "math", "math500")
    found, counts = overlap_of(bench, bench)
    assert counts["questions_hit"] == counts["rows_hit"] == {8: 500, 13: 500}
    assert counts["equal"] == len(found.offending) == 500


def test_an_input_error_names_the_flag() -> None:
    with pytest.raises(InputError, match="--common"):
        OverlapConfig.parse({"train": "a", "bench": ("b",), "common": -1})
