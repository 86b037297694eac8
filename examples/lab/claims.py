"""The papers' claims, each with its figure in the lab, an interval, and a verdict.

A comparison held if it is significant in the direction of the claim, and did not hold if significant in the other, at
p < 0.05 after Holm's correction over all comparisons of all settings. A claim on a share held, or did not, where its
whole interval lies on one side of the bound. What is neither is undecided here: too small for this lab, or not there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import isnan
from pathlib import Path
from typing import Any

from figures import BASE, MOST_TOKENS, Scores, Share, difference, onset, read_scores, refinement

from trd_cli.evaluation.paired import holm
from trd_cli.evaluation.seeds import DifferenceOverSeeds

HELD, NOT, UNDECIDED = "held", "did not hold", "undecided here"
SETTINGS = ("opd", "opsd")
BENCH, HARDER = "held-out", "harder"
# Arms that are no rivals of trd: those that are trd but for a part, and the start.
_OWN = (BASE, "trd", "trd-repaired")


@dataclass(frozen=True)
class Claim:
    """One claim in one setting. `value`, `low` and `high` are in the unit that `figure` says; p is None for a share."""

    name: str
    setting: str
    text: str
    figure: str
    value: float
    low: float
    high: float
    verdict: str = UNDECIDED
    p_value: float | None = None
    p_holm: float | None = None

    @property
    def key(self) -> str:
        return f"{self.setting}: {self.name}"


@dataclass(frozen=True)
class Lab:
    """The runs of a directory, by their names."""

    directory: Path
    scores: Mapping[str, Scores]

    @classmethod
    def read(cls, directory: Path) -> Lab:
        """Read every run in `directory/runs` of which an evaluation has ended."""
        found = {path.name: read_scores(path) for path in sorted((directory / "runs").iterdir()) if path.is_dir()}
        return cls(directory, {name: scores for name, scores in found.items() if scores is not None})

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
                figure = f"{score}@{b.samples('trd', BENCH)} of trd less that of {arm}, points"
                yield _of_difference(name, setting, text, figure, d)

        yield from compared("trd-repaired", "breadth beats repaired rows alone", scores, "trd-repaired", "avg")
        yield from compared("pass", "pass@k grows with trd", scores, BASE, "pass")
        rounds = self.scores.get(f"{setting}-rounds")
        if rounds is not None:
            text = "ten short rounds beat one, with as many steps and rows"
            for claim in compared("rounds", text, scores, "trd", "avg", rounds):
                yield replace(claim, figure=claim.figure.replace("of trd less that of trd", "of ten rounds less one"))
        for arm in (arm for arm in scores.arms if arm not in _OWN):
            yield from compared(f"trd {arm}", f"trd beats {arm}", scores, arm, "avg")
        yield from compared("trd base", "trd improves the student", scores, BASE, "avg")


def of_onset(setting: str, run: Path) -> Iterator[Claim]:
    """Yield what the diagnosis says of the KL along y_o."""
    found = onset(run)
    if found is None:
        return
    mass = f"the teacher's mass on turning back is {found.mass_after:.2f} there and {found.mass_before:.2f} before"
    figure = f"share of the forward KL along y_o behind the first wrong step, % (of positions: {_percent(found.positions)}; {mass})"
    yield _of_share("onset", setting, "forward KL along y_o is dominated by the onset", figure, found.forward, True)
    figure = (
        f"share of the reverse KL along y_o behind the first wrong step, % (of positions: {_percent(found.positions)})"
    )
    yield _of_share("reverse", setting, "reverse KL along y_o ignores the onset", figure, found.reverse, False)


def of_refinement(setting: str, run: Path) -> Iterator[Claim]:
    """Yield what refinement did to the rollouts."""
    found = refinement(run)
    if found is None:
        return
    figure = "share of right y_r less that of right y_o, points"
    yield _of_difference("y_r right", setting, "y_r is more often right than y_o", figure, found["right"])
    d = _of_difference(
        "y_r shorter", setting, "y_r is shorter than y_o", "tokens of y_o less those of y_r", found["length"]
    )
    scale = -MOST_TOKENS / 100
    yield replace(d, value=scale * d.value, low=scale * d.high, high=scale * d.low)


def _of_share(name: str, setting: str, text: str, figure: str, share: Share, above: bool) -> Claim:
    """Return a claim that a share is above, or below, a half."""
    side = HELD if share.low > 0.5 else NOT if share.high < 0.5 else UNDECIDED
    verdict = side if above or side == UNDECIDED else {HELD: NOT, NOT: HELD}[side]
    return Claim(name, setting, text, figure, *(100 * each for each in (share.value, share.low, share.high)), verdict)


def _of_difference(name: str, setting: str, text: str, figure: str, d: DifferenceOverSeeds) -> Claim:
    ends = (100 * each for each in (d.value, d.low, d.high))
    return Claim(name, setting, text, figure, *ends, p_value=d.p_value)


def judged(claims: Sequence[Claim]) -> list[Claim]:
    """Return the claims with their p-values corrected by Holm over all, and the verdicts that follow."""
    tested = [i for i, claim in enumerate(claims) if claim.p_value is not None]
    found = list(claims)
    for i, p in zip(tested, holm([claims[i].p_value for i in tested]), strict=True):
        verdict = UNDECIDED if p >= 0.05 or claims[i].value == 0 else HELD if claims[i].value > 0 else NOT
        found[i] = replace(claims[i], p_holm=p, verdict=verdict)
    return found


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


def _percent(share: Share) -> str:
    return f"{100 * share.value:.0f} %"
