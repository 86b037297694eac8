"""From a recipe to the graph of stages: which commands run, on what, and what they share. Nothing is run or written here.

A node is one command. Its digest is a hash of its stage, of the options that decide its result, of the local files that
these name, and of the digests of its inputs; its output directory is named by it. Two arms that need the same rows need the
same digest, hence the same node. Local files and model directories are read for their digests, nothing else.

    problems ─ sample ─ verify-rollouts ─┬───────────── distill (along y_o) ─ eval
                  └──── refine ─ verify-refined ─────── distill (along y_r) ─ eval
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from trd_cli.config import (
    Config,
    DistillConfig,
    EvalConfig,
    ImportConfig,
    MakeConfig,
    RefineConfig,
    RunStage,
    SampleConfig,
    VerifyConfig,
)
from trd_cli.errors import InputError
from trd_cli.models import fingerprint
from trd_cli.nodes import BASE, NODES, ORDER, Graph, Node
from trd_cli.recipes import Recipe
from trd_cli.records import content_hash

__all__ = ["ORDER", "Graph", "Node", "build_graph"]

# Options that decide a result without being part of the identity that the command itself compares.
_GRADING = ("lenient", "timeout", "test_timeout", "code_timeout", "memory")
_DECIDING: dict[str, tuple[str, ...]] = {
    "problems": tuple({**MakeConfig.model_fields, **ImportConfig.model_fields}.keys() - {"out"}),
    "sample": ("n", "limit", "skip", "max_prompt_tokens", "max_reference_tokens"),
    "verify": _GRADING,
    "refine": (),
    "distill": (),
    "eval": ("bench", "k", "limit", "temperature", "top_p", "top_k", "max_tokens", *_GRADING),
}


def build_graph(recipe: Recipe, directory: Path) -> Graph:
    """All nodes of a recipe, with their outputs in `directory`. Raises InputError for a file that is not there."""
    builder = _Builder(recipe)
    builder.build()
    return Graph(recipe, Path(directory), tuple(builder.nodes()))


@dataclass(frozen=True)
class _Model:
    """A model as a command names it, and the node that makes it, if any."""

    words: str
    node: Node | None = None


class _Builder:
    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._by_digest: dict[str, Node] = {}
        self._users: dict[str, set[str]] = {}

    def nodes(self) -> Iterable[Node]:
        """All nodes; those that several arms use belong to none of them. Raises InputError where two arms train the same student."""
        for digest, node in self._by_digest.items():
            arms = tuple(arm for arm in self._recipe.arms if arm in self._users[digest])
            if node.stage == "distill" and len(arms) > 1:
                raise InputError(
                    f"arms {' and '.join(arms)} come to the same training",
                    "arms that differ in what is trained on or how",
                    "leave one out",
                )
            yield replace(node, arms=arms, arm=node.arm if len(arms) == 1 else None)

    def build(self) -> None:
        recipe = self._recipe
        problems = self._problems()
        start = _Model(recipe.student)
        if recipe.eval is not None:
            self._eval(start, _Place(BASE, None, None, None))
        for seed in recipe.seeds:
            for arm in recipe.arms:
                student = start
                for number in range(recipe.rounds):
                    student = self._round(arm, seed, number, student, problems)

    def _round(
        self, arm: str, seed: int, number: int, student: _Model, problems: tuple[str, Node | None]
    ) -> _Model:
        """One round of one arm; gives the student that it ends with."""
        whole = f"seed-{seed}/round-{number}"
        own = _Place(f"{whole}/{arm}", arm, number, seed)
        shared = _Place(whole, None, number, seed)
        # In the first round all arms start from the same student.
        of_rollouts = own if number or self._recipe.arms[arm].get("sample") else shared
        of_refined = own if of_rollouts is own or self._recipe.arms[arm].get("refine") else shared
        rollouts = self._sample(arm, student, problems, of_rollouts)
        graded = self._verify("verify-rollouts", rollouts, of_rollouts, arm)
        inputs = [graded]
        if self._recipe.along(arm) == "refined":
            refined = self._refine(arm, student, rollouts, graded, of_refined)
            inputs = [self._verify("verify-refined", refined, of_refined, arm), graded]
        trained = self._distill(arm, student, inputs, own)
        model = _Model(trained.out, trained)
        if self._recipe.eval is not None:
            self._eval(model, own)
        return model

    def _problems(self) -> tuple[str, Node | None]:
        """What trd sample reads: the recipe's own file, or the node that makes one."""
        (kind, value), *_ = self._recipe.problems.items()
        if kind == "file":
            if not Path(value).is_file():
                raise InputError(
                    f"[problems] file: no such file: {value}", "a Parquet file", "check the path"
                )
            return value, None
        make = ("data", "make") if kind == "make" else ("data", "import")
        config_class = MakeConfig if kind == "make" else ImportConfig
        node = self._add(
            "problems",
            "problems",
            make,
            lambda out: config_class.parse({**value, "out": f"{out}/problems.parquet"}),
            (),
            _Place("", None, None, None),
            extra={"kind": kind},
        )
        return f"{node.out}/problems.parquet", node

    def _sample(self, arm: str, student: _Model, problems: tuple[str, Node | None], place: _Place) -> Node:
        size = self._recipe.problems_per_round
        sliced = {} if size is None else {"limit": size, "skip": size * place.round}
        file, made = problems
        values = {
            **self._recipe.sampling(arm),
            **sliced,
            "model": student.words,
            "problems": file,
            "round": place.round,
            "seed": place.seed,
        }
        extra = {"model": _named(student)} | ({} if made else {"problems": _file_digest(file)})
        return self._add(
            "sample",
            "sample",
            ("sample",),
            lambda out: SampleConfig.parse({**values, "out": out}),
            (made, student.node),
            place,
            arm,
            extra,
        )

    def _verify(self, kind: str, source: Node, place: _Place, arm: str) -> Node:
        """Fills in the verdicts of a set, in place."""
        return self._add(
            kind,
            "verify",
            ("verify",),
            lambda _: VerifyConfig.parse({**self._recipe.verify, "inputs": (source.out,)}),
            (source,),
            place,
            arm,
            out=source.out,
        )

    def _refine(self, arm: str, student: _Model, rollouts: Node, graded: Node, place: _Place) -> Node:
        recipe = self._recipe
        options = recipe.refining(arm)
        teacher = _Model(recipe.teacher) if recipe.teacher else self._own_teacher(arm, student)
        reads_verdicts = options.get("subset", "all") != "all" or options.get("where") is not None
        values = {
            **options,
            "setting": recipe.setting,
            "teacher": teacher.words,
            "seed": place.seed,
            "inputs": (rollouts.out,),
        }
        return self._add(
            "refine",
            "refine",
            ("refine",),
            lambda out: RefineConfig.parse({**values, "out": out}),
            (graded if reads_verdicts else rollouts, teacher.node),
            place,
            arm,
            {"teacher": _named(teacher)},
        )

    def _own_teacher(self, arm: str, student: _Model) -> _Model:
        """Which of its weights the student refines with, as trd distill chooses them for the loss."""
        config = DistillConfig.parse(self._recipe.training(arm))
        if student.node is None or config.teacher_weights == "initial":
            return _Model(self._recipe.student)
        # An adapter's average begins anew each round, at the student itself.
        if config.teacher_weights == "ema" and not config.lora:
            return _Model(f"{student.words}/ema", student.node)
        return student

    def _distill(self, arm: str, student: _Model, inputs: list[Node], place: _Place) -> Node:
        recipe = self._recipe
        teacher = {"teacher": recipe.teacher} if recipe.teacher else {}
        values = {
            **recipe.training(arm),
            **teacher,
            "model": student.words,
            "seed": place.seed,
            "inputs": (inputs[0].out,),
        }
        return self._add(
            "distill",
            "distill",
            ("distill",),
            lambda out: DistillConfig.parse({**values, "out": out}),
            (*inputs, student.node),
            place,
            arm,
            {"model": _named(student), "teacher": recipe.teacher and _named(_Model(recipe.teacher))},
        )

    def _eval(self, model: _Model, place: _Place) -> Node:
        return self._add(
            "eval",
            "eval",
            ("eval",),
            lambda out: EvalConfig.parse({**self._recipe.eval, "model": model.words, "out": out}),
            (model.node,),
            place,
            place.arm,
            {"model": _named(model), "bench": _bench_files(self._recipe.eval.get("bench") or "")},
        )

    def _add(
        self,
        kind: str,
        stage: RunStage,
        command: tuple[str, ...],
        configure: Any,
        inputs: Iterable[Node | None],
        place: _Place,
        arm: str | None = None,
        extra: Mapping[str, Any] | None = None,
        out: str | None = None,
    ) -> Node:
        """The node of this digest, made where there is none yet. `configure` makes its config from its output's path."""
        sources = tuple(dict.fromkeys(node for node in inputs if node is not None))
        digest = content_hash(
            {
                "stage": stage,
                "options": _deciding(stage, configure("")),
                "inputs": [node.digest for node in sources],
                **(extra or {}),
            }
        )
        self._users.setdefault(digest, set()).update((arm,) if arm else self._recipe.arms)
        if digest not in self._by_digest:
            where = out or f"{NODES}/{stage}-{digest[:10]}"
            config = configure(where)
            self._by_digest[digest] = Node(
                name=f"{place.prefix}/{kind}".lstrip("/"),
                stage=stage,
                argv=(*command, *config.flags()),
                inputs=tuple(node.name for node in sources),
                out=where,
                digest=digest,
                arm=place.arm,
                round=place.round,
                seed=place.seed,
                config=config,
            )
        return self._by_digest[digest]


