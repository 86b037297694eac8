"""From a recipe to the graph of stages: which commands run, on what, and what they share. Nothing is run or written
here.

A node is one command. Its digest is a hash of its stage, of the options that decide its result, of the local files that
these name, and of the digests of its inputs; its output directory is named by it. Two arms that need the same rows need
the same digest, hence the same node. Local files and model directories are read for their digests, nothing else.

    problems ─ sample ─ verify-rollouts ─┬───────────── distill (along y_o) ─ eval
                  └──── refine ─ verify-refined ─────── distill (along y_r) ─ eval
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trd_cli.config.base import Config, RunStage
from trd_cli.config.commands import EvalConfig, ImportConfig, MakeConfig
from trd_cli.config.generating import RefineConfig, SampleConfig
from trd_cli.config.grading import VerifyConfig
from trd_cli.config.training import DistillConfig
from trd_cli.errors import InputError
from trd_cli.models import EMA, ModelRef, own_teacher, resolve_model
from trd_cli.recipes.contents import Contents, Model
from trd_cli.recipes.nodes import BASE, NODES, Graph, Node
from trd_cli.recipes.recipe import Recipe
from trd_cli.recipes.sections import PROBLEMS_FILE
from trd_cli.records import content_hash


def build_graph(recipe: Recipe, directory: Path) -> Graph:
    """All nodes of a recipe, with their outputs in `directory`. Raises InputError for a file that is not there."""
    builder = _Builder(recipe)
    builder.build()
    return Graph(recipe, Path(directory), tuple(builder.nodes()))


# Options that only say by what name something goes that counts by its content.
_NAMES = {"method", "model", "teacher", "problems", "inputs", "parents", "out"}


class _Builder:
    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._by_digest: dict[str, Node] = {}
        self._users: dict[str, set[str]] = {}
        self._contents = Contents()

    def nodes(self) -> Iterable[Node]:
        """All nodes; those that several arms use belong to none of them."""
        for digest, node in self._by_digest.items():
            arms = tuple(arm for arm in self._recipe.arms if arm in self._users[digest])
            yield replace(node, arms=arms, arm=node.arm if len(arms) == 1 else None)

    def build(self) -> None:
        recipe = self._recipe
        problems = self._problems()
        start = Model(recipe.student)
        if recipe.eval is not None:
            self._eval(start, _Place(BASE, None, None, None))
        for seed in recipe.seeds:
            for arm in recipe.arms:
                student = start
                for number in range(recipe.rounds):
                    student = self._round(arm, seed, number, student, problems)

    def _round(self, arm: str, seed: int, number: int, student: Model, problems: tuple[str, Node | None]) -> Model:
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
        trained = self._distill(arm, student, inputs, rollouts, own)
        model = Model(trained.out, trained)
        if self._recipe.eval is not None:
            self._eval(model, own)
        return model

    def _problems(self) -> tuple[str, Node | None]:
        """What trd sample reads: the recipe's own file, or the node that makes one."""
        (kind, value), *_ = self._recipe.problems.items()
        if kind == "file":
            if not Path(value).is_file():
                raise InputError(f"[problems] file: no such file: {value}", "a Parquet file", "check the path")
            return value, None
        make = ("data", "make") if kind == "make" else ("data", "import")
        config_class = MakeConfig if kind == "make" else ImportConfig
        node = self._add(
            "problems",
            "problems",
            make,
            lambda out: config_class.parse({**value, "out": f"{out}/{PROBLEMS_FILE}"}),
            (),
            _Place("", None, None, None),
            extra={"kind": kind},
        )
        return f"{node.out}/{PROBLEMS_FILE}", node

    def _sample(self, arm: str, student: Model, problems: tuple[str, Node | None], place: _Place) -> Node:
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
        extra = {"model": self._contents.model(student)}
        if made is None:
            extra["problems"] = self._contents.file(file)
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

    def _refine(self, arm: str, student: Model, rollouts: Node, graded: Node, place: _Place) -> Node:
        recipe = self._recipe
        options = recipe.refining(arm)
        teacher = Model(recipe.teacher) if recipe.teacher else self._own_teacher(arm, student)
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
            {"teacher": self._contents.model(teacher)},
        )

    def _own_teacher(self, arm: str, student: Model) -> Model:
        """Which of its weights the student refines with, as trd distill chooses them for the loss."""
        config = DistillConfig.parse(self._recipe.training(arm))
        if student.node is None or config.teacher_weights == "initial":
            return self._start_teacher(config)
        # An adapter's average begins anew each round, at the student itself.
        if config.teacher_weights == "ema" and not config.lora:
            return Model(f"{student.words}/{EMA}", student.node)
        return student

    def _start_teacher(self, config: DistillConfig) -> Model:
        """The teacher of the recipe's own student, which may be a checkpoint of an earlier run."""
        name = self._recipe.student
        if not Path(name).is_dir():
            return Model(name)

        def found(model: str) -> ModelRef:
            return resolve_model(model, weights=False)

        return Model(own_teacher(found(name), config.teacher_weights, config.lora, found).name)

    def _distill(self, arm: str, student: Model, inputs: list[Node], rollouts: Node, place: _Place) -> Node:
        recipe = self._recipe
        along_refined = recipe.along(arm) == "refined"
        teacher = {"teacher": recipe.teacher} if recipe.teacher else {}
        values = {
            **recipe.training(arm),
            **teacher,
            "model": student.words,
            "seed": place.seed,
            "inputs": (inputs[0].out,),
            # Not left to what the refined set says of where it was made: a run may be moved or copied.
            "parents": (rollouts.out,) if along_refined else (),
        }
        return self._add(
            "distill",
            "distill",
            ("distill",),
            lambda out: DistillConfig.parse({**values, "out": out}),
            (*inputs, student.node),
            place,
            arm,
            {
                "model": self._contents.model(student),
                "teacher": self._contents.model(
                    Model(recipe.teacher) if recipe.teacher else self._own_teacher(arm, student)
                ),
            },
        )

    def _eval(self, model: Model, place: _Place) -> Node:
        return self._add(
            "eval",
            "eval",
            ("eval",),
            lambda out: EvalConfig.parse({**self._recipe.eval, "model": model.words, "out": out}),
            (model.node,),
            place,
            place.arm,
            {"model": self._contents.model(model)},
        )

    def _add(
        self,
        kind: str,
        stage: RunStage,
        command: tuple[str, ...],
        configure: Callable[[str], Config],
        inputs: Iterable[Node | None],
        place: _Place,
        arm: str | None = None,
        extra: Mapping[str, Any] | None = None,
        out: str | None = None,
    ) -> Node:
        """The node of this digest, made where there is none yet.

        `configure` makes its config from its output's path.
        """
        sources = tuple(dict.fromkeys(node for node in inputs if node is not None))
        digest = content_hash(
            {
                "stage": stage,
                "options": self._contents.deciding(configure(""), self._recipe.setting),
                "inputs": [node.digest for node in sources],
                **(extra or {}),
            }
        )
        if digest not in self._by_digest:
            where = out or f"{NODES}/{stage}-{digest[:10]}"
            config = configure(where)
            self._by_digest[digest] = Node(
                name=self._name(kind, place, arm),
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
        node = self._by_digest[digest]
        users = self._users.setdefault(digest, set())
        if arm is not None and users - {arm}:
            _check_shared(node, configure(node.out), arm, users)
        users.update((arm,) if arm else self._recipe.arms)
        return node

    def _name(self, kind: str, place: _Place, arm: str | None) -> str:
        """That of the place; where another node has it, as arms of one place may need different ones, with the arm."""
        name = f"{place.prefix}/{kind}".lstrip("/")
        taken = any(node.name == name for node in self._by_digest.values())
        return f"{place.prefix}/{arm}/{kind}" if taken else name


def _check_shared(node: Node, config: Config, arm: str, users: Collection[str]) -> None:
    """Refuse an arm that shares a node and asks for something else there, which it would not get, and one that comes to
    the same training as another."""
    own = config.deciding().keys() | _NAMES
    fields = [name for name in type(config).model_fields if name not in own]
    names = [name for name in fields if getattr(config, name) != getattr(node.config, name)]
    if names:
        raise InputError(
            f"arms {min(users)} and {arm} differ in {', '.join(names)} of trd {node.stage} alone, which changes no row",
            "arms that differ in what they are made of",
            f"set it in [{node.stage}] for all arms, or leave it out",
        )
    if node.stage == "distill":
        raise InputError(
            f"arms {min(users)} and {arm} come to the same training",
            "arms that differ in what they are trained on or how",
            "leave one out",
        )


@dataclass(frozen=True)
class _Place:
    """Where in the recipe a node is."""

    prefix: str
    arm: str | None
    round: int | None
    seed: int | None
