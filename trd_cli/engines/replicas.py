"""Several engines over one model as one engine: a driver that hands requests to workers and takes completions back.

A worker has its rows in flight and a few more, so that its batch stays full; each completion makes room for the next
request. At the end of the work the rows that are left are shared evenly.

If a worker dies, or the engine in it fails, its unfinished rows go to the others and a new worker takes its place. A
row may be to blame: rows that the engine had at one death are spread thinly, a row that was there at two is run alone,
and one that was there at three becomes an error row. A worker that dies four times in a row without finishing a row is
given up. With none left the command ends with the last one's reason. An engine that cannot start while none has started
yet is not tried again: it would refuse for the same reason.

Not covered: a worker that hangs without dying.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from trd_cli.engines.worker import Died, Failed, Message, Ready
from trd_cli.errors import EngineError, counted, flag
from trd_cli.records import Completion, Request

_log = logging.getLogger(__name__)
# Deaths after which a row is run alone, and after which it is an error row.
_ALONE_AFTER, _ENDED_AFTER = 2, 3
# Restarts of a worker in a row, none of which finished a row.
_RESTARTS = 3
# Rows present at one death that a worker may hold: at a second death only they are to be run alone.
_SUSPECTS = 8
# A worker waits for its next request as long as the driver is busy with a shard: at least this many rows, or this share
# of its batch, lie ready for it.
_LEAST_READY, _SHARE_READY = 8, 4
# Requests that are made before the driver looks for completions again, and the seconds that it waits for them.
_AT_A_TIME, _TICK = 32, 1.0


class Transport(Protocol):
    """Workers, numbered from 0, each with an engine of its own."""

    def start(self, number: int) -> None:
        """Start a worker, which will send Ready; return without waiting for it."""
        ...

    def send(self, number: int, requests: Sequence[Request]) -> None:
        """Hand requests to a worker that is ready; the loss of a dead one is reported by `arrived`."""
        ...

    def arrived(self, seconds: float) -> list[tuple[int, Message]]:
        """Return what workers have sent, in the order they sent it; wait so many seconds if that is nothing yet.

        Failed or Died is the last message of a worker: it has ended then.
        """
        ...

    def close(self, at_once: bool) -> None:
        """End all workers; unless `at_once`, idle ones have time to free their memory."""
        ...


@dataclass
class _Row:
    request: Request
    deaths: int = 0


@dataclass
class _Replica:
    """A worker as the driver sees it: it holds at most `room` rows, of which its engine has the first `at_once`.

    `strikes` are its deaths since its last finished row.
    """

    number: int
    state: Literal["waiting", "starting", "ready", "lost"] = "waiting"
    at_once: int = 0
    room: int = 0
    strikes: int = 0
    is_alone: bool = False
    open: dict[str, _Row] = field(default_factory=dict)
    tokens: int = 0

    def finish(self, completion: Completion) -> None:
        """Count a completion of one of its rows."""
        del self.open[completion.request_id]
        self.is_alone, self.strikes = self.is_alone and bool(self.open), 0
        self.tokens += len(completion.token_ids or ())

    def suspects(self) -> int:
        return sum(row.deaths > 0 for row in self.open.values())


class Replicas:
    """See the module."""

    def __init__(self, name: str, version: str, transport: Transport, count: int, first_alone: bool = False) -> None:
        """Start `count` workers and wait for the first; with `first_alone` the others start after it.

        Raises EngineError if none starts.
        """
        self.name, self.version = name, version
        self._transport, self._first_alone = transport, first_alone
        self._replicas = [_Replica(number) for number in range(count)]
        self._work, self._has_started, self._has_finished = _Work(()), False, False
        try:
            self._start_some()
            while not self._has_started:
                deque(self._take_in(_TICK), maxlen=0)
        except BaseException:
            transport.close(at_once=True)
            raise

    @property
    def rows_at_once(self) -> int:
        return sum(replica.room for replica in self._ready())

    def tokens(self) -> list[int]:
        """Return the response tokens of each replica so far."""
        return [replica.tokens for replica in self._replicas]

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """See `Engine.generate`. Raises EngineError when no worker is left."""
        self._work = _Work(requests)
        for replica in self._replicas:  # of work that was given up
            replica.open, replica.is_alone = {}, False
        while not self._work.is_done() or self._busy():
            has_more = self._work.read(self._room())
            self._hand_out()
            yield from self._take_in(0.0 if has_more else _TICK)

    def close(self) -> None:
        """End all workers and the processes they started."""
        self._transport.close(at_once=bool(self._busy()))

    def _ready(self) -> list[_Replica]:
        return [replica for replica in self._replicas if replica.state == "ready"]

    def _living(self) -> list[_Replica]:
        return [replica for replica in self._replicas if replica.state != "lost"]

    def _busy(self) -> bool:
        return any(replica.open for replica in self._replicas)

    def _room(self) -> int:
        """Return how many rows may wait here: together with those in flight no more than all workers may hold."""
        most = len(self._living()) * max((replica.room for replica in self._ready()), default=0)
        return most - sum(len(replica.open) for replica in self._replicas)

    def _start_some(self) -> None:
        """Start the workers that have not been started; the first one alone if its start prepares those of others."""
        alone = self._first_alone and not self._ready()
        for replica in self._replicas:
            if alone and any(other.state == "starting" for other in self._replicas):
                return
            if replica.state == "waiting":
                replica.state = "starting"
                self._transport.start(replica.number)

    def _hand_out(self) -> None:
        """Give each worker the rows it has room for, or its even share of those that are left."""
        ready, work = self._ready(), self._work
        for replica in ready:
            if work.alone and not replica.open:
                self._send(replica, [work.alone.popleft()])
                replica.is_alone = True
        unfinished = len(work) + sum(len(replica.open) for replica in self._replicas)
        share = -(-unfinished // len(self._living()))
        shared = [replica for replica in ready if not replica.is_alone]
        if work.alone and shared and len(shared) == len(ready):
            # One worker finishes what it has and then takes a row alone.
            shared.remove(min(shared, key=lambda replica: len(replica.open)))
        for replica in shared:
            room = max(0, min(replica.room, share) - len(replica.open))
            self._send(replica, work.take(room, max(0, _SUSPECTS - replica.suspects())))

    def _send(self, replica: _Replica, rows: Sequence[_Row]) -> None:
        if rows:
            replica.open |= {row.request.request_id: row for row in rows}
            self._transport.send(replica.number, [row.request for row in rows])

    def _take_in(self, seconds: float) -> Iterator[Completion]:
        """Wait so many seconds for messages, and yield the completions of rows that have ended.

        Raises EngineError if no worker is left.
        """
        for number, message in self._transport.arrived(seconds):
            replica = self._replicas[number]
            if isinstance(message, Completion):
                if message.request_id in replica.open:
                    replica.finish(message)
                    self._has_finished = True
                    yield message
            elif isinstance(message, Ready):
                replica.state, self._has_started = "ready", True
                replica.at_once = message.rows_at_once
                replica.room = message.rows_at_once + max(_LEAST_READY, message.rows_at_once // _SHARE_READY)
                self._start_some()
            else:
                yield from self._bury(replica, message)

    def _bury(self, replica: _Replica, end: Failed | Died) -> Iterator[Completion]:
        """Take back a worker's rows and replace the worker; yield rows that have seen too many deaths, as errors."""
        reason = f"failed: {end.error.got}" if isinstance(end, Failed) else end.reason
        is_first_refusal = isinstance(end, Failed) and replica.state == "starting" and not self._has_started
        # A row that ran alone is to blame, unless no worker has ever finished one.
        replica.strikes += not (replica.is_alone and self._has_finished)
        rows = list(replica.open.values())
        replica.open.clear()
        replica.is_alone = False
        is_lost = is_first_refusal or replica.strikes > _RESTARTS
        replica.state = "lost" if is_lost else "waiting"
        then = "is given up" if is_lost else "starts again"
        _log.warning("replica %d %s; it %s%s", replica.number + 1, reason, then, _elsewhere(len(rows)))
        self._work.put_back(rows[replica.at_once :])
        for row in rows[: replica.at_once]:
            yield from self._work.again(row, reason)
        if not self._living():
            raise _none_left(len(self._replicas), end)
        self._start_some()


