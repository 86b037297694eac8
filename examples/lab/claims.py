"""The papers' claims, each with its figure in the lab, an interval, and a verdict.

A claim held if its figure is significant in the direction of the claim, and did not hold if significant in the other:
p < 0.05 after Holm's correction over all claims of all settings. What is neither is undecided here: too small for this
lab, or not there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import isnan
from pathlib import Path
from typing import Any

from figures import BASE, MOST_TOKENS, Onset, Scores, Share, difference, onset, read_scores, refinement

from trd_cli.evaluation.paired import holm
from trd_cli.evaluation.seeds import DifferenceOverSeeds

HELD, NOT, UNDECIDED = "held", "did not hold", "undecided"
SETTINGS = ("opd", "opsd")
BENCH, HARDER = "held-out", "harder"
# Arms that are no rivals of trd: those that are trd but for a part, and the start.
_OWN = (BASE, "trd", "trd-repaired")


@dataclass(frozen=True)
class Claim:
    """One claim in one setting. `figure` says what `value`, `low` and `high` are, and in which unit.

    `lean` is above 0 where the figure speaks for the claim; p is of its being 0. `about` is a sentence for a footnote.
    """

    name: str
    setting: str
    text: str
    figure: str
    value: float
    low: float
    high: float
    lean: float
    p_value: float
    p_holm: float | None = None
    verdict: str = UNDECIDED
    about: str = ""

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
                figure = f"{score}@{b.samples('trd', BENCH)}, points more"
                yield _of_difference(name, setting, text, figure, d)

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
    """Yield the claims on the shares of KL behind a wrong step."""
    figure = "share of the KL, %"
    about = (
        f"{setting}: {100 * found.positions:.0f} % of the positions along y_o are behind the first wrong step; the teacher's "
        f"mass on turning back is {found.mass_after:.2f} there and {found.mass_before:.2f} elsewhere."
    )
    # Both bounds must be passed for the claim; to fail at one is enough against it.
    sides = sorted((found.by_half, found.forward), key=lambda share: share.beyond)
    p_value = sides[0].p_value if sides[0].beyond < 0 else max(share.p_value for share in sides)
    text = "forward KL is dominated by the onset"
    percents = _percents(found.forward)
    yield Claim("onset", setting, text, figure, *percents, sides[0].beyond, p_value, about=about)
    of = found.reverse
    text = "reverse KL ignores the onset"
    yield Claim("reverse", setting, text, figure, *_percents(of), -of.beyond, of.p_value)


def _percents(share: Share) -> tuple[float, float, float]:
    return 100 * share.value, 100 * share.low, 100 * share.high


def of_refinement(setting: str, run: Path) -> Iterator[Claim]:
    """Yield what refinement did to the rollouts."""
    found = refinement(run)
    if found is None or any(isnan(d.value) for d in found.values()):
        return
    figure = "right, points more"
    yield _of_difference("y_r right", setting, "y_r is more often right than y_o", figure, found["right"])
    d = _of_difference("y_r shorter", setting, "y_r is shorter than y_o", "tokens fewer", found["length"])
    scale = -MOST_TOKENS / 100
    yield replace(d, value=scale * d.value, low=scale * d.high, high=scale * d.low, lean=-d.lean)


def _of_difference(name: str, setting: str, text: str, figure: str, d: DifferenceOverSeeds) -> Claim:
    ends = (100 * each for each in (d.value, d.low, d.high))
    return Claim(name, setting, text, figure, *ends, d.value, d.p_value)


def judged(claims: Sequence[Claim]) -> list[Claim]:
    """Return the claims with their p-values corrected by Holm over all, and the verdicts that follow."""
    return [
        replace(claim, p_holm=p, verdict=_verdict(claim.lean, p))
        for claim, p in zip(claims, holm([claim.p_value for claim in claims]), strict=True)
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
