"""Build the graph of a recipe: the commands to run, their inputs, and those that arms share. Nothing is run or written.

A node is one command. Its digest is a hash of its stage, of the options that decide its result, of the local files that
these name, and of the digests of its inputs. The digest names the output directory. Arms that need the same rows need
the same digest, and so share the node. Local files and model directories are read for their digests alone.

    problems ─ sample ─ verify-rollouts ─┬───────────── distill (along y_o) ─ eval
                  └──── refine ─ verify-refined ─────── distill (along y_r) ─ eval

Episodes are sampled from their environment, without a node before. A recipe with both has two chains up to distill.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trd_cli.config.base import Config
from trd_cli.config.commands import EvalConfig, ImportConfig, MakeConfig
from trd_cli.config.generating import RefineConfig, SampleConfig
from trd_cli.config.grading import VerifyConfig
from trd_cli.config.training import DistillConfig
from trd_cli.diagnosis.onset import read_words
from trd_cli.errors import InputError
from trd_cli.hub.fetching import local_path
from trd_cli.models import EMA, ModelRef, own_teacher, resolve_model
from trd_cli.recipes.nodes import BASE, NODES, Contents, Graph, Model, Node
from trd_cli.recipes.recipe import Recipe, Source
from trd_cli.recipes.rounds import problems_a_round, total_steps
from trd_cli.recipes.sections import PROBLEMS_FILE
from trd_cli.recipes.tasks import tasks_of, tasks_of_problems
from trd_cli.records import content_hash


def build_graph(recipe: Recipe, directory: Path) -> Graph:
    """Build all nodes of a recipe, with their outputs in `directory`. Raises InputError for a file that is missing."""
    builder = _Builder(recipe)
    builder.build()
    return Graph(recipe, Path(directory), tuple(builder.nodes()))


# Options that name something that counts by its content.
_NAMES = {"method", "model", "teacher", "problems", "inputs", "parents", "onset"}


class _Builder:
    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._by_digest: dict[str, Node] = {}
        self._names: set[str] = set()
        self._users: dict[str, set[str]] = {}
        self._contents = Contents()
        self._tasks = tasks_of_problems(recipe.problems)

    def nodes(self) -> Iterable[Node]:
        """Yield all nodes; those that several arms use belong to none of them."""
        for digest, node in self._by_digest.items():
            arms = tuple(arm for arm in self._recipe.arms if arm in self._users[digest])
            yield replace(node, arms=arms, arm=node.arm if len(arms) == 1 else None)

    def build(self) -> None:
        recipe = self._recipe
        problems = self._problems() if recipe.problems is not None else None
        start = Model(recipe.student)
        if recipe.eval is not None:
            self._eval(start, _Place(BASE))
        for seed in recipe.seeds:
            for arm in recipe.arms:
                student = start
                for number in range(recipe.rounds):
                    student = self._round(arm, seed, number, student, problems)

    def _round(
        self, arm: str, seed: int, number: int, student: Model, problems: tuple[str, Node | None] | None
    ) -> Model:
        """Add one round of one arm. Return the student that it ends with."""
        own = _Place(f"seed-{seed}/round-{number}/{arm}", arm, number, seed)
        rows = [self._rows(arm, own, student, source, problems) for source in self._recipe.sources]
        trained = self._distill(arm, student, rows, own)
        model = Model(trained.out, trained)
        if self._recipe.scores(number):
            self._eval(model, own)
        return model

    def _rows(
        self, arm: str, own: _Place, student: Model, source: Source, problems: tuple[str, Node | None] | None
    ) -> list[Node]:
        """Add what makes the rows of one source. Return the graded set to train along, and the graded rollouts."""
        recipe = self._recipe
        inner = f"/{source}" if source != recipe.sources[0] else ""
        mine = replace(own, prefix=own.prefix + inner, source=source)
        shared = replace(mine, prefix=own.prefix.removesuffix(f"/{arm}") + inner, arm=None)
        # In the first round all arms start from the same student.
        of_rollouts = mine if own.round or recipe.arms[arm].sample else shared
        of_refined = mine if of_rollouts is mine or recipe.arms[arm].refine else shared
        rollouts = self._sample(arm, student, problems, of_rollouts)
        graded = self._verify("verify-rollouts", rollouts, of_rollouts, arm)
        if recipe.along(arm) != "refined":
            return [graded]
        refined = self._refine(arm, student, rollouts, graded, of_refined)
        return [self._verify("verify-refined", refined, of_refined, arm), graded]

    def _problems(self) -> tuple[str, Node | None]:
        """Return the file that trd sample reads, and the node that makes it unless it is the recipe's own."""
        (kind, value), *_ = self._recipe.problems.items()
        if kind == "file":
            if not local_path(value).is_file():
                raise InputError(f"[problems] file: no such file: {value}", "a Parquet file", "check the path")
            return value, None
        config_class = MakeConfig if kind == "make" else ImportConfig
        config = config_class.parse({**value, "out": PROBLEMS_FILE})
        node = self._add("problems", config, (), _Place(), contents={"kind": kind})
        return f"{node.out}/{PROBLEMS_FILE}", node

    def _sample(self, arm: str, student: Model, problems: tuple[str, Node | None] | None, place: _Place) -> Node:
        size = problems_a_round(self._recipe, arm, place.source)
        sliced = {} if size is None else {"limit": size, "skip": size * place.round}
        file, made = problems if place.source == "problems" else (None, None)
        read = {"env": self._recipe.episodes.env} if place.source == "episodes" else {"problems": file}
        config = SampleConfig.parse(
            {
                **self._recipe.sampling(arm, place.source),
                **sliced,
                **read,
                "model": student.name,
                "round": place.round,
                "seed": place.seed,
            }
        )
        contents = {"model": self._contents.model(student)}
        if file is not None and made is None:
            contents["problems"] = self._contents.file(str(local_path(file)))
        return self._add("sample", config, (made, student.node), place, arm, contents)

    def _verify(self, kind: str, source: Node, place: _Place, arm: str) -> Node:
        """Add the grading of a set, which fills in the verdicts in place."""
        config = VerifyConfig.parse({**self._recipe.verify, "inputs": (source.out,)})
        return self._add(kind, config, (source,), place, arm, out=source.out)

    def _refine(self, arm: str, student: Model, rollouts: Node, graded: Node, place: _Place) -> Node:
        recipe = self._recipe
        teacher = Model(recipe.teacher) if recipe.teacher else self._own_teacher(arm, student)
        config = RefineConfig.parse(
            {
                **recipe.refining(arm, place.source),
                "setting": recipe.setting,
                "teacher": teacher.name,
                "seed": place.seed,
                "inputs": (rollouts.out,),
            }
        )
        reads_verdicts = config.subset != "all" or config.where is not None
        inputs = (graded if reads_verdicts else rollouts, teacher.node)
        contents: dict[str, Any] = {"teacher": self._contents.model(teacher)}
        if config.mode == "relay":
            contents["onset"] = read_words(config.onset)
        return self._add("refine", config, inputs, place, arm, contents)

    def _own_teacher(self, arm: str, student: Model) -> Model:
        """Return the weights of the student that refine: those that trd distill takes as the teacher of the loss."""
        config = DistillConfig.parse(self._recipe.training(arm))
        if student.node is None or config.teacher_weights == "initial":
            return self._start_teacher(config)
        # No checkpoint has the average of an adapter.
        if config.teacher_weights == "ema" and not config.lora:
            return Model(f"{student.name}/{EMA}", student.node)
        return student

    def _start_teacher(self, config: DistillConfig) -> Model:
        """Return the own teacher of the recipe's student, which may be a checkpoint of an earlier run."""
        name = self._recipe.student
        if not Path(name).is_dir():
            return Model(name)

        def found(model: str) -> ModelRef:
            return resolve_model(model, weights=False)

        return Model(own_teacher(found(name), config.teacher_weights, config.lora, found).name)

    def _distill(self, arm: str, student: Model, rows: list[list[Node]], place: _Place) -> Node:
        """Add the training on the rows of each source: the graded set to train along, and the graded rollouts."""
        recipe = self._recipe
        along_refined = recipe.along(arm) == "refined"
        teacher = Model(recipe.teacher) if recipe.teacher else self._own_teacher(arm, student)
        named = {"teacher": recipe.teacher} if recipe.teacher else {}
        config = DistillConfig.parse(
            {
                **recipe.training(arm),
                **named,
                **self._steps(arm, student),
                "model": student.name,
                "seed": place.seed,
                "inputs": tuple(along.out for along, *_ in rows),
                # The refined set names its parents by a path, which is wrong once a run is moved or copied.
                "parents": tuple(rollouts.out for *_, rollouts in rows) if along_refined else (),
            }
        )
        contents = {"model": self._contents.model(student), "teacher": self._contents.model(teacher)}
        if config.continue_from is not None:
            contents["continues"] = True
        inputs = [node for nodes in rows for node in nodes]
        return self._add("distill", config, (*inputs, student.node), place, arm, contents)

    def _steps(self, arm: str, student: Model) -> dict[str, Any]:
        """Return the options that make the rounds of an arm one training, and those that count their steps."""
        recipe, options = self._recipe, {}
        if recipe.steps_per_round is not None:
            options["steps"] = recipe.steps_per_round
        if recipe.is_continued:
            options["total_steps"] = total_steps(recipe, arm)
            if student.node is not None:
                options["continue_from"] = student.name
        return options

    def _eval(self, model: Model, place: _Place) -> Node:
        config = EvalConfig.parse({**self._recipe.eval, "model": model.name})
        return self._add("eval", config, (model.node,), place, place.arm, {"model": self._contents.model(model)})

    def _add(
        self,
        kind: str,
        config: Config,
        inputs: Iterable[Node | None],
        place: _Place,
        arm: str | None = None,
        contents: Mapping[str, Any] | None = None,
        out: str | None = None,
    ) -> Node:
        """Return the node of this digest, made where there is none yet.

        `contents` are digests of what the options name; `out` is given where the node fills another one's output.
        """
        stage = kind.partition("-")[0]
        sources = tuple(dict.fromkeys(node for node in inputs if node is not None))
        tasks = tasks_of(self._recipe, config, place.source, self._tasks)
        digest = content_hash(
            {
                "stage": stage,
                "options": self._contents.deciding(config, self._recipe.setting, tasks),
                "inputs": [node.digest for node in sources],
                **(contents or {}),
            }
        )
        if digest not in self._by_digest:
            self._by_digest[digest] = Node(
                name=self._name(kind, place, arm),
                stage=stage,
                config=config,
                inputs=tuple(node.name for node in sources),
                out=out or f"{NODES}/{stage}-{digest[:10]}",
                digest=digest,
                arm=place.arm,
                round=place.round,
                seed=place.seed,
                source=place.source,
            )
        node = self._by_digest[digest]
        users = self._users.setdefault(digest, set())
        if arm is not None and users - {arm}:
            _check_shared(node, config, arm, users)
        users.update((arm,) if arm else self._recipe.arms)
        return node

    def _name(self, kind: str, place: _Place, arm: str | None) -> str:
        """Return a name by place and kind, with the arm where another arm's node has that name."""
        name = f"{place.prefix}/{kind}".lstrip("/")
        if name in self._names:
            name = f"{place.prefix}/{arm}/{kind}"
        self._names.add(name)
        return name


def _check_shared(node: Node, config: Config, arm: str, users: Collection[str]) -> None:
    """Refuse an arm whose options differ from those of a node that it shares, and an arm that repeats a training."""
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
    """A place in the recipe: the first part of its nodes' names, and the arm, round, seed and source of its rows."""

    prefix: str = ""
    arm: str | None = None
    round: int | None = None
    seed: int | None = None
    source: Source | None = None
