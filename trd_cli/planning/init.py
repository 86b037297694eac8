"""trd init: draft a recipe, plan it, and write it with the files beside it.

The draft is planned in a directory for temporary files first. One with an error is not written, so that what stands in
a user's directory can be run, and so that an earlier recipe is not replaced by a faulty one.
"""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from trd_cli.atomic import check_here, make_directory, write_text
from trd_cli.config.commands import PlanConfig
from trd_cli.config.starting import InitConfig
from trd_cli.errors import InputError, counted
from trd_cli.planning import plan
from trd_cli.planning.findings import Finding, lines
from trd_cli.progress import Progress
from trd_cli.recipes.drafting import draft
from trd_cli.trajectories.stage_dir import DEFAULT_ROOT

NAME = "recipe.toml"


def run(config: InitConfig, progress: Progress) -> Path:
    """Write a recipe and return its path; what a plan finds of it, and the next commands, are notes of `progress`.

    Raises InputError for names that stand for nothing, for files that are there, and where the plan finds an error.
    """
    made = draft(config)
    files = {**made.beside, NAME: made.recipe}
    directory = Path(config.directory)
    check_here(directory)
    if directory.exists() and not directory.is_dir():
        raise InputError(f"{directory} is a file", "a directory", "name another one")
    if not config.overwrite:
        _check_new(directory, files)
    findings = _planned(directory, files, progress)
    for line in lines(findings):
        progress.note(line)
    if errors := sum(finding.level == "error" for finding in findings):
        raise InputError(
            f"the recipe would have {counted(errors, 'error')}, so it was not written",
            "none",
            "change the options that the lines above are about",
        )
    make_directory(directory)
    for name, text in files.items():
        write_text(directory / name, text)
    recipe = directory / NAME
    progress.note(f"next: {shlex.join(['trd', 'run', str(recipe)])}")
    progress.note(f"then: {shlex.join(['trd', 'report', str(DEFAULT_ROOT / made.name)])}")
    return recipe


def _check_new(directory: Path, files: Mapping[str, str]) -> None:
    """Raise InputError for a recipe that is there, and for another file with other content."""
    for name, text in files.items():
        path = directory / name
        is_same = name != NAME and path.is_file() and path.read_bytes() == text.encode()
        if path.exists() and not is_same:
            raise InputError(f"{path} is there", "a directory without it", "name another directory, or add --overwrite")


def _planned(directory: Path, files: Mapping[str, str], progress: Progress) -> list[Finding]:
    """Return what trd plan finds of files that are to be in a directory."""
    with tempfile.TemporaryDirectory(prefix="trd-init-") as scratch:
        for name, text in files.items():
            write_text(Path(scratch) / name, text)
        found = plan.run(PlanConfig(recipe=str(Path(scratch) / NAME)), progress)
    return [replace(each, got=each.got.replace(scratch, str(directory))) for each in found]
