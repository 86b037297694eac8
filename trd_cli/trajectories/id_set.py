"""A set of ids in some 20 bytes an id: a million of them take some 20 MiB, where Python's own set takes over 120."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

_BUCKETS = 1 << 16
_REST = 14


class IdSet:
    """Hold the 16-byte digests of ids; two ids never share one in practice.

    The first two bytes of a digest choose its bucket, which holds the other fourteen of all its digests in one string.
    """

    def __init__(self, ids: Iterable[str] = ()) -> None:
        self._buckets = [b""] * _BUCKETS
        self._count = 0
        for name in ids:
            self.add(name)

    def __len__(self) -> int:
        return self._count

    def __contains__(self, name: str) -> bool:
        bucket, rest = _digest(name)
        return _place(self._buckets[bucket], rest) >= 0

    def add(self, name: str) -> bool:
        """Add an id; return True if it was not there."""
        bucket, rest = _digest(name)
        held = self._buckets[bucket]
        if _place(held, rest) >= 0:
            return False
        self._buckets[bucket] = held + rest
        self._count += 1
        return True

    def discard(self, name: str) -> bool:
        """Take an id out; return True if it was there."""
        bucket, rest = _digest(name)
        held = self._buckets[bucket]
        place = _place(held, rest)
        if place < 0:
            return False
        self._buckets[bucket] = held[:place] + held[place + _REST :]
        self._count -= 1
        return True


def _digest(name: str) -> tuple[int, bytes]:
    """Return the bucket of an id, and what it is known by there."""
    digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=2 + _REST).digest()
    return int.from_bytes(digest[:2]), digest[2:]


def _place(held: bytes, rest: bytes) -> int:
    """Return where a digest begins in a bucket, -1 if it is not there."""
    place = held.find(rest)
    while place % _REST and place >= 0:
        place = held.find(rest, place + 1)
    return place
