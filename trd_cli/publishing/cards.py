"""Write the card of a repository: README.md with the head that the Hub and `datasets` read."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trd_cli.adapter_files import ADAPTER, Base
from trd_cli.errors import counted
from trd_cli.evaluation.tables import headline, interval, markdown_table, percent, scored
from trd_cli.hub.names import is_hub_name, is_repository
from trd_cli.publishing.commands import command_line
from trd_cli.publishing.figures import UNVERIFIED, Figures, prompt_text
from trd_cli.publishing.places import named, without_places
from trd_cli.records import Sampling
from trd_cli.trajectories.run_json import IMPORTED, About

_ENDING = re.compile(r"<!-- trd push ([0-9a-f]{16}) -->\s*\Z")
_TAGS = ["trd", "distillation", "trajectory-refined-distillation"]
# A card has a section for each of so many sets; more have a table.
_EACH = 6
# What may be done with rows that trd refine made, and with others.
_NEXT = {True: "distill --out runs/student", False: "refine --setting opsd --out runs/y_r"}
NO_LICENCE = "Not chosen yet: add `license:` to the head of this page, or push again with `--license`."


@dataclass(frozen=True)
class SetCard:
    """Hold what a card tells of one set: its `config` and `folder` in the repository, run.json and figures.

    `missing` are the rows that it lacks, None where run.json does not tell.
    """

    config: str
    folder: str
    shards: int
    record: Mapping[str, Any]
    figures: Figures
    missing: int | None


@dataclass(frozen=True)
class Publication:
    """Hold what the top of a card tells: the repository, its revision, and the licence, None if not chosen."""

    repository: str
    revision: str | None
    license: str | None

    @property
    def name(self) -> str:
        """Return the name under which trd reads the repository."""
        return f"hf://datasets/{self.repository}" + (f"@{self.revision.replace('/', '%2F')}" if self.revision else "")


def sealed(card: str) -> str:
    """Return a card with the line by which a later push knows that nobody has edited it."""
    return f"{card.rstrip()}\n\n<!-- trd push {_digest(card)} -->\n"


def is_edited(card: str) -> bool:
    """Return whether a card is another one than trd push wrote."""
    found = _ENDING.search(card)
    return found is None or _digest(card[: found.start()]) != found[1]


def _digest(card: str) -> str:
    return hashlib.sha256(card.strip().encode()).hexdigest()[:16]


def dataset_card(
    of: Publication,
    sets: Sequence[SetCard],
    problems: str | None = None,
    recipe: str | None = None,
    results: Mapping[str, Mapping[str, Any]] | None = None,
) -> str:
    """Return the card of a set (a single one, in the root) or of a run: its sets, problem set, recipe and results.

    `problems` is the path of the problem set in the repository.
    """
    from huggingface_hub import DatasetCardData

    configs = [_config(each.config, f"{each.folder}/shard-*.parquet".lstrip("/")) for each in sets]
    configs += [_config("problems", problems)] if problems else []
    head = DatasetCardData(
        license=of.license,
        task_categories=["text-generation"],
        pretty_name=of.repository.partition("/")[2],
        tags=_TAGS,
        configs=configs,
    )
    is_run = recipe is not None
    rows = sum(each.figures.rows for each in sets)
    what = f"{counted(len(sets), 'trajectory set')} of a `trd run`" if is_run else _described(sets[0].record)
    parts = [
        f"{what}, {counted(rows, 'row', ',')}. One row is one trajectory: its problem, prompt, response with token ids, how "
        "it was made, and its verdict.",
        *_loading(of, sets, problems),
        *(_of_many(sets) if len(sets) > _EACH else (part for each in sets for part in _of_set(each, is_run))),
        *_results(results or {}),
        *_prompts(sets),
        *_made_again([each.record for each in sets], recipe),
        *_licence(of),
    ]
    return _card(of, head.to_yaml(), parts)


def model_card(of: Publication, record: Mapping[str, Any], base: Base | None) -> str:
    """Return the card of a checkpoint of trd distill; `base` is the model under an adapter without merged weights."""
    from huggingface_hub import ModelCardData

    about, identity = About.of(record), record["identity"]
    student, teacher = (named(name or "") for name in (about.student, about.teacher))
    inputs = [entry["path"] for entry in record.get("inputs", []) if is_hub_name(entry["path"])]
    head = ModelCardData(
        license=of.license,
        library_name="peft" if base else "transformers",
        pipeline_tag="text-generation",
        base_model=base.model if base else student if is_repository(student) else None,
        datasets=sorted({path.removeprefix("hf://datasets/").partition("@")[0] for path in inputs}) or None,
        tags=_TAGS,
    )
    trained = (
        ("method", f"{record['config'].get('method') or 'of its options'} (objective {identity['objective']})"),
        ("student before", f"{student} @ {identity['student_revision']}"),
        ("teacher", f"{teacher} @ {identity['teacher_revision']}"),
        ("trajectories", _number(about.trajectories)),
        ("steps", _number(about.steps)),
        ("response tokens", _number(about.tokens)),
        ("loss", f"{about.first_loss:.4g} → {about.last_loss:.4g}" if about.first_loss is not None else "—"),
        ("adapter", f"LoRA, rank {identity['lora_rank']}" if identity["lora"] else "none: all weights"),
        ("versions", _versions(record)),
    )
    parts = [
        f"`{student}`, distilled by [Trajectory-Refined Distillation](https://arxiv.org/abs/2606.08432) on its own "
        "attempts. `train.jsonl` has a line a step.",
        f"## Load\n\n```python\n{_loading_of_model(of, base)}\n```\n\n"
        f"```bash\ntrd eval {of.repository} --bench math500\n```",
        "## Training\n\n" + markdown_table(("", ""), trained),
        *_lineage(record),
        *_made_again([record], None),
        *_licence(of),
    ]
    return _card(of, head.to_yaml(), parts)


def _card(of: Publication, head: str, parts: Iterable[str]) -> str:
    return sealed("\n\n".join((f"---\n{head}\n---", f"# {of.repository.partition('/')[2]}", *parts)))


def _config(name: str, path: str) -> dict[str, Any]:
    return {"config_name": name, "data_files": [{"split": "train", "path": path}]}


def _described(record: Mapping[str, Any]) -> str:
    about = About.of(record)
    if record.get("command") == "refine":
        return f"Attempts of `{named(about.student or '?')}` and what `{named(about.model or '?')}` made of them (y_r, setting {about.setting})"
    if record.get("command") == IMPORTED:
        return f"Responses made elsewhere, with prompts as `{named(about.model or '?')}` would get them"
    return f"Attempts (y_o) of `{named(about.model)}`" if about.model else "Trajectories"


def _argument(of: Publication) -> str:
    return f'"{of.repository}"' + (f', revision="{of.revision}"' if of.revision else "")


def _loading_of_model(of: Publication, base: Base | None) -> str:
    tokenizer = f"tokenizer = AutoTokenizer.from_pretrained({_argument(of)})"
    imports = "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
    if base is None:
        return f"{imports}model = AutoModelForCausalLM.from_pretrained({_argument(of)})\n{tokenizer}"
    return (
        f"from peft import PeftModel\n{imports}"
        f'base = AutoModelForCausalLM.from_pretrained("{base.model}", revision="{base.revision}")\n'
        f'model = PeftModel.from_pretrained(base, {_argument(of)}, subfolder="{ADAPTER}")\n{tokenizer}'
    )


def _loading(of: Publication, sets: Sequence[SetCard], problems: str | None) -> Iterator[str]:
    first, *others = sets
    # A repository with one configuration needs no name.
    name = f', "{first.config}"' if others or problems else ""
    revision = f', revision="{of.revision}"' if of.revision else ""
    folder = f"/{first.folder}" if first.folder else ""
    yield (
        "## Load\n\n```python\nfrom datasets import load_dataset\n\n"
        f'rows = load_dataset("{of.repository}"{name}{revision}, split="train")\n```\n\n'
        "```python\nfrom polars import read_parquet\n\n"
        f'rows = read_parquet("{of.name}{folder}/shard-*.parquet")\n```\n\n'
        "A revision, as a commit or a branch, stands behind the name (`@…`) where trd reads it:\n\n"
        f"```bash\ntrd show {of.name}{folder}\ntrd {_NEXT[first.record.get('command') == 'refine']} {of.name}{folder}\n```"
    )


def _of_set(each: SetCard, is_run: bool) -> Iterator[str]:
    """Yield the sections on one set of a card."""
    if is_run:
        yield f"## {each.config}\n\n{_described(each.record)}, in `{each.folder}`."
    level = "###" if is_run else "##"
    are = "is" if each.missing == 1 else "are"
    lacks = "" if not each.missing else f" **Unfinished**: {counted(each.missing, 'row')} {are} missing."
    yield (
        f"{level} Rows\n\n{counted(each.figures.rows, 'row', ',')} in {counted(each.shards, 'shard')}, {each.figures.failed} "
        f"of them ended as errors.{lacks}\n\n" + _verdicts(each.figures)
    )
    yield f"{level} How they were made\n\n" + markdown_table(("", ""), _made(each))
    yield from _lineage(each.record, level)


def _of_many(sets: Sequence[SetCard]) -> Iterator[str]:
    """Yield a table of all sets, and how the last one of each command was made."""
    columns = ("correct", "incorrect", "error", "timeout", UNVERIFIED)
    rows = [
        (
            *(each.config, f"{each.figures.rows:,}", *(f"{each.figures.verdicts[name]:,}" for name in columns)),
            *(f"{(each.figures.subsets or {}).get('repaired', 0):,}", _number(each.missing)),
        )
        for each in sets
    ]
    yield "## Rows\n\n" + markdown_table(("configuration", "rows", *columns, "repaired", "missing"), rows)
    for each in {each.record.get("command"): each for each in sets}.values():
        yield f"## How they were made: {each.config}\n\n" + markdown_table(("", ""), _made(each))


def _verdicts(figures: Figures) -> str:
    rows = [(verdict, f"{count:,}", percent(count / figures.rows)) for verdict, count in figures.verdicts.most_common()]
    table = markdown_table(("verdict", "rows", "share"), rows)
    if not figures.subsets or not any(figures.subsets.values()):
        return table
    of_pairs = [(name, f"{count:,}", percent(count / figures.rows)) for name, count in figures.subsets.items()]
    return f"{table}\n\n{markdown_table(('subset', 'rows', 'share'), of_pairs)}"


def _made(each: SetCard) -> Iterator[tuple[str, str]]:
    made, record = each.figures.made, each.record
    about = About.of(record)
    yield "command", f"trd {record.get('command', 'unknown')}"
    yield "model", _listed(made["models"], lambda m, r, e, v: f"{named(m)} @ {r or 'unknown'}, {e} {v}")
    if about.student and record.get("command") == "refine":
        yield "student", f"{named(about.student)} @ {about.student_revision}"
        yield "setting", str(about.setting)
    yield "sampling", _listed(made["sampling"], lambda *values: Sampling(*values).told())
    yield "rendering", f"{about.render or 'unknown'}, tokenizer {about.tokenizer or 'unknown'}"
    yield "problems", _listed(made["sources"], lambda source, task: f"{named(source)} ({task})")
    yield "grader", _listed(made["graders"], lambda g, v: f"{named(g)} {v}" if g else "none")
    yield "digest", f"`{record.get('digest', 'none')}`"
    yield "versions", _versions(record)


def _listed(counts: Counter[tuple], told: Any) -> str:
    """Return the values in words, with the number of rows of each where there are several."""
    found = [(told(*values), count) for values, count in counts.most_common(8)]
    more = f"; and {len(counts) - 8} more" if len(counts) > 8 else ""
    return "; ".join(text if len(found) == 1 else f"{text}: {counted(n, 'row', ',')}" for text, n in found) + more


def _versions(record: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in record.get("versions", {}).items()) or "unknown"


def _lineage(record: Mapping[str, Any], level: str = "##") -> Iterator[str]:
    entries = without_places(record.get("inputs", []))
    if entries:
        rows = [(entry["path"], f"trd {entry['command']}", f"`{entry['digest']}`") for entry in entries]
        yield f"{level} Lineage\n\n" + markdown_table(("made from", "command", "digest"), rows)


def _results(results: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    rows = [
        (node, name, score, percent((e := bench["scores"][score])["value"]), interval(e), str(e["questions"]))
        for node, found in results.items()
        for name, bench in scored(found)
        for score in headline(bench, found["k"])
    ]
    if rows:
        header = ("evaluation", "benchmark", "score", "value", "95 % interval", "questions")
        yield "## Results\n\n" + markdown_table(header, rows) + "\n\nAll figures are in `results/`."


def _prompts(sets: Sequence[SetCard]) -> Iterator[str]:
    """Yield the section on the templates of the prompts, each once, with its text where it is at hand."""
    own = {key: each.record.get("config", {}).get("prompt") for each in sets for key in each.figures.made["prompts"]}
    parts = []
    for (name, sha256), file in sorted((key, file) for key, file in own.items() if all(key)):
        text = prompt_text(name, sha256, file)
        shown = _fenced(text, "jinja") if text else "Its text was not at hand; the rows have what it gave."
        parts.append(f"**{named(name)}**, SHA-256 `{sha256}`:\n\n{shown}")
    if parts:
        yield "## Prompts\n\n" + "\n\n".join(parts)


def _made_again(records: Sequence[Mapping[str, Any]], recipe: str | None) -> Iterator[str]:
    if recipe is not None:
        yield f"## Make again\n\n```bash\ntrd run recipe.toml\n```\n\nwith `recipe.toml`:\n\n{_fenced(recipe, 'toml')}"
        return
    lines = [line for line in map(command_line, records) if line]
    if lines:
        yield (
            "## Make again\n\n```bash\n" + "\n".join(lines) + "\n```\n\n"
            "Paths are names alone: put in where the models and sets lie."
        )


def _fenced(text: str, language: str) -> str:
    """Return a block of code, whose fence is longer than any in the text."""
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", text))])
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def _licence(of: Publication) -> Iterator[str]:
    yield "## Licence\n\n" + (
        of.license or f"{NO_LICENCE} The licences of the problems and of the models decide what is allowed."
    )


def _number(value: float | None) -> str:
    return "—" if value is None else f"{value:,}"
