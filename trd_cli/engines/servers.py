"""Divide requests among servers that share one queue, and leave a server alone while it fails.

A server with room takes the next request (greedy list scheduling), so a faster one takes more; of several with room,
the one with the least outstanding requests does. Its room is a window: halved when the server is busy, one wider after
each answer. A server that fails is left alone for a time that doubles from failure to failure, then gets one request on
trial (a circuit breaker). Times are seconds of one clock, which the caller reads.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from threading import Lock

from trd_cli.errors import EngineError
from trd_cli.records import Request

_FIRST_WAIT, _LONGEST_WAIT = 0.5, 8.0


class Fault(Exception):
    """Report why one try has no answer.

    Two faults of equal `likeness` have the same reason; with None a fault is about its own request alone. After one
    that `is_passing` the same request may be answered, in `wait` seconds if the server named them. `ends` is the error
    of a server that goes on failing so: the fault is then the server's, not the request's.
    """

    def __init__(
        self,
        reason: str,
        likeness: str | None = None,
        is_passing: bool = False,
        is_busy: bool = False,
        wait: float = 0.0,
        ends: EngineError | None = None,
    ) -> None:
        super().__init__(reason)
        self.reason, self.likeness, self.is_passing, self.is_busy = reason, likeness, is_passing, is_busy
        self.wait, self.ends = wait, ends


@dataclass(eq=False)
class Host:
    """Hold the health of a server with at most `limit` open requests.

    It is out for good, or down after more than `patience` failures in a row if they have an `error`. `model` describes
    its model: "" if it does not tell, None if it is to be asked.
    """

    shown: str
    limit: int
    patience: int
    model: str | None = None
    error: EngineError | None = None
    is_out: bool = False
    open: int = 0
    tokens: int = 0
    window: int = field(init=False)
    _failures: int = 0
    _failed_at: float = 0.0
    _rests_until: float = 0.0
    _told_until: float = 0.0

    def __post_init__(self) -> None:
        self.window = self.limit

    @property
    def is_left(self) -> bool:
        """Return True if the server may still answer."""
        return not self.is_out and not (self.is_worn and self.error)

    @property
    def is_worn(self) -> bool:
        """Return True if the server has failed so often in a row that waiting for it has no end."""
        return self._failures > self.patience

    def rests_until(self) -> float:
        """Return the time before which the server gets no request."""
        return max(self._rests_until, self._told_until)

    def has_room(self, now: float) -> bool:
        """Return True if the server may get a request."""
        return not self.is_out and now >= self.rests_until() and self.open < self.window

    def begins(self, now: float) -> None:
        """Record a request. A server that fails gets the next one only after another rest, or its answer."""
        self.open += 1
        if self._failures:
            self._rests_until = now + backoff(self._failures)

    def answers(self) -> None:
        """Record an answer."""
        self._failures, self._rests_until = 0, 0.0
        self.error = self.error if self.is_out else None
        self.window = min(self.window + 1, self.limit)

    def fails(self, fault: Fault, sent: float, now: float) -> None:
        """Record a fault. One of a request that was sent before the last failure tells nothing new."""
        if sent < self._failed_at:
            return
        # A server that has come back to say that it is busy has not failed so often yet.
        is_another_kind = (self.error is None) != (fault.ends is None)
        self._failures = 1 if is_another_kind else self._failures + 1
        self._failed_at, self.error = now, fault.ends
        if fault.ends is not None:
            self.model = None  # it may come back with another
        self._rests_until = now + (fault.wait or backoff(self._failures))
        if fault.wait:
            self._told_until = self._rests_until
        if fault.is_busy:
            self.window = max(self.window // 2, 1)


@dataclass(eq=False)
class Task:
    """Hold a request, its last fault at each server that has failed it, and when it was sent there.

    These servers do not get it again before the time `not_before`, nor while another one could take it.
    """

    request: Request
    faults: dict[Host, tuple[Fault, float]] = field(default_factory=dict)
    failures: int = 0
    not_before: float = 0.0


class Queue:
    """Hold the requests that no server has yet. All methods may be called from any thread."""

    def __init__(self, hosts: Sequence[Host], retries: int) -> None:
        self._hosts, self._retries = hosts, retries
        self._new: deque[Task] = deque()
        self._again: list[Task] = []
        self._is_closed = False
        self._lock = Lock()

    def put(self, request: Request) -> None:
        self._new.append(Task(request))

    def close(self) -> None:
        """Give out no more requests."""
        self._is_closed = True

    def is_short(self) -> bool:
        """Return True if fewer requests wait than the servers could take at once, or twice as many that have failed."""
        limit = sum(host.limit for host in self._hosts if host.is_left)
        return len(self._new) < limit and len(self._again) < 2 * limit

    def dispatch(self, now: float) -> Iterator[tuple[Host, Task]]:
        """Yield servers that have room with a request for each, the one with the fewest open requests first."""
        while True:
            by_load = sorted(self._hosts, key=lambda host: host.open)
            found = next(((host, task) for host in by_load if (task := self.take(host, now))), None)
            if found is None:
                return
            yield found

    def take(self, host: Host, now: float) -> Task | None:
        """Return the next request for a server, or None if it has no room or no request suits it."""
        with self._lock:
            if self._is_closed or not host.has_room(now):
                return None
            task = next((task for task in self._again if self._suits(task, host, now)), None)
            if task is not None:
                self._again.remove(task)
            elif self._new:
                task = self._new.popleft()
            if task is not None:
                host.begins(now)
            return task

    def next_time(self, now: float) -> float:
        """Return the seconds until a server or a request that waits may go on, infinity if no time is set."""
        with self._lock:
            times = [host.rests_until() for host in self._hosts if not host.is_out]
            later = [time for time in (*times, *(task.not_before for task in self._again)) if time > now]
            return min(later) - now if later and (self._new or self._again) else math.inf

    def answered(self, host: Host, task: Task, tokens: int, now: float) -> None:
        """Record an answer of so many tokens. A server that refused the same request has failed."""
        with self._lock:
            host.open -= 1
            host.tokens += tokens
            self._revive(host)
            for other, (fault, sent) in task.faults.items():
                if not fault.is_passing:
                    self._strike(other, fault, sent, now)

    def failed(self, host: Host, task: Task, fault: Fault, sent: float, now: float) -> bool:
        """Record a fault and return True if it is the request's end; otherwise the request waits for another try.

        A fault about the request alone is its end. Any other is once it has failed at every server that is left, and
        if the fault is passing, once the request or the server has used up its retries.
        """
        with self._lock:
            host.open -= 1
            if fault.is_passing:
                self._strike(host, fault, sent, now)
            elif fault.likeness is None:
                self._revive(host)
                return True
            if fault.ends is None:
                task.faults[host] = (fault, sent)
                task.failures += 1
                task.not_before = now + (fault.wait or backoff(task.failures))
                is_worn = not fault.is_passing or task.failures > self._retries or host.is_worn
                if is_worn and not self._untried(task):
                    return True
            self._again.append(task)
            return False

    def exclude(self, host: Host, error: EngineError, task: Task) -> None:
        """Use a server no more; its request goes to another."""
        with self._lock:
            host.open -= 1
            self._again.append(task)
            if not host.is_out:
                host.is_out, host.error = True, error
                self._tell(f"{host.shown} gets no more requests: {error.got}")

    def check_left(self) -> None:
        """Raise EngineError, with each server's last word, if none is left that may answer."""
        with self._lock:
            if any(host.is_left for host in self._hosts):
                return
            errors = [host.error for host in self._hosts if host.error is not None]
        if len(errors) == 1:
            raise errors[0]
        raise EngineError(
            "; ".join(error.got for error in errors),
            "a server that answers",
            "mend one of them and run the same command again",
        )

    def _suits(self, task: Task, host: Host, now: float) -> bool:
        if host not in task.faults:
            return True
        return now >= task.not_before and all(now < other.rests_until() for other in self._untried(task))

    def _untried(self, task: Task) -> list[Host]:
        return [host for host in self._hosts if host.is_left and host not in task.faults]

    def _strike(self, host: Host, fault: Fault, sent: float, now: float) -> None:
        was_left = host.is_left
        host.fails(fault, sent, now)
        if was_left and not host.is_left:
            self._tell(f"{host.shown} is left alone until it answers: {fault.ends.got}")

    def _revive(self, host: Host) -> None:
        was_left = host.is_left
        host.answers()
        if host.is_left and not was_left:
            self._tell(f"{host.shown} answers again")

    def _tell(self, text: str) -> None:
        # The last server's word is the error that ends the command.
        if any(host.is_left for host in self._hosts):
            logging.getLogger(__name__).warning(text)


def backoff(failures: int) -> float:
    """Return the seconds to wait after so many failures in a row."""
    return min(_FIRST_WAIT * 2.0 ** min(failures - 1, 20), _LONGEST_WAIT)
