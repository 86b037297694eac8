"""Read the lab's runs: scores by arm, seed and question, what refinement changed, and the KL at wrong prefixes.

Axes: S seeds, Q questions, K samples, P problems.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
from vocabulary import tokens_of
from world import TURN, World

from trd_cli.diagnosis.files import flat, iter_figures
from trd_cli.evaluation.intervals import resamples
from trd_cli.evaluation.metrics import pass_scores, question_means
from trd_cli.evaluation.results import correct_matrix, read_results
from trd_cli.evaluation.seeds import DifferenceOverSeeds, OverSeeds, difference_over_seeds, mean_over_seeds
from trd_cli.report.run_directory import Node, Run, lacking, read_run
from trd_cli.trajectories.shards import read_table

BASE = "base"
# As many tokens a response may have; lengths are compared as shares of it.
MOST_TOKENS = 40
_DRAWS = 4000


@dataclass(frozen=True)
class Scores:
    """Hold the evaluations of a run after its last round, by arm, seed (None: base) and benchmark.

    `correct` has correct_QK, `turned` the share of each question's responses that turn back, (Q,). The questions of the
    two are not in the same order.
    """

    name: str
    setting: str
    correct: dict[str, dict[int | None, dict[str, np.ndarray]]]
    turned: dict[str, dict[int | None, dict[str, np.ndarray]]]

    @property
    def arms(self) -> list[str]:
        return list(self.correct)

    @property
    def benches(self) -> list[str]:
        return list(next(iter(next(iter(self.correct.values())).values())))

    def matrix(self, arm: str, bench: str, score: str, seeds: Sequence[int | None] | None = None) -> np.ndarray:
        """Return a score of each question by seed, shape (S, Q): avg@k, pass@k, or the share that is `turned`.

        Of the base model S is 1.
        """
        of = self.turned[arm] if score == "turned" else self.correct[arm]
        rows = [of[seed][bench] for seed in (of if seeds is None or None in of else seeds)]
        if score == "turned":
            return np.array(rows)
        if score == "avg":
            return np.array([question_means(correct_QK) for correct_QK in rows])
        return np.array([pass_scores(correct_QK, correct_QK.shape[1])[0] for correct_QK in rows])

    def mean(self, arm: str, bench: str, score: str) -> OverSeeds:
        scores_SQ = self.matrix(arm, bench, score)
        return mean_over_seeds(scores_SQ, self.samples(arm, bench) * len(scores_SQ))

    def samples(self, arm: str, bench: str) -> int:
        return next(iter(self.correct[arm].values()))[bench].shape[1]


def difference(a: Scores, arm_a: str, b: Scores, arm_b: str, bench: str, score: str) -> DifferenceOverSeeds | None:
    """Return B − A over the seeds that both have, paired by seed; None where there is nothing to compare."""
    if arm_a not in a.correct or arm_b not in b.correct:
        return None
    seeds_a, seeds_b = list(a.correct[arm_a]), list(b.correct[arm_b])
    common = [seed for seed in seeds_b if seed in seeds_a] if None not in (*seeds_a, *seeds_b) else None
    if common == []:
        return None
    sides = (a.matrix(arm_a, bench, score, common), b.matrix(arm_b, bench, score, common))
    return difference_over_seeds(*sides, are_paired=common is not None)


def read_scores(directory: Path) -> Scores | None:
    """Read the finished evaluations of a run; None where none has ended.

    Of several rounds the last counts. An arm counts once every seed of it is there, and a run once the base model is.
    """
    run = read_run(directory)
    last = max((node.round or 0 for node in run.of_stage("eval")), default=0)
    nodes = [node for node in run.of_stage("eval") if node.round in (None, last)]
    unfinished = {node.arm for node in nodes if node.state != "done" or lacking(node)}
    correct: dict[str, dict[int | None, dict[str, np.ndarray]]] = {}
    turned: dict[str, dict[int | None, dict[str, np.ndarray]]] = {}
    for node in nodes:
        if node.arm not in unfinished:
            arm, benches = node.arm or BASE, read_results(str(node.path))["benchmarks"]
            found = {Path(name).stem: correct_matrix(bench["samples"]) for name, bench in benches.items()}
            correct.setdefault(arm, {})[node.seed] = found
            turned.setdefault(arm, {})[node.seed] = _turned(node)
    is_there = BASE in correct and len(correct) > 1
    return Scores(run.name, run.recipe["setting"], correct, turned) if is_there else None


def is_finished(directory: Path) -> bool:
    """Return True if every stage of a run is done."""
    return all(node.state == "done" for node in read_run(directory).nodes.values())


def _turned(node: Node) -> dict[str, np.ndarray]:
    """Return by benchmark the share of each question's responses that turn back, ordered by the questions' ids."""
    rows = _columns(node, ["source", "problem_id", "response"])
    has_turned = pl.col("response").fill_null("").str.contains(TURN, literal=True)
    shares = rows.group_by("source", "problem_id").agg(has_turned.mean().alias("share")).sort("problem_id")
    return {
        Path(source).stem: of_source["share"].to_numpy()
        for (source,), of_source in shares.partition_by("source", as_dict=True).items()
    }


def _columns(node: Node, names: list[str]) -> pl.DataFrame:
    return pl.from_arrow(pa.concat_tables(read_table(path, names) for path in node.shards()))


# Refinement


def first_sets(run: Run) -> list[tuple[Node, Node]]:
    """Return the rollouts and the refined rows that all arms of a seed share, seed by seed, where both are graded."""
    graded = {node.path for node in run.of_stage("verify") if node.state == "done"}
    pairs = ((source, made) for made in _shared(run) for source in run.sources(made, "sample"))
    return [pair for pair in pairs if all(node.state == "done" and node.path in graded for node in pair)]


def _shared(run: Run) -> list[Node]:
    return [node for node in run.of_stage("refine") if node.arm is None]


def refinement(directory: Path) -> dict[str, DifferenceOverSeeds] | None:
    """Return y_r − y_o in the share right and in length (a share of MOST_TOKENS), over seeds and problems.

    None until the rows of every seed are graded.
    """
    if not (directory / "graph.json").is_file():
        return None
    run = read_run(directory)
    pairs = first_sets(run)
    if not pairs or len(pairs) < len(_shared(run)):
        return None
    by_seed = [_changes(*nodes) for nodes in pairs]
    problems = sorted(set.intersection(*(set(found["problem_id"]) for found in by_seed)))
    rows = pl.DataFrame({"problem_id": problems})

    def of(column: str) -> np.ndarray:
        return np.array(
            [
                rows.join(found, on="problem_id", how="left", maintain_order="left")[column].to_numpy()
                for found in by_seed
            ]
        )

    names = ("right", "length")
    return {n: difference_over_seeds(of(f"{n}_o"), of(f"{n}_r"), are_paired=True) for n in names}


def _changes(rollouts: Node, refined: Node) -> pl.DataFrame:
    """Return by problem the mean share right and the mean length, before and after."""
    right = (pl.col("verdict") == "correct").cast(pl.Float64)
    length = pl.col("response_token_ids").list.len() / MOST_TOKENS
    names = ["problem_id", "verdict", "response_token_ids"]
    before = _columns(rollouts, ["trajectory_id", *names]).select(
        *("trajectory_id", "problem_id"), right_o=right, length_o=length
    )
    after = _columns(refined, ["parent_id", *names[1:]]).select("parent_id", right_r=right, length_r=length)
    pairs = before.join(after, left_on="trajectory_id", right_on="parent_id").drop("trajectory_id")
    return pairs.group_by("problem_id").mean().sort("problem_id")


# Diagnosis


@dataclass(frozen=True)
class Share:
    """Hold a share of a sum over rows with a 95 % interval over problems.

    `beyond` is the share less its bound, with a two-sided p-value of the bootstrap.
    """

    value: float
    low: float
    high: float
    beyond: float
    p_value: float


@dataclass(frozen=True)
class Onset:
    """Hold what the KL along y_o is made of, at the positions that have a prefix.

    `forward` is the share of forward KL behind a wrong step less that of the positions, `by_half` the same share less a
    half. The shares of reverse KL and of the positions have no bound. `mass_after` and `mass_before` are the teacher's
    mean mass on onset tokens there and elsewhere.
    """

    by_half: Share
    forward: Share
    reverse: float
    positions: float
    mass_after: float
    mass_before: float


def onset(directory: Path) -> Onset | None:
    """Return what the diagnosis in a run's directory says of positions whose prefix is wrong; None without one.

    The first position has no prefix that could be wrong, and is left out. Each row weighs the same, as in the loss:
    positions count one over the row's length.
    """
    if not (directory / "diagnosis" / "diagnosis.json").is_file():
        return None
    sets = first_sets(read_run(directory))
    if not sets:
        return None
    texts = pl.concat(_columns(node, ["trajectory_id", "problem", "response"]) for node, _ in sets)
    by_id = {row[0]: row[1:] for row in texts.iter_rows()}
    sums: dict[str, np.ndarray] = {}
    mass = np.zeros((2, 2))
    for table in iter_figures(directory / "diagnosis"):
        figures = {name: flat(table, name)[0] for name in ("forward_kl", "reverse_kl", "onset_mass")}
        offsets = flat(table, "forward_kl")[1]
        for i, (key, problem, kind) in enumerate(
            zip(*(table[name].to_pylist() for name in ("trajectory_id", "problem_id", "kind")), strict=True)
        ):
            places = slice(offsets[i], offsets[i + 1])
            length = offsets[i + 1] - offsets[i]
            if kind != "rollout" or length < 2:
                continue
            after = behind(*by_id[key], length)[1:]
            onset_mass = figures["onset_mass"][places][1:]
            for part in (0, 1):
                mass[part] += onset_mass[after == part].sum(), (after == part).sum()
            parts = [figures[name][places][1:] for name in ("forward_kl", "reverse_kl")] + [np.ones(length - 1)]
            row = [[part[after].sum() / length, part.sum() / length] for part in parts]
            sums[problem] = sums.get(problem, np.zeros((3, 2))) + np.array(row)
    sums_P32 = np.array([sums[problem] for problem in sorted(sums)])
    before, after = (float(total / max(1, places)) for total, places in mass)
    _, reverse, positions = (float(share) for share in np.divide(*sums_P32.sum(axis=0).T))
    return Onset(*shares(sums_P32[:, [0, 2]]), reverse, positions, after, before)


def shares(sums_P22: np.ndarray) -> tuple[Share, Share]:
    """Return the first of two shares less a half and less the second.

    The sums are by problem and share, the part and the whole. The bootstrap is over problems.
    """
    weights = resamples(np.random.default_rng(0), _DRAWS, len(sums_P22))
    drawn = np.einsum("bp,pij->bij", weights, sums_P22)
    drawn_B2, seen = drawn[..., 0] / drawn[..., 1], sums_P22.sum(axis=0)
    value, other = seen[:, 0] / seen[:, 1]
    low, high = np.quantile(drawn_B2[:, 0], (0.025, 0.975))

    def less(bound: float, bound_B: np.ndarray | float) -> Share:
        beyond_B = drawn_B2[:, 0] - bound_B
        others = min((beyond_B <= 0).sum(), (beyond_B >= 0).sum())
        p_value = min(1.0, 2 * (1 + int(others)) / (_DRAWS + 1))
        return Share(float(value), float(low), float(high), float(value - bound), p_value)

    return less(0.5, 0.5), less(other, drawn_B2[:, 1])


def behind(problem: str, response: str, length: int) -> np.ndarray:
    """Return which of a row's positions have a wrong step before them and no turning back since, boolean (length,).

    Of a response that turns back several times, the part up to the first one behind the wrong step counts.
    """
    wrong, tokens = first_wrong(problem, response), tokens_of(response)
    turn = next((i for i in range(wrong, len(tokens)) if tokens[i] == TURN), length)
    places = np.arange(length)
    return (places > wrong) & (places <= turn)


def first_wrong(problem: str, response: str) -> int:
    """Return the index of the first wrong token, or the number of tokens where all of the response, up to the first
    turning back, begins the right answer.
    """
    solution = World.parse(problem).solution
    written, tokens = "", tokens_of(response)
    for i, token in enumerate(tokens):
        if token == TURN:
            break
        written += token
        if not solution.startswith(written):
            return i
    return len(tokens)
