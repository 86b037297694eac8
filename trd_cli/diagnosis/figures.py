"""The figures of a diagnosis, from the figures of its positions. The manual (README.md) has their formulas and sources.

Axes: R rows, N positions of all rows one after another, G groups of rows, T tenths of a response.

Parts of the rows are added as they are read, and none is kept: the memory does not grow with the positions, and takes
some 150 bytes a row for the pairs of y_o and y_r. The figures are the same for any order and any parts of the rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np

from trd_cli.diagnosis.pairs import Pairs, Shortening
from trd_cli.diagnosis.sums import Estimates, Means, Quantiles, Shares
from trd_cli.training.tenths import TENTHS, tenth_of

TEXTS = ("y_o", "y_r")
ALL = "all"
# Groups of the rows of a text. Rows that have another verdict, or none, are in "all" alone.
VERDICTS = (ALL, "correct", "incorrect")
LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
# Equal parts of [0, 1] on both axes of the scatter.
SQUARES = 25
_GROUPS = len(TEXTS) * len(VERDICTS)
# Figures of a position → their unit, for means over rows by tenth (the eleventh is the whole response).
BY_TENTH = {
    "forward_kl": 1.0,
    "reverse_kl": 1.0,
    "student_entropy": 1.0,
    "teacher_entropy": 1.0,
    "onset_mass": 2.0**-10,
    "overlap": 1.0,
    "overlap_advantage": 1.0,
}
_BY_ROW = {
    "student_nll": 1.0,
    "teacher_nll": 1.0,
    "perplexity_gap": 1.0,
    "trigger_token": 1024.0,
    "onset_repeated": 2.0**-4,
    "tokens": 1024.0,
    "onset_words": 8.0,
    "repetition": 1.0,
}
# Figures that may be below 0.
_SIGNED = ("overlap_advantage", "perplexity_gap")
# Means of shares and of probabilities.
_OF_ONE = ("onset_mass", "overlap", "onset_repeated", "fragmentation")
_SHARES = ("trigger", "truncated", "finished", "accuracy_finished", "finished_and_correct")


@dataclass(frozen=True)
class Part:
    """Some rows with the figures of all their positions.

    `text_R` and `verdict_R` are places in TEXTS and VERDICTS, the verdict 0 for one that is neither correct nor
    incorrect. `first_trigger_R` is a place from 0, or -1. The positions of a row, `tokens_R` of them, follow each other
    in its order. A figure that is unknown is NaN. `mean_R` has means of rows that are more exact than those of the
    figures of their positions would be.
    """

    id_R: Sequence[str]
    parent_R: Sequence[str | None]
    text_R: np.ndarray
    verdict_R: np.ndarray
    tokens_R: np.ndarray
    finished_R: np.ndarray
    truncated_R: np.ndarray
    repetition_R: np.ndarray
    first_trigger_R: np.ndarray
    onset_words_R: np.ndarray
    student_nll_R: np.ndarray
    teacher_nll_R: np.ndarray
    mean_R: Mapping[str, np.ndarray]
    figure_N: Mapping[str, np.ndarray]
    student_logprob_N: np.ndarray
    teacher_logprob_N: np.ndarray
    l2_N: np.ndarray
    teacher_top_N: np.ndarray
    teacher_top_is_onset_N: np.ndarray

    def __post_init__(self) -> None:
        lengths = {"R": len(self.tokens_R), "N": int(self.tokens_R.sum())}
        for field in fields(self):
            value = getattr(self, field.name)
            for each in value.values() if isinstance(value, Mapping) else [value]:
                assert len(each) == lengths[field.name[-1]], field.name


@dataclass(frozen=True, slots=True)
class Estimate:
    """One figure of a group of rows, with its 95 % interval where it has one.

    `tenth` counts from 1; None is the whole response. `rows` counts what the figure is over: rows, or for quantiles
    positions.
    """

    figure: str
    text: str
    verdict: str
    tenth: int | None
    value: float | None
    low: float | None
    high: float | None
    rows: int


class Gathering:
    """The sums behind all figures. `add` every part, then read `estimates` and `scatter`."""

    def __init__(self) -> None:
        self._tenths = {name: Means(_GROUPS * (TENTHS + 1), unit, *_bounds(name)) for name, unit in BY_TENTH.items()}
        self._fragments = Means(_GROUPS * TENTHS, 1.0, *_bounds("fragmentation"))
        self._rows = {name: Means(_GROUPS, unit, *_bounds(name)) for name, unit in _BY_ROW.items()}
        self._shares = {name: Shares(_GROUPS) for name in _SHARES}
        self._first_trigger = Shares(_GROUPS * TENTHS)
        self._log_ratio = Quantiles(_GROUPS * TENTHS)
        self._scatter_GSS = np.zeros((_GROUPS, SQUARES, SQUARES), np.int64)
        self._pairs = Pairs()
        self.rows = dict.fromkeys(TEXTS, 0)
        self.positions = 0

    def add(self, part: Part) -> None:
        """Add rows. Those without a position count only in the shares of how rows end."""
        rows = _Rows(part)
        self.positions += len(rows.row_N)
        for text, count in zip(TEXTS, np.bincount(part.text_R, minlength=len(TEXTS)).tolist(), strict=True):
            self.rows[text] += count
        cell_G, of_G = rows.in_groups(np.arange(len(part.tokens_R)))
        for name, means in self._tenths.items():
            means.add(cell_G * (TENTHS + 1) + TENTHS, rows.mean(name)[of_G])
            self._add_by_tenth(means, TENTHS + 1, rows, rows.means_by_tenth(part.figure_N[name]))
        self._add_by_tenth(self._fragments, TENTHS, rows, rows.shares_by_tenth(part.l2_N))
        self._add_rows(part, rows)
        self._add_pairs_of_probabilities(part, rows)

    def _add_by_tenth(self, means: Means, width: int, rows: _Rows, value_RT: np.ndarray) -> None:
        cell_G, of_G = rows.in_groups(np.arange(len(value_RT)))
        means.add((cell_G[:, None] * width + np.arange(TENTHS)).ravel(), value_RT[of_G].ravel())

    def _add_rows(self, part: Part, rows: _Rows) -> None:
        cell_G, of_G = rows.in_groups(np.arange(len(part.tokens_R)))
        first_R = part.first_trigger_R
        values = {
            "student_nll": part.student_nll_R,
            "teacher_nll": part.teacher_nll_R,
            "perplexity_gap": part.teacher_nll_R - part.student_nll_R,
            "trigger_token": np.where(first_R >= 0, first_R + 1.0, np.nan),
            "onset_repeated": rows.repeated(part),
            "tokens": part.tokens_R.astype(np.float64),
            "onset_words": part.onset_words_R,
            "repetition": part.repetition_R,
        }
        for name, means in self._rows.items():
            means.add(cell_G, values[name][of_G])
        of_pairs = {name: values[name] for name in ("tokens", "onset_words", "student_nll", "teacher_nll")}
        is_y_r = part.text_R == TEXTS.index("y_r")
        self._pairs.add({"id": part.id_R, "parent": part.parent_R, "is_y_r": is_y_r, **of_pairs})
        correct_R = part.verdict_R == VERDICTS.index("correct")
        graded_R = part.verdict_R > 0
        for name, is_true_R, of_R in (
            ("trigger", first_R >= 0, part.tokens_R > 0),
            ("truncated", part.truncated_R, None),
            ("finished", part.finished_R, None),
            ("accuracy_finished", correct_R, graded_R & part.finished_R),
            ("finished_and_correct", correct_R & part.finished_R, graded_R),
        ):
            kept_G = slice(None) if of_R is None else of_R[of_G]
            self._shares[name].add(cell_G[kept_G], is_true_R[of_G][kept_G])
        tenth_R = np.where(first_R >= 0, tenth_of(first_R, np.maximum(part.tokens_R, 1)), -1)
        cells = cell_G[:, None] * TENTHS + np.arange(TENTHS)
        there_G = part.tokens_R[of_G] > 0
        is_first = tenth_R[of_G][:, None] == np.arange(TENTHS)
        self._first_trigger.add(cells[there_G].ravel(), is_first[there_G].ravel())

    def _add_pairs_of_probabilities(self, part: Part, rows: _Rows) -> None:
        cell_G, of_G = rows.in_groups(rows.row_N)
        ratio_N = part.teacher_logprob_N.astype(np.float64) - part.student_logprob_N
        self._log_ratio.add(cell_G * TENTHS + rows.tenth_N[of_G], ratio_N[of_G])
        square_2N = [
            np.minimum(np.exp(np.nan_to_num(logprob_N.astype(np.float64), nan=-np.inf)) * SQUARES, SQUARES - 1)
            for logprob_N in (part.teacher_logprob_N, part.student_logprob_N)
        ]
        teacher_N, student_N = (each.astype(np.int64) for each in square_2N)
        np.add.at(self._scatter_GSS, (cell_G, teacher_N[of_G], student_N[of_G]), 1)

    def estimates(self) -> list[Estimate]:
        """Return all figures that have a row."""
        found: list[Estimate] = []
        for name, means in self._tenths.items():
            found += _listed(name, means.estimates(), TENTHS + 1)
        found += _listed("fragmentation", self._fragments.estimates(), TENTHS)
        for name, figure in (*self._rows.items(), *self._shares.items()):
            found += _listed(name, figure.estimates(), None)
        found += _listed("first_trigger", self._first_trigger.estimates(), TENTHS)
        counts_C = self._log_ratio.counts()
        nothing_C = np.full(len(counts_C), np.nan)
        for level, value_C in zip(LEVELS, self._log_ratio.quantiles(LEVELS), strict=True):
            of = (value_C, nothing_C, nothing_C, counts_C)
            found += _listed(f"log_ratio_p{round(100 * level):02d}", of, TENTHS)
        return found

    def shortening(self) -> Shortening | None:
        """Return y_r against y_o, None without a pair."""
        return self._pairs.shortening()

    def scatter(self) -> dict[tuple[str, str], list[list[int]]]:
        """Return the counts of positions by (text, verdict) and square, rows by rising p of the teacher."""
        return {
            group: counts_SS.tolist()
            for group, counts_SS in zip(_groups(), self._scatter_GSS, strict=True)
            if counts_SS.any()
        }


def _bounds(figure: str) -> tuple[float, float]:
    """Return the least and the largest value that a figure can have."""
    return -np.inf if figure in _SIGNED else 0.0, 1.0 if figure in _OF_ONE else np.inf


def _groups() -> Iterator[tuple[str, str]]:
    return ((text, verdict) for text in TEXTS for verdict in VERDICTS)


def _listed(name: str, estimates: Estimates, width: int | None) -> Iterator[Estimate]:
    """Yield the figures of cells that are groups × `width` tenths, or groups alone."""
    places = [None] if width is None else [i + 1 if i < TENTHS else None for i in range(width)]
    cells = ((*group, place) for group in _groups() for place in places)
    for (text, verdict, tenth), value, low, high, rows in zip(cells, *estimates, strict=True):
        if rows:
            yield Estimate(name, text, verdict, tenth, _known(value), _known(low), _known(high), int(rows))


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


class _Rows:
    """Where the positions of a part lie, and figures of its rows made of figures of its positions."""

    def __init__(self, part: Part) -> None:
        self._part = part
        self._count = len(part.tokens_R)
        self.row_N = np.repeat(np.arange(self._count), part.tokens_R)
        starts_R = np.cumsum(part.tokens_R) - part.tokens_R
        self._place_N = np.arange(len(self.row_N)) - starts_R[self.row_N]
        self.tenth_N = tenth_of(self._place_N, part.tokens_R[self.row_N])

    def in_groups(self, row_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the groups of the N things that belong to these rows, and for each group the number of its thing.

        A thing is in the group of all rows of its text, and in that of its row's verdict if it has one.
        """
        group_N = self._part.text_R[row_N].astype(np.int64) * len(VERDICTS)
        verdict_N = self._part.verdict_R[row_N]
        (graded,) = np.nonzero(verdict_N > 0)
        return (
            np.concatenate([group_N, group_N[graded] + verdict_N[graded]]),
            np.concatenate([np.arange(len(row_N)), graded]),
        )

    def _means(self, cell_N: np.ndarray, cells: int, value_N: np.ndarray) -> np.ndarray:
        known_N = np.isfinite(value_N)
        # Without a value the sums are whole numbers.
        sums = np.bincount(cell_N[known_N], value_N[known_N], minlength=cells).astype(np.float64)
        counts = np.bincount(cell_N[known_N], minlength=cells)
        return np.divide(sums, counts, out=np.full(cells, np.nan), where=counts > 0)

    def mean(self, figure: str) -> np.ndarray:
        """Return the mean of a figure of each row, (R,), as it is given, or made of the row's positions."""
        given = self._part.mean_R.get(figure)
        return self._means(self.row_N, self._count, self._part.figure_N[figure]) if given is None else given

    def means_by_tenth(self, value_N: np.ndarray) -> np.ndarray:
        """Return the mean of each row in each tenth, (R, T), NaN for a tenth without a position."""
        cells = self._count * TENTHS
        return self._means(self.row_N * TENTHS + self.tenth_N, cells, value_N).reshape(-1, TENTHS)

    def shares_by_tenth(self, value_N: np.ndarray) -> np.ndarray:
        """Return the share that each tenth has of a row's values, (R, T): its mean over the sum of all tenths' means.

        So a tenth of more places than another has no larger share by that. NaN for a row that has a tenth without a
        place, and for one whose values are all 0.
        """
        means_RT = self.means_by_tenth(value_N)
        whole_R1 = means_RT.sum(axis=1, keepdims=True)
        return np.divide(means_RT, whole_R1, out=np.full_like(means_RT, np.nan), where=whole_R1 > 0)

    def repeated(self, part: Part) -> np.ndarray:
        """Return the share of a row's places, but the first, whose teacher's top-1 is the onset token of the place
        before, (R,).
        """
        again_N = np.zeros(len(self.row_N))
        same_N = part.teacher_top_N[1:] == part.teacher_top_N[:-1]
        again_N[1:] = same_N & part.teacher_top_is_onset_N[1:]
        again_N[self._place_N == 0] = np.nan
        return self._means(self.row_N, self._count, again_N)
