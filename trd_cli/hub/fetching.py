"""Find what a name means on this machine: a path is itself, a name on the Hub is a place in huggingface_hub's cache.

The Hub is read through huggingface_hub, so its cache and its variables (HF_HOME, HF_ENDPOINT, HF_HUB_OFFLINE, HF_TOKEN)
apply. The cache is read-only to trd.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from glob import escape
from pathlib import Path

from trd_cli.errors import OutOfReach, first_line
from trd_cli.hub.names import HubName, is_hub_name

# The files of a set that other commands read; a pattern's star also matches a slash.
_OF_A_SET = ("shard-*.parquet", "run*.json", "sessions*.jsonl")


@dataclass(frozen=True)
class Located:
    """A place on this machine. `name` is its name on the Hub at a commit, or None for a path of this machine."""

    path: Path
    name: HubName | None = None

    @property
    def directory(self) -> Path:
        """Return the directory of a set, or the one that a file is in."""
        return self.path.parent if self.name and self.name.is_file else self.path


def located(text: str) -> Located:
    """Return where a path or a name on the Hub is, downloaded first where the cache lacks it.

    A folder comes with the files of the set in it, a file with the records beside it. Raises InputError for a name of
    another form, and OutOfReach for one that cannot be had.
    """
    if not is_hub_name(text):
        return Located(Path(text))
    name = HubName.parse(text)
    snapshot = _snapshot(name)
    at_commit = name.at(snapshot.name)
    path = snapshot / name.path
    if not path.exists():
        lacks = "is no file there" if name.is_file else "has no shards"
        raise OutOfReach(f"{at_commit} {lacks}", "a set or a file in the repository", "check the name and its revision")
    return Located(path, at_commit)


def local_path(text: str) -> Path:
    """Return the path on this machine of a file or a directory; raises as `located`."""
    return located(text).path


def _snapshot(name: HubName) -> Path:
    from huggingface_hub import snapshot_download

    quieten()
    folder = escape(name.folder.path)
    patterns = [f"{folder}/{pattern}" if folder else pattern for pattern in _OF_A_SET]
    if name.is_file:
        patterns = [escape(name.path), patterns[1]]
    at = {"repo_id": name.repository, "repo_type": "dataset", "revision": name.revision}
    try:
        with nullcontext() if sys.stderr.isatty() else without_bars():
            return Path(snapshot_download(**at, allow_patterns=patterns))
    except Exception as error:  # its HTTP, file and cache layers raise many kinds
        raise OutOfReach(
            f"{name} could not be fetched: {reason(error, name.revision or 'main')}",
            "a dataset that the Hub or the cache has",
            "check the name, the network and HF_ENDPOINT, or set HF_TOKEN for a private or gated one",
        ) from None


def quieten() -> None:
    """Make huggingface_hub log errors alone: it logs each failed attempt, and ours give the reason in one line."""
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)


def reason(error: BaseException, revision: str) -> str:
    """Return the cause in one line: huggingface_hub's messages have several, and the first does not always name it."""
    from huggingface_hub import errors

    reasons: dict[type[Exception], str] = {
        errors.GatedRepoError: "it is gated, and this token has no access",
        errors.RepositoryNotFoundError: "there is no such repository, or it is private",
        errors.RevisionNotFoundError: f"it has no revision {revision}",
        errors.LocalEntryNotFoundError: "it is not in the cache, and the Hub cannot be reached",
        errors.EntryNotFoundError: f"there is no such file at revision {revision}",
    }
    return next((text for kind, text in reasons.items() if isinstance(error, kind)), first_line(error))


@contextmanager
def without_bars() -> Iterator[None]:
    """Keep huggingface_hub from drawing bars of its own: beside the progress of a command, and in a log."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
