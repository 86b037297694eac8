"""The figures of a diagnosis by hand, from figures of positions: means, shares and quantiles over rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.diagnoses import concluded, positions, write_figures_of
from support.rows import refined_row

from trd_cli.diagnosis.figures import BY_TENTH, Estimate, Gathering, Part
from trd_cli.diagnosis.pairs import Shortening
from trd_cli.diagnosis.tables import tables

CORRECT, INCORRECT, NEITHER = 1, 2, 0


def part(rows: Sequence[Mapping[str, Any]]) -> Part:
    """Return rows as a part. A row is y_o, ungraded and finished, with 0 for each figure of its positions, but for the
    keys that it has: a figure of its positions is a list.
    """
    lengths = [next((len(v) for v in row.values() if isinstance(v, list)), 0) for row in rows]

    def of_rows(name: str, default: object, dtype: type) -> np.ndarray:
        return np.array([row.get(name, default) for row in rows], dtype)

    def of_positions(name: str, dtype: type = np.float32) -> np.ndarray:
        return np.array([x for row, n in zip(rows, lengths, strict=True) for x in row.get(name, [0] * n)], dtype)

    def means(name: str) -> np.ndarray:
        found = [np.array(row.get(name, [0.0] * n)) for row, n in zip(rows, lengths, strict=True)]
        return np.array([x[np.isfinite(x)].mean() if np.isfinite(x).any() else np.nan for x in found])

    first = [(row.get("trigger") or [0]).index(1) if 1 in row.get("trigger", ()) else -1 for row in rows]
    return Part(
        id_R=[row.get("id", "") for row in rows],
        parent_R=[row.get("parent") for row in rows],
        text_R=of_rows("text", 0, np.int8),
        verdict_R=of_rows("verdict", NEITHER, np.int8),
        tokens_R=np.array(lengths),
        finished_R=of_rows("finished", True, bool),
        truncated_R=of_rows("truncated", False, bool),
        repetition_R=of_rows("repetition", math.nan, float),
        first_trigger_R=np.array(first),
        onset_words_R=1000 * means("is_onset"),
        student_nll_R=-means("student_logprob"),
        teacher_nll_R=-means("teacher_logprob"),
        mean_R={name: means(name) for name in BY_TENTH if name != "overlap_advantage"},
        figure_N={name: of_positions(name) for name in BY_TENTH},
        student_logprob_N=of_positions("student_logprob"),
        teacher_logprob_N=of_positions("teacher_logprob"),
        l2_N=of_positions("l2"),
        teacher_top_N=of_positions("teacher_top", np.int32),
        teacher_top_is_onset_N=of_positions("teacher_top_is_onset", bool),
    )


def gathered(*parts: Part) -> Gathering:
    gathering = Gathering()
    for each in parts:
        gathering.add(each)
    return gathering


def figure(
    found: Gathering, name: str, verdict: str = "all", tenth: int | None = None, text: str = "y_o"
) -> Estimate | None:
    place = (name, text, verdict, tenth)
    return next((e for e in found.estimates() if (e.figure, e.text, e.verdict, e.tenth) == place), None)


TWENTY = [float(i) for i in range(20)]


@pytest.mark.parametrize("name", list(BY_TENTH))
def test_a_figure_by_tenth_is_the_mean_over_rows_of_each_rows_mean(name: str) -> None:
    # A row of 20 places has two a tenth, one of 10 has one, and one of 5 has a place in every other tenth.
    found = gathered(part([{name: TWENTY}, {name: [1.0] * 10}, {name: [4.0] * 5}]))
    assert figure(found, name, tenth=1).value == pytest.approx((0.5 + 1 + 4) / 3)
    assert figure(found, name, tenth=1).rows == 3
    assert figure(found, name, tenth=2).value == pytest.approx((2.5 + 1) / 2)
    assert figure(found, name, tenth=10).value == pytest.approx((18.5 + 1) / 2)
    assert figure(found, name).value == pytest.approx((9.5 + 1 + 4) / 3)


def test_an_interval_is_students_over_rows_and_one_row_has_none() -> None:
    three = [[1.0], [2.0, 2.0], [6.0]]
    found = gathered(part([{"overlap_advantage": x, "forward_kl": x} for x in three]))
    half = 4.302652730 * math.sqrt(14 / 2) / math.sqrt(3)
    signed = figure(found, "overlap_advantage")
    assert (signed.value, signed.low, signed.high) == pytest.approx((3, 3 - half, 3 + half))
    # No divergence is below 0.
    whole = figure(found, "forward_kl")
    assert (whole.value, whole.low, whole.high) == pytest.approx((3, 0, 3 + half))
    alone = figure(gathered(part([{"forward_kl": [1.0]}])), "forward_kl")
    assert (alone.value, alone.low, alone.high) == (1.0, None, None)


def test_an_interval_of_shares_ends_at_1() -> None:
    rows = [{name: [x] for name in ("onset_mass", "overlap")} for x in (1.0, 0.9)]
    found = gathered(part(rows))
    for name in ("onset_mass", "overlap"):
        assert (figure(found, name).high, figure(found, name, tenth=1).high) == (1.0, 1.0)
    repeated = {"teacher_top": [4, 4, 4, 4, 4], "teacher_top_is_onset": [1] * 5}
    once = {"teacher_top": [4, 4, 4, 4, 5], "teacher_top_is_onset": [1] * 5}
    assert figure(gathered(part([repeated, once])), "onset_repeated").high == 1.0
    first = [{"l2": [x, *[0.01] * 9]} for x in (9.0, 1.0)]
    assert figure(gathered(part(first)), "fragmentation", tenth=1).high == 1.0


def test_perplexities_too_large_for_a_float_are_shown_all_the_same(tmp_path: Path) -> None:
    far, near = (refined_row(i, trajectory_id=name) for i, name in enumerate("ab"))
    figures = [positions(student_logprob=[-x], teacher_logprob=[-0.1]) for x in (300.0, 0.1)]
    write_figures_of(tmp_path / "d", list(zip((far, near), figures, strict=True)))
    [models, *_] = tables(concluded(tmp_path / "d"))
    assert "e+304" in str(models.rows)


def test_rows_are_split_by_text_and_verdict_and_ungraded_ones_count_among_all() -> None:
    rows = [
        {"reverse_kl": [1.0], "verdict": CORRECT},
        {"reverse_kl": [3.0], "verdict": INCORRECT},
        {"reverse_kl": [8.0]},
        {"reverse_kl": [7.0], "verdict": CORRECT, "text": 1},
    ]
    found = gathered(part(rows))
    assert figure(found, "reverse_kl").value == 4.0
    assert figure(found, "reverse_kl", "correct").value == 1.0
    assert figure(found, "reverse_kl", "incorrect").value == 3.0
    assert figure(found, "reverse_kl", "correct", text="y_r").value == 7.0
    assert figure(found, "reverse_kl", "incorrect", text="y_r") is None


def test_perplexities_are_of_rows_and_the_gap_is_the_mean_log_ratio() -> None:
    student, teacher = [math.log(0.5)] * 4, [math.log(0.25)] * 4
    found = gathered(part([{"student_logprob": student, "teacher_logprob": teacher}]))
    assert math.exp(figure(found, "student_nll").value) == pytest.approx(2)
    assert math.exp(figure(found, "teacher_nll").value) == pytest.approx(4)
    assert figure(found, "perplexity_gap").value == pytest.approx(math.log(2))


def test_fragments_are_the_tenths_shares_of_a_rows_distance() -> None:
    twelve = [0.0] * 10 + [2.0, 2.0]
    found = gathered(part([{"l2": [1.0] * 15}, {"l2": twelve}, {"l2": [0.0] * 10}, {"l2": [1.0] * 9}]))
    # Tenths of one place and of two count alike. The third row has no distance, the fourth not all tenths.
    assert figure(found, "fragmentation", tenth=1).value == pytest.approx(0.05)
    assert figure(found, "fragmentation", tenth=10).value == pytest.approx(0.3)
    assert figure(found, "fragmentation", tenth=10).rows == 2


def test_an_onset_token_is_repeated_where_it_already_was_the_teachers_first_one_place_before() -> None:
    repeated = {"teacher_top": [7, 7, 7, 3, 3], "teacher_top_is_onset": [1, 1, 1, 0, 0]}
    # The last token of a row is not the one before the next row's first.
    other = {"teacher_top": [7, 5, 7, 3, 3], "teacher_top_is_onset": [1, 0, 1, 0, 0]}
    assert figure(gathered(part([repeated])), "onset_repeated").value == pytest.approx(0.5)
    ends = {"teacher_top": [3, 7], "teacher_top_is_onset": [0, 1]}
    found = gathered(part([ends, other]))
    assert figure(found, "onset_repeated").value == 0.0
    assert figure(gathered(part([{"teacher_top": [7], "teacher_top_is_onset": [1]}])), "onset_repeated") is None


def test_the_trigger_has_a_rate_by_verdict_and_a_first_place() -> None:
    nowhere = [0] * 10
    rows = [
        {"trigger": [0, 0, 0, 1, 1, 0, 0, 0, 0, 1], "verdict": INCORRECT},
        {"trigger": nowhere, "verdict": INCORRECT},
        {"trigger": [0] * 9 + [1], "verdict": CORRECT},
        {"trigger": nowhere, "verdict": CORRECT},
        {"trigger": nowhere, "verdict": CORRECT},
    ]
    found = gathered(part(rows))
    assert figure(found, "trigger").value == pytest.approx(0.4)
    assert figure(found, "trigger", "incorrect").value == pytest.approx(0.5)
    assert figure(found, "trigger", "correct").value == pytest.approx(1 / 3)
    # Wilson's interval of one of two.
    assert figure(found, "trigger", "incorrect").low == pytest.approx(0.0945, abs=1e-4)
    # The fourth and the tenth token of those that have one.
    assert figure(found, "trigger_token").value == pytest.approx(7)
    assert [figure(found, "first_trigger", tenth=i).value for i in (4, 5, 10)] == pytest.approx([0.2, 0, 0.2])
    assert sum(figure(found, "first_trigger", tenth=i).value for i in range(1, 11)) == pytest.approx(0.4)


def test_quantiles_of_the_log_ratio_are_of_positions_and_right_to_half_a_hundredth() -> None:
    teacher = [-0.5, -1.0, -2.0, -0.25, -3.0]
    rows = [{"teacher_logprob": [x], "student_logprob": [-1.0]} for x in teacher]
    found = gathered(part(rows))
    quantiles = [figure(found, f"log_ratio_p{level}", tenth=1).value for level in ("05", "25", "50", "75", "95")]
    assert quantiles == pytest.approx([-2, -1, 0, 0.5, 0.75], abs=0.005)
    assert figure(found, "log_ratio_p50", tenth=1).rows == 5
    # A row of one token lies in the first tenth.
    assert figure(found, "log_ratio_p50", tenth=2) is None


def test_the_scatter_counts_positions_by_both_probabilities() -> None:
    row = {"teacher_logprob": [math.log(0.999), math.log(0.01)], "student_logprob": [math.log(0.5), 0.0]}
    counts = np.array(gathered(part([{**row, "verdict": CORRECT}])).scatter()["y_o", "correct"])
    assert counts.sum() == 2
    assert counts[24, 12] == 1  # Of the teacher, of the student: in squares of 0.04.
    assert counts[0, 24] == 1


def test_rows_end_finished_or_cut_off_and_the_accuracy_is_that_of_the_finished_ones() -> None:
    cut = {"finished": False, "truncated": True}
    rows = [
        {"l2": [1.0], "verdict": CORRECT, "repetition": 0.5},
        {"l2": [1.0], "verdict": INCORRECT, "repetition": 0.3},
        {"l2": [1.0], "verdict": INCORRECT, **cut, "repetition": 0.1},
        {"l2": [1.0], **cut},
    ]
    found = gathered(part(rows))
    assert figure(found, "finished").value == 0.5
    assert figure(found, "truncated").value == 0.5
    assert figure(found, "truncated", "incorrect").value == 0.5
    assert figure(found, "accuracy_finished").value == 0.5
    assert figure(found, "finished_and_correct").value == pytest.approx(1 / 3)
    assert figure(found, "repetition").value == pytest.approx(0.3)
    assert figure(found, "repetition").rows == 3


def test_onset_words_are_counted_a_thousand_tokens() -> None:
    found = gathered(part([{"is_onset": [1, 0, 0, 0]}, {"is_onset": [0] * 7}]))
    assert figure(found, "onset_words").value == pytest.approx(125)
    assert figure(found, "tokens").value == pytest.approx(5.5)


def shortened(teacher: float, student: float, tokens: int) -> Shortening:
    y_o = {"id": "o", "student_logprob": [-0.3] * 8, "teacher_logprob": [-1.0] * 8, "is_onset": [0] * 8}
    scores = {"student_logprob": [-student] * tokens, "teacher_logprob": [-teacher] * tokens, "is_onset": [1] * tokens}
    y_r = {"id": "r", "parent": "o", "text": 1, **scores}
    lonely = {**y_r, "parent": "gone"}
    found = gathered(part([y_r, lonely]), part([y_o])).shortening()
    assert found is not None
    return found


def test_y_r_is_compared_with_the_y_o_it_was_made_from() -> None:
    found = shortened(teacher=0.1, student=2.0, tokens=2)
    assert found.pairs == 1
    by_name = {paired.figure: paired for paired in found.figures}
    tokens, words, nll = (by_name[name] for name in ("tokens", "onset_words", "student_nll"))
    assert (tokens.y_o, tokens.y_r, tokens.difference, tokens.low) == (8, 2, -6, None)
    assert (words.y_o, words.y_r) == (0, 1000)
    assert (nll.y_o, nll.y_r, nll.difference) == pytest.approx((0.3, 2.0, 1.7))


@pytest.mark.parametrize(
    ("teacher", "student", "tokens", "warns"),
    [(0.1, 2.0, 4, True), (0.1, 2.0, 5, False), (0.3, 2.0, 4, False), (0.1, 0.5, 4, False), (0.1, 0.7, 4, True)],
)
def test_a_y_r_that_is_short_and_certain_and_far_from_the_student_warns(
    teacher: float, student: float, tokens: int, warns: bool
) -> None:
    found = shortened(teacher, student, tokens)
    assert (found.warning is not None) == warns
    assert found.collapsed == float(warns)


def test_without_a_pair_there_is_no_shortening() -> None:
    assert gathered(part([{"l2": [1.0]}])).shortening() is None


def made_up(rows: int, seed: int) -> list[dict[str, object]]:
    random = np.random.default_rng(seed)
    made = []
    for i in range(rows):
        n = int(random.integers(1, 60))
        row: dict[str, object] = {"id": str(i), "text": i % 2, "verdict": i % 3, "repetition": float(random.random())}
        row["parent"] = str(i - 1) if i % 2 else None
        for name in ("forward_kl", "reverse_kl", "onset_mass", "overlap", "l2"):
            row[name] = random.exponential(1.0, n).tolist()
        row["trigger"] = (random.random(n) < 0.05).tolist()
        row["student_logprob"], row["teacher_logprob"] = (-random.exponential(1.0, (2, n))).tolist()
        made.append(row)
    return made


def test_no_order_of_the_rows_and_no_cut_into_parts_changes_a_digit() -> None:
    rows = made_up(60, seed=1)
    whole = gathered(part(rows))
    backwards = gathered(*(part([row]) for row in reversed(rows)))
    thirds = gathered(*(part(rows[i::3]) for i in range(3)))
    for other in (backwards, thirds):
        assert other.estimates() == whole.estimates()
        assert other.scatter() == whole.scatter()
        assert other.shortening() == whole.shortening()


def test_a_row_without_a_position_counts_only_in_how_rows_end() -> None:
    found = gathered(part([{"verdict": INCORRECT}, {"forward_kl": [1.0]}]))
    assert figure(found, "forward_kl").rows == 1
    assert figure(found, "finished").rows == 2
    assert figure(found, "trigger").rows == 1


def test_what_is_not_finite_is_left_out() -> None:
    found = gathered(part([{"overlap_advantage": [math.nan, 2.0]}, {"overlap_advantage": [math.nan]}]))
    assert figure(found, "overlap_advantage").value == 2.0
    assert figure(found, "overlap_advantage").rows == 1


def test_rows_without_a_position_have_no_figure_of_positions() -> None:
    found = gathered(part([{"verdict": INCORRECT}, {}]))
    assert {e.figure for e in found.estimates()} >= {"finished", "truncated"}
    assert figure(found, "fragmentation", tenth=1) is None