@dataclass(frozen=True)
class _Place:
    """Where in the recipe a node is."""

    prefix: str
    arm: str | None
    round: int | None
    seed: int | None


def _deciding(stage: str, config: Config) -> dict[str, Any]:
    """The options that decide a node's result; a prompt template counts by its text."""
    values = config.model_dump(mode="json")
    chosen = config.identity() | {name: values[name] for name in _DECIDING[stage] if name in values}
    if chosen.get("prompt"):
        chosen["prompt"] = _file_digest(chosen["prompt"])
    if stage == "problems" and Path(values.get("file") or "").is_file():
        chosen["file"] = _file_digest(values["file"])
    return chosen


def _named(model: _Model) -> str | None:
    """What stands for a model in a digest: weights in a local directory, else its name; None for one of a node's."""
    if model.node is not None:
        return "ema" if model.words.endswith("/ema") else None
    return _directory_digest(model.words) if Path(model.words).is_dir() else model.words


def _bench_files(bench: str) -> dict[str, str]:
    """Digests of the benchmarks that are files."""
    names = [item.partition(":")[0] for item in bench.split(",")]
    return {name: _file_digest(name) for name in names if name and Path(name).is_file()}


@cache
def _directory_digest(path: str) -> str:
    return fingerprint(Path(path))


@cache
def _file_digest(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}", "a file that can be read", "check the path") from None