def _elsewhere(rows: int) -> str:
    return f", and {counted(rows, 'row')} of it {'goes' if rows == 1 else 'go'} to others" if rows else ""


def _none_left(count: int, end: Failed | Died) -> EngineError:
    if isinstance(end, Failed):
        got, expected, mend = end.error.parts
        return EngineError(f"none of {counted(count, 'replica')} is left, the last one failed: {got}", expected, mend)
    return EngineError(
        f"none of {counted(count, 'replica')} is left, the last one {end.reason}",
        "one that lives",
        f"find out what ends them; lower {flag('replicas')} or {flag('batch_size')} if memory runs out",
    )


class _Work:
    """The rows that no worker has: those not read yet, those read, and those that were present at a death."""

    def __init__(self, requests: Iterable[Request | None]) -> None:
        self._source, self._has_ended = iter(requests), False
        self._fresh: deque[_Row] = deque()
        self._suspects: deque[_Row] = deque()
        self.alone: deque[_Row] = deque()

    def __len__(self) -> int:
        return len(self._fresh) + len(self._suspects) + len(self.alone)

    def is_done(self) -> bool:
        return self._has_ended and not len(self)

    def read(self, most: int) -> bool:
        """Read a few requests, until `most` rows are here; return whether to read on before waiting for completions."""
        for _ in range(_AT_A_TIME):
            if self._has_ended or len(self) >= most:
                return False
            request = next(self._source, self)
            self._has_ended = request is self
            if request is None:
                return False
            if not self._has_ended:
                self._fresh.append(_Row(request))
        return True

    def take(self, room: int, suspects: int) -> list[_Row]:
        """Return at most `room` rows, of which at most `suspects` were present at a death."""
        rows = [self._suspects.popleft() for _ in range(min(room, suspects, len(self._suspects)))]
        return rows + [self._fresh.popleft() for _ in range(min(room - len(rows), len(self._fresh)))]

    def put_back(self, rows: Sequence[_Row]) -> None:
        """Take back rows that a worker had not begun when it died."""
        for row in reversed(rows):
            (self._suspects if row.deaths else self._fresh).appendleft(row)

    def again(self, row: _Row, reason: str) -> Iterator[Completion]:
        """Take back a row that was at work when its worker died; yield its error if it has seen too many deaths."""
        row.deaths += 1
        if row.deaths >= _ENDED_AFTER:
            error = f"{counted(row.deaths, 'worker')} died with this row, the last one, alone with it, {reason}"
            yield Completion(row.request.request_id, error=error)
        else:
            (self.alone if row.deaths >= _ALONE_AFTER else self._suspects).append(row)
