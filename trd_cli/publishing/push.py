"""trd push: bring a repository on the Hub in line with a set, a run or a checkpoint; what is there is not sent again.

Files go in groups, and groups in commits, so that a push that was interrupted has lost one group at most. run.json and
the card go with the last commit. Where there is more than one, the first takes an older run.json away: a set that is
half there has none, and is refused where sets are read.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from trd_cli.config.publishing import PushConfig
from trd_cli.errors import InputError, counted, sized
from trd_cli.progress import Progress
from trd_cli.publishing.cards import NO_LICENCE, is_edited
from trd_cli.publishing.items import Item, digests
from trd_cli.publishing.parcels import CARD, Parcel, parcel_of
from trd_cli.publishing.remote import Remote, There
from trd_cli.trajectories.run_json import NAME as RUN_JSON

# Of one request for places to upload to, and of one commit.
_GROUP_FILES, _COMMIT_FILES, _COMMIT_BYTES = 8, 64, 1 << 30
# Files of trd that belong to one push alone: left from an earlier one they would be read as part of this one.
_OWN = re.compile(r"(shard-.*\.parquet|run(-\d+of\d+)?\.json|sessions.*\.jsonl|.*\.safetensors(\.index\.json)?)")
_NOT_CONTENT = {CARD, ".gitattributes"}


@dataclass(frozen=True)
class Pushed:
    """Hold what a push has made: the name of the repository for other commands, and the card."""

    name: str
    card: str


def run(config: PushConfig, progress: Progress) -> Pushed:
    """Push, or only list the files for a dry run.

    Raises InputError for what cannot be pushed, for a repository that holds something else, and where the Hub refuses.
    """
    parcel = parcel_of(config)
    if config.license is None:
        progress.note(f"no --license: the card says {NO_LICENCE!r}")
    name = f"hf://datasets/{config.repository}" if parcel.repo_type == "dataset" else config.repository
    if config.dry_run:
        for item in parcel.items:
            progress.note(f"would push {item.path}, {sized(item.size)}")
        return Pushed(name, parcel.card)
    remote = Remote(config.repository, parcel.repo_type, config.revision)
    remote.open(config.private)
    there = remote.files()
    if not config.replace:
        _check_same(config, parcel, remote, there)
    card = _card(config, parcel, remote, there, progress)
    with tempfile.TemporaryDirectory() as scratch:
        _Push(remote, there, Path(scratch), progress).run([*parcel.items, *card], _stale(parcel, there, config.replace))
    return Pushed(f"{name}@{remote.head()}" if parcel.repo_type == "dataset" else name, parcel.card)


def _check_same(config: PushConfig, parcel: Parcel, remote: Remote, there: dict[str, There]) -> None:
    """Raise InputError for a repository that holds other sets, or files of another kind."""
    ours = {item.path: item for item in parcel.items}
    if there.keys() <= {*ours, *_NOT_CONTENT}:
        others = []
    else:
        records = [path for path in there if PurePosixPath(path).name == RUN_JSON]
        others = [path for path in there if path not in ours and path not in _NOT_CONTENT] if not records else []
        others += [path for path in records if path not in ours]
    mine = (path for path in there if path in ours and ours[path].is_last)
    for path in [*others, *(path for path in mine if _is_of_another(ours[path], remote.read(path)))]:
        raise InputError(
            f"{config.repository} holds something else: {path}",
            "a new repository, or one with an earlier push of the same",
            "give another name, or pass --replace",
        )


def _is_of_another(item: Item, content: bytes) -> bool:
    """Return whether a record in the repository is not of the set, or the checkpoint, that is pushed."""
    with suppress(ValueError):
        return json.loads(content).get("digest") != json.loads(item.source).get("digest")
    return True


def _card(
    config: PushConfig, parcel: Parcel, remote: Remote, there: dict[str, There], progress: Progress
) -> list[Item]:
    """Return the card to push; none where the one in the repository was edited."""
    if CARD in there and not config.replace and is_edited(remote.read(CARD).decode(errors="replace")):
        progress.note(f"{CARD} of {config.repository} was edited and stays as it is: --replace writes it anew")
        return []
    return [Item(CARD, parcel.card.encode(), is_last=True)]


def _stale(parcel: Parcel, there: dict[str, There], everywhere: bool) -> list[str]:
    """Return files of an earlier push that this one lacks, in its own folders or everywhere."""
    ours = {item.path for item in parcel.items}
    folders = {str(PurePosixPath(path).parent) for path in ours}
    return [
        path
        for path in there
        if path not in ours
        and _OWN.fullmatch(PurePosixPath(path).name)
        and (everywhere or str(PurePosixPath(path).parent) in folders)
    ]


class _Push:
    """One run of a push, with the files that the repository had at its start."""

    def __init__(self, remote: Remote, there: dict[str, There], scratch: Path, progress: Progress) -> None:
        self._remote, self._there, self._scratch, self._progress = remote, there, scratch, progress

    def run(self, items: Sequence[Item], stale: Sequence[str]) -> None:
        """Send what the repository lacks; `stale` are files to delete in the last commit."""
        first = [item for item in items if not item.is_last]
        rows = sum(item.rows for item in first)
        self._progress.start("push", rows or None)
        batches = list(_batches(first))
        records = [item.path for item in items if item.is_last and item.path != CARD and item.path in self._there]
        sent = 0
        for batch in batches[:-1]:
            if added := self._added(batch):
                _check_same_files(batch)
                self._remote.commit(added, records, f"{counted(len(added), 'file')} of trd push")
                sent, records = sent + len(added), []
        added = self._added([*(batches[-1] if batches else ()), *(item for item in items if item.is_last)], bool(sent))
        _check_same_files(first)
        if added or stale:
            self._remote.commit(added, stale, "trd push: the last files, run.json and the card")
        self._progress.end()
        same = len(items) - sent - len(added)
        self._progress.note(f"{counted(sent + len(added), 'file')} sent, {same} were there")

    def _added(self, batch: Sequence[Item], always_last: bool = False) -> list:
        """Send the files of a commit that the repository lacks, in groups; return the operations of the commit.

        With `always_last` records count as lacking: an earlier commit has taken them away.
        """
        added = []
        for start in range(0, len(batch), _GROUP_FILES):
            group = batch[start : start + _GROUP_FILES]
            contents = {item.path: item.content(self._scratch) for item in group}
            lacking = {
                item.path: contents[item.path]
                for item in group
                if (always_last and item.is_last) or not self._has(item.path, contents[item.path])
            }
            added += self._remote.upload(lacking) if lacking else []
            self._progress.advance(sum(item.rows for item in group))
        return added

    def _has(self, path: str, content: Path | bytes) -> bool:
        """Return whether the repository has a file with this content."""
        there = self._there.get(path)
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        return there is not None and there.size == size and there.digest in digests(content)


def _check_same_files(items: Iterable[Item]) -> None:
    """Raise InputError for a shard that has changed since it was counted."""
    for item in items:
        item.check_same()


def _batches(items: Iterable[Item]) -> Iterator[list[Item]]:
    """Yield the files of each commit."""
    batch: list[Item] = []
    size = 0
    for item in items:
        if batch and (len(batch) >= _COMMIT_FILES or size + item.size > _COMMIT_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += item.size
    if batch:
        yield batch
