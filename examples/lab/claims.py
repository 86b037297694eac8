"""The papers' claims, each with its figure in the lab, an interval, and a verdict.

A claim held if p < 0.05 in its direction, after Holm's correction over all claims of all settings, and did not hold if
p < 0.05 against it. Else it is undecided: the difference may be there, and too small for this lab. What follows from
how the world is made is told without a verdict.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import isnan, nan
from pathlib import Path
from typing import Any

from figures import BASE, MOST_TOKENS, Onset, Scores, difference, is_finished, onset, read_scores, refinement

from trd_cli.evaluation.paired import holm
from trd_cli.evaluation.seeds import DifferenceOverSeeds

HELD, NOT, UNDECIDED, NO_TEST = "held", "did not hold", "undecided", "no test here"
SETTINGS = ("opd", "opsd")
BENCH, HARDER = "held-out", "harder"
# Arms that are no rivals of trd: those that are trd but for a part, and the start.
_OWN = (BASE, "trd", "trd-repaired")


@dataclass(frozen=True)
class Claim:
    """Tell one claim in one setting. `figure` says what `value`, `low` and `high` are, and in which unit.

    `lean` is above 0 where the figure speaks for the claim; p is of its being 0, None where nothing is tested. `about`
    is a sentence for a footnote.
    """

    name: str
    setting: str
    text: str
    figure: str
    value: float
    low: float
    high: float
    lean: float
    p_value: float | None
    p_holm: float | None = None
    verdict: str = UNDECIDED
    about: str = ""

    @property
    def key(self) -> str:
        return f"{self.setting}: {self.name}"


@dataclass(frozen=True)
class Lab:
    """Hold the runs of a directory, by their names."""

    directory: Path
    scores: Mapping[str, Scores]
    unfinished: Sequence[str] = ()

    @classmethod
    def read(cls, directory: Path) -> Lab:
        """Read every run in `directory/runs` of which an evaluation has ended."""
        paths = [path for path in sorted((directory / "runs").iterdir()) if (path / "graph.json").is_file()]
        found = {path.name: read_scores(path) for path in paths}
        unfinished = [path.name for path in paths if not is_finished(path)]
        return cls(directory, {name: scores for name, scores in found.items() if scores is not None}, unfinished)

    def claims(self) -> list[Claim]:
        """Return all claims that there are figures for, corrected for their number."""
        made = [claim for setting in SETTINGS for claim in self._of(setting)]
        return judged(made)

    def _of(self, setting: str) -> Iterator[Claim]:
        run = self.directory / "runs" / setting
        yield from of_onset(setting, run)
        yield from of_refinement(setting, run)
        scores = self.scores.get(setting)
        if scores is not None:
            yield from self._of_training(setting, scores)

    def _of_training(self, setting: str, scores: Scores) -> Iterator[Claim]:
        def compared(name: str, text: str, a: Scores, arm: str, score: str, b: Scores = scores) -> Iterator[Claim]:
            d = difference(a, arm, b, "trd", BENCH, score)
            if d is not None and not isnan(d.value):
                figure = f"{score}@{b.samples('trd', BENCH)}, points more"
                yield _of_difference(name, setting, text, figure, d)

        learned = difference(scores, "rkl", scores, "fkl", BENCH, "turned")
        if learned is not None:
            text = "reverse KL ignores the onset"
            yield _of_difference("reverse", setting, text, "turn back: fkl − rkl", learned)
        yield from compared("trd-repaired", "breadth beats repaired rows alone", scores, "trd-repaired", "avg")
        yield from compared("pass", "pass@k grows with trd", scores, BASE, "pass")
        rounds = self.scores.get(f"{setting}-rounds")
        if rounds is not None:
            text = "ten short rounds beat one"
            yield from compared("rounds", text, scores, "trd", "avg", rounds)
        for arm in (arm for arm in scores.arms if arm not in _OWN):
            yield from compared(f"trd {arm}", f"trd beats {arm}", scores, arm, "avg")
        yield from compared("trd base", "trd improves the student", scores, BASE, "avg")


def of_onset(setting: str, run: Path) -> Iterator[Claim]:
    """Yield what the diagnosis says of the KL along y_o."""
    found = onset(run)
    if found is not None:
        yield from of_shares(setting, found)


def of_shares(setting: str, found: Onset) -> Iterator[Claim]:
    """Yield the claim on the share of KL behind a wrong step."""
    figure = "share of the KL, %"
    about = (
        f"{setting}: of the positions along y_o that have a prefix {100 * found.positions:.0f} % are behind the first wrong step, "
        f"with {100 * found.reverse:.0f} % of the reverse KL; the teacher's mass on turning back is {found.mass_after:.2f} there "
        f"and {found.mass_before:.2f} elsewhere."
    )
    # Both bounds must be passed for the claim; to fail at one of the two is enough against it.
    sides = sorted((found.by_half, found.forward), key=lambda share: share.beyond)
    fails = sides[0].beyond < 0
    p_value = min(1.0, 2 * sides[0].p_value) if fails else max(share.p_value for share in sides)
    text = "forward KL is dominated by the onset"
    share = found.forward
    ends = (100 * each for each in (share.value, share.low, share.high))
    yield Claim("onset", setting, text, figure, *ends, sides[0].beyond, p_value, about=about)


def of_refinement(setting: str, run: Path) -> Iterator[Claim]:
    """Yield what refinement did to the rollouts."""
    found = refinement(run)
    if found is None or any(isnan(d.value) for d in found.values()):
        return
    figure = "right, points more"
    yield _of_difference("y_r right", setting, "y_r is more often right than y_o", figure, found["right"])
    d = _of_difference("y_r shorter", setting, "y_r is shorter than y_o", "tokens fewer", found["length"])
    scale = -MOST_TOKENS / 100
    d = replace(d, value=scale * d.value, low=scale * d.high, high=scale * d.low, lean=-d.lean)
    # A whole answer to a problem has as many tokens as any other; what differs are early ends.
    yield replace(d, p_value=None, verdict=NO_TEST)


def _of_difference(name: str, setting: str, text: str, figure: str, d: DifferenceOverSeeds) -> Claim:
    ends = (100 * each for each in (d.value, d.low, d.high))
    return Claim(name, setting, text, figure, *ends, d.value, d.p_value)


def judged(claims: Sequence[Claim]) -> list[Claim]:
    """Return the claims with their p-values corrected by Holm over all tests, and the verdicts that follow."""
    corrected = holm([nan if claim.p_value is None else claim.p_value for claim in claims])
    return [
        claim if claim.p_value is None else replace(claim, p_holm=p, verdict=_verdict(claim.lean, p))
        for claim, p in zip(claims, corrected, strict=True)
    ]


def _verdict(lean: float, p_value: float) -> str:
    if not p_value < 0.05 or lean == 0:
        return UNDECIDED
    return HELD if lean > 0 else NOT


def agreement(here: Sequence[Claim], there: Sequence[Mapping[str, Any]]) -> list[tuple[Claim, Mapping[str, Any], str]]:
    """Return the claims that two runs of the lab share, and whether their verdicts agree."""
    others = {f"{claim['setting']}: {claim['name']}": claim for claim in there}
    return [
        (claim, others[claim.key], _agreed(claim.verdict, others[claim.key]["verdict"]))
        for claim in here
        if claim.key in others
    ]


def _agreed(one: str, other: str) -> str:
    if one == other:
        return "the same"
    return "decided in one alone" if UNDECIDED in (one, other) else "opposite"


def records(claims: Sequence[Claim]) -> list[dict[str, Any]]:
    """Return the claims as JSON values."""
    return [asdict(claim) for claim in claims]
