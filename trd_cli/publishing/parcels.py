"""What of a set, a run or a checkpoint is pushed, and its card.

A set lies in the root of its repository. A run has a folder and a configuration for each of its sets, its problem set
in problems/, its recipe, and results/ with the scores. A checkpoint lies in the root: the files of the model, the
adapter, the average, run.json and the log of the training, but no states.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tomli_w

from trd_cli.adapter_files import ADAPTER, SETTINGS, is_adapter_alone, read_base
from trd_cli.atomic import from_text
from trd_cli.config.publishing import PushConfig
from trd_cli.errors import InputError
from trd_cli.evaluation.results import FILE as RESULTS
from trd_cli.evaluation.results import read_results
from trd_cli.hub.names import HubName, is_repository
from trd_cli.model_files import CONFIG
from trd_cli.models import EMA
from trd_cli.publishing.cards import Publication, SetCard, dataset_card, model_card
from trd_cli.publishing.figures import figures_of
from trd_cli.publishing.items import Item, as_json, version_of
from trd_cli.publishing.places import is_place, without_keyed_places, without_places
from trd_cli.recipes.nodes import GRAPH_FILE
from trd_cli.recipes.sections import PROBLEMS_FILE
from trd_cli.report.run_directory import Node, Run, read_run
from trd_cli.training import LOG
from trd_cli.trajectories.run_json import NAME as RUN_JSON
from trd_cli.trajectories.run_json import OF_ROLLOUTS, is_record, read_run_json
from trd_cli.trajectories.sets import InputSet, open_sets
from trd_cli.trajectories.stage_dir import SESSIONS
from trd_cli.trajectories.state import State, state_of

CARD = "README.md"
_MODEL_FILES = (".json", ".safetensors", ".bin", ".jinja", ".model", ".txt")
# Files of a model that may name a directory, and the keys under which they do.
_NAMING = {CONFIG, "tokenizer_config.json", SETTINGS, "base.json"}
_NAMING_KEYS = frozenset({"_name_or_path", "name_or_path", "base_model_name_or_path", "model"})


@dataclass(frozen=True)
class Parcel:
    """Hold what is pushed: the repository's type ("dataset" or "model"), its files without the card, and the card."""

    repo_type: str
    items: tuple[Item, ...]
    card: str


def parcel_of(config: PushConfig) -> Parcel:
    """Collect what is to be pushed. Raises InputError for a directory that is none of the three, or is not finished."""
    directory = Path(config.source)
    if not directory.is_dir():
        raise InputError(
            f"{config.source} is no directory", "a trajectory set, a run or a checkpoint", "check the path"
        )
    of = Publication(config.repository, config.revision, config.license)
    if (directory / GRAPH_FILE).is_file():
        return _of_run(directory, config, of)
    state = state_of(directory)
    if state.command == "distill":
        return _of_checkpoint(state, of)
    if state.command not in (None, "refine", *OF_ROLLOUTS) or not state.shards:
        what = f"the output of trd {state.command}" if state.command else "neither a set, a run nor a checkpoint"
        raise InputError(
            f"{directory} is {what}", "a trajectory set, a run directory or a checkpoint", "give another directory"
        )
    each, shards, card = _set(directory, "default", "", config)
    return Parcel("dataset", (*shards, *_records(each, "", each.record)), dataset_card(of, [card]))


def _set(directory: Path, name: str, folder: str, config: PushConfig) -> tuple[InputSet, list[Item], SetCard]:
    """Open a set; return it, its shards as items, and what a card tells of it.

    Raises InputError if it is not finished, unless that is allowed, and without run.json.
    """
    state = state_of(directory)
    if state.record is None:
        raise InputError(f"{directory} has no run.json", "a set that tells how it was made", "copy its run.json too")
    if not config.allow_partial:
        state.check()
    (each,) = open_sets([str(directory)])
    missing = None if state.expected is None else max(0, state.expected - state.rows)
    # Their versions are noted before they are counted.
    shards = [Item(_in(folder, path.name), path, version=version_of(path)) for path in each.shards]
    figures = figures_of(each, config.parents)
    return each, shards, SetCard(name, folder, len(each.shards), each.record, figures, missing)


