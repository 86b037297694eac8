"""The graders' workers: threads of this process, each of which has a worker process and waits for it.

If a worker dies, its thread gets another one for the next piece of work.
"""

from __future__ import annotations

import gc
import logging
import multiprocessing
import resource
import tempfile
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from multiprocessing import forkserver
from typing import Any

from trd_cli.errors import InputError
from trd_cli.graders.workers import Died, Expired, NotStarted, Work, Worker

# `_STARTS` workers may die one after the other before they have a row. The pause between two tries, in seconds, is long
# enough to notice that the server was killed. Each worker must find `_ROOM` bytes free.
_STARTS, _PAUSE, _ROOM = 5, 0.2, 16 << 20
# A package that a grader needs, or a user's module, is imported within this time, however busy the machine is.
IMPORT_SECONDS = 120.0


def _warm_up(memory: int) -> None:
    """Import what a worker needs, outside any row's time limit, and bound the worker's memory.

    Raises MemoryError if the bound leaves no room.
    """
    import math_verify

    # math-verify warns that it runs without time limits; here the workers have them.
    logging.getLogger(math_verify.__name__).setLevel(logging.ERROR)
    # Otherwise a process forked to compare would copy all loaded modules when it collects garbage.
    gc.freeze()
    before, most = resource.getrlimit(resource.RLIMIT_AS)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (memory, most))
    try:
        bytearray(_ROOM)
    except MemoryError:
        resource.setrlimit(resource.RLIMIT_AS, (before, most))
        raise MemoryError(f"{memory / (1 << 30):g} GiB are too few for what it loads") from None


class Crew:
    """So many workers, each with so many bytes of memory; a worker starts with its first piece of work.

    Two crews of one `kind` do the same.
    """

    def __init__(self, workers: int, memory: int) -> None:
        """Prepare the crew. Raises InputError if no worker can be started below the directory for temporary files."""
        self.kind = workers, memory
        # Workers are forked from a small server that has loaded the graders: a fresh one costs milliseconds and does
        # not inherit this process's threads.
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(
            ["math_verify", "trd_cli.graders.math", "trd_cli.graders.code", "trd_cli.graders.workers"]
        )
        try:
            forkserver.ensure_running()
        except OSError as error:
            # The server's socket lies in the directory for temporary files, whose path may be too long for a socket.
            raise InputError(
                f"the graders' workers cannot start below {tempfile.gettempdir()}: {error}",
                "a directory for temporary files with a short path",
                "set TMPDIR to another",
            ) from None
        # Each thread has a worker and waits for it.
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="trd-grader")
        self._mine = threading.local()
        self._alive: set[Worker] = set()
        self._open: set[Future[Any]] = set()
        self._is_closing = False

    def is_idle(self) -> bool:
        """Return True if no work is under way or waits."""
        return all(future.done() for future in list(self._open))

    def rest(self) -> None:
        """Do nothing while GPUs are for others: workers have none."""

    def close(self, at_once: bool = False) -> None:
        """End the workers when they have done what they have; `at_once` kills them and drops what waits."""
        self._is_closing = True
        if at_once:
            self._threads.shutdown(wait=False, cancel_futures=True)
            for worker in list(self._alive):
                worker.kill()
        self._threads.shutdown()
        for worker in list(self._alive):
            worker.close()

    def schedule(self, seconds: float, *work: Any, tries: int = 2, before: Work | None = None) -> Future[Any]:
        """Have a function called with its arguments in a worker that is killed after `seconds`.

        The worker does `before` first, once in its life, for which it has time of its own.
        """
        function, *arguments = work
        future = self._threads.submit(self._in_worker, tries, seconds, (function, tuple(arguments)), before)
        self._open.add(future)
        future.add_done_callback(self._open.discard)
        return future

    def _in_worker(self, tries: int, seconds: float, work: Work, before: Work | None) -> Any:
        """Do a piece of work in this thread's worker; if that dies, try again in another one, `tries` times in all."""
        while True:
            worker = self._worker()
            try:
                if before is not None and before not in worker.done:
                    worker.ask(IMPORT_SECONDS, before)
                    worker.done.append(before)
                return worker.ask(seconds, work)
            except Expired:
                self._drop(worker)
                raise
            except Died:
                self._drop(worker)
                tries -= 1
                if not tries or self._is_closing:
                    raise

    def _worker(self) -> Worker:
        """Return this thread's worker, or a fresh one if it has none or a dead one.

        Raises InputError if no worker starts.
        """
        worker = getattr(self._mine, "worker", None)
        if worker is not None and worker.is_alive():
            return worker
        if worker is not None:
            self._drop(worker)
        for _ in range(_STARTS):
            try:
                return self._started()
            except NotStarted as failure:
                reason = str(failure)
                if self._is_closing:
                    break
                time.sleep(_PAUSE)
        raise InputError(
            f"the graders' processes do not start, the last one: {reason}",
            "one that lives until it gets a row",
            "give them more memory (--memory, or fewer --workers), or find out what ends them",
        )

    def _started(self) -> Worker:
        self._mine.worker = worker = Worker(self._context, (_warm_up, (self.kind[1],)))
        self._alive.add(worker)
        try:
            if self._is_closing:
                raise NotStarted("the pool is closing")
            worker.wait_until_ready()
        except NotStarted:
            self._drop(worker)
            raise
        return worker

    def _drop(self, worker: Worker) -> None:
        self._mine.worker = None
        self._alive.discard(worker)
        worker.kill()
        worker.close()
