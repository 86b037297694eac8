"""Find a benchmark's files in the directory TRD_DATA, or in a dataset repository of the Hugging Face Hub.

The Hub is read through huggingface_hub, so its cache and its variables (HF_HOME, HF_ENDPOINT, HF_HUB_OFFLINE, HF_TOKEN)
apply.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trd_cli.errors import OutOfReach
from trd_cli.hub.fetching import quieten, reason
from trd_cli.local_data import local_file
from trd_cli.records import Problem, content_hash


@dataclass(frozen=True)
class Loaded:
    """Hold the problems that a benchmark's loader read, and their origin.

    `source` is text for people. `revision` is the commit (Hub) or version (EvalPlus) that was read, or None for a local
    file. `expected_size` and `expected_sha256` are those of the edition that trd knows, or None. `certain` is False
    where another hash may only mean another edition of the same content.
    """

    problems: list[Problem]
    source: str
    revision: str | None = None
    expected_size: int | None = None
    expected_sha256: str | None = None
    certain: bool = True
    notes: tuple[str, ...] = ()

    def sha256(self) -> str:
        """Return the SHA-256 (hex) of everything that decides a score.

        That is the text, reference answer and tests of every question; the order of questions does not matter.
        """
        parts = ([p.problem, p.reference_answer, p.tests] for p in self.problems)
        return content_hash(sorted(content_hash(part, 64) for part in parts), 64)

    def known(self, sha256: str) -> bool | None:
        """Return True if this is the content that trd knows, False if not, and None if the hash cannot tell."""
        if self.expected_sha256 is None:
            return None
        return True if sha256 == self.expected_sha256 else (False if self.certain else None)


@dataclass(frozen=True)
class Fetched:
    """Hold a file on this machine, its origin for people, and its commit on the Hub, or None for a local file."""

    path: Path
    source: str
    commit: str | None


def fetch(local: str, repo: str, path: str, revision: str | None, pinned: str) -> Fetched:
    """Return the local file, or else the Hub's at `revision` (a commit, branch or tag; default: the commit `pinned`).

    Where a `revision` is given, the local file is not used. Raises InputError where neither file can be had.
    """
    found = local_file(local) if revision is None else None
    return Fetched(found, str(found), None) if found else hub_file(repo, path, revision or pinned, local)


def hub_file(repo: str, path: str, revision: str, local: str) -> Fetched:
    """Return one file of a dataset repository, from huggingface_hub's cache or downloaded into it.

    Raises InputError where that fails.
    """
    from huggingface_hub import hf_hub_download

    quieten()
    try:
        file = Path(hf_hub_download(repo, path, repo_type="dataset", revision=revision))
    except Exception as error:  # its HTTP, file and cache layers raise many kinds
        raise OutOfReach(
            f"{path} of the Hub dataset {repo} could not be fetched: {reason(error, revision)}",
            "the Hub, or a copy of the file",
            f"check the network and HF_ENDPOINT, set HF_TOKEN for a gated set, or set TRD_DATA to a folder with benchmarks/{local}",
        ) from None
    # The cache keeps a file under snapshots/<commit>/, even if a branch was asked for.
    commit = file.parts[len(file.parts) - len(Path(path).parts) - 1]
    return Fetched(file, f"{repo}@{commit[:12]} ({path})", commit)
