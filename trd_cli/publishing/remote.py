"""A repository on the Hub that is written to, through huggingface_hub: its token, its transfers and its cache."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trd_cli.errors import InputError, OutOfReach
from trd_cli.hub.fetching import quieten, reason, without_bars

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, HfApi

_AGAIN = "run the same command again: what has arrived is not sent again"
_UNREACHED = {
    "ConnectError",
    "ConnectTimeout",
    "ReadTimeout",
    "NetworkError",
    "OfflineModeIsEnabled",
    "ConnectionError",
}


@dataclass(frozen=True)
class There:
    """A file in the repository: its size, and the SHA-256 of a large file or git's SHA-1 of a small one."""

    size: int
    digest: str


class Remote:
    """A repository of one type ("dataset" or "model") and a branch of it."""

    def __init__(self, repository: str, repo_type: str, branch: str | None) -> None:
        """Raise InputError if huggingface_hub has no token."""
        from huggingface_hub import HfApi, get_token

        quieten()
        if get_token() is None:
            raise InputError("no token for the Hub", "HF_TOKEN, or a login", "run hf auth login, or set HF_TOKEN")
        self._api: HfApi = HfApi(library_name="trd")
        self._repository, self._branch = repository, branch
        self._place = {"repo_id": repository, "repo_type": repo_type}
        self._at = {**self._place, "revision": branch}

    def open(self, private: bool) -> None:
        """Make the repository and the branch where they are not there.

        Raises InputError for a public one that is there, where it is to be private.
        """
        with self._telling():
            self._api.create_repo(**self._place, private=private or None, exist_ok=True)
            if private and not self._api.repo_info(**self._place).private:
                raise InputError(
                    f"{self._repository} is there and public",
                    "a private repository",
                    "make it private on the Hub, give another name, or leave --private out",
                )
            if self._branch not in (None, "main"):
                self._api.create_branch(**self._place, branch=self._branch, exist_ok=True)

    def files(self) -> dict[str, There]:
        """Return the files of the branch by their paths."""
        from huggingface_hub.hf_api import RepoFile

        with self._telling():
            found = self._api.list_repo_tree(**self._at, recursive=True)
            return {
                each.path: There(each.size, each.lfs.sha256 if each.lfs else each.blob_id)
                for each in found
                if isinstance(each, RepoFile)
            }

    def read(self, path: str) -> bytes:
        """Return the content of a small file."""
        with self._telling():
            return Path(self._api.hf_hub_download(**self._at, filename=path)).read_bytes()

    def head(self) -> str:
        """Return the commit of the branch."""
        with self._telling():
            return self._api.repo_info(**self._at).sha

    def upload(self, files: Mapping[str, Path | bytes]) -> list[CommitOperationAdd]:
        """Send the content of files, which the repository has only after a commit of what is returned."""
        from huggingface_hub import CommitOperationAdd

        with self._telling(), without_bars():
            added = [CommitOperationAdd(path, content) for path, content in files.items()]
            self._api.preupload_lfs_files(**self._at, additions=added)
            return added

    def commit(self, added: Sequence[CommitOperationAdd], deleted: Sequence[str], message: str) -> None:
        """Add and delete files in one step."""
        from huggingface_hub import CommitOperationDelete

        with self._telling(), without_bars():
            operations = [*(CommitOperationDelete(path) for path in deleted), *added]
            self._api.create_commit(**self._at, operations=operations, commit_message=message)

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """Raise one line for what the Hub, the network or huggingface_hub refuse."""
        from huggingface_hub.errors import HfHubHTTPError

        try:
            yield
        except InputError:
            raise
        except Exception as error:  # its HTTP, file and transfer layers raise many kinds
            cause = _cause(error)
            response = cause.response if isinstance(cause, HfHubHTTPError) else None
            status = getattr(response, "status_code", None)
            if status == 401:
                raise InputError(
                    "the Hub does not know this token", "a valid one", "run hf auth login, or set HF_TOKEN"
                ) from None
            if status == 403:
                raise InputError(
                    f"this token may not write to {self._repository}",
                    "one with write access to it",
                    "make a token for writing, or give a repository of yours",
                ) from None
            if {kind.__name__ for kind in type(cause).__mro__} & _UNREACHED:
                raise OutOfReach(
                    "the Hub cannot be reached",
                    "a network, and HF_HUB_OFFLINE unset",
                    f"check both and HF_ENDPOINT; then {_AGAIN}",
                ) from None
            told = reason(cause, self._branch or "main")
            raise OutOfReach(f"the Hub did not take {self._repository}: {told}", "a push that ends", _AGAIN) from None


def _cause(error: BaseException) -> BaseException:
    """Return the error of the Hub behind one of a transfer."""
    while isinstance(error, RuntimeError) and error.__cause__ is not None:
        error = error.__cause__
    return error