def _in(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _records(each: InputSet, folder: str, record: Mapping[str, Any]) -> Iterator[Item]:
    """Yield the files of a set beside its shards; `record` is its run.json as it is to be published, places apart."""
    for path in sorted(each.directory.iterdir()):
        if is_record(path) and path.name != RUN_JSON:
            yield Item(
                _in(folder, path.name), as_json(without_places(json.loads(path.read_text("utf-8")))), is_last=True
            )
        elif path.name.startswith(SESSIONS.removesuffix(".jsonl")) and path.suffix == ".jsonl":
            yield Item(_in(folder, path.name), path)
    yield Item(_in(folder, RUN_JSON), as_json(without_places(record)), is_last=True)


def _of_run(directory: Path, config: PushConfig, of: Publication) -> Parcel:
    run = read_run(directory)
    if not config.allow_partial:
        _check_done(directory, run)
    nodes = [node for node in run.of_stage("sample", "refine") if node.shards()]
    if not nodes:
        raise InputError(f"{directory} has no trajectory set yet", "a run with rows", "run its trd run again")
    folders = {node.path: node.name for node in nodes}
    items: list[Item] = []
    cards = []
    for node in nodes:
        each, shards, card = _set(node.path, node.name.replace("/", "_"), node.name, config)
        record = _within(each.record, folders, of.repository)
        items += [*shards, *_records(each, node.name, record)]
        cards.append(replace(card, record=record))
    problems = [node.path / PROBLEMS_FILE for node in run.of_stage("problems")]
    place = f"problems/{PROBLEMS_FILE}" if problems and problems[0].is_file() else None
    items += [Item(place, problems[0])] if place else []
    recipe = tomli_w.dumps(_without_none(without_places(run.recipe)))
    items.append(Item("recipe.toml", recipe.encode()))
    results = dict(_results(run))
    items += [Item(f"results/{name}/{RESULTS}", as_json(found)) for name, found in results.items()]
    return Parcel("dataset", tuple(items), dataset_card(of, cards, place, recipe, results))


def _check_done(directory: Path, run: Run) -> None:
    """Raise InputError for a run with a stage that is not done."""
    for node in run.nodes.values():
        if node.state != "done":
            raise InputError(
                f"{node.name} of {directory} is {node.state}",
                "a finished run",
                "run its trd run again to finish it, or pass --allow-partial",
            )


def _within(record: Mapping[str, Any], folders: Mapping[Path, str], repository: str) -> dict[str, Any]:
    """Return run.json with the inputs that are pushed too by their names in the repository, at the same commit."""

    def name(path: str) -> str:
        folder = folders.get(from_text(path).resolve()) if is_place(path) else None
        return str(HubName(repository, None, folder)) if folder else path

    return {**record, "inputs": [{**each, "path": name(each["path"])} for each in record.get("inputs", [])]}


def _results(run: Run) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the results of each evaluation that has some."""
    for node in run.of_stage("eval"):
        if _is_there(node):
            yield node.name, without_places(read_results(str(node.path)))


def _is_there(node: Node) -> bool:
    return (node.path / RESULTS).is_file()


def _without_none(value: Any) -> Any:
    """Return a value that TOML can hold, which knows no null."""
    if isinstance(value, Mapping):
        return {key: _without_none(each) for key, each in value.items() if each is not None}
    return [_without_none(each) for each in value] if isinstance(value, list) else value


def _of_checkpoint(state: State, of: Publication) -> Parcel:
    directory = state.directory
    if not state.is_finished:
        raise InputError(f"{directory} is an unfinished checkpoint", "a finished one", "run its trd distill again")
    base = read_base(directory) if is_adapter_alone(directory) else None
    if base is not None and not is_repository(base.model):
        raise InputError(
            f"{directory} is an adapter alone, whose base {base.model} is not on the Hub",
            "merged weights",
            "run its trd distill again with --merge",
        )
    record = read_run_json(directory)
    items = tuple(_model_items(directory, record))
    return Parcel("model", items, model_card(of, record, base))


def _model_items(directory: Path, record: Mapping[str, Any]) -> Iterator[Item]:
    for path in (
        sorted(directory.glob("*")) + sorted(directory.glob(f"{ADAPTER}/*")) + sorted(directory.glob(f"{EMA}/*"))
    ):
        place = path.relative_to(directory).as_posix()
        is_model = path.suffix in _MODEL_FILES or path.name.startswith("LICENSE")
        if path.name.startswith(".") or not path.is_file() or is_record(path) or not (is_model or path.name == LOG):
            continue
        named = without_keyed_places(path.read_text("utf-8"), _NAMING_KEYS) if path.name in _NAMING else None
        yield Item(place, path if named is None else named.encode())
    yield Item(RUN_JSON, as_json(without_places(record)), is_last=True)
